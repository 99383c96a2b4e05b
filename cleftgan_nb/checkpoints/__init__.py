"Networks in files that explain themselves"
from . import pickles, store
from .standalone import export
from .store import (CEILINGS, DTYPES, FORMAT, MODELS, ROLES, UNKNOWN, Checkpoint, blueprint, check_network, convert,
                    find, history, licenses, load, read_tensors, save, shipped, stretch, write_tensors)
