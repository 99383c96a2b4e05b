"""Watching: odd folders say what they lack, resumed runs repeat no point, pictures become strips and films, the
same bytes each time"""
import json, struct, sys, threading, time, zlib
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from cleftgan_nb import checkpoints, networks
from cleftgan_nb.training import watch
from cleftgan_nb.training.config import Config, save_config
from cleftgan_nb.training.watch import Board, curves, gif, grid_at, live, pictures, read_log, strip, tensorboard, tiles

SIZE = 16


def row(kimg, **more):
    return dict(kimg=kimg, step=int(kimg*10), augment_p=kimg/1000, r_t=.5) | {'loss/G': 1 + kimg/100} | more


def write(folder, rows, seconds=2.):
    (folder/'log.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    (folder/'time.jsonl').write_text(''.join(json.dumps(dict(kimg=r['kimg'], seconds=seconds)) + '\n' for r in rows))


def draw(path, kimg=None, tile=None, shape=(2, 4), seed=0):
    text = PngInfo()
    for key, value in dict(kimg=kimg, tile=tile).items():
        if value is not None: text.add_text(key, str(value))
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (shape[0]*SIZE, shape[1]*SIZE, 3),
                                                         np.uint8)).save(path, pnginfo=text)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path/'run'
    folder.mkdir()
    save_config(Config('faces.zip', str(folder), network='stylegan3-t', kimg=20.), folder/'config.yaml')
    write(folder, [row(k) for k in (4., 8., 12., 16., 20.)])
    for k in (4, 8, 12, 16, 20): draw(folder/f'fakes-{k:06d}.png', k, SIZE, seed=k)
    return folder


def points(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    read = EventAccumulator(str(folder), dict(scalars=0, images=0)).Reload()
    return ({n: [(p.step, p.value) for p in read.Scalars(n)] for n in read.Tags()['scalars']},
            [p.step for p in read.Images('fakes')] if read.Tags()['images'] else [])


# the log
@pytest.mark.parametrize('text, word', [(None, 'no line in its log yet; the first comes after 4 kimg'),
                                        ('', 'no line in its log yet'), ('\n\n', 'no line in its log yet'),
                                        ('{"kimg": 4}\n[1, 2]\n{"kimg": 8}\n', r"line 2: '\[1, 2\]'; accepted"),
                                        ('{"r_t": 4}\n{"kimg": 8}\n', 'line 1.*with a number for kimg'),
                                        ('{"kimg": "4"}\n{"kimg": 8}\n', 'line 1'),
                                        ('{"kimg": NaN}\n{"kimg": 8}\n', 'line 1')])
def test_odd_logs_say_so(run, text, word):
    (run/'log.jsonl').unlink()
    if text is not None: (run/'log.jsonl').write_text(text)
    with pytest.raises(ValueError, match=word): read_log(run)


def test_folders_that_are_no_run_say_so(tmp_path):
    (tmp_path/'file').write_text('')
    for folder in ('nowhere', 'file'):
        for f in (read_log, curves, pictures, strip, grid_at, tensorboard):
            with pytest.raises(FileNotFoundError, match='no folder'): f(tmp_path/folder)
    with pytest.raises(ValueError, match='holds no training run'): read_log(tmp_path)
    (tmp_path/'config.yaml').write_text('\tno: yaml: [')
    with pytest.raises(ValueError, match='no line in its log yet; the first comes after a tick'): read_log(tmp_path)
    with pytest.raises(ValueError, match='no picture yet'): strip(tmp_path)


@pytest.mark.parametrize('cut', [1, 20, 60])
def test_a_log_that_breaks_off_is_read_as_far_as_it_goes(run, cut):
    text = (run/'log.jsonl').read_bytes()
    (run/'log.jsonl').write_bytes(text[:-cut - 1])
    with pytest.warns(UserWarning, match='the last line ends after'):
        assert read_log(run)['kimg'].tolist() == [4, 8, 12, 16]
    (run/'log.jsonl').write_bytes(text[:-cut - 1] + b'\xff\xfe')
    with pytest.warns(UserWarning, match='the last line ends after'):
        assert read_log(run)['kimg'].tolist() == [4, 8, 12, 16]


def test_missing_values_are_nan_and_words_too(run):
    write(run, [row(4.), row(8., **{'loss/R1': .1}), row(12., r_t=None, **{'loss/R1': float('nan'), 'note': 'late'})])
    (run/'time.jsonl').write_text('{"kimg": 4.0, "seconds": 2.0}\n{"kimg": 12.0, "seconds": 4.0, "images": 1000}\n')
    log = read_log(run)
    np.testing.assert_equal(log['loss/R1'], [np.nan, .1, np.nan])
    np.testing.assert_equal(log['r_t'], [.5, .5, np.nan])
    np.testing.assert_equal(log['note'], [np.nan]*3)
    np.testing.assert_equal(log['images/s'], [2000, np.nan, 250])
    (run/'time.jsonl').unlink()
    assert 'images/s' not in read_log(run)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_kimg_only_grows(tmp_path_factory, kimgs):
    path = tmp_path_factory.mktemp('log')/'log.jsonl'
    path.write_text(''.join(json.dumps(dict(kimg=k, n=n)) + '\n' for n, k in enumerate(kimgs)))
    rows = watch._rows(path)
    assert (all(a['kimg'] < b['kimg'] and a['n'] < b['n'] for a, b in zip(rows, rows[1:]))
            and rows[-1] == dict(kimg=kimgs[-1], n=len(kimgs) - 1))


# curves
def test_curves_show_what_is_there(run, tmp_path):
    titles = lambda fig: [ax.get_title() for ax in fig.axes if ax.axison]
    fig = curves(run)
    assert titles(fig) == ['loss/G', 'r_t', 'augment_p', 'images/s']
    line = fig.axes[1].lines[0]
    assert line.get_xdata().tolist() == [4, 8, 12, 16, 20] and set(line.get_ydata()) == {.5}
    assert [l.get_ydata()[0] for l in fig.axes[1].lines[1:]] == [.6]        # ADA's target
    assert len(curves([run, run], panels='r_t').axes[0].lines) == 2         # a list names runs by their folder
    two = curves({'a': run, 'b': run}, panels=[('r_t', 'augment_p')], smooth=8)
    assert [t.get_text() for t in two.legends[0].texts] == ['a', 'b']
    with pytest.raises(ValueError, match="'loss/X'; accepted: kimg, step, augment_p"): curves(run, panels=['loss/X'])


def test_missing_packages_say_so(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'seaborn', None)
    with pytest.raises(ImportError, match='pip install matplotlib seaborn'): curves(run)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ImportError, match='pip install tensorboard'): tensorboard(run)
    board = Board(run)
    board.add(row(4.), grid_at(run))
    board.close()
    assert not (run/'tensorboard').exists()
    monkeypatch.setitem(sys.modules, 'IPython.display', None)
    with pytest.raises(ImportError, match='pip install ipython'): live(run, once=True)


# pictures
def test_pictures_are_found_by_text_then_by_name(run):
    draw(run/'fakes-000021.500.png')
    draw(run/'fakes-1234567.png')
    draw(run/'fakes-000022.png', kimg=22.016)
    draw(run/'fakes-old.png')
    draw(run/'fakes-1.2.3.png')
    assert list(pictures(run)) == [4, 8, 12, 16, 20, 21.5, 22.016, 1234567]
    assert (grid_at(run, 13).info['kimg'] == '12' and grid_at(run).size == (4*SIZE, 2*SIZE)
            and pictures(run)[22.016].name == 'fakes-000022.png')
    (run/'fakes-000030.png').write_bytes(b'no picture')
    with pytest.raises(ValueError, match='fakes-000030.png cannot be read'): pictures(run)


def test_an_images_size_comes_from_the_text_the_caller_or_a_checkpoint(run):
    path = run/'fakes-000030.png'
    draw(path, seed=3)
    with pytest.raises(ValueError, match='64×32 pixels and does not say how large one image is; give size='):
        tiles(path)
    with pytest.raises(ValueError, match='size=24.*divides both'): tiles(path, 24)
    want = tiles(path, SIZE)
    assert want.shape == (8, SIZE, SIZE, 3)
    (run/'network-000029.safetensors').write_bytes(b'broken')
    with pytest.raises(ValueError, match='give size='): tiles(path)
    G, _ = networks.build('stylegan2', SIZE, channel_base=64, channel_max=4, z_dim=4, w_dim=4)
    checkpoints.save(run/'network-000028.safetensors', G_ema=G, license='CC0-1.0', provenance={}, progress={})
    assert (tiles(path) == want).all()
    Image.fromarray(np.zeros((2*SIZE, SIZE), np.uint8)).save(path)
    assert tiles(path).shape == (2, SIZE, SIZE, 3)   # gray


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True).map(sorted), st.integers(1, 20))
def test_moments_are_in_order_from_the_first_to_the_last(kimgs, wanted):
    found = watch._moments(kimgs, wanted)
    assert (len(found) == min(wanted, len(kimgs)) and set(found) <= set(kimgs)
            and all(a < b for a, b in zip(found, found[1:])))
    assert found[-1] == kimgs[-1] and (len(found) == 1 or found[0] == kimgs[0])


def test_strip_keeps_latents_in_their_row(run):
    draw(run/'fakes-000024.png', 24, SIZE, (4, 8))                          # more latents from here on
    image = np.asarray(strip(run, [4, 24], [5, 2], scale=1))
    assert image.shape == (16 + 2*SIZE, 2*SIZE, 3)
    for column, kimg in enumerate((4, 24)):
        for r, latent in enumerate((5, 2)):
            assert (image[16 + r*SIZE:16 + (r + 1)*SIZE, column*SIZE:(column + 1)*SIZE]
                    == tiles(pictures(run)[kimg])[latent]).all()
    for rows in (9, 0, [-1], [8], []):
        with pytest.raises(ValueError, match='8 latents; accepted'): strip(run, rows=rows)


# films
def test_a_film_has_all_pictures_in_few_colors_and_the_same_bytes(run, tmp_path):
    path = gif(run, tmp_path/'a.gif', seconds=1)
    assert path.read_bytes() == gif(run, tmp_path/'b.gif', seconds=1).read_bytes() and not list(tmp_path.glob('.*part'))
    with Image.open(path) as film:
        assert (film.n_frames == 5 and film.info['loop'] == 0 and b'no real person' in film.info['comment']
                and film.size == (6*64, 16 + 2*64))
        shown, colors = [], set()
        for i in range(5):
            film.seek(i)
            shown.append(film.info['duration'])
            colors |= {c for _, c in film.convert('RGB').getcolors(1 << 20)}
    assert shown == [200]*4 + [1700] and len(colors) <= 256
    kept = path.read_bytes()
    with pytest.raises(ValueError, match='seconds=-1'): gif(run, path, seconds=-1)
    with pytest.raises(FileNotFoundError, match='no folder'): gif(run, tmp_path/'nowhere/a.gif')
    assert path.read_bytes() == kept


@pytest.mark.parametrize('seconds, frames', [(.01, 1), (.25, 3), (100, 5)])
def test_a_short_film_leaves_pictures_out(run, tmp_path, seconds, frames):
    with Image.open(gif(run, tmp_path/'a.gif', seconds=seconds, rows=1, columns=2, scale=1)) as film:
        assert getattr(film, 'n_frames', 1) == frames


def test_a_film_whose_pictures_grow(run, tmp_path):
    draw(run/'fakes-000024.png', 24, SIZE, (4, 8))
    with Image.open(gif(run, tmp_path/'a.gif', rows=4, columns=4, scale=1)) as film:
        assert film.n_frames == 6 and film.size == (4*SIZE, 16 + 2*SIZE)


# a page that refreshes itself
class Shown(list):
    def __call__(self, what, display_id):
        self.append(what)
        return self
    def update(self, what): self.append(what)
    def words(self): return [o.data for o in self if hasattr(o, 'data')]


@pytest.fixture
def shown(monkeypatch):
    import IPython.display
    found = Shown()
    monkeypatch.setattr(IPython.display, 'display', found)
    return found


def test_live_before_the_first_line(run, shown):
    for p in [*run.glob('fakes-*'), *run.glob('*.jsonl')]: p.unlink()
    live(run, once=True)
    assert 'no line in the log yet' in shown.words()[-1] and 'after 4 kimg' in shown.words()[-1]


def test_live_follows_a_run_to_its_end(run, shown):
    whole = [row(k) for k in (4., 8., 12., 16., 20.)]
    write(run, whole[:1])
    def go_on():
        for n in range(2, 6):
            time.sleep(.4)
            write(run, whole[:n])
    thread = threading.Thread(target=go_on)
    thread.start()
    live(run, every=.05, panels='r_t')
    thread.join()
    assert '4 of 20 kimg' in shown.words()[0] and '20 of 20 kimg' in shown.words()[-1] and 'done' in shown.words()[-1]


def test_live_ends_when_asked(run, shown, monkeypatch):
    live(run, until=12.)
    save_config(Config('faces.zip', str(run), kimg=100.), run/'config.yaml')
    live(run, once=True)
    assert '20 of 100 kimg' in shown.words()[-1] and '40 s to go' in shown.words()[-1]
    def interrupt(seconds): raise KeyboardInterrupt
    monkeypatch.setattr(time, 'sleep', interrupt)
    live(run)


# TensorBoard
def test_tensorboard_has_what_the_log_has(run):
    pytest.importorskip('tensorboard')
    for _ in range(2):                                                      # the second time replaces the first
        scalars, images = points(tensorboard(run))
        assert (set(scalars) == {'augment_p', 'r_t', 'loss/G', 'images/s'}
                and images == [4000, 8000, 12000, 16000, 20000])
        assert scalars['loss/G'] == [(round(1000*k), pytest.approx(1 + k/100)) for k in (4, 8, 12, 16, 20)]


def test_tensorboard_into_a_given_writer(run, tmp_path):
    pytest.importorskip('tensorboard')
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(tmp_path/'events')) as writer: assert tensorboard(run, writer) == tmp_path/'events'
    assert len(points(tmp_path/'events')[0]['r_t']) == 5 and not (run/'tensorboard').exists()


def test_a_killed_run_has_no_point_twice(run):
    pytest.importorskip('tensorboard')
    killed = Board(run)
    for k in (4., 8., 12.): killed.add(row(k, r_t=.1), grid_at(run, k))     # never closed; its state is of 8 kimg
    board = Board(run, 8000)
    for k in (12., 16.): board.add(row(k, r_t=.2), grid_at(run, k))
    scalars, images = points(run/'tensorboard')
    killed.close()
    board.close()
    assert ([(s, round(v, 3)) for s, v in scalars['r_t']] == [(4000, .1), (8000, .1), (12000, .2), (16000, .2)]
            and images == [4000, 8000, 12000, 16000])
    assert 'kimg' not in scalars and 'step' not in scalars


def test_nothing_is_imported_before_it_is_needed():
    text = Path(watch.__file__).read_text(encoding='utf-8')
    assert not [l for l in text.splitlines() if l.startswith(('import', 'from'))
                and any(n in l for n in ('matplotlib', 'seaborn', 'tensorboard', 'IPython', '.loop'))]


# files that are no pictures
def chunks(*parts):
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
                                           for k, d in (*parts, (b'IEND', b'')))

def head(wide, high): return b'IHDR', struct.pack('>IIBBBBB', wide, high, 8, 2, 0, 0, 0)

ODD = dict(bomb=chunks(head(30_000, 30_000)), warned=chunks(head(10_000, 10_000)), large=chunks(head(9000, 9000)),
           text=chunks(head(16, 16), (b'zTXt', b'x\0\0' + zlib.compress(bytes(10**8)))),
           cut=chunks(head(16, 16), (b'IDAT', zlib.compress(bytes(9)))), short=chunks(head(16, 16), (b'PLTE', b'x')),
           none=b'x', empty=b'')

@pytest.mark.parametrize('kind', ODD)
def test_pictures_that_are_none_say_so(run, kind):
    (run/'fakes-000024.png').write_bytes(ODD[kind])
    for f in (grid_at, watch.page, tensorboard, lambda o: strip(o, size=SIZE), lambda o: live(o, once=True)):
        with pytest.raises(ValueError, match='fakes-000024.png cannot be read as a picture .*; remove it or copy it '
                                             'again'):
            f(run)

@pytest.mark.parametrize('value', ['inf', 'nan', '-16', '1e400', 'x', '0'])
def test_odd_words_in_a_picture(run, value):
    draw(run/'fakes-000024.png', value, value)
    assert list(pictures(run))[-1] == (24 if value != '0' else 20)
    with pytest.raises(ValueError, match='does not say how large one image is'): tiles(run/'fakes-000024.png')

@pytest.mark.parametrize('value', ['1e999', '-16', '9'*4000, '['*10_000])
def test_an_odd_checkpoint_beside_a_picture(run, value):
    draw(run/'fakes-000024.png')
    header = json.dumps({'__metadata__': {'networks': '{"G_ema": {"kwargs": {"img_resolution": '
                                                      '%s}}}' % value}}).encode()
    (run/'network-000024.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)
    with pytest.raises(ValueError, match='does not say how large|accepted: a number that divides both') as e:
        tiles(run/'fakes-000024.png')
    assert len(str(e.value)) < 500
