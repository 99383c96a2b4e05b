"""Whether intervals hold the truth: the counting, what it must find, and floors with their p"""
import numpy as np, pytest
from scipy.stats import binomtest

from cleftgan_nb.metrics import coverage, divergence
from cleftgan_nb.metrics.coverage import Trial, covered, least, severity_trials
from cleftgan_nb.metrics.score import Score, by_chance, middle


def test_counts_the_intervals_that_hold_the_truth():
    draw = lambda rng, seed: [Score('a', 0, seed - 3, seed + 3, sizes=dict(x=7, y=8)), Score('b', seed, seed, seed),
                              Score('none', 1)]
    a, b = covered(Trial('data', 'images', draw, dict(a=0., b=2.)), 10)
    assert (a['coverage'], b['coverage'], a['n'], a['repetitions']) == (.4, .1, '7 and 8', 10)
    known = binomtest(4, 10).proportion_ci(method='wilson')
    assert (a['low'], a['high']) == pytest.approx((known.low, known.high))
    # without a truth, the mean of all is it: 4.5
    assert covered(Trial('data', 'images', draw), 10)[1]['truth'] == 4.5
    assert (a['holds'], a['claimed']) == (False, True)
    assert not covered(Trial('data', 'images', draw, dict(a=0.), ('a',)), 10)[0]['claimed']


@pytest.fixture(scope='module')
def same(): return severity_trials(100, 99)[0]


def test_severity_intervals_hold_a_difference_of_nothing(same):
    "What the percentile bootstrap of DISH never did"
    assert {r['measure']: r['holds'] for r in covered(same, 40)} == dict.fromkeys(
        ('dish', 'severity_difference', 'severity_sd_ratio', 'severity_wasserstein'), True)


def test_a_percentile_bootstrap_of_dish_is_found_out():
    def draw(rng, seed):
        c, d = (rng.multinomial(n, np.full(20, .05)) for n in (514, 1000))
        p, q = (divergence.smoothed(rng.multinomial(o.sum(), o/o.sum(), 99)) for o in (c, d))
        value = divergence.jensen_shannon(*map(divergence.smoothed, (c, d)))
        return [Score('dish', value, *middle(divergence.jensen_shannon(p, q)))]
    [row] = covered(Trial('the same', 'images', draw, dict(dish=0.)), 40)
    assert row['coverage'] == 0 and not row['holds'] and least(40) == 31


def test_p_is_uniform_where_nothing_differs(same):
    p = np.array([[s.p for s in same.draw(np.random.default_rng([1, r]), r) if s.p] for r in range(60)])
    assert p.shape == (60, 2) and p.min() >= .01 and (p <= .05).mean(0).max() < .17 and (p <= .5).mean(0).max() < .75


def test_p_counts_the_data_as_a_shuffle():
    assert by_chance(3., [1., 2., 3., 4.]) == dict(floor=2.5, floor_high=pytest.approx(3.85), p=3/5)
    assert by_chance(9., [1.]*99)['p'] == .01


def test_every_interval_has_a_trial():
    names = {s.name for t in coverage.trials(40, 2) for s in t.draw(np.random.default_rng(0), 0) if s.low is not None}
    assert names >= {'fd', 'fd_infinity', 'kd', 'precision', 'recall', 'density', 'coverage', 'dish', 'severity_difference',
                     'severity_sd_ratio', 'severity_wasserstein', 'ppl_x_wfull', 'eq_t', 'tone_shift', 'severity_r',
                     'copied', 'authenticity', 'duplicates', 'distance_ratio', 'difference of shares'}
