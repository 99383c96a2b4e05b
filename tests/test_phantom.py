"The phantom: the same bytes for the same seed, equal steps for equal severities, and a truth that the picture shows"
import hashlib, math, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from cleftgan_nb.data.cleft import Cleft, Side, extent, open_cleft, targets
from cleftgan_nb.data.cohorts import Recipe, against_published, cohort, person
from cleftgan_nb.data.datasets import about, manifest
from cleftgan_nb.data.head import build_head, sample_identity, sample_mouth, topology
from cleftgan_nb.data.measures import MIDDLE, NAMES, SIDED, measures
from cleftgan_nb.data.portrait import phantom, scene, visible_change, worse_side


def sha(array): return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_same_bytes_in_another_process():
    code = ('import hashlib; from cleftgan_nb.data.portrait import phantom; '
            'print(hashlib.sha256(phantom(11, .6, "left", 64)[0].tobytes()).hexdigest())')
    other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == sha(phantom(11, .6, 'left', 64)[0])


def test_same_dataset_with_one_worker_and_two(tmp_path):
    one, two = (cohort('cleft', 6, tmp_path/f'{n}.zip', size=32, workers=n, progress=False) for n in (1, 2))
    assert one.read_bytes() == two.read_bytes()
    other = cohort('cleft', 6, tmp_path/'other.zip', size=32, seed=1, workers=1, progress=False)
    assert other.read_bytes() != one.read_bytes()


@pytest.mark.slow
def test_equal_steps_of_severity_look_equal():
    steps = np.array([0, .05, .2, .4, .6, .8, 1])
    for seed in range(500, 520):
        change = visible_change(seed, steps, ('left', 'right', 'bilateral')[seed % 3])
        assert (np.diff(change) > 0).all(), f'phantom {seed}: {change}'
        assert np.corrcoef(steps, change)[0, 1]**2 >= .98, f'phantom {seed}: {change}'


def test_a_cleft_changes_nothing_but_the_middle_of_the_face():
    plain, truth = phantom(7, 0, size=128)
    cleft, _ = phantom(7, .9, 'left', 128)
    eyes = int(min(truth.landmarks[f'en_{s}'][1] for s in ('left', 'right')))
    # a shadow's edge may round to the next gray level
    change = np.abs(plain[:eyes - 8].astype(int) - cleft[:eyes - 8])
    assert change.max() <= 1 and (change > 0).mean() < 1e-3 and (plain != cleft).any()


def test_the_gap_is_on_the_patients_side():
    for side, sign in (('left', 1), ('right', -1)):
        _, truth = phantom(12, .8, side, 128)
        gap = np.argwhere(truth.masks['gap'])[:, 1].mean() + .5
        assert sign*(gap - truth.landmarks['ls'][0]) > 0
        low, high = sorted(truth.landmarks[f'{k}_{side}'][0] for k in ('cphs', 'cphl'))
        assert low - 3 < gap < high + 3
        assert truth.laterality == side and truth.lahshal == ('••••••L' if side == 'left' else 'L••••••')


def test_gums_have_a_color_of_their_own_in_a_gap_only():
    for cleft, seen in ((Cleft(), False), (Cleft(Side(.7, .5), repaired=True), False), (Cleft(Side(.7, .5)), True)):
        usual, other = (replace(s := scene(12, cleft), look=replace(s.look, gum=gum)).render(64)
                        for gum in ((1., 1., 1.), (1.2, .8, .8)))
        assert (usual.image != other.image).any() == seen
        assert all((usual.masks[k] == other.masks[k]).all() for k in usual.masks)
    gums = np.array([scene(s).look.gum for s in range(40)])
    assert (gums.std(0) > .05).all() and (gums > .6).all() and (gums < 1.6).all()


def test_masks_share_every_pixel_out():
    _, truth = phantom(3, .5, 'bilateral', 64)
    assert (sum(mask.astype(int) for mask in truth.masks.values()) == 1).all()


def test_wider_clefts_have_larger_gaps_and_ratios():
    truths = [phantom(12, s, 'left', 128)[1] for s in (.2, .5, .8, 1)]
    assert (np.diff([t.masks['gap'].sum() for t in truths]) > 0).all()
    for name in ('cleft_width_ratio', 'nostril_width_ratio', 'columellar_deviation'):
        assert (np.diff([t.measures[name] for t in truths]) > 0).all(), name
    assert (np.diff([t.measures['philtral_height_ratio'] for t in truths]) < 0).all()


def test_a_repaired_lip_has_no_gap_but_a_trace():
    open_, closed, plain = (phantom(12, size=128, cleft=c)
                            for c in (Cleft(Side(.7, .7)), Cleft(Side(.7, .7), repaired=True), Cleft()))
    assert open_[1].masks['gap'].sum() > 4*closed[1].masks['gap'].sum()
    assert closed[1].measures['cleft_width_ratio'] < .01 and closed[1].severity == .7 and closed[1].repaired
    assert (closed[0] != plain[0]).any()


def test_measures_reach_their_targets():
    errors = []
    for i in range(40):
        who = person('cleft', i)
        cleft = who['cleft']
        if cleft.left.lip and cleft.right.lip: continue
        s = open_cleft(build_head(sample_identity(who['seed'], sex=who['sex'])), cleft)
        side = worse_side(cleft)
        sign = 1 if side == 'left' else -1
        goal = targets(cleft)
        m = measures({k: (1000*v[0], -1000*v[1]) for k, v in s.landmarks.items()}, side)
        errors.append((m['columellar_deviation'] - sign*goal['columella'],
                       m['nostril_width_ratio'] - (goal['nostril_left']/goal['nostril_right'])**sign,
                       m['philtral_height_ratio'] - goal['philtrum']**sign))
    columella, nostril, philtrum = np.abs(np.array(errors)).T
    assert np.nanmedian(columella) < 2 and np.median(nostril) < .03 and np.median(philtrum) < .02


def test_the_cohort_has_the_published_measures():
    rows = [scene(**person('cleft', i, seed=3)).truth().row() for i in range(300)]
    assert [r for r in against_published(rows) if not r['agrees']] == []


def test_shares_of_a_cohort():
    people = [person('cleft', i) for i in range(3000)]
    left = np.mean([p['cleft'].left.lip > 0 and p['cleft'].right.lip == 0 for p in people])
    male = np.mean([p['sex'] > .5 for p in people])
    assert abs(left - Recipe().left) < .03 and abs(male - Recipe().male) < .03
    lip, nose = np.array([max((s.lip, s.nose) for s in (p['cleft'].left, p['cleft'].right)) for p in people]).T
    assert .35 < np.corrcoef(lip, nose)[0, 1] < .7 and (lip == 1).sum() == 0 and lip.min() >= Recipe().least


def test_half_the_patients_are_under_six():
    ages = np.array([sample_identity(person('cleft', i)['seed']).age for i in range(2000)])
    assert .45 < (ages < 6).mean() < .6 and (ages < 1).mean() > .15


def test_nobody_is_in_two_cohorts():
    seeds = [person(kind, i, seed)['seed'] for kind in ('normal', 'cleft') for seed in (0, 1) for i in range(50)]
    assert len(set(seeds)) == len(seeds)


def test_controls_are_a_little_uneven():
    rows = [scene(**person('normal', i)).truth().measures for i in range(60)]
    for name in ('nostril_width_ratio', 'philtral_height_ratio', 'lip_length_ratio'):
        assert .01 < np.std([r[name] for r in rows]) < .2, name
    assert all(r['cleft_width_ratio'] < 1e-3 for r in rows)


def test_the_manifest_has_the_truth(tmp_path):
    path = cohort('cleft', 3, tmp_path/'three', size=48, workers=1, progress=False)
    for i, row in enumerate(manifest(path)):
        image, truth = phantom(**person('cleft', i), size=48)
        assert (row['seed'] == truth.seed and row['lahshal'] == truth.lahshal
                and math.isclose(row['lip_left'], truth.lip_left))
        assert (math.isclose(row['x_sn'], truth.landmarks['sn'][0], rel_tol=1e-9)
                and math.isclose(row['cleft_width_ratio'], truth.measures['cleft_width_ratio'], rel_tol=1e-9))
        assert row['sha256'] == sha(image)


point = st.tuples(st.floats(-40, 40), st.floats(-40, 40))

@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries({name: point for name in NAMES}), st.floats(-3, 3), st.floats(.1, 10), point)
def test_measures_do_not_feel_turns_scales_and_shifts(jitter, angle, scale, shift):
    base = {name: (100*k, 37*k % 400) for k, name in enumerate(NAMES)} | {'en_left': (900, 0), 'en_right': (100, 10)}
    points = {name: np.add(base[name], jitter[name]) for name in NAMES}
    c, s = scale*math.cos(angle), scale*math.sin(angle)
    moved = {name: (c*x - s*y + shift[0], s*x + c*y + shift[1]) for name, (x, y) in points.items()}
    a, b = measures(points), measures(moved)
    for name in a:
        assert (math.isclose(a[name], b[name], rel_tol=1e-5, abs_tol=1e-4) or math.isnan(a[name])
                or math.isnan(b[name]) or abs(abs(a[name] - b[name]) - 360) < 1e-3), name


def test_swapping_the_sides_inverts_the_ratios():
    _, truth = phantom(5, .6, 'left', 64)
    left, right = measures(truth.landmarks, 'left'), measures(truth.landmarks, 'right')
    for name in ('nostril_width_ratio', 'alar_base_ratio', 'philtral_height_ratio', 'lip_length_ratio',
                 'lateral_lip_height_ratio'):
        assert math.isclose(left[name]*right[name], 1)
    assert math.isclose(left['columellar_deviation'], -right['columellar_deviation'])


@pytest.mark.parametrize('wrong, word', [
    (dict(seed=-1), 'seed'), (dict(seed=1.5), 'seed'), (dict(seed=1, severity=-.1), 'severity'),
    (dict(seed=1, severity=float('nan')), 'severity'), (dict(seed=1, severity='high'), 'severity'),
    (dict(seed=1, severity=.5, laterality='Left'), 'laterality'), (dict(seed=1, size=8), 'size'),
    (dict(seed=1, size=64.), 'size'), (dict(seed=1, severity=.5, cleft=Cleft()), 'cleft'),
    (dict(seed=1, cleft=Cleft(Side(.5)), repaired=True), 'either cleft'), (dict(seed=1, cleft='left'), 'a Cleft'),
    (dict(seed=1, nose=.8), 'severity is 0'), (dict(seed=1, laterality='left'), 'severity is 0'),
    (dict(seed=1, severity=.5, repaired='no'), 'repaired'), (dict(seed=1, severity=.5, nose='x'), 'nose'),
    (dict(seed=1, age=200), 'age'), (dict(seed=1, ancestry=dict(martian=1)), 'ancestry'),
    (dict(seed=1, severity=.5, nose=2), 'nose')])
def test_wrong_arguments_are_named(wrong, word):
    with pytest.raises(ValueError, match=word): phantom(**wrong)


@pytest.mark.parametrize('wrong, word', [(dict(lip='a'), 'lip'), (dict(lip=1.1), 'lip'),
                                         (dict(nostril=float('nan')), 'nostril'), (dict(columella=400), 'columella'),
                                         (dict(philtrum=-1), 'philtrum')])
def test_wrong_sides_are_named(wrong, word):
    with pytest.raises(ValueError, match=f'{word}='): Side(**wrong)


@pytest.mark.parametrize('wrong, word', [(dict(left=.9, right=.9), 'more than 1; the rest is bilateral'),
                                         (dict(male=2), 'male=2'), (dict(lively=-.1), 'lively=-0.1')])
def test_wrong_recipes_are_named(wrong, word):
    with pytest.raises(ValueError, match=word): Recipe(**wrong)


def test_bands_bridge_complete_clefts_only():
    for i in range(400):
        cleft = person('cleft', i)['cleft']
        if cleft.simonart: assert 'complete' in [extent(s) for s in (cleft.left, cleft.right)] and not cleft.repaired
    plain, banded = (phantom(12, cleft=Cleft(Side(.9, .9), simonart=band), size=128)[1].masks['gap'].sum()
                     for band in (False, True))
    assert .3*plain < banded < .95*plain


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='reads /proc')
def test_workers_end_with_their_parent(tmp_path):
    code = ('from cleftgan_nb.data.cohorts import cohort\nif __name__ == "__main__": cohort("normal", 400, '
            f'r"{tmp_path/"x.zip"}", size=32, workers=2, progress=False)')
    (tmp_path/'run.py').write_text(code)
    run = subprocess.Popen([sys.executable, tmp_path/'run.py'])
    children = lambda: {int(p) for p in Path(f'/proc/{run.pid}/task/{run.pid}/children').read_text().split()}
    try:
        deadline = time.time() + 60
        while len(found := children()) < 3 and time.time() < deadline:   # two workers and multiprocessing's tracker
            time.sleep(.2)
        time.sleep(4)                                                                       # until they draw
    finally:
        run.terminate()
        run.wait()
    assert len(found) >= 2
    deadline = time.time() + 30
    while (left := [p for p in found if Path(f'/proc/{p}').exists()]) and time.time() < deadline: time.sleep(.2)
    assert not left


@pytest.mark.parametrize('wrong, word', [(dict(kind='x'), 'normal, cleft'), (dict(kind='cleft', n=0), 'n=0'),
                                         (dict(kind='cleft', n=2, size=5), 'size=5'),
                                         (dict(kind='cleft', n=2, workers=0), 'workers')])
def test_wrong_cohorts_write_nothing(tmp_path, wrong, word):
    with pytest.raises(ValueError, match=word): cohort(path=tmp_path/'x.zip', progress=False, **wrong)
    assert list(tmp_path.iterdir()) == []


# ---- lively people

def test_nobody_is_lively_unless_asked(tmp_path):
    "Generators learned from the default recipe's pictures, so neither they nor their records may change"
    path = cohort('cleft', 2, tmp_path/'a.zip', size=16, workers=1, progress=False)
    assert 'mouth' not in manifest(path)[0] and 'lively' not in about(path)['parameters']['recipe']
    assert all('lively' not in person(kind, i) for kind in ('normal', 'cleft') for i in range(200))


def test_a_lively_face_keeps_cleft_camera_and_light_and_moves_its_mouth():
    seed = next(s for s in range(300) if sample_mouth(s)[0] == 'laugh')
    calm, lively = (scene(seed, Cleft(Side(lip=.5)), age=30., sex=1., lively=a) for a in (False, True))
    assert calm.cleft == lively.cleft and calm.truth(64).pose == lively.truth(64).pose
    assert (calm.camera.center == lively.camera.center).all() and (calm.light.colors == lively.light.colors).all()
    moved = np.abs(calm.head.fine - lively.head.fine).max(1)
    assert moved.max() > .01 and moved[topology().base[:, 1] > 7.9].max() < 1e-9    # dm; nothing above the forehead


def test_a_grin_shows_teeth_between_the_lips_only():
    seed = next(s for s in range(300) if sample_mouth(s)[0] == 'grin')
    calm, grin = (phantom(seed, size=96, age=30., lively=a)[1] for a in (False, True))
    assert grin.masks['mouth'].sum() > calm.masks['mouth'].sum() + 4
    rows, columns = np.nonzero(grin.masks['mouth'])
    p = grin.landmarks
    assert p['ch_right'][0] - 2 < columns.min() and columns.max() < p['ch_left'][0] + 2 and rows.min() > p['sn'][1]


def test_a_lively_cohort_says_so(tmp_path):
    path = cohort('normal', 4, tmp_path/'a.zip', size=16, recipe=Recipe(lively=.5), workers=1, progress=False)
    assert about(path)['parameters']['recipe']['lively'] == .5 and about(path)['command'].endswith('--lively 0.5')
    said = [r['mouth'] for r in manifest(path)]
    assert said == [sample_mouth(w['seed'])[0] if w.get('lively') else 'clinic'
                    for w in (person('normal', i, 0, Recipe(lively=.5)) for i in range(4))]
