"""The severity scorer: what it learns, that training repeats, refusals, and how well the shipped one agrees with
the truth"""
import json
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from hypothesis import given, settings, strategies as st
from scipy.stats import pearsonr

from cleftgan_nb.checkpoints import read_tensors, write_tensors
from cleftgan_nb.data import phantom
from cleftgan_nb.data.cohorts import cohort
from cleftgan_nb.data.datasets import ImageFolderDataset, manifest
from cleftgan_nb.files import sha256
from cleftgan_nb.metrics.severity_report import stale_report
from cleftgan_nb.metrics.severity import (Regression, Scorer, SeverityNet, agreement, augmented, by_group,
                                          PHOTOGRAPHS, SHIPPED, load_regression, save_regression, scorer_for, to_size,
                                          train_regression, training_data, visible_severity)

CARD = Path(__file__).resolve().parent.parent/'data_cards'/'severity-regression.md'


@pytest.fixture(scope='module')
def pictures():
    "Draw people from no cohort, by rising severity, with the truth"
    drawn = [phantom(7_700_000_000 + k, s, 'left' if s and k % 2 else 'right' if s else None, 64)
             for k, s in enumerate((0., .1, .3, .5, .7, .9, 1., 0.))]
    return np.stack([d[0] for d in drawn]), [d[1].row() for d in drawn]


@pytest.fixture(scope='module')
def noise():
    return (np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8),
            np.random.default_rng(1).random((24, 2)))


@pytest.fixture(scope='module')
def untrained():
    torch.manual_seed(0)
    return Regression(SeverityNet().eval())


def test_closed_lips_are_zero(tmp_path):
    paths = [cohort(kind, n, tmp_path/f'{kind}.zip', seed=5, workers=1, progress=False)
             for kind, n in (('cleft', 6), ('normal', 2))]
    images, sides = training_data(paths)
    rows = [r for p in paths for r in manifest(p)]
    assert images.shape == (8, 64, 64, 3) and images.dtype == np.uint8 and sides.shape == (8, 2)
    for r, (left, right) in zip(rows, sides):
        assert (left, right) == ((0, 0) if r['repaired'] or r['kind'] == 'normal' else (r['lip_left'], r['lip_right']))
        assert max(left, right) == (0 if r['repaired'] else r['severity'])
    assert list(visible_severity(rows)) == list(sides.max(1))


def test_training_repeats_and_the_seed_matters(noise):
    runs = [train_regression(*noise, seed=s, steps=3, batch=8, progress=False) for s in (1, 1, 2)]
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a[0].state_dict().values(), b[0].state_dict().values()))
    assert same(runs[0], runs[1]) and runs[0][1] == runs[1][1] and not same(runs[0], runs[2])


def test_training_leaves_the_callers_randomness_alone(noise):
    torch.manual_seed(3)
    a = torch.rand(1)
    torch.manual_seed(3)
    train_regression(*noise, steps=1, batch=4, progress=False)
    assert torch.equal(a, torch.rand(1))


def test_training_learns():
    "A spot on the left or right whose size is the severity, darker than the rest in gray, too"
    rng = np.random.default_rng(0)
    s = rng.random((128, 2))*(rng.random((128, 2)) < .5)
    x = np.full((128, 64, 64, 3), 120, np.uint8)
    rows = np.arange(64)[None, :, None]
    for k, at in ((0, 38), (1, 26)):
        x[(abs(rows - 42) < 8*s[:, None, k:k + 1])*(abs(rows - at) < 3).transpose(0, 2, 1)] = 90, 20, 20
    net, losses = train_regression(x, s, steps=60, batch=32, progress=False)
    assert np.mean(losses[-10:]) < np.mean(losses[:5])/4 and np.abs(Regression(net).sides(x) - s).mean() < .1


@given(seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_augmentation_keeps_what_it_says(seed):
    x, s = torch.rand(6, 3, 64, 64)*255, torch.rand(6, 2)
    a, b = (augmented(x.clone(), s, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and a[0].shape == (6, 3, 40, 40) and a[0].isfinite().all()
    assert all(torch.equal(p, q) or torch.equal(p, q.flip(0)) for p, q in zip(a[1], s))


def test_augmentation_makes_some_pictures_gray():
    x = torch.rand(256, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    looks, _ = augmented(x*255, torch.zeros(256, 2), torch.Generator().manual_seed(0))
    apart = (looks - looks.mean(1, keepdim=True)).abs().mean((1, 2, 3))
    assert .2 < (apart < .06).float().mean() < .5     # what is left of the difference is noise


def test_augmentation_mirrors_picture_and_sides_together():
    "A mark on the patient's left, the picture's right, is where its severity is"
    x = torch.zeros(64, 3, 64, 64)
    x[:, :, 38:48, 38:44] = 255
    looks, sides = augmented(x, torch.tensor([[1., 0.]]).expand(64, 2), torch.Generator().manual_seed(0))
    bright = looks.mean(1)
    assert (all((row[:, 20:].mean() > row[:, :20].mean()) == (s[0] == 1) for row, s in zip(bright, sides))
            and 0 < sides[:, 0].sum() < 64)


def test_protocol_mirror_range_and_batches(untrained, noise):
    x = noise[0]
    assert isinstance(untrained, Scorer)
    s = untrained.score(x)
    assert s.shape == (24,) and s.dtype == np.float64 and (s >= 0).all() and (s <= 1).all()
    assert (np.array_equal(s, untrained.score(x[:, :, ::-1]))
            and np.array_equal(untrained.sides(x), untrained.sides(x[:, :, ::-1])[:, ::-1]))
    assert np.abs(untrained.score(x, batch=5) - s).max() < 1e-6 and np.abs(untrained.score(x[3:4]) - s[3]).max() < 1e-6
    same = untrained.score(x[:1].repeat(3, 0))
    # one image or three may be added up in another order
    assert len(set(same)) == 1 and np.abs(same - untrained.score(x[:1])).max() < 1e-6


def test_sizes_and_gray(untrained, noise):
    x = noise[0]
    large = x.repeat(4, 1).repeat(4, 2)
    assert torch.equal(to_size(large), to_size(x)) and np.abs(untrained.score(large) - untrained.score(x)).max() < 1e-5
    gray = x[..., :1]
    assert np.abs(untrained.score(gray) - untrained.score(gray.repeat(3, 3))).max() < 1e-6
    step = np.zeros((1, 128, 128, 3), np.uint8)
    step[:, ::2] = 255   # stripes of one pixel: antialiasing makes them gray
    assert 100 < to_size(step)[0, :, 8:-8].min() and to_size(step)[0, :, 8:-8].max() < 155


@pytest.mark.parametrize('images, words', [(np.zeros((2, 64, 64, 3)), 'dtype float64; accepted: uint8'),
                                           (np.zeros((2, 32, 32, 3), np.uint8),
                                            'images are 32 x 32 pixels; accepted: square ones of at least 64'),
                                           (np.zeros((2, 64, 80, 3), np.uint8), '64 x 80'),
                                           (np.zeros((0, 64, 64, 3), np.uint8), 'at least one image'),
                                           (np.zeros((2, 3, 64, 64), np.uint8), 'Channels come last'),
                                           ([np.zeros((64, 64, 3), np.uint8), np.zeros((96, 96, 3), np.uint8)],
                                            'one size')])
def test_refuses_other_images(untrained, images, words):
    with pytest.raises(ValueError, match=words): untrained.score(images)


def test_file(tmp_path, untrained, noise):
    path = save_regression(tmp_path/'a.safetensors', untrained.net, dict(seed=1, data='x'))
    back = load_regression(path)
    assert (path.stat().st_size < 1 << 20 and path.read_bytes()
            == save_regression(tmp_path/'b.safetensors', untrained.net, dict(data='x', seed=1)).read_bytes())
    assert (back.meta['trained'] == dict(seed=1, data='x') and back.meta['license'] == 'CC0-1.0'
            and back.meta['file'] == 'a.safetensors')
    assert np.abs(back.score(noise[0]) - untrained.score(noise[0])).max() < 2e-3
    assert np.array_equal(back.score(noise[0]), load_regression(save_regression(tmp_path/'c.safetensors', back.net,
            {})).score(noise[0]))


def test_refuses_other_files(tmp_path, untrained):
    path = save_regression(tmp_path/'a.safetensors', untrained.net, {})
    tensors, meta = read_tensors(path)
    with pytest.raises(ValueError, match='of another kind'):
        load_regression(write_tensors(tmp_path/'b.safetensors', tensors, {}))
    with pytest.raises(ValueError, match='not those of a SeverityNet'):
        load_regression(write_tensors(tmp_path/'c.safetensors', {k: t for k, t in tensors.items() if k != '0.weight'},
                                      meta))
    with pytest.raises(FileNotFoundError, match='no file .*nowhere'): load_regression(tmp_path/'nowhere.safetensors')
    (tmp_path/'d.safetensors').write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError): load_regression(tmp_path/'d.safetensors')
    broken = SeverityNet()
    broken[0].weight.data[0] = float('nan')
    with pytest.raises(ValueError, match='not finite, so the training failed'):
        save_regression(tmp_path/'e.safetensors', broken, {})


def test_agreement_is_pearsons_r():
    rng = np.random.default_rng(0)
    t = rng.random(200)
    p = np.clip(t + .1*rng.normal(size=200), 0, 1)
    s = agreement(t, p, seed=4)
    assert (s.value == pytest.approx(pearsonr(t, p)[0], abs=1e-12) and s.low < s.value < s.high
            and s == agreement(t, p, seed=4))
    fisher = np.tanh(np.arctanh(s.value) + 1.96/np.sqrt(197)*np.array([-1, 1]))
    assert (s.low, s.high) == pytest.approx(tuple(fisher), abs=.015)


@pytest.mark.parametrize('t, p, words', [([.1, .2], [.1, .2], '3 images or more'),
                                         ([.1, .2, .3], [.1, .2], 'two lists of the same'),
                                         ([0., 0., 0.], [.1, .2, .3], 'truth is 0 for every image'),
                                         ([.1, .2, np.nan], [.1, .2, .3], 'NaN or infinity')])
def test_agreement_refuses(t, p, words):
    with pytest.raises(ValueError, match=words): agreement(t, p)


def test_groups_hold_everybody_once(pictures):
    rows = pictures[1]
    t = visible_severity(rows)
    found = by_group(rows, t, t, least=3)
    for what in ('side', 'age', 'skin'): assert sum(f['n'] for f in found if f['what'] == what) == len(rows)
    assert all(f['mae'] == 0 and (f['r'] is None or f['r'] == pytest.approx(1)) for f in found)


# ---- the scorer that is shipped

def test_shipped_scorer(pictures):
    "On people from no cohort; the card has the figures on many"
    scorer, (images, rows) = load_regression(), pictures
    s = scorer.score(images)
    t = visible_severity(rows)
    assert pearsonr(s, t)[0] > .95 and np.abs(s - t).mean() < .08 and s[[0, -1]].max() < .15
    sides = scorer.sides(images)
    assert all((left > right) == (r['lip_left'] > r['lip_right']) for (left, right), r in zip(sides, rows)
               if r['severity'] > .2)


def test_shipped_scorer_for_photographs(pictures):
    "On gray phantoms it is a scorer, too, with other weights and another name"
    (images, rows), scorer = pictures, load_regression('photographs')
    gray = np.repeat(np.round(images @ [.299, .587, .114]).astype(np.uint8)[..., None], 3, 3)
    s, t = scorer.score(gray), visible_severity(rows)
    assert pearsonr(s, t)[0] > .9 and np.abs(s - t).mean() < .12
    assert scorer.name != load_regression().name and scorer.meta['file'] == PHOTOGRAPHS.name
    assert not np.array_equal(s, load_regression('phantoms').score(gray))


def test_what_is_stored_about_photographs_is_of_the_weights_that_ship():
    for name in 'unchanged', 'transplanted', 'tried':
        about = json.loads((CARD.parent.parent/'outputs'/'real-mouths'/f'{name}.csv.json').read_text())
        assert about['inputs'] == dict(phantoms=sha256(SHIPPED), photographs=sha256(PHOTOGRAPHS))


def test_a_dataset_is_read_by_the_scorer_for_its_kind(tmp_path):
    assert scorer_for(cohort('cleft', 2, tmp_path/'c.zip', workers=1, progress=False)).name == 'severity_regression'
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path/'a.png')
    assert scorer_for(tmp_path).name == 'severity_photographs'


def test_shipped_scorer_sees_the_same_in_larger_pictures():
    for seed, s in ((7_700_000_001, .6), (7_700_000_002, 0.)):
        small, large = (load_regression().score(phantom(seed, s, 'left' if s else None, size)[0][None])[0]
                        for size in (64, 256))
        assert abs(small - large) < .1


def test_shipped_scorer_does_not_mind_softness_and_light():
    scorer = load_regression()
    images = np.stack([phantom(7_700_000_010 + k, s, 'left' if s else None, 64)[0] for k, s in enumerate((0., .4, .8))])
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    blur = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (1, 1, 1, 1), 'replicate'), 3, 1)
    for changed in ((x + blur)/2, x*.85 + 10, x + 6*torch.randn(x.shape, generator=torch.Generator().manual_seed(0))):
        assert np.abs(scorer.score(changed.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy())
                      - scorer.score(images)).max() < .15


def test_card_belongs_to_the_shipped_scorer():
    assert stale_report(CARD) == []


def test_card_says_what_it_must_not_be_used_for():
    text = CARD.read_text(encoding='utf-8')
    for said in ('license', 'consent', 'Limits', 'must not be used', 'diagnosis', 'Keeping it', 'Phantoms only',
                 'not been validated'):
        assert said.lower() in text.lower(), said
