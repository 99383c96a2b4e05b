"The metrics table: the numbers of the single functions, for what the inputs allow"
import csv, json, shutil, warnings
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import cli
from cleftgan_nb.data import ImageFolderDataset, write_dataset
from cleftgan_nb.metrics import Score, dish, efficientnet_lite0, faceres, frechet_distance, load_regression
from cleftgan_nb.metrics import features, table
from cleftgan_nb.metrics.features import FeatureNetwork
from cleftgan_nb.metrics.motion import motion_errors
from cleftgan_nb.metrics.path_length import ppl, squared_speeds
from cleftgan_nb.metrics.samples import dataset_images, label_draws, samples
from cleftgan_nb.metrics.table import about_judges, as_table, disagreements, in_words, measure, save_scores
from cleftgan_nb.networks import build, with_labels
from published import published

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


def test_severities_by_the_scorer_that_was_asked_for(sets, G):
    real, _, _ = sets
    drawn, scorer = samples(G, 20, seed=3, **quiet), load_regression('photographs')
    found = {s.name: s for s in measure(G, real, n=20, seed=3, parts='severity', scorer='photographs', **quiet)}['dish']
    assert found.value == dish(scorer.score(real), scorer.score(drawn), scorer=scorer.name, seed=3).value
    assert found.features == 'severity_photographs'


def test_all_parts_of_a_stylegan2(sets, G):
    "Its input does not move by itself"
    real, held_out, _ = sets
    names = [s.name for s in measure(G, real, held_out, n=20, paths=4, motions=2, **quiet)]
    some = {'gap_difference', 'precision_efficientnet_lite0', 'precision_faceres', 'ppl_stlpips_wend', 'eq_t', 'eq_r', 'copied_pixels_16'}
    assert some <= set(names) and len(names) == len(set(names)) == 31


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
    assert not any(s.name.startswith(('dish', 'severity')) for s in measure(small[1], small[0], **quiet))
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
    found, chance = {s.name: s for s in scores}, dict(floor='chance', floor_high='up to', p='p')
    assert all(word in lines[0] for word in chance.values())
    for name in 'dish', 'severity_wasserstein':
        row, line = (next(o for o in some if o.startswith(name)) for some in (rows, lines))
        assert all(repr(getattr(found[name], k)) in row and format(getattr(found[name], k), '.2g' if k == 'p' else '.4g') in line
                   for k in chance)
    assert 'chance' not in as_table([s for s in scores if s.p is None])


def test_judges_by_name(sets):
    "Each number under its judge's name, the same whoever else judges"
    parts = ['distances', 'manifold']
    def judged(*judges):
        return {s.name: s.value for s in measure(sets[1], sets[0], parts=parts, judges=judges, **quiet)}
    both, one = judged('faceres', 'efficientnet-lite0'), judged('faceres')
    assert len(both) == 14 and len(one) == 7 and all(name.endswith('_faceres') and both[name] == value
                                                     for name, value in one.items())


class Mean(torch.nn.Module):
    def forward(self, x): return x.mean((2, 3))

small = FeatureNetwork('faceres', '1', 8, 3, Mean())


@pytest.mark.parametrize('real, made, says, names', [
    (10, 30, 'real has 10 images; too few for fd_infinity (16 of each set) and density, coverage (12 of each set)',
     'fd kd precision recall'),
    (30, 7, 'generated has 7 images; too few for fd_infinity', 'fd kd'), (2, 2, 'real has 2 images and generated', 'fd'),
    (16, 16, '', 'fd fd_infinity kd precision recall density coverage')])
def test_few_images_allow_less(monkeypatch, tmp_path, real, made, says, names):
    "What can be measured is; the rest is named, with how many images it needs"
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path))
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in (real, made))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        found = measure(b, a, judges=small, **quiet)
    assert [s.name for s in found] == [f'{name}_faceres' for name in names.split()]
    assert ([says in str(w.message) for w in told] == [True] if says else told == []), [str(w.message) for w in told]
    if real == 2:
        with pytest.raises(ValueError, match='kd .3 of each set.*Give more images, or ask for other parts'):
            measure(b, a, parts=['distances', 'manifold'], judges=small, **quiet)
        with pytest.raises(ValueError, match='real has 1 image and .*fd .2 of each set'):
            measure(b[:1], a[:1], parts='distances', judges=small, **quiet)


def test_held_out_images_are_looked_at_before_anything_is_measured(sets, monkeypatch):
    monkeypatch.setitem(table.PARTS, 'distances', lambda s: 1/0)
    for held_out, says in ((sets[2][:9], 'held_out has 9 images, training 24'), (sets[2][:, :32, :32], 'held_out .32, 32, 3')):
        with pytest.raises(ValueError, match=says): measure(sets[1], sets[0], held_out, judges=small, **quiet)


def test_classes_of_the_published_layout(tmp_path, monkeypatch, capsys):
    "Numbers in dataset.json are drawn as one-hot labels; the table and its file say where from"
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(features, 'JUDGES', dict(faceres=lambda device: small))
    monkeypatch.chdir(tmp_path)
    (tmp_path/'faces').mkdir()
    for i in range(16): Image.fromarray(np.full((16, 16, 3), 9*i, np.uint8)).save(f'faces/{i:02}.png')
    shutil.copytree('faces', 'bare')
    labels = [[f'{i:02}.png', i % 3] for i in range(16)]
    (tmp_path/'faces/dataset.json').write_text(json.dumps(dict(labels=labels)))
    torch.manual_seed(0)
    G = build('stylegan2', 16, channel_base=64, channel_max=4, z_dim=4, w_dim=4, c_dim=3)[0].eval()
    (tmp_path/'g.pkl').write_bytes(published({}, G_ema=G))
    argv = ['measure', 'g.pkl', '--judge', 'faceres', '--n', '16']
    assert cli.main([*argv, '--real', 'faces', '--parts', 'distances', '--out', 'a.csv']) == 0
    assert 'labels: drawn from faces, as often as it has them' in capsys.readouterr().out
    rows = list(csv.DictReader(open('a.csv')))
    assert {r['labels'] for r in rows} == {'drawn from faces, as often as it has them'}
    real = ImageFolderDataset('faces', use_labels=True)
    made = samples(G, 16, labels=label_draws(real, range(16)), **quiet)
    fd = frechet_distance(small.features(dataset_images(real), **quiet), small.features(made, **quiet), small)
    assert float(rows[0]['value']) == pytest.approx(fd.value, rel=1e-6)
    assert cli.main([*argv, '--real', 'bare']) == 2
    assert 'g.pkl takes labels, which are drawn from those of --real: ' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['ours', 'classes'])
def test_paths_and_motions_draw_labels_too(tmp_path, kind):
    "As `samples` does: from a dataset, or one for all"
    label = (lambda i: [i/9, 1 - i/9, .5]) if kind == 'ours' else lambda i: i % 3
    real = ImageFolderDataset(write_dataset(tmp_path/'x.zip', ((np.full((32, 32, 3), 9*i, np.uint8), label(i), {})
                                                               for i in range(9)),
                                            about=dict(kind='x', license='CC0-1.0')), use_labels=True)
    torch.manual_seed(0)
    G = build('stylegan3-t', 32, channel_base=128, channel_max=8, z_dim=4, w_dim=4, num_layers=4, c_dim=3)[0].eval()
    drawn, some = label_draws(real, range(3), 5), dict(n=3, seed=5, dtype='float32', **quiet)
    assert len(drawn.unique(dim=0)) > 1
    for f in (lambda **o: squared_speeds(G, perceptual=Pixels(), **o), lambda **o: motion_errors(G, **o)[0]):
        assert np.array_equal(f(labels=real, **some), f(labels=drawn, **some))
        assert np.array_equal(f(labels=drawn[0], **some), f(labels=drawn[:1].expand(3, -1), **some))
    with pytest.raises(ValueError, match='x.zip has labels of 0 entries, the generator takes 3; open .* use_labels=True'):
        squared_speeds(G, labels=ImageFolderDataset(tmp_path/'x.zip'), perceptual=Pixels(), **some)


class Pixels(torch.nn.Module):
    name, source = 'pixels', 'a formula'
    def distance(self, a, b): return (a - b).square().mean((1, 2, 3))


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
