"""Published pickles: good ones give the same networks, hostile and damaged ones a clear ValueError, and nothing in
them runs"""
import contextlib, io, os, pickle, pickletools, struct, sys
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from cleftgan_nb import checkpoints, networks, ops
from cleftgan_nb.files import sha256
from cleftgan_nb.checkpoints import pickles
from memory import at_most
from published import Stored, dumps, published, published_kwargs, stand_ins, stored

SMALL = dict(channel_base=512, channel_max=16)

def small(name, resolution=32, c_dim=0):
    "Build a tiny pair of networks whose every tensor is random, filters and statistics included"
    torch.manual_seed(0)
    G, D = networks.build(name, resolution, c_dim=c_dim, z_dim=24, w_dim=32, **SMALL)
    for net in G, D:
        for k, t in net.state_dict().items():
            if k.endswith(('magnitude_ema', 'noise_strength', 'bias', 'w_avg')): t.copy_(torch.rand_like(t) + .5)
    return G.eval(), D.eval()

def draw(G, c=None):
    z = torch.randn(2, 24, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return G(z, c, truncation_psi=.7, **({'noise_mode': 'const'} if G.architecture == 'StyleGAN2Generator' else {}))

@pytest.fixture(scope='module')
def good():
    "Make the bytes of a small good snapshot"
    G, D = small('stylegan2', 8)
    return published({}, D=D, G_ema=G, augment_p=.25)

FORBIDDEN = ('pickle.find_class', 'exec', 'compile', 'os.system', 'os.exec', 'os.fork', 'os.posix_spawn',
             'subprocess.Popen', 'os.putenv', 'os.remove', 'os.rename', 'os.mkdir',
             'marshal.loads', 'ctypes.dlopen', 'socket.connect', 'code.__new__')
heard, listening = [], []
sys.addaudithook(lambda event, args: heard.append((event, args)) if listening and event in FORBIDDEN else None)

@contextlib.contextmanager
def nothing_runs():
    "Watch Python's audit hooks: no imports by pickle, no code, no processes, no changes of files"
    heard.clear()
    listening.append(True)
    try: yield
    finally: listening.clear()
    assert not heard, heard

@pytest.fixture
def alarm(monkeypatch, tmp_path):
    "Fail the test if anything is left behind"
    monkeypatch.chdir(tmp_path)
    yield
    assert [p.name for p in tmp_path.iterdir()] in ([], ['x.pkl'])

def read(data):
    with open('x.pkl', 'wb') as f: f.write(data)
    with nothing_runs(): return pickles.read('x.pkl')

def refuse(data, match=None, reader=read):
    "Check that `data` is refused with a message that names the file"
    with pytest.raises(ValueError, match=match) as e: reader(data)
    assert str(e.value).startswith('x.pkl ') and len(str(e.value)) < 1500

def load(data):
    with open('x.pkl', 'wb') as f: f.write(data)
    return checkpoints.load('x.pkl')

# ---- good ones

@pytest.mark.parametrize('name,c_dim,protocol', [('stylegan3-t', 0, 4), ('stylegan3-r', 0, 4), ('stylegan2', 0, 4),
                                                 ('stylegan3-t', 3, 4), ('stylegan2', 3, 4),
                                                 ('stylegan3-t', 3, 2), ('stylegan2', 0, 3), ('stylegan2', 0, 5)])
def test_round_trip(tmp_path, name, c_dim, protocol):
    G, D = small(name, c_dim=c_dim)
    c = torch.eye(3)[:2] if c_dim else None
    file = tmp_path/'net.pkl'
    file.write_bytes(published({}, protocol, G=G, D=D, G_ema=G, augment_p=.25))
    loaded = checkpoints.load(file)
    checkpoints.convert(file, tmp_path/'net.safetensors')
    converted = checkpoints.load(tmp_path/'net.safetensors')
    x = torch.randn(4, 3, 32, 32)
    for ckpt in loaded, converted:
        for role, net in dict(G=G, D=D, G_ema=G).items():
            other = getattr(ckpt, role)
            assert other.state_dict().keys() == net.state_dict().keys() and type(other) is type(net)
            assert all(torch.equal(v, other.state_dict()[k]) and v.dtype == other.state_dict()[k].dtype
                       for k, v in net.state_dict().items())
        assert torch.equal(draw(ckpt.G_ema, c), draw(G, c))
        with torch.no_grad():
            assert torch.equal(ckpt.D(x, c.repeat(2, 1) if c_dim else None), D(x, c.repeat(2, 1) if c_dim else None))
        assert ckpt.meta['progress']['augment_p'] == .25
        assert (not any(p.requires_grad for p in ckpt.G_ema.parameters())
                and all(p.requires_grad for p in ckpt.G.parameters()))
    assert converted.meta['provenance']['converted']['sha256'] == sha256(file)
    assert converted.meta['provenance']['training_set']['xflip'] is True
    assert 'unknown' in converted.meta['license']

def test_freeze_d(tmp_path):
    D = networks.Discriminator(c_dim=0, img_resolution=16, img_channels=3, **SMALL, block_kwargs={'freeze_layers': 3})
    (tmp_path/'d.pkl').write_bytes(published({}, D=D))
    got = checkpoints.load(tmp_path/'d.pkl').D
    assert [k for k, _ in got.named_parameters()] == [k for k, _ in D.named_parameters()]
    assert 'b16.conv0.weight' in dict(got.named_buffers())

PUBLISHED_SG3 = dict(class_name='training.networks_stylegan3.Generator', magnitude_ema_beta=.9977, conv_kernel=3,
                     use_radial_filters=False, num_fp16_res=4,
                     fp16_channels_last=False, fused_modconv_default='inference_only', mapping_kwargs={'num_layers': 2})

def test_published_keywords(tmp_path):
    G, D = small('stylegan3-t')
    keywords = {'G_ema': {**published_kwargs(G), **PUBLISHED_SG3},
                'D': {**published_kwargs(D), 'architecture': 'resnet', 'num_fp16_res': 4, 'conv_clamp': 256,
                'block_kwargs': {'activation': 'lrelu', 'resample_filter': [1, 3, 3, 1], 'fp16_channels_last': False,
                                 'freeze_layers': 0}}}
    (tmp_path/'x.pkl').write_bytes(published(keywords, D=D, G_ema=G))
    p = pickles.read(tmp_path/'x.pkl')
    assert p.networks['G_ema'].dropped == ['class_name=training.networks_stylegan3.Generator', 'num_fp16_res=4',
                                           'fp16_channels_last=False', 'fused_modconv_default=inference_only']
    assert p.networks['G_ema'].kwargs['magnitude_ema_beta'] == .9977
    assert 'num_fp16_res=4' in repr(checkpoints.convert(tmp_path/'x.pkl', tmp_path/'x.safetensors'))
    assert torch.equal(draw(checkpoints.load(tmp_path/'x.safetensors').G_ema), draw(G))

# Everything that the published converter writes for a StyleGAN2 of TensorFlow, with every default
CONVERTED = dict(conv_clamp=None, num_fp16_res=0, fp16_channels_last=False)
CONVERTED_G = CONVERTED | dict(architecture='skip', resample_filter=[1, 3, 3, 1], use_noise=True, activation='lrelu')
CONVERTED_D = CONVERTED | dict(architecture='resnet', cmap_dim=16,
                               block_kwargs=dict(activation='lrelu', resample_filter=[1, 3, 3, 1], freeze_layers=0))
MAPPED = dict(activation='lrelu', embed_features=None)

def literal_mapping(net, x, lr):
    "Map codes as written: each layer scaled by its learning rate"
    for i in range(net.num_layers):
        w, b = getattr(net, f'fc{i}').weight, getattr(net, f'fc{i}').bias
        x = torch.nn.functional.leaky_relu(x @ (w*lr/w.shape[1]**.5).T + b*lr, .2)*2**.5
    return x

def literal_logits(D, x, c, lr):
    "Compute logits with the whole batch as one group"
    for x in D.features(x): pass
    spread = ((x - x.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
    h = D.b4.fc(D.b4.conv(torch.cat([x, spread.expand(len(x), 1, 4, 4)], 1)).flatten(1))
    if c is None: return D.b4.out(h)
    cmap = D.mapping.embed(c)
    cmap = literal_mapping(D.mapping, cmap/(cmap.square().mean(1, keepdim=True) + 1e-8).sqrt(), lr)
    return (D.b4.out(h)*cmap).sum(1, keepdim=True)/16**.5

@pytest.mark.parametrize('c_dim,layers,beta', [(0, 0, .995), (3, 0, .998), (3, 2, .995)])
def test_published_converter(tmp_path, c_dim, layers, beta):
    "As written from TensorFlow: values of the literal definition, numbers for training kept"
    torch.manual_seed(0)
    G = networks.StyleGAN2Generator(24, c_dim, 32, 16, **SMALL, conv_clamp=None,
                                    mapping_kwargs=dict(num_layers=3, lr_multiplier=.02, w_avg_beta=beta))
    D = networks.Discriminator(c_dim, 16, **SMALL, conv_clamp=None, cmap_dim=16 if c_dim else None,
                               mapping_kwargs=dict(num_layers=layers, lr_multiplier=.1),
                               epilogue_kwargs=dict(mbstd_group_size=None))
    keywords = {'G_ema': published_kwargs(G) | CONVERTED_G
                | dict(mapping_kwargs=MAPPED | dict(num_layers=3, layer_features=32, lr_multiplier=.02, w_avg_beta=beta)),
                'D': published_kwargs(D) | CONVERTED_D
                | dict(mapping_kwargs=MAPPED | dict(num_layers=layers, layer_features=16, lr_multiplier=.1),
                       epilogue_kwargs=dict(mbstd_group_size=None, mbstd_num_channels=1, activation='lrelu'))}
    (tmp_path/'x.pkl').write_bytes(published(keywords, D=D, G_ema=G))
    checkpoints.convert(tmp_path/'x.pkl', tmp_path/'x.safetensors')
    z, x, c = torch.randn(6, 24), torch.randn(6, 3, 16, 16), torch.eye(3).repeat(2, 1) if c_dim else None
    for got in checkpoints.load(tmp_path/'x.pkl'), checkpoints.load(tmp_path/'x.safetensors'):
        with torch.no_grad(), ops.use_impl('definition'):
            codes = [v/(v.square().mean(1, keepdim=True) + 1e-8).sqrt() for v in
                     ([z, G.mapping.embed(c)] if c_dim else [z])]
            ws = literal_mapping(G.mapping, torch.cat(codes, 1), .02)[:, None].expand(-1, G.num_ws, -1)
            assert torch.allclose(got.G_ema.mapping(z, c), ws, atol=1e-5)
            assert torch.allclose(got.G_ema(z, c, noise_mode='const'), G.synthesis(ws, noise_mode='const'), atol=1e-4)
            assert torch.allclose(got.D(x, c), literal_logits(D, x, c, .1), rtol=1e-4, atol=1e-5)
        got.G_ema.mapping(z, c, update_emas=True)
        assert torch.allclose(got.G_ema.mapping.w_avg, ws[:, 0].mean(0)*(1 - beta), atol=1e-6)
        assert got.D.init_kwargs['mapping_kwargs']['lr_multiplier'] == .1
        assert got.D.b4.mbstd == (None, 1)

@pytest.mark.parametrize('role,change', [
    ('G_ema', dict(mapping_kwargs=dict(layer_features=64))), ('G_ema', dict(mapping_kwargs=dict(activation='relu'))),
    ('G_ema', dict(use_noise=False)), ('G_ema', dict(architecture='orig')), ('G_ema', dict(resample_filter=[1, 2, 1])),
    ('D', dict(epilogue_kwargs=dict(activation='elu'))), ('D', dict(block_kwargs=dict(resample_filter=[1, 1])))])
def test_another_network_of_the_converter(alarm, role, change):
    G, D = small('stylegan2', 8)
    keywords = {'G_ema': published_kwargs(G) | CONVERTED_G, 'D': published_kwargs(D) | CONVERTED_D}
    keywords[role] |= change
    name = list(change)[0] if not isinstance(inner := list(change.values())[0], dict) else list(inner)[0]
    refuse(published(keywords, D=D, G_ema=G), rf'{role}: [\w.]*{name}=.* is another network', load)

def test_nested_synthesis_kwargs_and_positions(tmp_path):
    G, D = small('stylegan2')
    positional = [24, 0, 32, 32, 3]
    with stand_ins() as (_, EasyDict):
        data = EasyDict(G_ema=None, extra=7)   # a dict-like class at the top
        data['G_ema'] = stored(G, 'Generator', {'synthesis_kwargs': {**SMALL, 'num_fp16_res': np.int64(4),
                                                                     'architecture': 'skip'}, 'mapping_kwargs': {}},
                               args=tuple(positional))
        (tmp_path/'x.pkl').write_bytes(pickle.dumps(data))
    assert torch.equal(draw(checkpoints.load(tmp_path/'x.pkl').G_ema), draw(G))
    assert pickles.read(tmp_path/'x.pkl').left_out == ['extra']

def test_half_precision_tensors(tmp_path):
    G, _ = small('stylegan2', 8)
    (tmp_path/'x.pkl').write_bytes(published({}, G_ema=G.half()))
    got = checkpoints.load(tmp_path/'x.pkl').G_ema
    assert {t.dtype for t in got.state_dict().values()} == {torch.float32}
    assert all(torch.equal(v.float(), got.state_dict()[k]) for k, v in G.state_dict().items())

def test_reprs_escape(tmp_path):
    G, _ = small('stylegan2', 8)
    (tmp_path/'x.pkl').write_bytes(published({}, G_ema=G, training_set={'path': '<script>alert(1)</script>'}))
    p = pickles.read(tmp_path/'x.pkl')
    assert '<script>' not in p._repr_html_() and '<script>' in repr(p) and '<table>' in p._repr_html_()

# ---- hostile ones

class Reduce:
    "Anything that a pickle can make Python call"
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args

def names(module, name, args=b"(S'touch pwned'\nt"): return b'c' + module + b'\n' + name + b'\n' + args + b'R.'

HOSTILE = {
    'os.system': (names(b'os', b'system'), 'refused: os.system'),
    'posix.system': (names(b'posix', b'system'), 'refused: posix.system'),
    'builtins.eval': (names(b'builtins', b'eval'), 'refused: builtins.eval'),
    'python 2 builtins': (names(b'__builtin__', b'eval'), 'refused: __builtin__.eval'),
    'alias through a module': (names(b'torch.serialization', b'os.system'), 'refused: torch.serialization.os.system'),
    'dotted name of protocol 4': (b'\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x0btouch pwned\x85R.',
                                  'refused: torch.os.system'),
    'torch.load': (names(b'torch', b'load'), 'refused: torch.load'),
    'torch.hub.load': (names(b'torch.hub', b'load'), 'refused: torch.hub.load'),
    'runpy': (names(b'runpy', b'run_path'), 'refused: runpy.run_path'),
    'getattr': (b'cbuiltins\ngetattr\n(cos\nsystem\ntR.', 'refused: builtins.getattr'),
    'functools.partial': (names(b'functools', b'partial'), 'refused: functools.partial'),
    'numpy.load': (names(b'numpy', b'load'), 'refused: numpy.load'),
    'TensorFlow network': (names(b'dnnlib.tflib.network', b'Network'), 'refused: dnnlib.tflib.network.Network'),
    'almost accepted': (names(b'torch.nn.modules.container.os', b'system'), 'refused'),
    'INST': (b"(S'touch pwned'\nios\nsystem\n.", 'refused: os.system'),
    'OBJ': (b"(cos\nsystem\nS'touch pwned'\no.", 'refused: os.system'),
    'NEWOBJ': (b'\x80\x02csubprocess\nPopen\nX\x05\x00\x00\x00touch\x85\x81.', 'refused: subprocess.Popen'),
    'NEWOBJ_EX': (b'\x80\x04ccollections\nOrderedDict\n)}\x92.', 'refused: the instruction NEWOBJ_EX'),
    'extension registry': (b'\x82\x01.', 'refused: the instruction EXT1'),
    'out-of-band buffer': (b'\x80\x05\x97.', 'refused: the instruction NEXT_BUFFER'),
    'persistent id': (b'Pfetch\n.', 'refused: a persistent id'),
    'binary persistent id': (b'S"x"\nQ.', 'refused: a persistent id'),
    'a call of a word': (b"S'os.system'\n(S'x'\ntR.", 'is not a name'),
    'a call of a call': (b'ccollections\nOrderedDict\n)R)R.', 'is not a name'),
    'BUILD on a name': (b"ccollections\nOrderedDict\n}S'__init__'\nS'x'\nsb.", 'given a state'),
    'BUILD on a list': (b'](K\x01t\x62.', 'given a state'),
    'newline in a name': (b'\x80\x04\x8c\x05o\ns\n\n\x8c\x06system\x93.', r'refused: .o\\ns\\n\\n.system'),
}

@pytest.mark.parametrize('what', HOSTILE)
def test_hostile(alarm, what):
    data, match = HOSTILE[what]
    refuse(data, match)

def test_hostile_would_work_on_pickle(tmp_path, monkeypatch):
    "The list above holds no duds: an ordinary unpickler falls for them"
    monkeypatch.chdir(tmp_path)
    for what in 'os.system', 'posix.system', 'dotted name of protocol 4', 'INST', 'OBJ':
        pickle.loads(HOSTILE[what][0])
        assert os.path.exists('pwned'), what
        os.remove('pwned')

@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_nested_reduce(alarm, protocol):
    "A call in a call, in a keyword, in a network, in a snapshot, and in a call's state"
    bomb = Reduce(print, Reduce(sorted, Reduce(len, 'x')))
    for data in (bomb, {'G': [[bomb]]}, {'G_ema': Stored('Generator', {'_init_kwargs': {'z_dim': bomb}})},
                 {'training_set_kwargs': bomb}, {'unused': bomb}):
        refuse(dumps(data, protocol), 'refused: (__builtin__|builtins).(len|sorted|print)')

def swap_storage(data, inner):
    "Replace the numbers of the first tensor in `data`"
    at = [arg for op, arg, _ in pickletools.genops(data)
          if op.name in ('BINBYTES', 'SHORT_BINBYTES') and b'Storage' in arg][0]
    assert len(inner) < 2**32
    for head in (b'B' + struct.pack('<I', len(at)), b'C' + bytes([len(at) % 256])):
        if head + at in data: return data.replace(head + at, b'B' + struct.pack('<I', len(inner)) + inner, 1)

@pytest.fixture
def plain_snapshot():
    "Make a snapshot without frames, so that its length can change"
    G, _ = small('stylegan2', 8)
    return published({}, 3, G_ema=G), list(G.state_dict().values())

def inner_bytes(tensor): return tensor.clone().__reduce_ex__(2)[1][0].__reduce__()[1][0]

def test_swapping_works(tmp_path, plain_snapshot):
    data, state = plain_snapshot
    first = [arg for op, arg, _ in pickletools.genops(data)
             if op.name in ('BINBYTES', 'SHORT_BINBYTES') and b'Storage' in arg][0]
    (tmp_path/'x.pkl').write_bytes(swap_storage(data, first))
    assert pickles.read(tmp_path/'x.pkl')

def test_hostile_inside_load_from_bytes(alarm, plain_snapshot):
    data, _ = plain_snapshot
    good = inner_bytes(torch.zeros(7))
    refuse(swap_storage(data, names(b'os', b'system')), 'refused: os.system')
    refuse(swap_storage(data, good.replace(b'ctorch\nFloatStorage\n', b'cposix\nsystem\n')), 'refused: posix.system')
    refuse(swap_storage(data, good.replace(b'ctorch\nFloatStorage\n', b'ctorch._utils\n_rebuild_tensor_v2\n')),
           'refused: torch._utils._rebuild_tensor_v2')
    zipped = io.BytesIO()
    torch.save(torch.zeros(3), zipped)
    refuse(swap_storage(data, zipped.getvalue()), 'zip archive')
    refuse(swap_storage(data, b''), 'damaged|cut off')

def test_storage_claims(alarm, plain_snapshot):
    data, _ = plain_snapshot
    good = inner_bytes(torch.zeros(7))
    assert len(pickles.storage(good)) == 7
    claim = good.replace(struct.pack('<q', 7), struct.pack('<q', 2**31))
    for bad in (claim, claim.replace(b'cpuq\x03K\x07', b'cpuq\x03J\xff\xff\xff\x7f'), good[:-1], good + b'x',
                good[:len(good)//2], good[:-28-8]):
        refuse(swap_storage(data, bad))
    refuse(swap_storage(data, good.replace(b'little_endianq\x02\x88', b'little_endianq\x02\x89')), 'little-endian')

class Raw:
    "A tensor with any offset, size and stride"
    def __init__(self, *claims, numbers=4): self.claims, self.numbers = claims, numbers
    def __reduce__(self):
        storage = torch.zeros(self.numbers).__reduce_ex__(2)[1][0]
        return torch._utils._rebuild_tensor_v2, (storage, *self.claims, False, {})

@pytest.mark.parametrize('claims', [(1, (4,), (1,)), (0, (5,), (1,)), (0, (2,), (4,)), (-1, (1,), (1,)),
                                    (0, (2,), (-1,)), (0, (10**6, 10**6), (0, 0)), (0, (2**39, 2**39), (0, 0)),
    (2**62, (1,), (1,)), (0, (2,), (1, 1)), (0, [2.], (1,)), (0, 'ab', (1,)), (True, (1,), (1,)), (0, (1,)*9, (1,)*9),
    (4, (), ()), (0, (2, 2), (3, 1)), (2**80, (1,), (1,))])
def test_tensor_claims(alarm, claims):
    refuse(dumps({'D': Stored('Discriminator', {'_parameters': {'x': Raw(*claims)}})}), 'D.x')

def test_memory_claims(alarm):
    "Claims of gigabytes cost next to nothing"
    gig = struct.pack('<I', 2**30)
    claims = [b'\x80\x04B' + gig + b'abc.', b'X' + gig + b'abc.', b'T' + gig + b'abc.',
              b'\x8b' + struct.pack('<i', 2**30) + b'1.', b'\x80\x04\x8e' + struct.pack('<Q', 2**30) + b'a.',
              b'\x8d' + struct.pack('<Q', 2**62) + b'a.', b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'a.',
              b'\x80\x04\x95' + struct.pack('<Q', 2**50) + b'K\x01.',
              b'K\x01r' + struct.pack('<I', 2**31-1) + b'0.', b'\x80\x04B\xff\xff\xff\xff', b'\x8e' + b'\xff'*8]
    with at_most(20e6):
        for data in claims: refuse(data)

@pytest.mark.parametrize('shape', [(9999, 9999, 9999, 0), (9999, 9999, 0), (0, 9999, 2)])
@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_empty_arrays_are_not_lists_without_end(alarm, shape, protocol):
    "1.4 kB of pickle: no number, and a billion empty lists"
    data = dumps({'G': stored_small(z_dim=np.empty(shape))}, protocol)
    assert len(data) < 2000
    with at_most(20e6): refuse(data, f'{np.prod(np.maximum(shape, 1))} values or empty lists; accepted: up to 10000')
    assert (pickles.plain(pickles.Machine().run(io.BytesIO(pickle.dumps(np.empty((3, 0)), protocol))), 'x')
            == [[], [], []])

class Again:
    "A tensor whose numbers come from a call of their own"
    def __init__(self, numbers): self.numbers = numbers
    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Reduce(torch.storage._load_from_bytes, self.numbers), 0,
                                                 (1000, 1000), (1000, 1), False, {})

def test_shared_bytes_do_not_multiply(alarm):
    "4 MB of bytes, decoded by 400 calls, are not 1.6 GB"
    numbers = inner_bytes(torch.zeros(1000, 1000))
    for where in '_parameters', '_buffers':
        data = dumps({'G': Stored('Generator', {where: {f'p{i}': Again(numbers) for i in range(400)}})})
        assert len(data) < 4.1e6
        with at_most(30e6): refuse(data, 'G.p1: up to here the tensors claim more numbers than the file has bytes')

def test_long_words_do_not_multiply(alarm):
    "One word of 9,999 letters, repeated 9,000 times"
    G, _ = small('stylegan2', 8)
    refuse(published({}, G_ema=G, training_set={'x': ['x'*9999]*9000}),
           'training_set_kwargs.x is nested too deep or too large')

def test_shared_numbers_do_not_multiply(alarm):
    "One storage of 4 MB, claimed by 5000 tensors, is not a network of 20 GB"
    numbers = torch.zeros(1000, 1000)
    parts = {'synthesis': Stored('Part', {'_modules': {'input': Stored('Part', {'_buffers': {'freqs': numbers}})}})}
    refuse(dumps({'G': Stored('Generator', {'_parameters': {f'p{i}': numbers for i in range(5000)},
                                            '_modules': parts})}), 'claim 20004000000 bytes, and the file has 4')

@pytest.mark.parametrize('fan', [1, 2, 100])
def test_modules_in_themselves(alarm, fan):
    state = {'_parameters': {}}
    state['_modules'] = {f'm{i}': Stored('Part', state) for i in range(fan)}
    refuse(dumps({'G': Stored('Generator', state)}), 'without end')

def test_recursion(alarm):
    loop = []
    loop.append(loop)
    refuse(pickle.dumps(loop))
    refuse(pickle.dumps({'G': loop}))
    refuse(dumps({'G_ema': loop, 'training_set_kwargs': loop}))
    deep = 50_000
    for data in (b']'*deep + b'a'*(deep-1) + b'.', b')' + b'\x85'*deep + b'.', b'('*deep,
                 b'}'+b'K\x01(K\x02'*deep+b'.', b'ccollections\nOrderedDict\n)'+b'R\x85'*1+b'.',
                 b'ccollections\nOrderedDict\n' + b'q\x00)' + b'\x85'*deep + b'R.',
                 b'cnumpy\ndtype\n)' + b'\x85'*deep + b'R.'):
        refuse(data)
    refuse(b'}' + b')' + b'2\x86'*60 + b'K\x01s.', 'as a key')   # hashing this tuple takes 2**60 steps
    refuse(b'\x80\x04\x8f(' + b')' + b'2\x86'*60 + b'\x90.', 'as a key')

def test_laughs_in_keywords(alarm):
    laughs = ['ha']
    for _ in range(30): laughs = [laughs]*10
    refuse(dumps({'G': stored_small(z_dim=laughs)}), 'too large|too deep')

def stored_small(**kwargs):
    b4 = Stored('Part', {'_parameters': {'const': torch.zeros(2)}})
    synthesis = Stored('Part', {'_modules': {'b4': b4}})
    return Stored('Generator', {'_modules': {'synthesis': synthesis}, '_init_kwargs': kwargs})

# ---- wrong ones

def test_truncated(alarm, good):
    for percent in range(0, 100, 5): refuse(good[:len(good)*percent//100])
    refuse(good[:-1])
    refuse(good + b'.', 'follow after the end')
    refuse(good + good)

@pytest.mark.parametrize('data,match', [
    (b'', 'empty'), (b'hello', 'damaged'), (b'\n\n<html>', 'web page'), (b'PK\x03\x04zip', 'zip archive'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (b'\x1f\x8b\x08', 'gzip'), (struct.pack('<Q', 90) + b'{"__metadata__":{}}', 'suffix .safetensors'),
    (pickle.dumps(7), 'snapshot is 7'), (pickle.dumps({}), 'without networks'),
    (pickle.dumps([1]), '<list>'), (pickle.dumps({'G': 3}), 'G is 3'),
    (pickle.dumps({'G': {'a': 1}}), 'G is <dict>; accepted: a stored network'), (b'\x89HDF\r\n', 'HDF5'),
    (bytes(1000), 'damaged')])
def test_no_snapshot(alarm, data, match): refuse(data, match)

def test_torch_files(alarm, tmp_path):
    for old in True, False:
        f = io.BytesIO()
        torch.save({'w': torch.zeros(3)}, f, _use_new_zipfile_serialization=not old)
        refuse(f.getvalue(), 'torch.save')

def test_wrong_class(alarm):
    G, D = small('stylegan2', 8)
    with stand_ins():
        as_g, as_d, other = (stored(G, 'Generator', published_kwargs(G)),
                             stored(D, 'Discriminator', published_kwargs(D)), stored(D, 'Classifier'))
        files = {k: pickle.dumps(v) for k, v in dict(swap={'D': as_g},
                                                     mix={'G': stored(D, 'Generator', published_kwargs(D))},
                                                     other={'D': other}, linear={'G': torch.nn.Linear(2, 2)},
                 version={'G': Stored('Generator', {}, version=7)},
                 kind={'G': Stored('Generator', {}, kind='module')}, empty={'G': Stored('Generator', {})},
                 bare=as_g).items()}
    refuse(files['swap'], 'D is a Generator; accepted: a Discriminator')
    refuse(files['mix'], 'has the tensors of a Discriminator')
    refuse(files['other'], 'D is a Classifier')
    refuse(files['linear'], 'accepted: a Generator')
    refuse(files['version'], 'another version')
    refuse(files['kind'], 'another version')
    refuse(files['empty'], 'not a network of ours')
    refuse(files['bare'], 'accepted: a dict')

@pytest.mark.parametrize('change,match', [
    ({'wings': 2}, 'refused: the keyword wings of D'),
    ({'block_kwargs': {'wings': 2}}, 'refused: the keyword block_kwargs.wings'),
    ({'architecture': 'orig'}, 'accepted: resnet'),
    ({'block_kwargs': {'activation': 'relu'}}, 'accepted: lrelu'), ({'img_resolution': 2**30}, 'accepted: 0 to 4096'),
    ({'img_resolution': 16}, 'tensors'), ({'channel_max': 12}, 'should be'),
    ({'img_resolution': 'x'}, 'cannot be built|accepted'), ({'img_resolution': 2**70}, 'accepted'),
    ({'conv_clamp': [[]]}, 'accepted: a number'), ({'c_dim': 10**5-1}, 'tensors'), ({'img_resolution': -8}, 'accepted'),
    ({'img_resolution': float('nan')}, 'accepted'), ({'img_channels': None}, 'cannot be built'),
    ({'epilogue_kwargs': 3}, 'refused: the keyword epilogue_kwargs')])
def test_keywords(alarm, change, match):
    _, D = small('stylegan2', 8)
    refuse(published({'D': {**published_kwargs(D), **change}}, D=D), match, load)

def test_missing_and_surplus_tensors(alarm):
    _, D = small('stylegan2', 8)
    del D.b8.conv0.weight
    refuse(published({}, D=D), 'lacks 1 tensors of its architecture: b8.conv0.weight', load)
    _, D = small('stylegan2', 8)
    D.b8.register_buffer('extra', torch.zeros(1))
    refuse(published({}, D=D), 'b8.extra', load)
    D.b8.extra = torch.zeros(1, dtype=torch.int64)
    refuse(published({}, D=D), 'b8.extra', load)
    _, D = small('stylegan2', 8)
    D.b8._modules['a.b'] = torch.nn.Module()
    refuse(published({}, D=D), 'accepted: letters, digits')

def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file'): pickles.read(tmp_path/'x.pkl')
    with pytest.raises(ValueError, match='is a folder; give the name of a file'): pickles.read(tmp_path)
    for wrong in None, 3, b'x.pkl':
        with pytest.raises(ValueError, match=f'path={wrong!r}; accepted: a str or a Path'): pickles.read(wrong)

def test_not_finite_is_flagged(tmp_path):
    _, D = small('stylegan2', 8)
    with torch.no_grad(): D.b4.out.weight[0, 0] = float('nan')
    (tmp_path/'x.pkl').write_bytes(published({}, D=D))
    with pytest.warns(UserWarning, match='D/b4.out.weight'): c = checkpoints.load(tmp_path/'x.pkl')
    assert 'NOT FINITE: D/b4.out.weight' in repr(c)

# ---- any damage at all

@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage(alarm, good, data):
    "A changed file loads (the change hit a number or an unused word) or raises ValueError, and nothing runs"
    bad = bytearray(good)
    heads = [i for i in range(0, len(good), 7)] if data.draw(st.booleans()) else None
    for _ in range(data.draw(st.integers(1, 4))):
        at = (data.draw(st.integers(0, len(bad)-1)) if heads is None
              else interesting(good)[data.draw(st.integers(0, len(interesting(good))-1))])
        if at < len(bad): bad[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        a = data.draw(st.integers(0, len(bad)))
        b = data.draw(st.integers(a, min(len(bad), a+50)))
        del bad[a:b]
    try: p = read(bad)
    except ValueError: return
    assert all(torch.is_tensor(t) for n in p.networks.values() for t in n.state.values())

_positions = {}
def interesting(good):
    "Find the positions of instructions and their arguments, outside the long runs of numbers"
    if id(good) not in _positions:
        ops = list(pickletools.genops(good))
        _positions[id(good)] = [i for (_, _, a), (_, _, b) in zip(ops, ops[1:]) for i in range(a, min(b, a + 200))]
    return _positions[id(good)]

@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(st.sampled_from([op.code.encode('latin1') for op in pickletools.opcodes] +
    [b'cos\nsystem\n', b'ccollections\nOrderedDict\n', b'ctorch.storage\n_load_from_bytes\n',
     b'ctorch._utils\n_rebuild_tensor_v2\n', b'\x8c\x01G', b'K\x01', b'q\x00', b'h\x00', b'C\x03abc', b'numpy\n']),
     max_size=60))
def test_random_programs(alarm, program):
    "Programs of random instructions"
    with pytest.raises(ValueError): read(b'\x80\x04' + b''.join(program) + b'.')
