"The systems of the survey: the same bytes for the same seed, killed or not; known answers; files that mean harm; what is missing"
import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
import torch

from cleftgan_nb.checkpoints import find
from cleftgan_nb.checkpoints.store import write_tensors
from cleftgan_nb.data.portrait import phantom
from cleftgan_nb.survey import fit as fitting
from cleftgan_nb.survey.course import new_system
from cleftgan_nb.survey.fit import Images, batch_at, fit, load, read
from cleftgan_nb.survey.systems import Generator, Mean, Translator

NOTEBOOKS = Path(__file__).parent.parent/'nbs/survey'
TINY = dict(Mean={}, DCGAN=dict(width=4, latent=8), WGAN=dict(width=4, latent=8), VAE=dict(width=4, latent=8),
            AGGrGAN=dict(width=4, latent=8, style_steps=1), DDPM=dict(width=16, steps=2), LDM=dict(width=16, coder=16, steps=2),
            Control=dict(width=16, steps=2), Pix2Pix=dict(width=8), CycleGAN=dict(width=8),
            StyleGAN2=dict(channel_base=256, channel_max=16))
MONAI = 'VAE', 'DDPM', 'LDM', 'Control', 'Pix2Pix', 'CycleGAN'


def tiny(name, seed=0):
    if name in MONAI: pytest.importorskip('monai', reason="pip install '.[survey]'")
    return new_system(name, seed, size=32, **TINY[name])


def faces(n=8, sets=1, size=32):
    rng = np.random.default_rng(0)
    return Images(*rng.integers(0, 256, (sets, n, size, size, 3), dtype=np.uint8))


# the same bytes
@pytest.mark.parametrize('name', TINY)
def test_equal_seeds_give_equal_bytes(name, tmp_path, monkeypatch):
    "Twice, and a third time, stopped in the middle and resumed; WGAN's generator takes its first step after that"
    def train(folder):
        system = tiny(name, 3)
        return fit(system, faces(sets=system.sets), tmp_path/folder, kimg=.024, batch=4, seed=3, progress=False)
    paths, step = [train('a'), train('b')], fitting.Run.step
    def falls(run, images, batch, part):
        if run.nimg == 12: raise OSError('the power is gone')
        return step(run, images, batch, part)
    monkeypatch.setattr(fitting, 'EVERY', -1.)
    with monkeypatch.context() as m:
        m.setattr(fitting.Run, 'step', falls)
        with pytest.raises(OSError, match='the power is gone'): train('c')
    assert read(tmp_path/'c/state.safetensors')[1]['progress']['nimg'] == 12
    paths.append(train('c'))
    assert len({path.read_bytes() for path in paths}) == 1
    one, other = load(paths[0]), load(paths[1])
    assert isinstance(one, Generator) or isinstance(one, Translator)
    if isinstance(one, Generator):
        drawn = one.sample(3, 5)
        assert drawn.shape == (3, 32, 32, 3) and (drawn == other.sample(3, 5)).all() and (drawn[:2] == one.sample(2, 5)).mean() > .99
        assert (drawn != one.sample(3, 6)).any()
        with pytest.raises(ValueError, match=f'{name} takes no labels; leave it out'): one.sample(2, label=[1.])
    if isinstance(one, Translator):
        images = faces().sets[0]
        assert (one.translate(images) == other.translate(images)).all()


# Of each child, only the signal 9 is sent; all are forked from one process that has imported PyTorch but computed nothing
KILLER = '''
import os, signal, sys, time, numpy as np, torch, torch._dynamo   # which optimizers would import in every child
from pathlib import Path
torch.set_num_threads(1)
from cleftgan_nb.survey import fit as f, aggrgan
from cleftgan_nb.survey.course import new_system
images = f.Images(*np.random.default_rng(0).integers(0, 256, (1, 8, 32, 32, 3), dtype=np.uint8))

def train(name, folder, every):
    f.EVERY = every
    f.fit(new_system(name, size=32, width=4, latent=8), images, folder, kimg=.4, batch=8, progress=False)

def forked(*args):
    child = os.fork()
    if child: return child
    train(*args)
    os._exit(0)

def moved(state, before): return state.exists() and state.stat().st_mtime_ns != before

for name in ('DCGAN', 'AGGrGAN'):
    folder, kills = Path(name), 0
    state = folder/'state.safetensors'
    while kills < 2:
        before = state.stat().st_mtime_ns if state.exists() else None
        child = forked(name, folder, .03)
        while not moved(state, before): time.sleep(.002)
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]): kills += 1
        else: break
    done = f.read(state)[1]['progress']['nimg']
    for to in (folder, Path(name + '-whole')): assert os.waitpid(forked(name, to, 60.), 0)[1] == 0
    print(name, kills, 0 < done < 400)
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    "Killed twice by signal 9; AGGrGAN has the most to restore: three GANs, their turn and a style"
    done = subprocess.run([sys.executable, '-c', KILLER], cwd=tmp_path, text=True, capture_output=True,
                          env=os.environ | dict(PYTHONPATH=str(NOTEBOOKS.parent.parent)))
    assert done.returncode == 0 and done.stdout.split('\n')[:2] == ['DCGAN 2 True', 'AGGrGAN 2 True'], done.stdout + done.stderr
    for name in ('DCGAN', 'AGGrGAN'):
        killed, whole = (tmp_path/folder/'network.safetensors' for folder in (name, f'{name}-whole'))
        assert killed.read_bytes() == whole.read_bytes()


def test_a_bad_state_is_never_saved_over_a_good_one(tmp_path):
    class Broken(Mean):
        def learn(self, batch, optimizers, part):
            return super().learn(batch, optimizers, part) | (dict(mean=float('nan')) if part > .5 else {})
    with pytest.raises(Exception, match='mean is not a number after'):
        fit(Broken(32), faces(), tmp_path/'run', kimg=.1, batch=4, progress=False)
    assert not (tmp_path/'run/state.safetensors').exists()


def test_time_is_what_the_core_computes(tmp_path, monkeypatch):
    "Half a second spent asleep costs nothing"
    learn = Mean.learn
    def slowly(*args):
        time.sleep(.02)
        return learn(*args)
    monkeypatch.setattr(Mean, 'learn', slowly)
    fit(Mean(32), faces(), tmp_path/'run', kimg=.1, batch=4, progress=False)
    assert read(tmp_path/'run/state.safetensors')[1]['progress']['seconds'] < .02*25


# known answers; those of the losses stand in the notebooks
def away(a, b): return np.abs(a.astype(float) - b).mean()


def taught(system, steps, *sets, batch=8):
    "Train without files"
    images, optimizers = Images(*sets, mirror=False), system.optimizers()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for i in range(steps): system.train().learn(batch_at(images, 0, batch*i, batch), optimizers, 0.)
    return system.eval()


def test_an_autoencoder_beats_the_mean_image():
    pytest.importorskip('monai', reason="pip install '.[survey]'")
    people = np.stack([phantom(seed=i, severity=.5, laterality='left', size=32)[0] for i in range(8)])
    system = taught(new_system('VAE', size=32, width=8, latent=16), 150, people)
    assert away(system.translate(people), people) < .7*away(people.mean(0), people)


def test_equal_kinds_of_images_stay_as_they_are():
    "A CycleGAN between two equal sets changes little; one that began by changing images undoes it"
    images = faces(4).sets[0]//2 + 64
    assert away(taught(tiny('CycleGAN'), 6, images, images, batch=4).translate(images), images) < 8
    system = tiny('CycleGAN')
    for net in (system.there, system.back): torch.nn.init.constant_(net.final_conv.bias, .5)
    before = away(system.eval().translate(images), images)
    assert away(taught(system, 24, images, images, batch=4).translate(images), images) < before


# files
@pytest.mark.parametrize('words, said', [
    (dict(system='os.system'), "no system is called 'os.system'"),
    (dict(system=['Mean']), r"no system is called \['Mean'\]; accepted: AGGrGAN"),
    (dict(settings=dict(size=64, width=10**6)), 'numbers out of range'),
    (dict(settings=dict(size=64, wings=2)), 'cannot be built'),
    (dict(settings=[64]), 'numbers out of range'),
    (dict(settings=dict(size=8)), 'size=8; accepted by Mean: from 16'),
    (dict(system='DCGAN', settings=dict(size=32, width=8)), 'network.safetensors does not fit: .* missing'),
    (dict(system='WGAN', settings=dict(size=512, width=4096, latent=4096)), 'does not fit: .* missing')])
def test_files_that_mean_harm(words, said, tmp_path):
    "The last one would take a terabyte"
    path = fit(Mean(32), faces(), tmp_path/'run', kimg=.016, batch=4, progress=False)
    tensors, _ = read(path)
    meta = dict(progress=dict(nimg=1), about={}, seed=0, system='Mean', settings=dict(size=32)) | words
    write_tensors(path, tensors, dict(format='pt', survey='1', license='CC0-1.0') | {k: json.dumps(v) for k, v in meta.items()})
    with pytest.raises(ValueError, match=said): load(path)


def test_a_checkpoint_of_stylegan_is_no_system():
    with pytest.raises(ValueError, match='accepted: a file that `fit` wrote'): load(find('phantom-64-stylegan2'))


# what is missing or wrong
@pytest.mark.parametrize('name', MONAI)
def test_what_is_not_installed_is_named(name, monkeypatch):
    for m in [m for m in sys.modules if m == 'monai' or m.startswith('monai.')]: monkeypatch.delitem(sys.modules, m)
    monkeypatch.setitem(sys.modules, 'monai', None)
    with pytest.raises(ImportError, match=r"comes from MONAI.*pip install 'cleftgan_nb\[survey\]'"): new_system(name, size=32)


@pytest.mark.parametrize('name, size', [('Mean', 8), ('Mean', 1024), ('DDPM', 20), ('Control', 20), ('LDM', 24), ('Pix2Pix', 16),
                                        ('CycleGAN', 40)])
def test_sizes_that_networks_cannot_halve(name, size):
    with pytest.raises(ValueError, match=f'size={size}; accepted by {name}: from (16|32) to 512 pixels'): new_system(name, size=size)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r'learns from 1 set\(s\) of 32 pixels; the images are 1 set\(s\) of 16'):
        fit(Mean(32), faces(size=16), tmp_path/'x', kimg=.1)
    with pytest.raises(ValueError, match=r'1 set\(s\) of 32 pixels; the images are 2'): fit(Mean(32), faces(sets=2), tmp_path/'x', kimg=.1)
    with pytest.raises(ValueError, match='got 1 images of shape .* accepted: at least 2'): faces(n=1)
    with pytest.raises(ValueError, match='minutes and kimg are missing'): fit(Mean(32), faces(), tmp_path/'x')
    with pytest.raises(ValueError, match='size=24; accepted: powers of two'): new_system('DCGAN', size=24)
    with pytest.raises(ValueError, match="no system is called 'GAN'; accepted: AGGrGAN, Control"): new_system('GAN')
    assert not (tmp_path/'x').exists()


# articles
def tagged():
    "Find the articles that take parameters: name → their code, and the place of the cell"
    for path in sorted(NOTEBOOKS.glob('*.ipynb')):
        cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code']
        yield from ((path.stem, cells, i) for i, c in enumerate(cells) if 'parameters' in c.metadata.get('tags', []))


@pytest.mark.parametrize('name, cells, at', list(tagged()), ids=lambda v: v if isinstance(v, str) else '')
def test_an_article_checks_its_parameters(name, cells, at):
    named = {o.targets[0].id for o in ast.parse(cells[at].source).body}
    calls = [o for o in ast.walk(ast.parse(cells[at + 1].source)) if isinstance(o, ast.Call)]
    assert named == {k.arg for o in calls if getattr(o.func, 'id', '') == 'check_parameters' for k in o.keywords}


@pytest.mark.parametrize('given, told', [(dict(minuts=2), 'minuts: this notebook has no such parameter (did you mean minutes?)')])
def test_an_article_refuses(given, told, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(NOTEBOOKS/'12_cycle.ipynb', tmp_path/'run.ipynb', dict(folder=str(tmp_path)) | given,
                                   progress_bar=False, cwd=tmp_path)
    assert told in str(caught.value.evalue)
    assert not list(tmp_path.glob('*.csv'))


def test_loading_warns_of_nothing(tmp_path):
    "StyleGAN2 holds a frozen network, which a system on paper cannot fill"
    import warnings
    system = new_system('StyleGAN2', size=32, channel_base=256, channel_max=16)
    path = fit(system, faces(), tmp_path/'run', kimg=.004, batch=4, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load(path).sample(2).shape == (2, 32, 32, 3)


# data
@pytest.fixture
def clefts(tmp_path):
    "Eight images of 32 pixels, which nobody else may read"
    from cleftgan_nb.data.datasets import write_dataset
    rows = ((image, None, {}) for image in faces().sets[0])
    path = write_dataset(tmp_path/'clefts.zip', rows, about=dict(kind='noise', license='LicenseRef-clinic'))
    path.chmod(0o600)
    return path


def test_what_learned_from_private_images_is_private(clefts, tmp_path):
    from cleftgan_nb.survey.course import draw_dataset, train_system
    network = train_system('Mean', [clefts], tmp_path/'run', kimg=.016, progress=False)
    drawn = draw_dataset(network, tmp_path/'run/images.zip', 2)
    assert [o.name for o in (network.parent, *network.parent.iterdir()) if o.stat().st_mode & 0o077] == []
    assert drawn.exists()


def test_weights_remember_what_they_started_from(clefts, tmp_path):
    base = fit(Mean(32), faces(), tmp_path/'base', kimg=.016, about=dict(data='faces', license='CC0-1.0'), progress=False)
    more = dict(kimg=.016, resume_from=base, about=dict(data='clefts', license='LicenseRef-clinic'), progress=False)
    words = load(fit(Mean(32), faces(), tmp_path/'tuned', **more)).words
    assert words['license'] == 'CC0-1.0 AND LicenseRef-clinic'
    assert [o['data'] for o in words['about']['data']] == ['faces', 'clefts']
    fit(Mean(32), faces(), tmp_path/'tuned', **more | dict(kimg=.032))
    with pytest.raises(ValueError, match='learned from other images, or started elsewhere'):
        fit(Mean(32), faces(), tmp_path/'tuned', **more | dict(about=dict(data='others')))
    with pytest.raises(ValueError, match='state.safetensors is the state of a run'):
        fit(Mean(32), faces(), tmp_path/'new', kimg=.016, resume_from=tmp_path/'tuned/state.safetensors', progress=False)


def test_the_command(clefts, tmp_path, capsys):
    from cleftgan_nb.cli import main
    run = ['survey', 'DCGAN', str(clefts), '--out', str(tmp_path/'run'), '--set', 'width=4', '--set', 'latent=8']
    assert main([*run, '--kimg', '.016', '--images', '3']) == 0 and main([*run, '--kimg', '.032']) == 0
    assert load(tmp_path/'run/network.safetensors').words['progress'] == dict(nimg=32)
    assert not (tmp_path/'run/images.png').stat().st_mode & 0o077 and (tmp_path/'run/images.zip').exists()
    for wrong, said in ((['--set', 'wings=2'], 'DCGAN has no such setting'), (['--kimg', '-1'], 'kimg=-1'),
                        (['--set', 'width=8', '--kimg', '1'], 'another folder')):
        assert main([*run, *wrong]) == 2 and said in capsys.readouterr().err
    assert main(['survey', 'CycleGAN', str(clefts), str(clefts), '--out', str(tmp_path/'x'), '--images', '2']) == 2
    assert 'translates images and draws none' in capsys.readouterr().err and not (tmp_path/'x').exists()
