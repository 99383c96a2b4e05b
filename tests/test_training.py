"Training: an interrupted run ends like an uninterrupted one, two processes like one, and failures say what went wrong"
import errno, json, os, random, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from cleftgan_nb import checkpoints
from cleftgan_nb.data import ImageFolderDataset, cohort
from cleftgan_nb.data.cohorts import LABELS
from cleftgan_nb.files import atomic, sha256
from cleftgan_nb.networks import build
from cleftgan_nb.training import guards, loop, losses, step, writing
from cleftgan_nb.training.aid import Aid
from cleftgan_nb.training.config import Config, load_config
from cleftgan_nb.training.guards import Stopped
from cleftgan_nb.training.loop import begin, train
from cleftgan_nb.training.team import Team
from cleftgan_nb.training.state import warm
from published import published

SMALL = dict(channel_base=256, channel_max=8, z_dim=8, w_dim=8, num_layers=4, D_kwargs=dict(channel_max=8))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:r_t is')]


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    return cohort('normal', 24, tmp_path_factory.mktemp('data')/'faces.zip', size=16, workers=1, progress=False)


def config(faces, out, **more):
    return Config(**dict(data=str(faces), out=str(out), batch=8, kimg=.32, tick_kimg=.08, keep_kimg=.16,
                         dtype='float32', settings=SMALL, augment_p=.3) | more)


def files(out):
    return {p.name: p.read_bytes() for p in sorted(Path(out).iterdir())
            if p.is_file() and p.name not in ('time.jsonl', 'config.yaml')}


def same(a, b):
    "Compare bytes, apart from the folder's name in metadata"
    assert a.keys() == b.keys()
    for name in a:
        if name.endswith('.safetensors'): continue
        assert a[name] == b[name], name


def tensors(out): return checkpoints.read_tensors(Path(out)/'state.safetensors')[0]


LIVES = """
import os, random, signal, sys, time, traceback, warnings
import torch; torch.set_num_threads(1); warnings.simplefilter('ignore')
from cleftgan_nb.networks import build
from cleftgan_nb.training.aid import Aid
from cleftgan_nb.training.config import Config, load_config
from cleftgan_nb.training.loop import train
whole, config, replace, kills, renames = {whole!r}, {config!r}, os.replace, {kills}, {renames}

def die_at(n):
    "Die before the rename number n/2, or right after it where n is odd"
    def counted(*args, seen=iter(range(10**6))):
        k = next(seen)
        if 2*k == n: os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        if 2*k + 1 == n: os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counted

def live(seconds=None, n=None):
    "One life of the run in a process of its own; True if it reached its end"
    pid = os.fork()
    if not pid:
        try:
            if n is not None: die_at(n)
            train(config, progress=False); os._exit(0)
        except BaseException: traceback.print_exc(); os._exit(1)
    if seconds is not None: time.sleep(seconds); os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 1: sys.exit('the run failed')
    return code == 0

train(whole, progress=False)   # what it loads, no life has to load again
rng = random.Random(0)
for _ in range(kills): print('killed' if not live(rng.uniform(.2, 1.2)) else 'ended')
for n in range(renames): print('killed' if not live(n=n) else 'ended')
assert live()
"""


def lives(whole, c, folder, kills=0, renames=0):
    "Let one run be, and kill another again and again before it may end; count the kills"
    (folder/'lives.py').write_text(LIVES.format(whole=whole, config=c, kills=kills, renames=renames))
    return subprocess.run([sys.executable, folder/'lives.py'], check=True, stdout=subprocess.PIPE, text=True,
                          env=os.environ | dict(OMP_NUM_THREADS='1')).stdout.split().count('killed')


@pytest.mark.parametrize('network, kills, renames, aid',
                         [('stylegan3-t', 5, 0, None), ('stylegan3-t', 0, 10, None), ('stylegan2', 20, 0, 1.)])
def test_a_killed_run_ends_like_one_that_was_not(faces, tmp_path, network, kills, renames, aid):
    "At 20 random moments; before and after every rename of a file"
    settings = SMALL if network == 'stylegan3-t' else {k: v for k, v in SMALL.items() if k != 'num_layers'}
    more = dict(network=network, settings=settings, **(dict(kimg=.16) if renames else {}),
                **(dict(aid=aid, kimg=.096, tick_kimg=.016, keep_kimg=.048) if aid else {}))
    killed = lives(*(config(faces, tmp_path/name, **more) for name in ('whole', 'killed')), tmp_path, kills, renames)
    assert killed >= (kills or renames) - kills//4
    a, b = tensors(tmp_path/'whole'), tensors(tmp_path/'killed')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    same(files(tmp_path/'whole'), files(tmp_path/'killed'))
    assert not list(tmp_path.glob('killed/.*'))


def train_in(faces, out, processes, **more):
    "Train in one process or several, and return the folder of the run"
    c, go = config(faces, out, **more), out.with_name(f'{out.name}.py')
    if processes == 1: return train(c, progress=False)
    go.write_text('from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop import '
                  f'train\ntrain({c!r}, progress=False)')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), go]
    subprocess.run(command, check=True, env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=300)
    return out


def test_two_processes_are_one(faces, tmp_path):
    one, two = (train_in(faces, tmp_path/str(n), n, kimg=.032, tick_kimg=.032, augment='none') for n in (1, 2))
    a, b = tensors(one), tensors(two)
    for k in a:
        if k.startswith(('G/', 'D/', 'G_ema/')) and a[k].is_floating_point():
            torch.testing.assert_close(a[k], b[k], rtol=2e-2, atol=2e-4, msg=k)
    x, y = (json.loads((Path(o)/'log.jsonl').read_text().splitlines()[-1]) for o in (one, two))
    for k in x: assert abs(x[k] - y[k]) <= 1e-3*max(abs(x[k]), 1), (k, x[k], y[k])


def test_without_heads_a_run_says_nothing_of_them(faces, tmp_path):
    "The published training, to the byte: neither state nor checkpoint has a new word"
    out = train(config(faces, tmp_path/'run', kimg=.08, keep_kimg=.08), progress=False)
    assert not [k for k in tensors(out) if 'aid' in k]
    for f in out.glob('*.safetensors'): assert b'"aid' not in f.read_bytes() and b'd_weight' not in f.read_bytes()


@pytest.mark.parametrize('more', [dict(), dict(d_weight=0., augment='none'),
                                  dict(aid_kimg=.04, network='stylegan2',
                                       settings={k: v for k, v in SMALL.items() if k != 'num_layers'})])
def test_heads_go_on_to_the_bit(faces, tmp_path, more):
    often = dict(aid=1., tick_kimg=.032, keep_kimg=.064, **more)
    once, twice = (train(config(faces, tmp_path/name, kimg=kimg, **often), progress=False)
                   for name, kimg in (('once', .064), ('twice', .032)))
    train(config(faces, twice, kimg=.064, **often), progress=False)
    a, b = tensors(once), tensors(twice)
    assert [k for k in a if k.startswith('aid/')] and [k for k in a if k.startswith('opt_aid/')]
    for k, v in a.items(): assert torch.equal(v, b[k]), k
    assert (Path(once)/'log.jsonl').read_bytes() == (Path(twice)/'log.jsonl').read_bytes()
    assert set(checkpoints.load(next(Path(once).glob('network-*'))).networks) == {'G', 'D', 'G_ema'}


def test_heads_may_begin_as_those_of_another_run(faces, tmp_path):
    first = train(config(faces, tmp_path/'first', aid=1., kimg=.024, tick_kimg=.024), progress=False)
    state, start = first/'state.safetensors', dict(resume_from=str(next(first.glob('network-*'))), settings={})
    # whatever the seed
    run, _ = begin(config(faces, tmp_path/'second', aid=1., aid_from=str(state), seed=1, **start), Team())
    a = tensors(first)
    for k, v in run.aid.learned.state_dict().items(): assert torch.equal(v, a[f'aid/{k}']), k
    plain = train(config(faces, tmp_path/'plain', kimg=.008, tick_kimg=.008), progress=False)
    with pytest.raises(ValueError, match='has no heads that fit'):
        begin(config(faces, tmp_path/'third', aid=1., aid_from=str(plain/'state.safetensors'), **start), Team())


def test_heads_ship(faces, tmp_path):
    from cleftgan_nb.training.config import HEADS
    from cleftgan_nb.training.state import read_heads, save_heads
    start = dict(kimg=.008, augment='none')
    run, _ = begin(config(faces, tmp_path/'run', aid=1., aid_from=HEADS, **start), Team())
    kept, own = read_heads(HEADS)[0], run.aid.learned.state_dict()
    assert kept and all(torch.equal(own[k].cpu(), v) for k, v in kept.items())
    assert load_config(tmp_path/'run/config.yaml').aid_from == HEADS
    assert run.history[0]['license'] == 'CC0-1.0' and run.license
    path = train(config(faces, tmp_path/'more', aid=1., aid_from=HEADS, **start), progress=False)
    alone = save_heads(path/'state.safetensors', tmp_path/'alone.safetensors')
    assert read_heads(alone)[0].keys() == kept.keys() and read_heads(alone)[2] == read_heads(path/'state.safetensors')[2]
    with pytest.raises(FileNotFoundError, match='or the heads that ship, phantom-64-heads'):
        begin(config(faces, tmp_path/'none', aid=1., aid_from='phantom-64-head', **start), Team())


def test_a_reader_is_taken_over_where_labels_mean_the_same(tmp_path, monkeypatch):
    old, path = Aid(2, seed=1).learned, tmp_path/'state.safetensors'
    path.touch()
    kept = {f'aid/{k}': v for k, v in old.state_dict().items()}, dict(label_names=['lip_left', 'lip_right'], history=[])
    monkeypatch.setattr('cleftgan_nb.training.state.read_state', lambda path: kept)
    for names, everything in ((['lip_left', 'lip_right'], True), (['nose_left', 'nose_right'], False)):
        new = Aid(2, seed=2).learned
        before = {k: v.clone() for k, v in new.state_dict().items()}
        warm(new, path, names)
        for k, v in new.state_dict().items():
            assert torch.equal(v, (old.state_dict() if everything or k.startswith('heads.') and '.fits.' not in k
                                   else before)[k]), k


def test_heads_are_not_switched_on_halfway(faces, tmp_path):
    train(config(faces, tmp_path/'run', kimg=.008, tick_kimg=.008), progress=False)
    with pytest.raises(ValueError, match='different settings .aid: None, now 1.0'):
        train(config(faces, tmp_path/'run', aid=1.), progress=False)


def test_heads_want_colors(tmp_path):
    from cleftgan_nb.training.state import Run
    with pytest.raises(ValueError, match='heads look at RGB images, the data have 1 channel'):
        Run(config('gray.zip', tmp_path, aid=1.), 16, channels=1)


def test_heads_of_two_processes_are_those_of_one(faces, tmp_path):
    "As close as Adam's first steps allow, which turn each gradient's sign into a whole step"
    one, two = (train_in(faces, tmp_path/str(n), n, kimg=.016, tick_kimg=.016, augment='none', aid=1.) for n in (1, 2))
    a, b = (torch.cat([v.reshape(-1) for k, v in tensors(o).items()
                       if k.startswith('aid/') and v.is_floating_point()]) for o in (one, two))
    assert float((a - b).norm()/a.norm()) < .01
    x, y = (json.loads((Path(o)/'log.jsonl').read_text().splitlines()[-1]) for o in (one, two))
    for k in x: assert abs(x[k] - y[k]) <= 2e-2*max(abs(x[k]), 1), (k, x[k], y[k])


def test_transfer_learning_starts_from_a_checkpoint(faces, tmp_path):
    first = train(config(faces, tmp_path/'first'), progress=False)
    second = train(config(faces, tmp_path/'second', kimg=.008, tick_kimg=.008,
                          resume_from=str(next(first.glob('network-*'))), freeze_d=2, settings={}), progress=False)
    a, b = tensors(first), tensors(second)
    assert (second/'config.yaml').read_text().count('ada_kimg: 100.0') == 1
    frozen = [k for k in a if k.startswith('D/') and a[k].is_floating_point() and torch.equal(a[k], b[k])]
    assert any('fromrgb' in k for k in frozen) and len(frozen) < sum(k.startswith('D/') for k in a)


# Labels -----------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def clefts(tmp_path_factory):
    return cohort('cleft', 12, tmp_path_factory.mktemp('data')/'clefts.zip', size=16, workers=1, progress=False)


@pytest.fixture(scope='module', params=['stylegan3-t', 'stylegan2'])
def base(request, faces, tmp_path_factory):
    settings = {k: v for k, v in SMALL.items() if k != 'num_layers' or request.param == 'stylegan3-t'}
    more = dict(network=request.param, settings=settings, kimg=.016, tick_kimg=.016)
    return next(train(config(faces, tmp_path_factory.mktemp('base')/'run', **more), progress=False).glob('network-*'))


def asking(clefts, base, out, **more):
    return config(clefts, out, **dict(labels=True, resume_from=str(base), settings={}, kimg=.08, tick_kimg=.04,
                                      augment='none') | more)


def test_an_unconditional_base_gains_labels(clefts, base, tmp_path, capsys):
    "It starts out the same for every label, says what is new and learns; the checkpoint knows what labels mean"
    run, data = begin(asking(clefts, base, tmp_path/'a'), Team())
    old, z, c = checkpoints.load(base), torch.randn(4, 8), torch.rand(4, 5)
    with torch.no_grad():
        for now, then in ((run.G, old.G), (run.G_ema, old.G_ema)):
            assert torch.equal(now(z, c, noise_mode='const'), then(z, noise_mode='const'))
        assert torch.equal(run.D(x := torch.randn(4, 3, 16, 16), c), old.D(x))
    out = train(asking(clefts, base, tmp_path/'b'), progress=True)
    new, said = ['G/mapping.label.weight', 'D/b4.label.weight', 'G_ema/mapping.label.weight'], capsys.readouterr().out
    assert all(word in said for word in (*new, *LABELS, 'takes no labels'))
    c = checkpoints.load(next(out.glob('network-000000.080*')))
    assert c.labels == list(LABELS) and c.meta['provenance']['started_from']['new'] == new
    for net in (c.G.mapping, c.D.b4, c.G_ema.mapping):
        assert (net.label.weight != 0).any(0).all() and net.label.lr_mult == 3


@pytest.mark.parametrize('base, aid', [('stylegan3-t', None), ('stylegan2', None), ('stylegan3-t', 1.)],
                         indirect=['base'])
def test_labels_resume_to_the_last_bit(clefts, base, tmp_path, aid):
    "G's labels also follow from the number of an image; training goes on from a checkpoint with labels, too"
    whole = train(asking(clefts, base, tmp_path/'whole', kimg=.08, aid=aid), progress=False)
    for kimg in (.024, .08): parts = train(asking(clefts, base, tmp_path/'parts', kimg=kimg, aid=aid), progress=False)
    a, b = tensors(whole), tensors(parts)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    known = next(whole.glob('network-000000.080*'))
    after = train(asking(clefts, known, tmp_path/'after', kimg=.008, tick_kimg=.008), progress=False)
    c = checkpoints.load(next(after.glob('network-*')))
    assert c.labels == list(LABELS) and 'new' not in c.meta['provenance']['started_from']


@pytest.mark.parametrize('base', ['stylegan3-t'], indirect=True)    # StyleGAN2's noise is each process's own
def test_labels_in_two_processes_are_those_of_one(clefts, base, tmp_path):
    one = train(asking(clefts, base, tmp_path/'one', kimg=.032, tick_kimg=.032), progress=False)
    c = asking(clefts, base, tmp_path/'two', kimg=.032, tick_kimg=.032)
    imports = 'from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop import train\n'
    (tmp_path/'go.py').write_text(f'{imports}train({c!r}, progress=False)')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    subprocess.run([*torchrun, tmp_path/'go.py'], check=True, env=os.environ | dict(OMP_NUM_THREADS='1'), timeout=300)
    a, b = tensors(one), tensors(tmp_path/'two')
    for k in a:
        if not k.startswith(('G/', 'D/', 'G_ema/')) or not a[k].is_floating_point(): continue
        torch.testing.assert_close(a[k], b[k], rtol=2e-2, atol=1e-3 if 'label' in k else 4e-4, msg=k)


def test_g_is_asked_for_labels_as_the_data_have_them(clefts, base, tmp_path):
    "Drawn by an image's number, not those of D's batch; mirrored images with their own"
    run, data = begin(asking(clefts, base, tmp_path/'run'), Team())
    index = torch.arange(5000)
    drawn = step.asked(run, index, 'G')
    whole = {tuple(row) for row in data.labels(range(len(data))).tolist()}
    assert {tuple(row) for row in drawn.tolist()} == whole and len(whole) == 24
    assert (drawn.mean(0) - data.labels(range(24)).mean(0)).abs().max() < .03
    assert (torch.equal(step.asked(run, index[[7, 3]], 'G'), drawn[[7, 3]])
            and not torch.equal(step.asked(run, index, 'D'), drawn))
    assert torch.equal(step.latents_of(run, index[:8], 'G').labels, drawn[:8])
    assert writing.show(run, data).size == (128, 128)   # more places than images


@pytest.mark.parametrize('labels, xflip', [(True, 0), (False, 1)])
def test_nothing_is_mirrored_behind_a_label_s_back(clefts, base, tmp_path, labels, xflip):
    "Augmentation may flip images only where no label tells left from right"
    run, data = begin(asking(clefts, base, tmp_path/'run', labels=labels, augment='fixed', augment_p=1.),
                      Team())
    flips = run.pipe.draw(range(400), 0)['xflip'].sum()
    assert (run.pipe.multipliers['xflip'] == xflip and (flips > 100) == bool(xflip)
            and run.pipe.multipliers['rotate90'] == 1)


def with_names(clefts, path, names, width=5):
    "Copy the images, with other labels"
    from cleftgan_nb.data import write_dataset
    ds = ImageFolderDataset(clefts)
    rows = ((ds[i][0].permute(1, 2, 0).numpy(), [.5]*width, {}) for i in range(12))
    return write_dataset(path, rows, about=dict(kind='x', license='CC0-1.0'), label_names=names)


def test_wrong_labels_for_a_checkpoint_say_so(clefts, base, tmp_path):
    from cleftgan_nb.networks import with_labels
    old = checkpoints.load(base)
    G, D = with_labels(old.G, 5), with_labels(old.D, 5)
    about, other = dict(license='CC0-1.0', provenance={}, progress={}), [f'x{i}' for i in range(5)]
    known = checkpoints.save(tmp_path/'known.safetensors', G, D, **about, labels=list(LABELS))
    half = checkpoints.save(tmp_path/'half.safetensors', G, old.D, **about)
    two, five, turned = (with_names(clefts, tmp_path/f'{i}.zip', o, len(o))
                         for i, o in enumerate((['a', 'b'], other, LABELS[::-1])))
    names = f"has the labels {', '.join(LABELS)}; the data have {', '.join(other)}. Accepted: the same names"
    for start, data, says in [(known, two, "takes labels of 5 entries; the data's have 2. Accepted: labels of 5 "
                                           "entries; a checkpoint without labels"),
                              (known, five, names), (known, turned, 'the same names in the same order'),
                              (half, clefts, 'its D takes labels of 0 entries, its G labels of 5; accepted: another '
                                             'checkpoint')]:
        with pytest.raises(ValueError) as e: train(asking(data, start, tmp_path/'run'), progress=False)
        assert says in str(e.value)
    with pytest.raises(ValueError, match='5 entries, and the data have such labels. Accepted: --set labels=true'):
        train(asking(clefts, known, tmp_path/'run', labels=False), progress=False)
    assert not (tmp_path/'run').exists()
    plain = with_names(clefts, tmp_path/'n.zip', None)                  # numbers without names are taken at their word
    with pytest.raises(ValueError, match='mirrored images would keep the label of the other side'):
        train(asking(plain, known, tmp_path/'run', kimg=.008), progress=False)
    assert not (tmp_path/'run').exists()
    train(asking(plain, known, tmp_path/'run', kimg=.008, mirror=False), progress=False)
    with pytest.raises(ValueError, match='the state has the labels'):
        train(asking(five, known, tmp_path/'run', kimg=.016, mirror=False), progress=False)


def test_what_a_run_started_from_is_remembered(faces, tmp_path):
    "Also by its continuation, which knows the start only from the state"
    first = train(config(faces, tmp_path/'first'), progress=False)/'network-000000.320.safetensors'
    start, out = dict(resume_from=str(first), settings={}), tmp_path/'second'
    began = dict(file=first.name, sha256=sha256(first), kimg=.32)
    for kimg in (.08, .16):
        train(config(faces, out, kimg=kimg, **start), progress=False)
        assert checkpoints.load(sorted(out.glob('network-*'))[-1]).meta['provenance']['started_from'] == began
    assert 'started_from' not in checkpoints.load(first).meta['provenance']


def test_a_cpu_has_no_graphs_to_replay(faces, tmp_path):
    a, b = [train(config(faces, tmp_path/str(graphs), graphs=graphs, kimg=.16), progress=False)
            for graphs in (False, True)]
    for k, v in tensors(a).items(): assert torch.equal(v, tensors(b)[k]), k


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_steps_are_replayed_on_a_gpu(faces, tmp_path):
    "Losses stay as close to a run that computes each step as two such runs stay to each other"
    def means(name, graphs):
        c = config(faces, tmp_path/name, graphs=graphs, augment='none', network='stylegan3-t', r1_every=4)
        team = Team()
        run, data = loop.begin(c, team)
        coming = loop.batches(run, data, team)
        for _ in range(24): step.step(run, *next(coming), team)
        return ({k: float(s/n) for k, (s, n) in run.sums.items()},
                [k for k, v in run.replays.items() if getattr(v, 'graph', None)])
    (a, _), (b, none), (c, recorded) = means('a', False), means('b', False), means('c', True)
    assert none == [] and recorded == ['G', 'D', 'R1']
    for k in a: assert abs(a[k] - c[k]) <= 3*abs(a[k] - b[k]) + .02*abs(a[k]) + 1e-3, k


def test_ctrl_c_stops_after_the_step_with_a_state(faces, tmp_path):
    c = config(faces, tmp_path/'run', kimg=100.)
    (tmp_path/'go.py').write_text('from cleftgan_nb.training.config import Config\nfrom cleftgan_nb.training.loop '
                                  f'import train\ntrain({c!r}, progress=False)')
    run = subprocess.Popen([sys.executable, tmp_path/'go.py'])
    deadline = time.time() + 180
    while not (tmp_path/'run/state.safetensors').exists() and time.time() < deadline: time.sleep(.2)
    run.send_signal(signal.SIGINT)
    assert run.wait(180) == 0
    assert json.loads(checkpoints.read_tensors(tmp_path/'run/state.safetensors')[1]['run'])['nimg'] > 0


def test_term_saves_the_state_and_nobody_else_trains_here_meanwhile(faces, tmp_path):
    "Slurm and Kubernetes send it: exit status 143. Another run is told who trains here"
    from cleftgan_nb.training.config import save_config
    out = tmp_path/'run'
    save_config(config(faces, out, kimg=100.), tmp_path/'run.yaml')
    run = subprocess.Popen([sys.executable, '-m', 'cleftgan_nb', 'train', tmp_path/'run.yaml'],
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env=os.environ | dict(OMP_NUM_THREADS='1'))
    try:
        deadline = time.time() + 180
        while not (out/'state.safetensors').exists() and run.poll() is None and time.time() < deadline: time.sleep(.1)
        with pytest.raises(Stopped, match=fr'run is being trained by process {run.pid} on \S+ since 20.* Wait, or '
                                          r'end it first'):
            train(config(faces, out, kimg=100.), progress=False)
        before = (out/'state.safetensors').stat().st_mtime_ns
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=180)
    finally: run.kill()
    assert (run.returncode == 143 and 'the state is saved' in said and 'exit status 143' in said
            and 'Traceback' not in said)
    assert (out/'state.safetensors').stat().st_mtime_ns > before and not (out/'lock.json').exists()
    state = json.loads(checkpoints.read_tensors(out/'state.safetensors')[1]['run'])
    assert state['nimg'] > 80*state['tick'] or state['nimg'] % 80 == 0


def test_what_is_remembered_until_the_step_is_over():
    from cleftgan_nb.training.guards import stoppable
    was = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stoppable() as asked:
        # torchrun passes on a signal that all have received
        for s in signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT:
            os.kill(os.getpid(), s)
        assert asked == [15, 15, 1, 2]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)                           # nohup
    try:
        with stoppable() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally: signal.signal(signal.SIGHUP, was[2])
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == was


@pytest.mark.parametrize('left, goes', [('', True), ('{', True), (dict(process=2**22 + 1), True),
                                        (dict(process=1), True), (dict(host='pod-7'), True),
                                        (dict(boot='before'), True), (dict(host='elsewhere', boot='other'), False)])
@pytest.mark.parametrize('locks', [True, False])
def test_a_lock_that_nobody_holds_is_taken_over(tmp_path, monkeypatch, left, goes, locks):
    "After a kill, a reboot, or from another container on this computer; not from another computer"
    mine = guards._here() | dict(process=2**22 + 1, since='2026-01-01')
    (tmp_path/'lock.json').write_text(left if isinstance(left, str) else json.dumps(mine | left))
    if not locks: monkeypatch.setattr(guards, '_held', lambda fd: None)
    if goes and (locks or left != dict(process=1)):
        with guards.alone(tmp_path): assert json.loads((tmp_path/'lock.json').read_text())['process'] == os.getpid()
        assert not (tmp_path/'lock.json').exists()
    else:
        with pytest.raises(Stopped, match='is being trained by process .* since 2026-01-01.* if it is long gone, '
                                          'remove .*lock.json'):
            guards.alone(tmp_path).__enter__()
        assert (tmp_path/'lock.json').exists()


def test_only_one_of_many_gets_the_lock(tmp_path):
    "Threads with a file each take it and give it back a thousand times"
    from concurrent.futures import ThreadPoolExecutor
    inside, most, got = [], [], []
    def attempt(_):
        try:
            with guards.alone(tmp_path):
                inside.append(1)
                most.append(len(inside))
                got.append(1)
                inside.pop()
        except Stopped: pass
    with ThreadPoolExecutor(8) as pool: list(pool.map(attempt, range(1000)))
    assert set(most) == {1} and len(got) >= 1 and not list(tmp_path.iterdir())


def test_a_run_that_breaks_keeps_its_last_state(faces, tmp_path, monkeypatch):
    out = train(config(faces, tmp_path/'run', kimg=.08), progress=False)
    before = (out/'state.safetensors').read_bytes()
    monkeypatch.setattr(losses, 'generator_loss', lambda logits: logits.mean()*float('nan'))
    with pytest.raises(Stopped, match='last good state'): train(config(faces, tmp_path/'run', kimg=.24), progress=False)
    assert (out/'state.safetensors').read_bytes() == before


def test_stopping_between_two_ticks_changes_nothing(faces, tmp_path):
    whole = train(config(faces, tmp_path/'whole', kimg=.16), progress=False)
    c = config(faces, tmp_path/'stopped', kimg=.16, tick_kimg=.08)
    with pytest.MonkeyPatch.context() as m:
        taken = iter(range(99))
        go = step.step
        m.setattr(loop, 'step', lambda *a: (go(*a), os.kill(os.getpid(), signal.SIGINT) if next(taken) == 12 else None))
        train(c, progress=False)
    assert json.loads(checkpoints.read_tensors(tmp_path/'stopped/state.safetensors')[1]['run'])['nimg'] == 104
    train(c, progress=False)
    a, b = tensors(whole), tensors(tmp_path/'stopped')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    same(files(whole), files(tmp_path/'stopped'))


def test_a_full_disk_says_so_and_keeps_the_last_state(faces, tmp_path, monkeypatch):
    out = train(config(faces, tmp_path/'run', kimg=.08), progress=False)
    before, write = (out/'state.safetensors').read_bytes(), checkpoints.write_tensors
    def full(path, *args, **kw):
        with atomic(path) as f:
            f.write(b'half')
            raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(checkpoints, 'write_tensors', full)
    with pytest.raises(Stopped, match='free some space'): train(config(faces, tmp_path/'run', kimg=.24), progress=False)
    assert (out/'state.safetensors').read_bytes() == before and not list(out.glob('.*'))
    monkeypatch.setattr(checkpoints, 'write_tensors', write)
    monkeypatch.setattr(guards.shutil, 'disk_usage', lambda _: type('usage', (), dict(free=1000)))
    with pytest.raises(Stopped, match='has room for 0 MiB'):
        train(config(faces, tmp_path/'run', kimg=.24), progress=False)


def test_training_goes_on_from_a_published_pickle(faces, tmp_path):
    G, D = build('stylegan2', 16, channel_base=256, channel_max=8, z_dim=8, w_dim=8)
    (tmp_path/'faces.pkl').write_bytes(published({}, G=G, D=D, G_ema=G, augment_p=.25))
    out = train(config(faces, tmp_path/'run', kimg=.016, tick_kimg=.016, resume_from=str(tmp_path/'faces.pkl'),
                       settings={}), progress=False)
    assert load_config(out/'config.yaml').network == 'stylegan2'
    (tmp_path/'faces.pkl').unlink()
    # its networks are in the state
    train(config(faces, tmp_path/'run', kimg=.032, tick_kimg=.016, resume_from=str(tmp_path/'faces.pkl'),
                 settings={}), progress=False)


@pytest.mark.parametrize('network, settings', [('stylegan3-t', SMALL),
                                               ('stylegan2', {k: v for k, v in SMALL.items() if k != 'num_layers'})])
def test_float16_trains_like_float32(faces, tmp_path, network, settings):
    "Two steps, with R1 and path length: no gradient is infinite, and losses match float32 up to rounding"
    rows = {}
    for dtype in ('float32', 'float16'):
        train(config(faces, tmp_path/dtype, network=network, settings=settings, dtype=dtype, kimg=.016,
                     tick_kimg=.016), progress=False)
        [rows[dtype]] = map(json.loads, (tmp_path/dtype/'log.jsonl').read_text().splitlines())
    a, b = rows['float32'], rows['float16']
    assert b['broken gradients'] == 0 and any(a[k] != b[k] for k in a)                        # it really was float16
    assert all(abs(a[k] - b[k]) < .02*max(1, abs(a[k])) for k in a if k.startswith(('loss/', 'logits/'))), (a, b)


def test_peak_memory_of_a_gpu_is_written_down(faces, tmp_path, monkeypatch):
    "Beside the seconds of a tick; on a CPU there is none"
    from cleftgan_nb.training.watch import read_log
    c = config(faces, tmp_path/'a', kimg=.008, tick_kimg=.008)
    train(c, progress=False)
    assert 'peak memory' not in (tmp_path/'a/time.jsonl').read_text() and 'peak memory' not in read_log(tmp_path/'a')
    monkeypatch.setattr(loop, 'peak_memory', lambda device: {'peak memory': 1.5})
    train(config(faces, tmp_path/'b', kimg=.008, tick_kimg=.008), progress=False)
    assert read_log(tmp_path/'b')['peak memory'] == [1.5] and files(tmp_path/'a').keys() == files(tmp_path/'b').keys()


@pytest.mark.parametrize('more, word', [(dict(data='nowhere.zip'), 'nowhere'),
                                        (dict(resume_from='nothing.safetensors'), 'nothing'),
                                        (dict(batch=0), 'batch=0'), (dict(freeze_d=60), 'freeze_d'),
                                        (dict(labels=True, data='EMPTY'), 'no images'),
                                        (dict(labels=True), 'has no labels'),
                                        (dict(d_weight=0.), 'accepted: with aid=1'),
                                        (dict(aid=-1.), 'aid=-1.0; accepted: a number'),
                                        (dict(label_lr=0.), 'label_lr=0.0; accepted: a number from 0.001 to 1000'),
                                        (dict(label_lr=5.), 'label_lr=5.0 only applies with labels'),
                                        (dict(settings=dict(channel_base=2**20, channel_max=8192)),
                                         'G would have .* numbers; accepted: up to 268,435,456'),
                                        (dict(settings=dict(channel_base=2**40)),
                                         'channel_base=.*; accepted: 0 to 1048576'),
                                        (dict(settings=dict(dtype='float16')), 'settings has dtype'),
                                        (dict(resume_from='OTHER'), 'is for 32 pixels, 1 channels')])
def test_wrong_configurations_say_so(faces, tmp_path, more, word):
    if more.get('data') == 'EMPTY':
        (tmp_path/'empty').mkdir()
        more = dict(data=str(tmp_path/'empty'))
    if more.get('resume_from') == 'OTHER':
        G, D = build('stylegan2', 32, channel_base=64, channel_max=4, img_channels=1)
        checkpoints.save(tmp_path/'other.safetensors', G=G, D=D, license='CC0-1.0', provenance={}, progress={})
        more = dict(resume_from=str(tmp_path/'other.safetensors'))
    with pytest.raises((ValueError, FileNotFoundError), match=word):
        train(config(faces, tmp_path/'run', **more), progress=False)
    assert not (tmp_path/'run').exists()


def test_no_folder_and_no_computer_is_told(faces, tmp_path, monkeypatch):
    "Not by anything that a run writes; run and data can move together, and training goes on"
    monkeypatch.setattr('socket.gethostname', lambda: 'computer-of-jane')
    home = tmp_path/'home of jane'
    home.mkdir()
    (home/'faces.zip').write_bytes(Path(faces).read_bytes())
    base = train(config(faces, tmp_path/'base', kimg=.008, tick_kimg=.008), progress=False)
    (home/'base.safetensors').write_bytes(next(base.glob('network-*')).read_bytes())
    start = dict(resume_from=str(home/'base.safetensors'), settings={}, kimg=.008, tick_kimg=.008, keep_kimg=.008)
    out = train(config(home/'faces.zip', home/'runs/a', **start), progress=False)
    written = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    assert any('tfevents' in p.name for p in written)
    for secret in str(tmp_path), 'jane':
        assert not [p for p, data in written.items()
                    if secret.encode() in data or secret in p.relative_to(out).as_posix()]
    assert '../../faces.zip' in (out/'config.yaml').read_text()
    home.rename(tmp_path/'elsewhere')
    out = tmp_path/'elsewhere/runs/a'
    c = load_config(out/'config.yaml')
    assert (c.data, c.out, c.resume_from) == tuple(str(tmp_path/'elsewhere'/o)
                                                   for o in ('faces.zip', 'runs/a', 'base.safetensors'))
    from cleftgan_nb import cli
    monkeypatch.chdir(tmp_path/'elsewhere/runs')
    assert cli.main(['train', 'a', '--kimg', '.016']) == 0 and (out/'network-000000.016.safetensors').exists()
    monkeypatch.chdir(out)
    assert cli.main(['train', '.', '--kimg', '.024']) == 0
    assert ('../../faces.zip' in (out/'config.yaml').read_text()
            and '../../base.safetensors' in (out/'config.yaml').read_text())


def test_paths_through_a_link(faces, tmp_path):
    "The folder of a run may be a link to another disk; so may the dataset, whose name is kept"
    (tmp_path/'disk/runs').mkdir(parents=True)
    (tmp_path/'run').symlink_to(tmp_path/'disk/runs')
    (tmp_path/'mine.zip').symlink_to(faces)
    out = train(config(tmp_path/'mine.zip', tmp_path/'run', kimg=.008, tick_kimg=.008), progress=False)
    assert (load_config(out/'config.yaml').data == str(tmp_path/'mine.zip')
            and load_config(tmp_path/'disk/runs/config.yaml').data == str(tmp_path/'mine.zip'))


# What a run has learned from ----------------------------------------------------------------------------------------------------------

def newest(out): return checkpoints.load(sorted(Path(out).glob('network-*'))[-1])


def test_other_data_leave_a_trace(faces, tmp_path, monkeypatch, capsys):
    """In the state, in later checkpoints and what starts from them, in `info` and the card; only on request, under
    all licenses"""
    from cleftgan_nb import cli
    from cleftgan_nb.data.datasets import fingerprint
    private = cohort('normal', 8, tmp_path/'private.zip', size=16, seed=1, workers=1, progress=False)
    private.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    often = dict(tick_kimg=.008, keep_kimg=.008, kimg=.008)
    train(config(private, 'run', license='this clinic only', **often), progress=False)
    if os.name != 'nt':   # as private as what it learned from
        assert [{o.stat().st_mode & 0o077 for o in ((tmp_path/name), *(tmp_path/name).rglob('*'))}
                for name in ('run', 'private.zip')] == [{0}, {0}]
    def go(*more):
        code = cli.main(['train', 'run', '--kimg', '.016', *more])
        return code, capsys.readouterr().err
    before = (tmp_path/'run/state.safetensors').read_bytes()
    (tmp_path/'other.yaml').write_text((tmp_path/'run/config.yaml').read_text().replace('../private.zip',
            str(faces)).replace('out: .', 'out: run'))
    assert (cli.main(['train', 'other.yaml']) == 2
            and f'run has learned from private.zip (fingerprint {fingerprint(private)[:16]}); {faces} is '
                'different' in capsys.readouterr().err)
    with pytest.raises(ValueError, match='if you mean it, --set data='):
        train(config(faces, 'run', **often), progress=False)
    (tmp_path/'aside.zip').write_bytes(private.read_bytes())
    private.write_bytes(Path(faces).read_bytes())   # other images under the same name
    code, err = go()
    assert code == 2 and '--set data=' in err and 'is different' in err
    private.write_bytes((tmp_path/'aside.zip').read_bytes())
    assert (tmp_path/'run/state.safetensors').read_bytes() == before
    assert go('--set', f'data={faces}', '--set', 'license=CC0-1.0')[0] == 0
    own = [dict(data=name, fingerprint=fingerprint(path), images=n, license=license) | {'from': since}
           for name, path, n, license, since in (('private.zip', private, 8, 'CC0-1.0 AND this clinic only', 0),
                                                 ('faces.zip', faces, 24, 'CC0-1.0', 8))]
    c = newest('run')
    assert c.meta['provenance']['history'] == own and c.meta['license'] == 'CC0-1.0 AND this clinic only'
    # nothing new
    assert go('--kimg', '.024')[0] == 0 and newest('run').meta['provenance']['history'] == own
    assert cli.main(['info', 'run/network-000000.024.safetensors']) == 0
    said = capsys.readouterr().out
    assert (f'learned from: private.zip (fingerprint {own[0]["fingerprint"][:16]}…, 8 images, from image 0 on), '
            'license: CC0-1.0 AND this clinic only\n' in said and 'learned from: faces.zip' in said
            and 'history' not in said)
    after = train(config(faces, 'after', resume_from='run/network-000000.024.safetensors', settings={},
                         license='CC-BY-4.0', **often), progress=False)
    c = newest(after)
    assert c.meta['license'] == 'CC0-1.0 AND this clinic only AND CC-BY-4.0'
    assert (c.meta['provenance']['history'] == [{'file': 'network-000000.024.safetensors'} | e for e in own]
            + [own[1] | {'from': 0, 'license': 'CC0-1.0 AND CC-BY-4.0'}])
    assert (cli.main(['convert', 'after/network-000000.008.safetensors', 'free.safetensors', '--license', 'CC0-1.0'])
            == 0 and checkpoints.load('free.safetensors').meta['license'] == c.meta['license'])
    from cleftgan_nb.training.model_cards import model_card
    (tmp_path/'card.md').write_text('# Model card: x\n<!-- generated: begin training -->\n<!-- generated: end '
                                    'training -->\n')
    text = model_card('after/network-000000.008.safetensors', tmp_path/'card.md').read_text()
    assert (text.count('| learned from | ') == 3 and 'this clinic only' in text
            and 'before network-000000.024.safetensors' in text)


def test_a_run_of_before_says_what_it_can(faces, short, tmp_path):
    "Its state names data and license; the same name goes on, another one must be requested"
    _, found, words = short
    begun = dict(file='base.safetensors', sha256='0'*64, kimg=1.)
    old = ({k: v for k, v in words.items() if k != 'history'}
           | dict(began=begun, config=words['config'] | dict(data='there/faces.zip', license='this clinic only')))
    run, other = (resumed(faces, short, tmp_path/'s.safetensors', found, old),
                  cohort('normal', 8, tmp_path/'other.zip', size=16, seed=1, workers=1, progress=False))
    noted = [dict(file='base.safetensors', data=None, fingerprint=None, license=None),
             dict(data='faces.zip', fingerprint=None, license='this clinic only') | {'from': 0}]
    assert run.history == noted and run.license == 'this clinic only'
    with pytest.raises(ValueError, match=r'has learned from faces.zip \(fingerprint not noted\); .*other.zip is '
                                         r'different'):
        run.learns(ImageFolderDataset(other))
    assert run.learns(ImageFolderDataset(faces)) and not run.learns(ImageFolderDataset(faces))
    assert (run.history[:2] == noted and run.history[2]['from'] == 24
            and run.license.startswith('this clinic only AND CC0-1.0'))
    # none of faces.zip was seen since
    assert (run.learns(ImageFolderDataset(other), other_data=True)
            and [e.get('data') for e in run.history] == [None, 'faces.zip', 'other.zip'])


def test_heads_bring_what_they_have_learned_from(faces, short, tmp_path, monkeypatch):
    from cleftgan_nb.training import state
    _, _, words = short
    monkeypatch.setattr(state, 'read_state', lambda path: ({'aid/heads.0.weight': torch.zeros(1)},
                                                           words | dict(history=[dict(data='secret.zip',
                                                                   license='ours') | {'from': 0}])))
    heads = torch.nn.Module()
    heads.heads = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False)])
    (tmp_path/'s').touch()
    heads.heads[0].weight.data = torch.zeros(1)
    assert (state.earlier(state.warm(heads, tmp_path/'s'), tmp_path/'s')
            == [dict(file='s', data='secret.zip', license='ours') | {'from': 0}])


# Broken and hostile states -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def short(faces, tmp_path_factory):
    "Train for three steps, and return tensors and words"
    out = train(config(faces, tmp_path_factory.mktemp('short')/'run', kimg=.024), progress=False)
    found, meta = checkpoints.read_tensors(out/'state.safetensors')
    return out, found, json.loads(meta['run'])


def resumed(faces, short, path, found, words, checksum=True):
    "Resume a run from these tensors and words"
    from cleftgan_nb.training.state import Run
    checkpoints.write_tensors(path, found, {'run': words if isinstance(words, str) else json.dumps(words)})
    if not checksum: path.write_bytes(path.read_bytes().replace(b'"checksum"', b'"checksun"'))
    return Run(config(faces, short[0]), 16, state=path)


def test_one_flipped_bit_in_a_state_is_told(faces, short, tmp_path):
    "In a weight, in a moment, in the number of images; an old state goes on, and says so"
    out, found, words = short
    good, path = (out/'state.safetensors').read_bytes(), tmp_path/'run'/'state.safetensors'
    path.parent.mkdir()
    rng = random.Random(0)
    for at in [len(good) - 7, good.index(b'nimg') + 9, *(rng.randrange(len(good)) for _ in range(20))]:
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        try: checkpoints.read_tensors(path)
        except ValueError as e: assert 'checksum differs' in str(e) or 'damaged' in str(e)
        else:   # the name of the checksum, or padding
            assert b'"checksum"' not in bad or bad.count(b' ') != good.count(b' ')
    bad = bytearray(good)
    bad[-7] ^= 1
    path.write_bytes(bad)
    with pytest.raises(ValueError, match='state.safetensors cannot be read: its checksum differs'):
        train(config(faces, path.parent), progress=False)
    with pytest.warns(UserWarning, match='from before states had a checksum'):
        old = resumed(faces, short, path, found, words, checksum=False)
    assert all(torch.equal(v, found[k]) for k, v in old.tensors().items())


WEIRD = [None, True, -1, 2**60, 10**400, 1.5, '', 'x'*10**5, [], [[1]], {}, {'x': 1}]

def parts(v, at=()):
    "Find every place in the words of a state"
    if at: yield at
    for k in v if isinstance(v, dict) else range(len(v)) if isinstance(v, list) else ():
        yield from parts(v[k], (*at, k))


def changed(v, at, new):
    "Copy the words, and change one place"
    if not at: return new
    k, *more = at
    v = v.copy()
    v[k] = changed(v[k], more, new)
    return v


@pytest.mark.filterwarnings('ignore')
def test_hostile_states_are_refused_in_words(faces, short, tmp_path):
    "Whatever a place or a tensor holds: a ValueError that names the file, or a run like the one before"
    _, found, words = short
    rng, path, refused = random.Random(1), tmp_path/'s.safetensors', 0
    def attempt(found, words):
        try: run = resumed(faces, short, path, found, words)
        except ValueError as e:
            assert 's.safetensors' in str(e) and len(str(e)) < 1200 and '\n' not in str(e)
            return 1
        run.tick += 1
        run.nimg += 8
        run.follow()
        assert run.tensors().keys() == found.keys()
        return 0
    for text in '[]', 'null', '{', '7', '{"nimg": 3}', '['*10**5: assert attempt(found, text)
    for at in [(k,) for k in words] + rng.choices(list(parts(words)), k=50):
        refused += attempt(found, changed(words, at, rng.choice(WEIRD)))
    for name in [k for k in words if k not in ('began', 'history', 'version')]:
        assert attempt(found, {k: v for k, v in words.items() if k != name}), name
    assert refused > 40
    for name in 'p', 'r_t', 'steps':   # more than a float holds
        assert attempt(found, changed(words, ('ada', name), 10**400)), name
    for name in words['config']:
        attempt(found, words | dict(config={k: v for k, v in words['config'].items() if k != name}))
    for name in ['path_mean', *(rng.choice([k for k in found if k.startswith(o)])
                                for o in ('G/', 'D/', 'G_ema/', 'opt_G/', 'opt_D/'))]:
        for new in None, torch.zeros(3, 7, 1), found[name].double():
            assert attempt({k: v for k, v in found.items() if k != name} | ({} if new is None else {name: new}),
                           words), (name, new)
    for name in 'H/x', 'opt_G/none/step', 'opt_aid/x/step', 'sum', '':
        assert attempt(found | {name: torch.zeros([])}, words), name
    assert (attempt(found, changed(words, ('networks', 'G', 'kwargs', 'channel_max'), 8192))
            and not attempt(found, words))


def test_another_configuration_does_not_go_on(faces, tmp_path):
    train(config(faces, tmp_path/'run', kimg=.08), progress=False)
    with pytest.raises(ValueError, match='different settings'):
        train(config(faces, tmp_path/'run', kimg=.16, d_lr=.01), progress=False)
