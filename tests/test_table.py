"The metrics table: the numbers of the single functions, for what the inputs allow"
import numpy as np, pytest, torch
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.metrics import Score, dish, efficientnet_lite0, faceres, frechet_distance, load_regression
from cleftgan_nb.metrics.path_length import ppl
from cleftgan_nb.metrics.samples import dataset_images, label_draws, samples
from cleftgan_nb.metrics.table import about_judges, as_table, disagreements, in_words, measure, save_scores
from cleftgan_nb.networks import build, with_labels

quiet = dict(progress=False)


@pytest.fixture(scope='module')
def sets():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (24, 64, 64, 3), np.uint8) for _ in range(3)]


@pytest.fixture(scope='module')
def G():
    torch.manual_seed(0)
    return build('stylegan2', 64, channel_base=256, channel_max=8, z_dim=8, w_dim=8)[0].eval()


def test_numbers_of_the_single_functions(sets, G):
    real, held_out, _ = sets
    scores = {s.name: s for s in measure(G, real, n=20, seed=3, parts=['distances', 'severity'], **quiet)}
    drawn, scorer = samples(G, 20, seed=3, **quiet), load_regression()
    for network in efficientnet_lite0(), faceres():
        fd = frechet_distance(network.features(real, **quiet), network.features(drawn, **quiet), network)
        assert (scores[fd.name].value == pytest.approx(fd.value, rel=1e-6)
                and scores[fd.name].sizes == dict(real=24, generated=20))
    assert scores['dish'].value == dish(scorer.score(real), scorer.score(drawn), scorer=scorer.name, seed=3).value


def test_all_parts_of_a_stylegan2(sets, G):
    "Its input does not move by itself"
    real, held_out, _ = sets
    names = [s.name for s in measure(G, real, held_out, n=20, paths=4, motions=2, **quiet)]
    some = {'precision_efficientnet_lite0', 'precision_faceres', 'ppl_stlpips_wend', 'eq_t', 'eq_r', 'copied_pixels_16'}
    assert some <= set(names) and len(names) == len(set(names)) == 27


def test_same_seed_same_digits(sets, G):
    once, again, other = ([s.value for s in measure(G, sets[0], n=20, parts='manifold,distances'.split(','),
                                                    seed=seed, **quiet)] for seed in (0, 0, 1))
    assert once == again != other


@pytest.mark.parametrize('change, says', [
    (dict(parts=['severity', 'fid']), "parts: 'fid'; accepted: distances"),
    (dict(parts='copies'), 'copies needs held_out'), (dict(n=1), 'n=1; accepted: a whole number from 2'),
    (dict(judges='clip'), "judges: 'clip'; accepted: one or several of"),
    (dict(real=np.zeros((4, 16, 16, 3), np.uint8)),
     'the generator makes images of \\[64, 64, 3\\], real has \\[16, 16, 3\\]'),
    (dict(real=np.zeros((4, 64, 64, 3))), 'real has dtype float64'),
    (dict(generated=np.zeros((4, 16, 16, 3), np.uint8)), 'generated is \\[16, 16, 3\\], real \\[64, 64, 3\\]'),
    (dict(generated=np.zeros((4, 64, 64, 3), np.uint8), parts='motion'), 'motion needs a generator')])
def test_complains(sets, G, change, says):
    with pytest.raises(ValueError, match=says): measure(**dict(generated=G, real=sets[0]) | change, **quiet)


def test_small_images_have_no_severity(sets):
    small = [images[:, :32, :32] for images in sets]
    assert not any(s.name == 'dish' for s in measure(small[1], small[0], **quiet))
    with pytest.raises(ValueError, match='severity needs color images of at least 64 x 64 pixels'):
        measure(small[1], small[0], parts='severity', **quiet)


def test_conditional():
    G = build('stylegan2', 16, channel_base=64, channel_max=4, z_dim=4, w_dim=4, c_dim=2)[0]
    with pytest.raises(ValueError, match=r'takes labels of 2 entries; give real=ImageFolderDataset.*use_labels=True'):
        measure(G, np.zeros((4, 16, 16, 3), np.uint8), **quiet)


def test_labels_are_drawn_from_the_training_images(tmp_path):
    "Image i gets the label that (seed, i) draws; so do paths and motions"
    rng = np.random.default_rng(0)
    rows = [(rng.integers(0, 256, (32, 32, 3), np.uint8), [i/20, 1 - i/20], {}) for i in range(20)]
    real = ImageFolderDataset(write_dataset(tmp_path/'x.zip', rows, about=dict(kind='x', license='CC0-1.0')),
                              use_labels=True)
    torch.manual_seed(0)
    G = with_labels(build('stylegan3-t', 32, channel_base=256, channel_max=8, z_dim=8, w_dim=8)[0], 2)
    with torch.no_grad(): G.mapping.label.weight.normal_()
    labels, few = (label_draws(real, range(18), seed=3),
                   dict(n=18, paths=4, motions=2, seed=3, judges='efficientnet-lite0', **quiet))
    assert ({tuple(o) for o in labels.tolist()} <= {tuple(o) for o in real.labels(range(20)).tolist()}
            and len(labels.unique(dim=0)) > 2)
    parts = ['distances', 'paths', 'motion']
    found = {s.name: s.value for s in measure(G, real, parts=parts, **few)}
    assert found == {s.name: s.value for s in measure(G, dataset_images(real), labels=real, parts=parts, **few)}
    network = efficientnet_lite0()
    fd = frechet_distance(network.features(dataset_images(real), **quiet),
                          network.features(samples(G, 18, seed=3, labels=labels, **quiet), **quiet), network)
    assert found[fd.name] == fd.value
    assert ppl(G, 'w', 'end', n=4, seed=3, dtype='float32', labels=labels[:4], **quiet).value in found.values()
    with pytest.raises(ValueError, match='x.zip has labels of 2 entries, the generator takes 3'):
        measure(with_labels(build('stylegan2', 32, channel_max=4)[0], 3), real, **few)
    with pytest.raises(ValueError, match='use_labels=True'): measure(G, ImageFolderDataset(tmp_path/'x.zip'), **few)


def test_table_and_file_agree(sets, tmp_path):
    scores = measure(sets[1], sets[0], **quiet)
    save_scores(scores, tmp_path/'a.csv', real='zeros')
    lines, rows = as_table(scores).splitlines(), (tmp_path/'a.csv').read_text().splitlines()
    assert (len(lines) == len(rows) == len(scores) + 1
            and all(row.startswith(line.split()[0] + ',') and row.endswith(',zeros')
                    for line, row in zip(lines[1:], rows[1:])))
    assert len({len(line) - len(line.split('  ')[-1]) for line in lines[1:]}) == 1


def test_judges_by_name(sets):
    "Each number under its judge's name, the same whoever else judges"
    parts = ['distances', 'manifold']
    def judged(*judges):
        return {s.name: s.value for s in measure(sets[1], sets[0], parts=parts, judges=judges, **quiet)}
    both, one = judged('faceres', 'efficientnet-lite0'), judged('faceres')
    assert len(both) == 14 and len(one) == 7 and all(name.endswith('_faceres') and both[name] == value
                                                     for name, value in one.items())


def test_in_words(sets):
    scores = measure(sets[1], sets[0], parts=['distances', 'manifold'], **quiet)
    found = [in_words(s.name) for s in scores]
    assert found[:6:3] == ['Fréchet distance (EfficientNet-Lite0)', 'Fréchet distance (faceres)']
    assert found[6::3] == ['precision (EfficientNet-Lite0)', 'coverage (EfficientNet-Lite0)', 'density (faceres)']
    about = about_judges(scores)
    assert 'efficientnet_lite0: EfficientNet-Lite0, which learned from' in about and 'not their numbers' in about
    assert 'faceres: faceres, which learned from photographs of faces' in about
    assert ('not their numbers' not in about_judges([s for s in scores if 'faceres' in s.name])
            and about_judges([]) == '')


def test_disagreements():
    score = lambda name, low, high: Score(name, (low + high)/2, low, high)
    a = [score('fd_efficientnet_lite0', 1, 2), score('fd_faceres', 5, 6), score('precision_faceres', .1, .2),
         score('dish', 1, 2)]
    b = [score('fd_efficientnet_lite0', 3, 4), score('fd_faceres', 3, 4), score('precision_faceres', .3, .4),
         score('dish', 3, 4)]
    assert disagreements(dict(a=a, b=b)) == ['Fréchet distance: EfficientNet-Lite0 says a < b; faceres says b < a']
    # one can't tell
    assert disagreements(dict(a=a, b=[score('fd_efficientnet_lite0', 3, 4), score('fd_faceres', 4, 5.5)])) == []
    assert (disagreements(dict(a=a, b=[Score('fd_efficientnet_lite0', 3), Score('fd_faceres', 3)])) == []
            == disagreements(dict(a=a)))
