"""Data cards: numbers only from the manifest, small counts withheld, pages that notice when they are out of date"""
import html, os, re, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, strategies as st
from PIL import Image
from cleftgan_nb.data import cards
from cleftgan_nb.data.cards import AGES, BLOCKS, LESSER, SKIN, card, stale
from cleftgan_nb.data.cohorts import against_published
from cleftgan_nb.data.datasets import write_dataset
from cleftgan_nb.data.measures import MEASURES, PUBLISHED

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(o for o in (ROOT/'data_cards').glob('*.md') if o.name != 'README.md')
CARDS = [o for o in PAGES if o.read_text(encoding='utf-8').startswith('# Data card')]   # the others are about models
ABOUT = dict(kind='invented', license='CC0-1.0', synthetic=True, parameters=dict(size=8, share=.5), seeds=[0, 59],
             command='nobody | nothing')

def rows(n=60, cleft=True, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        side = str(rng.choice(['left', 'right', 'bilateral'], p=[.6, .3, .1])) if cleft else None
        on = {s: cleft and side in (s, 'bilateral') for s in ('left', 'right')}
        code = ''.join(rng.choice(list('lL*')) if on[s] else '•' for s in ('right', 'left'))
        row = dict(seed=i, laterality=side, lahshal=code[0] + '•'*5 + code[1], repaired=bool(cleft and i % 3 == 0),
                   simonart=False)
        row |= {f'{p}_{s}': float(rng.uniform(0, 1)) if on[s] else 0. for p in ('lip', 'nose') for s in on}
        row |= dict(age=float(rng.choice([rng.uniform(0, 6), rng.uniform(6, 90)])), sex=float(rng.random()),
                    ita=float(rng.normal(25, 30)), light_kind='window', pose_yaw=float(rng.normal()), x_sn=3., y_sn=4.)
        row |= {f'ancestry_{k}': float(v) for k, v in zip(('african', 'asian', 'caucasian'), rng.dirichlet([1, 1, 1]))}
        row |= {m: float(rng.normal(1, .2)) for m in MEASURES}
        yield rng.integers(0, 256, (8, 8, 3), np.uint8), None, row

def page(path, names=BLOCKS, prose='Written by people.'):
    path.write_text(f'# Card\n{prose}\n' + '\n'.join(f'<!-- generated: begin {n} -->\n<!-- generated: end {n} '
                                                     f'-->\n{prose}' for n in names), encoding='utf-8')
    return path

@pytest.fixture(scope='module')
def cleft(tmp_path_factory): return write_dataset(tmp_path_factory.mktemp('set')/'cleft.zip', rows(), about=ABOUT)

@pytest.fixture(scope='module')
def filled(tmp_path_factory, cleft): return card(cleft, page(tmp_path_factory.mktemp('card')/'cleft.md'), sheet=True)

@pytest.fixture
def copy(tmp_path, filled):
    shutil.copy(filled, tmp_path)
    shutil.copytree(filled.with_suffix(''), tmp_path/'cleft')
    return tmp_path/'cleft.md'

def table(text, title):
    "Read the table with this first heading as a reader sees it: first cell → the others"
    lines = text.splitlines() + ['']
    start = next(i for i, line in enumerate(lines) if line.startswith(f'| {title} |'))
    cells = [[html.unescape(re.sub(r'\\(\W)', r'\1', c.strip())) for c in line.split('|')[1:-1]]
             for line in lines[start + 2:lines.index('', start)]]
    return {c[0]: c[1:] for c in cells}

# ---- the numbers

def test_counts_are_those_of_the_manifest(filled):
    text, all_rows = filled.read_text(), [r for *_, r in rows()]
    n = lambda key, value: sum(r[key] == value for r in all_rows)
    for side, published in dict(left='60 or 53%', right='30 or 27%', bilateral='10 or 20%').items():
        assert (table(text, 'side of the cleft')[side]
                == [str(n('laterality', side)), f'{n("laterality", side)/60:.0%}', published])
    assert (table(text, 'LAHSHAL code of the lip')
            == {c: [str(n('lahshal', c)), f'{n("lahshal", c)/60:.0%}'] for c in {r['lahshal'] for r in all_rows}})
    assert table(text, 'sex')['male'][0] == str(sum(r['sex'] >= .5 for r in all_rows))
    assert table(text, 'age')['3 to 11 months'][0] == str(sum(.25 <= r['age'] < 1 for r in all_rows))
    assert table(text, 'skin tone (ITA°)')['tan, 10° to 28°'][0] == str(sum(10 <= r['ita'] < 28 for r in all_rows))
    assert f'Under 6 years: {sum(r["age"] < 6 for r in all_rows)/60:.0%}.' in text
    for title in ('age', 'sex', 'skin tone (ITA°)', 'side of the cleft'):
        assert sum(int(c[0]) for c in table(text, title).values()) == 60, title

def test_counts_before_and_after_the_repair(filled):
    text, all_rows = filled.read_text(), [r for *_, r in rows()]
    of = {'extent, worse side': (lambda r: 'L' in r['lahshal'], 'complete'),
          'severity of the lip, worse side': (lambda r: .4 <= max(r['lip_left'], r['lip_right']) < .6, '0.4 to 0.6'),
          'severity of the nose, worse side': (lambda r: max(r['nose_left'], r['nose_right']) >= .8, '0.8 to 1.0'),
          'age group': (lambda r: 1 <= r['age'] < 6, '1 to 5 years')}
    for title, (true, line) in of.items():
        found = table(text, title)
        for k, group in enumerate(([r for r in all_rows if not r['repaired']], [r for r in all_rows if r['repaired']])):
            n = sum(map(true, group))
            assert (found[line][2*k:2*k + 2] == [str(n), f'{n/len(group):.0%}']
                    and sum(int(c[2*k]) for c in found.values()) == len(group) and n), title
    assert '| extent, worse side | not operated | share | repaired | share |' in text

def test_without_repairs_there_is_one_column():
    some = [{k: v for k, v in r.items() if k != 'repaired'} for *_, r in rows()]
    text = cards.clefts(some, {}, '')
    assert '| extent, worse side | images | share |' in text and 'age group' not in text

@pytest.mark.parametrize('smallest,said', [(1, ['3', '15%']), (5, ['under 5', ''])])
def test_how_many_severities_are_at_the_end(smallest, said):
    some = ([dict(lip_left=1., lip_right=.2, nose_left=.5, nose_right=.99)]*3
            + [dict(lip_left=.3, lip_right=0., nose_left=.99, nose_right=0.)]*17)
    found = table(cards.clefts(some, {}, '', smallest), '')
    assert (found['severity of the lip exactly 1, where the range ends'] == said
            and found['severity of the nose exactly 1, where the range ends'] == ['0', '0%'])

def test_facts(filled, cleft):
    facts = table(filled.read_text(), '')
    assert (facts['images'] == ['60 of 8 x 8 pixels, RGB, 8 bits'] and facts['license'] == ['CC0-1.0']
            and facts['seeds'] == ['0, 59'] and facts['parameters, share'] == ['0.5']
            and facts['parameters, size'] == ['8'])
    assert (facts['command'] == ['nobody | nothing']
            and facts['checksum of the manifest'] == [f'`{cards.fingerprint(cleft)}`'])
    assert 'x_sn' not in facts['known of each image'][0] and 'landmarks' in facts['known of each image'][0]

@pytest.mark.parametrize('shift,scale,said', [(0, 1, 'yes'), (.45, 1, 'yes'), (-.45, 1.4, 'yes'), (.55, 1, 'no'),
                                              (0, 1.6, 'no'), (0, .6, 'no')])
@pytest.mark.parametrize('when', PUBLISHED)
def test_within_half_an_sd_and_a_factor(shift, scale, said, when):
    for name, (mean, sd) in PUBLISHED[when].items():
        given = [{name: mean + sd*(shift + s*scale), 'laterality': 'left', 'repaired': when == 'after'}
                 for s in [-1, 1]*5]
        [line] = table(cards.measures(given, {}, ''),
                       f'measure, one side, {"repaired" if when == "after" else "not operated"}').values()
        assert line[-1] == said and line[0] == '10'

def test_clefts_of_both_sides_have_no_other_side():
    given = [{'nostril_width_ratio': v, 'laterality': side, 'repaired': False}
             for side, v in [('left', 1.5), ('right', 1.9), ('bilateral', 9.)]*5]
    [line] = table(cards.measures(given, {}, ''), 'measure, one side, not operated').values()
    assert line[0] == '10' and line[2] == '1.70 ± 0.21'

def test_the_criterion_is_that_of_the_cohorts(filled):
    all_rows, text = [r for *_, r in rows()], filled.read_text()
    for when, title in dict(before='not operated', after='repaired').items():
        wanted = {o['measure'].replace('_', ' '): o for o in against_published(all_rows) if o['when'] == when}
        found = table(text, f'measure, one side, {title}')
        assert found.keys() == wanted.keys()
        for name, o in wanted.items():
            assert ([found[name][k] for k in (0, 2, 5)]
                    == [str(o['n']), f'{o["mean"]:.2f} ± {o["sd"]:.2f}', 'yes' if o['agrees'] else 'no'])

def test_lesser_forms():
    "Incomplete, one side, not operated; no one else"
    plain = dict(laterality='left', repaired=False, lahshal='••••••l')
    given = [plain | {m: 1.2 for m in LESSER}]*7 + [plain | {m: 9. for m in LESSER} | other
                                                    for other in (dict(lahshal='••••••L'), dict(lahshal='••••••*'),
                                                                  dict(repaired=True), dict(laterality='bilateral',
                                                                          lahshal='l•••••l'))]*6
    found = table(cards.measures(given, {}, ''), 'measure, one side, incomplete, not operated')
    assert (found['alar base ratio'] == ['7', '1.1 / 1.2 / 1.31', '1.20 ± 0.00']
            and found['lateral lip height ratio'][1] == '0.942 / 0.851 / 0.87' and len(found) == len(LESSER) == 4)
    assert 'incomplete' not in cards.measures(given[:4] + given[7:], {}, '')   # four are too few

def test_what_is_missing_is_said():
    given = [r | (dict(columellar_deviation=None) if i < 7 else {}) for i, (*_, r) in enumerate(rows())]
    said = 'The columellar deviation is missing in 7 of 60 images'
    # a clinic's reason is unknown
    assert (f'{said}, because the columella does not show there' in cards.measures(given, dict(synthetic=True), '')
            and f'{said}.' in cards.measures(given, {}, ''))
    assert ('is missing in under 8 of 60 images.' in cards.measures(given, {}, '', 8)
            and 'missing' not in cards.measures(given[7:], {}, ''))

def test_controls_are_not_compared_with_clefts():
    text = cards.measures([r for *_, r in rows(cleft=False)], {}, '')
    assert 'published' not in text and 'nostril width ratio' in text

@given(st.floats(-90, 90))
def test_skin(ita):
    "The thresholds as printed"
    [name] = cards._groups([ita], SKIN)
    low, high = {'dark': (-99, -30), 'brown': (-30, 10), 'tan': (10, 28), 'intermediate': (28, 41), 'light': (41, 55),
                 'very light': (55, 99)}[name.split(',')[0]]
    assert low <= ita < high

@given(st.floats(0, 120))
def test_every_age_has_a_group(age):
    [name] = cards._groups([age], AGES)
    assert age < AGES[name] and all(limit <= age for other, limit in AGES.items() if limit < AGES[name])

# ---- small counts

def test_small_counts_are_not_told(tmp_path, cleft):
    out = card(cleft, page(tmp_path/'clinic.md'), smallest=5)
    text = out.read_text()
    counts = [m[1] for m in re.finditer(r'(?<=\|) ([^|]+) \| *(?:\d+%|) (?=\|)', text)]
    assert len(counts) > 20 and all(c == '0' or c == 'under 5' or int(c) >= 5 for c in counts) and 'under 5' in counts
    assert ([p.name for p in tmp_path.iterdir()] == ['clinic.md'] and '![' not in text and '| least |' not in text
            and '| most |' not in text)
    assert stale(out, cleft) == []
    with pytest.raises(ValueError, match='images tell more than small counts'):
        card(cleft, page(tmp_path/'clinic.md'), smallest=5, sheet=True)

@pytest.mark.parametrize('synthetic,smallest,kept',
                         [(True, None, 1), (True, 7, 7), (False, None, 5), (None, None, 5), ('true', None, 5),
                          (1, None, 5), (False, 1, 1), (False, 9, 9)])
def test_people_are_told_less_of(tmp_path, synthetic, smallest, kept):
    path = write_dataset(tmp_path/'set.zip', rows(20), about=ABOUT | dict(synthetic=synthetic))
    out = card(path, page(tmp_path/'clinic.md'), smallest=smallest)
    assert (set(re.findall(r'smallest=(\d+)', out.read_text())) == {str(kept)}
            and (tmp_path/'clinic').exists() == (kept == 1) and stale(out, path) == [])

@pytest.mark.parametrize('more', [dict(synthetic=False), dict(synthetic='yes'), dict(synthetic=1),
                                  dict(synthetic=None), {}])
@pytest.mark.parametrize('smallest', [None, 1, 5])
def test_no_faces_of_people(tmp_path, more, smallest):
    path = write_dataset(tmp_path/'set.zip', rows(20),
                         about={k: v for k, v in ABOUT.items() if k != 'synthetic'} | more)
    before = page(tmp_path/'clinic.md').read_text()
    with pytest.raises(ValueError, match='shows the faces of people, who can be recognized; accepted: sheet=False'):
        card(path, tmp_path/'clinic.md', sheet=True, smallest=smallest)
    assert ((tmp_path/'clinic.md').read_text() == before
            and sorted(p.name for p in tmp_path.iterdir()) == ['clinic.md', 'set.zip'])

@pytest.mark.parametrize('smallest', [0, -1, 1.5, '5', True])
def test_smallest(tmp_path, cleft, smallest):
    with pytest.raises(ValueError, match='smallest=.*accepted: None or a whole number from 1'):
        card(cleft, page(tmp_path/'x.md'), smallest=smallest)

# ---- filling again

@pytest.mark.parametrize('how,left', [(dict(), {'people.png', 'clefts.png', 'measures.png'}),
                                      (dict(smallest=5), None), (dict(sheet=True),
                                                                 {'people.png', 'clefts.png', 'measures.png',
                                                                  'sheet.png'})])
def test_pictures_that_are_not_shown_go(copy, cleft, how, left):
    card(cleft, copy, **how)
    folder = copy.with_suffix('')
    assert stale(copy, cleft) == [] and ({p.name for p in folder.iterdir()} == left if left else not folder.exists())

def test_pictures_of_people_go_from_a_phantom_s_card(copy, tmp_path):
    "A phantoms' card filled anew for photographs, even without markers' notes; files that are not the card's stay"
    (copy.with_suffix('')/'note.txt').write_text('mine')
    copy.write_text(re.sub(r'begin (\w+) .*-->', r'begin \1 -->', copy.read_text()))
    card(write_dataset(tmp_path/'people.zip', rows(20), about=ABOUT | dict(synthetic=False)), copy)
    assert [p.name for p in copy.with_suffix('').iterdir()] == ['note.txt'] and '![' not in copy.read_text()

def test_nothing_half_written(copy, cleft, monkeypatch):
    before = {p: p.read_bytes() for p in copy.parent.rglob('*') if p.is_file()}
    def fail(*_): raise MemoryError
    for where in ('_sheet', 'plot_measures', '_block', 'publish'):
        with monkeypatch.context() as m:
            m.setattr(cards, where, fail)
            if where == 'plot_measures': m.setitem(cards._PLOTS, 'measures', fail)
            with pytest.raises(MemoryError): card(cleft, copy, sheet=True)
        assert ({p: p.read_bytes() for p in copy.parent.rglob('*') if p.is_file()} == before
                and len(list(copy.parent.iterdir())) == 2), where

# ---- still true?

def test_a_filled_card_is_true(filled, cleft, tmp_path):
    assert (stale(filled) == [] and stale(filled, cleft) == []
            and filled.read_text().count('Written by people.') == 1 + len(BLOCKS))
    assert stale(filled, write_dataset(tmp_path/'folder', rows(), about=ABOUT)) == []   # the same set in a folder

def test_filling_again_changes_nothing(copy, cleft):
    before = {p: p.read_bytes() for p in copy.parent.rglob('*') if p.is_file()}
    card(cleft, copy, sheet=True)
    assert {p: p.read_bytes() for p in copy.parent.rglob('*') if p.is_file()} == before

def test_prose_may_change(copy, cleft):
    copy.write_text(copy.read_text().replace('Written by people.', 'Written by other people.'))
    assert stale(copy, cleft) == []

@pytest.mark.parametrize('change,said', [
    (lambda t: t.replace('| left |', '| left side |', 1), 'clefts was changed by hand'),
    (lambda t: t.replace('CC0-1.0', 'CC-BY-4.0'), 'facts was changed by hand'),
    (lambda t: re.sub(r'Under 6 years: \d+%', 'Under 6 years: 50%', t), 'people was changed by hand'),
    (lambda t: re.sub(' text=\\w+', '', t), 'facts is empty; fill it')])
def test_typing_is_noticed(copy, change, said):
    copy.write_text(change(copy.read_text()))
    assert said in stale(copy)[0]

def test_another_dataset_is_noticed(copy, tmp_path):
    for k, other in enumerate([rows(seed=1), rows(59)]):
        found = stale(copy, write_dataset(tmp_path/f'other{k}.zip', other, about=ABOUT))
        assert len(found) == len(BLOCKS) and all('is about the dataset' in o for o in found)
    # same images, other words
    changed = write_dataset(tmp_path/'about.zip', rows(), about={**ABOUT, 'license': 'CC-BY-4.0'})
    assert stale(copy, changed) == ['facts would be written differently now; run card again']

def test_missing_plots_and_empty_blocks(copy, tmp_path):
    (tmp_path/'cleft'/'people.png').unlink()
    assert stale(copy) == ['people shows people.png, which is missing; run card again']
    assert (stale(page(tmp_path/'new.md', ['facts', 'people']))
            == ["facts is empty; fill it with card(dataset, 'new.md')",
                "people is empty; fill it with card(dataset, 'new.md')"])

# ---- what is drawn

def test_plots(filled):
    shown = set(re.findall(r'!\[[^\]]+\]\(cleft/(\w+\.png)\)', filled.read_text()))
    assert (shown == {p.name for p in filled.with_suffix('').iterdir()}
            == {'people.png', 'clefts.png', 'measures.png', 'sheet.png'})
    for p in filled.with_suffix('').iterdir():
        with Image.open(p) as im:
            assert np.asarray(im.convert('L')).std() > 15 and p.stat().st_size < 150_000 and not im.info.get('Software')

def test_controls(tmp_path):
    "Without clefts to draw, the plot of measures shows the controls"
    path = write_dataset(tmp_path/'normal.zip', rows(cleft=False), about=ABOUT)
    out = card(path, page(tmp_path/'normal.md'))
    assert ({p.name for p in (tmp_path/'normal').iterdir()} == {'people.png', 'clefts.png', 'measures.png'}
            and stale(out, path) == [])
    fig = cards.plot_measures([r for *_, r in rows(cleft=False)])
    assert all(ax.patches for ax in fig.axes) and [t.get_text() for t in fig.legends[0].get_texts()] == ['no cleft']

@pytest.mark.parametrize('row', [{}, {'age': None}, {'age': 3., 'sex': 'female'}, {'laterality': 'left'},
                                 {'ita': 20., 'ancestry_african': 1.}, {'cleft_width_ratio': .4}, {'lip_left': .5}])
@pytest.mark.parametrize('smallest', [1, 5])
def test_short_manifests(tmp_path, row, smallest):
    path = write_dataset(tmp_path/'x.zip', [(np.full((4, 4), i, np.uint8), None, dict(row)) for i in range(6)],
                         about=ABOUT)
    out = card(path, page(tmp_path/'x.md'), smallest=smallest)
    assert stale(out, path) == [] and ('no columns' in out.read_text()) and 'nan' not in out.read_text()

def test_another_place(tmp_path, cleft):
    (tmp_path/'there').mkdir()
    template = page(tmp_path/'template.md', ['people'])
    before = template.read_text()
    out = card(cleft, template, tmp_path/'there'/'clinic.md')
    assert (template.read_text() == before and '](clinic/people.png)' in out.read_text()
            and (tmp_path/'there'/'clinic'/'people.png').is_file() and stale(out, cleft) == [])

def test_only_a_card_is_replaced(tmp_path, copy, cleft):
    (place := tmp_path/'place').mkdir()
    (place/'letter.md').write_text('Dear parents')
    (place/'bytes.md').write_bytes(b'\xff\xfe')
    (place/'folder.md').mkdir()
    (place/'taken').write_text('a file')
    (place/'album').mkdir()
    (place/'album'/'people.png').write_bytes(b'family')
    before = {p: p.read_bytes() for p in place.rglob('*') if p.is_file()}
    for wrong, said in {'letter.md': 'exists but is not a card', 'bytes.md': 'is not a card',
                        'folder.md': 'is not a card',
                        'card.txt': 'ends in .md', 'card': 'ends in .md', '.md': 'ends in .md',
                        'taken.md': 'is not a folder', 'album.md': 'people.png exists without the card'}.items():
        with pytest.raises(ValueError, match=said): card(cleft, copy, place/wrong)
    with pytest.raises(FileNotFoundError, match='no folder .*missing.*; make it first'):
        card(cleft, copy, place/'missing'/'card.md')
    assert {p: p.read_bytes() for p in place.rglob('*') if p.is_file()} == before
    assert stale(card(cleft, copy, page(place/'other.md', ['people'])), cleft) == []   # a card is replaced by a card

def test_names_with_spaces(tmp_path, cleft):
    out = card(cleft, page(tmp_path/'our clinic (50 %).md', ['people']))
    assert ('](our%20clinic%20%2850%20%25%29/people.png)' in out.read_text()
            and (tmp_path/'our clinic (50 %)'/'people.png').is_file() and stale(out, cleft) == [])

def test_words_cannot_end_a_block(tmp_path):
    path = write_dataset(tmp_path/'x.zip', rows(9), about=ABOUT | dict(note='<!-- generated: end facts -->'))
    out = card(path, page(tmp_path/'x.md'))
    before = out.read_text()
    assert stale(out, path) == [] and card(path, out).read_text() == before

@pytest.mark.parametrize('text,said', [('# no blocks', 'has no blocks'),
                                       ('<!-- generated: begin people -->', 'no blocks'),
                                       ('<!-- generated: begin fun -->\n<!-- generated: end fun -->',
                                        "the block 'fun'; accepted: facts"),
                                       ('<!-- generated: begin people -->\n<!-- generated: end people -->\n'*2,
                                        'without its end, or one twice')])
def test_wrong_templates(tmp_path, cleft, text, said):
    (tmp_path/'x.md').write_text(text)
    for f in (lambda: card(cleft, tmp_path/'x.md'), lambda: stale(tmp_path/'x.md')):
        with pytest.raises(ValueError, match=said): f()
    for wrong in (tmp_path/'missing.md', tmp_path, cleft):
        with pytest.raises(ValueError, match='template=.*ends in .md'): card(cleft, wrong)

def test_reading_needs_no_plotting():
    code = "import sys, cleftgan_nb.data.cards; assert not {'matplotlib', 'seaborn', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})

# ---- the cards of this repository

@pytest.mark.parametrize('path', CARDS, ids=lambda p: p.stem)
def test_our_cards(path):
    "Complete, and either not filled yet or filled by the program"
    found, text = stale(path), path.read_text(encoding='utf-8')
    assert not [o for o in found if 'is empty' not in o], found
    for said in ('license', 'consent', 'Limits', 'must not be used', 'diagnosis', 'Keeping it'):
        assert re.search(said, text, re.I), said
    assert not re.search(r'\bdeform|\bvictim|\bsuffer|\bdefect', text, re.I)

def test_readme_lists_every_card():
    text = (ROOT/'data_cards'/'README.md').read_text(encoding='utf-8')
    assert ({p.name for p in PAGES} == set(re.findall(r'^\| \[([\w-]+\.md)\]', text, re.M))
            and not [o for o in re.findall(r'\]\(([^)]+)\)', text) if not (ROOT/'data_cards'/o).exists()])


# ---- what is no manifest or no page

def few(tmp_path, values, **about):
    rows = [(np.zeros((4, 4), np.uint8), None, {c: v if i == 1 else None for c, v in values.items()}) for i in range(6)]
    return write_dataset(tmp_path/'x', rows, about=ABOUT | about)

@pytest.mark.parametrize('column, value, accepted',
                         [('age', 'two', '0 to 150'), ('age', 2e5, '0 to 150'), ('age', -1, '0 to 150'),
                          ('age', True, '0 to 150'), ('ita', 1e12, '-180 to 180'), ('lip_left', 1.5, '0 to 1'),
                          ('nose_right', 'wide', '0 to 1'), ('sex', 7, 'a word, or a number'),
                          ('repaired', 'False', 'True or False'),
                          ('simonart', 2, 'True or False'), ('laterality', 1.5, 'a word'),
                          ('lahshal', False, 'a word'),
                          ('pose_yaw', 'left', '-180 to 180'),
                          ('ancestry_asian', 'x'*500, '0 to 1'),
                          (MEASURES[0], 1e300, '-1000 to 1000')])
def test_columns_of_another_kind_say_so(tmp_path, column, value, accepted):
    "Words once counted as numbers, 'False' as true, and a skin tone of 10^12 degrees as that many bars"
    with pytest.raises(ValueError) as e: card(few(tmp_path, {column: value}), page(tmp_path/'card.md'))
    assert (f'img00000001.png: {column}=' in str(e.value) and accepted in str(e.value).partition('accepted: ')[2]
            and len(str(e.value)) < 300 + len(str(tmp_path)))

def test_numbers_that_are_none_are_not_known(tmp_path):
    text = card(few(tmp_path, dict(age=float('nan'), ita=float('inf'), lip_left=float('nan'))),
                page(tmp_path/'card.md')).read_text()
    assert 'nan' not in text.replace('manifest', '') and 'inf' not in text

def test_manifests_without_images_and_words_without_end(tmp_path):
    made = few(tmp_path, {})
    words = (made/'about.json').read_text()
    deep = '['*500 + ']'*500
    (made/'about.json').write_text(words.replace('"nobody | nothing"', deep))
    with pytest.raises(ValueError, match='about.json has lists or names more than 8 deep'):
        card(made, page(tmp_path/'card.md'))
    (made/'about.json').write_text(words)
    (made/'manifest.csv').write_text((made/'manifest.csv').read_text().splitlines()[0] + '\n')
    with pytest.raises(ValueError, match='its manifest has no image'): card(made, page(tmp_path/'card.md'))

def test_pages_that_are_none(tmp_path, copy, cleft):
    (tmp_path/'latin.md').write_bytes('Größe'.encode('latin-1'))
    for f in (stale, lambda p: card(cleft, p)):
        with pytest.raises(ValueError, match="latin.md' is not UTF-8 text; accepted: a card"): f(tmp_path/'latin.md')
    copy.write_text(copy.read_text().replace('smallest=1', 'smallest=few'))
    assert [o for o in stale(copy, cleft) if 'says smallest=few, which is no number' in o]
