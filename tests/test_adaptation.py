"""Severity by adaptation, with a tiny untrained generator: the protocol, what scores depend on, what the losses
hide, refusals"""
import copy

import numpy as np, pytest, torch

from cleftgan_nb.metrics.adaptation import (LEAST, Adaptation, aggregate, calibrate, doubt, ellipse, heatmap, line,
                                            seen_distance, weighted_error, windows)
from cleftgan_nb.metrics.severity import Scorer
from cleftgan_nb.networks import build


class Squares:
    "A distance that needs no file"
    def distance(self, a, b): return (a - b).square().mean((1, 2, 3))


def tiny(name='stylegan3-t', **more):
    torch.manual_seed(0)
    if name == 'stylegan3-t': more = dict(num_layers=4, num_critical=1) | more
    return build(name, 16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, **more)[0].eval()


def made(**more): return Adaptation(tiny(), Squares(), **{**dict(search=2, steps=2, drawn=8), **more})


@pytest.fixture(scope='module')
def images(): return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)


@pytest.fixture(scope='module')
def scorer(): return made(scale=(1., -1.5))


def test_protocol(scorer, images):
    assert isinstance(scorer, Scorer) and scorer.name == 'severity_adaptation'
    s = scorer.score(images)
    assert s.shape == (4,) and s.dtype == np.float64 and (s >= 0).all() and (s <= 1).all() and s.std() > 0
    assert np.array_equal(s, np.clip(1. - 1.5*scorer.normality(images), 0, 1))


def test_same_digits_again_and_alone(scorer, images):
    "Neither neighbors nor the caller's random numbers nor an earlier call matter"
    n = scorer.normality(images)
    torch.manual_seed(7)
    assert np.array_equal(n, made().normality(images)) and np.array_equal(n[3:4], scorer.normality(images[3:4]))
    assert np.array_equal(n, scorer.normality(images[i:i + 2] for i in (0, 2)))
    torch.manual_seed(7)
    a = torch.rand(1)
    torch.manual_seed(7)
    scorer.normality(images[:1])
    assert torch.equal(a, torch.rand(1))


def test_works_inside_no_grad(scorer, images):
    with torch.no_grad(): assert np.array_equal(scorer.normality(images[:1]), made().normality(images[:1]))


def test_leaves_the_generator_alone(images):
    G = tiny()
    before = copy.deepcopy(G.state_dict())
    asked = [p.requires_grad for p in G.parameters()]
    Adaptation(G, Squares(), search=2, steps=2, drawn=4).normality(images[:2])
    assert (all(torch.equal(a, b) for a, b in zip(before.values(), G.state_dict().values()))
            and asked == [p.requires_grad for p in G.parameters()])


def test_gets_closer(images):
    "The search gets closer than the regression, and adapting closer still"
    from cleftgan_nb.metrics.samples import samples
    s = made(search=20, steps=10)
    x = torch.from_numpy(samples(tiny(), 3, seed=5, progress=False)).permute(0, 3, 1, 2).float()/127.5 - 1
    x = (x[:1]*.8 + .1)
    error = lambda y: float(weighted_error(x, y, windows(16)[0]))
    middle, spread, first = s.start
    from cleftgan_nb.metrics.adaptation import _draw, coarse
    w = s.closest(x)
    faces = s.adapt(x, w)
    with torch.no_grad(): begin = _draw(s.G_ema.synthesis, middle + spread*(coarse(x) @ first))
    assert error(begin) > error(faces[:1]) > error(faces[-1:]) and len(faces) == 11


@pytest.mark.parametrize('name', ['stylegan2', 'stylegan3-t'])
def test_both_generators_and_larger_pictures(name, images):
    s = Adaptation(tiny(name), Squares(), search=2, steps=2, drawn=4, shift=8)   # 2 pixels of 16
    faces, maps = s.normalize(images[:2])
    assert faces.shape == (2, 16, 16, 3) and faces.dtype == np.uint8 and maps.shape == (2, 16, 16) and (maps >= 0).all()
    large = images[:1].repeat(4, 1).repeat(4, 2)
    assert np.allclose(s.normality(large), s.normality(images[:1]), atol=1e-4)
    for k, map in enumerate(maps):
        x = torch.from_numpy(images[k:k + 1]).permute(0, 3, 1, 2).float()/127.5 - 1
        drawn = s.adapt(x, s.closest(x))[-1:]
        assert np.array_equal(map, heatmap(x, drawn, 2)[0]) and not np.array_equal(map, heatmap(x, drawn, 0)[0])
        assert s.normality(images[k:k + 1]) == pytest.approx(aggregate(map[None], x))


def test_what_differs_a_lot_around_the_mouth_is_hidden():
    x = torch.zeros(1, 3, 64, 64)
    y = x.clone()
    y[..., 40:46, 28:36] = 1.
    y[..., 10:16, 28:36] = 1.
    h = doubt(x, y, .2)
    assert (h.shape == (64, 64) and h[42:44, 30:34].min() > .85 and h[10:16].max() < .01 and h[50:].max() < .01
            and h.max() <= 1)
    assert doubt(x, x + .02, .2).max() < .02


def test_search_doubts_what_differs_a_lot(images):
    x = torch.from_numpy(images[:1]).permute(0, 3, 1, 2).float()/127.5 - 1
    trusting, doubting = (made(search=6, tau=tau).closest(x) for tau in (1e3, .1))
    assert not torch.allclose(trusting, doubting, atol=1e-4)


def test_width_counts_more_than_area():
    "Pixels side by side are a wider gap than as many below each other"
    face = torch.zeros(1, 3, 64, 64)
    wide, high = face.clone(), face.clone()
    wide[..., 41:43, 28:36] = -.8
    high[..., 38:46, 31:33] = -.8
    assert (aggregate(heatmap(wide, face, 0), wide)[0] < aggregate(heatmap(high, face, 0), high)[0]
            < aggregate(heatmap(face, face), face)[0])


def test_black_pictures_have_finite_scores():
    black, gray = torch.full((1, 3, 64, 64), -1.), torch.zeros(1, 3, 64, 64)
    assert all(np.isfinite(aggregate(heatmap(a, b), a)).all() for a in (black, gray) for b in (black, gray))


def test_hidden_part_does_not_matter():
    x, y, hidden = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.zeros(16, 16)
    hidden[4:9, 4:9] = 1
    changed = x.clone()
    changed[..., 4:9, 4:9] = 0
    d = [seen_distance(v, y, 1 - hidden, hidden, Squares()) for v in (x, changed)]
    assert (d[0].shape == (2,) and torch.equal(*d)
            and not torch.equal(d[0], seen_distance(x, y, torch.ones(16, 16), 0*hidden, Squares())))


def test_windows_are_weights_of_one_face():
    for size in (16, 64, 128):
        face, lip, around, skin = windows(size)
        assert (all(w.shape == (size, size) and 0 <= w.min() and w.max() <= 1 for w in (face, lip, around, skin))
                and lip.sum() < around.sum() < face.sum() and (lip*skin).max() < .1)
    small, large = ellipse(64, .5, .5, .3, .2), ellipse(128, .5, .5, .3, .2)
    assert abs(small.mean() - large.mean()) < .01 and torch.equal(small, small.flip(1))


def test_heatmap_is_ycbcr_squared_and_forgives_a_shift():
    "A hole without red is darker and of another color, which counts four times"
    x = torch.zeros(1, 3, 16, 16)
    y = x.clone()
    x[:, 0, 4:9, 4:9] = -1.
    brightness, colors = .299**2*.25, (.168736**2 + .5**2)*.25
    assert (heatmap(x, y, 0).max() == pytest.approx(brightness + 4*colors, rel=1e-5)
            and (heatmap(x, y, 0) > 0).sum() == 25)
    # lighter: no cleft
    assert (heatmap(x, y, 0, color=0).max() == pytest.approx(brightness, rel=1e-5)
            and heatmap(y, x, 0, color=0).max() == 0)
    assert heatmap(y, x, 0, lighter=.5).max() == pytest.approx(brightness/2 + 4*colors, rel=1e-5)
    for s in (1, 2):
        moved = x.roll((s, -s), (2, 3))
        # a hole stays, a shift does not
        assert (heatmap(x, y, s) > 0).sum() == 25 and heatmap(x, moved, s).max() == 0 < heatmap(x, moved, s - 1).max()
    assert heatmap(y, x, 5).max() == 0                # only what the first has counts
    assert (heatmap(x, x).max() == 0 and np.isfinite(aggregate(heatmap(x, x), x)).all()
            and aggregate(heatmap(x, x), x) > aggregate(heatmap(x, y), x))
    assert np.array_equal(heatmap(x, torch.cat([y, x])), np.concatenate([heatmap(x, y), heatmap(x, x)]))


def test_a_pixel_counts_half_at_kappa():
    "Differing by 30 % of the skin's brightness, the lip counts half; by all of it, nearly fully"
    face = torch.zeros(1, 3, 64, 64)                 # gray: brightness .5
    share = lambda d, rest=0, **more: 10**-aggregate(np.full((1, 64, 64), d**2), face, rest=rest, **more)[0] - LEAST
    assert (share(.15) == pytest.approx(.5) and share(.25, kappa=.5) == pytest.approx(.5)
            and .9 < share(.5) < share(5.) < 1 and share(0.) == pytest.approx(0, abs=1e-9))
    assert share(.15, rest=.4) == pytest.approx(.3)  # a face that is wrong everywhere


def test_a_wider_hole_scores_lower():
    "The lip counts, not hair or clothes"
    face = torch.zeros(1, 3, 64, 64)
    scores = []
    for half in (0, 2, 4, 6):
        hole = face.clone()
        hole[..., 38:44, 32 - half:32 + half] = -.8
        scores.append(aggregate(heatmap(hole, face), hole)[0])
    assert all(a > b for a, b in zip(scores, scores[1:]))
    hair = face.clone()
    hair[..., :16, :] = -.8
    assert aggregate(heatmap(hair, face), hair)[0] == pytest.approx(scores[0], abs=.02)
    dark = lambda p: (p + 1)*.3 - 1                  # the same in a third of the light
    assert aggregate(heatmap(dark(hole), dark(face)), dark(hole))[0] == pytest.approx(scores[-1], rel=1e-6)


def test_calibration_is_the_best_line(images):
    s = made()
    t = np.array([0., .2, .5, 1.])
    scaled = calibrate(s, images, t)
    assert (s.scale is None and scaled.scale == pytest.approx(np.polyfit(s.normality(images), t, 1)[::-1])
            and isinstance(scaled, Adaptation))
    a, b = line(np.array([3., 2., 1.]), np.array([0., .5, 1.]))
    assert (a, b) == pytest.approx((1.5, -.5))


def test_refuses(scorer, images):
    with pytest.raises(ValueError, match='no scale; make one with calibrate'): made().score(images)
    for bad, words in ((images.astype(float), 'dtype float64; accepted: uint8'),
                       (images[:, :8, :8], 'images are 8 x 8 pixels; accepted: square ones of at least 16 x 16'),
                       (images[:, :, :12], '16 x 12'), (images[:0], 'at least one image')):
        with pytest.raises(ValueError, match=words): scorer.score(bad)
    with pytest.raises(ValueError, match='G_ema is str; accepted: a generator'): Adaptation('net')
    with pytest.raises(ValueError, match='3 labels.*labels=… where it takes some'): Adaptation(tiny(c_dim=3), Squares())
    for more, words in ((dict(search=0), 'search=0'), (dict(steps=-1), 'steps=-1'), (dict(seed=-1), 'seed=-1'),
                        (dict(drawn=1.5), 'drawn=1.5'), (dict(shift=-1), 'shift=-1'), (dict(lr=0.), 'lr=0'),
                        (dict(scale=(1,)), 'scale=')):
        with pytest.raises(ValueError, match=words): made(**more)


@pytest.mark.parametrize('n, t, words', [([1., 2.], [0., 1.], '3 images or more'),
                                         ([1., 2., 3.], [0., .5], 'a number for each'),
                                         ([1., 2., 3.], [0., .5, 1.5], 'severities from 0 to 1.5; accepted: 0 to 1'),
                                         ([1., 1., 1.], [0., .5, 1.], 'all alike'),
                                         ([1., 2., 3.], [.5, .5, .5], 'all alike')])
def test_line_refuses(n, t, words):
    with pytest.raises(ValueError, match=words): line(n, t)
