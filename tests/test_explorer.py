"""The explorer without a browser: every panel draws, code and saved pictures give the same bytes, the newest wish
wins, refusals say why"""
import asyncio, base64, io, json, sys
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image
from cleftgan_nb import checkpoints, networks
from cleftgan_nb.data import cohort
from cleftgan_nb.data.cohorts import LABELS
from cleftgan_nb.explore import Directions, Explorer, State, draw, latent_of
from cleftgan_nb.explore.face import Face
from cleftgan_nb.explore.likeness import Neighbors, Severity
from cleftgan_nb.explore.responsive import Coarse, Latest
from cleftgan_nb.explore.spectra import find_layer, layers, listening, plot_layer, spectrum, unfiltered
from cleftgan_nb.explore.views import Layers, Training, Walk
from cleftgan_nb.checkpoints.labels import Labels
from cleftgan_nb.metrics.copies import Pixels
from cleftgan_nb.pictures import sample_one

NAME = 'phantom-64-stylegan3-t'


@pytest.fixture(scope='module')
def G(): return checkpoints.load(NAME).sampler


@pytest.fixture(scope='module')
def directions(G):
    return Directions(.3*torch.randn(2, G.w_dim, generator=torch.Generator().manual_seed(0)), (0., 1.),
                      dict(n=48, seed=0, probes=4, ridge=.1, batch=8, scorer=None))


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    return cohort('cleft', 10, tmp_path_factory.mktemp('data')/'faces.zip', workers=1, progress=False)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path/'run'
    folder.mkdir()
    return tick(folder, 2)


def tick(folder, n):
    (folder/'log.jsonl').write_text(''.join(json.dumps({'kimg': 4*t, 'step': t, 'r_t': t/10, 'loss/G': 1/t}) + '\n'
                                            for t in range(1, n + 1)))
    Image.new('RGB', (256, 64), (20*n, 90, 120)).save(folder/f'fakes-{4*n:06d}.png')
    return folder


def shown(widget): return np.asarray(Image.open(io.BytesIO(widget.value)))


# the state
def test_a_plain_state_is_the_face_of_its_seed(G):
    assert (State(7).render(G) == sample_one(G, 7)).all() and (State(7, .5).render(G) == sample_one(G, 7, .5)).all()


@pytest.mark.parametrize('state', [State(3), State(3, .7, other=5, layers=(9, 4)), State(2, along=.25, to=8),
                                   State(1, x=.1, y=-.05, angle=5.), State(4, .9, 6, (0, 15), x=.02, along=1.)])
def test_code_gives_the_same_bytes(G, state):
    made = {}
    exec(state.code(NAME), made)
    assert (made['image'] == state.render(G)).all()


def test_code_names_the_directions(directions):
    code = State(3, severity=-.3).code(NAME, directions)
    assert 'find_directions(G, n=48, seed=0)' in code and 'severity=-0.3' in code
    compile(code, 'cell', 'exec')


@pytest.mark.slow
def test_code_with_directions_gives_the_same_bytes():
    from cleftgan_nb.explore import find_directions
    name = 'phantom-64-cleft-stylegan3-t'
    G = checkpoints.load(name).sampler
    found, state, made = find_directions(G, n=4, progress=False), State(3, severity=-.3, side=.1), {}
    exec(state.code(name, found), made)
    assert (made['image'] == state.render(G, found)).all()


@pytest.mark.parametrize('wrong, word', [(dict(truncation_psi=2.),
                                          'truncation_psi=2.0; accepted: a number from 0 to 1.5'),
                                         (dict(severity=float('nan')), 'severity=nan; accepted'),
                                         (dict(seed=-1), 'seed=-1; accepted'),
                                         (dict(seed=.5), 'seed=0.5; accepted: a whole number'),
                                         (dict(to='a'), "to='a'; accepted"),
                                         (dict(along=1.1), 'accepted: a number from 0 to 1')])
def test_wrong_states_say_so(wrong, word):
    with pytest.raises(ValueError, match=word): State(**wrong)


def test_what_cannot_be_drawn_says_why(G):
    with pytest.raises(ValueError, match='give directions=find_directions'): State(severity=.1).render(G)
    with pytest.raises(ValueError, match='accepted: numbers from 0 to 15'): State(layers=(16,)).render(G)
    with pytest.raises(ValueError, match="layer 'L99'; accepted: L0_36_64"): find_layer(G, 'L99')


# the newest wish
def test_the_newest_wish_wins():
    done = []
    def steps(k):
        for part in 'ab':
            done.append((k, part))
            yield
    async def drag():
        latest = Latest(steps)
        for k in range(50):
            latest(k)
            await asyncio.sleep(0)
        await latest.task
    asyncio.run(drag())
    assert done[-2:] == [(49, 'a'), (49, 'b')] and len(done) < 20


def test_a_newer_wish_ends_the_older_one_between_two_steps():
    done = []
    def steps(k):
        for part in range(100):
            done.append((k, part))
            yield
    async def drag():
        latest = Latest(steps)
        latest(0)
        await asyncio.sleep(.05)
        latest(1)
        await latest.task
    asyncio.run(drag())
    assert 0 < sum(k == 0 for k, _ in done) < 100 and done[-1] == (1, 99)


def test_an_error_is_told_and_the_next_wish_is_done():
    told, done = [], []
    def steps(k):
        done.append(1/k)
        yield
    async def drag():
        latest = Latest(steps, told.append)
        for k in (0, 2):
            latest(k)
            await latest.task
    asyncio.run(drag())
    assert isinstance(told[0], ZeroDivisionError) and done == [.5]


# the panels
def test_a_slider_changes_the_picture_and_goes_back(G, directions):
    face = Face(G, directions)
    face.widget
    before = shown(face.frame)
    face.controls['severity'].value = .4
    assert face.state.severity == .4 and np.abs(shown(face.frame).astype(float) - before).mean() > .5
    face.reset()
    assert face.state == State() and (shown(face.frame) == before).all()


def test_mixing_shows_both_parents(G):
    face = Face(G, state=State(3, other=5))
    face.widget
    assert face.pair.layout.display == 'none'
    for k in (4, 5): face.toggles[k].value = True
    assert face.state.layers == (4, 5) and face.pair.layout.display == ''
    assert [(shown(f) == sample_one(G, s)).all() for f, s in zip(face.pair.children, (3, 5))] == [True, True]


def test_sliders_without_use_are_off(G):
    face = Face(checkpoints.load('phantom-64-stylegan2').sampler)
    face.widget
    assert {name for name, c in face.controls.items() if c.disabled} == {'x', 'y', 'angle', 'severity', 'side'}
    face.controls['truncation_psi'].value = .5
    assert (shown(face.frame) == sample_one(face.G, 0, .5)).all()


def test_an_error_is_shown_and_not_lost(G, monkeypatch):
    face = Face(G)
    face.widget
    monkeypatch.setattr(face, 'render', lambda state: 1/0)
    face.controls['seed'].value = 5
    assert 'division by zero' in face.note.value


def test_a_saved_picture_carries_its_recipe(G, tmp_path):
    face = Face(NAME, state=State(3, .7, x=.1), folder=tmp_path)
    with Image.open(face.save()) as image: pixels, words = np.asarray(image), image.text
    recipe, made = json.loads(words['recipe']), {}
    exec(recipe['code'], made)
    assert words['Source'] == 'synthetic' and recipe['checkpoint'] == NAME and recipe['state']['x'] == .1
    assert (made['image'] == pixels).all() and (pixels == face.render(face.state)).all()
    assert face.save() == face.save() and len(list(tmp_path.iterdir())) == 1


def test_code_is_shown_to_be_copied(G):
    face = Face(G, checkpoint='<mine>')
    face.widget
    face.copy()
    assert '&lt;mine&gt;' in face.cell.value and 'readonly' in face.cell.value


@pytest.mark.parametrize('kind', ['face', 'severity', 'walk', 'layers', 'neighbors', 'training', 'explorer'])
def test_every_panel_leaves_a_picture_that_says_what_it_is(G, directions, dataset, run, kind):
    face = Face(G, directions)
    panel = dict(face=lambda: face, severity=lambda: Severity(face, (-.2, 0., .2), others=2, network=Pixels()),
                 walk=lambda: Walk(face, 3), layers=lambda: Layers(face),
                 neighbors=lambda: Neighbors(face, dataset, [Pixels()]),
                 training=lambda: Training(run), explorer=lambda: Explorer(G, directions))[kind]()
    bundle = panel._repr_mimebundle_()
    image = Image.open(io.BytesIO(base64.b64decode(bundle['image/png'])))
    assert 'application/vnd.jupyter.widget-view+json' in bundle and image.text['Source'] == 'synthetic'
    assert min(image.size) > 100 and np.asarray(image).std() > 10


def test_without_ipywidgets_the_picture_is_left(G, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    bundle = Walk(Face(G), 3)._repr_mimebundle_()
    assert set(bundle) == {'image/png', 'text/plain'} and 'pip install ipywidgets' in bundle['text/plain']


def test_only_the_tab_that_is_shown_works(G, directions, dataset, run):
    explorer = Explorer(G, directions, dataset, run)
    explorer.widget
    _, severity, walk, map, *_ = explorer.panels
    assert walk.frames[0].value == b'' and map.frame.value == b''
    explorer.widget.selected_index = 2
    assert all(f.value for f in walk.frames) and map.frame.value == b'' and not severity.frames[0].value
    before = walk.frames[0].value
    explorer.face.controls['seed'].value = 9
    assert walk.frames[0].value != before


def test_walk_ends_where_it_says(G):
    images = [draw(G, latent_of(G, seed))[0] for seed in (3, 8)]
    first, *_, last = [State(3, to=8, along=t).render(G) for t in (0., .5, 1.)]
    assert (first == images[0]).all() and (last == images[1]).all()


def test_photographs_are_not_called_synthetic(G, tmp_path):
    folder = tmp_path/'photographs'
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)).save(folder/f'{k}.png')
    panel = Neighbors(Face(G), folder, [Pixels()])
    image = Image.open(io.BytesIO(base64.b64decode(panel._repr_mimebundle_()['image/png'])))
    assert 'photographs' in image.text['Source']


def test_neighbors_are_found_mirrored_and_other_sizes_fit(G, dataset, tmp_path):
    panel = Neighbors(Face(G), dataset, [Pixels()])
    assert [*panel.prepare(4)] == [4, 8, 10] and [*panel.prepare()] == []
    image = np.concatenate(panel.images)[6]
    for seen in (image, image[:, ::-1]):
        assert (panel.nearest(seen, panel.networks[0])[0][0] < 1e-6
                and (panel.nearest(seen, panel.networks[0])[0][1] == seen).all())
    large = Neighbors(Face(G), cohort('cleft', 3, tmp_path/'large.zip', size=128, workers=1, progress=False),
                      [Pixels()])
    assert large.picture().size[0] == 4*128


def test_a_run_is_followed_and_left(run):
    async def follow():
        panel = Training(run, every=.02)
        panel.widget
        before, panel.button.value = panel.frame.value, True
        await asyncio.sleep(.1)
        tick(run, 3)
        for _ in range(200):
            await asyncio.sleep(.02)
            if panel.frame.value != before: break
        assert panel.frame.value != before and '12 kimg' in panel.note.value
        panel.button.value = False
        assert panel.task is None
    asyncio.run(follow())


def test_a_run_without_a_line_is_told(tmp_path):
    (tmp_path/'log.jsonl').write_text('')
    panel = Training(tmp_path)
    panel.widget
    assert 'no line in the log yet' in panel.note.value
    with pytest.raises(ValueError, match='holds no training run'):
        (tmp_path/'other').mkdir()
        Training(tmp_path/'other')


# large networks
def test_a_large_network_shows_something_coarse_first():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G = networks.build('stylegan3-t', 128, channel_base=1024, channel_max=16)[0].eval().requires_grad_(False)
    face = Face(G)
    face.widget
    kinds = []
    for _ in face.steps(State(1)): kinds.append('coarse' in face.note.value)
    assert kinds == [True, False]
    assert face.picture().size == (256, 256)                 # one picture, and not a sheet that takes minutes


def test_a_guess_is_what_was_seen_and_in_between_is_near(G):
    coarse, a, b = Coarse(), latent_of(G, 3, .7), latent_of(G, 4, .7)
    assert coarse.guess(a) is None
    for ws in (a, b): coarse.learn(ws, draw(G, ws)[0])
    small = lambda image: image.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(coarse.guess(a) - small(draw(G, a)[0])).mean() < 1
    middle = a.lerp(b, .5)
    true = small(draw(G, middle)[0])
    assert np.abs(coarse.guess(middle) - true).mean() < .7*np.abs(small(draw(G, a)[0]) - true).mean()


def test_a_guess_moves_as_the_picture_does(G):
    coarse, ws, state = Coarse(64), latent_of(G, 3), State(3, x=.125, y=-.0625)
    coarse.learn(ws, draw(G, ws)[0])
    inside = slice(8, -8), slice(8, -8)
    drawn, guessed = state.render(G)[inside].astype(float), coarse.guess(ws, state.transform())[inside].astype(float)
    assert np.abs(drawn - guessed).mean() < .3*np.abs(drawn - draw(G, ws)[0][inside]).mean()


def test_few_pictures_are_remembered(G):
    coarse = Coarse(most=3)
    for seed in range(5): coarse.learn(latent_of(G, seed), np.zeros((64, 64, 3), np.uint8))
    assert len(coarse.seen) == 3


# what layers hold
def test_listening_leaves_nothing_behind(G):
    ws, before = latent_of(G, 3), draw(G, latent_of(G, 3))
    with listening(G, ['L4_52_64'], stop=True) as heard: draw(G, ws, State(x=.1).transform())
    assert list(heard) == ['L4_52_64'] and (draw(G, ws) == before).all()
    with pytest.raises(ZeroDivisionError):
        with listening(G, ['L4_52_64']): 1/0
    assert not any(m._forward_hooks for m in G.modules())


@pytest.mark.parametrize('cycles', [3, 10, 25])
def test_a_wave_is_a_peak_at_its_frequency(cycles):
    t = (np.arange(84) + .5)/64
    f, power = spectrum(np.sin(2*np.pi*cycles*t)[None, :, None].repeat(84, 2), 64)
    assert abs(f[power.argmax()] - cycles) <= 64/84 and f[-1] == 32


def test_filters_keep_aliases_out(G):
    for name in ('L5_52_64', 'L9_84_64'):
        layer = find_layer(G, name)
        with torch.inference_mode(), listening(G, [name], stop=True) as heard: draw(G, latent_of(G, 3))
        levels = []
        with torch.inference_mode():
            maps = ((heard[name].out[0].float().numpy(), layer.rate),
                    (unfiltered(layer, heard[name]), layer.module.geometry.inp.rate))
        for x, rate in maps:
            f, power = spectrum(x, rate)
            levels.append(power[f > layer.stopband].mean() - power.max())
        assert levels[0] < levels[1] - 6, name


def test_every_layer_of_every_kind_can_be_shown():
    for name in ('phantom-64-stylegan3-t', 'phantom-64-stylegan3-r', 'phantom-64-stylegan2'):
        G = checkpoints.load(name).sampler
        assert len(layers(G)) >= 9
        for layer in list(layers(G))[::6] + [list(layers(G))[-1]]:
            assert plot_layer(G, latent_of(G, 0), layer, channels=3).size == (640, 360)


def test_code_says_how_the_directions_were_found(G, directions):
    other = replace(directions, found_with=directions.found_with | dict(probes=2, scorer='mine'))
    assert ('find_directions(G, n=48, seed=0, probes=2)   # with your own scorer=mine'
            in State(severity=.1).code('c', other))


@pytest.mark.parametrize('wrong', [dict(layers=('a',)), dict(layers=1.5), dict(severity='a'), dict(seed='3'),
                                   dict(seed=-1), dict(x=None)])
def test_states_that_are_none(wrong):
    with pytest.raises(ValueError, match=f'{list(wrong)[0]}=.*accepted'): State(**wrong)


def test_numbers_of_numpy_and_large_seeds(G):
    assert State(seed=np.int64(3), layers=np.int64(2)) == State(seed=3, layers=(2,))
    face = Face(G, state=State(2**32 - 1))
    face.widget
    assert face.read().seed == 2**32 - 1


def test_a_button_that_fails_says_so(G, tmp_path):
    face = Face(G, folder=tmp_path/'nowhere')
    face.widget
    face.safely(face.save)
    assert 'FileNotFoundError' in face.note.value


def of_classes(c_dim=3):
    torch.manual_seed(0)
    return networks.build('stylegan3-t', 16, c_dim=c_dim, channel_base=512, channel_max=16, num_layers=4, z_dim=8,
                          w_dim=8)[0].eval()


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'3 labels; accepted: directions=Labels\(names\) with a name for each'):
        Face(of_classes(), Labels(LABELS))
    with pytest.raises(ValueError, match='names has a, b; accepted'): Labels(['a', 'b'])
    with pytest.raises(ValueError, match='label 3: this network needs a label from 0 to 2, or 3 numbers'):
        Face(of_classes(), state=State(label=3))
    with pytest.raises(ValueError, match="label='x'; accepted: a class, or a list of numbers"): State(label='x')


@pytest.mark.parametrize('names', [None, ['round', 'long', 'square']])
def test_a_network_of_classes_has_a_list_to_pick_from(tmp_path, names):
    "As published networks have them; names where the checkpoint has some. The code draws the same bytes"
    G = of_classes()
    path = str(checkpoints.save(tmp_path/'classes.safetensors', G_ema=G, license='x', provenance={}, progress={},
                                labels=names))
    face = Explorer(path).face
    face.widget
    assert [o for o, _ in face.controls['label'].options] == (names or ['class 0', 'class 1', 'class 2'])
    before = shown(face.frame)
    face.controls['label'].value = 2
    assert (shown(face.frame) != before).any() and face.read().label == 2
    for s, c in ((face.read(), [0, 0, 1.]), (State(4, .5, 5, (1,), along=.3, label=(.2, 0, .5)), None)):
        if c: assert (s.render(G) == sample_one(G, s.seed, label=torch.tensor(c))).all()
        made = {}
        exec(s.code(path), made)
        assert (made['image'] == s.render(G)).all()
    assert face.picture().size[0] >= 3*128
    face.reset()
    assert face.read() == State(label=0)
    given = Face(G, state=State(label=(.2, 0, .5)))
    given.widget
    assert given.controls['label'].options[0] == ('as given', (.2, 0, .5)) and given.read().label == (.2, 0, .5)


def test_directions_of_a_network_of_classes():
    "The sliders of the cleft move the picked class, and the panel compares with people of that class"
    torch.manual_seed(0)
    G = networks.build('stylegan3-t', 16, c_dim=2, channel_base=512, channel_max=16, num_layers=4, z_dim=8, w_dim=8)[0]
    moved = Directions(.3*torch.ones(2, 8), (0., 1.), dict(n=2, seed=0, probes=4, ridge=.1, batch=8, scorer=None, label=1))
    state = State(3, severity=.2, label=1)
    wanted = moved.move(latent_of(G, 3, label=torch.tensor([0, 1.])), severity=.2)
    assert torch.equal(state.ws(G, moved), wanted) and 'label=1)' in state.code('x', moved)
    panel = Severity(Face(G, moved, state=state), amounts=(0., .2), others=2, network=Pixels())
    assert panel.other(0) == State(4, label=1) and panel.between() >= 0


def test_sliders_ask_a_network_that_takes_labels(tmp_path):
    "Severity and side become the label, by the checkpoint's names; the code draws the same bytes"
    torch.manual_seed(0)
    base, _ = networks.build('stylegan3-t', 16, channel_base=512, channel_max=16, num_layers=4, z_dim=8, w_dim=8)
    G = networks.with_labels(base, 5).eval()
    with torch.no_grad(): G.mapping.label.weight.normal_()
    path = checkpoints.save(tmp_path/'labeled.safetensors', G_ema=G, license='x', provenance={}, progress={},
                            labels=list(LABELS))
    face = Face(path)
    face.widget
    assert (face.directions.names == LABELS and (face.controls['severity'].min, face.controls['side'].min) == (0, 0)
            and not face.controls['severity'].disabled)
    face.controls['severity'].value, face.controls['side'].value = .5, .2
    state = face.read()
    z = torch.from_numpy(np.random.RandomState(0).randn(1, 8)).float()
    wanted = G.mapping(z, torch.tensor([[.3, .2, .3, .2, 0]]))
    assert torch.allclose(state.ws(face.G, face.directions), wanted, atol=1e-5)
    for s in (state, State(3, severity=-1., side=1.), State(2, other=4, layers=(1,), along=.3, to=5, severity=.4)):
        made = {}
        exec(s.code(str(path), face.directions), made)
        assert (made['image'] == s.render(face.G, face.directions)).all()
    assert face.picture().size[0] == 5*128 and len(Explorer(path).panels) == 3


def test_listening_to_a_layer_that_is_not_there_leaves_no_hook(G):
    good = list(layers(G))[0]
    with pytest.raises(ValueError, match='accepted'):
        with listening(G, [good, 'wrong']): pass
    assert not layers(G)[good].module._forward_hooks
