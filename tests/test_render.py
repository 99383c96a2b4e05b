"""The phantom's heads and renderer: properties of subdivision, projection and visibility, the same bytes
everywhere, errors in words"""
import hashlib, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.ndimage import gaussian_filter

from cleftgan_nb.data import head as H, render as R, skin as S
from cleftgan_nb.data.colorspace import srgb
from cleftgan_nb.data.view import visible

SEED = 4

PORTRAIT = '''
import hashlib
from cleftgan_nb.data import head as H, render as R, skin as S
def portrait(seed, size):
    head = H.build_head(H.sample_identity(seed)); look = S.sample_look(seed, head.identity)
    return R.render(R.head_parts(head, look), look, R.sample_light(seed), R.sample_camera(seed, head), size)
def digest(seed, size):
    p = portrait(seed, size)
    return hashlib.sha256(p.image.tobytes() + b''.join(p.masks[k].tobytes() for k in sorted(p.masks))).hexdigest()
'''
exec(PORTRAIT)


@pytest.fixture(scope='module')
def scene():
    head = H.build_head(H.sample_identity(SEED))
    return (head, replace(S.sample_look(SEED, head.identity), hair=None), R.sample_light(SEED),
            R.sample_camera(SEED, head))


@pytest.fixture(scope='module')
def picture(scene):
    head, look, light, camera = scene
    return R.render(R.head_parts(head, look), look, light, camera, 96)


# --- subdivision

def grid(n):
    "Make a flat sheet of n × n quads"
    i = np.arange(n*(n + 1)).reshape(n, n + 1)[:, :-1].ravel()
    x, y = np.meshgrid(np.arange(n + 1.), np.arange(n + 1.))
    return np.stack([x.ravel(), y.ravel(), 0*x.ravel()], 1), np.stack([i, i + 1, i + n + 2, i + n + 1], 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_subdivision_keeps_planes_and_moves_with_the_points(n, slope):
    points, quads = grid(n)
    points[:, 2] = points[:, :2] @ slope[:2] + slope[2]
    step, finer = H.catmull_clark_step(quads, len(points))
    np.testing.assert_allclose(np.asarray(step.sum(1)).ravel(), 1, atol=1e-12)
    p = step @ points
    np.testing.assert_allclose(p[:, 2], p[:, :2] @ slope[:2] + slope[2], atol=1e-9)
    assert len(finer) == 4*len(quads) and len(p) == len(points) + len(quads) + 2*n*(n + 1)


def test_cube_approaches_the_published_limit():
    points = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    for _ in range(5):
        step, quads = H.catmull_clark_step(quads, len(points))
        points = step @ points
    # limit of a vertex of valence n: (n² v + 4 Σ edge neighbors + Σ face neighbors) / (n (n+5)); cube's corner, n = 3
    corner = (9*np.ones(3) + 4*np.ones(3) + (-np.ones(3)))/24
    np.testing.assert_allclose(np.abs(points[:8]), np.broadcast_to(corner, (8, 3)), atol=2e-3)
    np.testing.assert_allclose(np.abs(points).max(), points[:, 2].max(), atol=1e-12)


def test_labels_stay_and_fine_points_start_with_the_coarse():
    t, n = H.topology(), len(H.mesh()['V'])
    np.testing.assert_allclose(t.base[:n], H.mesh()['V'], atol=1e-6)
    assert t.quads.max() < len(t.base) and t.textured.max() < len(t.seam) and t.middle.max() < len(t.base)
    np.testing.assert_array_equal(t.seam[t.textured], t.quads)


# --- identities

def test_what_is_given_changes_nothing_else():
    one, two = H.sample_identity(7), H.sample_identity(7, age=.4, sex=0, ancestry=dict(asian=1))
    assert ((one.weight, one.muscle, one.details, one.asymmetry, one.expression)
            == (two.weight, two.muscle, two.details, two.asymmetry, two.expression))
    assert H.sample_identity(7, age=one.age, sex=one.sex, ancestry=one.ancestry) == one


def test_half_are_under_six():
    ages = np.array([H.sample_age(H.stream(s, 'age')) for s in range(3000)])
    assert .5 <= (ages < 6).mean() <= .57 and .24 < (ages < 1).mean() < .32 and ages.min() >= .25


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_heads_are_finite_and_eyes_stay_in_place(seed):
    head = H.build_head(H.sample_identity(seed))
    assert np.isfinite(head.fine).all()
    np.testing.assert_allclose(H.eyes(head.coarse)[0].mean(0), H.eyes(H.mesh()['V'].astype(float))[0].mean(0),
                               atol=1e-6)
    wings = head.fine[[head.vertex(7099), head.vertex(7099, 'right')], 0]
    assert wings[0] > 0 > wings[1]


@settings(max_examples=30, deadline=None)
@given(st.floats(-60, 65))
def test_skin_has_the_angle_that_was_asked_for(angle):
    color = S.skin_color(angle)
    assert (abs(S.ita(color) - angle) < 1e-6 and (0 < color).all() and (color < 1).all()
            and color[0] > color[1] > color[2])


@pytest.mark.parametrize('seed', range(6))
def test_the_truth_is_the_cheeks_albedo(seed):
    look = S.sample_look(seed, H.sample_identity(seed))
    cheek = S.skin_albedo(look, H.topology().uv[S.regions()['cheek']]).mean(0)
    assert abs(S.ita(cheek) - look.ita) < 2


# --- pictures

def test_same_bytes_in_another_process():
    code = PORTRAIT + "print(digest(5, 48), digest(6, 32))"
    other = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert other == [digest(5, 48), digest(6, 32)]
    assert other[0] != digest(7, 48)


def test_masks_partition_the_picture(picture):
    assert set(picture.masks) == set(R.KINDS)
    assert all(m.dtype == bool and m.shape == (96, 96) for m in picture.masks.values())
    assert (sum(m.astype(int) for m in picture.masks.values()) == 1).all()
    assert (picture.masks['face skin'].mean() > .15 and picture.masks['lips'].sum() > 30
            and picture.masks['eyes'].sum() > 20)
    assert not picture.masks['gap'].any()


def test_landmarks_project_to_where_they_are_drawn(scene):
    head, look, _, camera = scene
    n = 384
    frame = visible(R.head_parts(head, look), camera, n)
    for v, side in ((297, 'left'), (466, 'left'), (7216, 'left'), (7216, 'right'), (5225, 'left')):
        point = head.fine[head.vertex(v, side)]
        x, y = camera.project(point[None], n)[0]
        depth = camera.distance - camera.view(point[None])[0, 2]
        assert frame.part[int(y), int(x)] == 0 and abs(frame.depth[int(y), int(x)] - depth) < .02, (v, side)


def test_projection_scales_with_the_size(scene):
    head, camera = scene[0], scene[3]
    np.testing.assert_allclose(camera.project(head.fine[:50], 64)*4, camera.project(head.fine[:50], 256))


def test_lips_and_eyes_lie_where_their_landmarks_are(scene, picture):
    head, camera = scene[0], scene[3]
    for name, want in (('lips', head.coarse[[head.vertex(466), head.vertex(492)]].mean(0)),
                       ('eyes', H.eyes(head.coarse)[0].mean(0))):
        y, x = np.nonzero(picture.masks[name])
        assert np.hypot(*(np.array([x.mean() + .5, y.mean() + .5]) - camera.project(want[None], 96)[0])) < 5, name


def square(z, material, cut=None, half=1.):
    p = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])*half + (0, 0, z)
    return R.Part(p, np.array([[0, 1, 2], [0, 2, 3]]), p[:, :2], material, cut=cut)


AHEAD = R.Camera(np.zeros(3), np.eye(3), 10., 2., (0., 0.), (0., 0., 0.))


@pytest.mark.parametrize('order', (1, -1))
def test_the_nearer_part_hides_the_other(order):
    parts = [square(0, 'skin'), square(-1, 'gum', half=.5)][::order]
    frame = visible(parts, AHEAD, 64)
    assert set(np.unique(frame.part)) == {-1, 0 if order == 1 else 1}
    parts = [square(0, 'skin'), square(1, 'gum', half=.5)][::order]
    assert (visible(parts, AHEAD, 64).part == (1 if order == 1 else 0)).sum() > 200


@pytest.mark.parametrize('half_width', (.1, .3, .7))
def test_a_cut_removes_as_much_as_it_says(half_width):
    cut = np.array([[-1, half_width], [1, half_width], [1, half_width], [-1, half_width]])
    n = 200
    whole, opened = ((visible([square(0, 'skin', c)], AHEAD, n).part == 0).sum() for c in (None, cut))
    assert abs(1 - opened/whole - half_width) < .02
    behind = visible([square(0, 'skin', cut), square(-.5, 'gum', half=2)], AHEAD, n)
    assert (((behind.hole < behind.depth) == ((behind.part == 1) & (behind.hole < 1e8))).all()
            and (behind.hole < behind.depth).any())


def test_a_gap_changes_nothing_far_away(scene, picture):
    head, look, light, camera = scene
    p, peak, nose = head.fine, head.coarse[head.vertex(7216)], head.coarse[head.vertex(5072)]
    lip = H.topology().upper & (p[:, 1] < nose[1]) & (p[:, 2] > nose[2] - .25)
    cut = np.stack([p[:, 0] - peak[0], .04*lip], 1)
    opened = R.render(R.head_parts(head, look, cut=cut), look, light, camera, 96)
    assert 5 < opened.masks['gap'].sum() < 200
    apart = np.abs(opened.image.astype(int) - picture.image).max(-1)
    different = apart > 3   # a little more or less light may reach the cheek
    y, x = np.nonzero(different)
    assert (different.any() and (apart[:30] == 0).all()
            and np.hypot(*(camera.project(peak[None], 96)[0][:, None] - (x, y))).max() < 25)
    assert opened.image[opened.masks['gap']].mean() < picture.image[opened.masks['gap']].mean()


@pytest.mark.parametrize('seed', range(60, 84))
def test_the_mouths_depth_shows_between_the_lips_only(seed):
    head = H.build_head(H.sample_identity(seed))
    parts, camera = R.head_parts(head, S.sample_look(seed, head.identity)), R.frontal(head)
    frame = visible(parts, camera, 192)
    y, x = np.nonzero(np.isin(frame.part, [k for k, p in enumerate(parts) if p.material in ('cavity', 'gum', 'teeth')]))
    (left, right), slit = (camera.project(head.coarse[[head.vertex(v, s) for v, s in pair]], 192)
                           for pair in (((7099, 'left'), (7099, 'right')), ((474, 'left'), (493, 'left'))))
    assert (abs(x - slit[0, 0]) < .9*(left[0] - right[0])).all() and (abs(y - slit[:, 1].mean()) < 12).all()


def test_tints_show(scene, picture):
    head, look, light, camera = scene
    cheek = (np.exp(-np.square((head.fine - head.fine[head.vertex(7099)])[:, :2] - (.25, 0)).sum(1)/.1**2)
             * (head.fine[:, 2] > .8))
    red, pale = (R.render(R.head_parts(head, look, tint={k: cheek}), look, light, camera, 96).image.astype(float)
                 for k in ('mucosa', 'scar'))
    spot = (np.abs(red - picture.image) > 8).any(-1)
    assert spot.sum() > 20
    assert (red[spot][:, 0]/red[spot][:, 1]).mean() > 1.1*(picture.image[spot][:, 0]/picture.image[spot][:, 1]).mean()
    assert pale[spot].mean() > picture.image[spot].mean()


def test_noise_averages_out_in_smaller_pictures(scene, picture):
    "A smaller photograph's pixels are means of a larger one's"
    for size, want in ((64, .0004375), (256, .00175), (1024, .007)):
        assert abs(R.grain(SEED, size).std()/want - 1) < .02, size
    corner = lambda size: R.render(R.head_parts(*scene[:2]), scene[1], *scene[2:],
                                   size).image[:size//12, :size//12].astype(float)
    rough = {size: np.abs(np.diff(corner(size), 2, axis=0)).mean() for size in (64, 384)}
    assert rough[64] < 1 < rough[384], rough   # gray levels; 1.8 of noise would make it 3.5 in both


@pytest.mark.parametrize('kind', S.BACKDROPS)
def test_backdrops_are_as_calm_as_prepare_leaves_them(kind):
    for seed in range(6):
        behind = srgb(S.backdrop(replace(S.sample_look(seed, H.sample_identity(seed)), backdrop=kind), 64))
        again = gaussian_filter(behind, (64/S.BACKGROUND_BLUR, 64/S.BACKGROUND_BLUR, 0), mode='nearest')
        assert (np.abs(behind - again).max() < .06 and max(np.abs(np.diff(behind, axis=a)).max() for a in (0, 1))
                < .06), seed


def test_most_stand_before_a_sheet_or_a_wall():
    kinds = [S.sample_look(s, H.sample_identity(s)).backdrop for s in range(400)]
    assert .68 < np.isin(kinds, ('plain', 'wall')).mean() < .82 and .02 < np.isin(kinds, 'lights').mean() < .09


def test_some_men_have_beards():
    people = [H.sample_identity(s) for s in range(800)]
    beards = np.array([S.sample_look(s, who).beard for s, who in enumerate(people)])
    men = np.array([who.sex > .5 and who.age >= 18 for who in people])
    assert not beards[~men].any() and .35 < beards[men].any(1).mean() < .65 and (beards < 1).all() and beards.max() > .9


def test_a_beard_is_painted_on_the_lower_face_and_changes_no_mask(scene, picture):
    head, look, light, camera = scene
    grown = R.render(R.head_parts(head, look), replace(look, beard=(.9, .9)), light, camera, 96)
    assert all((grown.masks[k] == picture.masks[k]).all() for k in R.KINDS)
    at = lambda point: camera.project(point[None], 96)[0]
    eye, nose, slit = (at(p) for p in (H.eyes(head.coarse)[0].mean(0), head.coarse[head.vertex(5072)],
                                       head.coarse[head.vertex(493)]))
    y, x = np.nonzero((np.abs(grown.image.astype(int) - picture.image) > 4).any(-1))
    # beside the nose, sideburns only
    assert len(y) > 200 and y.min() > eye[1] - 4 and (np.abs(x[y < nose[1] - 4] + .5 - slit[0]) > 8).all()
    below = slice(int(slit[1]) + 6, int(slit[1]) + 12), slice(int(slit[0]) - 4, int(slit[0]) + 4)
    assert grown.image[below].mean() < .9*picture.image[below].mean()


@pytest.mark.parametrize('what', ('points', 'light', 'look'))
def test_aspects_are_independent(scene, what):
    head, look, light, camera = scene
    small = lambda head=head, look=look, light=light: R.render(R.head_parts(head, look), look, light, camera, 32)
    changed = dict(points=lambda: small(H.Head(head.identity, head.coarse, head.fine*1.02)),
                   light=lambda: small(light=R.sample_light(9)),
                   look=lambda: small(look=replace(look, iris=(.1, .2, .3))))[what]()
    still = small()
    corner = still.masks['background'] & changed.masks['background']
    corner[2:] &= corner[:-2]
    corner[:, 2:] &= corner[:, :-2]
    corner[:-2] &= corner[2:]
    corner[:, :-2] &= corner[:, 2:]
    assert (still.image[corner] == changed.image[corner]).all() and (still.image != changed.image).any()


# --- errors

@pytest.mark.parametrize('call, words', (
    (lambda: H.stream('a', 'light'), "seed='a'; accepted: a whole number from 0 up"),
    (lambda: H.sample_identity(1, age=91), 'age=91; accepted: a number from 0 to 90'),
    (lambda: H.sample_identity(1, sex='f'), "sex='f'; accepted: a number from 0 to 1"),
    (lambda: H.sample_identity(1, ancestry=dict(european=1)), 'accepted: shares of african, asian, caucasian'),
    (lambda: H.build_head(3), 'int is not an identity; accepted: what sample_identity'),
    (lambda: H.row(20000), 'vertex 20000 of hm08 is not part of the head'),
    (lambda: H.row(297, 'up'), "side='up'; accepted: 'left', 'right'"),
    (lambda: H.morph({'nose-longer': 1}), "no morph target 'nose-longer'"),
    (lambda: S.sample_look(1, 'me'), 'str is not an identity'),
    (lambda: square(0, 'glass'), "material='glass'; accepted: skin, cloth"),
    (lambda: square(0, 'skin', np.zeros((3, 2))), 'cut of the skin is [3, 2]; accepted: [4, 2]'),
    (lambda: R.Part(np.zeros((4, 3)), np.array([[0, 1, 2]]), np.zeros((4, 2)), 'gum', tint=dict(scar=np.zeros(3))),
     "tint 'scar' of the gum is [3]; accepted: [4]"),
))
def test_errors_say_what_is_accepted(call, words):
    with pytest.raises(ValueError) as e: call()
    assert words in str(e.value)


def test_errors_of_parts_and_pictures(scene):
    head, look, light, camera = scene
    for call, words in (
            (lambda: R.head_parts(head, look, head.coarse), 'points are [6181, 3]; accepted: [78109, 3]'),
            (lambda: R.head_parts(head, look, cut=np.zeros((5, 2))), 'cut has 5 rows; accepted: 78109'),
            (lambda: R.head_parts(head, look, tint=dict(scar=np.zeros(5))), 'scar has 5 rows; accepted: 78109'),
            (lambda: R.render([], look, light, camera), 'parts: accepted: a list of Part'),
            (lambda: R.render([square(0, 'skin')], look, camera, light),
             'Camera is not a Light; accepted: what sample_light(…) returns'),
            (lambda: R.render([square(0, 'skin')], look, light, camera, 7),
             'size=7; accepted: a whole number from 8 to 2048'),
            (lambda: R.render([square(0, 'skin')], look, light, camera, 32, 0),
             'samples=0; accepted: a whole number from 1 to 8')):
        with pytest.raises(ValueError) as e: call()
        assert words in str(e.value)
