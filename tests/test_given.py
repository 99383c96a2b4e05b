"""What users give is data: through make, the plan of the study, snakemake and its shells"""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cleftgan_nb.study import profiles
from cleftgan_nb.study.parameters import check_parameters
from cleftgan_nb.networks.build import NAMES
from cleftgan_nb.values import read_yaml
from clinic import NAME

root = Path(__file__).resolve().parent.parent
smoke = root/'workflow/profiles/smoke.yaml'
STRANGE = f'''{NAME} `touch pwned` $(shell touch pwned) "; touch pwned" ' $$ \\ %s * &a !b'''
needs_snakemake = pytest.mark.skipif(sys.version_info < (3, 11), reason='snakemake needs Python 3.11')


def load(name):
    "Load a script of workflow/ as a module"
    spec = importlib.util.spec_from_file_location(name, root/f'workflow/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nothing_ran(folder): assert not list(folder.rglob('pwned*'))


# make
GIVEN = 'PROFILE', 'DATA', 'JOBS', 'GPUS', 'SEEDS', 'MORE'

@pytest.fixture
def make(tmp_path):
    "Run make in its own folder, where python only says what it was given"
    python = tmp_path/'.venv/bin/python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!{sys.executable}\nimport json, sys\nif sys.argv[1] != "-c": '
                      'print(json.dumps(sys.argv[1:]))\n')
    python.chmod(0o755)
    (tmp_path/'Makefile').write_bytes((root/'Makefile').read_bytes())
    # `make test` passes its own on
    outside = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k not in GIVEN}
    def make(*words, **env):
        done = subprocess.run(['make', '-o', '.venv/.installed', *words], cwd=tmp_path, env=outside | env,
                              capture_output=True, text=True)
        nothing_ran(tmp_path)
        return done.stdout
    return make


def test_make_hands_on_what_was_given(make):
    given = dict(DATA=STRANGE, PROFILE=STRANGE, JOBS='1; touch pwned', GPUS='$(touch pwned)')
    expected = ['workflow/run.py', f'--profile={STRANGE}', f'--data={STRANGE}', '--cores=1; touch pwned',
                '--gpus=$(touch pwned)', '--preflight', '-n;', '$(touch', 'pwned)']
    assert json.loads(make('study', 'MORE=-n; $(touch pwned)', *(f'{k}={v}' for k, v in given.items()))) == expected
    assert json.loads(make('study', MORE='-n; $(touch pwned)', **given)) == expected
    assert json.loads(make('seeds', 'SEEDS=0 `touch pwned`'))[-1] == '--seeds=0 `touch pwned`'
    assert (json.loads(make('bases', 'MORE=--hours 2 $(shell touch pwned)').splitlines()[-1])[:3]
            == ['workflow/bases.py', '--hours', '2'])
    assert STRANGE in make('help', f'DATA={STRANGE}', f'PROFILE={STRANGE}', f'MORE={STRANGE}')


# profiles and the plan
def test_profiles_are_read_as_before():
    for path in sorted((root/'workflow').rglob('*.yaml')):
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding='utf-8')), path
    for path in smoke.parent.glob('*.yaml'): assert profiles.place(profiles.plan(path)).name == path.stem


@pytest.mark.parametrize('changed, words', [
    (dict(profile='my study'), "profile='my study'; accepted: letters"), (dict(profile='../x'), 'accepted: letters'),
    (dict(profile='-rf'), 'accepted: letters'), (dict(profile='smoke-photographs'), 'accepted: letters'),
    (dict(profile=['smoke']), 'accepted: letters'), (dict(resolution='64; touch pwned'), 'resolution='),
    (dict(cohort=dict(repaired='$(touch pwned)')),
     "cohort.repaired='$(touch pwned)'; accepted: a number from 0 to 1"),
    (dict(cohort=dict(cleft='24')), "cohort.cleft='24'; accepted: a whole"),
    (dict(cohort=dict(cleft=True)), 'cohort.cleft=True'), (dict(cohort=[1]), 'cohort=[1]; accepted: names'),
    (dict(threads='$(touch pwned)'), 'threads='), (dict(networks=['{x}']), 'networks='),
    (dict(networks='stylegan2'), "networks='stylegan2'"), (dict(finetune=dict(kimg=[])), 'finetune.kimg=[]'),
    (dict(compare=dict(n=float('nan'))), 'compare.n=nan'), (dict(bases={'stylegan2': ['x']}), 'bases='),
    (dict(bases={'stylegan2': '{x}.pkl'}), 'no { and }'),
    (dict(resources={'gpu=1 x': 1}), 'resources='), (dict(kimg=3), "'kimg' is not part of a profile"),
    (dict(needs_data='no'), "needs_data='no'"), (dict(photographs=dict(cohort={})), "'cohort' is not part"),
    (dict(photographs=dict(networks=3)), 'networks=3'), (dict(data=7), 'data=7'), (dict(base=None), 'base=None')])
def test_a_profile_that_is_none_says_so(tmp_path, changed, words):
    values = read_yaml(smoke)
    for k, v in changed.items():
        values[k] = values[k] | v if isinstance(v, dict) and k in values and k != 'photographs' else v
    (tmp_path/'mine.yaml').write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError) as caught: profiles.plan(tmp_path/'mine.yaml')
    assert (words in str(caught.value) and 'mine.yaml' in str(caught.value)
            and len(str(caught.value)) < 400 + len(str(tmp_path)))


def test_numbers_of_a_profile_are_read_as_people_write_them(tmp_path, monkeypatch):
    "As are those of the section for photographs, and paths from the home folder"
    values = read_yaml(smoke)
    text = smoke.read_text().replace('cleft: 24 ', 'cleft: 2.4e1 ').replace('threads: 1 ', 'threads: 1.0 ')
    text = text.replace('finetune: {kimg: 0.04,', 'finetune: {kimg: 4e-2,').replace('kimg: 0.16 ', 'kimg: 16e-2 ')
    (tmp_path/'mine.yaml').write_text(text + 'bases: {stylegan2: ~/base.pkl}\ndata: ~/clinic\n')
    (tmp_path/'clinic').mkdir()
    monkeypatch.setenv('HOME', str(tmp_path))
    made, plain = profiles.plan(tmp_path/'mine.yaml'), profiles._for_photographs(values, smoke)
    assert json.dumps([made['cohort'], made['threads']]) == json.dumps([values['cohort'], 1])
    assert made['finetune'] == plain['finetune'] and made['bases'] == dict(stylegan2=f'{tmp_path}/base.pkl')
    assert made['data']['folder'] == str((tmp_path/'clinic').resolve())
    (tmp_path/'mine.yaml').write_text(text.replace('2.4e1', '24.5'))
    with pytest.raises(ValueError, match='cohort.cleft=24.5; accepted: a whole number from 1 to 1000000'):
        profiles.plan(tmp_path/'mine.yaml')


def test_numbers_for_a_notebook_are_read_as_people_write_them():
    "papermill's -p reads 1e-3, its -y leaves it a word; the notebook goes on with numbers"
    rules = dict(n=(2, 100_000), kimg=(0., 1e6), images=list, settings=dict, folder=str)
    text = 'n: 1e3\nkimg: 2e-1\nimages: [1e2, 32.0]\nsettings: {channel_max: 1e1}\nfolder: 1e3'
    for given in (yaml.safe_load(text), dict(n=float('1e3'), kimg=float('2e-1'), images=[100., 32],
                                             settings=dict(channel_max=10), folder='1e3')):
        read = check_parameters(given, **rules)
        assert (read == given
                and json.dumps(read) == '{"n": 1000, "kimg": 0.2, "images": [100, 32], "settings": {"channel_max": 10}, '
                                        '"folder": "1e3"}')
    for value, says in ((8.5, 'n: got 8.5; a whole number from 2 to 100000'), (float('inf'), 'n: got inf'),
                        ('1e9', 'n: got 1000000000;')):
        with pytest.raises(ValueError, match=says): check_parameters(given | dict(n=value), **rules)


def test_networks_are_those_of_the_library(): assert set(profiles.NETWORKS) == set(NAMES)


@pytest.fixture
def seen(tmp_path, monkeypatch):
    "Make a folder of photographs, and plan a study of it"
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path/STRANGE.replace('/', '')/'more').mkdir(parents=True)
    for i in range(3): (folder/f'{i}.jpg').write_bytes(bytes([i]))
    return folder.parent, profiles.plan(smoke, str(folder.parent))


@pytest.mark.parametrize('change', ['added', 'gone', 'renamed', 'changed', 'another folder'])
@pytest.mark.parametrize('when', ['before', 'while'])
def test_other_photographs_than_those_that_were_seen_stop_the_study(seen, monkeypatch, tmp_path, change, when):
    folder, plan = seen
    script = load('photographs')
    done = []
    def meddle():
        one = folder/'more/0.jpg'
        if change == 'added': (folder/'new.jpg').write_bytes(b'x')
        if change == 'gone': one.unlink()
        if change == 'renamed': one.rename(folder/'more/a.jpg')
        if change == 'changed': one.write_bytes(b'y')
        if change == 'another folder':
            folder.rename(tmp_path/'moved')
            folder.symlink_to('moved')
    if when == 'before': meddle()
    monkeypatch.setattr(script, 'prepare', lambda *args, **more: (done.append(args), meddle()))
    Path('outputs').mkdir()
    file = profiles.plan_file(plan)
    file.write_text(json.dumps(plan))
    with pytest.raises(ValueError, match='has changed since the study began'):
        script.main(file, 'outputs/a.zip', 'outputs/b.zip')
    assert len(done) == (when == 'while') and not list(Path('outputs').glob('*.zip'))


def test_photographs_among_the_results_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('outputs/smoke-photographs/prepared').mkdir(parents=True)
    for folder in ('.', 'outputs/smoke-photographs/prepared'):
        with pytest.raises(ValueError, match='apart from it'): profiles.plan(smoke, folder)
    with pytest.raises(ValueError, match='is not a folder'): profiles.plan(smoke, 'nowhere')


def test_a_profile_runs_no_python(tmp_path, monkeypatch):
    "Snakemake's own reader would: it reads templates (YTE)"
    monkeypatch.chdir(tmp_path)
    Path('mine.yaml').write_text(smoke.read_text().replace('profile: smoke',
                                                           'profile: ?__import__("os").system("touch pwned")'))
    with pytest.raises(ValueError, match='accepted: letters'): load('run').main(['--profile=mine.yaml'])
    Path('mine.yaml').write_text(f'__use_yte__: true\n{smoke.read_text()}')
    with pytest.raises(ValueError, match="'__use_yte__' is not part of a profile"):
        load('run').main(['--profile=mine.yaml'])
    nothing_ran(tmp_path)


# snakemake
def study(folder, *more, **env):
    return subprocess.run([sys.executable, str(root/'workflow/run.py'), *more], cwd=folder, env=os.environ | env,
                          capture_output=True, text=True, timeout=300)


@needs_snakemake
def test_the_graph_is_of_the_folder_that_was_given(seen, tmp_path):
    run = study(tmp_path, '--profile=smoke', f'--data={seen[0].name}', '--cores=2', '--dry-run', '--quiet', 'rules')
    assert run.returncode == 0, run.stdout + run.stderr
    file = Path('outputs/.smoke-photographs.json')
    assert json.loads(file.read_text()) == seen[1] and json.loads(file.read_text())['data']['folder'] == str(seen[0])
    assert [o.stat().st_mode & 0o777 for o in (file, Path('outputs/smoke-photographs'))] == [0o600, 0o700]
    nothing_ran(tmp_path)


@needs_snakemake
def test_words_of_a_profile_reach_no_shell(tmp_path):
    values = read_yaml(smoke)
    base = STRANGE.replace('/', '').replace('{x}', '') + '.pkl'
    (tmp_path/base).write_bytes(b'x')
    (tmp_path/'mine.yaml').write_text(yaml.safe_dump(values
                                                       | dict(bases={o: base for o in NAMES},
                                                              finetune=values['finetune']
                                                              | dict(augment='$(touch pwned) \U0001f600',
                                                                     ema_kimg=1e-5))))
    (tmp_path/'outputs/smoke').mkdir(parents=True)
    (tmp_path/'outputs/smoke/cleft.zip').write_bytes(b'x')
    python = tmp_path/'bin/python'
    python.parent.mkdir()
    python.write_text(f'#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open("said.json", "w"))\n')
    python.chmod(0o755)
    run = study(tmp_path, '--profile=mine.yaml', '--cores=1', 'outputs/smoke/finetuned-stylegan2.csv',
                PATH=f'{python.parent}:{os.environ["PATH"]}')
    assert (tmp_path/'said.json').exists(), run.stdout + run.stderr
    said = json.loads((tmp_path/'said.json').read_text())
    parameters = json.loads(said[3])
    assert (run.returncode and len(said) == 4 and (parameters['base'], parameters['augment'], parameters['ema_kimg'])
            == (base, '$(touch pwned) \U0001f600', 1e-5))
    nothing_ran(tmp_path)


@needs_snakemake
def test_the_workflow_takes_nothing_but_a_plan(tmp_path):
    run = subprocess.run([sys.executable, '-m', 'snakemake', '--snakefile', root/'workflow/Snakefile', '--cores',
                          '1', '--config', 'data=clinic #2', '--configfile', smoke], cwd=tmp_path,
                         capture_output=True, text=True, timeout=300)
    assert (run.returncode and 'not a plan; accepted: what python workflow/run.py '
                               '--profile=workflow/profiles/smoke.yaml' in run.stdout + run.stderr)


@pytest.mark.parametrize('more, words', [(['--profile=none'], "no profile 'none'. There are: cpu"),
                                         (['--profile=smoke', '--data=nowhere'], "'nowhere' is not a folder"),
                                         (['--profile=smoke', '--seeds=0 $(x)'], "'$(x)'; accepted: whole numbers"),
                                         (['--profile=smoke', '--cores=1;x'], 'invalid count')])
def test_the_study_says_what_is_wrong(tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, ValueError)) as caught: load('run').main(more)
    assert words in str(caught.value) + capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('outputs').mkdir()
    Path('precious').write_text('x')
    Path('outputs/.lock').symlink_to('../precious')
    with pytest.raises(SystemExit, match='outputs/.lock is a link.*remove it'): load('run').main(['--profile=smoke'])
    assert Path('precious').read_text() == 'x'
    Path('outputs/.lock').unlink()
    load('run').alone().close()
    assert Path('outputs/.lock').stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize('data, mask', [(True, 0o077), (False, 0o022)])
def test_results_of_photographs_are_for_one_account(seen, tmp_path, monkeypatch, data, mask):
    "Those of every process that the study starts, also over several seeds"
    script, masks = load('run'), []
    monkeypatch.setattr(script, 'study', lambda *_: masks.append(os.umask(mask)))
    before = os.umask(0o022)
    try: script.main(['--profile=smoke', f'--data={seen[0].name}' if data else '--data='])
    finally: os.umask(before)
    assert masks == [mask]
