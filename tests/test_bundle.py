"""MONAI bundles: MONAI runs them and draws our images, nothing in a checkpoint's words is evaluated, and a folder
appears whole or not at all; a diffusion model's needs nothing of ours"""
import json, os, pickle, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import bundle, checkpoints, cli, networks
from cleftgan_nb.checkpoints.labels import label_of
from cleftgan_nb.data.cohorts import LABELS
from cleftgan_nb.files import sha256
from cleftgan_nb.pictures import sample_one
from cleftgan_nb.survey import fit, zoo
from cleftgan_nb.survey.course import new_system

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "$open('executed', 'w')"
ABOUT = dict(license='CC0-1.0', progress={}, provenance=dict(data='faces.zip'))


def save(path, labels=None, c_dim=0, name='stylegan3-t', **about):
    "Save a generator whose labels matter"
    torch.manual_seed(1)
    more = dict(num_layers=4) if name == 'stylegan3-t' else {}
    G, _ = networks.build(name, 16, channel_base=256, channel_max=8, z_dim=8, w_dim=8, **more)
    if c_dim:
        G = networks.with_labels(G, c_dim)
        torch.nn.init.normal_(G.mapping.label.weight)
    return checkpoints.save(path, G_ema=G, labels=labels, **ABOUT | about)


@pytest.fixture(scope='module')
def plain(tmp_path_factory): return save(tmp_path_factory.mktemp('plain')/'plain.safetensors')


@pytest.fixture(scope='module')
def labeled(tmp_path_factory):
    "Save a network that takes labels, and whose words mean harm"
    told = dict(license=HOSTILE, provenance=dict(data='%configs/inference.json', untrained=True))
    return save(tmp_path_factory.mktemp('labeled')/'labeled.safetensors', LABELS, len(LABELS), **told)


def read(folder, name='inference'): return json.loads((folder/'configs'/f'{name}.json').read_text(encoding='utf-8'))


def everything(folder): return {str(o.relative_to(folder)): o.read_bytes() for o in folder.rglob('*') if o.is_file()}


@pytest.fixture(scope='module')
def diffusion(tmp_path_factory):
    "Save a diffusion model that draws more than noise, and whose words mean harm"
    pytest.importorskip('monai', reason="pip install '.[survey]'")
    system = new_system('DDPM', 1, size=16, width=16, steps=3, dtype='float32')
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for p in system.parameters(): torch.nn.init.normal_(p, 0, .1)
    about = dict(license=HOSTILE, data=[dict(data='%configs/inference.json'), dict(data='faces.zip')])
    return fit.save(fit.Run(system, 1, 2.), tmp_path_factory.mktemp('ddpm')/'ddpm.safetensors', about)


# In a process of its own, from the bundle's root, without a network. As MONAI takes its time to be imported, `python
# -m monai.bundle` runs four times in one process. A diffusion model comes first, while there is no cleftgan_nb.
DRIVER = '''
import os, runpy, socket, sys, numpy, torch
def refuse(*_, **__): raise OSError('no network here')
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
def monai_bundle(*argv):
    sys.argv = ['monai.bundle', *argv]
    runpy.run_module('monai.bundle', run_name='__main__', alter_sys=True)
files = ['--config_file', 'configs/inference.json']
sys.modules['cleftgan_nb'], here = None, os.getcwd()
os.chdir('../diffusion')
monai_bundle('run', '--seed', '7', '--images', '2', *files)
from monai.bundle import verify_net_in_out
verify_net_in_out('network_def', 'configs/metadata.json', 'configs/inference.json', device='cpu',
                  extra_forward_args=dict(timesteps=torch.zeros(1)))
print('WITHOUT US', sys.modules.pop('cleftgan_nb') is None and not [m for m in sys.modules if m.startswith('cleftgan_nb')])
os.chdir(here)
monai_bundle('verify_net_in_out', 'network_def', '--meta_file', 'configs/metadata.json', '--device', 'cpu', *files)
monai_bundle('run', '--severity', '0.8', '--side', 'right', '--seeds', '[0,7]', '--truncation_psi', '.5', *files)
try: monai_bundle('run', '--severity', '2', *files)
except Exception as e:
    while e.__cause__: e = e.__cause__
    print('REFUSED', e)
from monai.bundle import ConfigParser, load
parser = ConfigParser()
parser.read_config('configs/inference.json')
parser.read_meta('configs/metadata.json')
print('LICENSE', parser.get_parsed_content('_meta_')['license'])
G = load('bundle', bundle_dir='..', workflow_type='inference', device='cpu')
z = torch.from_numpy(numpy.random.RandomState(3).randn(1, 8)).float()
numpy.save('../loaded.npy', G(z).numpy())
'''


@pytest.fixture(scope='module')
def driven(tmp_path_factory, labeled, diffusion):
    "Let MONAI run a bundle of each kind: their folder, and what was said"
    folder = tmp_path_factory.mktemp('driven')
    bundle.export(labeled, folder/'bundle')
    bundle.export(diffusion, folder/'diffusion')
    (folder/'driver.py').write_text(DRIVER)
    env = {k: v for k, v in os.environ.items() if k in ('PATH', 'OMP_NUM_THREADS', 'NUMBA_CACHE_DIR', 'SYSTEMROOT')}
    env |= dict(HOME=str(folder), PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, '-W', 'ignore', folder/'driver.py'], cwd=folder/'bundle', env=env, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_monai_runs_it(driven, labeled):
    "The images are ours, and nothing in the checkpoint's words is evaluated"
    folder, said = driven
    root = folder/'bundle'
    assert said.count('data shape of network is verified with no error') >= 2
    assert 'REFUSED severity=2' in said and f"LICENSE '{HOSTILE}" in said
    assert not list(folder.rglob('executed'))
    G = checkpoints.load(labeled).sampler
    for seed in (0, 7):
        with Image.open(root/'eval'/f'seed-{seed}.png') as image: drawn, words = np.array(image), image.text
        ours = sample_one(G, seed, .5, label_of(LABELS, .8, 'right'))
        assert np.abs(drawn.astype(int) - ours).max() <= 1 and drawn.std() > 0
        assert words['Source'] == 'synthetic' and 'untrained' in words['Title']
        assert json.loads(words['recipe'])['side'] == 'right'
    z = torch.from_numpy(np.random.RandomState(3).randn(1, 8)).float()
    expected = G(z, label_of(LABELS, .5, 'left')[None]).numpy()
    assert np.allclose(np.load(folder/'loaded.npy'), expected, atol=1e-5)


# a diffusion model
def test_monai_alone_runs_a_diffusion_model(driven, diffusion):
    folder, said = driven
    assert 'WITHOUT US True' in said and 'cleftgan' not in json.dumps(read(folder/'diffusion'))
    ours = fit.load(diffusion).sample(2, seed=7)
    assert ours.std() > 20 and np.abs(ours[0].astype(int) - ours[1]).mean() > 5
    for i, wanted in enumerate(ours):
        with Image.open(folder/f'diffusion/eval/seed-7-image-{i}.png') as image:
            assert np.abs(np.array(image).astype(int) - wanted).max() <= 1 and image.text['Source'] == 'synthetic'


def test_what_a_diffusion_model_says(tmp_path, diffusion, monkeypatch, capsys):
    "The command writes it; nothing that MONAI evaluates is a stranger's word"
    assert cli.main(['export', str(diffusion), str(tmp_path/'b')]) == 0
    root, said = tmp_path/'b', read(tmp_path/'b', 'metadata')
    assert everything(root).keys() == {'configs/metadata.json', 'configs/inference.json', 'models/model.pt', 'docs/README.md', 'LICENSE'}
    assert everything(root) == everything(bundle.export(diffusion, tmp_path/'again'))
    assert said['license'] == f"'{HOSTILE}" and said['data_source'].startswith("'%configs") and 'faces.zip' in said['data_source']
    assert said['monai_version'] == bundle.MONAI and {'einops', 'fire'} <= said['required_packages_version'].keys()
    assert list(said['network_data_format']['inputs']) == ['image', 'timesteps']
    assert all(o.count('import ') == 1 and ',' not in o for o in read(root)['imports']) and 'ignite' not in str(read(root))
    readme = (root/'docs'/'README.md').read_text()
    assert 'run only bundles that you trust' in readme and '--seed 1 --images 4' in readme and 'cleftgan' not in readme
    assert torch.load(root/'models'/'model.pt', weights_only=True).keys() == fit.load(diffusion).net.state_dict().keys()


def test_a_diffusion_model_comes_back(tmp_path, diffusion):
    back, state = zoo.load_bundle(bundle.export(diffusion, tmp_path/'b')), torch.get_rng_state()
    assert (back.sample(2, 5) == fit.load(diffusion).sample(2, 5)).all() and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize('change, says', [
    (dict(size=17), 'size=17; accepted by DDPM'), (dict(size=2**30), 'size=1073741824; accepted: a whole number'),
    (dict(size=True), 'size=True'), (dict(steps=0), 'steps=0; accepted'), (dict(steps='$exit()'), 'steps='),
    (dict(network_def=HOSTILE), 'width=None; accepted'), (dict(network_def=dict(channels=[10**9])), 'width=1000000000; accepted'),
    (dict(network_def=dict(channels=[24])), 'width=24; accepted: multiples of 16'),
    (dict(network_def=dict(channels=[16], _target_='os.system')), "network_def has _target_='os.system'; accepted: 'Diff"),
    (dict(network_def='more'), 'network_def has dropout_cattn=0.5; accepted: None'),
    (dict(network_def='wide'), r'model.pt does not fit: of 2\d\d tensors .* another'),
    (dict(scheduler=None), 'scheduler has _target_=None; accepted'),
    (b'[1]', 'inference.json cannot be read: a list; accepted: an object'), (b'{', 'cannot be read'), (b'\xff', 'cannot be read'),
    (b'['*10**5, 'cannot be read'), (b' '*(2**20 + 1), 'accepted: up to 1048576')])
def test_bundles_that_are_not_read_back(tmp_path, diffusion, change, says):
    "Nothing in them is evaluated, and nothing large is built"
    root = bundle.export(diffusion, tmp_path/'b')
    path, net = root/'configs'/'inference.json', read(root)['network_def']
    if isinstance(change, dict):
        if change.get('network_def') == 'more': change = dict(network_def=net | dict(dropout_cattn=.5))
        if change.get('network_def') == 'wide': change = dict(network_def=net | dict(channels=[512, 768, 1024, 1024]))
        change = json.dumps(read(root) | change).encode()
    path.write_bytes(change)
    with pytest.raises(ValueError, match=says): zoo.load_bundle(root)
    assert not list(tmp_path.rglob('executed'))


def test_halves_of_a_bundle(tmp_path, diffusion):
    for name in ('configs/inference.json', 'models/model.pt'):
        root = bundle.export(diffusion, tmp_path/name[:3])
        (root/name).unlink()
        with pytest.raises(FileNotFoundError, match=f'no {name} in .*; accepted: the folder of a MONAI bundle'): zoo.load_bundle(root)


def test_other_systems_are_refused_by_name(tmp_path):
    path = fit.save(fit.Run(new_system('DCGAN', size=16, width=4, latent=8), 0, 2.), tmp_path/'x.safetensors', {})
    with pytest.raises(ValueError, match='x.safetensors holds DCGAN, a system of the survey; accepted: its DDPM'):
        bundle.export(path, tmp_path/'b')
    assert not (tmp_path/'b').exists()


# what is in it
def test_it_says_what_monai_asks(tmp_path, plain):
    root = bundle.export(plain, tmp_path/'b')
    assert set(everything(root)) == {'configs/metadata.json', 'configs/inference.json', 'models/model.pt',
                                     'docs/README.md', 'LICENSE'}
    said, runs = read(root, 'metadata'), read(root)
    assert said['network_data_format']['inputs']['image'].items() >= dict(num_channels=8, spatial_shape=[]).items()
    assert said['network_data_format']['outputs']['pred'].items() >= dict(num_channels=3, spatial_shape=[16, 16]).items()
    assert said['license'] == 'CC0-1.0' and 'faces.zip' in said['data_source'] and 'diagnosis' in said['intended_use']
    assert all(o.count(' import ') == 1 and ',' not in o for o in runs['imports']) and 'ignite' not in str(runs)
    assert 'share it only with their consent' in (root/'docs'/'README.md').read_text()
    for name in ('docs/README.md', 'LICENSE'): assert 'CC0-1.0' in (root/name).read_text()
    assert 'run only bundles that you trust' in (root/'docs'/'README.md').read_text()
    assert str(tmp_path) not in str(everything(root)) and str(plain.parent) not in str(everything(root))


def test_images_are_ours(tmp_path):
    "Without MONAI, what `run` calls; StyleGAN2 has noise, which must be the constant one"
    net = save(tmp_path/'x.safetensors', name='stylegan2')
    root = bundle.export(net, tmp_path/'b')
    asks = {k: v for k, v in read(root)['network_def'].items() if k != '_target_'} | dict(severity=None, side=None, label=None)
    [path] = bundle.draw(bundle.network(**asks), root/'models'/'model.pt', root/'eval', 5, recipe=dict(title='x'))
    with Image.open(path) as image: assert (np.array(image) == sample_one(checkpoints.load(net).sampler, 5)).all()


def test_weights_are_plain_tensors(tmp_path, plain):
    root, state = bundle.export(plain, tmp_path/'b'), checkpoints.load(plain).sampler.state_dict()
    loaded = torch.load(root/'models'/'model.pt', weights_only=True)
    assert type(loaded) is dict and loaded.keys() == bundle.weights(root).keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())


def test_equal_bytes_twice(tmp_path, labeled):
    assert everything(bundle.export(labeled, tmp_path/'a')) == everything(bundle.export(labeled, tmp_path/'b'))


def test_a_card_comes_along(tmp_path):
    "A card that ships is found by the checksum in it; links that would lead nowhere become words"
    root, name = bundle.export('phantom-64-cleft-stylegan3-t', tmp_path/'b'), 'phantom-64-cleft-stylegan3-t'
    page, said = (root/'docs'/'README.md').read_text(), read(root, 'metadata')
    assert 'Model card: ' in page and '.md)' not in page and '../' not in page
    shown = {o for o in everything(root) if o.endswith('.png')}
    assert shown == {f'docs/{name}/{o}.png' for o in ('curves', 'progress', 'samples')}
    assert all(o.removeprefix('docs/') in page for o in shown)
    assert 'must not be used for: Recogni' in said['intended_use'] and '](' not in said['intended_use']


def test_a_card_of_your_own(tmp_path, plain):
    page = tmp_path/'my.md'
    page.write_text('# Mine\n[all](../secret.md) ![x](../secret.png) [site](https://example.org)\n'
                    f'<!-- generated: begin facts checkpoint={sha256(plain)} -->\n')
    shutil.copy(ROOT/'nbs/images/index_5_0.png', tmp_path/'secret.png')
    root = bundle.export(plain, tmp_path/'b', page)
    assert '# Mine\nall x [site](https://example.org)' in (root/'docs'/'README.md').read_text()
    page.write_text('# Of another\n')
    with pytest.raises(ValueError, match='my.md is not about this checkpoint'): bundle.export(plain, tmp_path/'c', page)
    with pytest.raises(ValueError, match='accepted: a card that exists'): bundle.export(plain, tmp_path/'c', 'no.md')
    assert not (tmp_path/'c').exists()


# labels
def test_labels_or_a_clear_answer(labeled, plain):
    known, blank = (networks.to_config(checkpoints.load(o).sampler) for o in (labeled, plain))
    for config, asked, says in [
            (known, dict(labels=LABELS), 'this network takes labels: give severity'),
            (known, dict(labels=LABELS, severity=2), 'severity=2; accepted: a number from 0'),
            (known, dict(labels=LABELS, severity=.5, side='top'), "side='top'; accepted: left, right, bilateral"),
            (known, dict(labels=LABELS, severity=.5, label=1), 'label=1; accepted: severity and side'),
            (known, dict(severity=.5), 'severity=0.5; accepted: label'),
            (known, dict(label=5), 'label=5; accepted: a whole number from 0 to 4'),
            (known, {}, 'label=None; accepted: a whole number from 0 to 4'),
            (blank, dict(severity=.5), 'severity=0.5; accepted: nothing, as this network takes no labels')]:
        with pytest.raises(ValueError, match=says): bundle.network(config, **asked)


def test_labels_without_meaning(tmp_path):
    net = save(tmp_path/'x.safetensors', c_dim=3)
    asks = read(bundle.export(net, tmp_path/'b'))
    assert (asks['severity'], asks['label'], asks['network_def']['labels']) == (None, 0, None)
    G, z = checkpoints.load(net).sampler, torch.randn(2, 8)
    asked = bundle.network(asks['network_def']['config'], label=2)
    asked.load_state_dict(G.state_dict())
    assert torch.equal(asked(z), G(z, torch.eye(3)[2].expand(2, -1)))


@pytest.mark.parametrize('name', [HOSTILE, '@run', '%configs/x.json', '_target_'])
def test_names_are_not_evaluated(tmp_path, name):
    net = save(tmp_path/'x.safetensors', labels=['lip_left', 'lip_right', name], c_dim=3)
    with pytest.raises(ValueError, match='which MONAI would evaluate'): bundle.export(net, tmp_path/'b')
    assert not (tmp_path/'b').exists()


# the folder
def test_whole_or_not_at_all(tmp_path, plain, monkeypatch):
    root = bundle.export(plain, tmp_path/'b')
    before = everything(root)
    def full(*_): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    for path, force in ((tmp_path/'new', False), (root, True)):
        with pytest.raises(OSError, match='No space'): bundle.export(plain, path, force=force)
    assert os.listdir(tmp_path) == ['b'] and everything(root) == before


def test_replaced_only_by_force(tmp_path, plain, labeled):
    root = bundle.export(plain, tmp_path/'b')
    with pytest.raises(ValueError, match='exists; give another name, or --force'): bundle.export(labeled, root)
    assert read(bundle.export(labeled, root, force=True))['side'] == 'left' and os.listdir(tmp_path) == ['b']
    (tmp_path/'home').mkdir()
    (tmp_path/'home'/'thesis.txt').write_text('years')
    for taken in (tmp_path/'home', tmp_path/'home'/'thesis.txt'):
        with pytest.raises(ValueError, match='is no bundle'): bundle.export(plain, taken, force=True)
    assert (tmp_path/'home'/'thesis.txt').read_text() == 'years'


@pytest.mark.skipif(os.name == 'nt', reason='permissions of Unix')
def test_it_is_as_private_as_the_checkpoint(tmp_path, plain):
    shutil.copy(plain, tmp_path/'mine.safetensors')
    os.chmod(tmp_path/'mine.safetensors', 0o600)
    root = bundle.export(tmp_path/'mine.safetensors', tmp_path/'b')
    assert not any(o.stat().st_mode & 0o077 for o in (root, *root.rglob('*')))


# someone else's
def test_weights_of_a_strangers_bundle(tmp_path):
    "Its configuration is not even read"
    class Gift:
        def __reduce__(self): return print, ('executed',)
    (tmp_path/'models').mkdir()
    (tmp_path/'configs').mkdir()
    (tmp_path/'configs'/'inference.json').write_text('{"network_def": "' + HOSTILE + '"}')
    torch.save(torch.nn.Linear(2, 1).state_dict(), tmp_path/'models'/'model.pt')
    torch.nn.Linear(2, 1).load_state_dict(bundle.weights(tmp_path))
    (tmp_path/'models'/'model.pt').write_bytes(pickle.dumps({'x': Gift()}, 2))
    with pytest.raises(ValueError, match='not a readable file of tensors'): bundle.weights(tmp_path)
    torch.save([1], tmp_path/'models'/'model.pt')
    with pytest.raises(ValueError, match='accepted: a dict of tensors'): bundle.weights(tmp_path)
    for name in ('models/no.pt', '../x.pt'):
        with pytest.raises(FileNotFoundError, match='accepted: the folder of a MONAI bundle'): bundle.weights(tmp_path, name)


def test_seeds(tmp_path):
    for seeds in (-1, 2**32, .5, '0-7', [0, None], True):
        with pytest.raises(ValueError, match='accepted: a whole number below'): bundle.draw(None, 'x', tmp_path, seeds)


# the command
def test_export(tmp_path, plain, capsys):
    assert cli.main(['export', str(plain), str(tmp_path/'b')]) == 0
    assert 'run only bundles that you trust' in capsys.readouterr().out
    for argv, says in [([plain, tmp_path/'b'], 'exists; give another name, or --force'),
                       ([plain, tmp_path/'no'/'b'], 'make it first'), (['no.safetensors', tmp_path/'c'], 'no file')]:
        assert cli.main(['export', *map(str, argv)]) == 2
        assert says in capsys.readouterr().err
    assert cli.main(['export', str(plain), str(tmp_path/'b'), '--force']) == 0
