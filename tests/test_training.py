"Training: an interrupted run ends as one that was not, two processes as one, and what goes wrong says so"
import dataclasses, json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from cleftgan_nb import checkpoints
from cleftgan_nb.data import cohort
from cleftgan_nb.training.config import Config
from cleftgan_nb.training.loop import Stopped, train

SMALL = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8, num_layers=4, D_kwargs=dict(channel_max=8))
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def faces(tmp_path_factory): return cohort('normal', 24, tmp_path_factory.mktemp('data')/'faces.zip', size=16, workers=1, progress=False)


def config(faces, out, **more):
    return Config(**dict(data=str(faces), out=str(out), batch=8, kimg=.32, tick_kimg=.08, keep_kimg=.16, dtype='float32', settings=SMALL, augment_p=.3) | more)


def files(out): return {p.name: p.read_bytes() for p in sorted(Path(out).iterdir()) if p.name not in ('time.jsonl', 'config.yaml')}


def same(a, b):
    "Equal bytes, but for the folder's name in metadata"
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith('.safetensors'): continue
        assert a[name] == b[name], name


def tensors(out): return checkpoints.read_tensors(Path(out)/'state.safetensors')[0]


@pytest.mark.parametrize('network', ['stylegan3-t', 'stylegan2'])
def test_a_killed_run_ends_like_one_that_was_not(faces, tmp_path, network):
    settings = SMALL if network == 'stylegan3-t' else {k: v for k, v in SMALL.items() if k != 'num_layers'}
    whole = train(config(faces, tmp_path/'whole', network=network, settings=settings), progress=False)
    c = config(faces, tmp_path/'killed', network=network, settings=settings)
    (tmp_path/'go.py').write_text(f'from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop import train\ntrain({c!r}, progress=False)')
    rng, kills = random.Random(0), 0
    for _ in range(12):
        run = subprocess.Popen([sys.executable, tmp_path/'go.py'])
        try: run.wait(rng.uniform(2.5, 6)); break
        except subprocess.TimeoutExpired: run.send_signal(signal.SIGKILL); run.wait(); kills += 1
    else: assert subprocess.run([sys.executable, tmp_path/'go.py']).returncode == 0
    assert kills
    a, b = tensors(whole), tensors(tmp_path/'killed')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    same(files(whole), files(tmp_path/'killed'))


def test_two_processes_are_one(faces, tmp_path):
    one = train(config(faces, tmp_path/'one', kimg=.032, tick_kimg=.032, augment='none'), progress=False)
    c = config(faces, tmp_path/'two', kimg=.032, tick_kimg=.032, augment='none')
    (tmp_path/'go.py').write_text(f'from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop import train\ntrain({c!r}, progress=False)')
    env = os.environ | dict(OMP_NUM_THREADS='1')
    subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-port', '29611', tmp_path/'go.py'], check=True, env=env, timeout=300)
    a, b = tensors(one), tensors(tmp_path/'two')
    for k in a:
        if k.startswith(('G/', 'D/', 'G_ema/')) and a[k].is_floating_point(): torch.testing.assert_close(a[k], b[k], rtol=2e-2, atol=2e-4, msg=k)
    x, y = (json.loads((Path(o)/'log.jsonl').read_text().splitlines()[-1]) for o in (one, tmp_path/'two'))
    for k in x: assert abs(x[k] - y[k]) <= 1e-3*max(abs(x[k]), 1), (k, x[k], y[k])


def test_transfer_learning_starts_from_a_checkpoint(faces, tmp_path):
    first = train(config(faces, tmp_path/'first'), progress=False)
    second = train(config(faces, tmp_path/'second', kimg=.008, tick_kimg=.008, resume_from=str(next(first.glob('network-*'))), freeze_d=2, settings={}), progress=False)
    a, b = tensors(first), tensors(second)
    assert (second/'config.yaml').read_text().count('ada_kimg: 100.0') == 1
    frozen = [k for k in a if k.startswith('D/') and a[k].is_floating_point() and torch.equal(a[k], b[k])]
    assert any('fromrgb' in k for k in frozen) and len(frozen) < sum(k.startswith('D/') for k in a)


def test_ctrl_c_stops_after_the_step_with_a_state(faces, tmp_path):
    c = config(faces, tmp_path/'run', kimg=100.)
    (tmp_path/'go.py').write_text(f'from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop import train\ntrain({c!r}, progress=False)')
    run = subprocess.Popen([sys.executable, tmp_path/'go.py'])
    deadline = time.time() + 60
    while not (tmp_path/'run/state.safetensors').exists() and time.time() < deadline: time.sleep(.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 0
    assert json.loads(checkpoints.read_tensors(tmp_path/'run/state.safetensors')[1]['run'])['nimg'] > 0


def test_a_run_that_breaks_keeps_its_last_state(faces, tmp_path, monkeypatch):
    from cleftgan_nb.training import loop
    out = train(config(faces, tmp_path/'run', kimg=.08), progress=False)
    before = (out/'state.safetensors').read_bytes()
    monkeypatch.setattr(loop.losses, 'generator_loss', lambda logits: logits.mean()*float('nan'))
    with pytest.raises(Stopped, match='last good state'): train(config(faces, tmp_path/'run', kimg=.24), progress=False)
    assert (out/'state.safetensors').read_bytes() == before


@pytest.mark.parametrize('more, word', [(dict(data='nowhere.zip'), 'nowhere'), (dict(resume_from='nothing.safetensors'), 'nothing'), (dict(batch=0), 'batch=0'), (dict(freeze_d=60), 'freeze_d')])
def test_wrong_configurations_say_so(faces, tmp_path, more, word):
    with pytest.raises((ValueError, FileNotFoundError), match=word): train(config(faces, tmp_path/'run', **more), progress=False)
    assert not (tmp_path/'run/state.safetensors').exists()


def test_another_configuration_does_not_go_on(faces, tmp_path):
    train(config(faces, tmp_path/'run', kimg=.08), progress=False)
    with pytest.raises(ValueError, match='other settings'): train(config(faces, tmp_path/'run', kimg=.16, d_lr=.01), progress=False)
