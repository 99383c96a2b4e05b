"""Memorization: planted copies, known distances, intervals, refusals"""
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from scipy.ndimage import binary_dilation
from scipy.spatial.distance import cdist

from cleftgan_nb.metrics import copies as module
from cleftgan_nb.metrics.copies import (AT_ONCE, Memorized, Pixels, before_others, in_words, matching_blur, memorization, mirrored,
                                         moved, nearest, oval, planted_copies, plot_neighbors, plot_power, power, ratios,
                                         softened, suspects)
from cleftgan_nb.metrics.score import wilson
from cleftgan_nb.metrics.score import Score


def smooth(n, seed, size=32):
    "Draw soft blobs: unlike each other, alike after a small change"
    coarse = np.random.default_rng(seed).random((n, 5, 5, 3))
    y = np.linspace(0, 4, size)
    k = np.minimum(y.astype(int), 3)
    w = np.maximum(0, 1 - np.abs(y[:, None] - np.arange(5)))
    return np.clip(np.einsum('ia,nabc,jb->nijc', w, coarse, w)*255, 0, 255).astype(np.uint8)


class Plain:
    "A user's feature space: the pixels as they are"
    name = 'plain'

    def features(self, images): return images.reshape(len(images), -1)/255


@pytest.fixture(scope='module')
def sets(): return smooth(20, 1), smooth(20, 2), smooth(10, 3)


CHANGES = {'unchanged': lambda x: x, 'mirrored': mirrored, 'shifted': lambda x: np.roll(x, 1, 2),
           'darker': lambda x: (x*.7).astype(np.uint8),
           'both': lambda x: (mirrored(np.roll(x, 1, 1))*.8).astype(np.uint8)}


@pytest.mark.parametrize('change', CHANGES)
def test_finds_planted_copies(sets, change):
    training, held_out, new = sets
    m = memorization(np.concatenate([new, CHANGES[change](training[[3, 7]])]), training, held_out, [Pixels()],
                     resamples=50)[0]
    assert m.copied.tolist() == [False]*10 + [True]*2 and m.nearest[10:].tolist() == [3, 7]
    assert m.mirrored[10:].all() == (change in ('mirrored', 'both')) and set(suspects(m, 2)) == {10, 11}
    assert m.scores[0].value == pytest.approx(1/6) and m.scores[0].notes['count'] == 2


def test_brightness_hides_from_plain_pixels_only(sets):
    training, held_out, _ = sets
    plain, even = memorization((training*.5).astype(np.uint8), training, held_out, [Pixels(even=False), Pixels()],
                               resamples=2)
    assert even.copied.all() and plain.ratio.mean() > 4*even.ratio.mean()


def test_agrees_with_an_independent_computation(sets):
    training, held_out, new = sets
    m = memorization(new, training, held_out, [Plain()], resamples=200)[0]
    flat = lambda x: x.reshape(len(x), -1)/255
    def both(a, b): return np.minimum(cdist(flat(a), flat(b)), cdist(flat(a), flat(mirrored(b))))
    t, h, tt, gg = both(new, training), both(new, held_out), both(training, training), both(new, new)
    np.fill_diagonal(tt, np.inf)
    np.fill_diagonal(gg, np.inf)
    assert (m.nearest == t.argmin(1)).all() and (m.held_out == h.argmin(1)).all() and (m.twin == gg.argmin(1)).all()
    assert (m.ratio == pytest.approx(t.min(1)/h.min(1), rel=1e-9)
            and m.twin_ratio == pytest.approx(gg.min(1)/h.min(1), rel=1e-9))
    assert (m.authentic == (t.min(1) > tt.min(1)[t.argmin(1)])).all()
    names = [s.name for s in m.scores]
    assert (names == ['copied_plain', 'distance_ratio_plain', 'authenticity_plain', 'duplicates_plain']
            and all(isinstance(s, Score) and s.low <= s.value <= s.high for s in m.scores))
    assert (m.scores[1].value == pytest.approx(np.median(m.ratio))
            and m.scores[0].sizes == {'training': 20, 'held out': 20, 'generated': 10})


def test_duplicates_are_no_copies(sets):
    training, held_out, new = sets
    m = memorization(np.concatenate([new, mirrored(new[:1])]), training, held_out, [Pixels()], resamples=2)[0]
    assert (np.flatnonzero(m.duplicate).tolist() == [0, 10] and not m.copied.any()
            and m.twin[[0, 10]].tolist() == [10, 0])


def test_the_face_alone_is_found_before_another_background_and_in_another_place(sets):
    training, held_out, new = sets
    face = binary_dilation(oval(32), iterations=2)       # its rim is blended into the small pixels
    copies = np.where(face[..., None], training[:10], smooth(10, 9))
    run = lambda images, space: memorization(images, training, held_out, [space], resamples=2)[0]
    whole, face = (run(copies, Pixels(face=o)) for o in (False, True))
    assert face.copied.all() and face.nearest.tolist() == list(range(10)) and whole.copied.sum() < 5
    assert run(moved(copies, 3), Pixels(face=True)).copied.all() and not run(new, Pixels(face=True)).copied.any()


def test_soft_copies_are_found_at_the_sharpness_of_the_generator():
    rng = np.random.default_rng(0)
    training, held_out, new = (rng.integers(256, size=(n, 32, 32, 3), dtype=np.uint8) for n in (20, 20, 6))
    made = softened(np.concatenate([new, training[:4]]), 1.)
    assert matching_blur(training, made) == pytest.approx(1, abs=.05)
    found = memorization(made, training, held_out, [Plain()], alarms=.05, resamples=2)[0]
    assert found.copied[6:].all() and found.ratio[6:].max() < .5 < .8 < found.ratio[:6].min()
    assert (found.honest < found.below).mean() == .05
    assert not memorization(made, training, held_out, [Plain()], resamples=2)[0].copied.any()      # as it was


def test_power_is_what_was_planted_and_found(sets):
    training, held_out, new = sets
    m = memorization(new, training, held_out, [Pixels(8)], alarms=0., planted=5, resamples=2)[0]
    rows = {r['planted']: r for r in power(m)}
    assert rows['as sharp as generated']['found'] == 5 and rows[AT_ONCE]['n'] == 5
    assert m.alike == .5 and rows.keys() == planted_copies(training, new, 2)[1].keys()
    assert f'{m.copied.sum()} of 10 (by chance: 0)' in in_words(m) and all(r['held_out'] == 0 for r in rows.values())
    some = dict.fromkeys(Memorized.__dataclass_fields__) | dict(below=.5, honest=np.ones(9), ratio=np.ones(1000))
    [row] = power(Memorized(**some | dict(planted={AT_ONCE: np.repeat([.1, 2.], [36, 4])})))
    assert (row['low'], row['high']) == (pytest.approx(.7634, abs=1e-4), pytest.approx(.9721, abs=1e-4))   # exact
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig = plot_power([m])
    assert len(fig.axes[0].lines) == 8 and 'finds' in fig.axes[0].get_title()
    plt.close(fig)


def test_gray_people_before_other_backgrounds(sets):
    gray = sets[0][:2, ..., :1]
    assert before_others(gray, sets[1][:2, ..., :1]).shape == gray.shape


def test_seeded_and_blocks_change_nothing(sets, monkeypatch):
    training, held_out, new = sets
    run = lambda seed=0: memorization(new, training, held_out, [Pixels()], seed=seed)[0]
    a = run()
    assert ([s.as_row() for s in a.scores] == [s.as_row() for s in run().scores]
            and a.scores[1].low != run(5).scores[1].low)
    monkeypatch.setattr(module, 'BLOCK', 3)
    b = run()
    assert (a.nearest == b.nearest).all() and b.ratio == pytest.approx(a.ratio, rel=1e-9)


def test_more_held_out_images_are_drawn_from(sets):
    training, held_out, new = sets
    m = memorization(new, training[:8], held_out, [Pixels()], resamples=2)[0]
    assert m.scores[0].sizes == {'training': 8, 'held out': 8, 'generated': 10} and m.held_out.max() < 20


@pytest.mark.parametrize('generated', [np.full((4, 32, 32, 3), 90, np.uint8), np.full((1, 32, 32, 3), 90, np.uint8)])
def test_images_that_are_all_equal(sets, generated):
    m = memorization(generated, *sets[:2], [Pixels()], resamples=2)[0]
    assert (np.isfinite([s.value for s in m.scores]).all()
            and m.duplicate.tolist() == [len(generated) > 1]*len(generated))
    three = np.repeat(generated, 3, 0)[:3]
    with pytest.warns(UserWarning, match='2 of 3 held-out'):
        same = memorization(generated, three, np.concatenate([three[:2], sets[1][:1]]), [Pixels()], resamples=2)[0]
    assert (same.ratio == 1).all() and not same.copied.any()        # in both sets: no evidence


def test_some_held_out_images_were_trained_on(sets):
    training, held_out, new = sets
    with pytest.warns(UserWarning, match='2 of 20 held-out images .* leave them out'):
        memorization(new, training, np.concatenate([held_out[:18], training[:2]]), [Pixels()], resamples=2)


def test_gray_images_and_a_picture(sets):
    gray = [s[..., :1] for s in sets]
    m = memorization(gray[2], *gray[:2], resamples=2, networks=[Pixels(8)])[0]
    assert m.network == 'pixels_8'
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig = plot_neighbors(m, gray[2], *gray[:2], [0, 1, 2], columns=2)
    assert len(fig.axes) == 4 and f'{m.ratio[1]:.2f}' in fig.axes[1].get_title()
    plt.close(fig)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_solves_its_equation(kn):
    k, n = kn
    low, high = wilson(k, n)
    assert 0 <= low <= k/n <= high <= 1
    for p in (low, high):
        if 0 < p < 1: assert abs(k/n - p) == pytest.approx(1.959964*np.sqrt(p*(1 - p)/n), abs=1e-6)


def test_ratios_and_nearest():
    assert ratios(np.array([0., 1, 0]), np.array([0., 0, 2])).tolist() == [1, np.inf, 0]
    y = np.array([[0., 0], [1, 0], [5, 0], [0, 9], [4.5, 0], [5, 9]])   # three images, then mirrored
    distance, which, flipped = nearest(y[:3], y, itself=True)           # the third's is the second's mirror image
    assert (distance.tolist(), which.tolist(), flipped.tolist()) == ([1, 1, .5], [1, 0, 1], [False, False, True])


class Broken(Plain):
    def features(self, images): return np.full((len(images), 2), np.nan)


class Short(Plain):
    def features(self, images): return np.ones((len(images) - 1, 2))


@pytest.mark.parametrize('change, message', [
    (dict(held_out=smooth(20, 1)), '20 of 20 held-out images are among the training images.*never saw'),
    (dict(held_out=smooth(5, 1)), 'held_out has 5 images, training 20'),
    (dict(training=smooth(2, 1)), r'training has 2 image\(s\); accepted: at least 3'),
    (dict(generated=smooth(3, 1, 16)), 'accepted: one size'),
    (dict(generated=smooth(3, 1)/255), 'generated has dtype float64; accepted: uint8'),
    (dict(networks=[]), 'accepted: a list of objects'),
    (dict(networks=[Broken()]), 'NaN or infinite features'), (dict(networks=[Short()]), 'one row for each image'),
    (dict(below=0), 'below=0; accepted'), (dict(alarms=1), 'alarms=1; accepted: a share below 1'),
    (dict(planted=-1), 'planted=-1'), (dict(resamples=1), 'resamples=1; accepted'), (dict(seed=-1), 'seed=-1')])
def test_refuses(sets, change, message):
    with pytest.raises(ValueError, match=message):
        memorization(**dict(training=sets[0], held_out=sets[1], generated=sets[2], networks=[Plain()]) | change)
