"""Triton's kernels: interpreted, compiled on a GPU or for absent ones, and what is said where they cannot run"""
import os, re, subprocess, sys
from pathlib import Path
import pytest, torch
from cleftgan_nb import ops
from cleftgan_nb.ops import dispatch

pytest.importorskip('triton', reason='Triton is for Linux')
TESTS = Path(__file__).parent


def python(*args, interpret, cwd=TESTS, **env):
    "Run Python in its own process, because Triton decides on import who runs its kernels"
    env = {**os.environ, 'PYTHONPATH': str(Path(ops.__file__).parents[2]),
           'TRITON_INTERPRET': '1' if interpret else '0', 'OMP_NUM_THREADS': '1', **env}
    run = subprocess.run([sys.executable, *map(str, args)], env=env, cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-3000:]
    return run.stdout


def cases(interpret):
    out = python('-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'triton_cases.py', interpret=interpret)
    assert int(re.search(r'(\d+) passed', out)[1]) > 100 and not re.search('failed|skipped|error', out.splitlines()[-1])


@pytest.mark.slow
def test_by_the_interpreter(): cases(True)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_on_the_gpu(): cases(False)


@pytest.mark.slow
def test_compiled_for_gpus_that_are_not_here(tmp_path):
    "A100 and H100: tensor cores in half precision, exact float32 products, and blocks that fit smaller cards' chips"
    lines = python(TESTS/'triton_compile.py', interpret=False, TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert len(lines) == 7
    for line in lines:
        name, arch, shared, *words = line.split()
        assert int(shared) <= 99*1024, line
        assert ('mma' in words) == ('float32' not in name) and 'tf32' not in words, line


def test_a_cpu_needs_the_interpreter(monkeypatch):
    monkeypatch.setattr(dispatch._triton(), 'INTERPRETED', False)
    for call in (lambda x: ops.bias_act(x, impl='triton'), lambda x: ops.upfirdn2d(x, None, impl='triton'),
                 lambda x: ops.filtered_lrelu(x, impl='triton')):
        with pytest.raises(ValueError, match="impl='triton' can't take a tensor on cpu, unless TRITON_INTERPRET=1 is "
                                             "set before Python starts"):
            call(torch.zeros(1, 3, 9, 9))
    assert dispatch.choose('auto', torch.zeros(1)) == 'cpu'


def test_without_triton(monkeypatch):
    "A GPU takes the definition and says so; impl='triton' says what to install"
    class Gpu:
        device, dtype = torch.device('cuda', 0), torch.float16
    dispatch._triton.cache_clear()
    monkeypatch.setitem(sys.modules, 'cleftgan_nb.ops.triton_act', None)
    try:
        with pytest.warns(UserWarning, match='without Triton, operators on a GPU use the slow definition: pip '
                                             'install triton'):
            assert dispatch.choose('auto', Gpu) == 'definition'
        with pytest.raises(ValueError, match="impl='triton' can't take anything without the package triton"):
            dispatch.choose('triton', Gpu)
    finally: dispatch._triton.cache_clear()


@pytest.mark.parametrize('capability, chosen', [((7, 5), 'definition'), ((8, 0), 'triton'), ((9, 0), 'triton')])
def test_which_gpu(monkeypatch, capability, chosen):
    class Gpu:
        device, dtype = torch.device('cuda', 0), torch.float16
    monkeypatch.setattr(dispatch, '_capability', lambda device: capability)
    assert dispatch.choose('auto', Gpu) == chosen
    if chosen == 'definition':
        with pytest.raises(ValueError, match='cuda:0, of compute capability 7.5'): dispatch.choose('triton', Gpu)


def test_triton_is_not_imported_before_it_is_needed():
    out = python('-c', 'import sys, torch; from cleftgan_nb import ops, networks; ops.bias_act(torch.zeros(1, 3, 4, '
                       '4)); print([m for m in sys.modules if m.startswith("cleftgan_nb.ops.triton")])',
                 interpret=False)
    assert out.strip() == '[]'
