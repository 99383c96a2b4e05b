"""Reading tests: pictures tell nothing but pixels, the key stays apart, strangers' files are refused, and the statistics
have known values"""
import csv, io, json, os, stat, time
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from scipy.stats import binom
from cleftgan_nb import checkpoints, cli, networks
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.data.datasets import fingerprint
from cleftgan_nb.metrics.readers import (COLUMNS, MOST_BYTES, evaluate, icc, power, read_all, read_answers, read_key, readings,
                                         told_apart, weighted_kappa)
from cleftgan_nb.metrics.reading_page import reading_page
from cleftgan_nb.metrics.reading_test import Picture, shuffled
from cleftgan_nb.pictures import sample_one

NAMES = ['lip_left', 'lip_right', 'repaired']


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Networks without and with labels, and datasets of 6 people"
    folder, rng = tmp_path_factory.mktemp('made'), np.random.default_rng(0)
    write = lambda name, size, rows, **words: write_dataset(folder/name, (
        (rng.integers(0, 256, (size, size, 3), np.uint8), label, row) for label, row in rows),
        about=dict(kind='noise', license='CC0-1.0') | words, label_names=NAMES if rows[0][0] else None)
    write('photos.zip', 16, [(None, dict(name=f'p{i//2}/{i}.jpg')) for i in range(12)])
    write('drawn.zip', 16, [(None, {})]*6, synthetic=True)
    write('asked.zip', 16, [([.5, 0, 1], {})]*6, synthetic=True)
    write('large.zip', 32, [(None, {})]*6)
    for name, c_dim in ('plain', 0), ('words', 3):
        torch.manual_seed(0)
        G = networks.build('stylegan2', 16, c_dim=c_dim, channel_base=256, channel_max=8, z_dim=8, w_dim=8)[0].eval()
        learned = [dict(data='drawn.zip', fingerprint=fingerprint(folder/'drawn.zip'), license='CC-BY-4.0')]
        checkpoints.save(folder/f'{name}.safetensors', G_ema=G, license='CC-BY-4.0', progress={},
                         provenance=dict(history=learned), labels=NAMES if c_dim else None)
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for o in made.iterdir(): os.symlink(o, o.name)
    def run(line): return cli.main(['reading-test', *line.split()]), *capsys.readouterr()
    return run


def files(folder): return {str(o.relative_to(folder)): o.read_bytes() for o in Path(folder).rglob('*') if o.is_file()}
def rows(folder): return list(csv.DictReader(io.StringIO((Path(folder)/'key.csv').read_text())))


def test_pictures_do_not_tell(run):
    code, out, err = run('plain.safetensors --real photos.zip --n 6 --seed 5 --out a')
    assert (code, err) == (0, '') and '12 readings' in out
    pictures, key = sorted(Path('a/reading/pictures').iterdir()), {r['image']: r for r in rows('a')}
    assert Counter(r['kind'] for r in key.values()) == dict(real=6, generated=6) and sorted(key) == [o.stem for o in pictures]
    seen = {(im.mode, im.size, im.format, str(im.info)) for im in map(Image.open, pictures)}
    assert seen == {('RGB', (16, 16), 'PNG', '{}')}
    stats = [o.stat() for o in Path('a/reading').rglob('*')]
    assert len({o.stat().st_size for o in pictures}) == len({s.st_mtime for s in stats}) == 1
    assert [r['kind'] for r in key.values()] not in (['real']*6 + ['generated']*6, ['generated']*6 + ['real']*6)
    real, G = ImageFolderDataset('photos.zip'), checkpoints.load('plain.safetensors').sampler
    for o in pictures:       # the key is right, and names what draws a picture again
        r = key[o.stem]
        expected = (real[real.names.index(r['source'])][0].permute(1, 2, 0).numpy() if r['kind'] == 'real'
                    else sample_one(G, int(r['source'].removeprefix('seed '))))
        assert (np.array(Image.open(o)) == expected).all()
    people = [int(r['source'][-6:-4])//2 for r in key.values() if r['kind'] == 'real']
    assert sorted(people) == list(range(6)), 'one picture of each person'


def test_the_key_is_apart(run):
    run('plain.safetensors --real photos.zip --n 6 --seed 987654321 --out a')
    told = b'\n'.join(files('a/reading').values())
    assert b'987654321' not in told and not any(r['source'].encode() in told for r in rows('a'))
    page = Path('a/reading/index.html').read_text()
    assert 'synthetic' in page and "default-src 'none'" in page and 'http://' not in page and 'https://' not in page
    sheet = Image.open('a/reading/sheet-1.png')
    assert 'half synthetic' in sheet.text['Source'] and '987654321' not in str(sheet.text)
    about = json.loads(Path('a/about.json').read_text())
    assert about['seed'] == 987654321 and about['generated']['license'] == 'CC-BY-4.0' and about['real']['kind'] == 'noise'


def test_a_seed_gives_the_same_bytes(run):
    for name, seed in ('a', 1), ('b', 1), ('c', 2): run(f'plain.safetensors --real photos.zip --n 3 --seed {seed} --out {name}')
    assert files('a') == files('b') != files('c')


def test_numbers_cannot_be_drawn_again_from_the_seed_alone():
    pictures = [Picture(np.full((4, 4), i, np.uint8), 'real', '') for i in range(6)]
    assert list(shuffled(pictures, 0)) == list(shuffled(pictures, 0)) != list(shuffled(pictures[::-1], 0))


@pytest.mark.skipif(os.name == 'nt', reason='Windows has other permissions')
def test_photographs_are_private(run):
    for data, network, private in ('photos.zip', 'plain', True), ('asked.zip', 'words', False):
        for o in data, f'{network}.safetensors': os.chmod(o, 0o644)
        assert run(f'{network}.safetensors --real {data} --n 3 --out {network}')[0] == 0
        modes = {stat.S_IMODE(o.stat().st_mode) & 0o077 for o in [Path(network), *Path(network).rglob('*')]}
        assert (modes == {0}) == private


def test_labels_are_drawn_from_the_real_ones(run):
    assert run('words.safetensors --real asked.zip --n 3 --out a')[0] == 0
    assert {r['label'] for r in rows('a') if r['kind'] == 'generated'} == {'lip_left=0.5 repaired=1'}


@pytest.mark.parametrize('line, says', [
    ('plain.safetensors --real photos.zip --n 7 --out a', 'has 6 people, 7 are asked for; accepted: n up to 6'),
    ('plain.safetensors --real large.zip --n 2 --out a', 'large.zip has 32 pixels, the network draws 16'),
    ('words.safetensors --real photos.zip --n 2 --out a', 'takes labels, which are drawn from those of --real'),
    ('plain.safetensors --real photos.zip --n 2 --out mine', 'mine holds other things, such as letter'),
    ('plain.safetensors --real photos.zip --n 1 --out a', 'accepted: a whole number from 2'),
    ('no.safetensors --real photos.zip --n 2 --out a', 'no.safetensors'),
])
def test_mistakes(run, line, says):
    Path('mine').mkdir()
    Path('mine/letter').write_text('Dear parents')
    code, out, err = run(line + ' --force'*('mine' in line))
    assert (code, out, err.count('\n')) == (2, '', 1) and says in err, err
    assert not Path('a').exists() and Path('mine/letter').exists()


def test_force_replaces_a_test(run):
    line = 'plain.safetensors --real photos.zip --n 2 --out a'
    assert run(line)[0] == 0
    before = files('a')
    code, _, err = run(line + ' --seed 1')
    assert code == 2 and 'a exists; give another name, or --force' in err and files('a') == before
    assert run(line + ' --seed 1 --force')[0] == 0 and files('a') != before
    assert not list(Path().glob('.a@*'))


def test_training_images_are_noticed(run):
    code, _, err = run('plain.safetensors --real drawn.zip --n 2 --out a')
    assert code == 0 and 'drawn.zip is what the network learned from' in err


# Answers

KEY_LINES = 'test,image,kind,source,label\n' + ''.join(f'ab12,{10000 + i},{"generated" if i%2 else "real"},,\n' for i in range(8))


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('key.csv').write_text(KEY_LINES)
    return read_key('key.csv')


def answer(reader, said, severity, test='ab12', name=None):
    lines = [f'{test},{reader},{10000 + i},{s},{g}' for i, (s, g) in enumerate(zip(said, severity))]
    Path(name or f'{reader}.csv').write_text('\n'.join([','.join(COLUMNS), *lines, '']))
    return name or f'{reader}.csv'


def test_counts_of_one_reader(key):
    said = ['real', 'generated', 'generated', 'generated', 'real', 'real', '', 'generated']   # 3 of 4 generated, 2 of 3 real
    with pytest.warns(UserWarning, match='1 of 8 pictures without an answer'): [a] = read_all(answer('anna', said, [0]*8), key)
    accuracy, sensitivity, specificity = told_apart(a, key)
    assert (accuracy.value, sensitivity.value, specificity.value) == (5/7, 3/4, 2/3)
    assert accuracy.notes['p'] == pytest.approx(2*binom.sf(4, 7, .5)) and accuracy.sizes == {'pictures': 7}


def test_all_readers(key):
    grades = [0, 3, 5, 2, 7, 1, 10, 4]
    perfect = ['real', 'generated']*4
    names = [answer('anna', perfect, grades), answer('ben', perfect, [*grades[:-1], 'none']), answer('chris', perfect[::-1], grades)]
    scores = {s.name: s for s in evaluate('key.csv', names)}
    assert scores['accuracy, anna'] == 1 and scores['accuracy, chris'] == 0 and scores['accuracy, all'] == pytest.approx(2/3)
    assert scores['kappa, anna and ben'] == 1 and scores['kappa, anna and ben'].sizes == {'pictures': 7}
    assert scores['ICC(2,1), severity'] == 1 and scores['ICC(2,1), severity'].sizes == {'pictures': 7, 'readers': 3}
    assert [str(s) for s in evaluate('key.csv', names)] == [str(s) for s in scores.values()]


@pytest.mark.parametrize('line, says', [
    ('ab12,anna,99999,real,0', "image '99999'; accepted: a picture of the key"),
    ('ab12,anna,10000,real,0\nab12,anna,10000,real,0', "line 3: image '10000'; accepted: each picture once"),
    ('ff,anna,10000,real,0', "test 'ff'; accepted: ab12"),
    ('ab12,=cmd(),10000,real,0', "reader '=cmd()'"),
    ('ab12,anna,10000,fake,0', "said 'fake'; accepted: real, generated, or nothing"),
    ('ab12,anna,10000,real,11', "severity '11'; accepted: 0 to 10, none"),
    ('ab12,anna,10000,real', '4 words; accepted: 5'),
    ('ab12,anna,10000,real,0\nab12,ben,10001,real,0', 'answers of 2 readers'),
    ('ab12,anna,10000,"real', 'not CSV in UTF-8'),
    ('', 'answers of 0 readers'),
])
def test_a_strangers_answers_are_refused(key, line, says):
    Path('odd.csv').write_text(f'{",".join(COLUMNS)}\n{line}\n')
    with pytest.raises(ValueError) as e: read_answers('odd.csv', key)
    assert says in str(e.value) and '\n' not in str(e.value)


def test_strange_files_are_refused(key):
    Path('big.csv').write_bytes(b'x'*(MOST_BYTES + 1))
    Path('binary.csv').write_bytes(b'\xff\0\xfe')
    Path('columns.csv').write_text('test,reader,image,said,severity,more\n')
    Path('empty.csv').write_text('')
    os.mkfifo('pipe.csv')
    for name, says in (('big', 'more than 4 MiB'), ('binary', 'not CSV'), ('columns', 'has the columns'), ('empty', 'has the columns'),
                       ('pipe', 'is no file')):
        with pytest.raises(ValueError, match=says): read_answers(f'{name}.csv', key)
    with pytest.raises(ValueError, match='accepted: at least one reader'): read_all([], key)
    with pytest.raises(ValueError, match='8 of 8 pictures without an answer'): read_all(answer('anna', ['']*8, [0]*8), key)
    a, b = answer('anna', ['real']*8, [0]*8), answer('Anna', ['real']*8, [0]*8, name='again.csv')
    with pytest.raises(ValueError, match='are both of the reader'): read_all([a, b], key)
    for text in KEY_LINES.replace('real', 'fake'), KEY_LINES + 'cd34,20000,real,,\n', KEY_LINES + KEY_LINES[29:], KEY_LINES[:60]:
        Path('key.csv').write_text(text)
        with pytest.raises(ValueError, match='key.csv'): read_key('key.csv')


# Statistics

def test_kappa_is_that_of_the_table():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 11, 60)
    b = np.clip(a + rng.integers(-3, 4, 60), 0, 10)
    table = np.zeros((11, 11))
    np.add.at(table, (a, b), 1/60)
    weights = np.subtract.outer(np.arange(11), np.arange(11))**2
    expected = 1 - (weights*table).sum()/(weights*np.outer(table.sum(1), table.sum(0))).sum()
    assert weighted_kappa(a, b) == pytest.approx(expected, abs=1e-12)
    assert weighted_kappa(a, a) == 1 and weighted_kappa([0, 10], [10, 0]) == -1 and np.isnan(weighted_kappa([3, 3], [3, 3]))


def test_icc_is_that_of_shrout_and_fleiss():
    "1979, Table 2: ICC(2,1) = .29; its interval as McGraw & Wong's formula gives it elsewhere"
    s = icc([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    assert s.value == pytest.approx(.2898, abs=5e-5) and (s.low, s.high) == (pytest.approx(.019, abs=5e-4), pytest.approx(.761, abs=5e-4))
    assert np.isnan(icc(np.full((5, 2), 3))) and icc([[1, 1], [2, 2], [5, 5]]) == 1
    with pytest.raises(ValueError, match='accepted: finite'): icc([[1, 2]])
    with pytest.raises(ValueError, match='1 of shape'): icc([[1, np.nan], [2, 3]])


@pytest.mark.parametrize('n, p, sides', [(10, .7, 2), (37, .6, 1), (199, .6, 2)])
def test_power_is_the_sum_of_its_terms(n, p, sides):
    k = np.arange(n + 1)
    tail = np.array([binom.pmf(k[k >= i], n, .5).sum() for i in k])
    first = k[tail <= .05/sides][0]
    rejects = (k >= first) | (sides == 2) & (k <= n - first)
    assert power(n, p, sides=sides) == pytest.approx(binom.pmf(k[rejects], n, p).sum(), abs=1e-12)


def test_readings_that_tell_60_percent_from_guessing():
    for sides, (first, always) in (2, (199, 210)), (1, (158, 169)):
        assert readings(sides=sides) == (first, always)
        enough = power(np.arange(1, 600), sides=sides) >= .8
        assert enough[first - 1:].argmin() and not enough[:first - 1].any() and enough[always - 1:].all() and not enough[always - 2]
    with pytest.raises(ValueError, match='accepted: a p farther from .5'): readings(.501, most=100)


# The page

@pytest.fixture
def page(tmp_path):
    (tmp_path/'pictures').mkdir()
    images = ['10000', '10001', '10002']
    for i in images: Image.new('RGB', (64, 64), f'#{i}0').save(tmp_path/f'pictures/{i}.png')
    (tmp_path/'index.html').write_text(reading_page('ab12', images, 64, ['<b>Half</b> are synthetic.']))
    return tmp_path


def test_words_of_others_stay_words(page):
    text = (page/'index.html').read_text()
    assert '&lt;b&gt;Half' in text and '<b>Half' not in text


@pytest.mark.slow
def test_a_reader_answers_by_keys_and_saves(browser, page):
    from selenium.webdriver.common.keys import Keys
    find = lambda which: browser.find_element('css selector', which)
    browser.execute_cdp_cmd('Browser.setDownloadBehavior', dict(behavior='allow', downloadPath=str(page)))
    def begin():
        browser.get((page/'index.html').as_uri())
        find('#name').send_keys('anna', Keys.ENTER)
    begin()
    find('body').send_keys('14', '2x', '1n', Keys.BACKSPACE, '2')
    find('[data-question=said][data-value=real]').click()
    assert '3 answered' in find('#where').text
    begin()                                          # goes on where it was
    assert '3 answered' in find('#where').text or find('#forgets').is_displayed()
    find('#save').click()
    end = time.monotonic() + 20
    while not (page/'answers-anna.csv').exists() and time.monotonic() < end: time.sleep(.1)
    assert (page/'answers-anna.csv').read_text().splitlines() == [
        ','.join(COLUMNS), 'ab12,anna,10000,real,4', 'ab12,anna,10001,generated,10', 'ab12,anna,10002,real,none']
    for width in 1280, 390:
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=844, deviceScaleFactor=1, mobile=False))
        def fits(): return browser.execute_script(f'return innerWidth == {width} && document.documentElement.scrollWidth <= innerWidth')
        end = time.monotonic() + 10                      # the window takes its size a moment later
        while not fits() and time.monotonic() < end: time.sleep(.05)
        assert fits()
        assert browser.execute_script('dispatchEvent(new Event("resize")); return picture.clientWidth % 64') == 0
        browser.save_screenshot(str(page/f'{width}.png'))
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
