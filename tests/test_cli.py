"""The command line: what it writes, what it says, and that every mistake is one line and exit code 2"""
import csv, dataclasses, json, os, shutil, socket, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from cleftgan_nb import __version__, checkpoints, cli, networks, pictures
from cleftgan_nb.files import sha256
from published import published

# for processes started here, wherever the library is
ENV = {**os.environ, 'PYTHONPATH': str(Path(cli.__file__).parents[1])}
SMALL = ['--resolution', '16', '--set', 'channel_base=256', '--set', 'channel_max=12', '--set', 'z_dim=24', '--set',
         'w_dim=32']

@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    "Run a command in an empty folder: (exit code, output, errors)"
    monkeypatch.chdir(tmp_path)
    def run(*argv):
        try: code = cli.main([str(a) for a in argv])
        except SystemExit as e: code = e.code
        return (code, *capsys.readouterr())
    return run

@pytest.fixture
def net(run):
    assert run('new', 'stylegan3-t', *SMALL, 'net.safetensors')[0] == 0
    return 'net.safetensors'

def mistake(run, *argv, says):
    before = sorted(os.listdir())
    code, out, err = run(*argv)
    assert ((code, out) == (2, '') and err.startswith('cleftgan: error: ') and err.count('\n') == 1
            and 'Traceback' not in err and says in err), err
    assert sorted(os.listdir()) == before

@pytest.mark.parametrize('name', ['stylegan3-t', 'stylegan3-r', 'stylegan2'])
def test_new(run, name):
    code, out, err = run('new', name, *SMALL, 'a.safetensors', '--seed', 3)
    assert code == 0 and err == '' and 'StyleGAN' in out and "'untrained': True" in out
    run('new', name, *SMALL, 'b.safetensors', '--seed', 3)
    run('new', name, *SMALL, 'c.safetensors', '--seed', 4)
    a, b, c = (sha256(f'{x}.safetensors') for x in 'abc')
    assert a == b != c
    ckpt = checkpoints.load('a.safetensors')
    assert (ckpt.meta['provenance']['untrained'] is True and ckpt.meta['progress']['kimg'] == 0
            and list(ckpt.networks) == ['D', 'G_ema'])

def test_sample(run, net):
    assert run('sample', net, '--seeds', '0-4,9', '--out', 'a.png')[0] == 0
    assert run('sample', net, '--seeds', '0-4,9', '--out', 'b.png')[0] == 0
    with open('a.png', 'rb') as a, open('b.png', 'rb') as b: assert a.read() == b.read()
    with Image.open('a.png') as im: pixels, text = np.array(im), dict(im.text)
    assert pixels.shape == (32, 48, 3) and pixels.std() > 0
    recipe = json.loads(text['recipe'])
    assert (text['Source'] == recipe['kind'] == 'synthetic' and text['Software'] == f'cleftgan_nb {__version__}'
            and recipe['untrained'] is True and 'untrained' in text['Title'])
    assert (recipe['seeds'] == [0, 1, 2, 3, 4, 9] and recipe['sha256'] == sha256(net) and recipe['file'] == net
            and os.getcwd() not in str(text))
    G = checkpoints.load(net).G_ema
    z = torch.from_numpy(np.random.RandomState(9).randn(1, 24)).float()
    with torch.no_grad(): expected = (G(z, None)[0]*127.5 + 128).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    assert (pixels[16:, 32:] == expected).all()
    assert sorted(os.listdir()) == ['a.png', 'b.png', net]

def test_sample_replaces_only_by_force(run, net):
    assert run('sample', net)[0] == 0
    with open('sample.png', 'rb') as f: old = f.read()
    mistake(run, 'sample', net, '--seeds', '1', says='sample.png exists; give another name, or --force to replace it')
    with open('sample.png', 'rb') as f: assert f.read() == old
    assert run('sample', net, '--seeds', '1', '--force')[0] == 0
    with open('sample.png', 'rb') as f: assert f.read() != old

def test_greatest_seed(run):
    assert run('new', 'stylegan2', *SMALL, '--seed', 2**32-1, 'x.safetensors')[0] == 0
    assert checkpoints.load('x.safetensors').meta['provenance']['seed'] == 2**32-1

def test_truncation_and_columns(run, net):
    G = checkpoints.load(net)
    G.G_ema.mapping.w_avg.normal_()
    checkpoints.save(net, G_ema=G.G_ema, license='x', provenance={}, progress={})
    run('sample', net, '--seeds', '1-3', '--columns', 3, '--truncation-psi', 0, '--out', 'a.png')
    run('sample', net, '--seeds', '1-3', '--columns', 1, '--out', 'b.png')
    with Image.open('a.png') as a, Image.open('b.png') as b: a, b = np.array(a), np.array(b)
    assert a.shape == (16, 48, 3) and b.shape == (48, 16, 3)
    assert (a[:, :16] == a[:, 16:32]).all() and (b[:16] != b[16:32]).any()

def test_labels(run):
    assert run('new', 'stylegan2', *SMALL, '--set', 'c_dim=3', 'c.safetensors')[0] == 0
    mistake(run, 'sample', 'c.safetensors', '--out', 'x.png', says='needs a label from 0 to 2')
    mistake(run, 'sample', 'c.safetensors', '--label', 3, '--out', 'x.png', says='needs a label from 0 to 2')
    run('sample', 'c.safetensors', '--label', 0, '--out', 'a.png')
    run('sample', 'c.safetensors', '--label', 2, '--out', 'b.png')
    with Image.open('a.png') as a, Image.open('b.png') as b: assert (np.array(a) != np.array(b)).any()

LABELS = ['lip_left', 'lip_right', 'nose_left', 'nose_right', 'repaired']

def labeled(net, file='labeled.safetensors', labels=LABELS):
    "Give the same network a label term that does something"
    G = networks.with_labels(checkpoints.load(net).sampler, 5)
    with torch.no_grad():
        torch.manual_seed(1)
        G.mapping.label.weight.normal_()
    return str(checkpoints.save(file, G_ema=G, license='x', provenance={}, progress={}, labels=labels))

def test_severity_and_side(run, net):
    "Rows are people, columns the severities and sides asked for; the file says so"
    file, G = labeled(net), checkpoints.load(labeled(net)).sampler
    code, out, err = run('sample', file, '--severity', '.2,.5,.8', '--side', 'left,bilateral', '--seeds', '3,7',
                         '--out', 'a.png')
    assert (code, err) == (0, '') and '12 synthetic pictures' in out
    with Image.open('a.png') as a: sheet, recipe = np.array(a), json.loads(a.text['recipe'])
    assert (sheet.shape[:2] == (2*16, 6*16) and (recipe['severity'], recipe['side'], recipe['seeds'])
            == ('.2,.5,.8', 'left,bilateral', [3, 7]))
    wanted = [[s*l, s*r, s*l, s*r, 0.] for l, r in ((1, 0), (1, 1)) for s in (.2, .5, .8)]
    for row, seed in enumerate((3, 7)):
        for k, label in enumerate(wanted):
            assert (sheet[16*row:, 16*k:][:16, :16] == pictures.sample_one(G, seed, label=torch.tensor(label))).all()
    assert run('sample', file, '--severity', '.5', '--nose', '.1', '--out', 'b.png')[0] == 0
    with Image.open('b.png') as b:
        assert (np.array(b) == pictures.sample_one(G, 0, label=torch.tensor([.5, 0, .1, 0, 0]))).all()
    assert run('sample', file, '--label', 0, '--out', 'c.png')[0] == 0

@pytest.mark.parametrize('argv, says', [
    (('--severity', '2'), "--severity '2'; accepted: numbers from 0 to 1"),
    (('--severity', 'nan'), 'accepted: numbers'), (('--severity', ''), 'accepted: numbers'),
    (('--severity', '.1,,.2'), 'accepted: numbers'),
    (('--severity', '.5', '--side', 'top'), "--side 'top'; accepted: some of left,right,bilateral"),
    (('--severity', '.5', '--side', ''), 'some of left'), (('--severity', '.5', '--nose', 'x'), "--nose 'x'"),
    (('--severity', '.5', '--nose', '.1,.2'), 'accepted: one number from 0 to 1'),
    (('--side', 'left'), '--side and --nose go with --severity'), (('--nose', '.5'), 'go with --severity'),
    (('--severity', '.5', '--label', '1'), '--label with --severity'),
    (('--severity', '.5', '--columns', '2'), '--columns with'),
    ((), 'takes the labels lip_left, lip_right'), (('--severity', '.1,.2', '--seeds', '0-5999'),
                                                   '12000 pictures of 16 pixels at once; accepted: up to 10000')])
def test_wrong_severities(run, net, argv, says):
    mistake(run, 'sample', labeled(net), '--out', 'x.png', *argv, says=says)

def test_networks_that_cannot_be_asked(run, net):
    mistake(run, 'sample', net, '--severity', '.5', '--out', 'x.png',
            says='takes no labels, so no severity or side can be asked for; leave')
    mistake(run, 'sample', net, '--severity', '.5', '--out', 'x.png',
            says='--resume-from net.safetensors --set labels=true')
    mistake(run, 'sample', labeled(net, labels=None), '--severity', '.5', '--out', 'x.png',
            says='does not say what its 5 label entries mean; accepted: --label 0 to 4')
    mistake(run, 'sample', labeled(net, labels=['age', *'abcd']), '--severity', '.5', '--out', 'x.png',
            says='names has age, a, b, c, d; accepted: those of a network that learned lip_left')

def test_convert(run):
    torch.manual_seed(0)
    G, D = networks.build('stylegan2', 16, channel_base=256, channel_max=12, z_dim=24, w_dim=32)
    with open('in.pkl', 'wb') as f: f.write(published({}, D=D, G_ema=G, augment_p=.5))
    code, out, err = run('convert', 'in.pkl', 'out.safetensors', '--license', 'CC-BY-4.0')
    assert code == 0 and err == '' and 'StyleGAN2Generator' in out and 'Discriminator' in out and 'CC-BY-4.0' in out
    assert (run('convert', 'in.pkl', 'half.safetensors', '--half', 'float16')[0] == 0
            and os.path.getsize('half.safetensors') < .7*os.path.getsize('out.safetensors'))
    mistake(run, 'convert', 'in.pkl', 'out.safetensors', says='--force to replace')
    assert run('convert', 'in.pkl', 'out.safetensors', '--force')[0] == 0
    for file in 'in.pkl', 'out.safetensors': assert 'StyleGAN2Generator' in run('info', file)[1]
    run('sample', 'in.pkl', '--out', 'a.png')
    run('sample', 'out.safetensors', '--out', 'b.png')
    with Image.open('a.png') as a, Image.open('b.png') as b: assert (np.array(a) == np.array(b)).all()

def test_hostile_pickle(run):
    with open('in.pkl', 'wb') as f: f.write(b"cos\nsystem\n(S'touch pwned'\ntR.")
    for argv in ('convert', 'in.pkl', 'x.safetensors'), ('info', 'in.pkl'), ('sample', 'in.pkl'):
        mistake(run, *argv, says='refused: os.system')

@pytest.mark.parametrize('argv,says', [
    (('paint',), "invalid choice: 'paint'"), ((), 'COMMAND'), (('info',), 'file'),
    (('info', 'no.safetensors'), 'no file no.safetensors'), (('info', 'no.pt'), 'accepted: .safetensors, .pkl'),
    (('sample', 'net.safetensors', '--seeds', '5-1'), '5-1'),
    (('sample', 'net.safetensors', '--seeds', ''), 'is not a seed'),
    (('sample', 'net.safetensors', '--out', 'a.jpg'), 'ends in .png'),
    (('sample', 'net.safetensors', '--out', 'no/a.png'), 'make it first'),
    (('sample', 'net.safetensors', '--truncation-psi', 'nan'), 'accepted: a number'),
    (('sample', 'net.safetensors', '--columns', '0'), 'accepted: a whole number from 1'),
    (('sample', 'net.safetensors', '--label', '0'), 'has no labels'),
    (('new', 'stylegan9', '--resolution', '16', 'x.safetensors'), 'stylegan9'),
    (('new', 'stylegan2', '--resolution', '17', 'x.safetensors'), '17'),
    (('new', 'stylegan2', 'x.safetensors'), '--resolution'),
    (('new', 'stylegan2', '--resolution', '16', '--set', 'wings=2', 'x.safetensors'), 'wings'),
    (('new', 'stylegan2', *SMALL, 'net.safetensors'), '--force'),
    (('new', 'stylegan2', '--resolution', '16', '--set', 'channel_max', 'x.safetensors'), 'accepted: name=value'),
    (('new', 'stylegan2', *SMALL, 'x.pt'), 'ends in .safetensors'),
    (('convert', 'no.pkl', 'x.safetensors'), 'no file no.pkl'),
    (('convert', 'net.safetensors', 'x.pkl'), 'ends in .safetensors, or .onnx'),
    (('convert', 'net.safetensors', 'net.safetensors', '--layout', 'stylegan3', '--force'), 'would replace what it is'),
    (('sample', 'net.safetensors', '--frob'), '--frob'),
    (('new', 'stylegan2', *SMALL, '--seed', '-1', 'x.safetensors'),
     "--seed: '-1'; accepted: a whole number from 0 to 4294967295"),
    (('new', 'stylegan2', *SMALL, '--seed', '4294967296', 'x.safetensors'), "'4294967296'; accepted"),
    (('new', 'stylegan2', *SMALL, '--seed', '9'*5000, 'x.safetensors'), 'accepted: a whole number from 0'),
    (('new', 'stylegan2', *SMALL, '--seed', '1.5', 'x.safetensors'), "'1.5'; accepted"),
    (('sample', 'net.safetensors', '--label', 'x'), "--label: 'x'; accepted: a whole number from 0"),
    (('new', 'stylegan3-t', *SMALL, '--set', 'margin_size=-20', 'x.safetensors'), 'margin_size=-20; accepted: '),
    (('new', 'stylegan3-t', *SMALL, '--set', 'margin_size=300', 'x.safetensors'), 'margin_size=300'),
    (('new', 'stylegan2', *SMALL, '--license', '\udcff', 'x.safetensors'), 'license is str'),
    (('new', 'stylegan2', '--resolution', '65536', 'x.safetensors'), 'img_resolution=65536; accepted: 0 to 4096'),
    (('new', 'stylegan3-t', '--resolution', '4294967295', 'x.safetensors'), '4294967295'),
    (('new', 'stylegan2', '--resolution', '4096', '--set', 'channel_base=1048576', '--set', 'channel_max=8192',
      'x.safetensors'), 'numbers; accepted: up to 268,435,456, which take 1 GiB. Lower its resolution'),
    (('new', 'stylegan2', '--resolution', '16', '--set', 'resolution=32', 'x.safetensors'), 'already given'),
    (('phantom', '--size', '1024', '--seeds', '0-999', '--out', 'x.png'),
     '1000 pictures of 1024 pixels at once; accepted: up to 256'),
    (('phantom', '--size', '65536', '--out', 'x.png'), 'accepted: '),
    (('info', '.'), 'is a folder'), (('sample', '.'), 'is a folder'),
    (('new', 'stylegan2', *SMALL, '.'), 'is a folder')])
def test_mistakes(run, net, argv, says): mistake(run, *argv, says=says)

def test_debug_shows_where(run):
    with pytest.raises(FileNotFoundError): cli.main(['info', 'no.safetensors', '--debug'])
    with pytest.raises(FileNotFoundError): cli.main(['--debug', 'info', 'no.safetensors'])

def test_a_bug_is_one_line_too(run, net, monkeypatch):
    monkeypatch.setattr(pictures, 'sample_one', lambda *a: 1/0)
    mistake(run, 'sample', net, says='ZeroDivisionError: division by zero; this should not happen')

def test_interrupt(run, net, monkeypatch):
    def interrupt(*a): raise KeyboardInterrupt
    monkeypatch.setattr(pictures, 'sample_one', interrupt)
    assert run('sample', net)[0] == 130 and not os.path.exists('sample.png')

def test_warnings_are_one_line(run, net):
    c = checkpoints.load(net)
    with torch.no_grad(): c.G_ema.synthesis.input.weight[0, 0] = float('nan')
    checkpoints.save(net, G_ema=c.G_ema, license='x', provenance={}, progress={})
    code, out, err = run('info', net)
    assert (code == 0 and 'NOT FINITE' in out and err.startswith('cleftgan: warning: net.safetensors: not finite')
            and err.count('\n') == 1)

@pytest.mark.parametrize('command', [(), ('convert',), ('info',), ('new',), ('sample',), ('train',), ('measure',),
                                     ('forget',), ('doctor',)])
def test_help(run, command):
    code, out, err = run(*command, '--help')
    assert code == 0 and 'examples:\n  cleftgan ' in out and all(f'cleftgan {c}' in out for c in command)

def test_help_is_quick():
    "Help imports neither torch nor numpy"
    code = ("import sys; from cleftgan_nb.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\nprint([m "
            "for m in ('torch', 'numpy', 'numba', 'PIL') if m in sys.modules])")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=ENV).stdout
    assert out.splitlines()[-1] == '[]'

def test_as_a_command(net, tmp_path):
    "In its own process, as the console script runs it"
    def command(*argv):
        return subprocess.run([sys.executable, '-c', 'import sys; from cleftgan_nb.cli import main; sys.exit(main())',
                               *argv], capture_output=True, text=True, cwd=tmp_path, env=ENV)
    good, bad, version = command('info', net), command('info', 'no.pkl'), command('--version')
    assert good.returncode == 0 and 'StyleGAN3Generator' in good.stdout and good.stderr == ''
    assert bad.returncode == 2 and bad.stderr.count('\n') == 1
    assert version.stdout == f'cleftgan_nb {__version__}\n'

def test_as_a_module(tmp_path):
    "`python -m cleftgan_nb` is the command line, with its exit code"
    def command(*argv):
        return subprocess.run([sys.executable, '-m', 'cleftgan_nb', *argv], capture_output=True, text=True,
                              cwd=tmp_path, env=ENV)
    good, bad = command('--help'), command('info', 'no.pkl')
    assert good.returncode == 0 and good.stdout.startswith('usage: cleftgan ')
    assert bad.returncode == 2 and bad.stderr.startswith('cleftgan: error: no file no.pkl')

SETTINGS = [o for pair in ('tick_kimg=.016', 'settings.channel_base=256', 'settings.channel_max=8')
            for o in ('--set', pair)]

@pytest.mark.slow
def test_train(run, tmp_path):
    "From a dataset, then from the run's folder, then from the file that `--show` prints"
    assert run('cohort', 'normal', '--n', 8, '--size', 16, '--workers', 1, '--out', 'faces.zip')[0] == 0
    code, out, err = run('train', 'faces.zip', '--out', 'run', '--network', 'stylegan2', '--batch', 8, '--kimg', .016,
                         *SETTINGS)
    assert code == 0 and 'after 0.016 kimg' in out and (tmp_path/'run/network-000000.016.safetensors').exists()
    code, out, err = run('train', 'run', '--kimg', .032)
    assert code == 0 and 'after 0.032 kimg' in out
    code, out, err = run('train', 'run', '--show')
    assert code == 0 and 'network: stylegan2' in out and 'gamma: 0.0064' in out
    (tmp_path/'again.yaml').write_text(out.replace('out: run', 'out: again'))
    assert run('train', 'again.yaml')[0] == 0
    assert (tmp_path/'again/log.jsonl').read_bytes() == (tmp_path/'run/log.jsonl').read_bytes()
    code, out, err = run('train', 'run', '--set', 'd_lr=1')
    assert code == 2 and 'd_lr: 0.002, now 1' in err
    assert run('info', 'run/network-000000.032.safetensors')[0] == 0

@pytest.mark.parametrize('args, word', [(('faces.zip',), 'out is missing'),
                                        (('none.zip', '--out', 'x'), 'no dataset none.zip'),
                                        (('none.yaml',), 'none.yaml'), (('a.zip', '--out', 'x', '--set', 'bach=4'),
                                                                        'did you mean batch?'),
                                        (('a.zip', '--out', 'x', '--network', 'stylegan4'), 'stylegan3-t'),
                                        (('a.zip', '--out', 'x', '--set', 'gamma'), 'name=value'),
                                        (('a.zip', '--out', 'x', '--batch', '0'), '--batch')])
def test_train_complains(run, tmp_path, args, word):
    code, out, err = run('train', *args)
    assert code == 2 and word in err and err.count('\n') == 1 and not (tmp_path/'x').exists()

def test_home_and_numbers_as_people_write_them(run, tmp_path, monkeypatch):
    "~ in any option, also within a configuration and behind --set; 1e3, 8.0 and 1_000 are whole numbers"
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    (tmp_path/'home').mkdir()
    assert run('phantom', '--size', '1.6e1', '--columns', '1.0', '--out=~/a.png')[0] == 0
    assert run('new', 'stylegan2', '--resolution', '8.0', '--set', 'channel_base=2.56e2', '--set', 'channel_max=4.0',
               '--set', 'z_dim=+4e0', '--set', 'w_dim=4', '--seed', '1_0', '~/n.safetensors')[0] == 0
    assert run('sample', '~/n.safetensors', '--out=~/b.png')[0] == 0
    assert sorted(os.listdir('home')) == ['a.png', 'b.png', 'n.safetensors'] and os.listdir() == ['home']
    with open('run.yaml', 'w') as f: f.write('data: ~/a.zip\nout: ~/run\nresume_from: ~/n.safetensors\n')
    for out in (run('train', 'run.yaml', '--show')[1],
                run('train', '~/a.zip', '--out=~/run', '--set', 'resume_from=~/n.safetensors', '--show')[1]):
        assert all(f'{tmp_path}/home/{name}\n' in out for name in ('a.zip', 'run', 'n.safetensors'))
    for n in ('8.5', 'inf', 'nan', '1e99', '0x10', '[8]'):
        mistake(run, 'cohort', 'cleft', '--n', n, says=f"--n: '{n}'; accepted: a whole number from 1")
    mistake(run, 'cohort', 'cleft', '--repaired', 'nan', says='accepted: a number')
    assert 'made' in run('train', 'a.zip', '--out', '$HOME/made', '--show')[1] and not (tmp_path/'home/made').exists()

OUT = 'no/x'
@pytest.mark.parametrize('argv', [
    ('measure', 'd.zip', '--real', 'd.zip', '--out', f'{OUT}.csv'), ('new', 'stylegan2', *SMALL, f'{OUT}.safetensors'),
    ('convert', 'net.safetensors', f'{OUT}.safetensors'), ('sample', 'net.safetensors', '--out', f'{OUT}.png'),
    ('phantom', '--out', f'{OUT}.png'), ('cohort', 'cleft', '--n', '2', '--out', f'{OUT}.zip'),
    ('split', 'd.zip', 'a.zip', f'{OUT}.zip'), ('prepare', 'photos', '--out', OUT),
    ('card', 'd.zip', 'c.md', '--out', f'{OUT}.md'), ('train', 'd.zip', '--out', 'file/run')])
def test_where_nothing_can_be_written_nothing_is_begun(run, monkeypatch, argv):
    "Every command looks first: no network is loaded, no image read or drawn"
    from cleftgan_nb.data import cards, cohorts, photographs, write_dataset
    from cleftgan_nb.metrics import table
    from cleftgan_nb.training import loop
    def begun(*_, **__): raise AssertionError('the work was begun')
    for place, name in ((checkpoints, 'load'), (networks, 'build'), (table, 'measure'), (cohorts, '_draw'),
                        (photographs, '_one'), (cards, '_data'), (loop, '_train')):
        monkeypatch.setattr(place, name, begun)
    monkeypatch.setattr(photographs.faces, '_dlib', lambda: None)
    write_dataset('d.zip', ((np.full((8, 8, 3), i, np.uint8), None, dict(person=str(i))) for i in range(4)),
                  about=dict(kind='x', license='CC0-1.0'))
    os.mkdir('photos')
    for name in ('photos/a.jpg', 'file', 'net.safetensors'): open(name, 'w').close()
    with open('c.md', 'w') as f: f.write('<!-- generated: begin people -->\n<!-- generated: end people -->\n')
    mistake(run, *argv, says='make it first' if argv[0] != 'train' else 'is no folder')

@pytest.mark.parametrize('spoil', ['a file', 'full', 'homeless'])
def test_measure_without_a_cache(run, tmp_path, monkeypatch, spoil):
    "The table is printed; a warning names what to set"
    from cleftgan_nb.data import write_dataset
    from cleftgan_nb.metrics import features
    judge = features.FeatureNetwork('faceres', '1', 8, 3, torch.nn.AdaptiveAvgPool2d(1))
    judge.network.forward = lambda x: x.mean((2, 3))
    monkeypatch.setattr(features, 'JUDGES', dict(faceres=lambda device: judge))
    write_dataset('a.zip', ((np.full((8, 8, 3), 9*i, np.uint8), None, {}) for i in range(16)),
                  about=dict(kind='x', license='CC0-1.0'))
    (tmp_path/'cache').write_text('')
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path/('cache' if spoil == 'a file' else 'new')))
    if spoil == 'homeless':
        monkeypatch.delenv('CLEFTGAN_CACHE')
        monkeypatch.setenv('XDG_CACHE_HOME', 'nowhere')
    def full(*_): raise OSError(28, 'No space left on device', 'x')
    if spoil == 'full': monkeypatch.setattr(features, 'write_tensors', full)
    code, out, err = run('measure', 'a.zip', '--real', 'a.zip', '--judge', 'faceres')
    assert code == 0 and 'kd_faceres' in out and 'cleftgan: warning: ' in err and 'set CLEFTGAN_CACHE' in err, err
    assert 'are kept in' not in err

@pytest.mark.slow
def test_measure(run, tmp_path):
    "What the inputs do not allow is left out, and the file holds the printed table"
    for seed in 0, 1:
        assert run('cohort', 'cleft', '--n', 16, '--size', 64, '--seed', seed, '--workers', 1, '--out',
                   f'{seed}.zip')[0] == 0
    assert run('new', 'stylegan3-t', '--resolution', 64, *SMALL[2:], 'net.safetensors')[0] == 0
    code, out, err = run('measure', 'net.safetensors', '--real', '0.zip', '--parts', 'severity,distances', '--n', 16,
                         '--out', 'scores.csv')
    table, about = out.split('\n\n')
    names = [line.split()[0] for line in table.splitlines()[1:]]
    distances = [f'{m}_{j}' for j in ('efficientnet_lite0', 'faceres') for m in ('fd', 'fd_infinity', 'kd')]
    assert code == 0 and names == [*distances, 'dish', *(f'severity_{o}' for o in ('difference', 'sd_ratio', 'wasserstein'))], err
    assert 'Features of images are kept in ' in err and "'cleftgan forget' removes them" in err
    assert 'faceres, which learned from photographs of faces' in about and 'not their numbers' in about
    rows = list(csv.DictReader((tmp_path/'scores.csv').open()))
    assert ([r['name'] for r in rows] == names and rows[0]['real'] == '0.zip'
            and rows[0]['generated'].startswith('net.safetensors sha256:'))
    assert out.splitlines()[1].split()[1] == f'{float(rows[0]["value"]):.4g}'
    code, out, err = run('measure', '1.zip', '--real', '0.zip', '--parts', 'manifold', '--judge', 'faceres')
    assert code == 0 and 'precision_faceres' in out and 'efficientnet' not in out, err
    code, out, err = run('measure', '1.zip', '--real', '0.zip', '--held-out', '1.zip')
    assert code == 0 and 'copied_pixels_16' in out and 'ppl' not in out and 'eq_t' not in out, err

@pytest.mark.parametrize('args, says', [(('net.safetensors', '--real', 'none.zip'), 'none.zip'),
                                        (('none.zip', '--real', 'none.zip'), 'no dataset none.zip'),
                                        (('net.safetensors', '--real', 'x.zip', '--out', 'a.txt'), '.csv'),
                                        (('net.safetensors',), '--real'),
                                        (('net.safetensors', '--real', '.', '--inception', 'none.pt'), 'none.pt'),
                                        (('net.safetensors', '--real', 'x.zip', '--scorer', 'photos'), 'phantoms, photographs, or a file'),
                                        (('net.safetensors', '--real', 'x.zip', '--n', '1'), 'from 2')])
def test_measure_complains(run, net, args, says): mistake(run, 'measure', *args, says=says)

def test_measure_refuses_what_was_trained_on_as_held_out(run, tmp_path):
    "Under any name: each image is as near to one set as to the other, so none would count as a copy"
    from cleftgan_nb.data.datasets import write_dataset
    for name in 'a.zip', 'b.zip':
        write_dataset(tmp_path/name, [(np.full((16, 16, 3), i, np.uint8), None, {}) for i in range(4)],
                      about=dict(kind='x', license=name))
    for name in 'a.zip', 'b.zip':
        mistake(run, 'measure', 'b.zip', '--real', 'a.zip', '--held-out', name,
                says="4 of 4 held-out images are among the training images, to the pixel, and tell nothing "
                     "about copies; accepted: images of the same kind that the generator never saw. Before "
                     "training, 'cleftgan split' holds some back")

def test_forget(run, tmp_path, monkeypatch):
    "It says what there is, removes only what is ours, and only on request"
    from cleftgan_nb import files
    monkeypatch.setenv('CLEFTGAN_CACHE', str(tmp_path/'cache'))
    assert run('forget') == (0, 'nothing to remove\n', '')
    (tmp_path/'cache/features').mkdir(parents=True)
    (tmp_path/'deep').mkdir()
    for name in (f'faceres-{"0"*24}', 'mine'): (tmp_path/f'cache/features/{name}.safetensors').write_bytes(b'x'*2**19)
    def left(path, pid, host=socket.gethostname()):
        place = tmp_path/path
        place = place.with_name(f'.{place.name}@{host}-{pid}.{"0"*16}.part')
        (place/'new').mkdir(parents=True)
        return place
    dead, other, moved = left('deep/out', 2**30), left('deep/out', 7, 'elsewhere'), left('deep/set', 2**30)
    (moved/'old').write_text('whole')
    left('\x1b[2Kodd', 2**30)
    with files.part(tmp_path/'busy') as new:
        code, out, err = run('forget')
        assert (code == 0 and f'features: features of images, 1 files, 0.5 MiB' in out and 'mine' not in out
                and out.count('half-written, left by a killed process') == 3 and '\x1b' not in out
                and 'nothing was removed' in out)
        assert (out.count('being written now; stays') == 1 and out.count('stays without --others') == 1
                and all(o.exists() for o in (dead, other, moved)))
        assert run('forget', '--yes')[:2] == (0, out.rpartition('nothing')[0] + 'removed\n') and new.parent.exists()
    assert not dead.exists() and other.exists() and not moved.exists() and (tmp_path/'deep/set').read_text() == 'whole'
    assert os.listdir(tmp_path/'cache/features') == ['mine.safetensors']
    assert run('forget', 'deep', '--others', '--yes')[0] == 0 and os.listdir('deep') == ['set']
    mistake(run, 'forget', 'no', says='no folder no')

def test_the_secret_is_in_no_command(run, tmp_path, monkeypatch):
    from cleftgan_nb import data
    monkeypatch.setattr(data, 'prepare', lambda *a, secret, **k: type('', (), dict(kept=secret))())
    Path('secret').write_text('our own word\n')
    os.chmod('secret', 0o600)
    Path('long').write_text('one\ntwo')
    secret = lambda *a: run('prepare', 'photographs', *a)[1].splitlines()[-1:]
    assert secret('--anonymize', '--secret-file', 'secret') == ["b'our own word'"] and secret() == ['None']
    typed = iter(['our own word']*3 + ['other'])
    monkeypatch.setattr('getpass.getpass', lambda ask: next(typed))
    assert secret('--anonymize', '--secret') == ['our own word']
    mistake(run, 'prepare', 'photographs', '--anonymize', '--secret', says='the two secrets differ')
    mistake(run, 'prepare', 'photographs', '--anonymize', '--secret-file', 'long', says='accepted: a file of one line')
    mistake(run, 'prepare', 'photographs', '--secret', says='accepted: both or neither')
    mistake(run, 'prepare', 'photographs', '--anonymize', '--secret', 'our own word', says='unrecognized arguments')
    if os.name != 'nt':
        os.chmod('secret', 0o644)
        assert (run('prepare', 'photographs', '--anonymize', '--secret-file', 'secret')[2]
                == 'cleftgan: warning: other accounts may read secret: chmod 600 secret\n')
    def nobody(ask): raise EOFError
    monkeypatch.setattr('getpass.getpass', nobody)
    mistake(run, 'prepare', 'photographs', '--anonymize', '--secret',
            says='there is none; accepted: --secret-file FILE')

@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_output_that_nobody_takes(run, monkeypatch, capsys):
    "A reader that has gone is no error; a full disk is, and the message says where"
    monkeypatch.setenv('CLEFTGAN_CACHE', 'none')
    there, here = os.pipe()
    os.close(there)
    for out, says in ((os.fdopen(here, 'w'), ''), (open('/dev/full', 'w'),
                                                   'cleftgan: error: No space left on device: standard output, or a '
                                                   'temporary file\n')):
        with out, monkeypatch.context() as m:
            m.setattr(sys, 'stdout', out)
            assert cli.main(['forget']) == (2 if says else 141)
        assert capsys.readouterr().err == says

def test_doctor(run, monkeypatch):
    "It confirms what is right and what computed it; what is wrong is an error that names it"
    from cleftgan_nb import doctor, ops
    monkeypatch.setattr(doctor, 'SHAPES', {'cpu': (1, 2, 20, 20)})
    monkeypatch.setattr(doctor, 'copy_speed', lambda device: 1e10)
    code, out, err = run('doctor', '--device', 'cpu')
    rows = [line for line in out.splitlines() if '  ok ' in line]
    assert (code == 0 and err == '' and len(rows) == 10 and all(' cpu ' in r for r in rows)
            and f'torch        {torch.__version__}' in out)
    if not torch.cuda.is_available():
        assert out.startswith('GPU          none: everything below was computed on the CPU')
        assert (run('doctor', '--device', 'cuda')[::2]
                == (2, "cleftgan: error: device='cuda' is not known; accepted: cpu\n"))
    real = ops.bias_act
    monkeypatch.setattr(ops, 'bias_act', lambda *a, impl='auto', **kw: real(*a, impl=impl, **kw)
                        * (1. if impl == 'definition' else 1.05))
    code, out, err = run('doctor', '--device', 'cpu')
    assert (code == 2 and out.count('WRONG') == 2
            and 'kernels differ from the definition: bias_act in float32 (cpu, error ' in err and err.count('\n') == 1)

def test_no_training_is_no_error(tmp_path, capsys):
    from cleftgan_nb.data import write_dataset
    data = write_dataset(tmp_path/'d.zip', ((np.full((16, 16, 3), i, np.uint8), None, dict(n=i)) for i in range(4)),
                         about=dict(kind='gray', license='CC0-1.0'))
    small = ('--set', 'settings.channel_base=64', '--set', 'settings.channel_max=4')
    assert cli.main(['train', str(data), '--out', str(tmp_path/'run'), '--network', 'stylegan2', '--kimg', '0', *small]) == 0
    assert 'nothing was trained: kimg=0' in capsys.readouterr().out


ODD = "it's  a $(run) \"here\"", '-dash', 'a~', 'a;b&c*', 'two\nlines\x1b[2K', 'x'

@pytest.mark.skipif(os.name == 'nt', reason='names that Windows does not allow')
@pytest.mark.parametrize('name', ODD)
def test_printed_commands_can_be_pasted(tmp_path, monkeypatch, name):
    "Into a shell, which then names the same files"
    from cleftgan_nb.data import archives, photographs
    from cleftgan_nb.training import config, guards, state, transfer
    bash = shutil.which('bash') or pytest.skip('no bash')
    monkeypatch.chdir(tmp_path)
    out = Path(name)
    out.mkdir()
    (out/'network-000000.008.safetensors').touch()
    (out/'log.jsonl').write_text('{"kimg": 0.008}\n')
    (out/'config.yaml').write_text('data: gone.zip\nout: .\n')
    def said(f, *args):
        with pytest.raises(Exception) as e: f(*args)
        return str(e.value)
    c, G = config.Config('gone.zip', name), type('', (), dict(img_resolution=16, img_channels=3, c_dim=0))
    labels = type('', (), dict(labels=None, sampler=G))
    (out/'old.zip').write_text('no zip')
    monkeypatch.setattr(photographs, 'leftovers', lambda *a, **k: [(Path('x'), True)])
    with pytest.warns(UserWarning) as warned: photographs._warn_of(Path(name))
    run = type('', (), dict(config=c))
    messages = [(cli._ended(out, dataclasses.replace(c, kimg=1.)), 'To resume: ', ''),
                (cli._ended(out, dataclasses.replace(c, kimg=.008)), 'To train on: ', ''),
                (said(config.located, c), 'moved: ', ''), (said(cli._check_asked, labels, name), 'cohort: ', ''),
                (said(transfer.check_fit, G, (32, 3, 0), 'x.pkl', name), 'fits: ', ''),
                (said(archives.open_archive, out/'old.zip'), 'check it with: ', ''),
                (said(state.Run._check_same, run, dict(data='a', fingerprint='b'), dict(fingerprint='c'), out),
                 'if you mean it, ', ' (in Python'), (str(warned[0].message), 'removed: ', ''),
                (said(guards.check_apart, config.Config(name, name)), 'such as ', '')]
    commands = [cli._line(m).partition(start)[2].partition(end)[0] if end else cli._line(m).rpartition(start)[2]
                for m, start, end in messages]
    show = 'show() { printf "%s\\0" "$@" END; }\n'
    got = subprocess.run([bash], input=(show + ''.join(f'show {c}\n' for c in commands)).encode(), capture_output=True,
                         cwd=tmp_path)
    words = [o.strip('\0').split('\0') for o in os.fsdecode(got.stdout).split('END\0')[:-1]]
    assert not got.stderr and len(words) == len(commands), got.stderr
    for given in words:
        files = [os.path.normpath(w.removeprefix('data=')).partition('/')[0].removesuffix('-run') for w in given]
        assert name in files and not any(w.startswith('-dash') for w in given), given
