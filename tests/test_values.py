"""Values in YAML: what is refused, in which words, and that nothing changes on the way"""
import json
import time
from pathlib import Path

import pytest
import yaml

from cleftgan_nb import cli
from cleftgan_nb.training.config import Config, check, load_config, save_config
from cleftgan_nb.values import from_yaml

root = Path(__file__).resolve().parent.parent
BOMB = 'a: &a [x, x]\n' + ''.join(f'{b}: &{b} [*{a}, *{a}]\n'
                                  for a, b in zip('abcdefghijklmnopqrstuvwxy', 'bcdefghijklmnopqrstuvwxyz'))
BAD = {'syntax': ('data: [', 'line 1: while parsing a flow node expected the node'),
       'a list': ('- data: a.zip\n- out: b', "[{'data': 'a.zip'}, {'out': 'b'}]; accepted: names and values"),
       'a word': ('faces.zip', "'faces.zip'; accepted: names"), 'nothing': ('# faces', 'nothing; accepted: names'),
       'a tag': ('data: !!python/object/apply:os.system ["touch pwned"]', 'line 1: a tag (!)'),
       'a binary': ('data: !!binary aGk=', 'a tag'), 'an alias': ('data: &d a.zip\nout: *d', 'an anchor or alias'),
       'a bomb': (BOMB, 'line 1: an anchor'), 'depth': ('data: ' + '['*9999, 'more than 8 deep'),
       'twice': ('data: a\nout: b\ndata: c', "line 3: 'data' twice"), 'a number as a name': ('1: x', "'1' as a name"),
       'several': ('data: a\n---\nout: b', 'expected a single document'),
       'a control character': ('data: "\x07"\nout: \x07', 'control characters'),
       'bytes': (b'data: \xff\xfe', 'not UTF-8 text'), 'much': ('data: ' + 'x'*99_999, 'more than 32 KiB'),
       'a long value': (f'data: {"x"*9999}\nout: b\nbatch: {"9"*5000}', "batch='999"),
       'a huge number': (f'data: a\nout: b\nkimg: 0x{"f"*9999}', "kimg='0xff")}

@pytest.mark.parametrize('name', BAD)
def test_a_configuration_that_is_none_says_so_at_once(tmp_path, monkeypatch, capsys, name):
    text, words = BAD[name]
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    Path('run.yaml').write_bytes(text if isinstance(text, bytes) else text.encode())
    assert cli.main(['train', 'run.yaml']) == 2
    said = capsys.readouterr().err
    assert (words in said and 'accepted' in said and 'should not happen' not in said and len(said) < 400
            and said.count('\n') == 1), said
    with pytest.raises(ValueError): load_config('run.yaml')
    assert time.process_time() - start < 5
    assert not Path('pwned').exists()


@pytest.mark.parametrize('pairs, words', [(['settings=[1]'], 'settings=[1]; accepted'),
                                          (['settings=1', 'settings.channel_max=2'], 'is a value already'),
                                          (['gamma=&a 1'], 'an anchor'), (['gamma=!!python/name:os.system'], 'a tag'),
                                          (['gamma=['], 'expected the node'), (['gamma=' + 'x'*99_999], 'KiB')])
def test_set_refuses(capsys, pairs, words):
    assert cli.main(['train', 'a.zip', '--out', 'b', *(o for pair in pairs for o in ('--set', pair))]) == 2
    said = capsys.readouterr().err
    assert words in said and 'should not happen' not in said and len(said) < 400, said


def test_what_is_written_is_read_as_it_was():
    values = dict(a=[1, -2.5, 1e-30, 1e300, True, None],
                  b='1e3 010 yes 2024-01-01 1:30 0x1F ~ null = <<'.split()
                  + ['', ' ', 'a: b', '#', '&a', '!', 'ä\n\t', '\U0001f600', '1_0', '.5', '-.5', '- x'], c=dict(d={}))
    assert from_yaml(yaml.safe_dump(values, allow_unicode=True, sort_keys=False)) == values


def test_there_is_one_reader():
    found = [o for folder in ('cleftgan_nb', 'workflow') for o in (root/folder).rglob('*')
             if o.suffix in ('.py', '') and o.is_file() and b'yaml' in (data := o.read_bytes())
             and any(w in data for w in (b'safe_load', b'yaml.load', b'load_all', b'parameters_yaml'))]
    assert [o.name for o in found] == ['values.py']

def test_old_spelling_is_read(tmp_path):
    "Old checkpoints, datasets and configurations keep their words"
    from cleftgan_nb import checkpoints, networks
    from cleftgan_nb.data.datasets import about
    from cleftgan_nb.training.config import load_config
    G = networks.StyleGAN2Generator(z_dim=4, w_dim=4, c_dim=0, img_resolution=8, img_channels=3, channel_base=32,
                                    channel_max=4)
    said = dict(provenance=dict(history=[dict(data='a.zip', license='ours')]), progress={})
    new = checkpoints.save(tmp_path/'new.safetensors', G_ema=G, license='CC0-1.0', **said)
    tensors, meta = checkpoints.read_tensors(new)
    old = {k.replace('license', 'licence'): v.replace('license', 'licence') for k, v in meta.items() if k != 'checksum'}
    checkpoints.write_tensors(tmp_path/'old.safetensors', tensors, old)
    assert (b'licence' in (tmp_path/'old.safetensors').read_bytes()
            and 'license' in checkpoints.read_tensors(tmp_path/'old.safetensors')[1])
    back = checkpoints.load(tmp_path/'old.safetensors')
    assert back.meta['license'] == 'CC0-1.0' and checkpoints.history(back.meta)[0]['license'] == 'ours'
    (tmp_path/'set').mkdir()
    (tmp_path/'set/about.json').write_text('{"kind": "cleft", "licence": "CC0-1.0"}')
    (tmp_path/'set/a.png').write_bytes(b'')
    assert about(tmp_path/'set')['license'] == 'CC0-1.0'
    (tmp_path/'run.yaml').write_text('data: a.zip\nout: run\nlicence: ours\n')
    assert load_config(tmp_path/'run.yaml').license == 'ours'


@pytest.mark.parametrize('text, value', [('1e-3', .001), ('2E-3', .002), ('8e-3', .008), ('.5', .5), ('+1e-1', .1),
                                         ('5_0e-2', .5)])
def test_numbers_as_people_write_them(tmp_path, text, value):
    "In --set, in YAML and from Python; a folder may still be called 1e3, and comes back from the run's own file"
    (tmp_path/'run.yaml').write_text(f'data: 1e3\nout: run\nd_lr: {text}\nbatch: 8.0\nsettings: {{channel_max: 1.6e1}}\n')
    asked = cli._config(cli._parser().parse_args(['train', '1e3', '--out', 'run', '--kimg', '1e3', '--batch', '8.0', '--set',
                                                  f'd_lr={text}', '--set', 'settings.channel_max=16.0']))
    c = load_config(tmp_path/'run.yaml')
    for c in (c, asked, check(Config('1e3', 'run', d_lr=text, batch=8., settings=dict(channel_max='16e0')))):
        assert (c.d_lr, c.data) == (value, '1e3') and json.dumps([c.batch, c.settings]) == '[8, {"channel_max": 16}]'
    save_config(c, tmp_path/'again.yaml')
    assert load_config(tmp_path/'again.yaml') == c


@pytest.mark.parametrize('pair, says', [
    ('batch=8.5', 'batch=8.5; accepted: a whole number from 1 to 65536'), ('kimg=inf', "kimg='inf'; accepted: a number"),
    ('kimg=.nan', 'kimg=nan'), ('kimg=1e999', "kimg='1e999'"), ('batch=010', "batch='010'"), ('seed="8"', "seed='8'"),
    ('g_lr=1e-9', 'g_lr=1e-9; accepted: a number from 1e-8 to 1'), ('kimg=-1e0', 'kimg=-1.0; accepted: a number from 0 to 10000000')])
def test_what_is_no_number_is_refused_in_plain_digits(capsys, pair, says):
    assert cli.main(['train', 'a.zip', '--out', 'b', '--set', pair, '--show']) == 2
    assert says in capsys.readouterr().err
