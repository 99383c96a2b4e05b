"""The wheel holds the library and nothing else, and works where nothing else is"""
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

root = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command, **more):
    "Return the output of a command, or fail with what it said"
    done = subprocess.run([str(o) for o in command], capture_output=True, text=True, timeout=900, **more)
    assert done.returncode == 0, f'{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Build the wheel from a copy, so that no leftover gets in and nothing gets into the checkout"
    copy = tmp_path_factory.mktemp('source')/'checkout'
    leave = shutil.ignore_patterns('.git', '.venv*', 'outputs', 'build', 'dist', '*.egg-info', '.snakemake',
                                   '__pycache__', '.ipynb_checkpoints')
    shutil.copytree(root, copy, ignore=leave)
    run(sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', copy/'dist', copy)
    [wheel] = (copy/'dist').iterdir()
    return wheel


def test_holds_the_library_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = {o for o in z.namelist() if '.dist-info/' not in o}
        info = {o.split('.dist-info/')[1] for o in z.namelist() if '.dist-info/' in o}
    wanted = [*(root/'cleftgan_nb').rglob('*.py'),
              *(o for folder in ('assets', 'data/assets') for o in (root/'cleftgan_nb'/folder).rglob('*')
                if o.is_file())]
    assert names == {str(o.relative_to(root)) for o in wanted}
    assert {'METADATA', 'entry_points.txt', 'licenses/LICENSE'} <= info


@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    "Make an environment with the wheel and what it asks for, at the pinned versions, and an empty folder to work in"
    folder = tmp_path_factory.mktemp('elsewhere')
    venv.create(folder/'env', with_pip=True)
    run(folder/'env/bin/python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--constraint',
        root/'requirements/dev.txt', wheel)
    (folder/'empty').mkdir()
    env = ({k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
           | dict(PATH=f"{folder / 'env/bin'}:/usr/bin:/bin"))
    return dict(cwd=folder/'empty', env=env)


def test_every_module_imports(elsewhere):
    code = '''if True:
        import cleftgan_nb, importlib, json, pkgutil
        names = [o.name for o in pkgutil.walk_packages(cleftgan_nb.__path__, "cleftgan_nb.")]
        for o in names:
            try: importlib.import_module(o)
            except ModuleNotFoundError as e:
                if e.name != "triton" or not o.startswith("cleftgan_nb.ops.triton_"): raise    # only the kernels for a GPU may need more
        print(json.dumps([cleftgan_nb.__file__, names]))'''
    file, names = json.loads(run('python', '-c', code, **elsewhere))
    assert not file.startswith(str(root)) and 'cleftgan_nb.networks.build' in names


def test_commands_work(elsewhere):
    shown = run('cleftgan', '--help', **elsewhere)
    assert all(o in shown for o in ('convert', 'info', 'new', 'sample'))
    run('cleftgan', 'new', 'stylegan3-t', '--resolution', '32', '--seed', '0', '--set', 'channel_base=2048', '--set',
        'channel_max=64', 'new.safetensors', **elsewhere)
    assert 'untrained' in run('cleftgan', 'info', 'new.safetensors', **elsewhere).lower()
    run('cleftgan', 'sample', 'new.safetensors', '--seeds', '0-1', '--out', 'grid.png', **elsewhere)
    with Image.open(elsewhere['cwd']/'grid.png') as im:
        assert im.size == (64, 32) or min(im.size) >= 32
        assert len(im.getcolors(1 << 16)) > 16, 'one color only'
        assert 'synthetic' in json.dumps(im.text)
    assert (sorted(o.name for o in elsewhere['cwd'].iterdir() if o.suffix in ('.safetensors', '.png'))
            == ['grid.png', 'new.safetensors'])


def test_phantoms_and_cohorts_are_drawn(elsewhere):
    told = run('cleftgan', 'phantom', '--seeds', '3-4', '--severity', '0.6', '--laterality', 'left', '--size', '64',
               '--out', 'phantom.png', **elsewhere)
    assert told.count('••••••L') == 2
    with Image.open(elsewhere['cwd']/'phantom.png') as im:
        assert im.size == (128, 64) and 'synthetic' in json.dumps(im.text)
    run('cleftgan', 'cohort', 'cleft', '--n', '3', '--size', '32', '--out', 'three.zip', **elsewhere)
    with zipfile.ZipFile(elsewhere['cwd']/'three.zip') as z: assert sum(o.endswith('.png') for o in z.namelist()) == 3


def test_photographs_say_what_they_need(elsewhere):
    (elsewhere['cwd']/'photographs').mkdir()
    Image.new('RGB', (64, 64)).save(elsewhere['cwd']/'photographs/one.jpg')
    done = subprocess.run(['cleftgan', 'prepare', 'photographs'], capture_output=True, text=True, timeout=300,
                          **elsewhere)
    assert done.returncode == 2 and 'cleftgan-nb[photos]' in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (elsewhere['cwd']/'photographs-prepared').exists()
