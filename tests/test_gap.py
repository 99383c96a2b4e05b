"Gaps: maps of what phantoms show, the segmenter that learned from them, and its widths beside the truth"
import numpy as np
import pytest
from cleftgan_nb.data.cleft import Cleft, Side
from cleftgan_nb.data.portrait import AREAS, cleft_of, phantom, scene
from cleftgan_nb.data.view import KINDS


def test_areas_say_what_each_pixel_shows_and_change_no_byte():
    "The map is that of the rendered masks, finer; drawing it before or after leaves the picture as it is"
    who = scene(21, cleft_of(.9, 'left'))
    areas = who.areas(64)
    image, truth = phantom(21, .9, 'left', 64)
    assert areas.shape == (64, 64, len(AREAS)) and (areas >= -1e-6).all() and areas.sum(-1) == pytest.approx(1, abs=1e-5)
    assert (who.render(64).image == image).all()
    mask = np.stack([truth.masks[k] for k in ('face skin', 'other skin', 'lips', 'gap')])
    for k, most in ((1, mask[:2].any(0)), (2, mask[2]), (3, mask[3])):
        assert (most[areas[..., k] > .8].mean(), most[areas[..., k] < .2].mean()) == pytest.approx((1, 0), abs=.02), AREAS[k]
    assert set(truth.masks) == set(KINDS)


@pytest.mark.parametrize('cleft, gaps', [
    (cleft_of(.9, 'left'), (True, False)), (cleft_of(.9, 'right'), (False, True)), (cleft_of(.8, 'bilateral'), (True, True)),
    (Cleft(Side(lip=.9), Side(lip=.4)), (True, True)), (Cleft(), (False, False)), (cleft_of(.9, 'left', repaired=True), (False, False))])
def test_gaps_have_the_sides_of_the_cleft(cleft, gaps):
    areas = scene(22, cleft).areas(64)
    assert tuple(areas[..., 3:].any((0, 1))) == gaps
    if cleft.left.lip > cleft.right.lip > 0: assert areas[..., 3].sum() > 2*areas[..., 4].sum()
    if gaps == (True, True):                 # the patient's left is at the picture's right
        columns = [np.average(np.arange(64), weights=areas[..., k].sum(0)) for k in (3, 4)]
        assert columns[0] > columns[1] + 2
