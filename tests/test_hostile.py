"""A few of the files that mean harm; `make hostile` makes as many as are wanted."""
import os
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
SEED, INPUTS = 1, 63
HELD = 'checkpoint,pickle,picture,archive,words,log'      # of the kinds that hostile.py knows; that of studies takes seconds of nbconvert


def test_hostile_inputs():
    "In a process of its own, which may take as much memory as it should need"
    made = subprocess.run([sys.executable, root / 'tests/hostile.py', '--seed', str(SEED), '--inputs', str(INPUTS), '--only', HELD], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root)})
    assert made.returncode == 0 and f'{INPUTS} hostile inputs, 0 of them failed' in made.stdout, made.stdout[-3000:] + made.stderr[-2000:]


def test_the_pages_have_these_numbers():
    weekly = int(re.search(r'INPUTS=(\d+) SEED=\$\{\{ github.run_number \}\}', (root / '.github/workflows/hostile.yml').read_text(encoding='utf-8'))[1])
    for page in ('nbs/guide/security.ipynb', 'SECURITY.md'): assert f'{INPUTS} ' in (text := (root / page).read_text(encoding='utf-8')) and f'{weekly:,} every week' in text, page
