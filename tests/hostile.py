"""Files that mean harm, made from a seed: `python tests/hostile.py --seed 7 --inputs 3000`, or `make hostile`.
Each must load or end in an error of ours with a message, within bounds of time and memory; nothing in it may run or
be written. Failures are printed with the command that repeats them"""
import argparse, contextlib, copy, io, json, multiprocessing, os, random, re, resource, shutil, signal, struct, sys
import sysconfig, tempfile, time, traceback, warnings, zipfile, zlib
from pathlib import Path
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
sys.dont_write_bytecode = True
import numpy as np, torch, yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
import cleftgan_nb
from cleftgan_nb import checkpoints, networks
from cleftgan_nb.study import report
from cleftgan_nb.data import cards, photographs, reading
from cleftgan_nb.data.datasets import ImageFolderDataset, about, fingerprint, manifest, verify, write_dataset
from cleftgan_nb.training import watch
from cleftgan_nb.training.config import Config, load_config, save_config
from cleftgan_nb.training.state import Run
from published import published
from test_pickles import HOSTILE

# of the processor, of a clock, bytes above what importing takes, of a message
SECONDS, PATIENCE, MEMORY, WORDS = 5, 600, 2**30, 2000
SMALL = dict(channel_base=128, channel_max=8, z_dim=8, w_dim=8)

# ---- damage
DEEP = ('@deep@', '['*50_000 + ']'*50_000)
NASTY = [None, True, False, 0, 1, -1, 255, 2**31, 2**63, -2**63, 10**30, 10**400, .5, -1.5, float('nan'),
         float('inf'), 1e308, '', 'x', 'G', 'D', '\x1b[2K\x9b', 'a\nb', '../../secret', '/etc/passwd', 'a\0b',
         '=cmd|calc',
         '<script>alert(1)</script>', '\ud800', '\u202e', 'x'*50_000, '9'*5000, [], {}, [[]], [1, 2, 3], [0, 2**62],
         {'x': 1}, {'': {}}, list(range(3000)), DEEP[0]]

def damage(rng, data, head=2048):
    "Change some of the bytes, as often near the beginning as anywhere"
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 12))):
        at = rng.randrange(min(head, len(data)) if rng.random() < .5 else len(data)) if data else 0
        n = rng.choice((1, 1, 2, 4, 8, 40))
        how = rng.randrange(7)
        if how == 0 and data: data[at] ^= 1 << rng.randrange(8)
        elif how == 1: data[at:at + n] = rng.choice((b'\0', b'\xff', b'\x7f', b'\x80'))*n
        elif how == 2: del data[at:at + n]
        elif how == 3: data[at:at] = data[at:at + n]*rng.choice((1, 2, 100))
        elif how == 4: data[at:at] = rng.randbytes(n)
        elif how == 5: data[at:at + n] = data[(b := rng.randrange(len(data) + 1)):b + n]
        elif rng.random() < .3: del data[at:]
    return bytes(data)

def places(value, at=()):
    "Yield the way to each part of a JSON value"
    yield at
    for k in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[k], (*at, k))

def change(rng, value, times=None):
    "Replace, remove, rename or double parts of a JSON value"
    value = json.loads(json.dumps(value))
    for _ in range(times or rng.choice((1, 1, 2, 3))):
        way = rng.choice(list(places(value)))
        if not way:
            value = copy.deepcopy(rng.choice(NASTY)) if rng.random() < .1 else value
            continue
        part, k = value, way[-1]
        for key in way[:-1]: part = part[key]
        how = rng.randrange(6)
        if how == 0: del part[k]
        elif how == 1 and isinstance(part, list): part.insert(k, copy.deepcopy(rng.choice(part)))
        elif how == 1: part[str(rng.choice(NASTY))[:99]] = part.pop(k)
        elif how == 2 and isinstance(part[k], (int, float)) and abs(part[k]) < 1e15:
            part[k] = part[k]*rng.choice((-1, 2, 1000, 10**9)) + rng.choice((0, 1, .5))
        else: part[k] = copy.deepcopy(rng.choice(NASTY))      # which may be changed next
    return value

def dumped(value): return json.dumps(value).replace(f'"{DEEP[0]}"', DEEP[1]).encode()

# ---- safetensors: checkpoints and states
def opened(data):
    n = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:]

def packed(header, numbers):
    text = header if isinstance(header, bytes) else dumped(header)
    return struct.pack('<Q', len(text)) + text + numbers

def safetensors(rng, good, words):
    "Make a tensor file that lies in its bytes, its header or its words"
    header, numbers = opened(good)
    if rng.random() < .7:
        del header['__metadata__']['checksum']
        good = packed(header, numbers)   # a liar can count; old files have none
    how = rng.randrange(6)
    if how == 0: return damage(rng, good, 8 + len(good) - len(numbers))
    if how == 1: return packed(change(rng, header), numbers)
    if how == 2:
        return struct.pack('<Q', rng.choice((0, 1, 2**63, 2**64 - 1, 10**8, len(good), len(good) - 8))) + good[8:]
    if how == 3:
        name = rng.choice(sorted(header))
        header[name] = change(rng, header[name])
        return packed(header, damage(rng, numbers) if rng.random() < .2 else numbers)
    if how == 4:
        text = dumped(header)
        name = rng.choice(sorted(header))
        return packed(text[:-1] + b',' + dumped({name: header[name]})[1:], numbers)
    key = rng.choice(words)
    said = dumped(change(rng, json.loads(header['__metadata__'][key]))).decode()
    return packed(header | {'__metadata__': header['__metadata__'] | {key: said}}, numbers)

def network(labels=0):
    torch.manual_seed(0)
    return networks.build('stylegan2', 16, c_dim=labels, **SMALL)

def good_checkpoint(folder):
    G, D = network(2)
    return checkpoints.save(folder/'x.safetensors', G, D, G, license='CC0-1.0',
                            provenance=dict(data='a.zip', config=dict(batch=4)), progress=dict(kimg=1., augment_p=.1),
                            labels=['lip_left', 'lip_right']).read_bytes()

def checkpoint(rng, good):
    return {'x.safetensors': safetensors(rng, good, ['networks', 'networks', 'provenance', 'progress', 'labels'])}

def load(folder):
    c = checkpoints.load(next(p for p in folder.iterdir() if p.suffix in ('.safetensors', '.pkl')))
    for text, bad in ((repr(c), ''), (c._repr_html_(), '|<script')):
        assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]' + bad, text), 'what it says can do something'

def good_state(folder):
    run = Run(Config('a.zip', 'run', network='stylegan2', batch=4, kimg=1., settings=SMALL, dtype='float32'), 16)
    for opt in run.opt.values():                                  # moments are part of a state that has seen a step
        for p in (p for g in opt.param_groups for p in g['params']): p.grad = torch.zeros_like(p)
        opt.step()
    run.sums['loss/G'] = torch.ones(2, dtype=torch.double)
    run.save(folder/'x.safetensors')
    return (folder/'x.safetensors').read_bytes()

def state(rng, good): return {'x.safetensors': safetensors(rng, good, ['run'])}

def go_on(folder):
    Run(Config('a.zip', 'run', network='stylegan2', batch=4, kimg=1., settings=SMALL, dtype='float32'), 16,
        state=folder/'x.safetensors')

# ---- pickles
CODES = [bytes([o]) for o in range(256)] + [b'cos\nsystem\n', b'ccollections\nOrderedDict\n',
                                            b'ctorch.storage\n_load_from_bytes\n',
                                            b'ctorch._utils\n_rebuild_tensor_v2\n',
                                            b'cnumpy.core.multiarray\n_reconstruct\n', b'cnumpy\ndtype\n',
                                            b'\x8c\x01G', b'K\x01', b'q\x00', b'h\x00', b'C\x03abc', b'}', b']', b'(',
                                            b't', b'R', b'b', b's', b'u', b'2']

def good_pickle(folder):
    G, D = network()
    return published({}, D=D, G_ema=G, augment_p=.1)

def snapshot(rng, good):
    how = rng.randrange(8)
    if how == 0: return {'x.pkl': rng.choice(list(HOSTILE.values()))[0]}
    if how == 1: return {'x.pkl': b'\x80\x04' + b''.join(rng.choices(CODES, k=rng.randrange(60))) + b'.'}
    if how == 2: return {'x.pkl': good[:-1] + b''.join(rng.choices(CODES, k=rng.randrange(8))) + b'.'}
    if how == 3: return {'x.pkl': tricks(rng)}
    return {'x.pkl': damage(rng, good, 4096)}

def tricks(rng):
    "Make small files that ask for much"
    G, D = network()
    zeros = np.zeros(rng.choice(((0, 9999), (9999, 0), (9999, 9999, 9999, 0), (10**4, 10**4, 0))))
    return (published({'D': {'x': zeros}}, D=D) if rng.random() < .5
            else published({}, D=D, training_set={'x': zeros, 'y': list(range(20_000))}))

# ---- pictures
def chunks(data):
    "Split a PNG into its parts"
    at, found = 8, []
    while at + 8 <= len(data):
        n = struct.unpack('>I', data[at:at + 4])[0]
        found.append((data[at + 4:at + 8], data[at + 8:at + 8 + n]))
        at += 12 + n
    return found

def png_of(parts):
    return b'\x89PNG\r\n\x1a\n' + b''.join(struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d))
                                           for k, d in parts)

BIG = zlib.compress(bytes(60_000_000), 9)
ICC = reading.profile(gamma=1.8)

def png(rng, good):
    "Make a PNG whose checksums are right and whose parts are not"
    parts, how = chunks(good), rng.randrange(5)
    k = rng.randrange(len(parts))
    if how == 0:
        parts[0] = (b'IHDR', struct.pack('>II', rng.choice((0, 1, 16, 8192, 9000, 40_000, 2**31 - 1)),
                                         rng.choice((0, 1, 16, 8192, 12_000, 2**31 - 1)))
                    + bytes([rng.choice((1, 2, 8, 16, 99)), rng.choice((0, 2, 3, 4, 6, 9)), 0, 0,
                             rng.choice((0, 1))]))
    elif how == 1: parts[k] = (parts[k][0], damage(rng, parts[k][1], 64))
    elif how == 2:
        parts.insert(k, (rng.choice((b'iCCP', b'zTXt', b'iTXt', b'tRNS', b'PLTE', b'acTL', b'fdAT', b'eXIf',
                                     b'cICP', b'gAMA', b'cHRM', b'sBIT', b'abcd')),
                         rng.choice((b'', b'x', b'x\0\0' + BIG, b'x\0\0' + b'y'*99, rng.randbytes(20)))))
    elif how == 3: parts[k], parts[-1] = parts[-1], parts[k]
    else: parts[-2] = (b'IDAT', BIG)
    return png_of(parts)

def good_pictures(folder):
    "Save the same picture in each format"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    found = {}
    for name, kind, mode in (('png', 'PNG', 'RGB'), ('png', 'PNG', 'P'), ('png', 'PNG', 'I;16'), ('png', 'PNG', 'LA'),
                             ('jpg', 'JPEG', 'RGB'), ('jpg', 'JPEG', 'CMYK'), ('webp', 'WEBP', 'RGB'),
                             ('tif', 'TIFF', 'RGB'), ('tif', 'TIFF', 'F'), ('gif', 'GIF', 'P'), ('bmp', 'BMP', 'RGB'),
                             ('ppm', 'PPM', 'RGB')):
        data = io.BytesIO()
        (image.convert('L').convert(mode) if mode in ('F', 'I;16', 'LA') else image.convert(mode)).save(data, kind)
        found[f'{mode} {name}'.replace(';', '')] = data.getvalue()
    return found

def picture(rng, good):
    name = rng.choice(sorted(good))
    data = good[name]
    if rng.random() < .1:                                      # a profile of colors, damaged
        im, out = Image.open(io.BytesIO(data)), io.BytesIO()
        with contextlib.suppress(OSError, ValueError): im.save(out, im.format, icc_profile=damage(rng, ICC, 200))
        data = out.getvalue() or data
    return {f'x.{name.split()[1]}': png(rng, data) if name.endswith('png') and rng.random() < .7
            else damage(rng, data, 200)}

def look(folder):
    [path] = folder.iterdir()
    try: photographs.read_photo(path)
    except photographs.Rejected as e: assert str(e)
    ImageFolderDataset(folder).batch([0])

# ---- datasets
def good_dataset(folder):
    rows = [(np.full((16, 16, 3), 9*i, np.uint8), [i/8, 0.], dict(age=1.*i, sex='female', n=i, ok=True, note='x'))
            for i in range(6)]
    path = write_dataset(folder/'x.zip', rows, about=dict(kind='x', license='CC0-1.0', synthetic=True,
                                                          parameters=dict(n=6)), label_names=['lip_left', 'lip_right'])
    with zipfile.ZipFile(path) as z: return path.read_bytes(), {n: z.read(n) for n in z.namelist()}

def zipped(files, how=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, 'w', how) as z:
        warnings.simplefilter('ignore')
        for name, text in files: z.writestr(name, text)
    return data.getvalue()

def archive(rng, good):
    "Make a zip that is damaged or meant to do harm"
    data, files = good
    how, image = rng.randrange(9), files['00000/img00000000.png']
    if how < 4:
        at = data.rindex(b'PK\1\2') - 400
        return {'x.zip': damage(rng, data) if how else data[:at] + damage(rng, data[at:], 800)}
    if how == 4:
        name = rng.choice(('../x.png', '/etc/x.png', 'a/../../x.png', 'C:\\x.png', '..\\x.png', 'a\0.png',
                           'x'*70_000 + '.png'))[:65_000]
        return {'x.zip': zipped([*files.items(), (name, image)])}
    if how == 5:
        return {'x.zip': zipped([(rng.choice(('a.png', 'dataset.json', 'about.json', 'manifest.csv')),
                                  bytes(rng.choice((10**6, 3*10**8)))), *files.items()], zipfile.ZIP_DEFLATED)}
    if how == 6:
        name = rng.choice(sorted(files))
        return {'x.zip': zipped([*files.items(), (name, files[name])])}
    if how == 7: return {'x.zip': zipped([(f'{i}.png', image) for i in range(3000)])}
    return {'x.zip': zipped([*files.items(), ('b.png', damage(rng, image, 60))])}

def words(rng, good):
    "Make a folder with wrong labels, manifest or metadata"
    files = dict(good[1])
    name = rng.choice(('dataset.json', 'dataset.json', 'about.json', 'manifest.csv'))
    if name.endswith('json') and rng.random() < .8: files[name] = dumped(change(rng, json.loads(files[name])))
    elif rng.random() < .5:
        files[name] = files[name].replace(*rng.choice(((b',', b',,'), (b'\n', b'\r'), (b'1.0', b'1e999'),
                                                       (b'True', b'true'), (b'x', b'"'), (b'0', b'\xff'),
                                                       (b'sha256', b'file'), (b'female', b'=cmd' + b'x'*200_000))))
    else: files[name] = damage(rng, files[name], len(files[name]))
    return files

def dataset(folder):
    path = folder/'x.zip' if (folder/'x.zip').exists() else folder
    for read in (lambda: ImageFolderDataset(path, use_labels=True, mirror=True).batch([0]),
                 lambda: ImageFolderDataset(path).batch([0, 1]), lambda: manifest(path), lambda: about(path),
                 lambda: fingerprint(path), lambda: verify(path),
                 lambda: [block(*cards._data(path)) for block in cards.BLOCKS.values()]):
        ours(read)

# ---- configurations and logs of a run
BOMB = ('out: x\nsettings:\n  a: &a [x,x,x,x,x,x,x,x,x]\n'
        + ''.join(f'  {chr(98 + i)}: &{chr(98 + i)} [{",".join([f"*{chr(97 + i)}"]*9)}]\n' for i in range(9))
        + 'data: *j\n')

def good_run(folder):
    save_config(Config('a.zip', 'run', settings=dict(SMALL)), folder/'config.yaml')
    log = ''.join(json.dumps({'kimg': 4.*i, 'step': i, 'loss/G': .7, 'r_t': .5, 'augment_p': .1}) + '\n'
                  for i in range(1, 5))
    text, picture = PngInfo(), io.BytesIO()
    text.add_text('kimg', '4')
    text.add_text('tile', '8', zip=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(picture, 'PNG', pnginfo=text)
    return {'fakes-000004.png': picture.getvalue(), 'config.yaml': (folder/'config.yaml').read_bytes(),
            'log.jsonl': log.encode(), 'time.jsonl': b'{"kimg": 4.0, "seconds": 9.0, "images": 4000}\n'}

def configuration(rng, good):
    text, how = good['config.yaml'].decode(), rng.randrange(6)
    if how == 0:
        return {'config.yaml': rng.choice((BOMB, 'data: !!python/object/apply:os.system ["touch pwned"]\n',
                                           'a: &a [*a]\n', '['*20_000, '- a\n- b\n', 'x', '%YAML 9\n---\n',
                                           '? {a: b}\n: c\n', 'data: !!binary x\n', 'data: 2001-01-01\nout: x\n',
                                           'data: !!set {a}\n', '<<: *a', '--- a\n--- b\n',
                                           'data: a\ndata: b\nout: c\n', '\t', '{', '"', 'batch: 1_0e9\n',
                                           'data: a\nout: b\nsettings: {1: 2, [a]: b}\n', '!!omap [a: 1]')).encode()}
    if how == 1: return {'config.yaml': damage(rng, good['config.yaml'], len(text))}
    if how == 2:
        return {'config.yaml': '\n'.join(rng.sample(lines := text.splitlines(), rng.randrange(len(lines)))).encode()}
    return {'config.yaml': dumped(change(rng, yaml.safe_load(text)))}

def configure(folder):
    ours(lambda: load_config(folder/'config.yaml'))
    ours(lambda: watch.status(folder))

def log(rng, good):
    name = rng.choice(('log.jsonl', 'log.jsonl', 'time.jsonl', 'fakes-000004.png'))
    if name.endswith('png'):
        return {**good, name: png(rng, good[name]) if rng.random() < .7 else damage(rng, good[name], 200)}
    lines = good[name].splitlines()
    if rng.random() < .7:
        k = rng.randrange(len(lines))
        lines[k] = dumped(change(rng, json.loads(lines[k])))
    return {**good, name: b'\n'.join(lines) if rng.random() < .8 else damage(rng, good[name], 400)}

def follow(folder):
    for read in (watch.read_log, watch.status, watch.grid_at, watch.strip): ours(lambda: read(folder))

# ---- studies
def good_study(folder):
    import nbformat
    v4, recipe = nbformat.v4, dict(title='a', data='x', made_in=dict(notebook='01_a.ipynb', cell=1), commit='x',
                                   versions=dict(torch='1'), machine=dict(system='x'))
    nb = v4.new_notebook(cells=[v4.new_markdown_cell('# A\n> b'),
                                v4.new_code_cell('1', execution_count=1,
                                                 outputs=[v4.new_output('stream', text='x'),
                                                          v4.new_output('display_data',
                                                                        {'text/html': '<b>x</b>',
                                                                         'text/plain': 'x'})])])
    return {'a.csv': b'a,b\n1,2\n', 'a.csv.json': json.dumps(recipe).encode(),
            '01_a.ipynb': nbformat.writes(nb).encode(),
            'manifest.json': json.dumps(dict(profile=dict(profile='x', cohort=dict(cleft=3), networks=['n'], bases=dict(n='b')))).encode(),
            'compare.csv': b'images,name,value,low,high\n"n, fine-tuned",fd_x,2,1,3\n"n, before",fd_x,4,3,5\n'}

def study(rng, good):
    name = rng.choice(sorted(good))
    return {**good, name: damage(rng, good[name], len(good[name])) if name.endswith('csv') or rng.random() < .1
            else dumped(change(rng, json.loads(good[name])))}

KINDS = dict(checkpoint=(good_checkpoint, checkpoint, load), pickle=(good_pickle, snapshot, load),
             state=(good_state, state, go_on), picture=(good_pictures, picture, look),
             archive=(good_dataset, archive, dataset), words=(good_dataset, words, dataset),
             configuration=(good_run, configuration, configure), log=(good_run, log, follow),
             study=(good_study, study, report.report))
PLAIN = dict(checkpoint=lambda good: {'x.safetensors': good}, state=lambda good: {'x.safetensors': good},
             pickle=lambda good: {'x.pkl': good}, picture=lambda good: {'x.png': good['RGB png']},
             archive=lambda good: {'x.zip': good[0]}, words=lambda good: good[1])
PLAIN |= {kind: lambda good: good for kind in KINDS if kind not in PLAIN}      # what they read when nothing is wrong
MAY_WRITE = dict(study=('.html', 'claim.csv', 'tripod.csv'))

# ---- watching
class Wrong(Exception): "An outcome that must not be"

def ours(read):
    "Read, and swallow the errors that are ours"
    try: read()
    except (ValueError, OSError) as e:
        check_error(e)
        refused.append(e)

def check_error(e):
    last = traceback.extract_tb(e.__traceback__)[-1]
    if not last.filename.startswith(HOME):
        raise Wrong(f'{type(e).__name__} of {Path(last.filename).name}, line {last.lineno}: {str(e)[:200]}') from e
    if not str(e).strip() or len(str(e)) > WORDS:
        raise Wrong(f'a message of {len(str(e))} letters: {str(e)[:200]}') from e

HOME = str(Path(cleftgan_nb.__file__).parent)
LIBRARY = tuple({sysconfig.get_paths()[k] for k in ('stdlib', 'purelib', 'platlib')} | {HOME, sys.prefix, '<frozen'})
RUNS = {'os.system', 'os.exec', 'os.fork', 'os.posix_spawn', 'subprocess.Popen', 'pty.spawn', 'socket.connect',
        'pickle.find_class', 'code.__new__'}
WRITES = {'os.remove', 'os.rename', 'os.mkdir', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod', 'os.truncate',
          'os.putenv'}
heard, listening, refused = [], [], []

def hear(event, args):
    if not listening: return
    if (event == 'exec' and not getattr(args[0], 'co_filename', '').startswith(LIBRARY)
        and sys._getframe(1).f_globals['__name__'] != 'fastjsonschema'):
        heard.append(f'{event} {args[0]}')
    if (event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        and not re.search(r'\.html|(claim|tripod)\.csv', str(args[0]))):
        heard.append(f'{event} {args[0]}')
    if event in RUNS or event in WRITES and 'study' not in listening: heard.append(f'{event} {args[:2]}')

def attempt(kind, files, folder):
    "Try one input, and return 'refused', 'loaded' or what is wrong"
    read = KINDS[kind][2]
    empty(folder)
    for name, data in files.items():
        (folder/name).parent.mkdir(exist_ok=True, parents=True)
        (folder/name).write_bytes(data)
    heard.clear()
    refused.clear()
    listening.append(kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ours(lambda: read(folder))
        outcome = 'refused' if refused else 'loaded'
    except Wrong as e: outcome = str(e)
    except BaseException as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        outcome = f'{type(e).__name__} at {Path(last.filename).name}, line {last.lineno}: {str(e)[:200]}'
    finally: listening.clear()
    new = sorted(o for o in (p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
                 if o not in files and not o.endswith(MAY_WRITE.get(kind, '\0')))
    if heard: outcome = f'it did something: {heard[:3]}'
    elif new: outcome = f'it wrote {new[:3]}'
    return outcome

def work(kind, seed, numbers, folder, pipe):
    "Try inputs and report each; the kernel ends this process if one takes too long"
    good = KINDS[kind][0](folder)
    # imports and compiles all that it takes
    Image.init()
    assert attempt(kind, PLAIN[kind](good), folder) == 'loaded', 'the file that is to be damaged'
    size = (int(re.search(r'VmSize:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024
            if sys.platform == 'linux' else None)
    if size: resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    sys.addaudithook(hear)
    for number in numbers:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        pipe.send(attempt(kind, made(kind, seed, number, good), folder))

def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()

def made(kind, seed, number, good): return KINDS[kind][1](random.Random(f'{kind} {seed} {number}'), good)

def tried(kind, seed, numbers):
    "Yield number and outcome of each input; a process that hangs or dies is an outcome"
    numbers = list(numbers)
    while numbers:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            outcome = yield from heard_of(kind, seed, numbers, Path(place)/'x')
        if outcome: yield numbers.pop(0), outcome

def heard_of(kind, seed, numbers, folder):
    "Yield the outcomes from one process, and return what happened to the next input"
    context = multiprocessing.get_context('fork')
    hear_of, tell = context.Pipe(False)
    folder.mkdir()
    child = context.Process(target=work, args=(kind, seed, list(numbers), folder, tell), daemon=True)
    child.start()
    tell.close()
    try:
        while numbers:
            if not hear_of.poll(PATIENCE): return f'no end after {PATIENCE} s'
            outcome = hear_of.recv()
            yield numbers.pop(0), outcome
    except EOFError:
        child.join()
        return (f'more than {SECONDS} s of the processor' if child.exitcode == -signal.SIGPROF
                else f'the process ended with {child.exitcode}')
    finally:
        child.kill()
        child.join()

def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', default='0', help='any word')
    parser.add_argument('--inputs', type=int, default=900, help='in all')
    parser.add_argument('--only', default=','.join(KINDS),
                        help='kinds, such as pickle,state, or one input, such as pickle:17')
    given = parser.parse_args(argv)
    kinds, _, number = given.only.partition(':')
    kinds = kinds.split(',')
    print(f'seed {given.seed}', flush=True)
    total = bad = 0
    for i, kind in enumerate(kinds):
        counts, started = {}, time.time()
        for n, outcome in tried(kind, given.seed, [int(number)] if number
                                else range(given.inputs//len(kinds) + (i < given.inputs % len(kinds)))):
            word = outcome if outcome in ('refused', 'loaded') else 'failed'
            counts[word] = counts.get(word, 0) + 1
            total += 1
            if word == 'failed':
                bad += 1
                print(f'FAILED {kind}: {outcome}\n       python tests/hostile.py --seed {given.seed} --only '
                      f'{kind}:{n}', flush=True)
        print(f'{kind:14} ' + ', '.join(f'{v} {w}' for w, v in sorted(counts.items())) + ' in '
              f'{time.time() - started:.0f} s', flush=True)
    print(f'{total} hostile inputs, {bad} of them failed')
    return bool(bad)

if __name__ == '__main__': sys.exit(main())
