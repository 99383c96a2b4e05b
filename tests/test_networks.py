"""The networks against recorded reference values, and what else they promise"""
import copy, io, json, pickle
from pathlib import Path

import numpy as np, pytest, torch
from torch.overrides import TorchFunctionMode

from cleftgan_nb import networks, ops
from cleftgan_nb.networks import (Discriminator, StyleGAN2Generator, StyleGAN3Generator, build, from_config, layers,
                                  to_config, with_labels)

ROOT = Path(__file__).parent/'reference'
INDEX = json.loads((ROOT/'index.json').read_text())
GENERATORS = [k for k, m in INDEX.items() if m.get('op') == 'generator']
STYLEGAN3 = [k for k in GENERATORS if 'stylegan3' in k]
DISCRIMINATORS = [k for k, m in INDEX.items() if m.get('op') == 'discriminator']
IMPLS = ['auto', 'definition']


def load(case): return {k: torch.from_numpy(v) for k, v in np.load(ROOT/f'{case}.npz').items()}


def network(case, data=None, **kwargs):
    cls = Discriminator if case in DISCRIMINATORS else StyleGAN2Generator if 'stylegan2' in case else StyleGAN3Generator
    net = cls(**INDEX[case]['kwargs'], **kwargs).eval()
    net.load_state_dict({k[6:]: v for k, v in (data or load(case)).items() if k.startswith('state/')}, strict=True)
    return net


def error(a, b):
    assert a.shape == b.shape
    return ((a.detach().double() - b.double()).norm()/(b.double().norm() + 1e-12)).item()


def gradients(loss, net):
    names = dict(net.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, list(names.values()), allow_unused=True)))


def wrong_gradients(got, data, prefix, tolerance):
    "List gradients beyond the tolerance; below 1e-4 of the largest they are rounding noise"
    want = {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
    largest = max(v.abs().max() for v in want.values())
    checked = {k: error(got[k], v) for k, v in want.items() if v.abs().max() > 1e-4*largest}
    assert len(checked) > len(want) // 2
    return {k: e for k, e in checked.items() if e > tolerance}


# Reference values ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', GENERATORS)
def test_generator_reproduces_reference(case, impl):
    data, meta = load(case), INDEX[case]
    G, kw, cut = network(case, data), meta['synthesis_kwargs'], meta['truncation']
    with ops.use_impl(impl):
        w = G.mapping(data['z'], data['c'])
        truncated = G.mapping(data['z'], data['c'], truncation_psi=cut['psi'], truncation_cutoff=cut['cutoff'])
        img = G.synthesis(w, **kw)
        assert error(w, data['w']) < 1e-5 and error(truncated, data['w_trunc']) < 1e-5
        assert error(img, data['img']) < 1e-4 and error(G.synthesis(truncated, **kw), data['img_trunc']) < 1e-4
        assert not wrong_gradients(gradients((img*data['dimg']).sum(), G), data, 'grad/', 1e-3)


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', STYLEGAN3)
def test_stylegan3_transform_and_averages(case, impl):
    data = load(case)
    G = network(case, data)
    with torch.no_grad(), ops.use_impl(impl):
        G.synthesis.input.transform.copy_(data['transform'])
        assert error(G(data['z'], data['c']), data['img_transform']) < 1e-4
        G.synthesis.input.transform.copy_(torch.eye(3))
        assert error(G.train()(data['z'], data['c'], update_emas=True), data['img_update_emas']) < 1e-4
    buffers, emas = dict(G.named_buffers()), {k[5:]: v for k, v in data.items() if k.startswith('emas/')}
    assert len(emas) > 5
    assert {k for k, v in emas.items() if error(buffers[k], v) > 1e-4} == set()


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', DISCRIMINATORS)
def test_discriminator_reproduces_reference(case, impl):
    data = load(case)
    D, x = network(case, data), data['x'].requires_grad_()
    assert sorted(k for k, _ in D.named_parameters()) == sorted(INDEX[case]['trainable'])
    with ops.use_impl(impl):
        logits = D(x, data['c'])
        dx, = torch.autograd.grad(logits.sum(), x, create_graph=True)
        r1 = dx.square().sum([1, 2, 3])
        assert error(logits, data['logits']) < 1e-4 and error(dx, data['dx']) < 1e-3 and error(r1, data['r1']) < 1e-3
        assert not wrong_gradients(gradients(r1.mean(), D), data, 'grad_r1/', 2e-3)


# bfloat16: activations have 8 bits, so each of some 15 layers rounds by up to 0.4 %. The norm of the error of w, images and logits stays
# within 2 %; the literal operators, which round after every step, get 4 %. Gradients by parameter do not (a small one
# may be the difference of large ones), so their direction is tested as a whole.

@pytest.mark.parametrize('how', ['dtype', 'autocast'])
@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', GENERATORS)
def test_generator_in_bfloat16(case, impl, how):
    data = load(case)
    G = network(case, data, **({'dtype': torch.bfloat16} if how == 'dtype' else {}))
    with ops.use_impl(impl), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        w = G.mapping(data['z'], data['c'])
        img = G.synthesis(w, **INDEX[case]['synthesis_kwargs'])
    assert w.dtype == img.dtype == torch.float32 and error(w, data['w']) < 1e-5
    # the lower bound: it really was bfloat16
    assert 1e-5 < error(img, data['img']) < (2e-2 if impl == 'auto' else 4e-2)
    got = gradients((img*data['dimg']).sum(), G)
    pairs = [(got[k[5:]].flatten(), v.flatten()) for k, v in data.items() if k.startswith('grad/')]
    similarity = torch.cosine_similarity(*map(torch.cat, zip(*pairs)), dim=0)
    print(f'image {error(img, data["img"]):.4f}, cosine of gradients {similarity:.4f}')
    assert similarity > 0.98
    assert all(p.dtype == torch.float32 for p in G.parameters())


@pytest.mark.parametrize('how', ['dtype', 'autocast'])
@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', DISCRIMINATORS)
def test_discriminator_in_bfloat16(case, impl, how):
    data = load(case)
    D, x = network(case, data, **({'dtype': 'bfloat16'} if how == 'dtype' else {})), data['x'].requires_grad_()
    with ops.use_impl(impl), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'): logits = D(x, data['c'])
    dx, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    print(f'logits {error(logits, data["logits"]):.4f}, dx {error(dx, data["dx"]):.4f}, r1 '
          f'{error(dx.square().sum([1, 2, 3]), data["r1"]):.4f}')
    assert logits.dtype == torch.float32 and 1e-6 < error(logits, data['logits']) < 2e-2
    assert torch.cosine_similarity(dx.flatten(), data['dx'].flatten(), dim=0) > 0.99
    assert error(dx.square().sum([1, 2, 3]), data['r1']) < 0.05
    assert all(g is None or g.isfinite().all() for g in gradients(dx.square().sum([1, 2, 3]).mean(), D).values())


@pytest.mark.parametrize('case', GENERATORS + DISCRIMINATORS)
def test_float16(case):
    "11 bits in the highest resolutions: within 5e-3, and no activation is infinite"
    data = load(case)
    net = network(case, data, dtype='float16', num_fp16_res=None)
    out, want = ((net(data['x'], data['c']), 'logits') if case in DISCRIMINATORS
                 else (net.synthesis(data['w'], **INDEX[case]['synthesis_kwargs']), 'img'))
    assert out.dtype == torch.float32 and 1e-6 < error(out, data[want]) < 5e-3


def test_half_precision_only_in_the_highest_resolutions():
    case = 'generator_stylegan2'
    data = load(case)
    seen = {}
    G = network(case, data, dtype='bfloat16', num_fp16_res=2)
    for r in G.synthesis.resolutions:
        getattr(G.synthesis, f'b{r}').conv1.register_forward_hook(lambda m, i, o: seen.update({m.resolution: o.dtype}))
    G(data['z'])
    assert seen == {4: torch.float32, 8: torch.float32, 16: torch.bfloat16, 32: torch.bfloat16}
    assert StyleGAN2Generator(**INDEX[case]['kwargs'], dtype='float16').synthesis.num_fp16_res == 4


@pytest.mark.parametrize('channels_last', [True, False])
def test_order_in_memory_does_not_change_values(channels_last):
    for case in ('generator_stylegan3_t', 'generator_stylegan2'):
        data = load(case)
        G = network(case, data, channels_last=channels_last)
        assert error(G(data['z'], **INDEX[case]['synthesis_kwargs']), data['img']) < 1e-4
    data = load('discriminator')
    assert error(network('discriminator', data, channels_last=channels_last)(data['x']), data['logits']) < 1e-4


# Second derivatives ----------------------------------------------------------------------------------------------------------------

TINY = dict(z_dim=3, w_dim=3, img_resolution=8, channel_base=16, channel_max=2)


@pytest.mark.parametrize('impl', IMPLS)
def test_second_derivatives_of_modulated_conv(impl):
    torch.manual_seed(0)
    for n, demodulate, normalize in ((1, True, True), (2, True, True), (2, True, False), (2, False, False)):
        x, w, s = [torch.randn(*shape, dtype=torch.float64, requires_grad=True)
                   for shape in ((n, 2, 3, 4), (3, 2, 3, 3), (n, 2))]
        f = lambda x, w, s: layers.modulated_conv2d(x, w, s, demodulate, normalize, padding=2, impl=impl)
        assert torch.autograd.gradcheck(f, (x, w, s)) and torch.autograd.gradgradcheck(f, (x, w, s))


@pytest.mark.parametrize('net', [StyleGAN3Generator, StyleGAN2Generator])
def test_second_derivatives_of_generators(net):
    torch.manual_seed(1)
    G = net(**TINY, **({'num_layers': 3, 'num_critical': 1, 'margin_size': 2} if net is StyleGAN3Generator
                       else {})).double()
    ws = torch.randn(2, G.num_ws, 3, dtype=torch.float64, requires_grad=True)
    f = lambda ws: G.synthesis(ws, noise_mode='const')[:, :, 2:4, 3:5]
    assert f(ws).dtype == torch.float64
    assert torch.autograd.gradcheck(f, ws) and torch.autograd.gradgradcheck(f, ws)


def test_second_derivatives_of_discriminator():
    torch.manual_seed(2)
    D = Discriminator(2, 8, 1, channel_base=16, channel_max=2, mapping_kwargs=dict(num_layers=1)).double()
    x, c = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True), torch.eye(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: D(x, c), x) and torch.autograd.gradgradcheck(lambda x: D(x, c), x)


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
def test_path_length_reaches_the_weights(name):
    torch.manual_seed(3)
    G = build(name, 16, z_dim=8, w_dim=8, channel_base=128, channel_max=8)[0]
    ws = G.mapping(torch.randn(2, 8))
    img = G.synthesis(ws, noise_mode='none')
    g, = torch.autograd.grad((img*torch.randn_like(img)).sum(), ws, create_graph=True)
    got = gradients(g.square().sum(2).mean(1).sqrt().var(), G)
    assert all(v is not None and v.isfinite().all() and v.abs().sum() > 0 for k, v in got.items()
               if k.endswith('weight') and 'torgb' not in k and 'mapping' not in k)


# What belongs to a sample, and what to the batch ------------------------------------------------------------------------------------

def test_stylegan2_samples_are_independent():
    case = 'generator_stylegan2'
    data = load(case)
    G = network(case, data)
    together = G(data['z'], noise_mode='const')
    for i in range(3): assert error(G(data['z'][i:i + 1], noise_mode='const'), together[i:i + 1].detach()) < 1e-5


def test_stylegan3_normalizes_styles_over_the_batch():
    w, s = torch.randn(5, 4, 3, 3), torch.randn(3, 4)*torch.tensor([[1.], [5.], [0.1]])
    scale_in, scale_out = layers.modulation_coefficients(w, s, normalize=True)
    assert torch.allclose(scale_in, s/s.square().mean().sqrt(), rtol=1e-5)       # one number for the batch ...
    alone = layers.modulation_coefficients(w, s[:1], normalize=True)
    assert not torch.allclose(scale_in[:1], alone[0], rtol=0.1)
    # ... undone again
    assert torch.allclose((scale_in[:, None]*scale_out[..., None])[:1], alone[0][:, None]*alone[1][..., None],
                          rtol=1e-5)


def test_stylegan3_images_do_not_depend_on_their_neighbors():
    data = load('generator_stylegan3_t')
    G, z = network('generator_stylegan3_t', data), data['z']
    with torch.no_grad():
        img = G(z)
        assert error(G(z[[2, 0, 1]]), img[[2, 0, 1]]) < 1e-5
        for i in range(3): assert error(G(z[i:i + 1]), img[i:i + 1]) < 1e-4        # up to the 1e-8 of demodulation


def test_discriminator_compares_within_groups():
    D = Discriminator(0, 16, channel_base=128, channel_max=8)
    x = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        y = D(x)
        other = x.clone()
        other[1] += 5
        changed = (D(other) - y).abs().flatten() > 1e-6
    # groups are {0, 2, 4, 6} and {1, 3, 5, 7}
    assert changed.tolist() == [i % 2 == 1 for i in range(8)]


# Labels -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan3-r', 'stylegan2'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_networks_that_gain_labels_answer_as_before(name, dtype):
    "To the last bit, for every label, truncated or not"
    torch.manual_seed(0)
    G, D = build(name, 16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, dtype=dtype)
    with torch.no_grad():
        G.mapping.w_avg.normal_()
        G_c, D_c, z = with_labels(G, 3, 10), with_labels(D, 3), torch.randn(4, 8)
        for c in (torch.zeros(4, 3), torch.rand(4, 3), torch.full((4, 3), -1e6)):
            assert torch.equal(G_c(z, c, noise_mode='const'), G(z, noise_mode='const'))
            assert torch.equal(G_c(z, c, 0.5, 2, noise_mode='const'), G(z, None, 0.5, 2, noise_mode='const'))
            assert torch.equal(D_c(G(z, noise_mode='const'), c), D(G(z, noise_mode='const')))
    for old, new in ((G, G_c), (D, D_c)):
        theirs = new.state_dict()
        assert all(torch.equal(v, theirs[k]) and v.data_ptr() != theirs[k].data_ptr()
                   for k, v in old.state_dict().items())
        assert (len(theirs) == len(old.state_dict()) + 1
                and to_config(from_config(json.loads(json.dumps(to_config(new))))) == to_config(new))


def test_gaining_labels_draws_nothing():
    G, _ = build('stylegan2', 16, z_dim=4, w_dim=4, channel_base=64, channel_max=4)
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    with_labels(G, 2)
    assert torch.equal(torch.rand(3), want)


def test_frozen_layers_stay_frozen_with_labels():
    D = Discriminator(0, 16, channel_base=64, channel_max=4, block_kwargs=dict(freeze_layers=3))
    names = [k for k, _ in D.named_parameters()]
    assert [k for k, _ in with_labels(D, 2).named_parameters()] == [*names, 'b4.label.weight']


def test_truncation_leaves_what_was_asked_for():
    mapping = layers.MappingNetwork(6, 2, 5, 3, 2, label='added', label_lr=4)
    with torch.no_grad():
        mapping.label.weight.normal_()
        mapping.w_avg.normal_()
    z, c = torch.randn(7, 6), torch.rand(7, 2)
    with torch.no_grad():
        shift = 4*c @ mapping.label.weight.T
        assert torch.allclose(mapping(z, c, 0)[:, 0], mapping.w_avg + shift, atol=1e-6)
        assert torch.allclose(mapping(z, c, 0.3)[:, 1] - shift, mapping.w_avg.lerp(mapping(z, 0*c)[:, 0], 0.3),
                              atol=1e-6)
        before = mapping.w_avg.clone()
        mapping(z, c, update_emas=True)
        # over everyone, whatever was asked for
        assert torch.allclose(mapping.w_avg, mapping(z, 0*c)[:, 0].mean(0).lerp(before, 0.998), atol=1e-6)


def test_derivatives_of_label_terms():
    torch.manual_seed(2)
    mapping = layers.MappingNetwork(3, 2, 4, 2, 1, label='added', label_lr=3).double()
    D = Discriminator(2, 8, 1, channel_base=16, channel_max=2,
                      epilogue_kwargs=dict(label='projected', label_lr=3)).double()
    for net in (mapping, D.b4): torch.nn.init.normal_(net.label.weight)
    z, x, c = (torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((3,), (1, 8, 8), (2,)))
    calls = [(lambda z, c, A: torch.func.functional_call(mapping, {'label.weight': A}, (z, c)),
              (z, c, mapping.label.weight)),
             (lambda x, c, A: torch.func.functional_call(D, {'b4.label.weight': A}, (x, c)), (x, c, D.b4.label.weight))]
    for f, given in calls: assert torch.autograd.gradcheck(f, given) and torch.autograd.gradgradcheck(f, given)


@pytest.mark.parametrize('lr', [1, 8])
def test_label_lr_is_how_fast_labels_are_learned(lr):
    "Adam's first step moves each added entry by lr times its learning rate"
    G, D = (with_labels(net, 2, lr) for net in build('stylegan2', 16, z_dim=4, w_dim=4, channel_base=64, channel_max=4))
    z, c = torch.randn(4, 4), torch.ones(4, 2)
    D(G(z, c, noise_mode='const'), c).sum().backward()
    for term in (G.mapping.label, D.b4.label):
        torch.optim.Adam([term.weight], lr=0.01).step()
        moved = term(torch.eye(2)).abs()
        assert ((moved - 0.01*lr).abs() < 1e-4*lr)[moved > 0].all() and (moved > 0).any()


# Construction -----------------------------------------------------------------------------------------------------------------------

def test_names_of_all_tensors_are_the_published_ones():
    for case in GENERATORS + DISCRIMINATORS:
        want = {k[6:]: v.shape for k, v in load(case).items() if k.startswith('state/')}
        assert {k: v.shape for k, v in network(case).state_dict().items()} == want


@pytest.mark.parametrize('resolution, kwargs, num_ws',
                         [(32, {}, 16), (256, {}, 16), (1024, {}, 16), (64, {'num_layers': 8}, 10)])
def test_stylegan3_num_ws(resolution, kwargs, num_ws):
    G = build('stylegan3-t', resolution, **kwargs)[0]
    assert G.num_ws == num_ws == len(G.synthesis.layer_names) + 1


@pytest.mark.parametrize('resolution, num_ws', [(32, 8), (256, 14), (1024, 18)])
def test_stylegan2_num_ws(resolution, num_ws):
    assert build('stylegan2', resolution)[0].num_ws == num_ws


def test_published_names_of_layers_at_256():
    G, R = build('stylegan3-t', 256)[0], build('stylegan3-r', 256)[0]
    assert G.synthesis.layer_names == ('L0_36_512 L1_36_512 L2_36_512 L3_52_512 L4_52_512 L5_84_512 L6_84_512 '
                                       'L7_148_512 L8_148_512 '
        'L9_148_362 L10_276_256 L11_276_181 L12_276_128 L13_256_128 L14_256_3').split()
    assert R.synthesis.L0_36_1024.weight.shape == (1024, 1024, 1, 1)
    radial = [getattr(R.synthesis, n).down_filter for n in R.synthesis.layer_names]
    # the critically sampled layers have separable filters
    assert [f.ndim for f in radial if f is not None][-3:] == [2, 1, 1]


@pytest.mark.parametrize('name', networks.build.__globals__['NAMES'])
def test_initial_statistics(name):
    torch.manual_seed(0)
    G, D = build(name, 32, channel_base=2048, channel_max=64, w_dim=64)
    for key, p in [*G.named_parameters(), *D.named_parameters()]:
        if key.endswith('input.affine.bias'): assert p.tolist() == [1, 0, 0, 0]
        elif key.endswith('input.affine.weight'): assert not p.any()
        elif key.endswith('affine.bias'): assert (p == 1).all()
        elif key.endswith(('bias', 'noise_strength')): assert not p.any()
        else:
            scale = 0.01 if key.startswith('mapping.fc') else 1
            if p.numel() > 1000: assert abs((p*scale).std() - 1) < 0.1 and abs((p*scale).mean()) < 0.1, key
    assert not G.mapping.w_avg.any()
    with torch.no_grad(): assert 0.02 < G(torch.randn(4, 512)).std() < 20


@pytest.mark.parametrize('name', ['stylegan3-r', 'stylegan2'])
def test_the_seed_determines_a_network(name):
    small = dict(z_dim=8, w_dim=8, channel_base=256, channel_max=8)
    def made(seed):
        torch.manual_seed(seed)
        return [v for n in build(name, 16, **small) for v in n.state_dict().values()]
    assert all(map(torch.equal, made(1), made(1))) and not all(map(torch.equal, made(1), made(2)))


@pytest.mark.parametrize('case', GENERATORS + DISCRIMINATORS)
def test_copies_compute_the_same(case):
    data = load(case)
    net = network(case, data)
    run = lambda n: n(data.get('z', data.get('x')), data['c'], **INDEX[case].get('synthesis_kwargs', {}))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    with torch.no_grad():
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
            assert torch.equal(run(other), run(net)) and other.init_kwargs == net.init_kwargs


@pytest.mark.parametrize('case', GENERATORS + DISCRIMINATORS)
def test_configuration_rebuilds(case):
    net = network(case, dtype=torch.bfloat16)
    other = from_config(json.loads(json.dumps(to_config(net))))
    assert type(other) is type(net) and other.architecture == type(net).__name__
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert json.loads(json.dumps(to_config(other))) == json.loads(json.dumps(to_config(net)))


def test_build_hands_keywords_to_whom_they_belong():
    G, D = build('stylegan3-t', 32, channel_base=512, channel_max=16, c_dim=2, dtype='bfloat16', num_layers=8,
                 mapping_kwargs=dict(num_layers=3),
                 D_kwargs=dict(channel_max=8, mapping_kwargs=dict(num_layers=1)))
    assert (G.num_ws, G.mapping.num_layers, D.mapping.num_layers, D.b32.conv0.weight.shape[0]) == (10, 3, 1, 8)
    assert G.synthesis.dtype == D.dtype == torch.bfloat16 and G.c_dim == D.c_dim == 2
    assert D(G(torch.randn(4, 512), torch.eye(2)[[0, 1, 1, 0]]), torch.eye(2)[[0, 1, 1, 0]]).shape == (4, 1)


def test_published_defaults():
    nets = {name: build(name, 256) for name in ('stylegan3-t', 'stylegan3-r', 'stylegan2')}
    assert {k: (G.mapping.num_layers, G.z_dim, G.w_dim, D.b4.mbstd) for k, (G, D) in nets.items()} == {
        'stylegan3-t': (2, 512, 512, (4, 1)), 'stylegan3-r': (2, 512, 512, (4, 1)), 'stylegan2': (8, 512, 512, (4, 1))}
    assert [sum(p.numel() for p in G.parameters()) // 10**5 for G, _ in nets.values()] == [284, 188, 300]


# Errors -----------------------------------------------------------------------------------------------------------------------------

SMALL = dict(z_dim=4, w_dim=4, channel_base=64, channel_max=4)


@pytest.mark.parametrize('call, message', [
    (lambda: build('stylegan', 32), "name='stylegan' is not known; accepted: stylegan3-t"),
    (lambda: build('stylegan3-t', 48), 'img_resolution=48; accepted: a power of two'),
    (lambda: build('stylegan3-t', 4), 'img_resolution=4; accepted: a power of two, 8 or more'),
    (lambda: build('stylegan3-t', 32.0), 'img_resolution=32.0; accepted'),
    (lambda: build('stylegan2', 32, use_radial_filters=True), 'has no keyword use_radial_filters; accepted: z_dim'),
    (lambda: build('stylegan2', 32, D_kwargs=dict(w_dim=3)), 'Discriminator has no keyword w_dim'),
    (lambda: build('stylegan2', 32, dtype='float8'),
     "dtype='float8' is not known; accepted: float32, bfloat16, float16"),
    (lambda: build('stylegan3-t', 32, num_layers=2), 'num_critical=2; accepted: 1 to num_layers - 1 = 1'),
    (lambda: build('stylegan3-t', 32, mapping_kwargs=dict(depth=3)),
     'mapping_kwargs has no keyword depth; accepted: num_layers, lr_multiplier, w_avg_beta'),
    (lambda: build('stylegan3-t', 32, w_dim=0), 'w_dim=0; accepted: a whole number, 1 or more'),
    (lambda: build('stylegan3-t', 32, c_dim=2, mapping_kwargs=dict(label='sum')),
     "label='sum' is not known; accepted: embedded, added"),
    (lambda: build('stylegan2', 32, c_dim=2, D_kwargs=dict(epilogue_kwargs=dict(label='sum'))),
     "label='sum' is not known; accepted: mapped, projected"),
    (lambda: build('stylegan2', 32, c_dim=2, D_kwargs=dict(mapping_kwargs=dict(label='added'))),
     "z_dim=0 and label='added'; accepted: label='embedded'"),
    (lambda: with_labels(Discriminator(2, 16, channel_max=4), 2),
     'the Discriminator already has 2 label entries; accepted: a network without'),
    (lambda: with_labels(Discriminator(0, 16, channel_max=4), 0), 'c_dim=0; accepted: 1 or more'),
    (lambda: build('stylegan2', 32, D_kwargs=dict(epilogue_kwargs=dict(group=1))),
     'epilogue_kwargs has no keyword group; accepted: mbstd_group_size'),
    (lambda: build('stylegan2', 32, D_kwargs=dict(block_kwargs=dict(freeze_layers=-1))),
     'freeze_layers=-1; accepted: a whole number, 0 or more'),
    (lambda: from_config(None), 'config has NoneType; accepted: a dict'),
    (lambda: from_config(dict(architecture='GAN', kwargs={})),
     "architecture='GAN' is not known; accepted: StyleGAN3Generator"),
    (lambda: from_config(dict(architecture='Discriminator', kwargs=dict(c_dim=0))),
     'Discriminator needs img_resolution'),
    (lambda: StyleGAN3Generator(layers=3), 'StyleGAN3Generator has no keyword layers; accepted'),
    (lambda: build(['a'], 32), "name=['a'] is not known; accepted: stylegan3-t"),
    (lambda: from_config(dict(architecture=[], kwargs={})),
     'architecture=[] is not known; accepted: StyleGAN3Generator'),
    (lambda: from_config(dict(architecture='Discriminator', kwargs={1: 2})),
     'Discriminator has no keyword 1; accepted: c_dim'),
])
def test_wrong_construction_is_explained(call, message):
    with pytest.raises(ValueError) as e: call()
    assert message in str(e.value)


@pytest.mark.parametrize('name, kwargs, accepted', [
    *[(name, kw, 'None or a number above 0') for name in ('stylegan3-t', 'stylegan2')
      for kw in (dict(conv_clamp='x'), dict(conv_clamp=-1), dict(conv_clamp=float('nan')))],
    ('stylegan2', dict(D_kwargs=dict(conv_clamp='x')), 'None or a number above 0'),
    ('stylegan3-t', dict(output_scale='x'), 'a number above 0'),
    ('stylegan3-t', dict(margin_size=-20), 'a whole number, 0 or more'),
    *[(name, kw, 'None or a whole number, 0 or more') for name in ('stylegan3-t', 'stylegan2')
      for kw in (dict(num_fp16_res='x'), dict(num_fp16_res=-3))],
    ('stylegan2', dict(D_kwargs=dict(num_fp16_res=-3)), 'None or a whole number, 0 or more'),
    ('stylegan2', dict(D_kwargs=dict(cmap_dim='x')), 'None or a whole number, 0 or more'),
    ('stylegan2', dict(mapping_kwargs=dict(w_avg_beta='x')), 'a number from 0 to 1'),
    ('stylegan3-t', dict(magnitude_ema_beta=2), 'a number from 0 to 1'),
    ('stylegan2', dict(mapping_kwargs=dict(lr_multiplier=0)), 'a number above 0'),
    ('stylegan2', dict(D_kwargs=dict(mapping_kwargs=dict(lr_multiplier=0)), c_dim=2), 'a number above 0'),
    ('stylegan3-t', dict(first_cutoff=0), 'a number above 0'),
    ('stylegan3-t', dict(first_cutoff=16), 'a number below first_stopband='),
    ('stylegan3-t', dict(first_stopband='x'), 'a number above 0'),
    ('stylegan3-t', dict(last_stopband_rel=-1), 'a number above 1'),
    ('stylegan3-t', dict(last_stopband_rel=1), 'a number above 1'),
    ('stylegan3-t', dict(num_critical='x'), '1 to num_layers - 1'),
    *[(name, dict(channels_last='yes'), 'None or True or False') for name in ('stylegan3-t', 'stylegan2')],
    ('stylegan2', dict(D_kwargs=dict(channels_last='yes')), 'None or True or False'),
    ('stylegan3-t', dict(use_radial_filters='no'), 'True or False'),
    ('stylegan3-t', dict(conv_kernel=2), 'an odd whole number'),
    ('stylegan2', dict(w_dim=True), 'a whole number, 1 or more'),
    ('stylegan2', dict(G_kwargs='x'), 'None or a dict of keywords'),
    ('stylegan2', dict(mapping_kwargs=[('num_layers', 2)]), 'None or a dict of keywords'),
    ('stylegan2', dict(D_kwargs=dict(epilogue_kwargs='x')), 'None or a dict of keywords'),
    ('stylegan2', dict(D_kwargs=dict(epilogue_kwargs=dict(mbstd_num_channels=3))), 'a divisor of 4'),
    ('stylegan2', dict(z_dim=0), 'z_dim=0 and c_dim=0; accepted'),
    ('stylegan2', dict(mapping_kwargs=dict(label_lr=0), c_dim=2), 'a number above 0'),
    ('stylegan2', dict(D_kwargs=dict(epilogue_kwargs=dict(label_lr=float('inf'))), c_dim=2), 'a number above 0'),
])
def test_wrong_settings_are_named(name, kwargs, accepted):
    innermost = kwargs
    with pytest.raises(ValueError) as e: build(name, 16, **{**SMALL, **kwargs})
    while len(innermost) > 0 and isinstance(next(iter(innermost.values())), dict):
        innermost = next(iter(innermost.values()))
    key, value = next(iter(innermost.items()))
    assert f'{key}={value!r}' in str(e.value) and accepted in str(e.value)


def test_whole_numbers_of_numpy_are_whole_numbers():
    n = {k: np.int64(v) for k, v in SMALL.items()}
    for name in ('stylegan3-t', 'stylegan2'):
        G, D = build(name, np.int64(16), **n, num_fp16_res=np.int32(2), conv_clamp=np.float32(256),
                     mapping_kwargs=dict(num_layers=np.int64(2)))
        for net in (G, D): assert from_config(json.loads(json.dumps(to_config(net)))).init_kwargs == net.init_kwargs
        assert D(G(torch.zeros(2, 4), None, np.float32(0.5), np.int64(2))).shape == (2, 1)


def test_few_channels_are_at_least_one():
    for name in ('stylegan3-t', 'stylegan2'):
        G = build(name, 32, **{**SMALL, 'channel_base': 4})[0]
        assert all(p.numel() for p in G.parameters()) and G(torch.zeros(1, 4)).isfinite().all()


def test_repeated_keywords_are_listed_once():
    with pytest.raises(ValueError) as e: build('stylegan3-t', 32, layers=3)
    accepted = str(e.value).split('accepted: ')[1].split(', ')
    assert len(accepted) == len(set(accepted)) > 20


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
def test_an_empty_batch_leaves_averages_alone(name):
    G = build(name, 16, **SMALL)[0]
    z = torch.randn(3, 4)
    G(z, None, update_emas=True)
    before = copy.deepcopy(dict(G.named_buffers()))
    assert before['mapping.w_avg'].any()
    assert G(z[:0], None, update_emas=True).shape == (0, 3, 16, 16)
    assert all(torch.equal(b, before[k]) for k, b in G.named_buffers())


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan2'])
@pytest.mark.parametrize('call, message', [
    *[(lambda G, D, psi=psi: G(torch.zeros(2, 4), None, psi), 'truncation_psi=')
      for psi in ('x', None, float('nan'), torch.tensor(0.5), True)],
    *[(lambda G, D, cut=cut, psi=psi: G(torch.zeros(2, 4), None, psi, cut),
       f'truncation_cutoff={cut!r}; accepted: None or a whole number from 0')
      for cut in ('x', 99, -1, 1.5, True) for psi in (1, 0.5)],
    (lambda G, D: G(torch.zeros(2, 4), foo=1), "'s synthesis has no keyword foo; accepted: "),
    (lambda G, D: G(torch.zeros(2, 4, dtype=torch.complex64)),
     'z has dtype torch.complex64; accepted: a dense tensor of a real floating point type'),
    (lambda G, D: G(torch.zeros(2, 4, dtype=torch.int64)), 'z has dtype torch.int64; accepted: a dense tensor'),
    (lambda G, D: G(torch.zeros(2, 4).to_sparse()), 'z is sparse; accepted: a dense tensor'),
    (lambda G, D: G(torch.zeros(2, 4, device='meta')),
     'z is on the device meta, without values; accepted: a dense tensor'),
    (lambda G, D: D(torch.zeros(2, 3, 16, 16, dtype=torch.complex64)), 'img has dtype torch.complex64; accepted'),
    (lambda G, D: D(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)), 'img has dtype torch.uint8; accepted'),
    (lambda G, D: D(torch.zeros(2, 3, 16, 16).to_sparse()), 'img is sparse; accepted'),
    (lambda G, D: D(torch.zeros(2, 3, 16, 16, device='meta')), 'img is on the device meta'),
    (lambda G, D: G(torch.zeros(2, 5)), 'z has shape [2, 5]; accepted: a tensor [batch, 4]'),
    (lambda G, D: G(None), 'z is NoneType; accepted: a tensor [batch, 4]'),
    (lambda G, D: G(torch.zeros(2, 4), torch.zeros(2, 1)), 'c is [2, 1], but this network was built without labels'),
    (lambda G, D: G(torch.zeros(2, 4), 3), 'c is int, but this network was built without labels'),
    (lambda G, D: G.mapping(torch.zeros(2, 4), None, 0.5, -1),
     'truncation_cutoff=-1; accepted: None or a whole number from 0'),
    (lambda G, D: G.synthesis(torch.zeros(2, 4)), 'ws has shape [2, 4]; accepted: a tensor [batch, '),
    (lambda G, D: G.synthesis(torch.zeros(2, G.num_ws, 5)), f'ws has shape [2, '),
    (lambda G, D: G(torch.zeros(2, 4), noise_mode='some'),
     "noise_mode='some' is not known; accepted: random, const, none"),
    (lambda G, D: D(torch.zeros(2, 3, 16, 32)), 'img has shape [2, 3, 16, 32]; accepted: a tensor [batch, 3, 16, 16]'),
    (lambda G, D: D(torch.zeros(2, 1, 16, 16)), 'img has shape [2, 1, 16, 16]'),
    (lambda G, D: D(torch.zeros(6, 3, 16, 16)), "a batch of 6 images can't be split into groups of 4"),
    (lambda G, D: D(torch.zeros(0, 3, 16, 16)), "a batch of 0 images can't be split"),
    (lambda G, D: D(torch.zeros(2, 3, 16, 16), torch.zeros(2, 2)),
     'c is [2, 2], but this network was built without labels'),
])
def test_wrong_input_is_explained(name, call, message):
    G, D = build(name, 16, **SMALL)
    with pytest.raises(ValueError) as e: call(G, D)
    assert message in str(e.value)


def test_missing_labels_are_explained():
    G, D = build('stylegan3-t', 16, **SMALL, c_dim=2)
    for call in (lambda: G(torch.zeros(2, 4)), lambda: D(torch.zeros(2, 3, 16, 16))):
        with pytest.raises(ValueError) as e: call()
        assert 'c is NoneType; accepted: a tensor [2, 2]' in str(e.value)
    with pytest.raises(ValueError) as e: G(torch.zeros(2, 4), torch.zeros(3, 2))
    assert 'c has shape [3, 2]; accepted: a tensor [2, 2]' in str(e.value)


# Apple GPUs --------------------------------------------------------------------------------------------------------------------------

class OnApple(TorchFunctionMode):
    "Every tensor says that it lies on an Apple GPU; double precision fails, as there"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__: return torch.device('mps', 0)
        here = lambda v: 'cpu' if isinstance(v, torch.device) or v == 'mps' else v
        args, kwargs = [here(v) for v in args], {k: here(v) for k, v in (kwargs or {}).items()}
        y = func(*args, **kwargs)
        if isinstance(y, torch.Tensor) and y.dtype == torch.float64: raise TypeError('mps has no float64')
        return y


@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan3-r', 'stylegan2'])
def test_networks_on_an_apple_gpu(monkeypatch, name):
    "By the definition, without any kernel: images, logits, gradients and the gradient's gradient"
    G, D = build(name, 16, z_dim=8, w_dim=8, channel_base=64, channel_max=4)
    z, noise = torch.randn(4, 8), {'noise_mode': 'const'}
    def computed():
        x = G(z, truncation_psi=.7, **noise)
        logits = D(x)
        [dx] = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return [x, logits, *torch.autograd.grad(dx.square().sum() + logits.sum(), [D.b4.fc.weight, G.mapping.fc0.weight])]
    def never(*_): raise AssertionError('a kernel was chosen')
    with monkeypatch.context() as m:
        for module in ops.fused, ops.resample, ops.activation: m.setattr(module, 'kernels', never)
        m.setattr('cleftgan_nb.networks.layers.winograd.conv3x3', never)
        with OnApple(): got = computed()
    with ops.use_impl('definition'): want = computed()
    assert all(error(a, b) < 1e-4 for a, b in zip(got, want))


def test_doctor_on_an_apple_gpu(monkeypatch):
    from cleftgan_nb import doctor
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert 'Apple (mps)' in doctor.gpu() and 'by the definition' in doctor.report(doctor.machine(), [])
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert doctor.gpu().startswith('none')
