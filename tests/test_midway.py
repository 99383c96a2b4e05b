"A run measures its averaged generator now and then, keeps the best, and learns the same"
import functools, json
from pathlib import Path
import numpy as np, pytest, torch
from cleftgan_nb import checkpoints, cli, midway
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.metrics import table
from cleftgan_nb.metrics.score import Score
from cleftgan_nb.training.config import Config
from cleftgan_nb.training.loop import train

SMALL = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:r_t is')]


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = ((rng.integers(0, 255, (16, 16, 3), np.uint8), None, {}) for _ in range(16))
    return write_dataset(tmp_path_factory.mktemp('data')/'faces.zip', rows, about=dict(kind='x', license='CC0-1.0'))


def config(faces, out, **more):
    return Config(**dict(data=str(faces), out=str(out), network='stylegan2', batch=4, kimg=.024, tick_kimg=.004,
                         settings=SMALL, augment='none', dtype='float32') | more)


def log(out): return [json.loads(line) for line in (Path(out)/'log.jsonl').read_text().splitlines()]


def test_the_best_is_kept_and_nothing_else_changes(faces, tmp_path):
    "It goes on to the bit between two measurements, and knows then what was best"
    values = {.008: 3., .016: 1., .024: 2.}
    def measure(G, data):
        assert len(data) == 16                                # no mirrored ones
        return Score('fd_x', values[round(.008*next(count), 3)])
    count = iter(range(1, 4))
    once = train(config(faces, tmp_path/'once', measure_kimg=.008), progress=False, measure=measure)
    count = iter(range(1, 4))
    for kimg in (.012, .024):
        twice = train(config(faces, tmp_path/'twice', measure_kimg=.008, kimg=kimg), progress=False, measure=measure)
    plain = train(config(faces, tmp_path/'plain'), progress=False)
    assert [row.pop('fd_x', None) for row in log(once)] == [None, 3., None, 1., None, 2.]
    assert [{k: v for k, v in row.items() if k != 'fd_x'} for row in log(once)] == log(plain)
    a, b, c = (checkpoints.read_tensors(o/'state.safetensors') for o in (once, twice, plain))
    for other in (b, c): assert a[0].keys() == other[0].keys() and all(torch.equal(a[0][k], other[0][k]) for k in a[0])
    assert json.loads(a[1]['run'])['best'] == json.loads(b[1]['run'])['best'] == dict(name='fd_x', value=1., kimg=.016)
    assert 'best' not in json.loads(c[1]['run']) and not (plain/'network-best.safetensors').exists()
    assert (once/'log.jsonl').read_bytes() == (twice/'log.jsonl').read_bytes()
    x, y = (checkpoints.load(o/'network-best.safetensors') for o in (once, twice))
    assert x.meta['progress'] == y.meta['progress'] == dict(kimg=.016, augment_p=0., fd_x=1.)
    assert all(torch.equal(v, y.G_ema.state_dict()[k]) for k, v in x.G_ema.state_dict().items())
    events = b''.join(p.read_bytes() for p in (once/'tensorboard').iterdir())
    assert b'fd_x' in events


def test_the_number_is_that_of_the_measures(faces, tmp_path, monkeypatch, capsys):
    "From the command line; the judge is in the name"
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(midway, 'measure_for', functools.partial(midway.measure_for, n=16))
    monkeypatch.chdir(tmp_path)
    sets = 'tick_kimg=0.004', 'measure_kimg=0.004', 'dtype=float32', 'settings.channel_base=256', 'settings.channel_max=8'
    asked = ['--out', 'run', '--network', 'stylegan2', '--batch', '4', '--kimg', '.004']
    assert cli.main(['train', str(faces), *asked, *(o for pair in sets for o in ('--set', pair))]) == 0
    assert 'the best in run/network-best.safetensors' in capsys.readouterr().out
    best = checkpoints.load('run/network-best.safetensors')
    scores = {s.name: float(s) for s in table.measure(best.G_ema, ImageFolderDataset(faces), parts=['distances'], n=16,
                                                      judges=['efficientnet-lite0'], progress=False)}
    assert log('run')[0]['fd_efficientnet_lite0'] == pytest.approx(scores['fd_efficientnet_lite0'], rel=1e-6)


def test_nothing_to_measure_with(faces, tmp_path):
    with pytest.raises(ValueError, match='measure_kimg=20, but there is no measure; accepted: train.config, measure='):
        train(config(faces, tmp_path/'run', measure_kimg=20.))
    assert not (tmp_path/'run').exists() and midway.measure_for(config(faces, 'run')) is None
