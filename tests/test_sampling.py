"""Pictures one by one, as a dataset, as a mixing table and as a video: each can be drawn again, and is whole or not
there"""
import json, os, shlex, signal, sys, weakref
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import checkpoints, cli, networks, sampling, video
from cleftgan_nb.data import ImageFolderDataset, manifest, verify, write_dataset
from cleftgan_nb.data.datasets import about
from cleftgan_nb.explore import draw, latent_of, mix
from cleftgan_nb.pictures import sample_one
from cleftgan_nb.sampling import Wanted, walk

TINY = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8)
RANGE = ['lip_left', 'lip_right', 'nose_left', 'nose_right', 'repaired']


@pytest.fixture(scope='module')
def nets(tmp_path_factory):
    "Networks: plain, of 12 classes, and of labels in words"
    folder = tmp_path_factory.mktemp('nets')
    for name, c_dim, labels in ('plain', 0, None), ('classes', 12, None), ('words', 5, RANGE):
        torch.manual_seed(0)
        G = networks.build('stylegan2', 16, c_dim=c_dim, **TINY)[0].eval()
        G.mapping.w_avg.normal_()
        checkpoints.save(folder/f'{name}.safetensors', G_ema=G, license='CC-BY-4.0', provenance={}, progress={},
                         labels=labels)
    return folder


@pytest.fixture
def run(nets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for o in nets.iterdir(): os.symlink(o, o.name)
    def run(line): return cli.main(shlex.split(line)), *capsys.readouterr()
    return run


def net(name): return checkpoints.load(f'{name}.safetensors').sampler


def pixels(path):
    with Image.open(path) as im: return np.array(im), json.loads(im.text['recipe'])


def mistake(run, line, says):
    before = sorted(os.listdir())
    code, out, err = run(line)
    assert (code, out, err.count('\n')) == (2, '', 1) and says in err, err
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize('option', ['--truncation', '--truncation-psi'])
def test_truncations_are_columns(run, option):
    assert run(f'sample plain.safetensors --seeds 4,5 {option} .3,1 --out a.png')[0] == 0
    a, recipe = pixels('a.png')
    G = net('plain')
    for y, seed in enumerate((4, 5)):
        for x, psi in enumerate((.3, 1.)):
            assert (a[16*y:, 16*x:][:16, :16] == sample_one(G, seed, psi)).all()
    assert recipe['truncation_psi'] == [.3, 1.]


def test_a_label_may_be_a_list_of_numbers(run):
    code, _, err = run('sample words.safetensors --label .2,0,.2,0,1 --out a.png')
    assert code == 0, err
    a, recipe = pixels('a.png')
    assert (a == sample_one(net('words'), 0, label=torch.tensor([.2, 0, .2, 0, 1]))).all()
    assert recipe['label'] == [.2, 0, .2, 0, 1]
    mistake(run, 'sample words.safetensors --label .2,0 --out x.png', 'needs a label from 0 to 4, or 5 numbers')
    mistake(run, 'sample plain.safetensors --label .2,0 --out x.png', 'has no labels')
    mistake(run, 'sample words.safetensors --label .2,x --out x.png', "'.2,x'; accepted: a whole number from 0, or numb")


@pytest.mark.parametrize('line, names', [
    ('plain.safetensors --seeds 9-10', ['seed09.png', 'seed10.png']),
    ('classes.safetensors --seeds 3 --label 2 --truncation .5,1', ['seed3-label02-truncation0.5.png', 'seed3-label02.png']),
    ('words.safetensors --severity .2 --side left,right',
     ['seed0-label0,0.2,0,0.2,0.png', 'seed0-label0.2,0,0.2,0,0.png']),
    ('plain.safetensors --seeds 3 --mix 4 --layers 0-2', ['seed3-mix4-layers0-2.png'])])
def test_separate_files_can_be_drawn_again(run, line, names):
    code, out, err = run(f'sample {line} --separate faces')
    assert (code, err) == (0, '') and sorted(os.listdir('faces')) == names
    for name in names:
        image, recipe = pixels(f'faces/{name}')
        assert recipe['license'] == 'CC-BY-4.0' and recipe['kind'] == 'synthetic'
        assert run(recipe['command'].removeprefix('cleftgan ') + ' --separate again --force')[0] == 0
        [again] = os.listdir('again')
        assert (pixels(f'again/{again}')[0] == image).all()


def test_a_folder_of_pictures_is_replaced_only_if_it_holds_nothing_else(run):
    assert run('sample plain.safetensors --separate faces')[0] == 0
    mistake(run, 'sample plain.safetensors --separate faces', 'faces exists; give another name, or --force')
    assert run('sample plain.safetensors --separate faces --force --seeds 1')[0] == 0
    assert os.listdir('faces') == ['seed1.png']
    Path('faces/patient.jpg').touch()
    mistake(run, 'sample plain.safetensors --separate faces --force', "faces holds other files, such as 'patient.jpg'")
    mistake(run, 'sample plain.safetensors --separate no/faces', 'make it first')


def test_dataset(run):
    "The same bytes again; labels, rows and license; `card` takes it"
    for name in 'ab':
        code, _, err = run(f'sample words.safetensors --severity 0,.5 --seeds 0-3 --truncation .5 --dataset {name}.zip')
        assert (code, err) == (0, '')
    assert Path('a.zip').read_bytes() == Path('b.zip').read_bytes() and verify('a.zip') == 8
    ds, rows, said = ImageFolderDataset('a.zip', use_labels=True), manifest('a.zip'), about('a.zip')
    assert ds.label_names == RANGE and ds.labels([3])[0].tolist() == [.5, 0, .5, 0, 0]
    assert (rows[3]['seed'], rows[3]['truncation_psi'], rows[3]['label']) == (1, .5, '0.5,0,0.5,0,0')
    image = sample_one(net('words'), 1, .5, torch.tensor([.5, 0, .5, 0, 0]))
    assert (ds[3][0].permute(1, 2, 0).numpy() == image).all()
    assert (said['license'], said['synthetic'], said['recipe']['seeds']) == ('CC-BY-4.0', True, '0-3')
    mistake(run, 'sample words.safetensors --label 0 --dataset a.zip', 'a.zip exists; give another name, or --force')
    Path('card.md').write_text('<!-- generated: begin facts -->\n<!-- generated: end facts -->\n')
    assert run('card a.zip card.md --smallest 5')[0] == 0 and 'CC-BY-4.0' in Path('card.md').read_text()


@pytest.mark.parametrize('output', ['out a.png', 'separate a', 'dataset a.zip', 'video a.gif', 'video a.mp4'])
def test_pictures_are_as_private_as_their_network(run, output):
    with open('plain.safetensors', 'rb') as f: Path('mine.safetensors').write_bytes(f.read())
    os.chmod('mine.safetensors', 0o600)
    assert run(f'sample mine.safetensors --seeds 0-1 --{output}')[0] == 0
    made = [p for p in Path().rglob('*') if p.name.startswith(('a', 'seed'))]
    assert made and all(p.stat().st_mode & 0o077 == 0 for p in made)


def test_pictures_of_a_dataset_are_not_kept(tmp_path, monkeypatch):
    "Thousands of pictures take the memory of one or two"
    alive, most = set(), []
    def drawn(G, o):
        image = np.zeros((16, 16, 3), np.uint8)
        alive.add(o.seed)
        weakref.finalize(image, alive.discard, o.seed)
        most.append(len(alive))
        return image
    monkeypatch.setattr(sampling, 'draw_one', drawn)
    sampling.save_dataset(None, (Wanted(k) for k in range(50)), tmp_path/'a.zip', dict(license='x'))
    sampling.save_each(networks.build('stylegan2', 16, **TINY)[0], (Wanted(k) for k in range(50)), tmp_path/'each',
                       dict(command='x'), 49)
    assert len(most) == 100 and max(most) <= 3


def test_labels_are_drawn_as_a_dataset_has_them(run):
    faces = np.zeros((3, 16, 16, 3), np.uint8)
    what = dict(about=dict(kind='x', license='x'))
    write_dataset('classes.zip', [(faces[0], 11, {}), (faces[1], 11, {}), (faces[2], 2, {})], **what)
    write_dataset('words.zip', [(faces[0], [.5, 0, .5, 0, 1], {})], **what, label_names=RANGE)
    assert run('sample classes.safetensors --seeds 0-29 --labels-from classes.zip --dataset a.zip')[0] == 0
    labels = [row['label'] for row in manifest('a.zip')]
    assert set(labels) == {'2', '11'} and labels.count('11') > labels.count('2')
    assert run('sample classes.safetensors --seeds 29,3 --labels-from classes.zip --separate each')[0] == 0
    assert sorted(os.listdir('each')) == [f'seed03-label{labels[3]:0>2}.png', f'seed29-label{labels[29]:0>2}.png']
    assert run('sample words.safetensors --labels-from words.zip --out a.png')[0] == 0
    assert (pixels('a.png')[0] == sample_one(net('words'), 0, label=torch.tensor([.5, 0, .5, 0, 1]))).all()
    mistake(run, 'sample words.safetensors --labels-from classes.zip --out x.png', 'labels of 12 entries; accepted: 5')
    mistake(run, 'sample plain.safetensors --labels-from words.zip --out x.png', 'plain.safetensors has no labels')


def test_mixing_table(run):
    "Sources in the first row and column; each place has the layers asked for"
    assert run('sample plain.safetensors --seeds 1,2 --mix 7-9 --layers 1,3-4 --out a.png')[0] == 0
    a, recipe = pixels('a.png')
    G, at = net('plain'), lambda y, x: a[16*y:, 16*x:][:16, :16]
    assert a.shape == (48, 64, 3) and (at(0, 0) == 255).all() and recipe['mix'] == '7-9'
    for x, other in enumerate((7, 8, 9), 1):
        assert (at(0, x) == sample_one(G, other)).all()
        for y, seed in enumerate((1, 2), 1):
            assert (at(y, 0) == sample_one(G, seed)).all()
            mixed = mix(latent_of(G, seed), latent_of(G, other), (1, 3, 4))
            assert (at(y, x) == draw(G, mixed)[0]).all()
    mistake(run, 'sample plain.safetensors --mix 7 --layers 0-99 --out x.png', '--layers \'0-99\'; accepted: numbers from 0')
    mistake(run, 'sample plain.safetensors --mix x --out x.png', "--mix: 'x' is not a seed")


@pytest.mark.parametrize('kind', ['gif', 'mp4'])
def test_video(run, kind):
    "The same bytes again, in which the recipe lies; the walk is a loop through the pictures"
    for name in 'ab':
        code, out, err = run(f'sample classes.safetensors --seeds 3,5 --label 1 --frames 4 --fps 10 --video {name}.{kind}')
        assert (code, err) == (0, '') and 'a walk through 2 synthetic pictures, 0.8 seconds' in out
    a = Path(f'a.{kind}').read_bytes()
    assert a == Path(f'b.{kind}').read_bytes()
    if kind == 'gif':
        with Image.open('a.gif') as gif:
            assert (gif.size, gif.n_frames, gif.info['duration']) == ((16, 16), 8, 100)
            a = gif.info['comment']
    assert b'"Source": "synthetic"' in a and b'CC-BY-4.0' in a


@pytest.mark.parametrize('space', ['w', 'z'])
def test_a_walk_passes_through_the_pictures(run, space):
    G, wanted = net('classes'), [Wanted(seed, .7, 4) for seed in (3, 5, 6)]
    frames = list(walk(G, wanted, 3, space))
    c = torch.eye(12)[4]
    assert len(frames) == 9 and all((frames[3*k] == sample_one(G, o.seed, .7, c)).all() for k, o in enumerate(wanted))


def test_a_video_without_its_package_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'imageio_ffmpeg', None)
    mistake(run, 'sample plain.safetensors --seeds 0-1 --video a.mp4', "pip install 'cleftgan_nb[video]'; a GIF needs nothing\n")
    assert run('sample plain.safetensors --seeds 0-1 --frames 2 --video a.gif')[0] == 0


@pytest.mark.parametrize('how', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('kind', ['gif', 'mp4'])
def test_a_killed_video_leaves_nothing_half_written(tmp_path, kind, how):
    def frames():
        yield np.zeros((16, 16, 3), np.uint8)
        os.kill(os.getpid(), how)
        yield np.zeros((16, 16, 3), np.uint8)
    if not (child := os.fork()):
        try: video.save_video(frames(), tmp_path/f'a.{kind}', 25, dict(title='x'))
        finally: os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == how
    left = list(tmp_path.iterdir())
    if how == signal.SIGTERM: assert left == []
    else:
        [place] = left                     # hidden and private until the next video clears it
        assert place.name.startswith(f'.a.{kind}@') and place.stat().st_mode & 0o077 == 0
        video.save_video([np.zeros((16, 16, 3), np.uint8)]*2, tmp_path/f'a.{kind}', 25, dict(title='x'))
        assert os.listdir(tmp_path) == [f'a.{kind}']


@pytest.mark.parametrize('options, says', [
    ('--out a.png --separate b', '--out with --separate; accepted: one of them: one output at a time'),
    ('--dataset a.zip --video b.gif', '--dataset with --video'),
    ('--label 0 --labels-from a.zip', '--label with --labels-from; accepted: one of them: a picture has one label'),
    ('--mix 3 --severity .5', '--mix with --severity'),
    ('--mix 3 --video a.gif', '--video with --mix'), ('--columns 2 --separate a', '--columns is for one sheet'),
    ('--columns 2 --truncation .5,1', '--columns with --truncation .5,1'), ('--mix 3 --truncation .5,1', 'one truncation'),
    ('--layers 0', '--layers goes with --mix'), ('--fps 10', '--fps goes with --video'),
    ('--frames 0 --video a.gif', 'accepted: a whole number from 1'), ('--video a.gif --fps 60', 'fps=60; accepted'),
    ('--video a.avi', 'ends in .mp4 or .gif'), ('--video a.gif', 'two or more, such as --seeds 0-3'),
    ('--video a.gif --space z --truncation .5,1', '--space z with several'), ('--truncation .5,x', "'.5,x'; accepted: a num"),
    ('--seeds 3,3 --separate a', 'the same picture twice'), ("--separate ''", "path=''; accepted: a str or a Path"),
    ('--dataset no/a.zip', 'make it first'), ('--separate plain.safetensors', 'is a file; give the name of a folder'),
    ('--seeds 0-9999 --mix 0-1', '20000 pictures of 16 pixels at once; accepted: up to 10000')])
def test_what_does_not_go_together(run, options, says): mistake(run, f'sample plain.safetensors {options}', says)
