"""The study's chain: what it makes, the same each time, and what it refuses"""
import csv
import fcntl
import html
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from PIL import Image

from cleftgan_nb import checkpoints
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.study.profiles import photographs
from cleftgan_nb.files import sha256
from cleftgan_nb.study.provenance import commit, read_recipe
from clinic import N, NAME, clinic

root = Path(__file__).resolve().parent.parent
smoke = root/'workflow/profiles/smoke.yaml'
networks = yaml.safe_load(smoke.read_text())['networks']
trained = [f'{run}-{network}{o}' for run in ('base', 'finetuned') for network in networks
           for o in ('.png', '-lapse.png', '-curves.png', '.csv')]
figures = [*trained, *(f'finetuned-{o}-distance.{e}' for o in networks for e in ('png', 'csv')),
           'augmentation-curves.png', 'augmentation-unseen.png', 'augmentation-settled.csv', 'augmentation.csv',
           'augmentation-effect.csv', 'augmentation-effect.png',
           'cleft.png', 'normal.png', 'people.png', 'clefts.png', 'measures.png', 'measures.csv', 'compared.png',
           'compare.png', 'endpoint.png', 'headline.csv', 'reached.png', 'reached.csv', 'instruments.png', 'instruments.csv',
           'asked.png', 'dose.png', 'dose.csv', 'compare.csv', 'compare-runs.csv',
           'compare-verdicts.csv', 'compare-readable.csv', 'compare-trained.csv', 'compare-noise.csv', 'compare-composition.csv',
           'severity.png', 'severity.csv',
           'walk-w.png', 'walk-z.png', 'walk.gif', 'path-length.csv', 'path-length.png', 'directions.png',
           'directions.csv', 'composition.csv', 'composition.png', 'copies.csv', 'copies-power.png',
           'neighbors-efficientnet_lite0.png', 'neighbors-faces_16.png', 'membership.csv',
           'preprocessing.png',
           *(f'truth-{o}.{e}' for o in ('severity', 'dish', 'power', 'distances', 'copies', 'modes') for e in ('png', 'csv')),
           'usefulness.png', 'usefulness.csv', 'usefulness-gain.csv']
made = [*figures, *(f'{o}.json' for o in figures),
        *(f'{run}-{o}{n}.safetensors' for run in ('base', 'finetuned') for o in networks for n in ('', '-run2')[:1 + (run == 'finetuned')]),
        *(f'finetuned-{o}.gif' for o in networks), 'protocol.json', 'cleft.zip', 'normal.zip', 'unseen.zip']
surveyed = [f'survey-{o}' for o in ('0.csv', 'curves-0.png', 'samples-0.png', 'gans-0.png', 'gans-0.csv', 'gans-curve-0.csv',
                                    'pyramid-0.png', 'pyramid-0.csv')]        # most of them hold core-minutes
timed = ['compare-speed.csv', 'compare-speed.csv.json', 'manifest.json',       # these may differ from run to run
         *surveyed, *(f'{o}.json' for o in surveyed)]
pytestmark = pytest.mark.slow
needs_snakemake = pytest.mark.skipif(sys.version_info < (3, 11), reason='snakemake needs Python 3.11')


def command(folder, profile=smoke, *more):
    "Write the command that runs the workflow in a folder of its own"
    env = os.environ | dict(PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')
    line = [sys.executable, str(root/'workflow/run.py'), f'--profile={profile}', '--cores=2', *more]
    return dict(args=line, cwd=folder, env=env, text=True)


def workflow(folder, *more, profile=smoke):
    return subprocess.run(**command(folder, profile, *more), capture_output=True, timeout=900)


def killed(folder, seconds):
    "Start the workflow, and kill everything after some seconds"
    run = subprocess.Popen(**command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           start_new_session=True)
    try: run.wait(seconds)
    except subprocess.TimeoutExpired: os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(3)   # the notebooks' kernels notice within a second that they are alone


def finished(study='smoke'):
    "Find the results of `make study PROFILE=smoke` in this checkout, if made by this very commit"
    manifest = root/'outputs'/study/'manifest.json'
    if not manifest.exists() or commit() is None or commit().endswith('dirty'): return None
    made = {json.loads(o.read_text())['commit'] for o in [manifest, *manifest.parent.glob('*.*.json')]}
    return root if made == {commit()} else None


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Return the results of two independent runs, the second killed twice"
    first, second = finished() or tmp_path_factory.mktemp('first'), tmp_path_factory.mktemp('second')
    for seconds in random.Random(0).sample(range(8, 24), 2): killed(second, seconds)
    for folder in {first, second} - {root}:
        run = workflow(folder)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return [o/'outputs/smoke' for o in (first, second)]


@needs_snakemake
@pytest.mark.parametrize('name', made)
def test_two_runs_make_the_same_bytes(runs, name):
    first, second = [(o/name).read_bytes() for o in runs]
    # a table has a row below its head
    assert (len(first.splitlines()) > 1 if name.endswith('.csv') else len(first) > 100) and first == second


@needs_snakemake
def test_picture_carries_its_recipe(runs):
    recipe = read_recipe(runs[0]/'finetuned-stylegan3-t-lapse.png')
    assert recipe == json.loads((runs[0]/'finetuned-stylegan3-t-lapse.png.json').read_text())
    assert (recipe['kind'] == 'synthetic' and 'no patient' in recipe['data']
            and '0.08 thousand images' in recipe['title'])
    assert recipe['inputs'] == {'base': sha256(runs[0]/'base-stylegan3-t.safetensors'),
                                'data': sha256(runs[0]/'cleft.zip')}
    assert recipe['parameters']['kimg'] == yaml.safe_load(smoke.read_text())['finetune']['kimg']
    assert {'cleftgan_nb', 'torch', 'python'} <= recipe['versions'].keys() and recipe['machine']['processor']


@needs_snakemake
def test_log_has_a_row_for_each_tick(runs):
    rows = list(csv.DictReader((runs[0]/'finetuned-stylegan3-t.csv').open()))
    assert [float(o['kimg']) for o in rows] == [.04, .08]


@needs_snakemake
def test_fine_tuning_starts_from_the_base(runs):
    base, tuned = [checkpoints.load(runs[0]/f'{o}.safetensors')
                   for o in ('base-stylegan3-t', 'finetuned-stylegan3-t')]
    assert (base.meta['provenance']['data'] == 'normal.zip' and tuned.meta['provenance']['data'] == 'cleft.zip'
            and tuned.meta['license'] == 'CC0-1.0')
    first = sorted((runs[0]/'runs').glob('finetuned-stylegan3-t-*'))[0]/'fakes-000000.png'
    last = sorted((runs[0]/'runs').glob('base-stylegan3-t-*'))[0]/'fakes-000000.160.png'
    # but for half precision
    assert abs(np.asarray(Image.open(first), float) - np.asarray(Image.open(last), float)).mean() < 1


@needs_snakemake
def test_manifest_lists_what_is_there(runs):
    listed = json.loads((runs[0]/'manifest.json').read_text())['files']
    assert listed.keys() == {*figures, *(f'finetuned-{o}.gif' for o in networks), 'compare-speed.csv', 'protocol.json', *surveyed}
    for name, entry in listed.items(): assert entry['sha256'] == sha256(runs[0]/name)


@needs_snakemake
def test_cohort_figures_say_that_they_show_phantoms(runs):
    for name in ('cleft.png', 'normal.png', 'measures.png'): assert 'no patient' in read_recipe(runs[0]/name)['data']
    rows = list(csv.DictReader((runs[0]/'measures.csv').open()))
    assert {o['measure'] for o in rows} >= {'cleft_width_ratio', 'nostril_width_ratio'}
    assert {o['when'] for o in rows} <= {'before', 'after'} and all(int(o['n']) > 1 for o in rows)   # nobody was repaired: no such row


@needs_snakemake
def test_verdicts_are_over_runs(runs):
    rows = list(csv.DictReader((runs[0]/'compare-verdicts.csv').open()))
    assert [(o['a'], o['b']) for o in rows] == [*((f'{o}, fine-tuned', f'{o}, before') for o in networks),
                                                tuple(f'{o}, fine-tuned' for o in networks)]
    each = [float(o['value']) for o in csv.DictReader((runs[0]/'compare-runs.csv').open())
            if o['images'] == 'stylegan3-t, fine-tuned' and o['name'] == 'fd_faceres']
    mean = next(float(o['value']) for o in csv.DictReader((runs[0]/'headline.csv').open())
                if o['generator'] == 'stylegan3-t, fine-tuned' and o['note'] == 'primary endpoint')
    assert len(each) == 2 and each[0] != each[1] and abs(sum(each)/2 - mean) < 1e-3*mean
    sizes = {o['n'] for o in csv.DictReader((runs[0]/'compare-runs.csv').open())}
    assert sizes == {'24'}                                                    # equal everywhere
    arms = [o['arm'] for o in csv.DictReader((runs[0]/'augmentation-settled.csv').open())]
    assert arms.count('with ADA') == arms.count('without augmentation') == 2


@needs_snakemake
def test_the_measures_see_what_was_done(runs):
    copies = list(csv.DictReader((runs[0]/'truth-copies.csv').open()))
    assert (all(o['found'] == o['planted'] for o in copies if o['copies'] in ('as it is', 'mirrored'))
            and all(o['wrongly'] == '0' for o in copies))
    dish = [o for o in csv.DictReader((runs[0]/'truth-dish.csv').open())
            if o['by'] == 'truth' and o['change'] == 'shifted']
    assert float(dish[-1]['wasserstein']) > float(dish[0]['wasserstein'])
    arms = {o['trained_on'] for o in csv.DictReader((runs[0]/'usefulness.csv').open())}
    assert arms == {'real', 'with mirror', 'with generated', 'with pairs', 'constant', 'scorer'}


@needs_snakemake
def test_nothing_else_is_left_behind(runs):
    notebooks = [*(f'{o}-{n}' for o in ('02_base', '03_finetune') for n in networks), '01_cohort', '04_augmentation',
                 '05_compare', '06_severity', '07_latents', '08_people', '10_truth', '11_usefulness',
                 *(f'survey-{o}' for o in ('gans', 'pyramid', 'compare'))]
    logs = {f'{o}.log' for o in ('cleft', 'normal', 'unseen', 'report')}
    vectors = {o.name for o in runs[0].glob('*.svg') if o.with_suffix('.png').name in figures + surveyed}
    assert (len(vectors) > 15 and {o.name for o in runs[0].iterdir()}
            == {*made, *timed, *logs, *vectors, 'runs', 'report.html', 'summary.html',
                *(f'{o}.{e}' for o in ('claim', 'tripod') for e in ('html', 'csv')),
                *(f'{o}.{e}' for o in notebooks for e in ('ipynb', 'log', 'html'))})


@needs_snakemake
def test_report_leads_from_each_number_to_its_cell(runs):
    text = (runs[0]/'report.html').read_text()
    assert not re.search(r'(src|href)="(https?:)?//', text) and all(f'id="{o}"' in text for o in figures)
    links = set(re.findall(r'href="([\w.-]+\.html)#(cell-id=[\w-]+)"', text))
    assert len(links) > 20
    for page, anchor in links: assert f'id="{anchor}"' in (runs[0]/page).read_text()
    row = next(o for o in csv.DictReader((runs[0]/'compare.csv').open())
               if o['name'] == 'dish' and o['images'] == 'stylegan3-t, fine-tuned')
    assert f"{float(row['value']):.3g} <br>[" in text


@needs_snakemake
def test_dry_run_makes_nothing(tmp_path):
    run = workflow(tmp_path, '--dry-run')
    assert run.returncode == 0 and 'rule finetune' in run.stdout + run.stderr
    assert {o.name for o in (tmp_path/'outputs').iterdir()} == {'.lock', '.smoke.json'}


@pytest.fixture(scope='module')
def photographed(runs, tmp_path_factory):
    "Run with photographs from a folder whose name means something to shells, make, YAML and snakemake"
    folder = clinic(tmp_path_factory.mktemp('clinic')/NAME)
    done = runs[0].parent.parent
    if not (done == root and finished('smoke-photographs')):
        run = workflow(done, f'--data={folder}')
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder, done/'outputs/smoke-photographs'


@needs_snakemake
def test_a_study_of_photographs_is_of_those_that_were_given(photographed):
    folder, out = photographed
    seen = photographs(folder)
    listed = {o['name']: o['accepted'] for o in csv.DictReader((out/'prepared/report.csv').open())}
    assert listed.keys() == {o.name for o in folder.iterdir()} and len(listed) == N
    about = json.loads((out/'photographs.json').read_text())
    assert about == dict(folder=NAME, files=N, fingerprint=seen['fingerprint'],
                         prepared=list(listed.values()).count('True'),
                         rejected=about['rejected']) and about['prepared'] >= 32
    assert html.escape(f"the folder {NAME!r} with {N} files, fingerprint {seen['fingerprint']}; {about['prepared']} "
                       "were prepared") in (out/'report.html').read_text()
    assert (json.loads((out/'manifest.json').read_text())['profile']['data']
            == dict(folder=NAME, files=N, fingerprint=seen['fingerprint']))
    assert (len(ImageFolderDataset(out/'photographs-train.zip'))
            + len(ImageFolderDataset(out/'photographs-unseen.zip')) == about['prepared'])
    assert ('not to be passed on' in read_recipe(out/'finetuned-stylegan2-lapse.png')['data']
            and 'no patient' in read_recipe(out/'truth-severity.png')['data'])


@needs_snakemake
def test_a_study_of_photographs_takes_what_is_there(photographed):
    _, out = photographed
    for name in ('base-stylegan2.png', 'base-stylegan2-curves.svg', 'truth-severity.csv', '10_truth.ipynb'):
        assert (out/name).read_bytes() == (out.parent/'smoke'/name).read_bytes()
    assert not list(out.glob('base*.safetensors')) and not (out/'cleft.zip').exists()
    text = (out/'report.html').read_text()
    assert all(f'id="{o}"' in text for o in ('base-stylegan2-lapse.png', 'finetuned-stylegan2-distance.csv',
                                             'compare.csv', 'truth-dish.csv', 'copies.csv'))
    assert '02_base-stylegan2.html#' in text and 'usefulness.' not in text


@needs_snakemake
def test_results_do_not_tell_where_the_photographs_lie(photographed):
    folder, out = photographed
    place = json.loads((out.parent/'.smoke-photographs.json').read_text())['data']['folder']
    told = [o for o in out.rglob('*') if o.is_file() and place.encode() in o.read_bytes()]
    listed = [o for o in (out.parent.parent/'.snakemake/metadata').iterdir()
              if re.search(rb'patient \d', o.read_bytes())]
    assert not told and not listed and Path(place).name == NAME


@needs_snakemake
def test_a_notebook_that_fails_stays_to_be_read(tmp_path):
    profile = yaml.safe_load(smoke.read_text())
    profile['cohort'] |= dict(cleft=4, normal=4, columns=0)
    (tmp_path/'broken.yaml').write_text(yaml.safe_dump(profile))
    run = workflow(tmp_path, 'outputs/smoke/people.png', profile=tmp_path/'broken.yaml')
    assert run.returncode and 'columns: got 0; a whole number from 1 to 32 is accepted' in run.stdout + run.stderr
    executed = json.loads((tmp_path/'outputs/smoke/01_cohort.ipynb').read_text())
    assert any(o['output_type'] == 'error' and 'columns: got 0' in o['evalue'] for c in executed['cells']
               for o in c.get('outputs', []))


@needs_snakemake
def test_only_one_runs_at_a_time(tmp_path):
    (tmp_path/'outputs').mkdir()
    with open(tmp_path/'outputs/.lock', 'w') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = workflow(tmp_path, '--dry-run')
    assert run.returncode and 'is running here already' in run.stderr


@pytest.mark.parametrize('given, told', [
    (dict(kimgs=.5), 'kimgs: this notebook has no such parameter (did you mean kimg?)'),
    (dict(batch=0), 'batch: got 0; a whole number from 1 to'),
    (dict(freeze_d='half'), "freeze_d: got 'half'; a whole number from"),
    (dict(base='nowhere.safetensors', data='faces.zip'), 'nowhere.safetensors'),
])
def test_notebook_refuses(tmp_path, given, told):
    (tmp_path/'faces.zip').write_bytes(b'none')
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(root/'nbs/study/03_finetune.ipynb', tmp_path/'run.ipynb',
                                   dict(folder=str(tmp_path)) | given,
                                   progress_bar=False, cwd=tmp_path)
    assert told in str(caught.value.evalue)
    assert not list(tmp_path.glob('*.png'))


@pytest.fixture(scope='module')
def gray(tmp_path_factory):
    "Make a dataset of ours that knows nothing of clefts"
    path = tmp_path_factory.mktemp('gray')/'gray.zip'
    return write_dataset(path, ((np.full((64, 64, 3), 10*i, np.uint8), None, dict(number=i)) for i in range(20)),
                         about=dict(kind='gray squares', license='CC0-1.0'))


@pytest.mark.parametrize('notebook, given, told', [
    ('10_truth', dict(sizes=[8]), 'sizes: got 8; a list of whole numbers from 16 on is accepted'),
    ('10_truth', dict(cleft='gray', unseen='gray', normal='gray'),
     'knows nothing of severities; this notebook needs phantoms'),
    ('11_usefulness', dict(real=[3]), 'real: got 3; a list of whole numbers from 4 on is accepted'),
    ('11_usefulness', dict(data='gray', unseen='gray'), 'knows no severities; this notebook needs phantoms'),
])
def test_further_notebooks_refuse(gray, tmp_path, notebook, given, told):
    given = {k: str(gray) if v == 'gray' else v for k, v in given.items()}
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(root/f'nbs/study/{notebook}.ipynb', tmp_path/'run.ipynb',
                                   dict(folder=str(tmp_path)) | given, progress_bar=False, cwd=tmp_path)
    assert told in str(caught.value.evalue)
    assert not list(tmp_path.glob('*.png'))


def test_a_large_picture_of_an_executed_notebook_becomes_a_jpeg(tmp_path):
    import base64, io
    import nbformat
    from PIL import Image
    image, png = Image.effect_noise((512, 512), 90).convert('RGB'), io.BytesIO()
    image.save(png, 'PNG')
    picture = nbformat.v4.new_output('display_data', {'image/png': base64.b64encode(png.getvalue()).decode()})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('', outputs=[picture])]), tmp_path/'a.ipynb')
    for _ in range(2): subprocess.run([sys.executable, root/'workflow/slim.py', tmp_path/'a.ipynb'], check=True)
    [[kept]] = [c.outputs for c in nbformat.read(tmp_path/'a.ipynb', 4).cells]
    assert set(kept.data) == {'image/jpeg'} and len(kept.data['image/jpeg']) < len(png.getvalue())
    assert Image.open(io.BytesIO(base64.b64decode(kept.data['image/jpeg']))).size == image.size


def test_executed_notebooks_hold_each_picture_once(tmp_path):
    import base64, io
    from PIL import Image
    image, png, jpeg = Image.effect_noise((64, 64), 90).convert('RGB'), io.BytesIO(), io.BytesIO()
    image.save(png, 'PNG', compress_level=0)
    image.save(jpeg, 'JPEG')
    data = {'image/png': base64.b64encode(png.getvalue()).decode(),
            'image/jpeg': base64.b64encode(jpeg.getvalue()).decode(), 'text/plain': ['noise'],
            'application/vnd.jupyter.widget-view+json': dict(model_id='gone')}
    path = tmp_path/'a.ipynb'
    path.write_text(json.dumps(dict(cells=[dict(cell_type='code', source=[],
                                                outputs=[dict(output_type='display_data', data=dict(data)),
                                                         dict(output_type='display_data',
                                                              data={'text/plain': ['samples:   0%|          | 0/3 '
                                                                      '[00:00<?, ?images/s]']}),
                                                         dict(output_type='stream', text=['words'])])],
                                    metadata=dict(widgets=dict(state='much'),
                                                  kernelspec={}))))
    before = path.stat().st_size
    for _ in range(2): subprocess.run([sys.executable, root/'workflow/slim.py', path], check=True)
    slimmed = json.loads(path.read_text())
    [picture, words] = slimmed['cells'][0]['outputs']
    assert slimmed['metadata'] == dict(kernelspec={})
    assert (path.stat().st_size < before and set(picture['data']) == {'image/png', 'text/plain'}
            and words['text'] == ['words'])
    assert Image.open(io.BytesIO(base64.b64decode(picture['data']['image/png']))).tobytes() == image.tobytes()
