"A run starts from what a checkpoint has: without D, for another resolution, with other settings, from another folder"
import itertools, json, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import checkpoints
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.data.datasets import remedy
from cleftgan_nb.networks import build
from cleftgan_nb.training import loop, step, writing
from cleftgan_nb.training.config import Config, load_config
from cleftgan_nb.training.loop import begin, train
from cleftgan_nb.training.team import Team

SMALL = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8)
ABOUT = dict(license='CC0-1.0', provenance={}, progress={})
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:r_t is')]


def pictures(path, labels, size=16, names=None, image=None):
    "Write a dataset of noise, or of given images, with these labels"
    rng = np.random.default_rng(0)
    image = image or (lambda label: rng.integers(0, 255, (size, size, 3), np.uint8))
    rows = ((image(label), label, {}) for label in labels)
    return write_dataset(path, rows, about=dict(kind='x', license='CC0-1.0'), label_names=names)


@pytest.fixture(scope='module')
def faces(tmp_path_factory): return pictures(tmp_path_factory.mktemp('data')/'faces.zip', [None]*12)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    "A checkpoint as people publish them: the averaged generator alone"
    torch.manual_seed(0)
    return checkpoints.save(tmp_path_factory.mktemp('base')/'g.safetensors', G_ema=build('stylegan2', 16, **SMALL)[0],
                            **ABOUT)


@pytest.fixture(scope='module')
def whole(base, tmp_path_factory):
    G = checkpoints.load(base).G_ema
    D = build('stylegan2', 16, **SMALL)[1]
    return checkpoints.save(tmp_path_factory.mktemp('whole')/'whole.safetensors', G, D, G, **ABOUT)


def config(data, out, base, **more):
    return Config(**dict(data=str(data), out=str(out), batch=4, kimg=.016, tick_kimg=.004, resume_from=str(base),
                         dtype='float32', augment='none') | more)


def tensors(out): return checkpoints.read_tensors(Path(out)/'state.safetensors')[0]


def log(out): return [json.loads(line) for line in (Path(out)/'log.jsonl').read_text().splitlines()]


def test_a_new_D_learns_alone_at_first(faces, base, tmp_path, capsys):
    "G rests, its average and its running means too; it goes on to the bit from within the rest and after it"
    more = dict(rest_kimg=.008)
    once = train(config(faces, tmp_path/'once', base, kimg=.012, **more))
    said = capsys.readouterr().out
    assert 'g.safetensors has no D: a new one learns alone for 0.008 kimg, while G rests' in said
    old = checkpoints.load(base).G_ema.state_dict()
    for kimg in (.004, .008, .012):
        twice = train(config(faces, tmp_path/'twice', base, kimg=kimg, **more), progress=False)
        now = tensors(twice)
        for role in ('G', 'G_ema'):
            equal = all(torch.equal(v, now[f'{role}/{k}']) for k, v in old.items())
            assert equal == (kimg <= .008), (kimg, role)
        moved = [any(k.startswith(f'opt_{role}/') for k in now) for role in 'DG']
        assert moved == [True, kimg > .01]
    a = tensors(once)
    assert a.keys() == now.keys() and all(torch.equal(a[k], now[k]) for k in a)
    assert (once/'log.jsonl').read_bytes() == (twice/'log.jsonl').read_bytes()
    assert ['loss/G' in row for row in log(once)] == [False, False, True]
    assert all('loss/D made' in row for row in log(once))
    began = checkpoints.load(next(once.glob('network-*'))).meta['provenance']['started_from']
    assert began['lacks'] == ['D'] and load_config(once/'config.yaml').rest_kimg == .008


def test_heads_learn_while_G_rests(faces, base, tmp_path):
    run, data = begin(config(faces, tmp_path/'run', base, rest_kimg=.004, aid=1., batch=2), Team())
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in (run.G, run.G_ema, run.D, run.aid.learned)]
    step.step(run, *next(loop.batches(run, data, Team())), Team())
    same = [all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
            for net, old in zip((run.G, run.G_ema, run.D, run.aid.learned), before)]
    assert same == [True, True, False, False]


def test_without_a_word_D_learns_alone_for_a_while(faces, base, whole, tmp_path):
    "A stated length where D is new, none where it is not; nothing that files hold tells of it otherwise"
    run, _ = begin(config(faces, tmp_path/'a', base), Team())
    assert run.config.rest_kimg == 4 and run.D.init_kwargs['channel_max'] == 8
    out = train(config(faces, tmp_path/'b', whole, kimg=.004), progress=False)
    for f in out.iterdir():
        if f.is_file(): assert not [w for w in (b'rest_kimg', b'measure_kimg', b'transfer', b'lacks')
                                    if w in f.read_bytes()], f
    assert 'loss/G' in log(out)[0]
    with pytest.raises(ValueError, match='freeze_d=1, but the first layers of D are new'):
        begin(config(faces, tmp_path/'c', base, freeze_d=1), Team())


@pytest.mark.parametrize('settings, says', [
    (dict(channel_max=4), 'settings.channel_max=4, but the G of .* has channel_max=8. Accepted: leave it out'),
    (dict(nonsense=1), 'settings: .* has no keyword nonsense; accepted: '),
    (dict(D_kwargs=dict(channel_max=4)), 'settings.channel_max=4, but the D of .* has channel_max=8'),
    (dict(mapping_kwargs=dict(num_layers=3)), 'settings.mapping_kwargs=.* but the G of .* has mapping_kwargs={}')])
def test_settings_are_those_of_the_checkpoint(faces, whole, tmp_path, settings, says):
    with pytest.raises(ValueError, match=says): train(config(faces, tmp_path/'run', whole, settings=settings))
    assert not (tmp_path/'run').exists()
    begin(config(faces, tmp_path/'same', whole, settings=SMALL), Team())   # what the checkpoint has may be said


def test_a_new_D_may_be_of_any_width(faces, base, tmp_path):
    run, _ = begin(config(faces, tmp_path/'run', base, settings=dict(D_kwargs=dict(channel_max=4))), Team())
    assert run.D.init_kwargs['channel_max'] == 4


@pytest.mark.parametrize('network', ['stylegan2', 'stylegan3-t'])
def test_layers_that_fit(network, tmp_path, capsys):
    "At twice the resolution: the refusal names the switch, the table what is taken and what is new; nothing else is"
    torch.manual_seed(1)
    settings = SMALL | (dict(num_layers=4) if network != 'stylegan2' else {})
    G, D = build(network, 16, **settings)
    checkpoints.save(tmp_path/'old.safetensors', G, D, build(network, 16, **settings)[0], **ABOUT)
    data = pictures(tmp_path/'large.zip', [None]*8, 32)
    start = config(data, tmp_path/'run', tmp_path/'old.safetensors', kimg=.004)
    with pytest.raises(ValueError) as e: train(start, progress=False)
    assert 'is for 16 pixels' in str(e.value) and '--set transfer=partial' in str(e.value)
    assert remedy(data, size=16) in str(e.value) and not (tmp_path/'run').exists()
    out = train(replace(start, transfer='partial'))
    said, c = capsys.readouterr().out, checkpoints.load(next((tmp_path/'run').glob('network-*')))
    table = c.meta['provenance']['started_from']['transfer']
    assert set(table) == {'G', 'D', 'G_ema'} and all(table[r]['taken'] for r in table)
    assert all(name in said for r in table for name in table[r]['new'] + table[r]['taken'])
    assert [o for o in table['D']['new']] == ['b32.fromrgb', 'b32.conv0', 'b32.conv1', 'b32.skip']
    run, _ = begin(replace(start, transfer='partial', out=str(tmp_path/'again')), Team())
    old = checkpoints.load(tmp_path/'old.safetensors')
    assert torch.equal(run.G.mapping.fc0.weight, old.G.mapping.fc0.weight)
    assert torch.equal(run.G_ema.mapping.fc0.weight, old.G_ema.mapping.fc0.weight)
    fresh = build(network, 32, **settings)[0].state_dict()
    for k, v in run.G.state_dict().items():   # filters are those of the new resolution
        if k.endswith('filter'): assert torch.equal(v, fresh[k]), k
    if network == 'stylegan2': assert table['G']['new'] == [f'synthesis.b32.{o}' for o in ('conv0', 'conv1', 'torgb')]
    assert load_config(out/'config.yaml').transfer == 'partial'
    train(replace(start, transfer='partial', kimg=.008), progress=False)   # goes on


def test_other_settings_and_labels_in_part(whole, tmp_path):
    data = pictures(tmp_path/'labeled.zip', [0, 1]*4)
    run, _ = begin(config(data, tmp_path/'run', whole, transfer='partial', labels=True, mirror=False,
                          settings=dict(mapping_kwargs=dict(num_layers=3))), Team())
    assert run.G.c_dim == 2 and run.began['new'] and run.began['transfer']['G']['new'] == []
    with pytest.raises(ValueError, match="transfer='partial' only applies to a start from a checkpoint"):
        train(dict(data=str(data), out=str(tmp_path/'x'), transfer='partial'))


def test_advice_about_labels_helps(whole, tmp_path):
    "labels=true where the data have them; where not, what is left"
    plain, two, three = (pictures(tmp_path/f'{n}.zip', labels) for n, labels in
                         (('plain', [None]*4), ('two', [0, 1]*2), ('three', [0, 1, 2, 2])))
    G, D = build('stylegan2', 16, **SMALL, c_dim=2)
    asks = checkpoints.save(tmp_path/'asks.safetensors', G, D, **ABOUT)
    for data, says, never in ((two, 'Accepted: --set labels=true; a checkpoint without labels', 'partial'),
                              (plain, 'the data have none. Accepted: a checkpoint without labels', 'labels=true'),
                              (three, "the data's have 3. Accepted: a checkpoint without labels", 'labels=true')):
        with pytest.raises(ValueError) as e: train(config(data, tmp_path/'run', asks), progress=False)
        assert says in str(e.value) and never not in str(e.value) and 'convert' not in str(e.value)
    run, _ = begin(config(two, tmp_path/'run', whole, labels=True, mirror=False), Team())   # a base without labels
    assert run.G.c_dim == 2


# Labels -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('labels', [[0]*18 + [1]*6, [[1., 0.]]*18 + [[0., 1.]]*6, [i % 12 for i in range(24)]])
def test_the_preview_asks_for_all_classes(tmp_path, labels):
    "Evenly, from fewer pictures than it has places, whatever their order"
    data = ImageFolderDataset(pictures(tmp_path/'few.zip', labels), use_labels=True)
    for n in (64, 12, 4):
        shown = data.labels(writing.spread(data, n)).sum(0)
        most = -(-n//len(shown))
        assert (shown <= most + 1).all() and (n < len(shown) or (shown >= most - 2).all()), (n, shown)
    many = ImageFolderDataset(pictures(tmp_path/'many.zip', [[i/24] for i in range(24)]), use_labels=True)
    assert np.allclose(np.diff(many.labels(writing.spread(many, 6))[:, 0]), 4/24)


def test_conditional_training_on_fewer_pictures_than_the_preview_shows(tmp_path):
    data = pictures(tmp_path/'few.zip', [0]*12 + [1]*12)
    c = Config(str(data), str(tmp_path/'run'), network='stylegan2', labels=True, mirror=False, batch=4, kimg=.004,
               tick_kimg=.004, settings=SMALL, augment='none', dtype='float32')
    run, data = begin(c, Team())
    asked = []
    run.G_ema.register_forward_pre_hook(lambda net, args: asked.append(args[1]))
    writing.show(run, data)
    assert torch.cat(asked).sum(0).tolist() == [32, 32]
    train(c, progress=False)


def sided_image(label):
    "Light on the side that the label names"
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8] = 255*label[0]
    image[:, 8:] = 255*label[1]
    return image


@pytest.mark.parametrize('names, mirror, knows', [(['spot_left', 'spot_right'], True, True), (None, False, True),
                                                  (None, True, False)])
def test_sides_and_labels_stay_together(tmp_path, names, mirror, knows):
    "In all that D is shown, also after augmentation; where nobody knows of sides, a warning says what to do"
    data = pictures(tmp_path/'sides.zip', [[1., 0.], [0., 1.]]*4, names=names, image=sided_image)
    c = Config(str(data), str(tmp_path/'run'), network='stylegan2', labels=True, mirror=mirror, batch=8, settings=SMALL,
               augment='fixed', augment_p=1., dtype='float32')
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        run, data = begin(c, Team())
    said = [str(w.message) for w in said if 'do not name' in str(w.message) or 'does not name' in str(w.message)]
    assert bool(said) != knows and all('--set mirror=false' in w and 'label_names' in w for w in said)
    right = total = 0
    run.pipe.multipliers |= {k: 0 for k in run.pipe.multipliers if k != 'xflip'}   # what else moves sides is no mirror
    for i, (pixels, labels) in enumerate(itertools.islice(loop.batches(run, data, Team()), 16)):
        seen = run.pipe(step.scaled(pixels), index=torch.arange(8) + 8*i, seed=0, name='real')
        left = seen[..., :8].mean((1, 2, 3)) > seen[..., 8:].mean((1, 2, 3))
        right += int((left == (labels[:, 0] > .5)).sum())
        total += len(left)
    assert (right == total) == knows and (knows or right < .8*total)


# Where things are ---------------------------------------------------------------------------------------------------

def folder(path, faces):
    path.mkdir(parents=True)
    data = ImageFolderDataset(faces)
    for i in range(4): Image.fromarray(data[i][0].permute(1, 2, 0).numpy()).save(path/f'{i}.png')
    return path


@pytest.mark.parametrize('out', ['plain', 'plain/run', 'link/run'])
def test_a_run_is_not_in_its_data(faces, whole, tmp_path, out):
    plain = folder(tmp_path/'plain', faces)
    (tmp_path/'link').symlink_to(plain)
    with pytest.raises(ValueError, match='the folder of the data'):
        train(config(plain, tmp_path/out, whole), progress=False)
    assert sorted(p.name for p in plain.iterdir()) == ['0.png', '1.png', '2.png', '3.png']


def test_a_run_finds_its_data_from_elsewhere(faces, whole, tmp_path, monkeypatch, capsys):
    "By the same command or the same file; otherwise the message says how to go on"
    from cleftgan_nb import cli
    folder(tmp_path/'there/plain', faces)
    (tmp_path/'there/run.yaml').write_text(f'data: plain\nout: run\nresume_from: {whole}\nkimg: 0.004\nbatch: 4\n'
                                           'tick_kimg: 0.004\ndtype: float32\naugment: none\n')
    monkeypatch.chdir(tmp_path/'there')
    assert cli.main(['train', 'run.yaml']) == 0
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    assert cli.main(['train', '../there/run.yaml', '--kimg', '.008']) == 0
    again = ['--batch', '4', '--set', 'tick_kimg=0.004', '--set', 'dtype=float32', '--set', 'augment=none']
    again += ['--out', '../there/run', '--resume-from', str(whole), '--kimg', '.012']
    assert cli.main(['train', 'plain', *again]) == 0
    assert not list((tmp_path/'elsewhere').iterdir()) and (tmp_path/'there/run/network-000000.012.safetensors').exists()
    (tmp_path/'there/plain').rename(tmp_path/'moved')
    capsys.readouterr()
    assert cli.main(['train', '../there/run', '--kimg', '.016']) == 2
    assert 'If it has moved: cleftgan train ../there/run --set data=' in capsys.readouterr().err
    assert cli.main(['train', '../there/run', '--kimg', '.016', '--set', 'data=../moved']) == 0
