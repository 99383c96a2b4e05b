"Gaps: maps of what phantoms show, the segmenter that learned from them, and its widths beside the truth"
import numpy as np
import pytest
import torch
from cleftgan_nb.checkpoints import write_tensors
from cleftgan_nb.checkpoints.labels import label_of
from cleftgan_nb.data.cleft import Cleft, Side
from cleftgan_nb.data.portrait import AREAS, cleft_of, phantom, scene
from cleftgan_nb.data.view import KINDS
from cleftgan_nb.metrics import gap, load_segmenter
from cleftgan_nb.metrics.composition import GAPS, fairness, laterality
from cleftgan_nb.metrics.samples import samples
from cleftgan_nb.metrics.severity import Scorer, to_size
from cleftgan_nb.networks import build

NAMES = ['lip_left', 'lip_right', 'nose_left', 'nose_right', 'repaired']


@pytest.fixture(scope='module')
def people():
    "Draw five people with their maps: gaps on the left, on the right, on both sides, a repaired lip and no cleft"
    clefts = cleft_of(.8, 'left'), cleft_of(.5, 'right'), cleft_of(.9, 'bilateral'), cleft_of(.9, 'left', repaired=True), Cleft()
    return gap.drawn([dict(seed=720_000 + k, cleft=c) for k, c in enumerate(clefts)])


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    return build('stylegan2', 64, channel_base=256, channel_max=8, z_dim=8, w_dim=8, c_dim=5)[0].eval()


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


def test_shipped_segmenter_measures_phantoms_that_it_never_saw(people):
    segmenter, true = load_segmenter(), gap.true_widths(people)
    assert isinstance(segmenter, Scorer) and segmenter.meta['license'] == 'CC0-1.0'
    gray = people.images.mean(-1).astype(np.uint8)[..., None]
    for images, most in ((people.images, 8), (gray, 12), (people.images.repeat(2, 1).repeat(2, 2), 8)):
        found = segmenter.gaps(images)
        assert np.abs(found.widths - true).max() < most
        assert laterality(segmenter.sides(images)) == ['left', 'right', 'bilateral', 'closed', 'closed']
        assert found.area.argmin() in (3, 4) and (np.abs(found.eyes - gap.apart(torch.from_numpy(people.points))[:, 0].numpy()) < 2).all()
    assert segmenter.score(people.images) == pytest.approx(found.width/100, abs=1e-6)


def test_a_mirror_exchanges_the_sides(people):
    segmenter = load_segmenter()
    here, there = (segmenter.gaps(x) for x in (people.images, np.ascontiguousarray(people.images[:, :, ::-1])))
    assert here.widths == pytest.approx(there.widths[:, ::-1], abs=1e-3) and here.mouth == pytest.approx(there.mouth, abs=1e-3)


def test_widths_count_parts_of_pixels_in_the_widest_three_rows():
    areas = torch.zeros(2, 5, 40, 40)
    areas[0, 3, 20:23, 10:14], areas[0, 3, 30, :20], areas[1, 4, 20:26, 30] = 1, .25, .5   # a single row is no gap
    assert gap.widest(areas, torch.tensor([16., 10.])).tolist() == [[25., 0.], [0., 5.]]


def test_maps_move_with_their_pictures(people, monkeypatch):
    "A picture that shows its own map still does, and in a mirror left gaps and landmarks are right ones"
    for name in '_blurred', '_softened', '_tinted', '_recolored': monkeypatch.setattr(gap, name, lambda x, _: x)
    monkeypatch.setattr(gap, '_uniform', lambda g, n, *_: torch.zeros(n, 1, 1, 1))
    maps = torch.cat([torch.from_numpy(people.areas).permute(0, 3, 1, 2), gap._spots(torch.from_numpy(people.points))], 1)
    shown, found = maps[:, [3, 4, 5]], set()           # left gap, right gap, left eye
    looks, moved = gap.moved_alike(255*shown, maps, torch.Generator().manual_seed(0))
    for x, y in zip((looks + 1)/2, moved):
        as_it_was, mirrored = (torch.allclose(x, y[o], atol=1e-4) for o in ([3, 4, 5], [4, 3, 6]))
        assert as_it_was != mirrored
        found.add(mirrored)
    assert found == {True, False} and moved[:, :5].sum(1).numpy() == pytest.approx(1, abs=1e-4)


def test_training_repeats_and_learns(people):
    nets, losses = zip(*(gap.train_segmenter(people, seed=s, steps=k, batch=5, progress=False) for s, k in ((1, 6), (1, 6), (2, 1))))
    weights = [torch.cat([p.ravel() for p in net.parameters()]) for net in nets]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2]) and losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_files(people, tmp_path):
    net, _ = gap.train_segmenter(people, steps=1, batch=2, progress=False)
    path = gap.save_segmenter(tmp_path/'a.safetensors', net, dict(seed=0))
    assert load_segmenter(path).meta['trained'] == dict(seed=0) and path.stat().st_size < 500_000
    with pytest.raises(FileNotFoundError, match='no file b; give a file of save_segmenter'): load_segmenter('b')
    write_tensors(tmp_path/'c.safetensors', dict(a=torch.zeros(1)), dict(kind='gap-segmentation 0'))
    with pytest.raises(ValueError, match="c.safetensors is 'gap-segmentation 0'; accepted: 'gap-segmentation 1'"):
        load_segmenter(tmp_path/'c.safetensors')
    net.out.bias.data[0] = np.nan
    with pytest.raises(ValueError, match='out.bias is not finite'): gap.save_segmenter(tmp_path/'d.safetensors', net, {})


class Told:
    "An instrument that says what it was told"
    def __init__(self, sides): self.told = np.array(sides, float)
    def sides(self, images): return self.told
    def gaps(self, images): return gap.Gaps(100*self.told, *[self.told[:, 0]]*3)


def test_instruments_beside_each_other():
    severity = Told([[.9, 0], [.7, 0], [0, .5], [0, 0], [.3, 0]])
    width = Told([[.4, 0], [.5, 0], [.2, 0], [0, 0], [.05, 0]])
    found = gap.beside(np.zeros((5, 64, 64, 3), np.uint8), severity, width)
    row = found['row']
    assert (row['n'], row['open_for_both'], row['open_for_scorer_only'], row['open_for_segmenter_only']) == (5, 3, 1, 0)
    assert row['same_side'] == pytest.approx(2/3) and row['same_low'] < 2/3 < row['same_high']
    assert found['apart'].tolist() == [.2, -.2, 0, 0, 0] and not found['bilateral'].any()
    assert found['width'].tolist() == [40, 50, 20, 0, 5]


def test_dose_and_response(G, monkeypatch):
    "The rows are the means over people of what the pictures of each label show"
    rows = gap.dose_response(G, NAMES, (0, 1), ('right', 'bilateral'), n=3, seed=4)
    assert [(r['side'], r['severity'], r['n']) for r in rows] == [(s, v, 3) for s in ('right', 'bilateral') for v in (0, 1)]
    widths = load_segmenter().gaps(samples(G, 3, seed=4, labels=label_of(NAMES, 1, 'right'), progress=False)).widths
    assert (rows[1]['width'], rows[1]['other']) == pytest.approx((widths[:, 1].mean(), widths[:, 0].mean()), abs=1e-4)
    assert rows[1]['low'] <= rows[1]['width'] <= rows[1]['high'] and rows[3]['other'] is None
    monkeypatch.setattr(gap, '_alike', lambda people, *_: np.zeros((len(people), 64, 64, 3), np.uint8))
    both = gap.dose_response(G, NAMES, (.5,), ('left',), n=3, phantoms=7)
    assert [r['images'] for r in both] == ['generated', 'phantoms']


def test_figures_have_the_width_of_a_page(G, monkeypatch):
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    monkeypatch.setattr(gap, '_alike', lambda people, *_: np.zeros((len(people), 64, 64, 3), np.uint8))
    rows = [dict(images=i, side=s, severity=v, width=v, low=v - .1, high=v + .1, other=None if s == 'bilateral' else 0.)
            for i in ('generated', 'phantoms') for s in ('left', 'bilateral') for v in (0, 1)]
    for fig, wide in ((gap.plot_dose(rows), 170), (gap.plot_asked(G, NAMES, (.5, 1), wide=85), 85)):
        assert fig.get_size_inches()[0]*25.4 == pytest.approx(wide)
        assert min(t.get_fontsize() for t in fig.findobj(plt.Text) if t.get_text()) >= 7
        plt.close(fig)


def test_composition_has_both_instruments(people):
    rows = fairness(people.images, people.images[:2])
    by = {what: {r['group']: r['training'] for r in rows if r['property'] == what} for what in ('side', 'side, by the gap', 'gap')}
    assert by['side, by the gap'] == by['side'] and tuple(by['gap']) == GAPS and by['gap']['closed'] == .4
