"""Latents of the explorer: the same faces as everywhere, nothing left behind, directions that keep their promise"""
import numpy as np
import pytest
import torch

from cleftgan_nb import checkpoints, networks
from cleftgan_nb.explore import Inverter, draw, find_directions, latent_of, load_latents, mix, motion, save_latents
from cleftgan_nb.explore.latents import check_directions
from cleftgan_nb.metrics import load_regression
from cleftgan_nb.pictures import sample_one

CLEFT = 'phantom-64-cleft-stylegan3-t'


@pytest.fixture(scope='module')
def G(): return checkpoints.load(CLEFT).sampler.requires_grad_(False)


@pytest.mark.parametrize('name', sorted(checkpoints.shipped()))
@pytest.mark.parametrize('psi', [1., .5])
def test_the_face_of_a_seed(name, psi):
    G = checkpoints.load(name).sampler
    if G.c_dim:                                                  # a labeled one is asked in words, not moved
        with pytest.raises(ValueError, match=r'c is NoneType; accepted: a tensor \[1, 5\]'): latent_of(G, 5, psi)
        return
    assert np.array_equal(draw(G, latent_of(G, 5, psi))[0], sample_one(G, 5, psi))


def test_a_face_does_not_depend_on_its_neighbors(G):
    ws = torch.cat([latent_of(G, seed) for seed in range(3)])
    assert np.array_equal(draw(G, ws)[1], draw(G, ws[1:2])[0])


def test_a_motion_ends(G):
    before, w = G.synthesis.input.transform.clone(), latent_of(G, 1)
    draw(G, w, motion(.1, .2, 30))
    with pytest.raises(ValueError): draw(G, torch.full_like(w, float('nan')), motion(.1))
    assert torch.equal(G.synthesis.input.transform, before)
    assert np.array_equal(draw(G, w, motion()), draw(G, w))


def test_what_cannot_be_moved():
    G = checkpoints.load('phantom-64-stylegan2').sampler
    with pytest.raises(ValueError, match='starts from a constant'): draw(G, latent_of(G, 0), motion(.1))
    with pytest.raises(ValueError, match='finite'): motion(float('inf'))


def test_mix(G):
    a, b = latent_of(G, 1), latent_of(G, 2)
    assert torch.equal(mix(a, b, [3, 3]), mix(a, b, (3,))) and torch.equal(mix(a, b, range(16)), b)
    with pytest.raises(ValueError, match='the same for both'): mix(a, b[:, :3], [0])


@pytest.mark.slow
def test_directions_open_a_cleft(G):
    scorer = load_regression()
    found, again = (find_directions(G, n=16, scorer=scorer, progress=False) for _ in range(2))
    assert torch.equal(found.step, again.step) and next(scorer.net.parameters()).device.type == 'cpu'
    ws = torch.cat([latent_of(G, seed) for seed in range(100, 108)])
    assert torch.equal(found.move(ws), ws)
    closed, same, opened = (scorer.score(draw(G, found.move(ws, severity=a))) for a in (-.4, 0, .2))
    assert (closed < same).all() and (same < opened).all() and (same - closed).mean() > .2
    right = scorer.sides(draw(G, found.move(ws, side=.3))) - scorer.sides(draw(G, ws))
    assert right[:, 0].mean() < -.1 < .1 < right[:, 1].mean()
    with pytest.raises(ValueError, match='give another'):
        check_directions(G, found, None, seed=found.found_with['seed'])


def test_directions_of_what_they_cannot_have():
    with pytest.raises(ValueError, match='accepted: a generator'): find_directions('phantom-64-stylegan2')
    G, _ = networks.build('stylegan3-t', 16, c_dim=2, channel_base=512, channel_max=16, num_layers=4)
    with pytest.raises(ValueError, match='label None: this network needs a label from 0 to 1'): find_directions(G)
    with pytest.raises(ValueError, match='n=1'): find_directions(checkpoints.load(CLEFT).sampler, n=1)


@pytest.mark.slow
@pytest.mark.parametrize('space', ['w', 'w+'])
def test_inversion(G, space):
    target, invert = draw(G, latent_of(G, 7))[0], Inverter(G, drawn=48)
    few, more = (invert(target, space, steps=n, progress=False) for n in (1, 12))
    assert more.error < few.error and more.distance < few.distance
    assert (space == 'w') == bool((more.ws == more.ws[:, :1]).all())
    assert torch.equal(more.ws, invert(target, space, steps=12, progress=False).ws)


def test_latents_in_a_file(tmp_path, G):
    ws = latent_of(G, 3)
    save_latents(tmp_path/'a.safetensors', ws, CLEFT, 'seed 3')
    back, about = load_latents(tmp_path/'a.safetensors')
    assert torch.equal(back, ws) and about['generator'] == CLEFT
    with pytest.raises(ValueError, match="accepted: 'latents 1'"): load_latents(checkpoints.shipped()[CLEFT])
