"""Augmentation against recorded values and its stated distributions; what it must not depend on; its gradients"""
import math
import pathlib

import numpy as np
import pytest
import torch
from scipy import stats

from cleftgan_nb.training import augment as A

DATA = {k: torch.from_numpy(v) for k, v in np.load(pathlib.Path(__file__).parent/'reference/augment.npz').items()}
CASES = [k for k in DATA if k != 'images']
ALL = A.preset('bgcfnc')


def pipe(p=1., **keywords):
    made = A.AugmentPipe(**keywords)
    made.p.fill_(p)
    return made


def pictures(n=6, size=24, channels=3, dtype=torch.float32):
    "Draw images smooth and rough at once, which expose a wrong place and a wrong filter"
    g = torch.Generator().manual_seed(5)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size + 4), indexing='ij')
    waves = torch.stack([torch.sin(3*(i + 1)*x + y*i) for i in range(n*channels)]).reshape(n, channels, size,
            size + 4)
    return (.6*waves + .2*torch.randn(waves.shape, generator=g)).to(dtype)


def error(a, b): return float((a.double() - b.double()).norm()/b.double().norm())


@pytest.mark.parametrize('case', CASES)
def test_recorded(case):
    name, q = case.split('/')
    keywords = (dict(imgfilter=1, imgfilter_bands=[0, 1, 0, 1]) if name == 'imgfilter_bands0101'
                else A.PRESETS['bgc'] if name == 'bgc' else {name: 1})
    assert error(pipe(**keywords)(DATA['images'], percentile=float(q)), DATA[case]) < 1e-5


def test_every_recorded_transform_is_compared():
    assert {c.split('/')[0] for c in CASES} >= set(A.TRANSFORMS) - {'noise'}


N = 100_000
MADE = {}


def draws(name, p=1., **keywords):
    "Draw one transform 100,000 times"
    key = name, p, *keywords
    if key not in MADE: MADE[key] = pipe(p, **{name: 1}, **keywords).draw(torch.arange(N), seed=20)[name].numpy()
    return MADE[key]


# The seed is fixed, so these always pass or always fail. Kolmogorov's test detects a deviation of 0.5 % in the distribution function.
CONTINUOUS = dict(xint=stats.uniform(-.125, .25), scale=stats.norm(0, .2), aniso=stats.norm(0, .2),
                  xfrac=stats.norm(0, .125), brightness=stats.norm(0, .2),
                  contrast=stats.norm(0, .5), hue=stats.uniform(-math.pi, 2*math.pi), saturation=stats.norm(0, 1),
                  imgfilter=stats.norm(0, 1), noise=stats.halfnorm(0, .1))


@pytest.mark.parametrize('name', CONTINUOUS)
def test_continuous_draws(name):
    for column in draws(name).T: assert stats.kstest(column, CONTINUOUS[name].cdf).pvalue > 1e-3


@pytest.mark.parametrize('name, n', [('xflip', 2), ('rotate90', 4), ('lumaflip', 2)])
def test_choices(name, n):
    counts = np.bincount(draws(name)[:, 0].astype(int), minlength=n)
    assert len(counts) == n and stats.chisquare(counts).pvalue > 1e-3


def test_cutout_draws():
    side, x, y = draws('cutout').T
    assert (side == .5).all() and all(stats.kstest(c, stats.uniform(0, 1).cdf).pvalue > 1e-3 for c in (x, y))


def test_rotations():
    "At p = 1 both happen; below, at least one of the two with probability p, independently"
    for column in draws('rotate').T: assert stats.kstest(column, stats.uniform(-math.pi, 2*math.pi).cdf).pvalue > 1e-3
    before, after = (draws('rotate', .36) != 0).T
    assert stats.binomtest(int((before | after).sum()), N, .36).pvalue > 1e-3
    for one in (before, after): assert stats.binomtest(int(one.sum()), N, .2).pvalue > 1e-3
    assert stats.binomtest(int((before & after).sum()), N, .04).pvalue > 1e-3


@pytest.mark.parametrize('name', [t for t in A.TRANSFORMS if t != 'rotate'])
def test_gates(name):
    "Each fires with p times its multiplier, and is then distributed as at p = 1"
    one = pipe(.6, **{name: .5}).draw(torch.arange(N), seed=20)[name].numpy()
    n = {'xflip': 2, 'rotate90': 4, 'lumaflip': 2}.get(name, np.inf)
    for column in (one if name == 'imgfilter' else one[:, :1]).T:
        assert stats.binomtest(int((column != 0).sum()), N, .3*(1 - 1/n)).pvalue > 1e-3
    fired = one != 0
    assert (one[fired] == draws(name)[fired]).all()


def test_bands_have_gates_of_their_own():
    fired = pipe(.5, imgfilter=1, imgfilter_bands=[0, .5, 1, 2]).draw(torch.arange(N), seed=1)['imgfilter'] != 0
    assert not fired[:, 0].any() and fired[:, 3].all()
    for k, share in ((1, .25), (2, .5)): assert stats.binomtest(int(fired[:, k].sum()), N, share).pvalue > 1e-3
    assert stats.binomtest(int((fired[:, 1] & fired[:, 2]).sum()), N, .125).pvalue > 1e-3


def test_draws_are_independent():
    "Of one another, of the neighbors' and of those with another seed or name"
    pipes = pipe(**ALL)
    columns = lambda d: [v[:, k].numpy() for t, v in d.values.items() for k in range(v.shape[1])
                         if not (t == 'cutout' and k == 0)]
    first = columns(pipes.draw(torch.arange(20_000), 1))
    others = [pipes.draw(torch.arange(20_000) + 1, 1), pipes.draw(torch.arange(20_000), 2),
              pipes.draw(torch.arange(20_000), 1, 'real')]
    table = np.corrcoef(np.stack(first + [c for o in others for c in columns(o)]))
    # of about 4,000 correlations none should pass 5 standard errors
    assert np.abs(table - np.eye(len(table))).max() < 5.5/20_000**.5


def test_noise():
    x = torch.zeros(400, 3, 16, 16)
    y = pipe(noise=1)(x, seed=4)
    sigma = pipe(noise=1).draw(range(400), 4)['noise']
    z = (y.flatten(1).double()/sigma).flatten()
    assert stats.kstest(z.numpy(), 'norm').pvalue > 1e-3
    z = z.reshape(400, -1)
    assert (abs(np.corrcoef(z[:-1].flatten(), z[1:].flatten())[0, 1]) < .01
            and abs(np.corrcoef(z[:, :-1].flatten(), z[:, 1:].flatten())[0, 1]) < .01)


def test_noise_in_percentile_mode_has_the_percentile_s_strength():
    y = pipe(noise=1)(torch.zeros(64, 3, 16, 16), percentile=.8)
    assert abs(float(y.std())/(.1*float(torch.erfinv(torch.tensor(.6)))) - 1) < .02


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nothing_changes_at_zero(dtype):
    x = pictures(dtype=dtype)
    x[0, 0, 0, :3] = torch.tensor([-0., math.nan, math.inf])
    y = pipe(0, **ALL)(x, seed=1)
    bits = torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(y.view(bits), x.view(bits)) and y.dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_images_for_which_nothing_fires_keep_their_bits(dtype):
    x, made = pictures(64, dtype=dtype), pipe(.04, **ALL)
    untouched = torch.stack([(v == 0).all(1) for v in made.draw(range(64), 3).values.values()]).all(0)
    y = made(x, seed=3)
    assert 20 < untouched.sum() < 60
    assert (torch.equal(y[untouched], x[untouched])
            and (y != x).flatten(1).any(1)[~untouched].sum() > .5*(~untouched).sum())


@pytest.mark.parametrize('p', [.1, .5, 1.])
@pytest.mark.parametrize('name', ['bgc', 'bgcfnc'])
def test_an_image_s_company_does_not_matter(name, p):
    "Same seed and number, same image and gradient in any company; the filters, as matrix products, up to rounding"
    numbers, made = torch.arange(16)*1009 + 5, pipe(p, **A.preset(name))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    def both(*parts):
        x = pictures(16).requires_grad_()
        y = torch.cat([made(x[i], index=numbers[i], seed=9) for i in parts])
        return y, torch.autograd.grad(y.square().sum(), x)[0]
    (whole, slope), (parts, slope1), (mixed, slope2) = (both(range(16)), both([0], range(1, 8), range(8, 16)),
                                                        both(order))
    for a, b in ((parts, whole), (mixed, whole[order]), (slope1, slope), (slope2, slope)):
        assert torch.equal(a, b) if name == 'bgc' else (a - b).abs().max() <= 1e-5*b.abs().max()


def test_strong_zoom_in_any_company():
    "What the filters read beyond the border is the same next to an image that reaches further"
    x = pictures(3).double()
    G = torch.stack([torch.diag(torch.tensor([s, s, 1.], dtype=torch.float64)) for s in (1.45, 1.2, 1.)])
    together = A.move(x, G)
    assert (torch.cat([A.move(x[i:i + 1], G[i:i + 1]) for i in range(3)]) - together).abs().max() < 1e-12


def drawn(n=1, **values):
    "Fix the draws: zeros except for `values`"
    return A.Draws(torch.arange(n), 0, '', {t: torch.tensor([values.get(t, [0.]*k.values)]*n,
                                                            dtype=torch.float64) for t, k in A.TRANSFORMS.items()})


c, s = math.cos(.7), math.sin(.7)
# pixel (x, y), y down, of the result → where it was; the image is 40 wide, 32 high
@pytest.mark.parametrize('values, source', [
    (dict(xflip=[1.]), lambda x, y: (-x, y)), (dict(rotate90=[1.]), lambda x, y: (-y, x)),
    (dict(rotate90=[2.]), lambda x, y: (-x, -y)),
    (dict(xint=[.1, 0.]), lambda x, y: (x - 4, y)), (dict(xint=[0., .11]), lambda x, y: (x, y - 4)),
    (dict(scale=[1.]), lambda x, y: (x/2, y/2)), (dict(aniso=[.5]), lambda x, y: (x/2**.5, y*2**.5)),
    (dict(rotate=[.7, 0.]), lambda x, y: (c*x - s*y, s*x + c*y)),
    (dict(rotate=[0., .7]), lambda x, y: (c*x - s*y, s*x + c*y)),
    (dict(rotate=[.7, 0.], aniso=[.5]), lambda x, y: (c*x/2**.5 - s*y*2**.5,
                                                      s*x/2**.5 + c*y*2**.5)),
    (dict(xfrac=[.03, -.02]), lambda x, y: (x - 1.2, y + .64))],
    ids=lambda v: '+'.join(v) if isinstance(v, dict) else '')
def test_geometry_is_what_it_says(values, source):
    "Against a smooth function, evaluated where the pixels come from, away from the border"
    f = lambda x, y: torch.stack([torch.sin(.2*x + .1*y + .3), torch.cos(.15*y - .1*x), x*y/200])[None]
    y, x = torch.meshgrid(torch.arange(32.) - 15.5, torch.arange(40.) - 19.5, indexing='ij')
    got, expected = A.augment(f(x, y), drawn(**values)), f(*source(x, y))
    # sym6 is not quite symmetric: turned back, it comes out up to 0.13 pixels off
    assert (got - expected)[:, :, 10:-10, 12:-12].abs().max() < .04


def test_borders_mirror():
    x = pictures(1).double()[..., :24]
    mirrored = torch.nn.functional.pad(x, [3, 3, 3, 3], mode='reflect')
    for shift, expected in (([.125, 0.], mirrored[:, :, 3:-3, :24]), ([0., -.125], mirrored[:, :, 6:, 3:-3])):
        assert (A.augment(x, drawn(xint=shift)) - expected).abs().max() < 1e-5   # the taps are float32


def test_rotations_add_up():
    x = pictures(1).double()[..., :24]
    assert (A.augment(x, drawn(rotate90=[2.], rotate=[math.pi/2, math.pi/2])) - x).abs().max() < 1e-5


def test_colors():
    x = pictures(2, 8)
    d = lambda **values: drawn(2, **values)
    luma = x.mean(1, keepdim=True)
    for got, expected in ((d(brightness=[.3]), x + .3), (d(contrast=[-1.]), x/2), (d(lumaflip=[1.]), x - 2*luma),
                          (d(saturation=[1.]), luma + 2*(x - luma)),
                          (d(hue=[2*math.pi/3]), x[:, [2, 0, 1]]),
                          (d(brightness=[.3], contrast=[1.]), 2*(x + .3))):
        assert (A.augment(x, got) - expected).abs().max() < 1e-6
    gray = luma.repeat(1, 3, 1, 1)
    every = d(brightness=[.3], contrast=[.4], lumaflip=[1.], hue=[1.], saturation=[.6])
    assert (A.augment(luma, every) - A.augment(gray, every)[:, :1]).abs().max() < 1e-6


@pytest.mark.parametrize('name', ['bgc', 'bgcfnc'])
def test_gradients(name):
    x = pictures(4, 8, dtype=torch.float64).requires_grad_()
    made = pipe(.8, **A.preset(name))
    f = lambda x: made(x, seed=6)
    v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(f, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: f(x).square(), x, fast_mode=True)
    # affine in the image: the gradient is the transpose of the linear part
    [g] = torch.autograd.grad((f(x)*v).sum(), x)
    assert abs(float(((f(v) - f(torch.zeros_like(v)))*v).sum() - (g*v).sum())) < 1e-6*float(g.norm()*v.norm())


def test_r1_reaches_the_network_s_weights():
    x, D = pictures(4, 16).requires_grad_(), torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Softplus(),
                                                                 torch.nn.Flatten(), torch.nn.LazyLinear(1))
    logits = D(pipe(.8, **A.preset('bgc'))(x, seed=2))
    [g] = torch.autograd.grad(logits.sum(), x, create_graph=True)
    g.square().sum().backward()
    assert (all(torch.isfinite(w.grad).all() for w in D.parameters() if w.grad is not None)
            and D[0].weight.grad.abs().max() > 0)


def test_bfloat16_images_and_autocast_lose_no_geometry():
    x, made = pictures(8), pipe(1, **A.preset('bgc'))
    exact = made(x.bfloat16().float(), seed=1)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(made(x.bfloat16().float(), seed=1), exact)
        y = made(x.bfloat16(), seed=1)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16())


def test_arguments_say_where_chance_comes_from():
    x, made = pictures(), pipe(.7, **ALL)
    g = lambda: torch.Generator().manual_seed(8)
    assert (torch.equal(made(x, generator=g()), made(x, generator=g()))
            and not torch.equal(made(x, seed=1), made(x, seed=2)))
    assert not torch.equal(made(x, seed=1, name='real'), made(x, seed=1, name='generated'))
    torch.manual_seed(3)
    a = made(x)
    b = made(x)
    torch.manual_seed(3)
    assert torch.equal(made(x), a) and not torch.equal(a, b)


def test_other_shapes():
    made = pipe(1, **ALL)
    for shape in ((0, 3, 8, 8), (2, 3, 1, 1), (2, 1, 5, 40), (1, 3, 33, 17)):
        y = made(torch.zeros(shape), seed=1)
        assert y.shape == shape and torch.isfinite(y).all()
    assert pipe(1, **A.preset('bg'))(torch.zeros(2, 7, 8, 8), seed=1).shape == (2, 7, 8, 8)


def test_p_is_saved_and_stays_exact():
    made = pipe(.3, **ALL)
    other = A.AugmentPipe().to(torch.bfloat16)
    other.load_state_dict(made.state_dict())
    assert list(made.state_dict()) == ['p'] and torch.equal(other.p, torch.tensor(.3)) and not list(made.parameters())


def test_presets_are_keywords():
    for name in A.PRESETS: A.AugmentPipe(**A.preset(name))
    assert list(A.preset('bgc')) == list(A.TRANSFORMS)[:12] and set(A.preset('bgcfnc')) == set(A.TRANSFORMS)


@pytest.mark.parametrize('wrong, message', [
    (lambda: A.AugmentPipe(scale=-1), 'scale=-1; accepted: a number of at least 0'),
    (lambda: A.AugmentPipe(hue_max='1'), "hue_max='1'; accepted: a finite number"),
    (lambda: A.AugmentPipe(imgfilter_bands=[1, 1]), 'imgfilter_bands has 2 values'),
    (lambda: A.AugmentPipe(imgfilter_bands=[1, -1, 1, 1]), r'imgfilter_bands\[1\]=-1'),
    (lambda: A.preset('abc'), "preset='abc' is not known; accepted: none, blit"),
    (lambda: pipe()(torch.zeros(3, 8, 8)), r'images has shape \[3, 8, 8\]'),
    (lambda: pipe()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), 'images has dtype torch.uint8'),
    (lambda: pipe(hue=1)(torch.zeros(1, 4, 8, 8)), 'images have 4 channels; accepted: 3'),
    (lambda: pipe()(pictures(), percentile=1), 'percentile=1; accepted: None, or'),
    (lambda: pipe(math.nan, scale=1)(pictures()), 'p=nan; accepted'),
    (lambda: pipe(-1., scale=1)(pictures()), 'p=-1.0; accepted'),
    (lambda: pipe()(pictures(), index=range(6)), 'index is given without seed'),
    (lambda: pipe()(pictures(), index=range(5), seed=1), 'draws are for 5 images'),
    (lambda: pipe(scale=1).draw([1.5], 1), 'accepted: a whole number for each image'),
    (lambda: pipe(scale=1).draw([1], -1), 'seed=-1; accepted')])
def test_errors_teach(wrong, message):
    with pytest.raises(ValueError, match=message): wrong()
