"""Losses, optimizer and ADA: recorded gradients reproduced, and what else the phases promise"""
import copy
import json
import math
from pathlib import Path

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn

from cleftgan_nb import ops
from cleftgan_nb.networks import Discriminator, StyleGAN3Generator, build
from cleftgan_nb.training import losses
from cleftgan_nb.training.optimizer import ema_beta, lazy_adam, make_ema, mend, update_ema
from cleftgan_nb.training.ada import AdaptiveAugment
from cleftgan_nb.training.losses import Dmain, Dmain_fake, Dmain_real, Dreg, Gmain, Greg, Latents

ROOT = Path(__file__).parent/'reference'
INDEX = json.loads((ROOT/'index.json').read_text())
CASES = ['loss_plain', 'loss_blur']
IMPLS = ['auto', 'definition']


def load(case): return {k: torch.from_numpy(v) for k, v in np.load(ROOT/f'{case}.npz').items()}


def recorded(case, **kwargs):
    "Load networks, inputs, recorded gradients and sigma of a case"
    meta, nets = INDEX[case], []
    for role, cls in (('generator', StyleGAN3Generator), ('discriminator', Discriminator)):
        net = cls(**INDEX[meta[role]]['kwargs'], **kwargs).train()
        net.load_state_dict({k[6:]: v for k, v in load(meta[role]).items() if k.startswith('state/')})
        nets.append(net)
    data = load(case)
    return *nets, data, losses.blur_sigma(meta['cur_nimg'], meta.get('blur_init_sigma', 0),
                                          meta.get('blur_fade_kimg', 0))


def phases(case, G, D, data, sigma, **gain):
    latents, gamma = Latents(data['z']), INDEX[case]['r1_gamma']
    return {'Gmain': (G, lambda: Gmain(G, D, latents, sigma=sigma, **gain)),
            'Dmain': (D, lambda: Dmain(G, D, data['real'], None, latents, sigma=sigma, **gain)),
            'Dreg': (D, lambda: Dreg(D, data['real'], None, gamma, sigma=sigma, **gain))}


def gradients(net, loss):
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {k: p.grad for k, p in net.named_parameters() if p.grad is not None}


def error(a, b): return ((a.double() - b.double()).norm()/b.double().norm()).item()


# Reference values ------------------------------------------------------------------------------------------------------------------

# Dmain's and Gmain's gradients agree to 1e-4 but for sums that nearly cancel: 1e-3, as for the networks. Below 1e-4 of
# the largest is rounding noise.

@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('phase', ['Gmain', 'Dmain', 'Dreg'])
@pytest.mark.parametrize('case', CASES)
def test_recorded_gradients(case, phase, impl):
    G, D, data, sigma = recorded(case)
    net, run = phases(case, G, D, data, sigma)[phase]
    with ops.use_impl(impl): got = gradients(net, run().loss)
    want = {k.removeprefix(f'{phase}/grad/'): v for k, v in data.items() if k.startswith(phase)}
    assert got.keys() == want.keys() and len(want) > 20
    largest = max(v.abs().max() for v in want.values())
    errors = {k: error(got[k], v) for k, v in want.items() if v.abs().max() > 1e-4*largest}
    print(f'{len(errors)} of {len(want)} gradients, worst {max(errors.values()):.1e}')
    assert len(errors) > len(want) // 2 and max(errors.values()) < 1e-3
    for k in want.keys() - errors.keys(): assert got[k].abs().max() < 1e-3*largest


@pytest.mark.parametrize('case', CASES)
def test_losses_are_the_formulas(case):
    G, D, data, sigma = recorded(case)
    other, _, _, _ = recorded(case)
    look = lambda x: x
    if sigma:
        t = torch.arange(-math.floor(3*sigma), math.floor(3*sigma) + 1).double()
        taps = (2**-(t/sigma)**2)
        taps = (taps/taps.sum()).float()
        look = lambda x: F.conv2d(F.conv2d(x, taps[None, None, None].repeat(3, 1, 1, 1), groups=3,
                                           padding=(0, len(t) // 2)),
                                  taps[None, None, :, None].repeat(3, 1, 1, 1), groups=3, padding=(len(t) // 2, 0))
    run = {k: f() for k, (_, f) in phases(case, G, D, data, sigma).items()}
    with torch.no_grad():
        fake = D(look(other(data['z'])))
        moved = D(look(other(data['z'], update_emas=True)))
        real = D(look(data['real']))
    assert abs(run['Gmain'].loss.item() - F.softplus(-fake).mean().item()) < 1e-4
    assert abs(run['Dmain'].loss.item() - (F.softplus(moved).mean() + F.softplus(-real).mean()).item()) < 1e-4
    x = data['real'].clone().requires_grad_()
    g, = torch.autograd.grad(D(look(x)).sum(), x)
    want = INDEX[case]['r1_gamma']/2*g.square().sum([1, 2, 3]).mean().item()
    assert abs(run['Dreg'].loss.item() - want) < 1e-3*want
    assert run['Dmain'].carry.tolist() == [real.sign().sum().item(), 8]


def onednn_is_wrong():
    "Check for a fault of oneDNN 3.12 (torch 2.13) in bfloat16 on processors with AMX"
    x = torch.randn(2, 16, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    return error(F.conv2d(*x.bfloat16(), padding=1), F.conv2d(*x, padding=1)) > 0.1


@pytest.mark.parametrize('phase', ['Gmain', 'Dmain', 'Dreg'])
@pytest.mark.parametrize('case', CASES)
def test_bfloat16_networks(case, phase):
    "Losses in float32, gradients in float32 and in the same direction"
    G, D, data, sigma = recorded(case, dtype='bfloat16')
    net, run = phases(case, G, D, data, sigma)[phase]
    result = run()
    got = gradients(net, result.loss)
    want = {k.removeprefix(f'{phase}/grad/'): v for k, v in data.items() if k.startswith(phase)}
    assert result.loss.dtype == torch.float32 and all(v.dtype == torch.float32
                                                      for v in [*got.values(), *result.report.values()])
    similarity = torch.cosine_similarity(*[torch.cat([v[k].flatten() for k in want]) for v in (got, want)],
                                         dim=0).item()
    print(f'cosine {similarity:.4f}')
    if phase == 'Dreg' and 0.9 < similarity < 0.98 and onednn_is_wrong():
        pytest.xfail("oneDNN's second derivative of a convolution in bfloat16 is wrong on this processor")
    assert similarity > 0.98


# What moves, and what doesn't --------------------------------------------------------------------------------------------------------

SMALL = dict(z_dim=8, w_dim=8, channel_base=128, channel_max=8)


def small(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    G, D = build(name, 16, **SMALL, **kwargs)
    for k, p in G.named_parameters():
        if k.endswith('noise_strength'): nn.init.ones_(p)
    return G.train(), D.train()


def all_phases(G, D, labels=None):
    draw = torch.Generator().manual_seed(1)
    z, other = torch.randn(2, 4, 8, generator=draw)
    real, noise = torch.randn(2, 4, 3, 16, 16, generator=draw)
    mixed = Latents(z, labels, other, losses.mixing_cutoffs(torch.rand(4, 2, generator=draw), G.num_ws), noise_seed=5)
    return {'Gmain': lambda **kw: Gmain(G, D, mixed, **kw),
            'Dmain': lambda **kw: Dmain(G, D, real, labels, mixed, **kw),
            'Dreg': lambda **kw: Dreg(D, real, labels, 10, **kw),
            'Greg': lambda **kw: Greg(G, mixed, noise, torch.tensor(.1), **kw)}


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
def test_a_phase_moves_its_network_only(name):
    G, D = small(name)
    for phase, run in all_phases(G, D).items():
        for net in (G, D): net.zero_grad(set_to_none=True)
        run().loss.backward()
        own, rest = (G, D) if phase[0] == 'G' else (D, G)
        assert all(p.requires_grad for net in (G, D) for p in net.parameters())
        assert all(p.grad is None for p in rest.parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for k, p in own.named_parameters()
                   if k.endswith('weight') and 'torgb' not in k), phase


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
def test_running_averages_move_in_Dmain_only(name):
    G, D = small(name)
    for phase, run in all_phases(G, D).items():
        before = {k: v.clone() for k, v in G.named_buffers()}
        run()
        moved = {k.split('.')[-1] for k, v in G.named_buffers() if not torch.equal(v, before[k])}
        assert moved == ({'w_avg'} | ({'magnitude_ema'} if name == 'stylegan3-t' else set()) if phase == 'Dmain'
                         else set()), phase


def test_w_avg_follows_the_first_latents_of_a_mixture():
    G, D = small('stylegan2')
    z, other = torch.randn(2, 4, 8)
    w = G.mapping(z)[:, 0].mean(0).detach()
    losses.make(G, Latents(z, other=other, cutoffs=torch.full((4,), 2)), update_emas=True)
    assert torch.allclose(G.mapping.w_avg, w*(1 - .998), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
def test_nothing_draws_from_the_global_generator(name):
    G, D = small(name)
    state = torch.get_rng_state()
    first = {k: run().loss.item() for k, run in all_phases(*small(name)).items()}
    torch.manual_seed(123)
    state = torch.get_rng_state()
    G, D = G, D
    again = {k: run().loss.item() for k, run in all_phases(G, D).items()}
    assert torch.equal(torch.get_rng_state(), state) and again == first


@pytest.mark.parametrize('phase', ['Gmain', 'Greg', 'Dmain', 'Dreg'])
def test_gain_scales_the_loss_and_not_the_report(phase):
    one, four = [all_phases(*small('stylegan2'))[phase](gain=gain) for gain in (1, 4)]
    assert torch.allclose(one.loss*4, four.loss) and one.report == four.report
    assert not any(v.requires_grad for v in one.report.values()) and (one.carry is None or not one.carry.requires_grad)


def test_halves_of_Dmain_add_up():
    gradient = {}
    for how in ('whole', 'halves'):
        G, D = small('stylegan3-t')
        real, latents = torch.ones(4, 3, 16, 16), Latents(torch.ones(4, 8))
        if how == 'whole': Dmain(G, D, real, None, latents).loss.backward()
        else:
            Dmain_fake(G, D, latents).loss.backward()
            Dmain_real(D, real).loss.backward()
        gradient[how] = torch.cat([p.grad.flatten() for p in D.parameters()])
    assert torch.allclose(gradient['whole'], gradient['halves'], rtol=1e-4, atol=1e-6)


def test_pieces_of_a_batch_with_their_shares_give_the_batch():
    G, D = small('stylegan2', D_kwargs=dict(epilogue_kwargs=dict(mbstd_group_size=1)))
    z, real = torch.randn(8, 8), torch.randn(8, 3, 16, 16)
    for net, whole, piece in ((G, lambda: Gmain(G, D, Latents(z)),
                               lambda i, n: Gmain(G, D, Latents(z[i:i + n]), gain=n/8)),
                              (D, lambda: Dreg(D, real, None, 3), lambda i, n: Dreg(D, real[i:i + n], None, 3,
                                      gain=n/8))):
        want = gradients(net, whole().loss)
        net.zero_grad(set_to_none=True)
        for i, n in ((0, 4), (4, 3), (7, 1)): piece(i, n).loss.backward()
        for k, p in net.named_parameters():
            if k in want: assert torch.allclose(p.grad, want[k], rtol=1e-3, atol=1e-5*max(1, want[k].abs().max())), k


def test_labels_reach_both_networks():
    labels = torch.eye(3)[[0, 1, 2, 0]]
    a = {k: run() for k, run in all_phases(*small('stylegan3-t', c_dim=3), labels=labels).items()}
    b = {k: run() for k, run in all_phases(*small('stylegan3-t', c_dim=3), labels=labels.flip(0)).items()}
    assert all(a[k].loss != b[k].loss for k in a)


def test_augmentation_sees_real_and_made_images_after_the_blur():
    seen = []
    def augment(x):
        seen.append(x.detach().clone())
        return x*.5
    G, D = small('stylegan3-t')
    real, latents = torch.randn(4, 3, 16, 16), Latents(torch.randn(4, 8))
    with torch.no_grad(): made, moved = G(latents.z), copy.deepcopy(G)(latents.z, update_emas=True)
    Gmain(G, D, latents, augment, 1.5)
    Dmain(G, D, real, None, latents, augment, 1.5)
    Dreg(D, real, None, 1, augment, 1.5)
    want = [losses.blur(x, 1.5) for x in (made, moved, real, real)]
    assert len(seen) == 4 and all(error(a, b) < 1e-5 for a, b in zip(seen, want))
    assert torch.allclose(Dmain_real(D, real, None, augment).loss, losses.real_loss(D(real*.5)))


def test_R1_is_taken_at_the_image_before_blur_and_augmentation():
    _, D = small('stylegan3-t')
    x = torch.randn(4, 3, 16, 16)
    y = x.clone().requires_grad_()
    g, = torch.autograd.grad(D(losses.blur(y, 1)*.5).sum(), y)
    got = Dreg(D, x, None, 2, lambda v: v*.5, 1).loss.item()
    assert got == pytest.approx(g.square().sum([1, 2, 3]).mean().item(), rel=1e-4) and not x.requires_grad


def test_gradient_of_G_passes_through_augmentation():
    G, D = small('stylegan3-t')
    latents = Latents(torch.randn(4, 8))
    assert not any(g.any() for g in gradients(G, Gmain(G, D, latents, lambda x: x*0).loss).values())
    assert any(g.any() for g in gradients(G, Gmain(G, D, latents, lambda x: x.flip(3)).loss).values())


def test_frozen_puts_back_only_what_it_took():
    _, D = build('stylegan3-t', 16, **SMALL)
    names = [k for k, _ in D.named_parameters()]
    D.b4.fc.weight.requires_grad_(False)
    with pytest.raises(KeyError), losses.frozen(D):
        assert not any(p.requires_grad for p in D.parameters())
        raise KeyError
    assert [k for k, p in D.named_parameters() if p.requires_grad] == [k for k in names if k != 'b4.fc.weight']


def test_losses_stay_finite_far_out():
    x = torch.tensor([[-1e6], [1e6]], requires_grad=True)
    for loss in (losses.fake_loss, losses.real_loss, losses.generator_loss):
        assert loss(x).item() == pytest.approx(5e5) and torch.autograd.grad(loss(x), x)[0].isfinite().all()


# Path length, mixing, blur ----------------------------------------------------------------------------------------------------------

def test_path_lengths_of_a_linear_generator():
    torch.manual_seed(0)
    A = torch.randn(3, 48, 5)   # one matrix for each of three ws
    ws, noise = torch.randn(6, 3, 5, requires_grad=True), torch.randn(6, 3, 4, 4)
    images = torch.einsum('kpi,nki->np', A, ws).reshape(6, 3, 4, 4)
    slopes = torch.einsum('kpi,np->nki', A, noise.reshape(6, 48))/4                    # 4 = sqrt(H·W)
    assert torch.allclose(losses.path_lengths(images, ws, noise), slopes.square().sum(2).mean(1).sqrt(), rtol=1e-4)


def test_path_length_penalty_moves_toward_a_constant_mean():
    lengths = torch.tensor([1., 3.], requires_grad=True)
    penalty, mean = losses.path_length_penalty(lengths, torch.tensor(1.), decay=.5)
    assert mean.item() == 1.5 and penalty.item() == (.25 + 2.25)/2 and not mean.requires_grad
    assert torch.autograd.grad(penalty, lengths)[0].tolist() == [-.5, 1.5]
    assert losses.path_length_penalty(lengths, 1., .5, across=lambda t: t + 2)[1].item() == 2.5


def test_two_halves_with_a_shared_mean_have_the_penalty_of_the_whole():
    lengths = torch.rand(8)
    both = lengths.mean()
    whole, mean = losses.path_length_penalty(lengths, torch.tensor(.3))
    halves = [losses.path_length_penalty(h, torch.tensor(.3), across=lambda t: both) for h in lengths.chunk(2)]
    assert torch.allclose(sum(h[0] for h in halves)/2, whole) and all(torch.allclose(h[1], mean) for h in halves)


def test_Greg_weight_and_running_mean():
    run = all_phases(*small('stylegan2'))['Greg']
    result = run(weight=3, gain=4)
    assert result.loss.item() == pytest.approx(12*result.report['loss/path'].item(), rel=1e-6)
    assert result.carry.item() == pytest.approx(.1 + .01*(result.report['path length'].item() - .1), rel=1e-5)


def test_style_mixing_shares():
    u = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(0))
    c = losses.mixing_cutoffs(u, 8)
    count = torch.bincount(c, minlength=9)/len(c)
    assert count[0] == 0 and abs(count[8] - .1) < .005 and ((count[1:8] - .9/7).abs() < .005).all()
    edge = losses.mixing_cutoffs(torch.tensor([[0., 0.], [0., math.nextafter(1, 0)], [.9, 0.]], dtype=torch.float64), 8)
    assert edge.tolist() == [1, 7, 8] and losses.mixing_cutoffs(torch.tensor([[0., 1.]]), 8).tolist() == [7]


def test_mixing_takes_ws_from_either_side():
    G, _ = small('stylegan2')
    z, other = torch.randn(2, 3, 8)
    ws, _ = losses.make(G, Latents(z, other=other, cutoffs=torch.tensor([1, 4, G.num_ws])))
    one, two = G.mapping(z), G.mapping(other)
    for i, cut in enumerate((1, 4, G.num_ws)):
        assert torch.equal(ws[i, :cut], one[i, :cut]) and torch.equal(ws[i, cut:], two[i, cut:])


@pytest.mark.parametrize('sigma, reach', [(10, 30), (1.5, 4), (1/3 + 1e-9, 1)])
def test_blur_taps(sigma, reach):
    taps = losses.blur_taps(sigma)
    t = np.arange(-reach, reach + 1)
    want = np.exp2(-(t/sigma)**2)
    assert np.allclose(taps.numpy(), want/want.sum(), atol=1e-7) and taps.dtype == torch.float32


def test_blur_has_zeros_beyond_the_border():
    x = torch.ones(1, 1, 40, 40)
    y = losses.blur(x, 3)
    assert y[0, 0, 20, 20].item() == pytest.approx(1, abs=1e-5)
    taps = losses.blur_taps(3)
    assert y[0, 0, 0, 0].item() == pytest.approx(taps[9:].sum().item()**2, rel=1e-4)
    assert losses.blur(x, .33) is x and losses.blur(x[:, :, :5, :5], 10).shape == (1, 1, 5, 5)


def test_noise_seed_decides_the_noise():
    G, _ = small('stylegan2')
    z = torch.randn(2, 8)
    with torch.no_grad(): a, b, c, const = [losses.make(G, Latents(z, noise_seed=s))[1] for s in (3, 3, 4, None)]
    assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(const, G(z, noise_mode='const'))


# Steps ------------------------------------------------------------------------------------------------------------------------------

def test_lazy_adam_is_taken_by_Adam():
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([p], **lazy_adam(.0025, 4))
    group = optimizer.param_groups[0]
    assert group['lr'] == pytest.approx(.002) and group['betas'] == (0, .99**.8) and group['eps'] == 1e-8
    torch.optim.Adam([p], **lazy_adam(.002))
    assert lazy_adam(.002) == dict(lr=.002, betas=(0, .99), eps=1e-8)


def test_mend_counts_and_leaves_the_rest():
    a, b = torch.tensor([1., float('nan'), -2.]), torch.tensor([[float('inf'), -float('inf'), 1e30]])
    rest = a[[0, 2]].clone()
    assert mend(iter([a, None, b])).item() == 3
    assert (a.tolist() == [1, 0, -2] and b.tolist() == [[1e5, -1e5, torch.tensor(1e30).item()]]
            and torch.equal(a[[0, 2]], rest))
    assert mend([torch.ones(2)]).item() == 0 and mend([None]) == 0


@pytest.mark.parametrize('batch, nimg, kimg, rampup, half_life',
                         [(32, 10**7, None, .05, 10_000), (32, 1000, None, .05, 50), (32, 1000, None, None, 10_000),
                          (8, 10**7, 2, .05, 2000)])
def test_ema_beta(batch, nimg, kimg, rampup, half_life):
    assert ema_beta(batch, nimg, kimg, rampup) == pytest.approx(.5**(batch/half_life))


def test_ema_starts_as_a_copy_and_follows():
    G, _ = small('stylegan3-t')
    other, _ = small('stylegan3-t', seed=1)
    ema = make_ema(G)
    assert not ema.training and not any(p.requires_grad for p in ema.parameters())
    want = {k: p*.75 + dict(other.named_parameters())[k]*.25 for k, p in G.named_parameters()}
    with torch.no_grad():
        for v in other.buffers(): v.add_(1)
    update_ema(ema, other, .75)
    assert all(torch.allclose(p, want[k], atol=1e-6) for k, p in ema.named_parameters())
    assert all(torch.equal(v, dict(other.named_buffers())[k]) for k, v in ema.named_buffers())
    update_ema(ema, G, ema_beta(32, 0))
    assert all(torch.equal(v, ema.state_dict()[k]) for k, v in G.state_dict().items())


# ADA --------------------------------------------------------------------------------------------------------------------------------

def feed(ada, r, count, n=4):
    "Take n steps with mean sign r, and count how often p was updated"
    return sum(ada.step(torch.tensor([r*count, count])) for _ in range(n))


@pytest.mark.parametrize('speed, batch, interval', [(500, 32, 4), (100, 16, 4), (500, 64, 2)])
def test_ada_speed(speed, batch, interval):
    ada = AdaptiveAugment(speed_kimg=speed, interval=interval)
    assert feed(ada, 1., float(batch), 10*interval) == 10
    assert ada.p.item() == pytest.approx(10*batch*interval/(speed*1000), rel=1e-5)
    feed(ada, .25, float(batch), interval)
    assert ada.p.item() == pytest.approx(9*batch*interval/(speed*1000), rel=1e-5)


def test_ada_averages_over_the_interval_only_and_stays_above_zero():
    ada = AdaptiveAugment(p=1e-4)
    for r in (1., 1., .5, 0.): ada.step(torch.tensor([r*8, 8.]))
    assert ada.r_t.item() == pytest.approx(.625) and ada.p > 1e-4
    feed(ada, -1., 8.)
    feed(ada, -1., 8.)
    feed(ada, -1., 8.)
    assert ada.r_t.item() == -1 and ada.p.item() == 0
    feed(ada, .75, 0.)
    assert ada.p.item() == 0 and ada.r_t.isnan()   # nothing was seen


def test_ada_stands_still_on_target():
    ada = AdaptiveAugment(p=.2, target=.5)
    feed(ada, .5, 8.)
    assert ada.r_t.item() == .5 and ada.p == torch.tensor(.2)


def test_ada_of_two_processes_is_that_of_one():
    torch.manual_seed(0)
    logits = torch.randn(40, 16, 1) + .8
    one = AdaptiveAugment()
    two = [AdaptiveAugment(), AdaptiveAugment()]
    for x in logits:
        one.step(losses.signs(x))
        total = sum(losses.signs(h) for h in x.chunk(2))   # what the processes add up before they step
        for a in two: a.step(total)
    assert one.p > 0 and one.p == two[0].p == two[1].p and one.r_t == two[0].r_t


def test_ada_state_goes_through_json():
    ada = AdaptiveAugment(p=.3)
    feed(ada, .9, 7., 6)
    other = AdaptiveAugment()
    other.load_state_dict(json.loads(json.dumps(ada.state_dict())))
    feed(ada, .7, 7., 9)
    feed(other, .7, 7., 9)
    assert ada.state_dict() == other.state_dict() and ada.steps == 3


# Errors -----------------------------------------------------------------------------------------------------------------------------

Z = torch.zeros


@pytest.mark.parametrize('call, message', [
    (lambda: losses.fake_loss(Z(3)), 'logits has shape [3]; accepted: a tensor [batch, 1]'),
    (lambda: losses.real_loss(None), 'logits is NoneType; accepted: a tensor [batch, 1]'),
    (lambda: losses.r1_penalty(Z(2, 1), Z(2, 3, 4, 4), 1), 'call images.requires_grad_() before D sees them'),
    (lambda: losses.r1_penalty(Z(2, 1).requires_grad_(), Z(2, 3, 4, 4).requires_grad_(), 1),
     "logits don't depend on images"),
    (lambda: losses.r1_penalty(Z(2, 1), Z(2, 3, 4, 4).requires_grad_(), -1),
     'gamma=-1; accepted: a number of at least 0'),
    (lambda: losses.r1_penalty(Z(2, 1), Z(2, 3, 4, 4).requires_grad_(), '2'),
     "gamma='2'; accepted: a number of at least 0"),
    (lambda: losses.path_lengths(Z(2, 3, 4, 4), Z(2, 3, 4), Z(1, 3, 4, 4)),
     "noise has shape [1, 3, 4, 4]; accepted: normal noise of the images' shape, [2, 3, 4, 4]"),
    (lambda: losses.path_length_penalty(Z(2), Z([]), decay=1.5), 'decay=1.5; accepted: a number from 0 to 1'),
    (lambda: losses.mixing_cutoffs(Z(3), 8), 'uniform has shape [3]; accepted: a tensor [batch, 2]'),
    (lambda: losses.mixing_cutoffs(Z(3, 2), 1), 'num_ws=1; accepted: a whole number of at least 2'),
    (lambda: losses.mixing_cutoffs(Z(3, 2), 8, 9), 'probability=9; accepted: a number from 0 to 1'),
    (lambda: losses.mix_styles(Z(2, 4, 8), Z(2, 4, 7), Z(2)),
     'other has shape [2, 4, 7]; accepted: that of ws, [2, 4, 8]'),
    (lambda: losses.mix_styles(Z(2, 4, 8), Z(2, 4, 8), Z(3)),
     'cutoffs has shape [3]; accepted: one for each image, [2]'),
    (lambda: losses.make(build('stylegan2', 16, **SMALL)[0], Latents(Z(2, 8), cutoffs=Z(2))),
     'latents.other is missing; accepted: both'),
    (lambda: losses.blur(Z(1, 1, 4, 4), float('nan')), 'sigma=nan; accepted: a number of at least 0'),
    (lambda: losses.blur_sigma(0, 10, -2), 'fade_kimg=-2; accepted: a number of at least 0'),
    (lambda: lazy_adam(-1), 'lr=-1; accepted: a number of at least 0'),
    (lambda: lazy_adam(1, 2.5), 'interval=2.5; accepted: a whole number of at least 1, or None'),
    (lambda: lazy_adam(1, betas=(0, 2)), 'betas[1]=2; accepted: a number from 0 to 1'),
    (lambda: ema_beta(0, 10), 'batch=0; accepted: a number of at least 1'),
    (lambda: ema_beta(8, 10, ema_kimg=-3), 'ema_kimg=-3; accepted: a number of at least 0'),
    (lambda: update_ema(nn.Linear(2, 2), nn.Linear(2, 3), .5),
     'G_ema and G differ in weight, bias; accepted: networks of one configuration'),
    (lambda: update_ema(nn.Linear(2, 2), nn.Linear(2, 2), 2), 'beta=2; accepted: a number from 0 to 1'),
    (lambda: AdaptiveAugment(interval=0), 'interval=0; accepted: a whole number of at least 1'),
    (lambda: AdaptiveAugment(speed_kimg=0), 'speed_kimg=0; accepted: a number of at least 0.001'),
    (lambda: AdaptiveAugment().step(Z(4, 1)), 'signs has shape [4, 1]; accepted: a tensor [2]'),
    (lambda: AdaptiveAugment().load_state_dict(None), 'state has NoneType; accepted: what state_dict gives'),
])
def test_wrong_arguments_are_explained(call, message):
    with pytest.raises(ValueError) as e: call()
    assert message in str(e.value)
