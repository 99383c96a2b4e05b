"""Distances of features: known answers, an independent computation, properties, refusals"""
import json
from pathlib import Path
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import linalg
from cleftgan_nb.metrics import distances as D
from cleftgan_nb.metrics.score import Score, middle

REFERENCE = Path(__file__).parent/'reference'
EVERY = (D.frechet_distance, D.frechet_infinity, D.kernel_distance, lambda a, b: D.precision_recall(a, b)[0],
         lambda a, b: D.density_coverage(a, b)[0])


def clouds(n=80, m=120, d=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d))*np.linspace(1, 2, d), rng.normal(size=(m, d)) @ rng.normal(size=(d, d))*.3 + .2


def by_sqrtm(a, b):
    "Compute the formula as written, with covariances divided by N"
    ca, cb = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    return ((a.mean(0) - b.mean(0))**2).sum() + np.trace(ca + cb - 2*np.real(linalg.sqrtm(ca @ cb)))


def test_recorded_value():
    found, about = np.load(REFERENCE/'metrics.npz'), json.loads((REFERENCE/'index.json').read_text())['metrics']
    assert D.frechet_distance(found['features_real'], found['features_fake']) == pytest.approx(about['fid'], rel=1e-6)


@pytest.mark.parametrize('n, m, d', [(80, 120, 24), (24, 120, 24), (25, 200, 24), (400, 26, 8)])
def test_agrees_with_sqrtm(n, m, d):
    a, b = clouds(n, m, d)
    assert D.frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-5)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('n, m', [(2, 3), (5, 70), (30, 31), (31, 200)])
def test_fewer_images_than_features(n, m):
    "By definition, through the d x d square root with its negative rounding errors cut off"
    a, b = clouds(n, m, 60)
    ca, cb = np.cov(a.T, bias=True), np.cov(b.T, bias=True)
    values, vectors = np.linalg.eigh(ca)
    root = vectors*np.sqrt(values.clip(0)) @ vectors.T
    expected = (((a.mean(0) - b.mean(0))**2).sum() + np.trace(ca + cb)
                - 2*np.sqrt(np.linalg.eigvalsh(root @ cb @ root).clip(0)).sum())
    assert D.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
    assert 'mostly bias' in D.frechet_distance(a, b).notes['limit']


def test_closed_form():
    rng = np.random.default_rng(0)
    exact = (lambda n, cov, mean: np.sqrt(n)*np.linalg.qr(np.c_[np.ones(n), rng.normal(size=(n, len(cov)))])[0][:,
            1:] @ np.linalg.cholesky(cov).T + mean)
    a, b = np.array([[2, .5], [.5, 1]]), np.array([[1, -.3], [-.3, 3]])
    det, trace = np.linalg.det(a @ b), np.trace(a @ b)
    # of a 2 x 2 matrix, the root's trace is known
    expected = 5 + np.trace(a + b) - 2*np.sqrt(trace + 2*np.sqrt(det))
    assert D.frechet_distance(exact(40, a, 0), exact(50, b, np.array([1, 2]))) == pytest.approx(expected, rel=1e-10)


pairs = st.tuples(st.integers(16, 40), st.integers(16, 40), st.integers(1, 30),
                  st.integers(0, 10**6)).map(lambda v: clouds(*v))


@settings(max_examples=15, deadline=None)
@given(pairs, st.integers(0, 10**6))
def test_properties(pair, seed):
    a, b = pair
    rng, d = np.random.default_rng(seed), a.shape[1]
    turn, shift = np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=d)
    scale = D.frechet_value(a, b) + np.var(a, 0).sum()
    for f in (D.frechet_value, D.kernel_value):
        assert f(a, b) == pytest.approx(f(b, a), rel=1e-9, abs=1e-9*scale)                                # symmetry
        assert f(rng.permutation(a), rng.permutation(b)) == pytest.approx(f(a, b), rel=1e-9, abs=1e-9*scale)
        assert f(a @ turn, b @ turn) == pytest.approx(f(a, b), rel=1e-8, abs=1e-8*scale)
    assert D.frechet_value(a, a[::-1]) == pytest.approx(0, abs=1e-9*scale)                                # identity
    assert D.frechet_value(a + shift, b + shift) == pytest.approx(D.frechet_value(a, b), rel=1e-8, abs=1e-8*scale)
    assert D.frechet_value(3*a, 3*b) == pytest.approx(9*D.frechet_value(a, b), rel=1e-8, abs=1e-8*scale)
    turned = [D._neighbors(x, y, 3, 0)[:2] for x, y in ((a, b), (a @ turn, b @ turn))]
    np.testing.assert_allclose(D.squared_distances(*turned[0]), D.squared_distances(*turned[1]), atol=1e-8*scale)


def test_kernel_definition():
    a, b = clouds(9, 7, 4)
    k = lambda x, y: (x @ y/4 + 1)**3
    same = lambda s: np.mean([k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
    expected = same(a) + same(b) - 2*np.mean([k(x, y) for x in a for y in b])
    assert D.kernel_value(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_is_unbiased():
    rng = np.random.default_rng(0)
    found = [D.kernel_value(rng.normal(size=(12, 5)), rng.normal(size=(9, 5))) for _ in range(3000)]
    assert abs(np.mean(found)) < 4*np.std(found)/3000**.5 and min(found) < 0


def test_kernel_subsets():
    a, b = clouds(60, 400, 8)
    few = D.kernel_distance(a, b, subsets=20, subset_size=50, seed=1)
    assert (few == D.kernel_distance(a, b, subsets=20, subset_size=50, seed=1)
            != D.kernel_distance(a, b, subsets=20, subset_size=50, seed=2))
    assert few.notes == {'subsets': 20, 'subset_size': 50}
    assert few.low < D.kernel_value(a, b) < few.high
    # the only subset is the whole
    assert D.kernel_distance(a, b[:60]) == D.kernel_value(a, b[:60])


def test_neighbors_by_definition():
    a, b = clouds(40, 50, 3)
    far = lambda x, y: np.sqrt(((x[:, None] - y)**2).sum(2))
    # column 0 is the image itself
    radius = lambda x, k: np.sort(far(x, x), 1)[:, k]
    p, r = D.precision_recall(a, b, k=3)
    assert (p == (far(a, b) <= radius(a, 3)[:, None]).any(0).mean()
            and r == (far(b, a) <= radius(b, 3)[:, None]).any(0).mean())
    d, c = D.density_coverage(a, b, k=5)
    inside = far(a, b) <= radius(a, 5)[:, None]
    assert d == pytest.approx(inside.sum()/50/5) and c == inside.any(1).mean()


def test_balls_without_a_group():
    x = clouds(60, 60, 3)[0]
    groups = D._groups(60, 0)
    found = D.balls(x, 3, groups)
    for g in range(10):
        left = groups != g
        np.testing.assert_allclose(found[1 + g][left], D.balls(x[left], 3, np.zeros(left.sum(), int))[0], rtol=1e-9)
        assert (found[1 + g][~left] == -1).all()


def test_neighbor_intervals_hold_the_mean():
    rng = np.random.default_rng(0)
    draws = [[rng.normal(size=(80, 4)), rng.normal(size=(100, 4))*.8 + .4] for _ in range(60)]
    found = [(*D.precision_recall(*s), *D.density_coverage(*s)) for s in draws]
    for scores in zip(*found):
        mean = np.mean(scores)
        assert np.mean([s.low <= mean <= s.high for s in scores]) >= .9


def test_extrapolation_removes_bias():
    d, raw, best = 40, [], []
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1)**-.5
    truth = ((spectrum - .8*spectrum)**2).sum()
    for _ in range(12):
        a, b = rng.normal(size=(150, d))*spectrum, rng.normal(size=(300, d))*spectrum*.8
        raw.append(D.frechet_distance(a, b))
        best.append(D.frechet_infinity(a, b))
    assert abs(np.mean(best) - truth) < .25*(np.mean(raw) - truth)
    assert np.mean([s.low <= truth <= s.high for s in best]) >= .7


@pytest.mark.parametrize('metric', EVERY)
def test_refused(metric):
    a, b = clouds(40, 40, 4)
    broken = a.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match='feats_a: 1 of 40 images have NaN or infinite features, the first is image 7'):
        metric(broken, b)
    with pytest.raises(ValueError, match=r'feats_b has 1 image\(s\); accepted: at least'): metric(a, b[:1])
    with pytest.raises(ValueError, match='feats_a has 4 features, feats_b 3'): metric(a, b[:, :3])
    with pytest.raises(ValueError, match=r'accepted: floating point numbers \[images, features\]'): metric(a[0], b)


@pytest.mark.filterwarnings('error')
def test_ten_reals_and_equal_images():
    a, b = clouds(10, 200, 16)
    scores = [D.frechet_distance(a, b), D.kernel_distance(a, b), *D.precision_recall(a, b)]
    assert all(np.isfinite([s, s.low, s.high]).all() and s.sizes == {'real': 10, 'generated': 200} for s in scores)
    assert 'mostly bias' in scores[0].notes['limit']
    with pytest.raises(ValueError, match='feats_a has 10 image'): D.frechet_infinity(a, b)
    same = np.full((20, 5), 3.)
    # 20 balls of radius 0 hold each image; divided by k
    assert ([float(s) for s in D.distances(same, same)]
            == [0, pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9), 1, 1, 4, 1])
    assert D.frechet_distance(same, same + 2) == pytest.approx(20)


def test_same_digits():
    a, b = clouds()
    assert (list(map(float, D.distances(a, b, seed=3)))
            == list(map(float, D.distances(torch.from_numpy(a), torch.from_numpy(b), seed=3))))


def test_blocks_change_nothing(monkeypatch):
    a, b = clouds(50, 70, 5)
    whole = D.distances(a, b)
    monkeypatch.setattr(D, 'BLOCK', 13)
    assert [float(s) for s in D.distances(a, b)] == pytest.approx([float(s) for s in whole], rel=1e-10)


def test_names():
    a, b = clouds()
    assert ([s.name for s in D.distances(a, b, features='inception_2015')]
            == ['fid', 'fid_infinity', 'kid'] + [f'{n}_inception_2015'
                                                 for n in ('precision', 'recall', 'density', 'coverage')])
    assert not any(word in s.name for s in D.distances(a, b, features='efficientnet_lite0') for word in ('fid', 'kid'))
    assert str(D.frechet_distance(a, b, features='efficientnet_lite0')).startswith('fd_efficientnet_lite0 (80 real, '
            '120 generated) ')


def test_middle():
    with pytest.raises(ValueError, match='at least 2 finite numbers'): middle([1])
    assert isinstance(Score('a', np.float32(1), 0, 2).value, float)
