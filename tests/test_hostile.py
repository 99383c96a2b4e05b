"""A few of the hostile files; `make hostile` makes as many as you want"""
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cleftgan_nb.data.datasets import ImageFolderDataset, manifest, verify, write_dataset
from cleftgan_nb.training.watch import read_log

root = Path(__file__).resolve().parent.parent
SEED, INPUTS = 1, 72
# the kinds that hostile.py knows, but for studies, which write pages
HELD = 'checkpoint,pickle,state,picture,archive,words,configuration,log'


def test_hostile_inputs():
    "In its own process, which may take as much memory as it should need"
    made = subprocess.run([sys.executable, root/'tests/hostile.py', '--seed', str(SEED), '--inputs', str(INPUTS),
                           '--only', HELD], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert (made.returncode == 0 and f'{INPUTS} hostile inputs, 0 of them failed'
            in made.stdout), made.stdout[-3000:] + made.stderr[-2000:]


def test_the_pages_have_these_numbers():
    weekly = int(re.search(r'INPUTS=(\d+) SEED=\$\{\{ github.run_number \}\}',
                           (root/'.github/workflows/hostile.yml').read_text(encoding='utf-8'))[1])
    for page in ('nbs/guide/04_security.ipynb', 'SECURITY.md'):
        assert (f'{INPUTS} ' in (text := (root/page).read_text(encoding='utf-8'))
                and f'{weekly:,} every week' in text), page


# What it has found must stay found.
@pytest.mark.parametrize('line', ['['*100_000, '{"kimg": 1' + '0'*400 + '}', '{"kimg": 1, "r_t": 1' + '0'*400 + '}'])
def test_endless_logs(tmp_path, line):
    (tmp_path/'log.jsonl').write_text(line + '\n{"kimg": 2}\n')
    if 'r_t' in line: assert np.isnan(read_log(tmp_path)['r_t'][0])
    else:
        with pytest.raises(ValueError, match='line 1.*accepted: a JSON object'): read_log(tmp_path)


def test_manifests_without_their_columns(tmp_path):
    folder = write_dataset(tmp_path/'x', [(np.zeros((4, 4), np.uint8), None, {})], about=dict(kind='x', license='x'))
    (folder/'manifest.csv').write_text((folder/'manifest.csv').read_text().replace('sha256', 'sha'))
    for read in (manifest, verify):
        with pytest.raises(ValueError, match='no columns file and sha256'): read(folder)


@pytest.mark.parametrize('name', ['x'*60_000 + '.png', '\0.png'])
def test_zips_with_odd_names(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(name.replace('\0', '!'), b'x')
    (tmp_path/'x.zip').write_bytes((tmp_path/'x.zip').read_bytes().replace(b'!', b'\0'))
    with pytest.raises(ValueError) as e: ImageFolderDataset(tmp_path/'x.zip')
    assert 'x.zip' in str(e.value) and len(str(e.value)) < 1000
