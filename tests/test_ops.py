"""Operators against the recorded reference values, in every implementation and type"""
import pathlib, json
import numpy as np, pytest, torch
from cleftgan_nb import ops

ROOT = pathlib.Path(__file__).parent/'reference'
INDEX = json.loads((ROOT/'index.json').read_text())
IMPLS = ['auto', 'definition', 'cpu']


def cases(op): return [k for k, v in INDEX.items() if v.get('op') == op]
def load(case): return {k: torch.from_numpy(v) for k, v in np.load(ROOT/f'{case}.npz').items()}
def error(a, b): return float((a.detach().double() - b.double()).norm()/(b.double().norm() + 1e-12))
def probe(dx): return (dx*torch.linspace(-1, 1, dx.numel()).to(dx.dtype).reshape(dx.shape)).sum()
def settings(case, *names): return {k: INDEX[case][k] for k in names if k in INDEX[case]}


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', cases('bias_act'))
def test_bias_act(case, impl):
    d = load(case)
    x, b, dy = [d[k].requires_grad_() for k in ('x', 'b', 'dy')]
    y = ops.bias_act(x, b, act=INDEX[case]['act'], impl=impl, **settings(case, 'dim', 'alpha', 'gain', 'clamp'))
    assert error(y, d['y']) < 1e-5
    dx, db = torch.autograd.grad((y*dy).sum(), [x, b], create_graph=True)
    assert error(dx, d['dx']) < 1e-5 and error(db, d['db']) < 1e-5
    ddy, ddx = torch.autograd.grad(probe(dx), [dy, x], allow_unused=True)
    assert error(ddy, d['ddy']) < 1e-5
    if 'ddx' in d: assert error(torch.zeros_like(x) if ddx is None else ddx, d['ddx']) < 1e-4


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', cases('upfirdn2d'))
def test_upfirdn2d(case, impl):
    d = load(case)
    x = d['x'].requires_grad_()
    y = ops.upfirdn2d(x, d['f'], impl=impl, **settings(case, 'up', 'down', 'padding', 'flip_filter', 'gain'))
    assert error(y, d['y']) < 1e-5
    assert error(torch.autograd.grad((y*d['dy']).sum(), x)[0], d['dx']) < 1e-5


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', cases('filtered_lrelu'))
def test_filtered_lrelu(case, impl):
    d = load(case)
    x, b, dy = [d[k].requires_grad_() for k in ('x', 'b', 'dy')]
    y = ops.filtered_lrelu(x, d.get('fu'), d.get('fd'), b, impl=impl,
                           **settings(case, 'up', 'down', 'padding', 'gain', 'slope', 'clamp', 'flip_filter'))
    assert error(y, d['y']) < 1e-5
    dx, db = torch.autograd.grad((y*dy).sum(), [x, b], create_graph=True)
    assert error(dx, d['dx']) < 1e-5 and error(db, d['db']) < 1e-5
    assert error(torch.autograd.grad(probe(dx), dy)[0], d['ddy']) < 1e-5


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', cases('upsample2d') + cases('downsample2d') + cases('filter2d'))
def test_wrappers(case, impl):
    d = load(case)
    f = ops.setup_filter(INDEX[case]['taps']).to(d['x'].device)
    assert error(f, d['f']) < 1e-6
    assert error(getattr(ops, INDEX[case]['op'])(d['x'], f, impl=impl, **settings(case, 'up', 'down')), d['y']) < 1e-5


def test_filter_design():
    m = INDEX['filter_design']
    for args, taps in zip(m['cases'], m['taps']):
        f = ops.design_lowpass_filter(**dict(zip(m['args'], args)))
        assert f is None if taps is None else error(f, torch.tensor(taps)) < 1e-6


@pytest.mark.parametrize('impl', IMPLS)
@pytest.mark.parametrize('case', cases('bias_act') + cases('upfirdn2d') + cases('filtered_lrelu'))
def test_bfloat16(case, impl):
    "Values and gradients stay bfloat16, within 2e-2 of the reference"
    d = load(case)
    x, dy = [d[k].bfloat16().requires_grad_() for k in ('x', 'dy')]
    m = INDEX[case]
    if m['op'] == 'bias_act':
        y = ops.bias_act(x, d['b'].bfloat16(), act=m['act'], impl=impl,
                         **settings(case, 'dim', 'alpha', 'gain', 'clamp'))
    elif m['op'] == 'upfirdn2d':
        y = ops.upfirdn2d(x, d['f'], impl=impl, **settings(case, 'up', 'down', 'padding', 'flip_filter', 'gain'))
    else:
        y = ops.filtered_lrelu(x, d.get('fu'), d.get('fd'), d['b'].bfloat16(), impl=impl,
                               **settings(case, 'up', 'down', 'padding', 'gain', 'slope', 'clamp', 'flip_filter'))
    assert y.dtype == torch.bfloat16 and error(y, d['y']) < 2e-2
    dx, = torch.autograd.grad((y*dy).sum(), x)
    assert dx.dtype == torch.bfloat16 and error(dx, d['dx']) < 2e-2
