"""Pictures of any kind become a dataset: the same bytes, whole or not at all, and every refusal of training names the
command that does it"""
import json, os, re, shlex, tracemalloc, unicodedata, zipfile
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from cleftgan_nb import checkpoints, cli, networks
from cleftgan_nb.data import cards, conform as conform_module
from cleftgan_nb.data.archives import png
from cleftgan_nb.data.conform import conform, fitted
from cleftgan_nb.data.datasets import about, ImageFolderDataset, manifest, remedy, verify, write_dataset
from cleftgan_nb.data.reading import profile
from cleftgan_nb.data.split import split
from cleftgan_nb.training.config import Config
from cleftgan_nb.training.guards import check_pixels
from cleftgan_nb.training.loop import begin
from cleftgan_nb.training.team import Team

def image(seed, w=24, h=16, mode='RGB'):
    a = np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)
    return Image.fromarray(a).convert(mode)

def save(path, im, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    im.save(path, **kw)

def make(source, out, size=16, **kw): return conform(source, out, size, progress=False, **kw)

def opened(path, **kw): return ImageFolderDataset(path, cache=False, **kw)

def pixels(path): return opened(path).batch(range(len(opened(path))))[0].permute(0, 2, 3, 1).numpy()

@pytest.fixture
def odd(tmp_path):
    "What people have"
    source = tmp_path/'my photos'
    exif = Image.Exif()
    exif[0x0112] = 6
    save(source/'aside.jpg', image(1), exif=exif)
    save(source/'deep'/'wide.PNG', image(2, 90, 20))
    save(source/'gray.png', image(3, 41, 41, 'L'))
    save(source/'clear.png', Image.new('RGBA', (20, 20), (200, 0, 0, 0)))
    (source/'.DS_Store').write_bytes(b'x')
    return source

def test_odd_pictures_become_a_dataset(odd, tmp_path):
    made = make(odd, tmp_path/'a.zip')
    ds = opened(tmp_path/'a.zip')
    assert ds.image_shape == (3, 16, 16) and len(ds) == made.images == 4 == verify(tmp_path/'a.zip')
    rows = {r['name']: r for r in manifest(tmp_path/'a.zip')}
    assert list(rows) == ['aside.jpg', 'clear.png', 'deep/wide.PNG', 'gray.png']
    assert rows['aside.jpg']['transform'] == 'turned by EXIF orientation 6; center crop'
    assert rows['deep/wide.PNG']['transform'] == 'center crop; reduced by Lanczos'
    assert (rows['deep/wide.PNG']['source_width'], rows['deep/wide.PNG']['source_height']) == (90, 20)
    assert rows['gray.png']['transform'] == 'reduced by Lanczos; gray to RGB' and made.left_out == {}
    assert rows['clear.png']['transform'] == 'laid on a color; reduced by Lanczos'
    said = about(tmp_path/'a.zip')['converted']
    assert said['from'] == 'my photos' and said['done']['center crop'] == 2 and said['size'] == 16

def test_the_middle_is_kept_upright():
    "A turned picture is cut after it is turned; at its own size no pixel changes"
    a = np.asarray(image(0, 31, 17))
    assert np.array_equal(fitted(a, 17)[0], a[:, 7:24]) and fitted(a[:, :17], 17)[0] is not None
    padded = fitted(a, 31, 'pad', (1, 2, 3))[0]
    assert np.array_equal(padded[7:24], a) and (padded[:7] == (1, 2, 3)).all() and (padded[24:] == (1, 2, 3)).all()
    assert fitted(a, 8, 'stretch')[0].shape == (8, 8, 3)

def test_no_false_patterns():
    "Stripes finer than the new pixels become gray, not wider stripes"
    stripes = np.tile(np.uint8([0, 255]), (256, 128))
    assert np.ptp(fitted(stripes, 96)[0][8:-8, 8:-8].astype(int)) <= 8
    assert np.ptp(np.asarray(Image.fromarray(stripes).resize((96, 96), Image.Resampling.NEAREST)).astype(int)) == 255

@pytest.mark.parametrize('background,value', [('gray', 119), ('white', 255), ('black', 0)])
def test_transparency_and_bars_have_one_color(tmp_path, background, value):
    save(tmp_path/'in'/'a.png', Image.new('RGBA', (16, 8), (9, 200, 9, 0)))
    make(tmp_path/'in', tmp_path/'a.zip', fit='pad', background=background)
    assert (pixels(tmp_path/'a.zip') == value).all()

def test_color_profiles(tmp_path):
    "Display P3 on RGBA, as phones write it, becomes sRGB before it is laid on a color"
    p3 = profile((.68, .32, .265, .69, .15, .06))
    save(tmp_path/'in'/'a.png', Image.new('RGBA', (16, 16), (200, 100, 80, 255)), icc_profile=p3)
    make(tmp_path/'in', tmp_path/'a.zip')
    assert np.abs(pixels(tmp_path/'a.zip')[0, 3, 3].astype(int) - (216, 93, 72)).max() <= 1

def test_gray_stays_gray_or_becomes_what_is_asked_for(tmp_path):
    for n in 'ab': save(tmp_path/'in'/f'{n}.png', image(3, mode='L'))
    assert make(tmp_path/'in', tmp_path/'a.zip').channels == 1 and pixels(tmp_path/'a.zip').shape[-1] == 1
    make(tmp_path/'in', tmp_path/'b.zip', color='rgb')
    assert np.ptp(pixels(tmp_path/'b.zip').astype(int), -1).max() == 0
    save(tmp_path/'in'/'c.png', image(4))
    assert make(tmp_path/'in', tmp_path/'c.zip').channels == 3
    assert make(tmp_path/'in', tmp_path/'d.zip', color='gray').channels == 1

def test_the_size_that_enlarges_nothing(tmp_path):
    save(tmp_path/'in'/'a.png', image(1, 70, 40))
    save(tmp_path/'in'/'b.png', image(1, 200, 300))
    assert make(tmp_path/'in', tmp_path/'a.zip', None).size == 32
    assert make(tmp_path/'in', tmp_path/'b.zip', 64).done['enlarged by Lanczos'] == 1

# ---- labels

def test_folders_as_classes(tmp_path):
    "A class is no person: who has a folder within it is one"
    for n in ('all/right/anna/1.png', 'all/right/anna/2.png', 'all/left/1.png', 'all/left/2.png'):
        save(tmp_path/'in'/n, image(1))
    made = make(tmp_path/'in', tmp_path/'a.zip', labels='folders')
    assert made.labels == 'labels of 2 classes (left, right)'
    ds = opened(tmp_path/'a.zip', use_labels=True, mirror=True)
    assert ds.labels(range(4)).argmax(1).tolist() == [0, 0, 1, 1] and ds.labels(range(4, 8)).argmax(1).tolist() == [1, 1, 0, 0]
    rows = manifest(tmp_path/'a.zip')
    assert [(r['class'], r['name']) for r in rows] == [('left', '1.png'), ('left', '2.png'), ('right', 'anna/1.png'),
                                                        ('right', 'anna/2.png')]
    train, unseen = map(manifest, split(tmp_path/'a.zip', tmp_path/'train.zip', tmp_path/'unseen.zip', .5))
    assert not {r['name'] for r in train if '/' in r['name']} or not {r['name'] for r in unseen if '/' in r['name']}

@pytest.mark.parametrize('text,expected,names', [
    ('file,severity,age\na.png,.5,3\nB.png,1,40\n', [[1, 40], [.5, 3]], ['severity', 'age']),
    ('\ufefffile;severity\r\na.png;0,5\r\nB.png;1\r\n', [[1], [.5]], ['severity']),
    ('file\tside\nB.png\tright\na.png\tleft\nmore.png\tleft\n', [1, 0], ['left', 'right']),
    ('file,class\na.png,3\n"./B.png",0\n', [0, 3], None)])
def test_labels_from_a_table(tmp_path, text, expected, names):
    for n in 'Ba': save(tmp_path/'in'/f'{n}.png', image(1))
    (tmp_path/'labels.csv').write_text(text, encoding='utf-8', newline='')
    make(tmp_path/'in', tmp_path/'a.zip', labels=tmp_path/'labels.csv')
    with zipfile.ZipFile(tmp_path/'a.zip') as z: words = json.loads(z.read('dataset.json'))
    assert [l for _, l in words['labels']] == expected and words['label_names'] == names
    opened(tmp_path/'a.zip', use_labels=True)

@pytest.mark.parametrize('text,says', [
    ('file,severity\na.png,.5\n', 'no line for b.png (1 of 2 lack one)'), ('file,x\na.png,.5\nb.png,high\n', "x is 'high'"),
    ('file,x\na.png,1\nb.png,\n', "x is ''"), ('a.png,1\nb.png,2\n', 'a first line with the names'),
    ('file,x\na.png,1\na.png,2\nb.png,1\n', 'two lines for one file'), ('file\na.png\nb.png\n', 'a first line'),
    ('file,lip_left\na.png,1\nb.png,1\n', "'lip_left' without 'lip_right'"), ('file,x\na.png,1,2\nb.png,1\n', 'has 3 cells'),
    ('file,x\na.png,nan\nb.png,1\n', "labels.csv: a.png, x is 'nan'; accepted: a finite number"),
    ('', 'a first line'), (b'\xff\xfe\0', 'UTF-8'),
    ('file,x\n../a.png,1\nb.png,1\n', 'points outside')])
def test_tables_that_do_not_fit(tmp_path, text, says):
    for n in 'ab': save(tmp_path/'in'/f'{n}.png', image(1))
    (tmp_path/'labels.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(says)):
        make(tmp_path/'in', tmp_path/'a.zip', labels=tmp_path/'labels.csv')
    assert sorted(os.listdir(tmp_path)) == ['in', 'labels.csv']

def test_a_dataset_keeps_what_is_known_of_it(tmp_path):
    "Labels and their names, rows, points, kind, license; and `card` takes the result"
    rows = [(np.asarray(image(i, 32, 32)), [i, 1.], dict(name=f'p{i//2}/{i}.jpg', x_nose=8., age=3)) for i in range(6)]
    write_dataset(tmp_path/'in.zip', rows, about=dict(kind='phantom-cleft', license='CC0-1.0', synthetic=True,
                  command='cleftgan cohort cleft --n 6 --size 32 --seed 0'), label_names=['lip', 'age'])
    make(tmp_path/'in.zip', tmp_path/'a.zip')
    first = manifest(tmp_path/'a.zip')[0]
    assert first['x_nose'] == 4 and first['age'] == 3 and first['name'] == 'p0/0.jpg' and first['source_file']
    said = about(tmp_path/'a.zip')
    assert said['kind'] == 'phantom-cleft' and said['license'] == 'CC0-1.0' and said['synthetic'] is True
    assert 'command' not in said and said['converted']['before']['command'].startswith('cleftgan cohort')
    assert opened(tmp_path/'a.zip', use_labels=True).label_names == ['lip', 'age']
    make(tmp_path/'a.zip', tmp_path/'b.zip', 8, labels='none', about=dict(license='mine'))
    assert about(tmp_path/'b.zip')['license'] == 'mine' and len(split(tmp_path/'b.zip', tmp_path/'c.zip', tmp_path/'d.zip')) == 2
    (tmp_path/'card.md').write_text('<!-- generated: begin facts -->\n<!-- generated: end facts -->\n')
    assert 'converted, done' in cards.card(tmp_path/'b.zip', tmp_path/'card.md').read_text()
    plain = np.stack([a for a, *_ in rows])
    make(tmp_path/'in.zip', tmp_path/'same.zip', 32)
    assert np.array_equal(pixels(tmp_path/'same.zip'), plain)

# ---- bytes, safety

def test_the_same_bytes_in_any_order(odd, tmp_path, monkeypatch):
    "Also where another system takes accents apart, and in a zip"
    save(odd/'é.png', image(5))
    make(odd, tmp_path/'a.zip')
    walk = os.walk
    monkeypatch.setattr(os, 'walk', lambda *a, **kw: ((r, d, f[::-1]) for r, d, f in reversed(list(walk(*a, **kw)))))
    make(odd, tmp_path/'b.zip')
    files = sorted((f for f in odd.rglob('*') if f.is_file()), reverse=True)
    with zipfile.ZipFile(tmp_path/'my photos.zip', 'w') as z:
        for f in files: z.write(f, unicodedata.normalize('NFD', f.relative_to(odd).as_posix()))
    make(tmp_path/'my photos.zip', tmp_path/'c.zip')
    assert (tmp_path/'a.zip').read_bytes() == (tmp_path/'b.zip').read_bytes()
    with zipfile.ZipFile(tmp_path/'a.zip') as x, zipfile.ZipFile(tmp_path/'c.zip') as z:
        assert all(x.read(n) == z.read(n) for n in x.namelist() if n != 'about.json') and x.namelist() == z.namelist()

def test_broken_pictures_are_refused_or_left_out(odd, tmp_path):
    save(odd/'cut.jpg', image(7, 200, 200))
    (odd/'cut.jpg').write_bytes((odd/'cut.jpg').read_bytes()[:3000])   # its header is well
    (odd/'letter.png').write_text('Dear parents')
    (odd/'phone.heic').write_text('x')
    (odd/'linked').symlink_to(tmp_path)
    os.mkfifo(odd/'pipe.png')
    with pytest.raises(ValueError, match='my photos: .*: .*--skip-broken'): make(odd, tmp_path/'a.zip')
    assert os.listdir(tmp_path) == ['my photos']
    made = make(odd, tmp_path/'a.zip', skip_broken=True)
    assert sorted(made.left_out) == ['cut.jpg', 'letter.png', 'linked', 'phone.heic', 'pipe.png'] and made.images == 4
    assert 'left out: letter.png: not a picture' in str(made) and about(tmp_path/'a.zip')['converted']['left_out'] == 3

@pytest.mark.parametrize('error', [KeyboardInterrupt, MemoryError])
def test_nothing_half_written(odd, tmp_path, monkeypatch, error):
    def stop(*a): raise error
    monkeypatch.setattr(conform_module, 'fitted', stop)
    with pytest.raises(error): make(odd, tmp_path/'a.zip')
    assert os.listdir(tmp_path) == ['my photos']

def test_places(odd, tmp_path):
    make(odd, tmp_path/'a.zip')
    with pytest.raises(ValueError, match='exists'): make(odd, tmp_path/'a.zip')
    make(odd, tmp_path/'a.zip', 8, overwrite=True)
    for out in (odd, odd/'a.zip'):
        with pytest.raises(ValueError, match='in the source|is the source'): make(odd, out)
    for wrong in dict(size=12), dict(size=4), dict(fit='cut'), dict(color='blue'), dict(background='pink'):
        with pytest.raises(ValueError, match=f'{next(iter(wrong))}=.*accepted'): conform(odd, tmp_path/'b.zip', **wrong)
    assert sorted(os.listdir(tmp_path)) == ['a.zip', 'my photos']

def test_little_memory(tmp_path):
    "Pictures come and go one by one"
    im = np.asarray(image(1, 64, 64))
    with zipfile.ZipFile(tmp_path/'in.zip', 'w') as z:
        for i in range(600): z.writestr(f'{i}.png', png(im))
    tracemalloc.start()
    make(tmp_path/'in.zip', tmp_path/'a.zip', 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600*64*64*3/2   # half of what the pictures take

# ---- every refusal of training names the command that mends it

def mended(tmp_path, monkeypatch, says, **kw):
    "Train on odd pictures, run the command of the refusal, and open its result"
    monkeypatch.chdir(tmp_path)
    if 'resume_from' not in kw: kw |= dict(network='stylegan2', settings=dict(channel_base=64, channel_max=4))
    config = Config("it's odd", 'run', **kw)
    with pytest.raises(ValueError, match=says) as e: begin(config, Team())
    command = shlex.split(re.search('cleftgan dataset .*$', str(e.value))[0])
    assert cli.main(command[1:]) == 0 and not Path('run').exists()
    data = ImageFolderDataset(command[3], use_labels=config.labels)
    check_pixels(data)
    return data

REFUSED = {
    'not square': (dict(a=image(1, 40, 32)), 'a.png is 40x32'),
    '418 pixels': (dict(a=image(1, 41, 41)), 'images of 41 pixels; networks draw a power of two'),
    'sizes': (dict(a=image(1, 32, 32), b=image(2, 40, 40)), 'b.png is 40x40, the pictures before it are 32x32'),
    'gray and RGB': (dict(a=image(1, 32, 32), b=image(2, 32, 32, 'L')), 'b.png'),
    'transparent': (dict(a=Image.new('RGBA', (32, 32), (1, 2, 3, 4))), 'a.png'),
    'broken': (dict(a=image(1, 32, 32), b=b'no picture'), 'b.png')}

@pytest.mark.parametrize('what', REFUSED)
def test_refusals_name_the_command_that_mends_them(tmp_path, monkeypatch, what):
    pictures, says = REFUSED[what]
    (tmp_path/"it's odd").mkdir()
    for n, o in pictures.items():
        if isinstance(o, bytes): (tmp_path/"it's odd"/f'{n}.png').write_bytes(o)
        else: save(tmp_path/"it's odd"/f'{n}.png', o)
    data = mended(tmp_path, monkeypatch, says)
    assert data.resolution == 32 and data.num_channels == 3

@pytest.mark.parametrize('size,mode,says', [(32, 'RGB', 'fits: '), (32, 'L', 'fits: '), (8, 'RGB', 'therefore soft: ')])
def test_a_base_of_another_size_or_color(tmp_path, monkeypatch, size, mode, says):
    G, D = networks.build('stylegan2', 16, channel_base=64, channel_max=4)
    checkpoints.save(tmp_path/'base.safetensors', G=G, D=D, G_ema=G, license='CC0-1.0', provenance={}, progress={})
    save(tmp_path/"it's odd"/'a.png', image(1, size, size, mode))
    data = mended(tmp_path, monkeypatch, says, resume_from='base.safetensors')
    assert data.image_shape == (3, 16, 16)

def test_labels_from_folders_are_offered(tmp_path, monkeypatch):
    for n in 'ab': save(tmp_path/"it's odd"/n/'1.png', image(1, 32, 32))
    assert mended(tmp_path, monkeypatch, 'has no labels', labels=True).label_names == ['a', 'b']

def test_foreign_datasets_get_what_split_and_card_need(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(4): save(tmp_path/'my ffhq'/f'00000/img{i:08d}.png', image(i, 16, 16))
    Path('card.md').write_text('<!-- generated: begin facts -->\n<!-- generated: end facts -->\n')
    for ask in (lambda p: split(p, 'a.zip', 'b.zip'), lambda p: cards.card(p, 'card.md')):
        with pytest.raises(ValueError, match='not written by this library') as e: ask('my ffhq')
        command = shlex.split(re.search('cleftgan dataset .*$', str(e.value))[0])
        if not Path(command[3]).exists(): assert cli.main(command[1:]) == 0
        ask(command[3])
    assert np.array_equal(pixels(command[3]), pixels('my ffhq'))

def test_the_command(odd, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['dataset', 'my photos', 'a.zip', '--size', '16', '--license', 'mine', '--alpha', 'white']) == 0
    assert capsys.readouterr().out.startswith('a.zip: 4 pictures of 16 pixels, RGB, no labels\n')
    assert about('a.zip')['license'] == 'mine' and about('a.zip')['kind'] == 'pictures'
    assert cli.main(['dataset', 'my photos', 'a.zip']) == 2 and '--force' in capsys.readouterr().err
    assert cli.main(['dataset', 'my photos', 'a.zip', '--size', '32', '--force']) == 0
    for place in ('-x', '.', 'a b', "it's"): assert shlex.split(remedy(place, size=8))[-2:] == ['--size', '8']
    assert shlex.split(remedy('-x'))[2:4] == ['./-x', './-x-dataset.zip'] and shlex.split(remedy('.'))[2] == str(tmp_path)

def test_a_panorama_keeps_its_pixels(tmp_path):
    "Large pictures are reduced while they are read, but not below what the crop needs"
    save(tmp_path/'in'/'a.png', Image.new('L', (9000, 40)).convert('RGB'))
    assert make(tmp_path/'in', tmp_path/'a.zip', 32).done == {'center crop': 1, 'reduced by Lanczos': 1}
    assert make(tmp_path/'in', tmp_path/'b.zip', None, fit='pad').size == 1024

def test_people_in_a_folder_of_their_own(tmp_path):
    for n in ('all/anna/1.png', 'all/anna/2.png', 'all/ben/1.png'): save(tmp_path/'in'/n, image(1))
    make(tmp_path/'in', tmp_path/'a.zip')
    assert [r['name'] for r in manifest(tmp_path/'a.zip')] == ['anna/1.png', 'anna/2.png', 'ben/1.png']
    for n in 'ab': save(tmp_path/'one'/'all'/f'{n}.png', image(1))
    make(tmp_path/'one', tmp_path/'b.zip')
    assert len(split(tmp_path/'b.zip', tmp_path/'c.zip', tmp_path/'d.zip', .5)) == 2   # a folder around all is no person
