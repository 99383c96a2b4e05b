"""Datasets: the published layout, the same bytes everywhere, all or nothing, an order that resumes, a named error
for anything else"""
import errno, io, json, os, pickle, resource, signal, socket, subprocess, sys, time, unicodedata, warnings, zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from cleftgan_nb.data import archives, datasets
from cleftgan_nb.data.datasets import (DatasetWriter, ImageFolderDataset, InfiniteSampler, about, convert,
                                       fingerprint, manifest, shrink, sided, verify,
                                       write_dataset)
from cleftgan_nb.data.cohorts import LABELS, cohort
from cleftgan_nb.data.split import held_out, split

ABOUT = dict(kind='test', license='CC0-1.0', seeds=[0, 1], parameters={'severity': .5})
NAMES = ['lip_left', 'age', 'lip_right']
# for processes started here, wherever the library is
ENV = {**os.environ, 'PYTHONPATH': str(Path(archives.__file__).parents[2])}

def image(i, size=16, channels=3):
    return np.random.default_rng(i).integers(0, 256, (size, size, channels), np.uint8).squeeze()

def rows(n=12, size=16, labels=True):
    for i in range(n):
        yield image(i, size), [i/2, 30 + i, -i] if labels else None, dict(seed=i,
                                                                          side=[None, 'left', 'right, far'][i % 3],
                                                                          age=i/3, ok=i % 2 == 0, x_nose=i/2, y_nose=3.)

def make(path, n=12, **kw): return write_dataset(path, rows(n), about=ABOUT, label_names=NAMES, **kw)

@pytest.fixture(scope='module')
def zipped(tmp_path_factory): return make(tmp_path_factory.mktemp('zip')/'set.zip')

def names(folder): return sorted(p.name for p in folder.iterdir())

def images(ds): return ds.batch(range(len(ds)))[0]

# ---- round trips

@pytest.mark.parametrize('name', ['set', 'set.zip', 'set.v1', 'Ä set.ZIP'])
def test_round_trip(tmp_path, name):
    path = make(tmp_path/name)
    assert names(tmp_path) == [name] and path.is_dir() == (not name.lower().endswith('.zip'))
    ds = ImageFolderDataset(path, use_labels=True)
    assert np.array_equal(images(ds).permute(0, 2, 3, 1), [image(i) for i in range(12)])
    assert ds.labels(range(12)).tolist() == [[i/2, 30. + i, -float(i)] for i in range(12)] and ds.label_names == NAMES
    for row, (_, _, given) in zip(manifest(path), rows(), strict=True):
        assert ({k: row[k] for k in given} == given
                and {type(row[k]) for k in given} == {type(v) for v in given.values()})
    assert verify(path) == 12
    assert ({k: about(path)[k] for k in ABOUT} == ABOUT and about(path)['images'] == 12
            and about(path)['resolution'] == 16 and about(path)['channels'] == 3)

@pytest.mark.parametrize('shape', [(16, 16), (16, 16, 1)])
def test_gray(tmp_path, shape):
    path = write_dataset(tmp_path/'gray.zip', [(image(0, channels=1).reshape(shape), None, {})], about=ABOUT)
    ds = ImageFolderDataset(path)
    assert (ds.image_shape == (1, 16, 16) and about(path)['channels'] == 1
            and np.array_equal(ds[0][0][0], image(0, channels=1)) and verify(path) == 1)

def test_folder_and_zip_say_the_same(tmp_path, zipped):
    path = make(tmp_path/'set')
    with zipfile.ZipFile(zipped) as z:
        assert ({n: z.read(n) for n in z.namelist()}
                == {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob('*') if p.is_file()})
    assert fingerprint(path) == fingerprint(zipped)

def test_numpy_values_and_nothing_to_say(tmp_path):
    row = dict(a=np.float64(.1), b=np.int64(3), c=np.bool_(True), d=np.str_('x,"'), e=None)
    path = write_dataset(tmp_path/'x.zip', [(image(0), None, row), (image(1), None, dict.fromkeys(row))], about=ABOUT)
    a, b = manifest(path)
    assert {k: a[k] for k in row} == dict(a=.1, b=3, c=True, d='x,"', e=None) and not any(b[k] for k in row)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.none(), st.text(st.characters(blacklist_categories=['Cs', 'Cc']), min_size=1)),
                          st.one_of(st.none(), st.floats(allow_nan=False)),
                          st.one_of(st.none(), st.integers(-2**70, 2**70)), st.one_of(st.none(), st.booleans())),
                min_size=1, max_size=5))
def test_manifest_comes_back(values):
    given = [dict(zip('abcd', v)) for v in values]
    text, kinds = datasets._table(given)
    assert datasets._untable(text, kinds, 'x') == given

# ---- the published layout, made by hand as the published tool writes it

def published(path, labels, size=8, n=5):
    "Write what dataset_tool.py leaves: stored zip or folder, uncompressed PNGs, dataset.json last"
    to = zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) if path.suffix == '.zip' else None
    for i in range(n):
        data = io.BytesIO()
        Image.fromarray(image(i, size)).save(data, format='png', compress_level=0, optimize=False)
        put(path, to, f'00000/img{i:08d}.png', data.getvalue())
    put(path, to, 'dataset.json', json.dumps({'labels': labels}).encode())
    if to: to.close()
    return path

def put(path, to, name, data):
    if to: return to.writestr(name, data)
    (path/name).parent.mkdir(parents=True, exist_ok=True)
    (path/name).write_bytes(data)

@pytest.mark.parametrize('name', ['ffhq', 'ffhq.zip'])
@pytest.mark.parametrize('labels,expected', [(None, []), ([3, 0, 1, 1, 0], [0, 0, 0, 1]), ([[.5, 2]]*5, [.5, 2])])
def test_published_layout(tmp_path, name, labels, expected):
    listed = labels and [[f'00000/img{i:08d}.png', l] for i, l in enumerate(labels)]
    ds = ImageFolderDataset(published(tmp_path/name, listed), resolution=8, use_labels=labels is not None, mirror=True)
    assert len(ds) == 10 and ds.label_dim == len(expected)
    x, c = ds[0]
    assert x.dtype == torch.uint8 and c.dtype == torch.float32 and c.tolist() == expected
    assert np.array_equal(images(ds)[:5].permute(0, 2, 3, 1), [image(i, 8) for i in range(5)])
    assert (torch.equal(images(ds)[5:], images(ds)[:5].flip(3))
            and torch.equal(ds.labels(range(5)), ds.labels(range(5, 10))))
    with pytest.raises(ValueError, match='not written by this library; .*: cleftgan dataset '): manifest(tmp_path/name)
    small = convert(tmp_path/name, tmp_path/'small.zip', 4)
    assert verify(small) == 5 and about(small)['license'].startswith('unknown')
    if labels: assert torch.equal(ImageFolderDataset(small, use_labels=True).labels(range(5)), ds.labels(range(5)))

def test_ours_read_by_the_published_rules(zipped):
    "As training/dataset.py reads: names sorted, labels looked up by name; the tool's own members come first"
    with zipfile.ZipFile(zipped) as z:
        pictures = sorted(n for n in z.namelist() if os.path.splitext(n)[1].lower() in Image.registered_extensions())
        assert (pictures == [f'00000/img{i:08d}.png' for i in range(12)]
                and not any(i.compress_type for i in z.infolist()))
        labels = dict(json.loads(z.read('dataset.json'))['labels'])
        assert np.array([labels[n] for n in pictures]).dtype == float
        assert np.array_equal(np.array(Image.open(z.open(pictures[3]))), image(3))

def test_other_formats_folders_and_hidden_files(tmp_path):
    for name, kw in [('b.jpg', {}), ('a/c.PNG', {}), ('d.bmp', {}), ('e.webp', {'lossless': True}), ('f.tif', {}),
                     ('g.png', {'bits': 4})]:
        (tmp_path/name).parent.mkdir(exist_ok=True)
        im = Image.fromarray(image(1))
        (im.quantize(16) if 'bits' in kw else im).save(tmp_path/name, **kw)
    for name in ('.hidden.png', '__MACOSX/b.png', '.cache/x.png'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b'no picture')
    (tmp_path/'notes.txt').touch()
    ds = ImageFolderDataset(tmp_path)
    assert (ds.names == ['a/c.PNG', 'b.jpg', 'd.bmp', 'e.webp', 'f.tif', 'g.png']
            and np.array_equal(ds[3][0].permute(1, 2, 0), image(1)) and len(images(ds)) == 6)

def test_one_bit_and_small_depths_are_gray(tmp_path):
    gray = np.uint8([[0, 255], [255, 0]])
    Image.fromarray(gray).convert('1').save(tmp_path/'a.png')
    Image.fromarray(gray).save(tmp_path/'b.png')
    a, b = images(ImageFolderDataset(tmp_path))
    assert torch.equal(a, b) and a.tolist() == [gray.tolist()]

def test_max_size_takes_what_the_published_code_takes(zipped):
    order = np.arange(12)
    np.random.RandomState(3).shuffle(order)
    ds = ImageFolderDataset(zipped, max_size=5, seed=3, mirror=True, use_labels=True)
    assert np.array_equal(images(ds)[:5].permute(0, 2, 3, 1), [image(i) for i in np.sort(order[:5])]) and len(ds) == 10
    assert ds.labels(range(5))[:, 1].tolist() == [30. + i for i in np.sort(order[:5])]
    assert len(ImageFolderDataset(zipped, max_size=99)) == 12

def test_classes_keep_their_number_in_a_subset(tmp_path):
    path = write_dataset(tmp_path/'x.zip', [(image(i), i, {}) for i in range(6)], about=ABOUT)
    assert ImageFolderDataset(path, use_labels=True, max_size=2).label_dim == 6

# ---- mirroring

def test_mirrored_labels(zipped):
    ds = ImageFolderDataset(zipped, mirror=True, use_labels=True)
    assert ds.labels([5, 17]).tolist() == [[2.5, 35, -5], [-5, 35, 2.5]]
    assert torch.equal(ds[17][0], ds[5][0].flip(2)) and ds[17][1].tolist() == [-5, 35, 2.5]

def test_a_foreign_set_has_a_fingerprint_too(tmp_path):
    "The same as a folder and as a zip; another one for other pixels in a file of the same size"
    foreign = lambda path, images: [((path/n).parent.mkdir(parents=True, exist_ok=True),
                                     (path/n).write_bytes(archives.png(im))) for n, im in images.items()] and path
    images = {f'a/{i}.png': np.full((16, 16, 3), i, np.uint8) for i in range(3)}
    folder = foreign(tmp_path/'x', images)
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z:
        for n in reversed(images): z.write(folder/n, n)
    assert fingerprint(folder) == fingerprint(tmp_path/'x.zip') and len(fingerprint(folder)) == 64
    assert (fingerprint(foreign(tmp_path/'y', images | {'a/1.png': np.full((16, 16, 3), 9, np.uint8)}))
            != fingerprint(folder))

def test_labels_without_names_are_mirrored_as_they_are(tmp_path):
    "A published dataset.json doesn't say which numbers are sides"
    ds = ImageFolderDataset(published(tmp_path/'x.zip', [[f'00000/img{i:08d}.png', [i, 5 - i]] for i in range(5)]),
                            mirror=True, use_labels=True)
    assert ds.label_names is None and torch.equal(ds.labels(range(5)), ds.labels(range(5, 10)))

def test_which_labels_have_sides():
    assert ([sided(o) for o in (None, [], ['age', 'repaired'], ['left', 'right'], LABELS, ('bereft', 'bright'))]
            == [False, False, False, True, True, False])
    many, since = [f'x{i}_{side}' for i in range(15_000) for side in ('left', 'right')], time.process_time()
    assert sided(many) and time.process_time() - since < 1

def test_a_cohort_s_labels_are_mirrored(tmp_path):
    ds = ImageFolderDataset(cohort('cleft', 3, tmp_path/'x.zip', size=16, workers=1, progress=False), mirror=True,
                            use_labels=True)
    assert ds.label_names == list(LABELS)
    for i in range(3):
        left, right, nose_left, nose_right, repaired = ds[i][1].tolist()
        assert ds[i + 3][1].tolist() == [right, left, nose_right, nose_left, repaired]

def test_mirrored_classes(tmp_path):
    path = write_dataset(tmp_path/'x.zip', [(image(i), i % 3, {}) for i in range(4)], about=ABOUT,
                         label_names=['left', 'none', 'right', 'both'])
    ds = ImageFolderDataset(path, mirror=True, use_labels=True)
    assert ds.label_dim == 4 and ds.labels([0, 1, 2, 4, 5, 6]).argmax(1).tolist() == [0, 1, 2, 2, 1, 0]

@pytest.mark.parametrize('wrong', [['lip_left', 'age', 'x'], ['a', 'a', 'b'], ['a', 'b'], 'abc', [1, 2, 3]])
def test_label_names(tmp_path, wrong):
    with pytest.raises(ValueError, match='label_names'):
        write_dataset(tmp_path/'x.zip', rows(), about=ABOUT, label_names=wrong)
    assert names(tmp_path) == []

# ---- the same bytes everywhere

def test_same_bytes_in_another_process(tmp_path, zipped):
    code = (f'import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_datasets import *; '
            f'make(Path({str(tmp_path/"x.zip")!r}))')
    subprocess.run([sys.executable, '-c', code], check=True, env={**ENV, 'PYTHONHASHSEED': '7', 'TZ': 'Asia/Tokyo'},
                   umask=0o077)
    assert (tmp_path/'x.zip').read_bytes() == zipped.read_bytes()

def test_png_is_canonical():
    "Bytes that no library made: signature, IHDR, one stored stream, IEND"
    assert archives.png(np.uint8([[7]])).hex() == ('89504e470d0a1a0a' '0000000d4948445200000001000000010800000000'
                                                   '3a7e9b55'
                                                   '0000000d49444154' '7801' '010200fdff0007' '00090008' 'b9ac8687'
                                                   '0000000049454e44ae426082')

@pytest.mark.parametrize('size', [1, 2, 147, 148, 300])   # stored blocks end at 65,535 bytes
@pytest.mark.parametrize('channels', [1, 3])
def test_png(size, channels):
    a = image(0, size, channels).reshape((size, size, 3) if channels == 3 else (size, size))
    with Image.open(io.BytesIO(archives.png(a))) as im: assert np.array_equal(np.asarray(im), a) and im.format == 'PNG'

# ---- whole or not at all

@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('error', [KeyboardInterrupt(), MemoryError(), ValueError('no'),
                                   OSError(errno.ENOSPC, 'No space left on device')])
def test_failures_leave_the_old_set(tmp_path, target, error):
    old = fingerprint(make(tmp_path/target))
    def broken():
        yield from rows(5)
        raise error
    with pytest.raises(type(error)): write_dataset(tmp_path/target, broken(), about=ABOUT, overwrite=True)
    with pytest.raises(type(error)): write_dataset(tmp_path/f'new_{target}', broken(), about=ABOUT)
    assert names(tmp_path) == [target] and fingerprint(tmp_path/target) == old and verify(tmp_path/target) == 12

@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('where', ['_finish', 'rename'])
def test_failures_at_the_end(tmp_path, monkeypatch, target, where):
    def fail(*a, **k): raise OSError(errno.EIO, 'Input/output error')
    monkeypatch.setattr(*(DatasetWriter, '_finish') if where == '_finish' else (archives, '_replace'), fail)
    with pytest.raises(OSError, match='Input/output error'): make(tmp_path/target)
    monkeypatch.undo()
    assert names(tmp_path) == [] and verify(make(tmp_path/target)) == 12

KILLED = '''
import sys; sys.path.insert(0, {tests!r}); from test_datasets import *
def slow():
    for k, row in enumerate(rows(12)):
        if k == {at}: print('now', flush=True); time.sleep(60)
        yield row
write_dataset(Path({path!r}), slow(), about=ABOUT, label_names=NAMES, overwrite=True)
'''

@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('exists', [False, True])
def test_killed_writer(tmp_path, target, exists):
    if exists: old = fingerprint(write_dataset(tmp_path/target, rows(3), about=ABOUT))
    p = subprocess.Popen([sys.executable, '-c', KILLED.format(tests=os.path.dirname(__file__), at=7,
                                                              path=str(tmp_path/target))], stdout=subprocess.PIPE,
                         env=ENV)
    assert p.stdout.readline() == b'now\n'
    p.send_signal(signal.SIGKILL)
    p.wait()
    # its hidden, unfinished part is there
    assert (tmp_path/target).exists() == exists and len(names(tmp_path)) == 1 + exists
    if exists: assert fingerprint(tmp_path/target) == old
    with pytest.warns(UserWarning, match='a killed process left'): make(tmp_path/target, overwrite=True)
    assert verify(tmp_path/target) == 12 and names(tmp_path) == [target]

def test_killed_between_two_renames(tmp_path):
    "The old folder was already moved away, the new one not yet in place"
    old = fingerprint(make(tmp_path/'x'))
    left = tmp_path/f'.x@{socket.gethostname()}-{2**30}.{"0"*16}.part'
    (left/'new').mkdir(parents=True)
    os.rename(tmp_path/'x', left/'old')
    with pytest.warns(UserWarning, match='a killed process left .*[.]x@'), pytest.raises(ValueError,
            match='exists; give another name'):
        make(tmp_path/'x')
    assert names(tmp_path) == ['x'] and fingerprint(tmp_path/'x') == old

@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE')
def test_full_disk(tmp_path):
    old = make(tmp_path/'x.zip').read_bytes()
    code = KILLED.format(tests=os.path.dirname(__file__), at=-1, path=str(tmp_path/'x.zip')).replace('def slow',
            'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, '
            '5000))\ndef slow')
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV)
    assert (p.returncode == 1 and f"File too large: '{tmp_path/'x.zip'}'" in p.stderr
            and 'Exception ignored' not in p.stderr), p.stderr
    assert names(tmp_path) == ['x.zip'] and (tmp_path/'x.zip').read_bytes() == old

def test_nothing_of_others_is_replaced(tmp_path, zipped):
    (tmp_path/'home').mkdir()
    (tmp_path/'home'/'thesis.txt').write_text('years')
    published(tmp_path/'ffhq.zip', None)
    (tmp_path/'note.zip').write_text('no zip')
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    for name in ('home', 'ffhq.zip', 'note.zip'):
        with pytest.raises(ValueError, match='exists; give another name'): make(tmp_path/name)
        with pytest.raises(ValueError, match='not one of our datasets'): make(tmp_path/name, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before

@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('other', ['a file', 'a folder', 'a dataset', 'a link to nowhere'])
@pytest.mark.parametrize('overwrite', [False, True])
def test_what_appears_meanwhile_stays(tmp_path, target, other, overwrite):
    "Someone writes the name between our first look and our last image; overwriting replaces only a dataset of ours"
    path = tmp_path/target
    def meanwhile():
        yield from rows(3)
        if other == 'a file': path.write_text('thesis')
        if other == 'a folder':
            path.mkdir()
            (path/'thesis.txt').write_text('years')
        if other == 'a dataset': archives.os.rename(make(tmp_path/f'other_{target}', 12), path)
        if other == 'a link to nowhere': path.symlink_to(tmp_path/'nowhere')
        before.update({p: p.read_bytes() for p in tmp_path.rglob('[!.]*') if p.is_file() and '.part' not in str(p)},
                      link=path.is_symlink())
        yield next(rows(1))
    before, write = {}, lambda: write_dataset(path, meanwhile(), about=ABOUT, overwrite=overwrite)
    if overwrite and other == 'a dataset': assert write() == path and verify(path) == 4
    elif overwrite and other == 'a link to nowhere':
        with pytest.raises(ValueError, match='exists'): write()
    else:
        with pytest.raises(ValueError, match='not one of our datasets' if overwrite else 'exists; give another name'):
            write()
        assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} | dict(link=path.is_symlink()) == before
    assert names(tmp_path) == [target]

RACER = '''
import sys; sys.path.insert(0, {tests!r}); from test_datasets import *
from cleftgan_nb.data import archives
with archives.appearing(Path({path!r}), False) as part:
    to = (archives.ToZip if {path!r}.endswith('zip') else archives.ToFolder)(part)
    to.put('who.txt', str(os.getpid()).encode()); to.close()
    print('ready', flush=True); sys.stdin.readline()
'''

@pytest.mark.parametrize('target', ['x', 'x.zip'])
def test_two_writers_of_one_name(tmp_path, target):
    "Both find it free and finish at once: one gets it, the other is told, nothing else is left"
    code = RACER.format(tests=os.path.dirname(__file__), path=str(tmp_path/target))
    both = [subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, env=ENV) for _ in range(2)]
    for p in both: assert p.stdout.readline() == 'ready\n'
    for p in both:
        p.stdin.write('go\n')
        p.stdin.flush()
    said = {p.pid: p.communicate(timeout=60)[1] for p in both}
    [winner], [loser] = [p for p in both if p.returncode == 0], [p for p in both if p.returncode]
    assert f'ValueError: {tmp_path/target} exists; give another name' in said[loser.pid] and not said[winner.pid]
    assert (names(tmp_path) == [target] and archives.open_archive(tmp_path/target).read('who.txt')
            == str(winner.pid).encode())

@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('links', [True, False])
def test_taken_in_the_last_moment(tmp_path, monkeypatch, target, links):
    "After the last look, before the step that claims the name; also on file systems without links"
    path, link, rename = tmp_path/target, os.link, os.rename
    def theirs():
        if path.suffix: path.write_text('theirs')
        else:
            path.mkdir()
            (path/'theirs').touch()
    def late(step):
        def f(a, b):
            theirs()
            if step is link and not links: raise OSError(errno.EPERM, 'Operation not permitted')
            step(a, b)
        return f
    monkeypatch.setattr(os, 'link', late(link))
    monkeypatch.setattr(os, 'rename', late(rename))
    with pytest.raises(ValueError, match='exists; give another name'): make(path)
    assert names(tmp_path) == [target] and (path.read_text() == 'theirs' if path.suffix else names(path) == ['theirs'])

@pytest.mark.parametrize('target', ['x', 'x.zip'])
@pytest.mark.parametrize('look', [1, 2])
def test_taken_right_after_a_look(tmp_path, monkeypatch, target, look):
    "Free when looked at, taken a moment later: the message is the same"
    path, looks, lexists = tmp_path/target, [], os.path.lexists
    def late(p):
        found = lexists(p)
        if Path(p) == path:
            looks.append(found)
            if len(looks) == look:
                path.mkdir()
                (path/'theirs').touch()
        return found
    monkeypatch.setattr(archives.os.path, 'lexists', late)
    with pytest.raises(ValueError, match='exists; give another name, or overwrite'): make(path)
    assert looks[:look] == [False]*look and names(tmp_path) == [target] and names(path) == ['theirs']

def test_file_systems_without_links(tmp_path, monkeypatch):
    def no(*_): raise OSError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', no)
    assert verify(make(tmp_path/'x.zip')) == 12 and names(tmp_path) == ['x.zip']
    monkeypatch.setattr(os, 'replace', no)
    with pytest.raises(OSError, match='not permitted'): make(tmp_path/'y.zip')
    assert names(tmp_path) == ['x.zip']

def test_an_old_folder_comes_back(tmp_path, monkeypatch):
    "If the new one cannot take its place"
    old, real = fingerprint(make(tmp_path/'x')), os.rename
    def rename(a, b):
        if Path(a).name == 'new': raise OSError(errno.EIO, 'Input/output error')
        real(a, b)
    monkeypatch.setattr(os, 'rename', rename)
    with pytest.raises(OSError, match='Input/output error'): make(tmp_path/'x', 3, overwrite=True)
    assert names(tmp_path) == ['x'] and fingerprint(tmp_path/'x') == old

def test_a_folder_takes_the_place_of_a_zip(tmp_path):
    "…and the other way round, with overwrite"
    os.rename(make(tmp_path/'a.zip'), tmp_path/'x')
    os.rename(make(tmp_path/'b'), tmp_path/'y.zip')
    for name in ('x', 'y.zip'): assert verify(make(tmp_path/name, 5, overwrite=True)) == 5
    assert names(tmp_path) == ['x', 'y.zip'] and (tmp_path/'x').is_dir() and (tmp_path/'y.zip').is_file()

def test_where_it_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match='make it first'): make(tmp_path/'no'/'x.zip')
    for wrong in (None, 3, b'x', ''):
        with pytest.raises(ValueError, match='accepted: a str or a Path'): make(wrong)
        with pytest.raises(ValueError, match='accepted: a str or a Path'): ImageFolderDataset(wrong)
    with DatasetWriter(tmp_path/'x.zip', about=ABOUT) as w:
        w.add(image(0))
        with pytest.raises(ValueError, match='being written'): make(tmp_path/'x.zip')
    assert verify(tmp_path/'x.zip') == 1
    (tmp_path/'empty').mkdir()
    assert verify(make(tmp_path/'empty', overwrite=True)) == 12
    (tmp_path/'link.zip').symlink_to(tmp_path/'x.zip')
    make(tmp_path/'link.zip', overwrite=True)
    assert ((tmp_path/'link.zip').is_symlink() and verify(tmp_path/'x.zip') == 12
            and names(tmp_path) == ['empty', 'link.zip', 'x.zip'])

@pytest.mark.skipif(os.name == 'nt', reason='permissions')
def test_copies_are_as_private_as_their_source(tmp_path):
    made = make(tmp_path/'x.zip')
    os.chmod(made, 0o600)
    copies = [convert(made, tmp_path/'small.zip', 8), convert(made, tmp_path/'small', 8),
              *split(made, tmp_path/'a.zip', tmp_path/'b')]
    assert [oct(os.stat(o).st_mode & 0o777) for o in copies] == ['0o600', '0o700', '0o600', '0o700']
    os.chmod(copies[0], 0o644)
    convert(made, copies[0], 4, overwrite=True)
    assert os.stat(copies[0]).st_mode & 0o777 == 0o600
    os.chmod(made, 0o644)
    os.chmod(tmp_path/'a.zip', 0o640)
    split(made, tmp_path/'a.zip', tmp_path/'b', overwrite=True)
    # what is replaced stays as it was
    assert [oct(os.stat(tmp_path/o).st_mode & 0o777) for o in ('a.zip', 'b')] == ['0o640', '0o700']

def test_manifests_that_do_not_fit_their_files(tmp_path):
    "A row without a file, a file without a row; and splitting a crowd is quick"
    made = make(tmp_path/'x')
    text = (made/'manifest.csv').read_text()
    file = text.splitlines()[1].split(',')[0]
    (made/'manifest.csv').write_text(text.replace(file, '', 1))
    with pytest.raises(ValueError, match='no columns file and sha256, or other things than words in them'):
        split(made, tmp_path/'a', tmp_path/'b')
    (made/'manifest.csv').write_text(text.replace(file, 'other.png', 1))
    with pytest.raises(ValueError, match=f"'{file}' is not in its manifest; get or make the dataset again"):
        split(made, tmp_path/'a', tmp_path/'b')
    start = time.process_time()
    assert (len(held_out([dict(file=f'{i}.png') for i in range(50_000)], .5, 0)) == 25_000
            and time.process_time() - start < 5)

def test_a_split_has_two_places(tmp_path):
    made, old = make(tmp_path/'x.zip'), fingerprint(make(tmp_path/'a.zip', 3))
    (tmp_path/'link.zip').symlink_to(tmp_path/'a.zip')
    for train, unseen in (('a.zip', 'a.zip'), ('a.zip', 'link.zip'), ('f', 'f/u.zip'), ('f/t.zip', 'f')):
        (tmp_path/'f').mkdir(exist_ok=True)
        with pytest.raises(ValueError, match='accepted: two places'):
            split(made, tmp_path/train, tmp_path/unseen, overwrite=True)
    (tmp_path/'f').rmdir()
    with pytest.raises(ValueError, match='a.zip exists'): split(made, tmp_path/'t.zip', tmp_path/'a.zip')
    with pytest.raises(FileNotFoundError, match='make it first'): split(made, tmp_path/'t.zip', tmp_path/'no/u.zip')
    assert names(tmp_path) == ['a.zip', 'link.zip', 'x.zip'] and fingerprint(tmp_path/'a.zip') == old

def test_a_writer_that_is_not_open(tmp_path):
    w = DatasetWriter(tmp_path/'x', about=ABOUT)
    with pytest.raises(ValueError, match='not open; add images inside the block'): w.add(image(0))
    with w:
        w.add(image(0))
        with pytest.raises(ValueError, match='one size'): w.add(image(1, 8))   # refused, and nothing of it is kept
        assert w.add(image(2)) == '00000/img00000001.png'
    with pytest.raises(ValueError, match='not open'): w.add(image(0))
    assert verify(tmp_path/'x') == 2

# ---- what may be written

@pytest.mark.parametrize('bad,said', [
    ((image(0).astype(float), None, {}), 'image 1 is float64'), ((image(0)[:5], None, {}), r'shape \[5, 16, 3\]'),
    ((np.zeros((16, 16, 4), np.uint8), None, {}), r'\[S,S,3\]'),
    ((image(0, 8), None, {}), r'image 1 has shape \[8, 8, 3\]'),
    ((image(0)[..., 0], None, {}), 'one size and kind'),
    ((image(0), 1, {}), 'image 1 has the label 1, the first image None'),
    ((image(0), [float('nan')], {}), 'finite numbers'), ((image(0), 'left', {}), "label 'left'"),
    ((image(0), None, {'a': 1}), 'row 1 and row 0 disagree about a'),
    ((image(0), None, {'file': 'x'}), "other than 'file'"), ((image(0), None, 'row'), 'accepted: a dict'),
    (('no image', None, {}), 'image 1 is <U8')])
@pytest.mark.parametrize('target', ['x', 'x.zip'])
def test_what_may_be_written(tmp_path, bad, said, target):
    with pytest.raises(ValueError, match=said): write_dataset(tmp_path/target, [(image(0), None, {}), bad], about=ABOUT)
    assert names(tmp_path) == []

@pytest.mark.parametrize('row,said', [({'a': [1]}, "row 0's 'a' is a list"), ({'a': ''}, 'nothing to say'),
                                      ({'a': 'x\ny'}, 'without line breaks'),
                                      ({'a': '\ud800'}, 'without line breaks'), ({3: 1}, 'accepted: a dict'),
                                      ({'a\n': 1}, 'accepted: a dict'), ({'a': 'x'*10_001}, 'up to 10,000'),
                                      ({'a': np.zeros(2)}, 'is a ndarray')])
def test_rows(tmp_path, row, said):
    with pytest.raises(ValueError, match=said): write_dataset(tmp_path/'x', [(image(0), None, row)], about=ABOUT)

@pytest.mark.parametrize('wrong', [None, {}, {'kind': 'x'}, {'kind': '', 'license': 'x'},
                                   {**ABOUT, 'p': float('inf')}, {**ABOUT, 'p': {1, 2}}, {**ABOUT, 'p': Path('x')},
                                   {**ABOUT, 'images': 3}])
def test_about(tmp_path, wrong):
    with pytest.raises(ValueError, match='about'): write_dataset(tmp_path/'x.zip', rows(), about=wrong)

# ---- reading: workers, threads, caches

@pytest.mark.parametrize('kind', ['folder', 'zip', 'deflated'])
@pytest.mark.parametrize('cache', [True, False, 5*16*16*3])
def test_workers_give_the_same(tmp_path, zipped, kind, cache):
    path = zipped if kind == 'zip' else make(tmp_path/'set')
    if kind == 'deflated':
        with zipfile.ZipFile(tmp_path/'packed.zip', 'w', zipfile.ZIP_DEFLATED) as z:
            for p in sorted(path.rglob('*')): z.write(p, p.relative_to(path).as_posix())
        path = tmp_path/'packed.zip'
    expected = ImageFolderDataset(zipped, mirror=True, use_labels=True)
    ds = ImageFolderDataset(path, mirror=True, use_labels=True, cache=cache)
    sampler = InfiniteSampler(ds, seed=3, position=7)
    for workers in (0, 2):
        loader = DataLoader(ds, batch_size=5, sampler=sampler, num_workers=workers)
        for (x, c), k in zip(loader, range(8)):
            indices = sampler.take(7 + 5*k, 5)
            assert torch.equal(x, expected.batch(indices)[0]) and torch.equal(c, expected.labels(indices))

def test_spawned_workers(zipped):
    "A fresh process gets the dataset without its file and memory"
    ds = ImageFolderDataset(zipped, use_labels=True).fill()
    assert len(pickle.dumps(ds)) < 8000
    [x], [c] = zip(*DataLoader(ds, batch_size=12, num_workers=1, multiprocessing_context='spawn'))
    assert torch.equal(x, images(ds)) and torch.equal(c, ds.labels(range(12)))

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='fork')
def test_forked_workers_share_what_they_decode(zipped):
    ds = ImageFolderDataset(zipped)
    for _ in DataLoader(ds, batch_size=3, num_workers=2, multiprocessing_context='fork'): pass
    assert ds._cache.sums.all() and not ds._cache.known.any()
    ds.source.read = None   # nothing is decoded anymore
    assert torch.equal(images(ds), images(ImageFolderDataset(zipped)))

def test_a_torn_picture_in_memory_is_decoded_again(zipped):
    ds = ImageFolderDataset(zipped).fill()
    ds._cache.known[:] = False
    ds._cache.pixels[4, 1, 2, 3] ^= 255
    assert np.array_equal(ds[4][0].permute(1, 2, 0), image(4))

@pytest.mark.parametrize('cache', [True, False])
def test_threads(zipped, cache):
    ds, expected = ImageFolderDataset(zipped, cache=cache), images(ImageFolderDataset(zipped))
    with ThreadPoolExecutor(8) as pool: found = list(pool.map(lambda k: ds[k % 12][0], range(400)))
    assert all(torch.equal(x, expected[k % 12]) for k, x in enumerate(found))

@pytest.mark.parametrize('cache,kept', [('auto', 12), (True, 12), (False, 0), (0, 0), (16*16*3*5 + 1, 5), (10**12, 12)])
def test_cache_is_bounded(zipped, cache, kept):
    ds = ImageFolderDataset(zipped, cache=cache)
    assert ds._cache.pixels.nbytes == kept*16*16*3 and f'{kept} kept' in repr(ds)
    assert torch.equal(images(ds), images(ds))

def test_auto_leaves_large_sets_out(zipped, monkeypatch):
    monkeypatch.setattr(datasets, 'CACHE', 16*16*3*2)
    assert ImageFolderDataset(zipped)._cache.n == 2

def test_what_is_given_may_be_changed(zipped):
    ds = ImageFolderDataset(zipped, mirror=True).fill()
    before = images(ds).clone()
    for k in (0, 12): ds[k][0].zero_()
    ds.batch([1, 2])[0].zero_()
    assert torch.equal(images(ds), before)

def test_indices(zipped):
    ds = ImageFolderDataset(zipped)
    for wrong in ([12], [-1], [[0]], 3):
        with pytest.raises(IndexError, match='0 to 11'): ds.batch(wrong)
    assert ds.batch([])[0].shape == (0, 3, 16, 16) and len(list(ds)) == 12 and ds.sheet(columns=4).size == (64, 48)

@pytest.mark.parametrize('given,said', [(dict(cache='all'), "cache='all'"), (dict(cache=-1), 'cache=-1'),
                                        (dict(cache=None), 'cache=None'), (dict(max_size=0), 'max_size=0'),
                                        (dict(resolution=32), r'is 16x16, not resolution=32 as requested'),
                                        (dict(max_size=2.5), 'max_size=2.5')])
def test_settings(zipped, given, said):
    with pytest.raises(ValueError, match=said): ImageFolderDataset(zipped, **given)

def test_a_zip_that_changes_is_noticed(tmp_path):
    ds = ImageFolderDataset(make(tmp_path/'x.zip'), cache=False)
    expected, sent = images(ds), pickle.dumps(ds)
    write_dataset(tmp_path/'x.zip', rows(5), about=ABOUT, overwrite=True)
    assert torch.equal(images(ds), expected)   # the open file is still the old one
    with pytest.raises(ValueError, match='has changed since it was opened'): pickle.loads(sent)[0]

# ---- the order

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**32), position=st.integers(0, 10**6), count=st.integers(0, 50),
       world=st.integers(1, 5))
def test_resume_and_ranks(n, seed, position, count, world):
    whole = InfiniteSampler(n, seed)
    straight = whole.take(position, world*count)
    assert [whole.take(position + k, 1)[0] for k in range(world*count)] == list(straight)
    parts = [InfiniteSampler(n, seed, rank=r, world=world).take(position, count) for r in range(world)]
    assert np.array_equal(np.stack(parts, 1).ravel(), straight)
    resumed = InfiniteSampler(n, seed, position=position)
    assert [i for i, _ in zip(resumed, range(count))] == list(straight[:count])
    epoch = -(-position//n)
    assert sorted(whole.take(epoch*n, n)) == list(range(n))

def test_orders_differ_and_never_change():
    orders = [tuple(InfiniteSampler(50, seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    assert (InfiniteSampler(10, 5).take(2**40, 4).tolist() == FAR
            and InfiniteSampler(4, shuffle=False).take(2, 4).tolist() == [2, 3, 0, 1])

FAR = [7, 1, 9, 3]

def test_order_is_even():
    "Every image comes to every place about equally often"
    counts = np.zeros((6, 6))
    s = InfiniteSampler(6, 1)
    for epoch in range(3000): counts[np.arange(6), s.order(epoch)] += 1
    assert abs(counts/500 - 1).max() < .2   # 4.9 standard deviations

@pytest.mark.parametrize('given', [dict(n=0), dict(n=3, seed=-1), dict(n=3, position=-1), dict(n=3, position=1.),
                                   dict(n=3, rank=2, world=2), dict(n=3, world=0), dict(n=True)])
def test_sampler_settings(given):
    with pytest.raises(ValueError, match='accepted'): InfiniteSampler(**given)

# ---- hostile and broken files

def pack(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', method) as z:
        for name, data in members: z.writestr(name, data)
    return path

GOOD = archives.png(image(0))

@pytest.mark.parametrize('name', ['../x.png', 'a/../../x.png', '/etc/x.png', 'C:/x.png', '..\\x.png',
                                  '\\\\server\\x.png', 'a\nb.png'])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(ValueError, match='points outside it'):
        ImageFolderDataset(pack(tmp_path/'x.zip', [('a.png', GOOD), (name, GOOD)]))

@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('twice', ['a.png', './a.png'])
def test_names_twice(tmp_path, twice):
    with pytest.raises(ValueError, match="two files called 'a.png'"):
        ImageFolderDataset(pack(tmp_path/'x.zip', [('a.png', GOOD), (twice, GOOD)]))

def test_truncated_zips(tmp_path, zipped):
    data = zipped.read_bytes()
    for n in [0, 1, 100, len(data)//2, len(data) - 1]:
        (tmp_path/'x.zip').write_bytes(data[:n])
        with pytest.raises(ValueError, match='x.zip is not a zip, or damaged or cut off'):
            ImageFolderDataset(tmp_path/'x.zip')

def test_every_damage_to_a_zip_is_a_named_error(tmp_path, zipped):
    "Single bytes changed all over the file: it reads right or is refused by name"
    data, refused = zipped.read_bytes(), 0
    expected = {x.numpy().tobytes() for x in images(ImageFolderDataset(zipped))}
    rng = np.random.default_rng(0)
    for k in [*rng.integers(0, len(data), 250), *range(len(data) - 900, len(data), 3)]:
        (tmp_path/'x.zip').write_bytes(data[:k] + bytes([data[k] ^ int(rng.integers(1, 256))]) + data[k+1:])
        try: found = images(ImageFolderDataset(tmp_path/'x.zip'))
        except ValueError as e:
            assert 'x.zip' in str(e), e
            refused += 1
        else: assert {x.numpy().tobytes() for x in found} <= expected   # a name may have changed, and with it the order
    assert refused > 200

@pytest.mark.filterwarnings('ignore::UserWarning')
def test_damaged_pixels_are_refused_in_every_format(tmp_path):
    "Single bytes changed in pictures: some picture or a named error"
    for suffix in ('png', 'jpg', 'bmp', 'webp', 'tif', 'ppm'):
        f = io.BytesIO()
        Image.fromarray(image(0)).save(f, {'jpg': 'jpeg', 'tif': 'tiff'}.get(suffix, suffix))
        data, rng = f.getvalue(), np.random.default_rng(0)
        for _ in range(60):
            k = rng.integers(0, len(data))
            (tmp_path/f'x.{suffix}').write_bytes(data[:k] + bytes([rng.integers(256)])
                                                 + data[k+1:rng.choice([None, k+50])])
            try: assert ImageFolderDataset(tmp_path)[0][0].dtype == torch.uint8
            except ValueError as e: assert f'x.{suffix} is' in str(e), e
        (tmp_path/f'x.{suffix}').unlink()

@pytest.mark.parametrize('name,data,said', [
    ('b.png', b'', 'b.png is not a readable picture'), ('b.png', b'GIF89a', 'not a readable picture'),
    ('b.png', GOOD[:200], 'not a readable picture'),
    ('b.png', archives.png(image(0, 8)), 'b.png is 8x8, the pictures before it are 16x16'),
    ('b.png', archives.png(image(0)[..., 0]), 'b.png is 16x16 with 1 channel'),
    ('b.jpg', GOOD, None)])
def test_broken_pictures(tmp_path, name, data, said):
    path = pack(tmp_path/'x.zip', [('a.png', GOOD), (name, data)])
    if said is None: assert len(images(ImageFolderDataset(path))) == 2   # the content counts, not the suffix
    else:
        with pytest.raises(ValueError, match=said): images(ImageFolderDataset(path))

@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'I;16', 'CMYK'])
def test_modes(tmp_path, mode):
    "Transparency is refused with the command that lays it on a color; tests/test_reading.py has the rest"
    Image.new(mode, (8, 8)).save(tmp_path/('x.jpg' if mode == 'CMYK' else 'x.png'))
    if 'A' not in mode: assert ImageFolderDataset(tmp_path).image_shape == (3 if mode == 'CMYK' else 1, 8, 8)
    else:
        with pytest.raises(ValueError, match='x.png is transparent.*cleftgan dataset .* --alpha white'):
            ImageFolderDataset(tmp_path)

def test_oblong_and_giant(tmp_path):
    (tmp_path/'x.png').write_bytes(archives.png(image(0)[:9]))
    with pytest.raises(ValueError, match='x.png is 16x9; accepted: square'): ImageFolderDataset(tmp_path)
    data = bytearray(GOOD)
    data[16:24] = b'\0\1\0\0'*2   # claims 65536 x 65536
    (tmp_path/'x.png').write_bytes(data)
    with pytest.raises(ValueError, match='up to 8192x8192'): ImageFolderDataset(tmp_path)

def test_bombs(tmp_path):
    pack(tmp_path/'x.zip', [('a.png', GOOD), ('dataset.json', b' '*(2**28 + 1))], zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match='dataset.json has 268435457 bytes'):
        ImageFolderDataset(tmp_path/'x.zip', use_labels=True)
    data = bytearray(pack(tmp_path/'y.zip', [('a.png', GOOD + b'\0'*10**6)], zipfile.ZIP_DEFLATED).read_bytes())
    k = data.index(b'PK\1\2')
    data[k+24:k+28] = (5000).to_bytes(4, 'little')   # claims 5,000 bytes and unpacks to a million
    (tmp_path/'y.zip').write_bytes(data)
    with pytest.raises(ValueError, match='checksum differs'): images(ImageFolderDataset(tmp_path/'y.zip'))

def test_encrypted_and_other_compression(tmp_path):
    with pytest.raises(ValueError, match='compressed by method 14; accepted: stored'):
        ImageFolderDataset(pack(tmp_path/'x.zip', [('a.png', GOOD)], zipfile.ZIP_LZMA))
    data = bytearray(pack(tmp_path/'y.zip', [('a.png', GOOD)]).read_bytes())
    data[data.index(b'PK\1\2') + 8] |= 1
    (tmp_path/'y.zip').write_bytes(data)
    with pytest.raises(ValueError, match='encrypted'): ImageFolderDataset(tmp_path/'y.zip')

@pytest.mark.parametrize('text,said', [
    (b'{"labels": [', 'dataset.json is not JSON'), (b'\xff\xfe', 'not JSON'), (b'[]', 'holds a list'),
    (b'{"labels": {"a.png": 1}}', 'accepted: null or a list'), (b'['*100_000, 'not JSON'),
    (b'{"labels": [["a.png"]]}', 'accepted: null or a list'),
    (b'{"labels": [["a.png", 0]]}', r'no label for b.png \(1 of 2'),
    (b'{"labels": [["a.png", 0], ["b.png", 1.5]]}', 'b.png has the label 1.5'),
    (b'{"labels": [["a.png", 0], ["b.png", -1]]}', 'label -1'),
    (b'{"labels": [["a.png", 0], ["b.png", true]]}', 'label True'),
    (b'{"labels": [["a.png", 0], ["b.png", "x"]]}', "label 'x'"),
    (b'{"labels": [["a.png", 0], ["b.png", null]]}', 'different kinds'),
    (b'{"labels": [["a.png", [1]], ["b.png", [1, 2]]]}', 'different kinds or lengths'),
    (b'{"labels": [["a.png", [[1]]], ["b.png", [[1]]]]}', 'label'),
    (b'{"labels": [["a.png", [NaN]], ["b.png", [1]]]}', 'finite'),
    (b'{"labels": [["a.png", 0], ["b.png", 99999999]]}', '99999999'),
    (b'{"labels": [["a.png", 0], ["a.png", 1], ["b.png", 1]]}', 'two labels for one file'),
    (b'{"labels": [["a.png", [Infinity]], ["b.png", [1]]]}',
     r'a.png has the label \[inf\]; accepted: .*finite numbers'),
    (b'{"labels": [["a.png", [1e30]], ["b.png", [1]]]}', r'1e\+30.*up to 1e\+06, best from 0 to 1'),
    (b'{"labels": [["a.png", [1e400]], ["b.png", [1]]]}', 'finite'),
    (b'{"labels": [["a.png", [1' + b'0'*400 + b']], ["b.png", [1]]]}', 'a.png has the label'),
    (b'{"labels": [["a.png", 1' + b'0'*5000 + b'], ["b.png", 1]]}', 'not JSON'),
    (b'{"labels": [["a.png", 1000000000], ["b.png", 1]]}', 'a class from 0 to 9999'),
    (b'{"labels": [["a.png", [' + b'0,'*10_000 + b'0]], ["b.png", [1]]]}',
     'a label of 10001 entries; accepted: .*a list of up to 10000'),
    (b'{"labels": [["a.png", ["0.5"]], ["b.png", ["1"]]]}', "label .'0.5'.; accepted"),
    (b'{"labels": [["a.png", [[1], 2]], ["b.png", [1]]]}', r'label \[\[1\], 2\]; accepted'),
    (b'{"labels": [["a.png", {"lip_left": 1}], ["b.png", 1]]}', 'label .*lip_left.*accepted'),
    (b'{"labels": [["a.png", [true]], ["b.png", [false]]]}', 'True.*accepted'),
    (b'{"labels": [["a.png", [null]], ["b.png", [1]]]}', 'None.*accepted'),
    (b'{"labels": [["a.png", []], ["b.png", []]]}', 'label'), (b'{"labels": null}', 'has no labels'),
    (b'{}', 'has no labels'), (None, 'has no labels'),
    (b'{"labels": [["a.png", 0], ["b.png", 1]], "label_names": ["one"]}', '1 label_names for labels of 2'),
    (b'{"labels": [["a.png", 0], ["b.png", 1]], "label_names": 3}', 'label_names')])
@pytest.mark.parametrize('kind', ['folder', 'x.zip'])
def test_wrong_labels(tmp_path, text, said, kind):
    members = [('a.png', GOOD), ('b.png', GOOD)] + [('dataset.json', text)]*(text is not None)
    if kind == 'folder': [(tmp_path/n).write_bytes(d) for n, d in members]
    else: pack(tmp_path/kind, members)
    path = tmp_path if kind == 'folder' else tmp_path/kind
    with pytest.raises(ValueError, match=said) as e: ImageFolderDataset(path, use_labels=True, mirror=True)
    assert str(path) in str(e.value)
    if text in (None, b'{}', b'{"labels": null}'): assert len(ImageFolderDataset(path)) == 2

def test_labels_of_files_that_are_not_there_are_ignored(tmp_path):
    "As published: part of a set can use the whole set's labels"
    pack(tmp_path/'x.zip', [('a.png', GOOD), ('dataset.json', json.dumps({'labels': [['a.png', 1], ['b.png', 4]]}))])
    assert ImageFolderDataset(tmp_path/'x.zip', use_labels=True).label_dim == 2

BEBE = [unicodedata.normalize(form, 'bébé.png') for form in ('NFC', 'NFD')]

@pytest.mark.parametrize('kind', ['folder', 'x.zip'])
@pytest.mark.parametrize('files,labels', [
    ((BEBE[0], 'b.png'), (BEBE[1], 'b.png')), ((BEBE[1], 'b.png'), (BEBE[0], 'b.png')),
    (('faces/a.png', 'faces/b.png'), ('a.png', 'b.png')), (('a.png', 'b.png'), ('faces/a.png', './faces\\b.png')),
    (('faces/a.png', 'faces/B.PNG'), ('FACES/A.png', 'faces/b.png'))])
def test_labels_of_names_spelled_in_another_way(tmp_path, files, labels, kind):
    members = [(n, GOOD) for n in files] + [('dataset.json', json.dumps({'labels': [*zip(labels, (1, 2))]}).encode())]
    for n, d in members if kind == 'folder' else (): put(tmp_path, None, n, d)
    path = tmp_path if kind == 'folder' else pack(tmp_path/kind, members)
    with warnings.catch_warnings(record=True) as said: ds = ImageFolderDataset(path, use_labels=True)
    assert dict(zip(ds.names, ds.labels(range(2)).argmax(1).tolist())) == dict(zip(files, (1, 2)))
    assert [('2 of 2 files are called other' in str(o.message)) for o in said] == [True]*('FACES/A.png' in labels)
    small = convert(path, tmp_path.parent/f'{tmp_path.name}-small.zip', 8)
    assert ImageFolderDataset(small, use_labels=True).label_dim == 3

def test_labels_that_several_files_could_have(tmp_path):
    "No guessing: two files differ in case only, as does one label from both"
    for n in ('a.png', 'A.png'): (tmp_path/n).write_bytes(GOOD)
    (tmp_path/'dataset.json').write_text('{"labels": [["a.PNG", 1], ["b.png", 0]]}')
    with pytest.raises(ValueError, match='no label for A.png .2 of 2'): ImageFolderDataset(tmp_path, use_labels=True)

@pytest.mark.parametrize('kind', ['folder', 'x.zip'])
@pytest.mark.parametrize('top', ['faces/', 'home/faces/'])
def test_a_dataset_in_a_folder_of_its_own(tmp_path, zipped, kind, top):
    "Whoever packs a folder gets that folder in the zip; a note beside it does no harm"
    with zipfile.ZipFile(zipped) as z: members = [(top + n, z.read(n)) for n in z.namelist()]
    members += [('LICENSE', b'mine'), ('__MACOSX/._faces', b'')]
    for n, d in members if kind == 'folder' else (): put(tmp_path, None, n, d)
    path = tmp_path if kind == 'folder' else pack(tmp_path/kind, members)
    a, b = (ImageFolderDataset(o, use_labels=True) for o in (zipped, path))
    assert torch.equal(images(a), images(b)) and torch.equal(a.labels(range(12)), b.labels(range(12)))
    assert manifest(path) == manifest(zipped) and fingerprint(path) == fingerprint(zipped) and verify(path) == 12
    if kind == 'folder': (path/top/'..'/'more.png').write_bytes(GOOD)
    else: pack(path, [*members, ('more.png', GOOD)])
    assert len(ImageFolderDataset(path)) == 13   # else it would be lost

def test_names_that_macos_writes_into_zips(tmp_path):
    "In UTF-8, without the flag that says so; with an icon of the folder whose name ends in a line's end"
    path = pack(tmp_path/'x.zip', [('be__be__.png', GOOD), ('Icon_', b''), ('dataset.json', json.dumps(
        {'labels': [[BEBE[0], 1]]}).encode())])
    data = path.read_bytes().replace(b'be__be__.png', BEBE[1].encode()).replace(b'Icon_', b'Icon\r')
    path.write_bytes(data)
    assert ImageFolderDataset(path, use_labels=True).names == [BEBE[1]]

def test_what_systems_add_changes_nothing(tmp_path, zipped):
    "No picture, no change of the fingerprint that a run goes on with"
    path = published(tmp_path/'set', None)
    before = fingerprint(path)
    for name in ('.DS_Store', 'Thumbs.db', 'desktop.ini', '__MACOSX/00000/._img.png', '@eaDir/img00000000.png', '.a.png'):
        put(path, None, f'00000/{name}', GOOD)
    assert len(ImageFolderDataset(path)) == 5 and fingerprint(path) == before
    ours = make(tmp_path/'ours')
    (ours/'00000'/'Thumbs.db').write_bytes(b'x')
    assert verify(ours) == 12

def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no dataset'): ImageFolderDataset(tmp_path/'x.zip')
    with pytest.raises(ValueError, match='has no images; accepted: files that end in .png'):
        ImageFolderDataset(tmp_path)
    with pytest.raises(ValueError, match='has no images'):
        ImageFolderDataset(pack(tmp_path/'x.zip', [('words.txt', b'')]))
    (tmp_path/'y.tar').write_bytes(b'no')
    with pytest.raises(ValueError, match='y.tar is not a zip'): ImageFolderDataset(tmp_path/'y.tar')

# ---- checking and converting

def test_verify_tells(tmp_path):
    path = make(tmp_path/'x')
    (path/'notes').mkdir()
    for change, said in [(lambda: (path/'00000/img00000003.png').write_bytes(archives.png(image(99))),
                          'img00000003.png differs'),
                         (lambda: (path/'00000/img00000004.png').unlink(), 'img00000004.png is missing'),
                         (lambda: (path/'00000/new.png').write_bytes(GOOD), 'new.png is not in the manifest'),
                         (lambda: (path/'notes'/'x.txt').write_text('more'), 'notes/x.txt is not in the manifest'),
                         (lambda: (path/'manifest.csv').write_text((path/'manifest.csv').read_text().replace('left',
                                 'right')), 'manifest.csv differs'),
                         (lambda: (path/'dataset.json').write_text((path/'dataset.json').read_text().replace('30.0',
                                 '31.0')), 'dataset.json differs')]:
        change()
        with pytest.raises(ValueError, match=said): verify(path)

def test_verify_does_not_check_the_words(tmp_path):
    "They hold the checksums; hidden files belong to no one"
    path = make(tmp_path/'x')
    (path/'about.json').write_text((path/'about.json').read_text().replace('CC0-1.0', 'CC-BY-4.0'))
    (path/'.DS_Store').write_bytes(b'x')
    assert verify(path) == 12 and 'about.json' in verify.__doc__

def test_verify_takes_a_picture_in_another_file(tmp_path):
    "The checksum covers the pixels"
    path = make(tmp_path/'x')
    Image.fromarray(image(3)).save(path/'00000/img00000003.png', optimize=True)
    assert verify(path) == 12

@pytest.mark.parametrize('text', ['no JSON', '[]', '{}', '{"columns": 3, "sha256": 3}',
                                  '{"columns": {"seed": "bool"}}', '{"columns": {"seed": "fruit"}}'])
def test_wrong_about(tmp_path, text):
    path = make(tmp_path/'x')
    (path/'about.json').write_text(text)
    with pytest.raises(ValueError): verify(path)

@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(s=st.integers(1, 24), data=st.data(), channels=st.sampled_from([1, 3]))
def test_area_means(s, data, channels):
    "Against the same means by exact repetition"
    r = data.draw(st.integers(1, s))
    a = np.random.default_rng(s).integers(0, 256, (s, s, channels)).astype(np.uint8)
    big = np.repeat(np.repeat(a, r, 0), r, 1).astype(np.int64).reshape(r, s, r, s, channels).sum((1, 3))
    assert (np.array_equal(shrink(a, r), (2*big + s*s)//(2*s*s))
            and np.array_equal(shrink(a[..., 0], r), shrink(a, r)[..., 0]))

def test_convert(tmp_path, zipped):
    path = convert(zipped, tmp_path/'small', 4, max_size=7)
    a, b = ImageFolderDataset(zipped, use_labels=True, max_size=7), ImageFolderDataset(path, use_labels=True)
    assert (torch.equal(a.labels(range(7)), b.labels(range(7))) and b.label_names == NAMES
            and b.image_shape == (3, 4, 4) and verify(path) == 7)
    assert np.array_equal(images(b)[2].permute(1, 2, 0), shrink(images(a)[2].permute(1, 2, 0).numpy(), 4))
    whole = {r['file']: r for r in manifest(zipped)}
    for row in manifest(path):
        old = whole[row['source_file']]
        assert (row['x_nose'] == old['x_nose']/4 and row['y_nose'] == .75 and row['seed'] == old['seed']
                and row['side'] == old['side'])
    assert (about(path)['converted'] == {'from': 'set.zip', 'resolution': 16, 'images': 7, 'by': 'area means'}
            and about(path)['seeds'] == [0, 1])
    twice = convert(path, tmp_path/'tiny.zip', 2)
    assert verify(twice) == 7
    for src, dst in [(path, path), (path, path/'x.zip'), (path, path/'deep'/'x'), (path, tmp_path/'link'/'x.zip'),
                     (tmp_path/'link', path/'x'), (path, tmp_path/'small'/'..'/'small'/'x'), (zipped, zipped)]:
        if not (tmp_path/'link').exists(): (tmp_path/'link').symlink_to(path)
        before = names(path)
        for overwrite in (False, True):
            with pytest.raises(ValueError, match='dst=.* is (in )?the source .*; accepted: a place outside of it'):
                convert(src, dst, 4, overwrite=overwrite)
        assert names(path) == before and verify(path) == 7
    assert verify(convert(path, tmp_path/'small-2', 2)) == 7   # a name with the same beginning is another place
    for wrong in (17, 0, -3, 4., '4', True):
        with pytest.raises(ValueError, match='resolution=.*accepted: 1 to 16'): convert(zipped, tmp_path/'y.zip', wrong)


@pytest.mark.parametrize('target', ['x', 'x.zip'])
def test_taken_between_the_check_and_the_step(tmp_path, monkeypatch, target):
    "Without overwrite, a dataset of ours that appears after the check stays"
    path, check = tmp_path/target, archives._check_free
    def late(p, overwrite):
        check(p, overwrite)
        if any(tmp_path.iterdir()):
            path.mkdir()
            (path/'about.json').touch()
            (path/'manifest.csv').touch()
    monkeypatch.setattr(archives, '_check_free', late)
    with pytest.raises(ValueError, match='exists; give another name'):
        with archives.appearing(path, False) as part: part.mkdir() if target == 'x' else part.write_text('mine')
    assert sorted(o.name for o in path.iterdir()) == ['about.json', 'manifest.csv'] and names(tmp_path) == [target]
