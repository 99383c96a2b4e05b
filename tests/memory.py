"""What some lines of a test take of memory, whatever the tests before them took."""
import contextlib, re, sys, tracemalloc
from pathlib import Path

def _of(kind): return int(re.search(rf'{kind}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

@contextlib.contextmanager
def at_most(size):
    "No more bytes than `size` may be allocated by Python, or taken by the process where Linux counts from here on"
    counted = sys.platform.startswith('linux')
    if counted:
        try: Path('/proc/self/clear_refs').write_text('5')     # the peak is what there is now
        except OSError: counted = False
    before = counted and _of('VmRSS')
    tracemalloc.start()
    try: yield
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < size, f'{most/1e6:.0f} MB allocated by Python'
    assert not counted or _of('VmHWM') - before < size, f'{(_of("VmHWM") - before)/1e6:.0f} MB taken'
