import os

__version__ = "0.1.0"

# Large pages for PyTorch's tensors on a CPU: without them, fresh memory costs up to a third of the time of a large operator.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')
