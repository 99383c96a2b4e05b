"""Equivariance: motions with known answers, networks that must differ"""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from cleftgan_nb.metrics.motion import (HALF, KINDS, MovedConstant, decibels, equivariance, lanczos_shift, limit,
                                        motion_errors, motions, moved, octagon,
    octagon_filter, shift_matrix, shifted_pair, turn, turn_matrix, turned_places)
from cleftgan_nb.networks import build
from cleftgan_nb.networks.stylegan3 import SynthesisInput


class Field(nn.Module):
    def __init__(self, bandwidth, glued):
        super().__init__()
        self.input = SynthesisInput(8, 32, 64, 64, bandwidth)
        self.register_buffer('pattern', torch.randn(3, 64, 64)*glued)
    def forward(self, ws, noise_mode='const'): return self.input(ws[:, 0])[:, :3]*.4 + self.pattern


class Waves(nn.Module):
    "Plane waves: equivariant by construction, except for a pattern glued to the pixels"
    z_dim, c_dim, img_resolution = 8, 0, 64
    def __init__(self, bandwidth=8, glued=0.):
        super().__init__()
        torch.manual_seed(0)
        self.synthesis = Field(bandwidth, glued)
    def mapping(self, z, c=None): return z[:, None]


def grid(size=64):
    g = np.arange(size) + .5 - size/2
    return np.meshgrid(g, g)


def wave(fx, fy, size=64):
    X, Y = grid(size)
    return np.sin(2*np.pi*(fx*X + fy*Y) + 1)[None]


@pytest.mark.parametrize('kind', KINDS)
def test_equivariant_by_construction(kind):
    s = equivariance(Waves(), kind, n=8, progress=False)
    assert s.value > 60 and s.low <= s.value <= s.high and s.name == KINDS[kind] and s.sizes == {'pictures': 8}


@pytest.mark.parametrize('kind', ['translation', 'fractional'])
def test_a_glued_pattern_of_known_strength(kind):
    # an error of independent noise, once moved and once not: twice its variance; the Lanczos filter passes a little less of it
    value = equivariance(Waves(glued=.05), kind, n=12, progress=False).value
    assert value == pytest.approx(10*math.log10(4/(2*.05**2)), abs=.6 if kind == 'fractional' else .3)


def test_batches_and_reruns_change_nothing():
    G = Waves(glued=.1)
    for kind in KINDS:
        a, b = (motion_errors(G, kind, n=5, batch=k, progress=False)[0] for k in (2, 5))
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert (motion_errors(G, kind, n=5, batch=5, progress=False)[0] == b).all()
        np.testing.assert_allclose(motion_errors(G, kind, n=2, batch=8, progress=False)[0], b[:2], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(-8, 8), st.integers(-8, 8))
def test_whole_shifts_are_exact(x, y):
    rng = np.random.default_rng(0)
    big = rng.normal(size=(1, 80, 80))
    still, other = big[:, 8:72, 8:72], big[:, 8 - y:72 - y, 8 - x:72 - x]
    a, b = shifted_pair(still, other, np.array([x, y]))
    assert a.shape == (1, 64 - abs(y), 64 - abs(x))
    np.testing.assert_allclose(a, b, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.floats(-8, 8))
def test_lanczos_shift_of_slow_waves(shift):
    m, valid = lanczos_shift(64, shift)
    x = np.arange(64)
    assert valid.sum() >= 64 - math.ceil(abs(shift)) - 6
    np.testing.assert_allclose(m[valid].sum(1), 1, atol=1e-12)
    assert np.abs(m[valid] @ np.sin(.3*x) - np.sin(.3*(x[valid] - shift))).max() < 6e-3


@settings(max_examples=15, deadline=None)
@given(st.floats(.02, .38), st.floats(0, 2*math.pi), st.floats(-math.pi, math.pi))
def test_pseudo_rotation_of_a_wave_turned_by_formula(radius, direction, angle):
    fx, fy = radius*math.cos(direction), radius*math.sin(direction)
    c, s = math.cos(angle), math.sin(angle)
    a, b = turn(wave(fx, fy), angle), limit(wave(c*fx - s*fy, s*fx + c*fy), angle)
    assert a.shape == b.shape and decibels(np.square(a - b)) > 58


def test_quarter_turns_only_move_pixels():
    image = np.random.default_rng(0).normal(size=(2, 48, 48))
    # from x toward y, y down: clockwise to the eye
    a, b = turn(image, math.pi/2), limit(np.rot90(image, -1, axes=(1, 2)), math.pi/2)
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_what_cannot_be_carried_is_removed_from_both():
    # outside the octagon of an eighth turn
    corner = wave(.49, .49)
    assert np.abs(turn(corner, math.pi/4)).max() < .05 and np.abs(limit(corner, math.pi/4)).max() < .05


def test_octagon_area_and_gain():
    assert octagon(math.pi/4)[1].sum() == pytest.approx((2*math.sqrt(2) - 2)*(2*HALF)**2, rel=2e-2)
    for angle in (0., .3, 2.): assert octagon_filter(angle, np.arange(-8., 9)).sum() == pytest.approx(1, abs=2e-3)


def test_known_places_stay_clear_of_the_border():
    for angle in (0., .4, 2.):
        p, q = turned_places(64, angle)
        assert np.abs(p).max() < 24 and np.abs(q).max() < 24 and len(p) > 1600
        np.testing.assert_allclose(np.linalg.norm(p, axis=1), np.linalg.norm(q, axis=1))


def test_matrices_are_inverse_motions():
    G = Waves()
    ws = torch.zeros(1, 1, 8)
    still = moved(G, ws, torch.eye(3)[None])[0].detach()
    right = moved(G, ws, shift_matrix(torch.tensor([[3/64, 0.]])))[0].detach()
    torch.testing.assert_close(right[:, :, 3:], still[:, :, :-3], atol=1e-4, rtol=0)
    quarter = moved(G, ws, turn_matrix(torch.tensor([math.pi/2])))[0].detach()
    torch.testing.assert_close(quarter, still.rot90(-1, (1, 2)), atol=1e-4, rtol=0)
    # the network is as it was
    torch.testing.assert_close(G.synthesis.input.transform, torch.eye(3))


def test_motions_belong_to_samples():
    t = motions('translation', 0, range(500), 64)
    assert (t == np.rint(t)).all() and np.abs(t).max() == 8 and (motions('translation', 0, [7], 64) == t[7]).all()
    assert (np.abs(motions('fractional', 0, range(500), 64)).max() <= 8
            and np.abs(motions('rotation', 0, range(500), 64)).max() > 3)


def networks():
    out = []
    for name, kw in (('stylegan2', {}), ('stylegan3-t', {}), ('stylegan3-r', {})):
        torch.manual_seed(0)
        G = build(name, 32, channel_base=256, channel_max=16, **kw)[0].eval().requires_grad_(False)
        scale = .3/G(torch.randn(8, 512), noise_mode='none').std().item()
        if name == 'stylegan2':
            for r in G.synthesis.resolutions: getattr(G.synthesis, f'b{r}').torgb.weight.mul_(scale)
        else: G.synthesis.output_scale *= scale
        out.append(G)
    return out


def test_stylegan3_before_stylegan2_and_r_before_t():
    two, t, r = networks()
    with pytest.raises(ValueError, match=r'StyleGAN2 starts from a learned constant: MovedConstant\(G\)'):
        equivariance(two)
    a, b = (equivariance(G, n=6, progress=False) for G in (MovedConstant(two), t))
    assert b.value > a.value + 10 and a.notes['contrast'] == pytest.approx(.3, rel=.3)
    a, b = (equivariance(G, 'rotation', n=6, progress=False) for G in (t, r))
    assert b.value > a.value + 3
    with pytest.raises(ValueError, match='StyleGAN3Generator has no synthesis.b4.const'): MovedConstant(t)


def test_half_precision_is_switched_off_in_a_copy():
    torch.manual_seed(0)
    G = build('stylegan3-t', 16, channel_base=64, channel_max=4, dtype='bfloat16')[0]
    torch.manual_seed(0)
    F32 = build('stylegan3-t', 16, channel_base=64, channel_max=4)[0]
    assert (equivariance(G, n=3, resamples=2, progress=False).value
            == pytest.approx(equivariance(F32, n=3, resamples=2, progress=False).value, rel=1e-6))
    assert G.synthesis.dtype == torch.bfloat16


@pytest.mark.parametrize('wrong, says', [(dict(kind='zoom'), "kind='zoom'"),
                                         (dict(n=1), 'n=1; accepted: a whole number from 2'),
                                         (dict(batch=True), 'batch=True'), (dict(seed=-1), 'seed=-1'),
                                         (dict(labels=torch.zeros(200, 2)), r'c is \[200, 2\]')])
def test_arguments_that_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says): equivariance(Waves(), **wrong, progress=False)


def test_numbers_that_are_none_and_small_pictures_are_refused():
    G = Waves()
    G.synthesis.input.weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match='3 of 3 pictures contain NaN'): equivariance(G, n=3, progress=False)
    G = Waves()
    G.img_resolution = 16
    with pytest.raises(ValueError, match="16 pixels; accepted for 'rotation': 32"):
        equivariance(G, 'rotation', n=3, progress=False)


def test_constant_pictures_have_no_error_to_speak_of():
    assert decibels([0.]) == pytest.approx(206.02, abs=.01) and decibels([4.]) == 0
