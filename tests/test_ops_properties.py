"""Operators on random configurations, odd memory layouts, threads, forks and bad arguments"""
import multiprocessing, threading
import pytest, torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from cleftgan_nb import ops
from cleftgan_nb.ops import cpu, stage

QUIET = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
FACTOR, PADDING = st.integers(1, 5), st.lists(st.integers(-6, 14), min_size=4, max_size=4)


@st.composite
def filters(draw):
    "Draw none, taps, an outer product, or something that is no filter"
    kind, n, m = (draw(st.sampled_from(['none', 'taps', 'taps', 'outer', 'full'])), draw(st.integers(1, 24)),
                  draw(st.integers(1, 12)))
    if kind == 'none': return None
    if kind == 'taps': return torch.randn(n)
    return torch.outer(torch.randn(m), torch.randn(m)) if kind == 'outer' else torch.randn(min(n, 12), m)


@st.composite
def images(draw):
    "Draw contiguous, channels-last or strided views in float64 or float32"
    torch.manual_seed(draw(st.integers(0, 2**30)))
    n, c, h, w = (draw(st.sampled_from([1, 1, 2])), draw(st.sampled_from([1, 2, 3, 8, 9, 16, 17])),
                  draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    x = torch.randn(n, c, h, w, dtype=draw(st.sampled_from([torch.float64, torch.float64, torch.float32])))
    form = draw(st.sampled_from(['contiguous', 'last', 'view']))
    if form == 'last': x = x.to(memory_format=torch.channels_last)
    if form == 'view': x = torch.randn(n, c, w, 2*h, dtype=x.dtype)[..., ::2].transpose(2, 3)
    return x.requires_grad_()


@pytest.fixture(scope='module')
def one_thread():
    "Keep to one thread: in thousands of tiny calls, more would only wait for each other"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def far(a, b):
    return float((a.detach() - b.detach()).abs().max()/(b.detach().abs().max() + 1e-6)) if b.numel() else 0.


def compare(op, x, b, kw):
    "Compare value, gradients and second gradient with the definition; inputs that both refuse don't count"
    try: y = op(x, impl='cpu', **kw)
    except ValueError as e:
        with pytest.raises(ValueError): op(x, impl='definition', **kw)
        assert 'smaller than the filter' in str(e)
        assume(False)
    z = op(x, impl='definition', **kw)
    tolerance = 1e-11 if x.dtype == torch.float64 else 3e-4
    assert y.shape == z.shape and y.dtype == z.dtype and far(y, z) < tolerance
    inputs, dy, h = [x] + ([b] if b is not None else []), torch.randn_like(z).requires_grad_(), torch.randn_like(x)
    one, two = [torch.autograd.grad(o, inputs, dy, create_graph=True) for o in (y, z)]
    assert all(far(a, c) < tolerance for a, c in zip(one, two))
    assert far(*[torch.autograd.grad((g[0]*h).sum(), dy)[0] for g in (one, two)]) < tolerance
    half = op(x.detach().bfloat16(), impl='cpu', **kw) # the same sums, of rounded numbers
    assert half.dtype == torch.bfloat16 and float((half
                                                   - op(x.detach().bfloat16().double(), impl='definition',
                                                        **kw)).detach().norm()) <= 1e-2*float(z.detach().norm()) + 1e-3


@settings(max_examples=500, **QUIET)
@given(x=images(), f=filters(), up=st.tuples(FACTOR, FACTOR), down=st.tuples(FACTOR, FACTOR), padding=PADDING,
       flip=st.booleans(), gain=st.floats(-2, 2))
def test_500_random_upfirdn2d(one_thread, x, f, up, down, padding, flip, gain):
    compare(ops.upfirdn2d, x, None, dict(f=f, up=up, down=down, padding=padding, flip_filter=flip, gain=gain))


@settings(max_examples=500, **QUIET)
@given(x=images(), fu=filters(), fd=filters(), bias=st.sampled_from(['none', 'plain', 'strided', 'one value']),
       up=FACTOR, down=FACTOR, padding=PADDING, flip=st.booleans(), gain=st.floats(-2, 2),
       slope=st.sampled_from([.2, 0, 1, -.3, 2]), clamp=st.sampled_from([None, .5, 256.]))
def test_500_random_filtered_lrelu(one_thread, x, fu, fd, bias, up, down, padding, flip, gain, slope, clamp):
    n = x.shape[1]
    b = dict(none=None, plain=torch.randn(n, dtype=x.dtype),
             strided=torch.randn(3*n, dtype=x.dtype)[1::3]).get(bias, torch.randn(1, dtype=x.dtype).expand(n))
    if b is not None: b = b.requires_grad_()
    compare(ops.filtered_lrelu, x, b, dict(fu=fu, fd=fd, b=b, up=up, down=down, padding=padding, flip_filter=flip,
                                           gain=gain, slope=slope, clamp=clamp))


F12 = ops.design_lowpass_filter(12, 8, 9.1, 64)
LAYER = dict(fu=F12, fd=F12, up=2, down=2, padding=[9, 8, 9, 8], clamp=.8)


@pytest.mark.parametrize('f', [F12, ops.design_lowpass_filter(12, 8, 9.1, 64, radial=True)])
def test_gradcheck_twice(f):
    x, b = (torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True),
            torch.randn(2, dtype=torch.float64, requires_grad=True))
    op = lambda x, b: ops.filtered_lrelu(x, F12, f, b, 2, 2, [9, 8, 9, 8], clamp=.8, impl='cpu')
    assert torch.autograd.gradcheck(op, (x, b)) and torch.autograd.gradgradcheck(op, (x, b))
    up = lambda x: ops.upfirdn2d(x, f, up=[2, 3], down=[3, 2], padding=[5, 6, 7, 8], impl='cpu')
    assert torch.autograd.gradcheck(up, x) and torch.autograd.gradgradcheck(up, x)


@pytest.mark.parametrize('shape', [(0, 3, 8, 8), (2, 0, 8, 8)])
def test_empty_batch(shape):
    x = torch.zeros(shape, requires_grad=True)
    for impl in ('cpu', 'definition'):
        y = ops.filtered_lrelu(x, impl=impl, **LAYER)
        assert y.shape == (*shape[:2], 6, 6) and torch.autograd.grad(y.sum(), x)[0].shape == shape
        assert (ops.upsample2d(x, F12, impl=impl).shape == (*shape[:2], 16, 16)
                and ops.bias_act(x, act='lrelu', impl=impl).shape == shape)


def test_factors_that_nobody_uses():
    "They take the definition, whatever their size"
    x = torch.randn(1, 2, 8, 8)
    for down in (37, 30000, 10**12): assert torch.equal(ops.upfirdn2d(x, None, down=down), x[..., :1, :1])


def test_nan_and_infinity_pass_through():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 4, 4] = float('nan')
    kw = {**LAYER, 'clamp': None}
    same = lambda a, b: torch.equal(a.isnan(), b.isnan())
    assert same(ops.filtered_lrelu(x, impl='cpu', **kw), ops.filtered_lrelu(x, impl='definition', **kw))
    x = torch.tensor([float('inf'), -float('inf'), float('nan'), 1.])[None, None, None]
    assert (torch.equal(ops.bias_act(x, act='lrelu', clamp=3)[0, 0, 0, :2], torch.tensor([3., -3.]))
            and ops.bias_act(x, act='lrelu')[0, 0, 0, 2].isnan())


@pytest.mark.parametrize('form', [torch.contiguous_format, torch.channels_last])
def test_bytes_do_not_depend_on_threads(form):
    x = torch.randn(2, 40, 37, 33).to(memory_format=form)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            results.append(ops.filtered_lrelu(x, impl='cpu', **LAYER))
            results.append(ops.filtered_lrelu(x[:1, :16], impl='cpu', **LAYER))
    finally: torch.set_num_threads(threads)
    assert all(torch.equal(r, results[i % 2]) for i, r in enumerate(results))


def test_called_from_many_threads():
    xs = [torch.randn(1, 32, 40, 40) for _ in range(8)]
    want = [ops.filtered_lrelu(x, **LAYER) for x in xs]
    wrong = []
    def work(i):
        for _ in range(10):
            if not torch.equal(ops.filtered_lrelu(xs[i], **LAYER), want[i]): wrong.append(i)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def _child(queue, x): queue.put(ops.filtered_lrelu(x, **LAYER).sum().item())


def test_forked_child_computes():
    "As a data loader's worker does"
    x = torch.randn(1, 64, 40, 40)
    want = ops.filtered_lrelu(x, **LAYER).sum().item()
    context = multiprocessing.get_context('fork')
    queue = context.Queue()
    p = context.Process(target=_child, args=(queue, x))
    p.start()
    assert queue.get(timeout=60) == want
    p.join(10)


def test_no_up_sampled_intermediate():
    "Scratch memory stays below the size of the output, forward and backward"
    u = stage.fir_stage(F12, (2, 2), (1, 1), [9, 8, 9, 8], False, 4, (150, 150))
    d = stage.fir_stage(F12, (1, 1), (2, 2), [0]*4, False, 1, u.out)
    import numpy as np
    for g, last in ((None, d), (d.transposed, u.transposed)):
        for lanes in (1, 16):
            assert 2*4*cpu.plan_fused(u, g, last, lanes, np.dtype('float32'))[0].size < .2*4*512*150*150


def test_use_impl_is_what_auto_means():
    x = torch.randn(1, 3, 9, 9)
    with ops.use_impl('definition'): y = ops.filtered_lrelu(x, **LAYER)
    assert torch.equal(y, ops.filtered_lrelu(x, impl='definition', **LAYER)) and ops.default_impl() == 'auto'


BAD = [
    (lambda x: ops.filtered_lrelu(x[0], **LAYER), 'shape [3, 9, 9]; accepted: four dimensions'),
    (lambda x: ops.filtered_lrelu(x.int(), **LAYER),
     'torch.int32, layout torch.strided; accepted: a dense tensor of a floating point type'),
    (lambda x: ops.filtered_lrelu(None), 'NoneType; accepted: a torch.Tensor'),
    (lambda x: ops.filtered_lrelu(x, up=0), 'up=0; accepted: a whole number of at least 1'),
    (lambda x: ops.filtered_lrelu(x, down=1.5), 'down=1.5; accepted'),
    (lambda x: ops.filtered_lrelu(x, padding='all'), "padding='all'; accepted"),
    (lambda x: ops.filtered_lrelu(x, clamp=-2), 'clamp=-2; accepted'),
    (lambda x: ops.filtered_lrelu(x, fu=torch.zeros(2, 2, 2)),
     'fu is a torch.float32 tensor of shape [2, 2, 2]; accepted'),
    (lambda x: ops.filtered_lrelu(x, fd=torch.zeros(0)), 'fd is a torch.float32 tensor of shape [0]; accepted'),
    (lambda x: ops.filtered_lrelu(x, b=torch.zeros(2)),
     'b is [2], torch.float32; accepted: a floating point tensor with one value a channel, [3]'),
    (lambda x: ops.filtered_lrelu(x, impl='gpu'), "impl='gpu' is not known; accepted: auto, definition, cpu"),
    (lambda x: ops.filtered_lrelu(x.half(), impl='cpu'), "impl='cpu' can't take torch.float16"),
    (lambda x: ops.upfirdn2d(x, torch.ones(12)), 'smaller than the filter of 12x12'),
    (lambda x: ops.upfirdn2d(x, torch.ones(3), up=[2, 2, 2]), 'up=[2, 2, 2]; accepted'),
    (lambda x: ops.bias_act(x, torch.zeros(3), dim=7), 'dim=7; accepted: a dimension of x'),
    (lambda x: ops.bias_act(x, act='silu'), "act='silu' is not known; accepted: linear"),
    (lambda x: ops.filtered_lrelu(x, clamp='x'), "clamp='x'; accepted"),
    (lambda x: ops.filtered_lrelu(x, gain=None), 'gain=None; accepted: a finite number'),
    (lambda x: ops.filtered_lrelu(x, slope=torch.ones(1)), 'slope=tensor([1.]); accepted: a finite number'),
    (lambda x: ops.upfirdn2d(x, None, gain=float('nan')), 'gain=nan; accepted: a finite number'),
    (lambda x: ops.upfirdn2d(x, None, up=10**9), 'accepted: up to 16777216 pixels along an axis'),
    (lambda x: ops.upfirdn2d(x, None, down=40, impl='cpu'),
     "impl='cpu' can't take factors with a common multiple over 32"),
    (lambda x: ops.bias_act(x, torch.arange(3)), 'b is [3], torch.int64; accepted'),
    (lambda x: ops.bias_act(x, act=['lrelu']), "act=['lrelu'] is not known; accepted: linear"),
    (lambda x: ops.bias_act(x, torch.zeros(3), dim=1.), 'dim=1.0; accepted'),
    (lambda x: ops.filtered_lrelu(x.to_sparse()), 'accepted: a dense tensor'),
    (lambda x: ops.setup_filter('abc'), "f='abc'; accepted"),
    (lambda x: ops.setup_filter([float('nan'), 1]), 'NaN or infinity'),
    (lambda x: ops.setup_filter(range(1, 10), gain=-1), 'gain=-1; accepted: at least 0'),
    (lambda x: ops.design_lowpass_filter(6, None, 4, 64), 'cutoff=None; accepted: a finite number'),
    (lambda x: ops.setup_filter([[[1]]]), 'f has shape [1, 1, 1]; accepted'),
    (lambda x: ops.design_lowpass_filter(6, 40, 4, 64), 'cutoff=40 with fs=64; accepted'),
    (lambda x: ops.design_lowpass_filter(0, 4, 4, 64), 'numtaps=0; accepted'),
]


@pytest.mark.parametrize('call,message', BAD, ids=[m[:30] for _, m in BAD])
def test_bad_arguments_are_refused_in_words(call, message):
    with pytest.raises(ValueError) as e: call(torch.zeros(1, 3, 9, 9))
    assert message in str(e.value)
