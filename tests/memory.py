"""A bound on the memory that some lines of a test take, whatever earlier tests took"""
import contextlib, re, sys, tracemalloc
from pathlib import Path

def _of(kind): return int(re.search(rf'{kind}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

@contextlib.contextmanager
def at_most(size):
    "Allow `size` more bytes, allocated by Python or, where Linux counts from here on, by the process"
    counted = sys.platform.startswith('linux')
    if counted:
        try: Path('/proc/self/clear_refs').write_text('5')     # reset the peak to what there is now
        except OSError: counted = False
    before = counted and _of('VmRSS')
    tracemalloc.start()
    try: yield
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < size, f'{most/1e6:.0f} MB allocated by Python'
    assert not counted or _of('VmHWM') - before < size, f'{(_of("VmHWM") - before)/1e6:.0f} MB taken'
