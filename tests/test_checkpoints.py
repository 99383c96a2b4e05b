"""Checkpoints: exact round trips, files that are whole or absent, and a clear ValueError for anything else in a
folder"""
import errno, json, os, signal, socket, struct, subprocess, sys, time, warnings
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from cleftgan_nb import checkpoints, networks, ops
from cleftgan_nb.cli import main
from cleftgan_nb.files import atomic, sha256
from cleftgan_nb.checkpoints import load, save
from memory import at_most

ABOUT = dict(license='CC-BY-4.0', provenance={'data': 'phantom', 'seed': 3, 'versions': {'torch': torch.__version__}},
             progress={'kimg': 12.5, 'augment_p': .3, 'done': False})
# for processes started here, wherever the library is
ENV = {**os.environ, 'PYTHONPATH': str(Path(checkpoints.__file__).parents[1])}
SMALL = dict(channel_base=256, channel_max=12, z_dim=24, w_dim=32)

def small(name='stylegan3-t', resolution=16, **kwargs):
    torch.manual_seed(0)
    return networks.build(name, resolution, **SMALL, **kwargs)

def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)

@pytest.fixture(scope='module')
def file(tmp_path_factory):
    G, D = small()
    return save(tmp_path_factory.mktemp('file')/'good.safetensors', D=D, G_ema=G, **ABOUT)

# ---- round trips

@pytest.mark.parametrize('name,c_dim', [('stylegan3-t', 0), ('stylegan3-r', 2), ('stylegan2', 2)])
def test_round_trip(tmp_path, name, c_dim):
    G, D = small(name, c_dim=c_dim)
    E, _ = small(name, c_dim=c_dim)
    with torch.no_grad():
        for p in E.parameters(): p.add_(1)
    c = load(save(tmp_path/'x.safetensors', G, D, E, **ABOUT))
    assert equal(c.G, G) and equal(c.D, D) and equal(c.G_ema, E) and not equal(c.G, E)
    assert [type(n) for n in c.networks.values()] == [type(n) for n in (G, D, E)] and c.sampler is c.G_ema
    assert c.G.init_kwargs == G.init_kwargs and c.D.init_kwargs == D.init_kwargs
    assert {k: c.meta[k] for k in ABOUT} == ABOUT
    assert not any(p.requires_grad for p in c.G_ema.parameters()) and all(p.requires_grad for p in c.G.parameters())
    assert not c.G.training
    z, label = torch.randn(2, 24), torch.eye(2) if c_dim else None
    with torch.no_grad():
        noise = {'noise_mode': 'const'} if name == 'stylegan2' else {}
        assert torch.equal(c.G(z, label, **noise), G.eval()(z, label, **noise))
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(c.D(x, label), D.eval()(x, label))

LABELS = ['lip_left', 'lip_right']

def labeled(): return [networks.with_labels(net, 2, 3.) for net in small()]

def test_labels_that_were_gained(tmp_path):
    "Networks and the names of entries come back, and a conversion keeps both"
    (G, D), path = labeled(), tmp_path/'x.safetensors'
    for c in (load(save(path, G, D, G, **ABOUT, labels=LABELS)),
              checkpoints.convert(path, tmp_path/'y.safetensors') and load(tmp_path/'y.safetensors')):
        assert (equal(c.G, G) and equal(c.D, D) and c.labels == LABELS
                and (c.G.init_kwargs, c.D.init_kwargs) == (G.init_kwargs, D.init_kwargs))
        assert 'lip_left' in repr(c)
    plain = load(save(path, G, D, **ABOUT))
    assert plain.labels is None and 'lip_left' not in repr(plain)
    assert load(save(path, *small(), **ABOUT)).labels is None

def test_names_say_nothing_where_there_are_none(tmp_path, file):
    "The bytes are those from before labels had names"
    with safe_open(file, 'pt') as f:
        assert set(f.metadata()) == {'format', 'cleftgan_nb', 'networks', 'license', 'provenance', 'progress',
                                     'checksum'}
    G, D = small()
    assert save(tmp_path/'x.safetensors', D=D, G_ema=G, **ABOUT, labels=None).read_bytes() == file.read_bytes()

@pytest.mark.parametrize('labels, says', [(['a'], 'labels has 1 names .a., G takes labels of 2 entries'),
                                          (['a', 'a'], 'accepted: None, or a list of different words'),
                                          ('ab', "labels='ab'"), ([1, 2], 'different words'),
                                          ([], 'labels has 0 names'), (['a', ''], 'different words'),
                                          (['a', '\ud800'], 'accepted: .*words'),
                                          ({'a': 0, 'b': 1}, 'a list of different words')])
def test_wrong_names_of_labels(tmp_path, labels, says):
    "Refused in Python, and in a file that claims them"
    G, _ = labeled()
    with pytest.raises(ValueError, match=says): save(tmp_path/'x.safetensors', G, **ABOUT, labels=labels)
    header, numbers = header_of(save(tmp_path/'good.safetensors', G, **ABOUT, labels=LABELS).read_bytes())
    (tmp_path/'good.safetensors').unlink()
    header['__metadata__']['labels'] = json.dumps(labels)
    refuse(tmp_path, pack(header, numbers), says.replace('accepted: None, or a list', 'list'))

def test_freeze_d(tmp_path):
    D = networks.Discriminator(c_dim=0, img_resolution=16, img_channels=3, channel_base=256, channel_max=12,
                               block_kwargs={'freeze_layers': 4})
    c = load(save(tmp_path/'x.safetensors', D=D, **ABOUT))
    assert (equal(c.D, D) and [k for k, _ in c.D.named_parameters()] == [k for k, _ in D.named_parameters()]
            and 'b16.conv0.weight' in dict(c.D.named_buffers()))

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_precision_comes_back(tmp_path, dtype):
    _, D = small()
    assert equal(load(save(tmp_path/'x.safetensors', D=D.to(dtype), **ABOUT)).D, D)

def test_shared_strided_and_double(tmp_path):
    "One network in two roles, tied weights, channels last: only values count"
    G, D = small()
    D.b16.conv0.weight = torch.nn.Parameter(D.b16.conv0.weight.detach().to(memory_format=torch.channels_last))
    D.b16.conv0.bias = D.b16.fromrgb.bias
    c = load(save(tmp_path/'x.safetensors', G, D, G, **ABOUT))
    assert equal(c.G, G) and equal(c.G_ema, G) and equal(c.D, D)
    with torch.no_grad(): c.G.synthesis.input.weight.add_(1)
    assert equal(c.G_ema, G)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half(tmp_path, file, dtype):
    G, D = small()
    half = save(tmp_path/'x.safetensors', D=D, G_ema=G, **ABOUT, dtype=dtype)
    assert half.stat().st_size < .62*file.stat().st_size
    got = load(half).G_ema.state_dict()
    assert {t.dtype for t in got.values()} == {torch.float32}
    for k, t in G.state_dict().items():
        assert torch.equal(got[k], t.to(dtype).float() if k.endswith('weight') else t), k
    if dtype == torch.float16:
        with torch.no_grad(): D.b4.out.weight[0, 0] = 1e6
        with pytest.raises(ValueError, match='too large for torch.float16'): save(half, D=D, **ABOUT, dtype=dtype)

def test_same_bytes_everywhere(tmp_path, file):
    "Even in another process, where Python's hashes differ; loading needs none of PyTorch's compiler, which takes a second"
    code = (f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_checkpoints import *; G, D = "
            f"small(); save({str(tmp_path/'x.safetensors')!r}, D=D, G_ema=G, **ABOUT); "
            "load('phantom-64-cleft-stylegan3-t'), load('phantom-64-stylegan2')\n"
            "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()")
    subprocess.run([sys.executable, '-c', code], check=True, env={**ENV, 'PYTHONHASHSEED': '7'})
    assert (tmp_path/'x.safetensors').read_bytes() == file.read_bytes()
    c = load(file)
    assert (save(tmp_path/'y.safetensors', **c.networks, **{k: c.meta[k] for k in ABOUT}).read_bytes()
            == file.read_bytes())

def test_the_format_is_safetensors(file):
    tensors = load_file(file)
    G, D = small()
    assert tensors.keys() == {f'{r}/{k}' for r, n in dict(D=D, G_ema=G).items() for k in n.state_dict()}
    assert all(torch.equal(t, tensors[f'D/{k}']) for k, t in D.state_dict().items())
    with open(file, 'rb') as f: header = json.loads(f.read(struct.unpack('<Q', f.read(8))[0]))
    assert all(e['data_offsets'][0] % 4 == 0 for k, e in header.items() if k != '__metadata__')

def test_loading_draws_nothing(file):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load(file)
    assert torch.equal(torch.rand(3), expected)

# ---- whole or not at all

def lonely(folder): return sorted(p.name for p in folder.iterdir())

@pytest.mark.parametrize('error', [KeyboardInterrupt(), MemoryError(),
                                   OSError(errno.ENOSPC, 'No space left on device')])
@pytest.mark.parametrize('when', ['write', 'fsync', 'replace'])
def test_failures_leave_the_old_file(tmp_path, monkeypatch, error, when):
    G, D = small()
    old = save(tmp_path/'x.safetensors', G, **ABOUT).read_bytes()
    def fail(*a, **k): raise error
    if when == 'write':   # the header fits on the disk, the third tensor doesn't
        numbers = iter(range(10**6))
        real = torch.Tensor.numpy
        monkeypatch.setattr(torch.Tensor, 'numpy', lambda self, *a: fail() if next(numbers) == 3 else real(self, *a))
    else: monkeypatch.setattr(os, when, fail)
    with pytest.raises(type(error)): save(tmp_path/'x.safetensors', G, D, **ABOUT)
    monkeypatch.undo()
    assert lonely(tmp_path) == ['x.safetensors'] and (tmp_path/'x.safetensors').read_bytes() == old

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_full_disk(tmp_path, monkeypatch):
    "The unfinished part lies on a device that is really full"
    real = open
    monkeypatch.setattr('builtins.open', lambda path, *a, **k: real('/dev/full', 'wb') if '.part' in str(path)
                        else real(path, *a, **k))
    with pytest.raises(OSError, match="No space left on device: '.*/x.safetensors'$"):
        save(tmp_path/'x.safetensors', small()[0], **ABOUT)
    monkeypatch.undo()
    assert lonely(tmp_path) == []

@pytest.mark.parametrize('wrong,match', [
    (dict(progress={'loss': float('nan')}), r"progress\['loss'\] is float 'nan'"),
    (dict(provenance={'file': object()}), r"provenance\['file'\] is object"),
    (dict(provenance={'x': {1: 2}}), 'words as keys'), (dict(license=None), 'license=None; accepted: words'),
    (dict(progress=None), 'progress=None; accepted: a dict'),
    (dict(dtype=torch.int8), 'accepted: None, torch.float16'), (dict(G=torch.nn.Linear(1, 1)), 'G is a Linear'),
    (dict(G='net'), 'G is a str'), (dict(G=None), 'at least one'),
    (dict(G=networks.StyleGAN3Generator), 'G is a type; accepted'),
    (dict(license='CC\udcff'), r"license is str 'CC\\udcff'; accepted: words in UTF-8"),
    (dict(provenance={'file\ud800': 1}), 'provenance is dict with the keys'),
    (dict(provenance={'by': ['\ud800']}), r"provenance\['by'\]\[0\] is str"),
    (dict(progress={'seed': 2**64}), r"progress\['seed'\] is int of 65 bits; .* below 2\^64"),
    (dict(progress={'seed': -10**9000}), 'is int of 29898 bits')])
def test_wrong_arguments_write_nothing(tmp_path, wrong, match):
    with pytest.raises(ValueError, match=match): save(tmp_path/'x.safetensors', **{**ABOUT, 'G': small()[0], **wrong})
    with pytest.raises(ValueError, match='ends in .safetensors'): save(tmp_path/'x.pkl', G=small()[0], **ABOUT)
    assert lonely(tmp_path) == []

def test_an_object_that_looks_like_ours(tmp_path):
    class Fake(torch.nn.Linear): architecture = 'Discriminator'
    class Odd(torch.nn.Linear): architecture = []
    for fake in Fake(1, 1), Odd(1, 1):
        with pytest.raises(ValueError, match=f'D is a {type(fake).__name__}; accepted: StyleGAN3Generator'):
            save(tmp_path/'x.safetensors', D=fake, **ABOUT)
    assert lonely(tmp_path) == []

def test_roles(tmp_path, file):
    "Generators and discriminators in each other's places, on the way in and on the way out"
    G, D = small()
    for role, net in dict(G=D, D=G, G_ema=D).items():
        with pytest.raises(ValueError, match=f'^{role} is a {net.architecture}; accepted: '):
            save(tmp_path/'x.safetensors', **{role: net}, **ABOUT)
    assert lonely(tmp_path) == []
    header, numbers = header_of(file.read_bytes())
    swap = {'D': 'G', 'G_ema': 'D'}
    nets = json.loads(header['__metadata__']['networks'])
    header['__metadata__']['networks'] = json.dumps({swap[r]: n for r, n in nets.items()})
    header = {k if k == '__metadata__' else f"{swap[k.split('/')[0]]}/{k.split('/', 1)[1]}": v
              for k, v in header.items()}
    refuse(tmp_path, pack(header, numbers), 'G is a Discriminator|D is a StyleGAN3Generator')

@pytest.mark.parametrize('kwargs,match', [(dict(margin_size=-20), 'G asks for margin_size=-20; accepted: 0 to 256'),
                                          (dict(margin_size=300), 'G asks for margin_size=300'),
                                          (dict(num_layers=65), 'num_layers=65')])
def test_what_load_refuses_is_not_saved(tmp_path, kwargs, match):
    G, _ = small()
    G.init_kwargs = {**G.init_kwargs, **kwargs}
    old = save(tmp_path/'x.safetensors', D=small()[1], **ABOUT).read_bytes()
    with pytest.raises(ValueError, match=match): save(tmp_path/'x.safetensors', G, **ABOUT)
    assert lonely(tmp_path) == ['x.safetensors'] and (tmp_path/'x.safetensors').read_bytes() == old

def test_changed_networks_are_not_saved(tmp_path):
    "Tensors that do not follow from the keywords could not be loaded"
    _, D = small()
    D.register_buffer('more', torch.zeros(1))
    with pytest.raises(ValueError, match='D has 1 tensors that its architecture does not: more'):
        save(tmp_path/'x.safetensors', D=D, **ABOUT)
    D = small()[1]
    D.b4.out.bias = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r'b4.out.bias is \[2\] and should be \[1\]'):
        save(tmp_path/'x.safetensors', D=D, **ABOUT)
    assert lonely(tmp_path) == []

def test_the_deepest_metadata_and_the_longest(tmp_path, monkeypatch):
    "What can be saved can be loaded, even at the limits"
    deep = 1
    for _ in range(16): deep = {'x': deep}
    about = {**ABOUT, 'provenance': deep, 'progress': {'seed': 2**64-1, 'least': 1-2**64}}
    D = small()[1]
    c = load(save(tmp_path/'x.safetensors', D=D, **about))
    assert {k: c.meta[k] for k in about} == about
    with pytest.raises(ValueError, match='provenance'):
        save(tmp_path/'y.safetensors', D=D, **{**ABOUT, 'provenance': {'x': deep}})
    monkeypatch.setattr(checkpoints.store, '_LONGEST', 1000)
    with pytest.raises(ValueError, match='a header of .* accepted: up to 1000'):
        save(tmp_path/'y.safetensors', D=D, **ABOUT)
    assert lonely(tmp_path) == ['x.safetensors']

def test_saving_draws_nothing(tmp_path):
    D = small()[1]
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    save(tmp_path/'x.safetensors', D=D, **ABOUT)
    assert torch.equal(torch.rand(3), expected)

def test_endless_metadata(tmp_path):
    loop = {}
    loop['loop'] = loop
    with pytest.raises(ValueError, match='provenance'):
        save(tmp_path/'x.safetensors', G=small()[0], **{**ABOUT, 'provenance': loop})

def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='make it first'):
        save(tmp_path/'no'/'x.safetensors', G=small()[0], **ABOUT)
    (tmp_path/'y.safetensors').mkdir()
    with pytest.raises(ValueError, match='is a folder'): save(tmp_path/'y.safetensors', G=small()[0], **ABOUT)
    (tmp_path/'real').mkdir()
    (tmp_path/'link.safetensors').symlink_to(tmp_path/'real'/'x.safetensors')
    save(tmp_path/'link.safetensors', G=small()[0], **ABOUT)
    assert (tmp_path/'link.safetensors').is_symlink() and load(tmp_path/'real'/'x.safetensors')

@pytest.mark.parametrize('function', ['open', 'replace'])
def test_errors_name_the_file_and_not_its_part(tmp_path, monkeypatch, function):
    real = open
    def denied(path, *a, **k):
        if '.part' not in str(path): return real(path, *a, **k)
        raise OSError(errno.EACCES, 'Permission denied', path, None, *a[:1] if function == 'replace' else ())
    monkeypatch.setattr(*(('builtins.open', denied) if function == 'open' else (os, 'replace', denied)))
    with pytest.raises(PermissionError) as e: save(tmp_path/'x.safetensors', G=small()[0], **ABOUT)
    monkeypatch.undo()
    assert (str(e.value) == f"[Errno {errno.EACCES}] Permission denied: '{tmp_path/'x.safetensors'}'"
            and lonely(tmp_path) == [])

def test_a_name_too_long(tmp_path):
    with pytest.raises(OSError) as e: save(tmp_path/f'{"x"*235}.safetensors', G=small()[0], **ABOUT)
    assert '.part' not in str(e.value) and 'xxx.safetensors' in str(e.value)

@pytest.mark.parametrize('wrong', [None, 3, b'x.safetensors', ['x.safetensors']])
def test_no_paths(tmp_path, wrong):
    for f, name in [(load, 'path'), (sha256, 'path'), (lambda p: save(p, G=small()[0], **ABOUT), 'path'),
                    (lambda p: checkpoints.convert(p, tmp_path/'y.safetensors'), 'src'),
                    (lambda p: checkpoints.convert(tmp_path/'x.pkl', p), 'dst'),
                    (lambda p: atomic(p).__enter__(), 'path')]:
        with pytest.raises(ValueError) as e: f(wrong)
        assert str(e.value) == f'{name}={wrong!r}; accepted: a str or a Path'

SAVER = """
import os, sys; sys.path.insert(0, {tests!r})
from test_checkpoints import *
torch.set_num_threads(1)
G, D = small()
save({path!r}, G, D, G, **ABOUT)   # the first one takes a second, and all that follow a twentieth
print('ready', flush=True)
for line in sys.stdin:
    pid = os.fork()   # a fresh process to kill, without the seconds that importing torch takes
    while pid == 0: save({path!r}, G, D, G, **ABOUT)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print('gone', flush=True)
"""

def test_kill(tmp_path):
    "SIGKILL at any moment leaves a file that loads; the next save removes the remains"
    path = tmp_path/'x.safetensors'
    G, D = small()
    old, rng, seen, parts = save(path, G, **ABOUT).read_bytes(), np.random.default_rng(0), [], 0
    with subprocess.Popen([sys.executable, '-c', SAVER.format(tests=os.path.dirname(__file__), path=str(path))],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV) as p:
        assert p.stdout.readline() == 'ready\n'
        for attempt in range(25):
            save(path, G, **ABOUT)
            assert lonely(tmp_path) == ['x.safetensors']
            p.stdin.write('go\n')
            p.stdin.flush()
            pid = int(p.stdout.readline())
            if attempt % 5 == 4:   # catch it in the act
                deadline = time.time() + 10
                while not any(n.endswith('.part') for n in lonely(tmp_path)) and time.time() < deadline: pass
            elif attempt % 5 == 3:   # and after the act, however slow the machine is
                deadline = time.time() + 30
                while path.read_bytes() == old and time.time() < deadline: time.sleep(.01)
            else: time.sleep(rng.uniform(0, .2))
            os.kill(pid, signal.SIGKILL)
            assert p.stdout.readline() == 'gone\n'
            parts += any(n.endswith('.part') for n in lonely(tmp_path))
            seen.append(len(load(path).networks))
            assert path.read_bytes() == old if seen[-1] == 1 else equal(load(path).D, D)
        p.stdin.close()
    save(path, G, **ABOUT)
    assert lonely(tmp_path) == ['x.safetensors']
    assert {1, 3} == set(seen) and parts   # old files, new files and remains were all seen

def test_another_process_at_work_is_left_alone(tmp_path):
    mine, other = [tmp_path/f'.x.safetensors@{who}.{"0"*16}.part'
                   for who in (f'{socket.gethostname()}-{os.getppid()}', 'elsewhere-1')]
    mine.mkdir()
    other.mkdir()
    save(tmp_path/'x.safetensors', small()[0], **ABOUT)
    assert mine.exists() and other.exists()

# ---- broken and hostile files

def header_of(data, checksum=False):
    "Split a file into header and numbers, without the checksum, which a forger drops or makes anew"
    end = 8 + struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:end])
    if not checksum: header['__metadata__'].pop('checksum', None)
    return header, data[end:]

def pack(header, numbers):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + numbers

def refuse(tmp_path, data, match=None):
    (tmp_path/'bad.safetensors').write_bytes(data)
    with pytest.raises(ValueError, match=match) as e: load(tmp_path/'bad.safetensors')
    assert (str(e.value).startswith('bad.safetensors cannot be loaded: ') and len(str(e.value)) < 1200
            and '\n' not in str(e.value))
    assert lonely(tmp_path) == ['bad.safetensors']

def changed(entry=None, meta=None, name='D/b4.out.bias'):
    "Make a function that changes one tensor's entry or the metadata"
    def change(header):
        if entry: header[name].update(entry)
        if meta: header['__metadata__'].update(meta)
    return change

def drop(name):
    def change(header): del header[name]
    return change

def config(role, **kwargs):
    def change(header):
        nets = json.loads(header['__metadata__']['networks'])
        nets[role]['kwargs'].update(kwargs)
        header['__metadata__']['networks'] = json.dumps(nets)
    return change

CHANGES = {
    'other dtype': (changed({'dtype': 'F16'}), 'do not fit together'),
    'unknown dtype': (changed({'dtype': 'Q4'}), 'accepted: F64'),
    'dtype a list': (changed({'dtype': []}), 'accepted: F64'),
    'negative offset': (changed({'data_offsets': [-4, 0]}), 'do not fit'),
    'no offsets': (changed({'data_offsets': []}), 'without dtype'),
    'giant': (changed({'shape': [2**39, 2**39], 'data_offsets': [0, 2**62]}), 'do not fit'),
    'overlap': (changed({'data_offsets': [0, 4]}), 'overlaps|gap'),
    'float shape': (changed({'shape': [1.0]}), 'do not fit'), 'bool shape': (changed({'shape': [True]}), 'do not fit'),
    'missing tensor': (drop('D/b4.out.bias'), 'gap|fill'), 'no metadata': (drop('__metadata__'), 'another project'),
    'metadata not words': (changed(meta={'x': 1}), 'another project'),
    'version 2': (changed(meta={'cleftgan_nb': '2'}), 'format 2; this version reads 1: update'),
    'networks no JSON': (changed(meta={'networks': '{'}), 'networks is damaged'),
    'networks a list': (changed(meta={'networks': '[]'}), 'not as saved'),
    'unknown role': (changed(meta={'networks': '{"H": {}}'}), 'not as saved'),
    'progress a number': (changed(meta={'progress': '1'}), 'not as saved'),
    'deep JSON': (changed(meta={'progress': '['*100000}), 'progress is damaged'),
    'NaN': (changed(meta={'half': 'I8'}), 'half type'),
    'config empty': (changed(meta={'networks': '{"D": {}, "G_ema": {}}'}), 'accepted: an architecture of'),
    'one network missing': (changed(meta={'networks': '{"D": {}}'}), 'disagree about G_ema'),
    'resolution 32': (config('D', img_resolution=32), 'lacks .* tensors'),
    'resolution 8': (config('D', img_resolution=8), 'lacks|does not'),
    'resolution 2^20': (config('D', img_resolution=2**20), 'accepted: 0 to 4096'),
    'unknown keyword': (config('D', wings=2), 'wings'), 'wide': (config('G_ema', channel_max=16), 'lacks'),
    'wide D': (config('D', channel_max=16), 'should be'),
    'wrong type': (config('G_ema', img_resolution='16'), 'cannot be built'),
    'deep kwargs': (lambda h: h['__metadata__'].update(networks=h['__metadata__']['networks'].replace('{"c_dim',
            '{"x": ' + '{"x": '*900 + '1' + '}'*900 + ', "c_dim', 1)), 'accepted'),
    'deep progress': (changed(meta={'progress': '{"x": '*900 + '1' + '}'*900}), 'its metadata'),
    'list': (config('D', img_resolution=[1]), 'has a list for img_resolution'),
    'NaN in progress': (changed(meta={'progress': '{"kimg": NaN}'}), "is float 'nan'"),
    'huge number': (config('G_ema', z_dim=10**400), 'is int of 1329 bits'),
    'huge progress': (changed(meta={'progress': '{"kimg": 1' + '0'*400 + '}'}), 'int of 1329 bits'),
    'labels no JSON': (changed(meta={'labels': '['}), 'labels is damaged'),
    'labels of nothing': (changed(meta={'labels': 'null'}), 'labels=None'),
    'labels for none': (changed(meta={'labels': '["a"]'}), 'takes labels of 0'),
    'architecture a list': (changed(meta={'networks': '{"D": {"architecture": [], "kwargs": {}}, "G_ema": '
                                                      '{"architecture": [], "kwargs": {}}}'}),
                            'accepted: an architecture'),
    'endless layers': (config('G_ema', num_layers=10**9), 'accepted: 0 to 64'),
    'huge filter': (config('G_ema', filter_size=10**5), 'accepted: 0 to 32'),
    'architecture': (changed(meta={'networks': '{"D": {"architecture": "os.system", "kwargs": {}}, '
                                               '"G_ema": {"architecture": [], "kwargs": {}}}'}),
                     'accepted: an architecture'),
}

@pytest.mark.parametrize('what', CHANGES)
def test_changed_headers(tmp_path, file, what):
    change, match = CHANGES[what]
    header, numbers = header_of(file.read_bytes())
    change(header)
    refuse(tmp_path, pack(header, numbers), match)

def test_missing_and_surplus_tensors(tmp_path, file):
    def rewrite(change):
        tensors, (header, _) = load_file(file), header_of(file.read_bytes())
        change(tensors)
        header['__metadata__'].pop('checksum', None)
        save_file(tensors, tmp_path/'bad.safetensors', header['__metadata__'])
        return (tmp_path/'bad.safetensors').read_bytes()
    assert (tmp_path/'bad.safetensors').write_bytes(rewrite(lambda t: None)) and load(tmp_path/'bad.safetensors')
    refuse(tmp_path, rewrite(lambda t: t.pop('D/b4.out.bias')), 'D lacks 1 tensors of its architecture: b4.out.bias')
    refuse(tmp_path, rewrite(lambda t: t.update({'D/more': torch.zeros(1)})),
           'D has 1 tensors that its architecture does not: more')
    refuse(tmp_path, rewrite(lambda t: t.update({'H/more': torch.zeros(1)})), 'disagree about H')
    refuse(tmp_path, rewrite(lambda t: t.update({'D/b4.out.bias': torch.zeros(2)})),
           r'b4.out.bias is \[2\] and should be \[1\]')
    refuse(tmp_path, rewrite(lambda t: t.update({'D/b4.out.bias': torch.zeros(1, dtype=torch.int32)})),
           'torch.int32 and should be a float')
    (tmp_path/'bad.safetensors').unlink()

def test_broken_files(tmp_path, file):
    data = file.read_bytes()
    header, numbers = header_of(data)
    for percent in range(0, 100, 5): refuse(tmp_path, data[:len(data)*percent//100], 'claims a header|fill|damaged')
    refuse(tmp_path, data[:-1], 'fill')
    refuse(tmp_path, data + b'\0', 'fill')
    for length in (2**63, 2**64-1, len(data), len(data)-7, 10**8+1, 0, 1):
        refuse(tmp_path, struct.pack('<Q', length) + data[8:], 'claims a header')
    for text in (b'[]', b'null', b'"x"', b'{"a":', b'\xff\xfe{}', b'['*10**6, b'{"__metadata__":{}}',
                 b'{"a":1,"a":2}', b'{"a":[]}', b'1'*5000):
        refuse(tmp_path, pack(text, numbers))
    twice = json.dumps(header)[:-1] + ', "D/b4.out.bias": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    refuse(tmp_path, pack(twice.encode(), numbers), 'names something twice')
    overlap = {**header, 'D/b4.out.bias': header['D/b4.fc.bias'] | {'shape': [12]}}
    refuse(tmp_path, pack(overlap, numbers), 'overlaps|do not fit|gap')

def test_other_safetensors(tmp_path):
    save_file({'weight': torch.zeros(3)}, tmp_path/'bad.safetensors')
    refuse(tmp_path, (tmp_path/'bad.safetensors').read_bytes(), 'another project .its metadata has nothing')
    save_file({'weight': torch.zeros(3)}, tmp_path/'bad.safetensors', {'format': 'pt'})
    refuse(tmp_path, (tmp_path/'bad.safetensors').read_bytes(), 'another project .its metadata has format')

def test_claims_cost_nothing(tmp_path, file):
    "Neither a header nor a configuration makes the computer reserve what it claims"
    data = file.read_bytes()
    header, numbers = header_of(data)
    config('G_ema', channel_base=2**20, channel_max=8192, img_resolution=4096)(header)
    load(file)
    with at_most(60e6):
        refuse(tmp_path, struct.pack('<Q', 10**8) + data[8:])
        refuse(tmp_path, pack(header, numbers), 'accepted: up to')

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_not_finite_is_flagged(tmp_path, value):
    _, D = small()
    with torch.no_grad(): D.b4.out.weight[0, 0] = value
    save(tmp_path/'x.safetensors', D=D, **ABOUT)
    with pytest.warns(UserWarning, match='not finite: D/b4.out.weight'): c = load(tmp_path/'x.safetensors')
    assert c.meta['nonfinite'] == ['D/b4.out.weight'] and 'NOT FINITE: D/b4.out.weight' in repr(c)
    with pytest.raises(ValueError, match='has no generator, only D'): c.sampler

@pytest.mark.skipif(os.name == 'nt', reason='no permissions there')
def test_a_converted_checkpoint_is_as_private_as_before(tmp_path, file):
    (tmp_path/'x.safetensors').write_bytes(file.read_bytes())
    (tmp_path/'x.safetensors').chmod(0o600)
    checkpoints.convert(tmp_path/'x.safetensors', tmp_path/'y.safetensors')
    assert (tmp_path/'y.safetensors').stat().st_mode & 0o777 == 0o600

def test_wrong_paths(tmp_path):
    for name in 'x.safetensors', 'x.pkl':
        with pytest.raises(FileNotFoundError, match='give the path of a checkpoint'): load(tmp_path/name)
    (tmp_path/'y.safetensors').mkdir()
    for folder in tmp_path, tmp_path/'y.safetensors':
        with pytest.raises(ValueError, match='is a folder; give the name of a file'): load(folder)
    for name in 'x.pt', 'x', 'x.SAFETENSOR': 
        with pytest.raises(ValueError, match='accepted: .safetensors, .pkl'): load(tmp_path/name)

def test_reprs(file):
    c = load(file)
    assert 'StyleGAN3Generator' in repr(c) and 'CC-BY-4.0' in repr(c) and 'kimg' in c._repr_html_()
    c.meta['license'] = '<b>'
    assert '<b>' not in c._repr_html_().replace('<p><b>', '')

@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage(tmp_path, file, data):
    "A changed file raises ValueError or says what it said before, nothing else"
    good = file.read_bytes()
    bad = bytearray(good)
    header = 8 + struct.unpack('<Q', good[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, header if data.draw(st.booleans()) else len(bad)-1))] = data.draw(st.integers(0,
                255))
    if data.draw(st.booleans()):
        a = data.draw(st.integers(0, header))
        del bad[a:a+data.draw(st.integers(0, 40))]
    (tmp_path/'bad.safetensors').write_bytes(bad)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: c, was = load(tmp_path/'bad.safetensors'), load(file)
        except ValueError: return
    if c.meta['checked']:
        assert (all(equal(c.networks[r], net) for r, net in was.networks.items())
                and c.meta | {'file': file.name} == was.meta)

def test_one_bit_is_told(tmp_path, file):
    "Each flip, in numbers or words, is refused or changes nothing that the file says"
    good, was, rng, refused = file.read_bytes(), load(file), np.random.default_rng(0), 0
    end = 8 + struct.unpack('<Q', good[:8])[0]
    for at in [*rng.integers(end, len(good), 40), *rng.integers(8, end, 40), good.index(b'12.5') + 1,
               good.index(b'CC-BY') + 1]:
        bad = bytearray(good)
        bad[at] ^= 1 << rng.integers(7)
        (tmp_path/'bad.safetensors').write_bytes(bad)
        try: c = load(tmp_path/'bad.safetensors')
        except ValueError:
            refused += 1
            continue
        assert (all(equal(c.networks[r], net) for r, net in was.networks.items())
                and c.meta | {'file': file.name, 'checked': True} == was.meta)
    assert refused >= 80
    bad = bytearray(good)
    bad[-5] ^= 1
    (tmp_path/'bad.safetensors').write_bytes(bad)
    for reader in load, checkpoints.read_tensors:
        with pytest.raises(ValueError, match='bad.safetensors cannot be (loaded|read): its checksum differs: some of '
                                             'it is no longer what was written'):
            reader(tmp_path/'bad.safetensors')

def test_a_checksum_is_of_what_a_file_says(tmp_path, file):
    "The same content in another order has the same checksum; an old file has none, and says so"
    header, numbers = header_of(file.read_bytes(), checksum=True)
    save_file(load_file(file), tmp_path/'turned.safetensors', dict(reversed(header['__metadata__'].items())))
    old = tmp_path/'old.safetensors'
    old.write_bytes(pack(*header_of(file.read_bytes())))
    for name, checked in ('turned', True), ('old', False):
        c = load(tmp_path/f'{name}.safetensors')
        assert (c.meta['checked'] is checked and ('no checksum: written before' in repr(c)) is not checked
                and equal(c.D, load(file).D))

def test_a_long_header_is_not_read(tmp_path, file):
    "As JSON it would take thirty times its size"
    for text in b'{"a":[' + b'{},'*2*10**6 + b'{}]}', b'{"a":"' + b'x'*5*10**6 + b'"}':
        (tmp_path/'bad.safetensors').write_bytes(pack(text, b''))
        for reader in load, checkpoints.read_tensors:
            with at_most(30e6), pytest.raises(ValueError,
                                              match=f'claims a header of {len(text)} bytes.* accepted: up to 4194304'):
                reader(tmp_path/'bad.safetensors')

def test_a_file_called_like_a_model_that_ships(tmp_path, monkeypatch):
    "A checkpoint's name has a suffix, so this one means the shipped model"
    monkeypatch.chdir(tmp_path)
    name = next(iter(checkpoints.shipped()))
    for make in Path.touch, lambda p: (p.unlink(), p.mkdir()):
        make(Path(name))
        assert (load(name).meta['file'] == f'{name}.safetensors'
                and checkpoints.find(name) == checkpoints.shipped()[name])

# ---- other files of ours, and other layouts

def a_run(folder):
    "Make the files of a run that matter here"
    folder.mkdir()
    G, D = small('stylegan2', 8)
    for n in '000008', '000012.5', '000010': save(folder/f'network-{n}.safetensors', D=D, G_ema=G, **ABOUT)
    checkpoints.write_tensors(folder/'state.safetensors', {'path_mean': torch.zeros(())}, {'run': '{}'})
    return folder

@pytest.mark.parametrize('command', [['sample'], ['info'], ['measure', '--real', 'none.zip'], ['convert', 'x.safetensors'],
                                     ['train', '--resume-from']])
def test_a_state_is_no_checkpoint(tmp_path, monkeypatch, capsys, command):
    "Every command says what it is, and which file to take"
    run = a_run(tmp_path/"a run")
    monkeypatch.chdir(tmp_path)
    name, *more = command
    given = [str(run/'state.safetensors'), *more]
    if name == 'measure': monkeypatch.setattr('cleftgan_nb.cli._real', lambda *_: None)
    if name == 'train':
        with pytest.raises(ValueError) as e: load(given[0])   # as training does, after it has read its data
        said = str(e.value)
    else:
        assert main([name, *given]) == 2
        said = capsys.readouterr().err
    assert 'the state of a run' in said and f"take '{run}/network-000012.5.safetensors'" in said, said
    assert f"cleftgan train '{run}'" in said and 'another project' not in said

def test_a_folder_of_a_run(tmp_path):
    with pytest.raises(ValueError, match='a folder; give the name of a file, .*network-000012.5.safetensors'):
        load(a_run(tmp_path/'run'))

def test_other_files_of_ours(tmp_path):
    from cleftgan_nb.explore.inversion import save_latents
    with pytest.raises(ValueError, match='it is latents.* not networks'):
        load(save_latents(tmp_path/'ws.safetensors', torch.zeros(1, 2, 3), 'G'))

@pytest.mark.parametrize('name,c_dim', [('stylegan3-t', 0), ('stylegan3-r', 2), ('stylegan2', 2)])
def test_published_layout(tmp_path, name, c_dim):
    "Names and numbers of the published state dict, and back again"
    G, D = small(name, c_dim=c_dim, D_kwargs=dict(mapping_kwargs=dict(lr_multiplier=.1)) if c_dim else None)
    file = save(tmp_path/'ours.safetensors', G, D, G, **ABOUT)
    theirs = tmp_path/'theirs.safetensors'
    for role, net in dict(G_ema=G, D=D).items():
        args = ['--role', role] if role == 'D' else []
        assert main(['convert', str(file), str(theirs), '--layout', 'stylegan3', '--force', *args]) == 0
        state = load_file(theirs)
        assert state.keys() == net.state_dict().keys() and all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())
        with safe_open(theirs, 'pt') as f: words = f.metadata()
        given = json.loads(words['init_kwargs'])
        assert words['class_name'].startswith('training.networks_') and words['network'] == role
        assert given['conv_clamp'] == 256 and given['num_fp16_res'] == 0 and given['c_dim'] == c_dim
        assert not {'dtype', 'channels_last', 'label'} & (given.keys() | given['mapping_kwargs'].keys())
        assert main(['convert', str(theirs), str(tmp_path/'back.safetensors'), '--force']) == 0
        for got in load(theirs), load(tmp_path/'back.safetensors'):
            assert equal(got.networks[role], net) and list(got.networks) == [role]
            assert got.meta['license'] == ABOUT['license'] and got.meta['progress'] == ABOUT['progress']
            x = torch.randn(4, 3, 16, 16) if role == 'D' else torch.randn(4, 24)
            c, noise = torch.eye(2).repeat(2, 1) if c_dim else None, {} if role == 'D' else dict(noise_mode='const')
            with torch.no_grad(): assert torch.equal(got.networks[role](x, c, **noise), net.eval()(x, c, **noise))

def test_the_published_layout_says_no(tmp_path, file):
    labels = save(tmp_path/'labels.safetensors', **dict(zip(('G_ema', 'D'), labeled())), **ABOUT, labels=LABELS)
    for role, term in dict(G_ema='mapping_kwargs.label', D='epilogue_kwargs.label').items():
        with pytest.raises(ValueError, match=f'{term}=.* gained its labels here, by a term that no published'):
            checkpoints.convert(labels, tmp_path/'x.safetensors', layout='stylegan3', role=role)
    for wrong, says in (dict(layout='stylegan4'), 'stylegan4.*accepted: stylegan3'), (dict(role='D'), 'without a layout'), \
                       (dict(layout='stylegan3', role='G'), 'good.safetensors has D, G_ema'):
        with pytest.raises(ValueError, match=says): checkpoints.convert(file, tmp_path/'x.safetensors', **wrong)
    state = load(file).sampler.state_dict()
    save_file(state, tmp_path/'bare.safetensors')
    with pytest.raises(ValueError, match='without its constructor keywords.*init_kwargs'): load(tmp_path/'bare.safetensors')
    for words, says in (dict(init_kwargs='{"wings": 2}'), 'refused: the keyword wings'), (dict(init_kwargs='7'), 'JSON'), \
                       (dict(init_kwargs='{"img_resolution": 16}', network='D'), 'D is a StyleGAN3Generator'), \
                       (dict(init_kwargs='{"img_resolution": 1000000}'), 'accepted: 0 to 4096'), \
                       (dict(init_kwargs='{}', network='E'), 'accepted: G, D, G_ema'), \
                       (dict(init_kwargs='{}', provenance='[]'), 'not as saved'):
        save_file(state, tmp_path/'bad.safetensors', words)
        with pytest.raises(ValueError, match=says): load(tmp_path/'bad.safetensors')

def test_a_published_state_dict_with_its_keywords(tmp_path):
    "Written by anyone, without our metadata"
    G, _ = small('stylegan2', 8)
    save_file({k: v.half() for k, v in G.state_dict().items()}, tmp_path/'x.safetensors',
              {'init_kwargs': json.dumps({k: v for k, v in G.init_kwargs.items() if k != 'mapping_kwargs'})})
    c = load(tmp_path/'x.safetensors')
    assert equal(c.G_ema.half(), G.half()) and c.meta['license'] == checkpoints.UNKNOWN and not c.meta['checked']
    checkpoints.convert(tmp_path/'x.safetensors', tmp_path/'y.safetensors', license='CC0-1.0')
    assert load(tmp_path/'y.safetensors').meta['license'] == 'CC0-1.0'

# ---- ONNX

def sampled(name, c_dim, **more):
    "Build a small generator whose every tensor counts"
    G = small(name, 8, G_kwargs=dict(mapping_kwargs=dict(num_layers=1)) | more)[0].eval()
    if c_dim: G = networks.with_labels(G, c_dim)
    for k, v in G.state_dict().items():
        if k.endswith(('label.weight', 'noise_strength', 'w_avg')): v.normal_()
    return G

@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "Export a StyleGAN2 with labels that it gained"
    pytest.importorskip('onnxruntime')
    file = save(tmp_path_factory.mktemp('onnx')/'x.safetensors', G_ema=sampled('stylegan2', 2), **ABOUT)
    assert main(['convert', str(file), str(file.with_suffix('.onnx'))]) == 0
    return file

@pytest.mark.parametrize('name', ['stylegan2', 'stylegan3-r'])
def test_onnx(tmp_path, exported, name):
    "The exported file alone, at sizes that neither the export nor its check has seen"
    file = exported
    if name == 'stylegan3-r':
        G = sampled(name, 0, num_layers=2, num_critical=1, dtype='bfloat16')
        file = save(tmp_path/'x.safetensors', G_ema=G, **ABOUT)
        assert 'largest difference' in repr(checkpoints.export(file, tmp_path/'x.onnx'))
    data, G = file.with_suffix('.onnx').read_bytes(), load(file).G_ema
    assert b'site-packages' not in data and b'cleftgan_nb/' not in data and ABOUT['license'].encode() in data
    other = networks.from_config(dict(architecture=G.architecture, kwargs=G.init_kwargs | dict(dtype='float32')))
    other.load_state_dict(G.state_dict())
    session = pytest.importorskip('onnxruntime').InferenceSession(data)
    for n, psi in (1, .5), (4, 1.), (7, .7):
        z, c = torch.randn(n, 24), torch.rand(n, 2) if G.c_dim else None
        given = {'z': z.numpy(), 'truncation_psi': np.array(psi, np.float32), **({'c': c.numpy()} if G.c_dim else {})}
        with torch.no_grad(), ops.use_impl('definition'): want = other(z, c, truncation_psi=psi, noise_mode='const')
        got = torch.from_numpy(session.run(None, given)[0])
        assert got.shape == want.shape and (got - want).abs().max() < 1e-4*want.abs().max()

def test_a_wrong_onnx_is_never_written(tmp_path, monkeypatch, exported):
    "Not even one that is right for one image at a time"
    import onnx
    from cleftgan_nb.checkpoints import standalone
    def only_one(sampler, node=onnx.helper.make_node):
        model = onnx.load(exported.with_suffix('.onnx'))
        for o in model.graph.node: o.output[:] = ['right' if k == 'image' else k for k in o.output]
        model.graph.node.extend([node('Shape', ['right'], ['n'], start=0, end=1), node('Cast', ['n'], ['batch'], to=1),
                                 node('Sqrt', ['batch'], ['root']), node('Mul', ['right', 'root'], ['image'])])
        return model
    monkeypatch.setattr(standalone, '_graph', only_one)
    with pytest.raises(ValueError, match='differ from those of the definition.*nothing was written'):
        checkpoints.export(exported, tmp_path/'x.onnx')
    with warnings.catch_warnings(), pytest.raises(ValueError, match='holds for one batch size only'):
        warnings.simplefilter('ignore')
        torch.jit.trace(load(exported).G_ema, (torch.randn(2, 24), torch.rand(2, 2)))
    for name in 'x.ts', 'x.pt':
        with pytest.raises(ValueError, match='one batch size only'): checkpoints.export(exported, tmp_path/name)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(ValueError, match=r'needs onnxscript: pip install cleftgan_nb\[export\]'):
        checkpoints.export(exported, tmp_path/'x.onnx')
    assert main(['convert', str(exported), str(tmp_path/'x.onnx'), '--half', 'float16']) == 2
    assert not list(tmp_path.iterdir())
