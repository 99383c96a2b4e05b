"""Triton's kernels against recorded values and the definition; test_triton.py runs it, interpreted on a CPU or
compiled on a GPU"""
import pytest, torch
import test_ops as reference
from cleftgan_nb import ops
from cleftgan_nb.networks import Discriminator
from cleftgan_nb.networks.stylegan3 import layer_filters, layer_table
from cleftgan_nb.ops import stage, triton_act, triton_kernels
from cleftgan_nb.training.losses import r1_penalty

DEVICE = 'cpu' if triton_act.INTERPRETED else 'cuda'
F12, F24 = ops.design_lowpass_filter(12, 8, 9.1, 64), ops.design_lowpass_filter(24, 5.3, 7.7, 128)
ROUND = ops.design_lowpass_filter(12, 8, 9.1, 64, radial=True)
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    "Load the recorded values to where the kernels run"
    load, error = reference.load, reference.error
    monkeypatch.setattr(reference, 'load', lambda case: {k: v.to(DEVICE) for k, v in load(case).items()})
    monkeypatch.setattr(reference, 'error', lambda a, b: error(a.cpu(), b.cpu()))
    monkeypatch.setattr(reference, 'probe', lambda dx: (dx
                                                        * torch.linspace(-1, 1, dx.numel()).to(dx).reshape(dx.shape)).sum())


def far(a, b):
    return float((a.detach().cpu().double() - b.detach().cpu().double()).norm()/(b.detach().double().norm() + 1e-12))


def variants(op, x, b, dy, h, kw):
    "Compute value, dx, db, and the gradient by dy of dx·h"
    x, dy = x.detach().requires_grad_(), dy.detach().requires_grad_()
    b = b if b is None else b.detach().requires_grad_()
    y = op(x, **kw) if op is ops.upfirdn2d else op(x, b=b, **kw)
    inputs = [x] if b is None or op is ops.upfirdn2d else [x, b]
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    return [y, *first, torch.autograd.grad((first[0]*h).sum(), dy)[0]]


def compare(op, x, b=None, tolerance=1e-5, **kw):
    "Compare Triton in x's type with the definition in float64"
    moved = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
    y = op(x.double(), impl='definition', **(kw if b is None or op is ops.upfirdn2d else dict(kw, b=b.double())))
    torch.manual_seed(1)
    dy, h = torch.randn(y.shape).to(x.dtype), torch.randn(x.shape).to(x.dtype)
    want = variants(op, x.double(), None if b is None else b.double(), dy.double(), h.double(),
                    dict(kw, impl='definition'))
    got = variants(op, x.to(DEVICE), None if b is None else b.to(DEVICE), dy.to(DEVICE), h.to(DEVICE),
                   dict(moved, impl='triton'))
    assert got[0].dtype == x.dtype and len(got) == len(want)
    assert ([far(g, w) < tolerance for g, w in zip(got, want)] == [True]*len(got)), [far(g, w)
            for g, w in zip(got, want)]
    return got


@pytest.mark.parametrize('case', reference.cases('bias_act'))
def test_reference_bias_act(case): reference.test_bias_act(case, 'triton')


@pytest.mark.parametrize('case', reference.cases('upfirdn2d'))
def test_reference_upfirdn2d(case): reference.test_upfirdn2d(case, 'triton')


@pytest.mark.parametrize('case', reference.cases('filtered_lrelu'))
def test_reference_filtered_lrelu(case): reference.test_filtered_lrelu(case, 'triton')


@pytest.mark.parametrize('case', reference.cases('upsample2d') + reference.cases('downsample2d')
                         + reference.cases('filter2d'))
def test_reference_wrappers(case): reference.test_wrappers(case, 'triton')


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('case', [c for op in ('bias_act', 'upfirdn2d', 'filtered_lrelu')
                                  for c in reference.cases(op) if not c.endswith(('_sep', 'lrelu_1', 'lrelu_2'))
                                  # rounding x at the clamp changes gradients
                                  and not (op == 'bias_act' and reference.INDEX[c].get('clamp'))])
def test_half(case, dtype):
    "Values and gradients stay short, within 2e-2 of the reference"
    d, m, s = reference.load(case), reference.INDEX[case], reference.settings
    x, dy = [d[k].to(dtype).requires_grad_() for k in ('x', 'dy')]
    if m['op'] == 'bias_act':
        y = ops.bias_act(x, d['b'].to(dtype), act=m['act'], impl='triton', **s(case, 'dim', 'alpha', 'gain', 'clamp'))
    elif m['op'] == 'upfirdn2d':
        y = ops.upfirdn2d(x, d['f'], impl='triton', **s(case, 'up', 'down', 'padding', 'flip_filter', 'gain'))
    else:
        y = ops.filtered_lrelu(x, d.get('fu'), d.get('fd'), d['b'].to(dtype), impl='triton',
                               **s(case, 'up', 'down', 'padding', 'gain', 'slope', 'clamp', 'flip_filter'))
    dx, = torch.autograd.grad((y*dy).sum(), x)
    assert y.dtype == dx.dtype == dtype and reference.error(y, d['y']) < 2e-2 and reference.error(dx, d['dx']) < 2.1e-2


def image(n, c, h, w, form='contiguous', dtype=torch.float32):
    "Draw an image; views are surrounded by NaN, which a load without a mask would bring in"
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w).to(dtype)
    if form == 'last': return x.to(memory_format=torch.channels_last)
    if form == 'contiguous': return x
    if form == 'expanded': return x[:, :1, :, :1].expand(n, c, h, w)
    big = torch.full((n, c + 2, w + 3, 2*h + 2), float('nan'), dtype=dtype)
    view = big[:, 1:-1, 1:w + 1, 1:2*h + 1:2].transpose(2, 3)
    view.copy_(x)
    return view


LAYERS = {'t': dict(fu=F12, fd=F12, up=2, down=2, padding=[9, 8, 9, 8], clamp=.8),
          't, up 4': dict(fu=F24, fd=F12, up=4, down=2, padding=[-6, -9, -6, -9], clamp=.8),
          'r': dict(fu=F12, fd=ROUND, up=2, down=2, padding=[11, 10, 11, 10]),
          'critical': dict(fu=F12, fd=F12, up=2, down=2, padding=[-9, -10, -9, -10], clamp=256),
          'rgb': dict(gain=1, slope=1, clamp=256), 'odd': dict(fu=torch.arange(1., 6),
                                                               fd=torch.tensor([[1., 2, 0], [3, -1, 1]]), up=3,
                                                               down=1, padding=[4, -1, 0, 3], gain=-.7, slope=-.3,
                                                               flip_filter=True)}


@pytest.mark.parametrize('layer, shape, form', [('t', (1, 9, 18, 35), 'contiguous'), ('t', (2, 3, 7, 5), 'last'),
                                                ('t, up 4', (1, 2, 13, 13), 'view'), ('r', (1, 2, 13, 20), 'view'),
                                                ('critical', (1, 2, 40, 27), 'last'), ('rgb', (2, 3, 5, 40), 'view'),
                                                ('odd', (2, 3, 6, 9), 'expanded')])
def test_layers_against_float64(layer, shape, form):
    "Value, both gradients, second gradient; tiles that end within an image, uneven channels, memory in any order"
    compare(ops.filtered_lrelu, image(*shape, form), torch.randn(shape[1]), 2e-5, **LAYERS[layer])


@pytest.mark.parametrize('f, kw', [(F12, dict(up=2, padding=[6, 5, 6, 5], gain=4)),
                                   (torch.randn(5, 4), dict(up=[2, 3], down=[3, 2], padding=[3, 0, -1, 4],
                                                            flip_filter=True)), (None, dict(up=2, down=3, padding=1)),
                                   (torch.randn(40), dict(down=4, padding=21)),
                                   (torch.ones(1, 7), dict(padding=[3, 3, -2, 1]))])
def test_stages_against_float64(f, kw): compare(ops.upfirdn2d, image(1, 3, 23, 18, 'view'), f=f, **kw)


def test_filters_too_long_for_the_chip(monkeypatch):
    "The three steps one after the other"
    calls = []
    composed = triton_kernels.composed
    monkeypatch.setattr(triton_kernels, 'composed', lambda *a: calls.append(1) or composed(*a))
    compare(ops.filtered_lrelu, image(1, 2, 9, 11), torch.randn(2), 2e-5, fu=torch.hann_window(81)[1:]/40, fd=F12,
            up=1, down=2, padding=45, clamp=.5)
    assert len(calls) == 3


def test_64_bits_within_an_image(monkeypatch):
    monkeypatch.setattr(triton_kernels, 'NEAR', 0)
    compare(ops.filtered_lrelu, image(1, 2, 9, 11, 'view'), torch.randn(2), 2e-5, **LAYERS['t'])


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_form_and_borders_of_memory(form):
    "The result has the format of x; each of its numbers is written, and nothing beside it"
    x = image(2, 8, 12, 30).to(DEVICE, memory_format=form)
    y = ops.filtered_lrelu(x, impl='triton', **{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v
                                                for k, v in LAYERS['t'].items()})
    assert y.is_contiguous(memory_format=form)
    u = stage.fir_stage(F12, (2, 2), (1, 1), [9, 8, 9, 8], False, 4, (30, 12))
    d = stage.fir_stage(F12, (1, 1), (2, 2), [0]*4, False, 1, u.out)
    a, c = [triton_kernels.stage(s, 5e-7, x.device) for s in (u, d)]
    big = torch.full((2, 8, y.shape[2] + 4, y.shape[3] + 6), float('nan'), device=DEVICE).to(memory_format=form)
    inner = big[:, :, 2:-2, 3:-3]
    triton_kernels.launch(x, x, None, inner, (a, a, c),
                          *triton_kernels.plan(1, a, a, c, False, form is torch.channels_last), 16,
                          (2**.5, .2*2**.5, .8, u.out[1], u.out[0]))
    assert torch.equal(inner, y) and int(big.isnan().sum()) == big.numel() - y.numel()


@pytest.mark.parametrize('act', ['linear', 'lrelu', 'tanh', 'selu', 'softplus', 'swish'])
def test_activations_against_float64(act):
    "Every derivative up to the second, of a tensor that is no image, with the bias along its first dimension"
    torch.manual_seed(0)
    x, b = torch.randn(5, 3, 7).transpose(0, 2)[::2], torch.randn(4)
    h = torch.randn(4, 3, 5)
    def derivatives(impl, dtype):
        v, c = x.to(DEVICE, dtype).requires_grad_(), b.to(DEVICE, dtype).requires_grad_()
        y = ops.bias_act(v, c, dim=0, act=act, clamp=1.2, impl=impl)
        dx, db = torch.autograd.grad(y.sin().sum(), [v, c], create_graph=True)
        return [y, dx, db, *torch.autograd.grad((dx*h.to(DEVICE, dtype)).sum(), [v, c])]
    for one, two in zip(derivatives('triton', torch.float32), derivatives('definition', torch.float64)):
        assert far(one, two.cpu()) < 1e-5


def test_discriminator_and_its_slope():
    "A network on these kernels, with R1, which differentiates twice"
    torch.manual_seed(0)
    D = Discriminator(0, 16, channel_base=64, channel_max=6).to(DEVICE)
    images = torch.randn(2, 3, 16, 16, device=DEVICE)
    grads = []
    for impl in ('triton', 'definition'):
        with ops.use_impl(impl):
            x = images.clone().requires_grad_()
            loss = r1_penalty(D(x), x, 1.)
            D.zero_grad()
            loss.backward()
            grads.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                                    for p in D.parameters()]))
    assert far(grads[0], grads[1].cpu()) < 1e-4


@pytest.mark.parametrize('call, message', [(lambda x: ops.upfirdn2d(x.double(), F12.to(x.device), padding=9,
                                                                    impl='triton'), "impl='triton' can't take "
                                                                    "torch.float64 (it takes float32, float16 and "
                                                                    "bfloat16)"),
                                           (lambda x: ops.filtered_lrelu(x,
                                                                         fu=F12.to(x.device).clone().requires_grad_(),
                                                                         padding=9, impl='triton'),
                                            "impl='triton' can't take a filter that "
                                                                         "requires grad"),
                                           (lambda x: ops.upfirdn2d(x, None, down=40, impl='triton'),
                                            'factors with a common multiple over 32'),
                                           (lambda x: ops.filtered_lrelu(x.to('meta'), impl='triton'),
                                            "impl='triton' can't take a tensor on meta")])
def test_what_it_cannot_take(call, message):
    with pytest.raises(ValueError) as e: call(torch.zeros(1, 3, 9, 9, device=DEVICE))
    assert message in str(e.value)


@pytest.mark.parametrize('shape', [(0, 3, 8, 8), (2, 0, 8, 8)])
def test_empty_batch(shape):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    y = ops.filtered_lrelu(x, impl='triton', **{k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v
                                                for k, v in LAYERS['t'].items()})
    assert (y.shape == (*shape[:2], 6, 6) and torch.autograd.grad(y.sum(), x)[0].shape == shape
            and ops.bias_act(x, act='lrelu', impl='triton').shape == shape)


@pytest.mark.parametrize('network', ['t', 'r'])
@pytest.mark.parametrize('resolution', [64, 256, 1024])
def test_every_layer_fits(resolution, network):
    "All three pipes of every layer are fused, in every type: their blocks are small enough for any size of image"
    for l in layer_table(resolution, conv_kernel=3 if network == 't' else 1):
        fu, fd = layer_filters(l, network == 'r')
        size = [l.inp.size + l.kernel - 1]*2
        u = stage.fir_stage(fu, (l.up, l.up), (1, 1), list(l.padding), False, l.up**2, size)
        d = stage.fir_stage(fd, (1, 1), (l.down, l.down), [0]*4, False, 1, u.out)
        assert d.out == (l.out.size, l.out.size)
        for dtype, keep in triton_kernels.KEEP.items():
            a, b, c, e = [triton_kernels.stage(s, keep, 'cpu') for s in (u, d, u.transposed, d.transposed)]
            for mode, stages in (1, (a, a, b)), (2, (a, e, c)), (2, (a, a, b)):
                sizes, steps = triton_kernels.plan(mode, *stages, dtype != torch.float32, True)
                assert (sizes['CG']*sizes['CR'] >= stages[2].rank and sizes['NY']*sizes['NX'] <= 60
                        and min(steps) >= 12), (l.name, sizes, steps)
