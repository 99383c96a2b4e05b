"""From a photograph to latents on the command line: private, readable files, networks with labels, clear refusals"""
import json, os, shlex
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import checkpoints, cli, networks
from cleftgan_nb.data import write_dataset
from cleftgan_nb.explore import Inverter, draw, latent_of, load_latents
from cleftgan_nb.explore.inversion import read_square


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    "Networks: plain and of 3 classes"
    folder = tmp_path_factory.mktemp('nets')
    for name, c_dim in ('plain', 0), ('classes', 3):
        torch.manual_seed(0)
        G = networks.build('stylegan2', 32, c_dim=c_dim, channel_base=256, channel_max=8, z_dim=8, w_dim=8)[0].eval()
        checkpoints.save(folder/f'{name}.safetensors', G_ema=G, license='CC-BY-4.0', provenance={}, progress={})
    return folder


@pytest.fixture
def run(nets, tmp_path, monkeypatch, capsys):
    "Run a command in a folder with the networks and face.png, 64 pixels wide; a search starts from few faces"
    monkeypatch.setattr(Inverter.__init__, '__defaults__', (None, 8, 0, None))
    monkeypatch.chdir(tmp_path)
    for o in nets.iterdir(): os.symlink(o, o.name)
    face = draw(checkpoints.load('plain.safetensors').sampler, latent_of(checkpoints.load('plain.safetensors').sampler, 3))[0]
    Image.fromarray(face).resize((64, 64), Image.Resampling.NEAREST).save('face.png')
    def run(line): return cli.main(shlex.split(line)), *capsys.readouterr()
    return run


def test_a_picture_of_the_right_size_needs_no_warning(run):
    "PyTorch warns once in a process that an array cannot be written to"
    Image.open('face.png').resize((32, 32)).save('small.png')
    code, _, err = run('invert small.png plain.safetensors --steps 1 --out out.png')
    assert code == 0 and 'warning' not in err


def test_invert(run):
    "The picture and the latents agree, say where they come from, and only the account can read them"
    Path('out.png').touch(0o666)
    os.chmod('out.png', 0o666)
    assert run('invert face.png plain.safetensors --steps 3 --out out.png --force')[0] == 0
    assert {oct(os.stat(o).st_mode & 0o777) for o in ('out.png', 'out.safetensors')} == {'0o600'}
    ws, said = load_latents('out.safetensors')
    G = checkpoints.load('plain.safetensors').sampler
    with Image.open('out.png') as im: both, recipe = np.array(im), json.loads(im.text['recipe']) | {'Source': im.text['Source']}
    assert both.shape == (32, 64, 3) and (both[:, 32:] == draw(G, ws)[0]).all()
    assert (both[:, :32] == read_square('face.png', 32)).all()
    assert (said['generator'], said['about']) == ('plain.safetensors', 'made from a photograph of a person')
    assert (recipe['Source'] == recipe['kind'] == 'made from a photograph of a person' and 'face' not in str(recipe)
            and recipe['license'] == 'CC-BY-4.0')
    error = np.sqrt(np.square(both[:, 32:].astype(float) - both[:, :32]).mean())
    assert abs(recipe['error'] - error) < .01 and (recipe['space'], recipe['steps']) == ('w+', 3)


def test_the_reconstruction_alone_under_the_photographs_name(run):
    code, out, err = run('invert face.png plain.safetensors --alone --space w --steps 1')
    assert (code, err) == (0, '') and 'off by' in out and 'only your account' in out
    with Image.open('face-inverted.png') as im: assert im.size == (32, 32)
    assert os.path.exists('face-inverted.safetensors')


def test_inversion_with_labels(run):
    "The search starts from the label, or from labels as a dataset has them"
    G, face = checkpoints.load('classes.safetensors').sampler, read_square('face.png', 32)
    write_dataset('set.zip', [(face, 2, {}), (face, 2, {})], about=dict(kind='x', license='x'))
    for option in ('--label 2', '--label 0,0,1', '--labels-from set.zip'):
        code, _, err = run(f'invert face.png classes.safetensors {option} --steps 1 --out a.png --force')
        assert (code, err) == (0, '')
        ws = load_latents('a.safetensors')[0]
        assert torch.equal(ws, Inverter(G, labels=2)(face, steps=1, progress=False).ws)
    assert not torch.equal(ws, Inverter(G, labels=0)(face, steps=1, progress=False).ws)


@pytest.mark.parametrize('line, says', [
    ('face.png classes.safetensors', 'takes labels of 3 entries: give --label, or --labels-from DATASET'),
    ('face.png classes.safetensors --label 3', 'needs a label from 0 to 2'),
    ('face.png plain.safetensors --label 0', 'has no labels'),
    ('face.png plain.safetensors --labels-from x.zip', 'has no labels; leave it out'),
    ('wide.png plain.safetensors', "wide.png has 64 x 48 pixels; accepted: square pictures of at least 32 x 32"),
    ('wide.png plain.safetensors --out a.jpg', 'accepted: a name that ends in .png'),
    ('letter.png plain.safetensors', 'letter.png cannot be read: not a picture'),
    ('none.png plain.safetensors', 'none.png'), ('face.png plain.safetensors --out no/a.png', 'make it first'),
    ('face.png plain.safetensors --out face.png', 'face.png exists'), ('face.png none.safetensors', 'no file none')])
def test_what_cannot_be_inverted(run, line, says):
    with Image.open('face.png') as im: im.crop((0, 0, 64, 48)).save('wide.png')
    Path('letter.png').write_text('Dear parents')
    before = sorted(os.listdir())
    code, out, err = run(f'invert {line} --steps 1')
    assert (code, out, err.count('\n')) == (2, '', 1) and says in err and 'should not happen' not in err, err
    assert sorted(os.listdir()) == before
