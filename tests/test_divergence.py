"""DISH: known answers, symmetry, bounds, its floor, refusals"""
import math

import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, ttest_ind, wasserstein_distance

from cleftgan_nb.data.cohorts import Recipe, draw_severity
from cleftgan_nb.metrics import divergence
from cleftgan_nb.metrics.divergence import compare_severities, dish, mean_difference, moved, sd_ratio
from cleftgan_nb.metrics.score import Score

samples = st.lists(st.floats(0, 1), min_size=1, max_size=60)
quick = dict(resamples=2)


def severities(n, recipe=Recipe(), seed=0):
    rng = np.random.default_rng(seed)
    return np.array([draw_severity(rng, recipe)[0] for _ in range(n)])


def histogram(values, bins=20):
    "Smooth by adding one to each bin"
    n = [sum(k <= v*bins < k + 1 or (k == bins - 1 and v == 1) for v in values) for k in range(bins)]
    return np.array([(c + 1)/(len(values) + bins) for c in n])


@pytest.mark.parametrize('n', [1, 20, 514])
def test_disjoint_samples(n):
    "Two bins hold everything; the other 18 are alike and cancel"
    p, q = (n + 1)/(n + 20), 1/(n + 20)
    assert (dish(np.zeros(n), np.ones(n), **quick).value
            == pytest.approx(p*math.log2(2*p/(p + q)) + q*math.log2(2*q/(p + q)), abs=1e-12))


def test_large_disjoint_samples_reach_one_and_equal_ones_zero():
    assert dish(np.zeros(10**6), np.ones(10**6), **quick).value > .9998
    x = severities(514)
    same = dish(x, x[::-1], **quick)
    assert (same.value, same.notes['kl'], same.notes['wasserstein']) == (0, 0, 0)


@pytest.mark.parametrize('sizes', [(5, 7), (514, 514), (100, 5000)])
def test_agrees_with_an_independent_computation(sizes):
    a, b = (np.random.default_rng(s).beta(2, 3 - s, n) for s, n in enumerate(sizes))
    p, q, s = histogram(a), histogram(b), dish(a, b, **quick)
    assert s.value == pytest.approx(jensenshannon(p, q, base=2)**2, abs=1e-12)
    assert s.notes['kl'] == pytest.approx(entropy(p, q, base=2), abs=1e-12)
    assert s.notes['kl_reverse'] == pytest.approx(entropy(q, p, base=2), abs=1e-12)
    assert s.notes['wasserstein'] == pytest.approx(wasserstein_distance(a, b), abs=1e-12)


@given(samples, samples)
@settings(max_examples=60, deadline=None)
def test_symmetric_and_bounded(a, b):
    x, y = dish(a, b, **quick), dish(b, a, **quick)
    assert x.value == y.value and 0 <= x.value <= 1
    assert ((x.notes['kl'], x.notes['kl_reverse']) == (y.notes['kl_reverse'], y.notes['kl'])
            and min(x.notes['kl'], x.notes['kl_reverse']) >= 0)
    assert (0 <= x.notes['wasserstein'] <= 1 and x.notes['wasserstein']
            == pytest.approx(y.notes['wasserstein'], abs=1e-12))
    # each half is convex in its second argument
    assert x.value <= (x.notes['kl'] + x.notes['kl_reverse'])/2 + 1e-12


@given(samples, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_images_does_not_matter(a, random):
    b = list(a)
    random.shuffle(b)
    assert dish(a, b, **quick).value == 0


def test_seeded():
    a, b = severities(100), severities(300, seed=1)
    assert dish(a, b, seed=3) == dish(a, b, seed=3)
    assert dish(a, b, seed=3).p != dish(a, b, seed=4).p and dish(a, b, seed=3).value == dish(a, b, seed=4).value


def test_says_what_it_is():
    s = dish(severities(30), severities(50), names=('real', 'made'), scorer='a scorer', **quick)
    assert (isinstance(s, Score) and s.sizes == dict(real=30, made=50)
            and (s.name, s.features, s.interval) == ('dish', 'a scorer', 'reversed bootstrap of 2'))
    assert dish([.1], [.2], bins=10, **quick).name == 'dish_10_bins'


@pytest.mark.parametrize('change', ['shift', 'narrow', 'bimodal'])
def test_rises_with_every_step_of_a_known_change(change):
    training, base = severities(514, seed=21), severities(2000, seed=1)
    ends = np.where(np.arange(2000) % 2, .05, .95)
    of = dict(shift=lambda x: severities(2000, Recipe(lip=(.85 - x, .3)), 1),
              narrow=lambda x: base.mean() + (1 - 2*x)*(base - base.mean()),
              bimodal=lambda x: np.where(np.arange(2000) < 4000*x, ends, base))[change]
    found = [dish(training, of(x), resamples=200) for x in np.linspace(0, .4, 6)]
    v = [s.value for s in found]
    assert v == sorted(v) and v[-1] > 10*v[0] and all(s.low > 0 and s.p == 1/201 for s in found[3:])


def test_the_floor_is_where_luck_ends():
    "Samples without a difference exceed it about once in twenty times"
    everybody, rng = severities(20_000, seed=5), np.random.default_rng(6)
    above = [(s := dish(rng.choice(everybody, 200), rng.choice(everybody, 800), resamples=200, level=.9)).value
             > s.floor_high for _ in range(150)]
    assert .03 < np.mean(above) < .19                       # .10 ± 3.5 standard errors
    assert (divergence.shuffled(np.full(20, 500), np.full(20, 500), 2000).mean()
            == pytest.approx(19/(8*math.log(2))*(2/10_000), rel=.05))


def test_takes_lists_arrays_and_tensors():
    x = [.12, .51, .93]
    assert dish(x, np.array(x, np.float32), **quick).value == dish(torch.tensor(x), x, **quick).value == 0


@pytest.mark.parametrize('a, words', [([], 'severity_a has shape'), ([[.1, .2]], 'severity_a has shape'),
                                      ([.1, np.nan], '1 of 2 severities are not finite'), ([.1, np.inf], 'not finite'),
                                      ([-.01, .5], 'goes from -0.01 to 0.5; accepted: severities from 0 to 1'),
                                      ([0, 60, 100], 'from 0 to 1'), (['x'], 'are not numbers'), (None, 'severity_a')])
def test_refuses_what_is_no_severity(a, words):
    with pytest.raises(ValueError, match=words): dish(a, [.5])
    with pytest.raises(ValueError, match=words.replace('severity_a', 'severity_b')): dish([.5], a)


@pytest.mark.parametrize('wrong, words', [(dict(bins=1), 'bins=1; accepted'), (dict(bins=2.5), 'bins=2.5'),
                                          (dict(resamples=0), 'resamples=0'), (dict(seed=-1), 'seed=-1'),
                                          (dict(level=95), 'level=95')])
def test_refuses_other_arguments(wrong, words):
    with pytest.raises(ValueError, match=words): dish([.5], [.5], **wrong)


def test_one_image_and_all_equal_ones():
    # smoothing tells 1 from 2 images, and chance alone goes no further
    s = dish([.5], [.5, .5])
    assert 0 < s.value == pytest.approx(s.floor_high) and s.value == pytest.approx(s.high) and s.low == 0 and s.p == 1
    assert 0 < dish([.1], [.9]).value < .02                 # one image against twenty added ones says nothing


@pytest.mark.parametrize('sizes', [(514, 1000), (100, 5000), (24, 24)])
def test_nothing_lies_below_its_own_interval(sizes):
    "Where nothing differs, the interval of DISH holds 0 and the value, and so does the Wasserstein distance's"
    everybody, rng = severities(5000, seed=5), np.random.default_rng(7)
    for _ in range(6):
        index, _, _, distance = compare_severities(*(rng.choice(everybody, n) for n in sizes), resamples=99)
        if index.p > .2: assert index.low == 0 <= index.value <= index.high
        if distance.p > .2: assert distance.low == 0 <= distance.value <= distance.high


def test_differences_in_plain_units():
    a, b = (np.random.default_rng(k).beta(3, 2, n) for k, n in ((0, 300), (1, 200)))
    s, known = mean_difference(a, b), ttest_ind(b, a, equal_var=False).confidence_interval()
    assert (s.value, s.low, s.high) == pytest.approx((b.mean() - a.mean(), known.low, known.high), abs=1e-12)
    s, wider = sd_ratio(a, b), sd_ratio(a, b, .99)
    assert s.value == pytest.approx(b.std(ddof=1)/a.std(ddof=1)) and wider.low < s.low < s.value < s.high < wider.high
    assert s.value/s.low == pytest.approx(s.high/s.value) and sd_ratio(a, a/2).value == pytest.approx(.5)
    s = moved(a, b, 99)
    assert s.value == pytest.approx(wasserstein_distance(a, b), abs=1e-12) and s.high - s.value == pytest.approx(s.value - s.low)


def test_too_few_or_too_equal_for_an_interval():
    one, same = compare_severities([.1], [.2, .3], resamples=2), compare_severities([.5]*4, [.5]*4, resamples=2)
    assert [s.low is None for s in one] == [s.low is None for s in same] == [False, True, True, False]
    assert math.isnan(one[2].value) and one[1].value == pytest.approx(.15)
    still = compare_severities([.4, .6], [.5]*4, resamples=2)[2]
    assert still.value == 0 and still.low is None
