"""The study on a cluster: profiles name rules that exist, and scripts talk to a kubectl that only records"""
import os
import re
import subprocess
from pathlib import Path

import pytest, yaml

root = Path(__file__).resolve().parent.parent
cluster = root/'workflow/cluster'


@pytest.mark.parametrize('name', ['slurm', 'kubernetes'])
def test_profile_names_rules_that_exist(name):
    profile = yaml.safe_load((cluster/name/'config.yaml').read_text())
    rules = set(re.findall(r'^rule (\w+):', (root/'workflow/Snakefile').read_text(), re.M))
    assert (rules >= {'base', 'finetune'} and set(profile['set-resources']) <= rules
            and all(o['gpu'] == 1 for o in profile['set-resources'].values()))
    for key in ('submit', 'status', 'cancel'):
        if command := profile.get(f'cluster-generic-{key}-cmd'): assert os.access(root/command.split()[0], os.X_OK)


@pytest.fixture
def ask(tmp_path):
    "Run a script with a kubectl that notes arguments and input and answers as told; return status, words and note"
    kubectl = tmp_path/'bin/kubectl'
    kubectl.parent.mkdir()
    kubectl.write_text('#!/bin/sh\necho "$@" > "$NOTE"; [ "$1" = create ] && cat > "$NOTE.yaml"\nprintf "%s" '
                       '"$ANSWER"; exit ${CODE:-0}\n')
    kubectl.chmod(0o755)
    def ask(script, *arguments, answer='', code=0, cwd=tmp_path, **more):
        env = dict(PATH=f'{kubectl.parent}:{os.environ["PATH"]}', NOTE=str(tmp_path/'note'), ANSWER=answer,
                   CODE=str(code)) | more
        done = subprocess.run([cluster/'kubernetes'/script, *arguments], env=env, cwd=cwd, capture_output=True,
                              text=True)
        return done.returncode, (done.stdout + done.stderr).strip(), tmp_path/'note'
    return ask


def test_submit_describes_the_job(ask, tmp_path):
    place = tmp_path/'a "study", [new]: \\ #1'
    place.mkdir()
    rc, said, note = ask('submit', '4', '32000', '1', f'{place}/job.sh', answer='job.batch/cleftgan-x', cwd=place,
                         IMAGE='python:3.11', CLAIM='study', MOUNT=f'{tmp_path}/')
    assert (rc, said) == (0, 'job.batch/cleftgan-x') and note.read_text().split()[0] == 'create'
    pod = yaml.safe_load(note.with_suffix('.yaml').read_text())['spec']['template']['spec']
    step, = pod['containers']
    assert (step['command'] == ['sh', f'{place}/job.sh'] and step['workingDir'] == str(place)
            and step['volumeMounts'] == [dict(name='study', mountPath=str(tmp_path))])
    assert (step['resources'] == dict(requests=dict(cpu=4, memory='32000M'), limits={'nvidia.com/gpu': 1})
            and pod['volumes'][0]['persistentVolumeClaim'] == dict(claimName='study'))


@pytest.mark.parametrize('missing, words', [('IMAGE', 'IMAGE: is not set: the image'), ('CLAIM', 'CLAIM: is not set'),
                                            ('MOUNT', 'MOUNT: is not set')])
def test_submit_says_what_is_missing(ask, missing, words):
    given = dict(IMAGE='i', CLAIM='c', MOUNT='/')
    del given[missing]
    rc, said, note = ask('submit', '1', '100', '0', 'job.sh', **given)
    assert rc and words in said and not note.exists()


def test_submit_refuses_another_place(ask):
    rc, said, note = ask('submit', '1', '100', '0', 'job.sh', IMAGE='i', CLAIM='c', MOUNT='/elsewhere')
    assert rc and 'is not below MOUNT=/elsewhere' in said and not note.exists()


@pytest.mark.parametrize('answer, code, status',
                         [('found Complete', 0, 'success'), ('found SuccessCriteriaMet Complete', 0, 'success'),
                          ('found Failed', 0, 'failed'), ('found ', 0, 'running'), ('', 0, 'failed'),
                          ('', 1, 'running')])
def test_status(ask, answer, code, status):
    assert ask('status', 'job.batch/x', answer=answer, code=code)[:2] == (0, status)


def test_cancel_does_not_wait(ask):
    rc, _, note = ask('cancel', 'job.batch/x', 'job.batch/y')
    assert rc == 0 and note.read_text().split() == ['delete', '--wait=false', 'job.batch/x', 'job.batch/y']
