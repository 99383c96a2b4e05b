"""Fairness: skin tone and side of phantoms with a known truth, intervals against published ones, tables, refusals"""
import csv

import numpy as np, pytest
from hypothesis import given, settings, strategies as st

from cleftgan_nb.data.cards import SKIN
from cleftgan_nb.data.cleft import Cleft, Side
from cleftgan_nb.data.portrait import phantom
from cleftgan_nb.data.skin import ita, skin_color
from cleftgan_nb.data.colorspace import srgb
from cleftgan_nb.metrics.composition import (GAPS, LATERALITIES, SEVERITIES, compare_groups, difference, fairness,
                                             laterality, laterality_index, plot_composition, properties,
                                          severity_groups, skin_tone, tone_groups, tone_shift)
from cleftgan_nb.metrics.severity import load_regression
from cleftgan_nb.study.provenance import recipe, save_table


@pytest.fixture(scope='module')
def people():
    "Draw the same four people with a cleft on the left, on the right, on both sides, and none"
    clefts = Cleft(Side(.9, .6), Side()), Cleft(Side(), Side(.9, .6)), Cleft(Side(.9, .6), Side(.9, .6)), Cleft()
    drawn = [phantom(seed=s, cleft=c, size=64) for s, c in zip((11, 12, 13, 14), clefts)]
    return np.stack([image for image, _ in drawn]), [truth for _, truth in drawn]


def test_sides_of_phantoms(people):
    scorer = load_regression()
    assert laterality(scorer.sides(people[0])) == ['left', 'right', 'bilateral', 'closed']
    assert (laterality(scorer.sides(np.ascontiguousarray(people[0][:, :, ::-1])))
            == ['right', 'left', 'bilateral', 'closed'])


@pytest.mark.parametrize('angle', [-50, -10, 20, 35, 50, 60])
def test_tone_of_an_evenly_lit_face(angle):
    "Skin of a known angle fills the picture, in full light, with hair above and some glare"
    color = np.rint(255*srgb(skin_color(angle)))
    image = np.tile(color.astype(np.uint8), (1, 64, 64, 1))
    image[:, :18] = 10
    image[:, 30:32, 30:34] = 255
    assert skin_tone(image, None)[0] == pytest.approx(float(ita(skin_color(angle))), abs=2)
    assert skin_tone(image, (2., 5.))[0] == pytest.approx(2*skin_tone(image, None)[0] + 5)


def test_tone_of_phantoms_and_sizes(people):
    images, truths = people
    tone = skin_tone(images)
    assert np.abs(tone - [t.ita for t in truths]).mean() < 20 and tone.shape == (4,)
    assert skin_tone(images.repeat(2, 1).repeat(2, 2)) == pytest.approx(tone, abs=1e-6)
    assert skin_tone(iter([images[:1], images[1:]])) == pytest.approx(tone, abs=1e-12)


def test_difference_agrees_with_newcombe_1998():
    for k, n, j, m, low, high in ((48, 80, 56, 70, .0524, .3339), (3, 10, 9, 10, .1705, .8090),
                                  (0, 20, 0, 10, -.1611, .2775), (0, 10, 10, 10, .6075, 1.)):
        assert difference(k, n, j, m) == pytest.approx((low, high), abs=1e-4)


@given(st.lists(st.sampled_from('abc'), min_size=1, max_size=60),
       st.lists(st.sampled_from('abc'), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_tables_add_up(a, b):
    rows, back = compare_groups(a, b, 'letter', 'abc'), compare_groups(b, a, 'letter', 'abc')
    assert (sum(r['training'] for r in rows) == pytest.approx(1)
            and sum(r['difference'] for r in rows) == pytest.approx(0))
    for r, q in zip(rows, back):
        assert (r['training_low'] <= r['training'] <= r['training_high']
                and r['difference_low'] <= r['difference'] <= r['difference_high'])
        assert (r['difference_low'], r['unlike']) == (pytest.approx(-q['difference_high']), q['unlike'])
    assert not any(r['unlike'] for r in compare_groups(a, a, 'letter', 'abc'))


def test_a_group_that_is_gone_is_marked():
    rows = compare_groups(['dark']*60 + ['light']*454, ['light']*2000, 'tone', ['dark', 'light'])
    assert all(r['unlike'] for r in rows) and rows[0]['difference_high'] < -.08


def test_a_table_that_can_be_saved(people, tmp_path):
    class Sides:
        def sides(self, images): return np.tile([.5, 0.], (len(images), 1))
    rows = fairness(people[0], people[0][[0, 1, 1]], Sides())
    assert [r['group'] for r in rows] == [*SKIN, *LATERALITIES, *SEVERITIES, *LATERALITIES, *GAPS]
    assert {r['n_generated'] for r in rows} == {3}
    assert [r['generated'] for r in rows if r['property'] == 'side'] == [1, 0, 0, 0]
    path = save_table(rows, tmp_path/'fairness.csv', recipe('composition', {}))
    assert len(list(csv.DictReader(path.open()))) == 25
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    fig = plot_composition(rows)
    assert [ax.get_title() for ax in fig.axes] == ['skin tone', 'side', 'severity', 'side, by the gap', 'gap']
    plt.close(fig)


def test_a_lip_is_open_where_both_instruments_see_it(people):
    class Sides:
        def sides(self, images): return np.tile([.5, 0.], (len(images), 1))
    class Gaps:
        def sides(self, images): return np.array([[.2, 0.], *[[.05, 0.]]*(len(images) - 1)])
    alone, both = (properties(people[0], Sides(), segmenter=Gaps(), agree=agree)['side'] for agree in (False, True))
    assert set(alone) == {'left'} and list(both) == ['left', *['closed']*(len(people[0]) - 1)]


def test_groups():
    assert tone_groups(np.array([-30.1, -30, 28, 90])) == [list(SKIN)[k] for k in (0, 1, 3, 5)]
    assert severity_groups([.09, .1, .8, 1]) == ['closed', '0.1 to 0.2', '0.8 to 1', '0.8 to 1']
    s = np.random.default_rng(0).random((50, 2))
    assert laterality_index(s[:, ::-1]) == pytest.approx(-laterality_index(s), nan_ok=True)


def test_tone_shift():
    a = np.random.default_rng(0).normal(20, 30, 300)
    s = tone_shift(a, a - 20)
    assert (s.value == pytest.approx(-20) and s.high < 0 and s.notes['wasserstein'] == pytest.approx(20)
            and s == tone_shift(a, a - 20))
    assert s.low == tone_shift(a, a - 20).low != tone_shift(a, a - 20, seed=1).low


@pytest.mark.parametrize('call, message', [
    (lambda: skin_tone(np.zeros((2, 64, 64, 1), np.uint8)), 'have 1 channel; accepted: 3'),
    (lambda: skin_tone(np.zeros((2, 8, 8, 3), np.uint8)), 'at least 16 x 16'),
    (lambda: tone_groups(np.array([1, np.nan])), '1 of 2 are not finite'),
    (lambda: laterality([[.1, .2, .3]]), r'sides has shape \[1, 3\]'),
    (lambda: laterality([[.1, np.nan]]), 'not finite'),
    (lambda: severity_groups([2.]), 'goes from 2 to 2'),
    (lambda: compare_groups(['a'], [], 'x'), '0 generated images'),
    (lambda: compare_groups(['a'], ['b'], 'x', ['a']), "'b' is not a group"),
    (lambda: compare_groups(['a'], ['a'], 'x', level=95), 'level=95'),
    (lambda: tone_shift([1.], [1., 2.]), r'training has shape \[1\]')])
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message): call()
