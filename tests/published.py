"""Write snapshots in the published layout; stand-ins replace the modules that such files name, only while pickling.

Reading one with `pickle.load` would import `torch_utils.persistence`, which isn't installed here, and execute
`module_src`, which raises"""
import contextlib, pickle, sys, types
from collections import OrderedDict
import numpy as np, torch

SOURCE = 'raise SystemExit("module_src was executed")'

@contextlib.contextmanager
def stand_ins():
    "Make modules of the published names, with what a snapshot needs of them"
    modules = {n: types.ModuleType(n) for n in ('torch_utils', 'torch_utils.persistence', 'dnnlib', 'dnnlib.util')}
    def place(module, name, made):
        made.__module__, made.__qualname__, made.__name__ = module, name, name
        setattr(modules[module], name, made)
        return made
    def reconstruct(meta): raise AssertionError('a reader must not call this')
    place('torch_utils.persistence', '_reconstruct_persistent_obj', reconstruct)
    place('dnnlib.util', 'EasyDict', type('EasyDict', (dict,), {}))
    sys.modules.update(modules)
    try: yield reconstruct, modules['dnnlib.util'].EasyDict
    finally:
        for name in modules: del sys.modules[name]

class Stored:
    "A module as its class decorated with persistence pickles it"
    def __init__(self, class_name, state, version=6, kind='class'):
        self.class_name, self.state, self.version, self.kind = class_name, state, version, kind
    def __reduce__(self):
        reconstruct, EasyDict = (sys.modules['torch_utils.persistence']._reconstruct_persistent_obj,
                                 sys.modules['dnnlib.util'].EasyDict)
        return reconstruct, (EasyDict(type=self.kind, version=self.version, module_src=SOURCE,
                                      class_name=self.class_name, state=self.state),)

def easy(value):
    "Turn the dicts of a pickle into EasyDicts"
    EasyDict = sys.modules['dnnlib.util'].EasyDict
    return EasyDict({k: easy(v) for k, v in value.items()}) if isinstance(value, dict) else value

def stored(net, class_name, kwargs=None, args=(), **more):
    "Store `net` and its parts with the kinds of attributes that published ones have"
    none = lambda: OrderedDict()
    state = dict(training=False, _parameters=OrderedDict(net._parameters), _buffers=OrderedDict(net._buffers),
                 _non_persistent_buffers_set=set(net._non_persistent_buffers_set),
                 _backward_hooks=none(), _is_full_backward_hook=None, _forward_hooks=none(),
                 _forward_pre_hooks=none(), _state_dict_hooks=none(), _load_state_dict_pre_hooks=none(),
                 _init_args=args, _init_kwargs=easy(kwargs or {}))
    state |= dict(in_size=np.array([36, 36]), sampling_rate=np.float64(16.), layer_names=['L0', 'L1'],
                  padding=[9, 8, 9, 8], activation='lrelu', gain=2**.5, dtype=torch.float32,
                  shape=torch.Size([1, 2]), device=torch.device('cpu'), **more)
    state['_modules'] = OrderedDict((k, stored(m, type(m).__name__, **more)) for k, m in net._modules.items()
                                    if m is not None)
    return Stored(class_name, state)

# keywords that published constructors don't have, or not with our values
OURS = 'dtype', 'channels_last', 'num_fp16_res', 'synthesis_kwargs'

def published_kwargs(net): return {k: v for k, v in net.init_kwargs.items() if k not in OURS}

def published(kwargs, protocol=4, training_set=None, augment_p=None, **nets):
    "Make the bytes of a snapshot: `published({'G_ema': keywords}, G_ema=G)`; `nets` by role"
    with stand_ins():
        data = {role: None for role in ('G', 'D', 'G_ema')}
        more = {'memory_format': torch.channels_last} if protocol >= 4 else {}   # older protocols cannot say it
        for role, net in nets.items():
            data[role] = stored(net, 'Discriminator' if role == 'D' else 'Generator',
                                kwargs.get(role, published_kwargs(net)), **more)
        data['training_set_kwargs'] = easy(training_set
                                           or {'class_name': 'training.dataset.ImageFolderDataset',
                                               'use_labels': False, 'max_size': 70000, 'xflip': True})
        data['augment_pipe'] = None if augment_p is None else Stored('AugmentPipe',
                                                                     dict(_parameters=OrderedDict(),
                                                                          _buffers=OrderedDict(p=torch.tensor(augment_p)),
                                    _modules=OrderedDict(), _init_args=(), _init_kwargs=easy({'xflip': 1})))
        return pickle.dumps(data, protocol)

def dumps(value, protocol=4):
    "Pickle anything that contains `Stored`s"
    with stand_ins(): return pickle.dumps(value, protocol)
