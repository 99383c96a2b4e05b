"""Model cards: what a checkpoint and its run say and nothing else, the same bytes each time, pages that notice
another model"""
import dataclasses, json, re, shlex, shutil, zipfile
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import checkpoints, cli
from cleftgan_nb.files import sha256
from cleftgan_nb.data import cohort
from cleftgan_nb.training import model_cards as module
from cleftgan_nb.training.config import Config, kept
from cleftgan_nb.training.loop import train
from cleftgan_nb.training.model_cards import (MODEL_BLOCKS, check_run, model_card, pace, sample_one, save_small,
                                              stale_model_card, train_command)

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8, num_layers=4, D_kwargs=dict(channel_max=8))
CARDS = [o for o in sorted((ROOT/'data_cards').glob('*.md'))
         if '<!-- generated: begin training' in o.read_text(encoding='utf-8')]
pytestmark = pytest.mark.filterwarnings('ignore:r_t is', 'ignore:augment_p is')


def page(path, names=MODEL_BLOCKS):
    path.write_text('# Model card: toy\nWritten by people.\n'
                    + '\n'.join(f'<!-- generated: begin {n} -->\n<!-- generated: end {n} -->\n' for n in names),
                    encoding='utf-8')
    return path


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    return cohort('normal', 8, tmp_path_factory.mktemp('data')/'faces.zip', size=16, workers=1, progress=False)


@pytest.fixture(scope='module')
def run(tmp_path_factory, faces):
    "Train for three ticks; the checkpoint of the second is `early`"
    out = tmp_path_factory.mktemp('run')/'toy'
    return train(Config(str(faces), str(out), batch=4, kimg=.048, tick_kimg=.016, keep_kimg=.016, dtype='float32',
                        gamma=.5, settings=SMALL, license='CC0-1.0'), progress=False)


@pytest.fixture(scope='module')
def last(run): return run/'network-000000.048.safetensors'


@pytest.fixture(scope='module')
def early(run): return run/'network-000000.032.safetensors'


@pytest.fixture(scope='module')
def filled(tmp_path_factory, run, last, faces):
    return model_card(last, page(tmp_path_factory.mktemp('card')/'toy.md'), run, faces, machine='a laptop')


@pytest.fixture
def copy(tmp_path, filled):
    shutil.copy(filled, tmp_path)
    shutil.copytree(filled.with_suffix(''), tmp_path/'toy')
    return tmp_path/'toy.md'


def lines(text): return dict(re.findall(r'^\| ([^|]+) \| ([^|]*) \|$', text, re.M))


def everything(path):
    return {p.relative_to(path.parent): p.read_bytes() for p in [path, *path.with_suffix('').rglob('*')] if p.is_file()}


# what a card says
def test_numbers_are_those_of_the_file(filled, last, run, faces):
    said, c = lines(filled.read_text()), checkpoints.load(last)
    assert (said['sha256'] == f'`{sha256(last)}`' and f'({last.stat().st_size:,} bytes)' in said['size']
            and said['license'] == 'CC0-1.0')
    for role, name in dict(G='generator as trained (G)', D='discriminator (D)').items():
        assert f'{sum(p.numel() for p in c.networks[role].parameters()):,} parameters' in said[name]
    assert (said['precision in the file'] == 'float32' and said['images'].startswith('16 x 16 pixels, RGB')
            and said['length'] == '0.048 kimg in steps of 4 images')
    assert (said['data'] == '`faces.zip`, 8 images and their mirror images: phantom-normal'
            and 'a laptop' in said['time'] and said['version'] == f'cleftgan_nb {c.meta["provenance"]["version"]}')
    assert (f'p = {c.meta["progress"]["augment_p"]:.3f}' in said['augmentation at the end']
            and str(run.parent) not in filled.read_text() and str(faces.parent) not in filled.read_text())


def test_precision(tmp_path, last):
    c = checkpoints.load(last)
    half = checkpoints.save(tmp_path/'half.safetensors', G_ema=c.G_ema, license='CC0-1.0',
                            provenance=c.meta['provenance'], progress=c.meta['progress'], dtype=torch.float16)
    said = lines(model_card(half, page(tmp_path/'x.md', ['facts'])).read_text())
    assert (re.fullmatch(r'float16 \(\d\d\.\d%\), float32 \(\d+\.\d%\)', said['precision in the file'])
            and 'discriminator (D)' not in said)
    assert not (tmp_path/'x').exists()


def test_commands_make_it_again(filled, last, faces):
    "The command line, parsed again, is the configuration"
    text = filled.read_text()
    made, trained = (next(o for o in text.splitlines() if o.startswith(f'cleftgan {c} ')) for c in ('cohort', 'train'))
    assert made == 'cleftgan cohort normal --n 8 --size 16 --seed 0 --out faces.zip'
    config = checkpoints.load(last).meta['provenance']['config']
    assert read(trained, 16) == config | dict(data='faces.zip', out='toy')


def read(command, resolution):
    from cleftgan_nb.training.config import settled
    return kept(settled(cli._config(cli._parser().parse_args(shlex.split(command)[1:])), resolution))


@pytest.mark.parametrize('more', [dict(g_lr=1e-5, d_lr=3e-7), dict(mirror=False, labels=True),
                                  dict(license='all rights: "none", so to say'), dict(license='true'),
                                  dict(network='stylegan2', path_length=1., style_mixing=.5),
                                  dict(seed=7, batch=12, kimg=1234.567),
                                  dict(network='stylegan3-r', blur_sigma=3., augment='fixed', augment_p=.25),
                                  dict(settings=dict(D_kwargs=dict(conv_clamp=256.,
                                                                   mapping_kwargs=dict(num_layers=2)),
                                                     channel_max=64)), dict(gamma=.0512),
                                  dict(ada_kimg=100., ema_rampup=.1)])
def test_any_configuration_can_be_said(more):
    from cleftgan_nb.training.config import settled
    config = settled(Config(**dict(data='faces.zip', out='run', network='stylegan3-t', kimg=40.) | more), 64)
    assert read(train_command(config, 64, config.kimg), 64) == kept(config)


def test_started_from_a_file():
    config = dataclasses.replace(module.settled(Config('there/faces.zip', 'there/run',
                                                       resume_from='there/base.safetensors', kimg=40.), 64,
                                                'stylegan3-t'))
    command = train_command(config, 64, 40.)
    assert ('--resume-from base.safetensors' in command and 'there' not in command and '--network' not in command
            and '--set' not in command)


def test_samples_are_those_of_the_command(last, tmp_path):
    G = checkpoints.load(last).G_ema
    for seed, psi in ((0, 1.), (3, .7)):
        out = tmp_path/f'{seed}.png'
        assert (cli.main(['sample', str(last), '--seeds', str(seed), '--truncation-psi', str(psi), '--out',
                          str(out)]) == 0)
        assert (sample_one(G, seed, psi) == np.asarray(Image.open(out))).all()


def test_pace(tmp_path):
    "The seconds of an interrupted tick are for fewer images than the log says"
    (tmp_path/'log.jsonl').write_text('{"kimg": 4}\n{"kimg": 8}\n')
    (tmp_path/'time.jsonl').write_text('{"kimg": 4, "seconds": 400, "images": 4000}\n{"kimg": 8, "seconds": 50, '
                                       '"images": 500}\n')
    assert pace(tmp_path, 8.) == (10., 800/3600)
    (tmp_path/'time.jsonl').unlink()
    assert pace(tmp_path, 8.) is None


def test_pictures_say_that_they_are_synthetic(filled, last):
    folder = filled.with_suffix('')
    assert ({p.name for p in folder.iterdir()} == {'curves.png', 'progress.png', 'samples.png'}
            == set(re.findall(r'\]\(toy/(\w+\.png)\)', filled.read_text())))
    for p in folder.iterdir():
        with Image.open(p) as im:
            assert np.asarray(im.convert('L')).std() > 5 and p.stat().st_size <= 250_000
            if p.name != 'curves.png':
                assert (im.info['Source'] == 'synthetic'
                        and json.loads(im.info['recipe'])['sha256'] == sha256(last))
    with Image.open(folder/'samples.png') as im: assert im.size == (8*64, 9*64 + 8)


def test_large_pictures_get_fewer_colors(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    save_small(noise, tmp_path/'a.png', dict(title='noise'))
    save_small(noise.resize((40, 40)), tmp_path/'b.png', dict(title='noise'))
    with Image.open(tmp_path/'a.png') as a, Image.open(tmp_path/'b.png') as b:
        assert a.mode == 'P' and b.mode == 'RGB' and (tmp_path/'a.png').stat().st_size <= 250_000


def test_only_what_was_until_then(tmp_path, run, early):
    "The card of an earlier checkpoint doesn't tell that the run went on"
    with module.until(run, .032) as then:
        assert ({p.name for p in then.glob('fakes-*')} >= {'fakes-000000.016.png', 'fakes-000000.032.png'}
                and not (then/'fakes-000000.048.png').exists() and module.read_log(then)['kimg'][-1] == .032)
    text = model_card(early, page(tmp_path/'early.md'), run).read_text()
    assert lines(text)['length'].startswith('0.032 kimg') and '--kimg 0.032' in text


def test_first_runs_did_not_count_images(tmp_path, last, faces):
    c = checkpoints.load(last)
    said = {k: v for k, v in c.meta['provenance'].items() if k != 'images'}
    old = checkpoints.save(tmp_path/'old.safetensors', G_ema=c.G_ema, license='CC0-1.0', provenance=said,
                           progress=c.meta['progress'])
    for k, (given, found) in enumerate({None: '`faces.zip`, its images and their mirror images',
                                        faces: '`faces.zip`, 8 images and their mirror images: '
                                               'phantom-normal'}.items()):
        assert lines(model_card(old, page(tmp_path/f'{k}.md', ['training']), cohort=given).read_text())['data'] == found


def test_without_a_run(tmp_path, last):
    text = model_card(last, page(tmp_path/'alone.md')).read_text()
    assert (text.count('was not at hand') == 2 and '| time |' not in text and 'cleftgan cohort' not in text
            and [p.name for p in (tmp_path/'alone').iterdir()] == ['samples.png'])


# filled again
def test_the_same_bytes(copy, filled, last, run, faces):
    before = everything(copy)
    model_card(last, copy, run, faces, machine='a laptop')
    assert everything(copy) == before == everything(filled) and len(before) == 4


def test_nothing_half_written(copy, last, run, faces, monkeypatch):
    before = everything(copy)
    def fail(*_): raise MemoryError
    for where in ('_curves', 'samples_picture', '_block', 'publish'):
        with monkeypatch.context() as m:
            m.setattr(module, where, fail)
            with pytest.raises(MemoryError): model_card(last, copy, run, faces)
        assert everything(copy) == before and len(list(copy.parent.iterdir())) == 2


def test_what_changed_is_noticed(copy, last, early):
    assert stale_model_card(copy) == stale_model_card(copy, last) == []
    found = stale_model_card(copy, early)
    assert len(found) == len(MODEL_BLOCKS) and all('is about the checkpoint' in o for o in found)
    copy.write_text(copy.read_text().replace('Written by people', 'Written by others'))
    assert stale_model_card(copy, last) == []
    copy.write_text(copy.read_text().replace('CC0-1.0', 'CC-BY-4.0', 1))
    assert 'facts was changed by hand' in stale_model_card(copy)[0]
    (copy.with_suffix('')/'curves.png').unlink()
    assert any('curves.png, which is missing' in o for o in stale_model_card(copy))
    assert (len(stale_model_card(page(copy))) == len(MODEL_BLOCKS)
            and 'facts is empty; fill it with model_card(' in stale_model_card(copy)[0])


def test_blocks_of_two_checkpoints(copy, early):
    other = model_card(early, page(copy.parent/'other.md', ['samples'])).read_text()
    there = re.compile(r'<!-- generated: begin samples.*?end samples -->', re.S)
    copy.write_text(there.sub(lambda _: there.search(other)[0].replace('other/', 'toy/'), copy.read_text()))
    assert 'its blocks are about 2 checkpoints; run model_card again' in stale_model_card(copy)


# what is refused
def test_wrong_checkpoints(tmp_path, last, faces):
    c = checkpoints.load(last)
    kept = dict(license='CC0-1.0', progress=c.meta['progress'])
    checkpoints.save(tmp_path/'bare.safetensors', G_ema=c.G_ema, provenance={}, **kept)
    checkpoints.save(tmp_path/'judge.safetensors', D=c.D, provenance=c.meta['provenance'], **kept)
    card = page(tmp_path/'x.md')
    before = card.read_bytes()
    for wrong, error, said in [(tmp_path/'bare.safetensors', ValueError,
                                'provenance has nothing.*accepted: a checkpoint that cleftgan train has written'),
                               (tmp_path/'judge.safetensors', ValueError, 'has no generator, only D'),
                               (faces, ValueError, "ends in '.zip'; accepted"), (tmp_path, ValueError, 'is a folder'),
                               (tmp_path/'none.safetensors', FileNotFoundError, 'no file')]:
        with pytest.raises(error, match=said): model_card(wrong, card)
    assert card.read_bytes() == before and not (tmp_path/'x').exists()


def test_wrong_sources(tmp_path, last, run, faces):
    card, config = page(tmp_path/'x.md'), checkpoints.load(last).meta['provenance']['config']
    with pytest.raises(ValueError, match='is another run: it has seed=0, the checkpoint was trained with 1'):
        check_run(run, Config(**config | dict(seed=1)), .048)
    with pytest.raises(ValueError, match='ends at 0.048 kimg, the checkpoint is of 9'):
        check_run(run, Config(**config), 9.)
    with pytest.raises(ValueError, match='has 4 images, the checkpoint was trained on the 8 of faces.zip'):
        model_card(last, card, cohort=cohort('normal', 4, tmp_path/'faces.zip', size=16, workers=1, progress=False))
    (tmp_path/'other.zip').write_bytes(Path(faces).read_bytes())
    with pytest.raises(ValueError, match='but the checkpoint was trained on faces.zip'):
        model_card(last, card, cohort=tmp_path/'other.zip')
    with pytest.raises(FileNotFoundError, match='no folder'): model_card(last, card, run=tmp_path/'nowhere')
    with pytest.raises(ValueError, match="the block 'people'; accepted: facts, training"):
        model_card(last, page(tmp_path/'data.md', ['people']))
    with pytest.raises(ValueError, match='is not a card'):
        (tmp_path/'letter.md').write_text('Dear')
        model_card(last, card, out=tmp_path/'letter.md')


# the cards of this repository
@pytest.mark.parametrize('path', CARDS, ids=lambda p: p.stem)
def test_our_cards(path):
    "Complete, either not filled yet or filled by the program, and about the file that ships"
    text = path.read_text(encoding='utf-8')
    assert text.startswith(f'# Model card: {path.stem}\n')
    found = stale_model_card(path, checkpoints.shipped().get(path.stem))
    assert not found or len(found) == len(MODEL_BLOCKS) and all('is empty' in o for o in found), found
    for said in ('CC0-1.0', 'consent', 'Limits', 'must not be used', 'diagnosis', 'Keeping it', 'converged'):
        assert re.search(said, text, re.I), said
    assert not [o for o in re.findall(r'\]\(([^)]+)\)', text) if not (path.parent/o).exists()]


def test_models_that_ship_have_a_card():
    assert set(checkpoints.shipped()) <= {p.stem for p in CARDS}


# a run and a dataset from elsewhere
def told(checkpoint, run, data, folder):
    with module._source(checkpoint, run, data, 'x') as s: return module.training(s, folder)


@pytest.mark.parametrize('line', [b'{"kimg": 0.048, "st', b'\xff', b'['*100_000, b'[1]', b'{"step": 3}'])
def test_a_log_that_breaks_off_is_told_without_its_end(tmp_path, run, last, faces, line):
    "As the curves are drawn, with a warning"
    other = shutil.copytree(run, tmp_path/'toy')
    with (other/'time.jsonl').open('ab') as f: f.write(line)
    with pytest.warns(UserWarning, match='the last line ends after'): text = told(last, other, faces, tmp_path)
    assert lines(text)['time'] == lines(told(last, run, faces, tmp_path))['time']


@pytest.mark.parametrize('lost', ['kind', 'images'])
def test_a_dataset_that_does_not_say_what_it_is(tmp_path, run, last, faces, lost):
    with zipfile.ZipFile(faces) as old, zipfile.ZipFile(tmp_path/'faces.zip', 'w') as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps({k: v for k, v in json.loads(data).items() if k != lost})
                         if name == 'about.json' else data)
    if lost == 'kind':
        assert (lines(told(last, run, tmp_path/'faces.zip', tmp_path))['data']
                == '`faces.zip`, 8 images and their mirror images')
    else:
        with pytest.raises(ValueError, match='has None images, the checkpoint was trained on the 8 of faces.zip'):
            told(last, run, tmp_path/'faces.zip', tmp_path)
