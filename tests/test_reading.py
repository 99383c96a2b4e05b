"""Pictures as people have them: the same upright sRGB for training and for photographs, or the reason why not"""
import io, json, resource, shlex, struct, sys, zlib
from concurrent.futures import ThreadPoolExecutor
import numpy as np, pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from cleftgan_nb import cli
from cleftgan_nb.data import reading
from cleftgan_nb.data.datasets import ImageFolderDataset
from cleftgan_nb.data.photographs import read_photo
from cleftgan_nb.data.reading import ENDINGS, GRAY, Rejected, Transparent, look_at, profile, read_picture

rng = np.random.default_rng(0)
PIXELS = np.uint8([[[225, 172, 150]]]).repeat(48, 0).repeat(48, 1)
PIXELS[:20, :30] = 60, 30, 200
PIXELS[30:, 40:] = 20, 90, 40
FACE = Image.fromarray(PIXELS)
P3 = profile(reading._P3, 563/256)
CLAY, MEANT = (200, 100, 80), (216, 93, 72)      # in Display P3 with a gamma of 2.2; the same color in sRGB

def saved(im, kind='PNG', **more):
    out = io.BytesIO()
    im.save(out, kind, **more)
    return out.getvalue()

def exif(turn):
    found = Image.Exif()
    found[0x0112] = turn
    return found

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

def png(a, color, depth, *extra):
    "Write what Pillow doesn't; extra: chunks before the pixels"
    kind = '>u2' if depth == 16 else 'u1'
    rows = b''.join(b'\0' + row.astype(kind).tobytes() for row in np.asarray(a))
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*o) for o in (
        (b'IHDR', struct.pack('>IIBBBBB', len(a[0]), len(a), depth, color, 0, 0, 0)), *extra,
        (b'IDAT', zlib.compress(rows)), (b'IEND', b'')))

def with_chunk(data, kind, content): return data[:33] + chunk(kind, content) + data[33:]

def ways(tmp_path, data, name='x.png'):
    "Read as training and as `prepare` do: [H,W,3] or the error"
    (tmp_path/name).write_bytes(data)
    found = []
    for read in (lambda: ImageFolderDataset(tmp_path)[0][0].permute(1, 2, 0).numpy(),
                 lambda: read_photo(tmp_path/name).pixels):
        try: found.append(np.broadcast_to(read(), (*read().shape[:2], 3)))
        except (Rejected, ValueError) as e: found.append(e)
    return found

# ---- orientation

BACK = [None, None, 'FLIP_LEFT_RIGHT', 'ROTATE_180', 'FLIP_TOP_BOTTOM', 'TRANSPOSE', 'ROTATE_90', 'TRANSVERSE',
        'ROTATE_270']

@pytest.mark.parametrize('kind, more', [('JPEG', dict(quality=100, subsampling=0)), ('PNG', {}), ('TIFF', {}),
                                        ('WEBP', dict(lossless=True))])
def test_every_orientation_is_turned_in_both_ways(tmp_path, kind, more):
    for turn in range(2, 9):
        data = saved(FACE.transpose(Image.Transpose[BACK[turn]]), kind, exif=exif(turn), **more)
        for found in ways(tmp_path, data): assert np.abs(found.astype(int) - PIXELS).max() <= 12*(kind == 'JPEG')
        assert f'turned by EXIF orientation {turn}' in read_photo(tmp_path/'x.png').notes
        assert ImageFolderDataset(tmp_path).notes == {f'turned by EXIF orientation {turn}': 1}

def test_the_shape_is_that_of_the_upright_picture():
    for kind in ('JPEG', 'PNG', 'TIFF'):
        data = saved(FACE.crop((0, 0, 48, 40)), kind, exif=exif(6))
        assert look_at(data)[0][:2] == read_picture(data).pixels.shape[:2] == (48, 40)
    words = PngInfo()
    words.add_itxt('XML:com.adobe.xmp', '<rdf:Description tiff:Orientation="6"/>')
    data = saved(FACE.crop((0, 0, 48, 40)), pnginfo=words)
    assert look_at(data) == ((48, 40, 3), ('turned by EXIF orientation 6',))
    assert read_picture(data).pixels.shape == (48, 40, 3)

# ---- color profiles

def gray_profile(gamma):
    "Make a profile of gray that rises with this exponent"
    fixed = lambda *v: struct.pack(f'>{len(v)}i', *(round(65536*o) for o in v))
    white, curve = b'XYZ \0\0\0\0' + fixed(.9642, 1, .8249), b'para\0\0\0\0\0\0\0\0' + fixed(gamma)
    head = struct.pack('>8xI4s4s4s12x4s28x', 0x04200000, b'mntr', b'GRAY', b'XYZ ', b'acsp') + fixed(.9642, 1, .8249)
    body = (head.ljust(128, b'\0') + struct.pack('>I4sII4sII', 2, b'wtpt', 156, len(white), b'kTRC', 176, len(curve))
            + white + curve)
    return struct.pack('>I', len(body)) + body[4:]

def ink_profile():
    "Make a profile of CMYK in which everything without black is the gray of L* = 50"
    fixed, same = lambda *v: struct.pack(f'>{len(v)}i', *(round(65536*o) for o in v)), bytes(range(256))
    table = (b'mft1\0\0\0\0\4\3\2\0' + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + same*4
             + bytes((128, 128, 128, 0, 128, 128))*8 + same*3)
    head = struct.pack('>8xI4s4s4s12x4s28x', 0x02100000, b'prtr', b'CMYK', b'Lab ', b'acsp') + fixed(.9642, 1, .8249)
    body = head.ljust(128, b'\0') + struct.pack('>I4sII', 1, b'A2B0', 144, len(table)) + table
    return struct.pack('>I', len(body)) + body[4:]

SQUARE = np.uint8([[CLAY]]).repeat(40, 0).repeat(40, 1)
CLAYS = Image.fromarray(SQUARE)
PALETTE = CLAYS.quantize(2)
DEEP = SQUARE.astype(int)*257
ICC = b'iCCP', b'x\0\0' + zlib.compress(P3)
COLORED = {
    'RGB': saved(CLAYS, icc_profile=P3), 'RGBA': saved(CLAYS.convert('RGBA'), icc_profile=P3),
    'RGB, a transparent color': png(SQUARE, 2, 8, ICC, (b'tRNS', struct.pack('>3H', 1, 2, 3))),
    'P': saved(PALETTE, icc_profile=P3),
    'P, opaque tRNS': saved(PALETTE, icc_profile=P3, transparency=bytes((255, 255))),
    'RGB of 16 bits': png(DEEP, 2, 16, ICC),
    'RGBA of 16 bits': png(np.dstack([DEEP, np.full((40, 40), 65535)]), 6, 16, ICC),
    'WEBP': saved(CLAYS, 'WEBP', lossless=True, icc_profile=P3),
    'WEBP, alpha': saved(CLAYS.convert('RGBA'), 'WEBP', lossless=True, exact=True, icc_profile=P3),
    'TIFF': saved(CLAYS, 'TIFF', icc_profile=P3), 'TIFF, alpha': saved(CLAYS.convert('RGBA'), 'TIFF', icc_profile=P3),
    'TIFF, P': saved(PALETTE, 'TIFF', icc_profile=P3),
    'JPEG': saved(CLAYS, 'JPEG', quality=100, subsampling=0, icc_profile=P3),
    'cICP': with_chunk(saved(CLAYS), b'cICP', bytes((12, 4, 0, 1))),
    'cICP before ICC': with_chunk(saved(CLAYS, icc_profile=gray_profile(1)), b'cICP', bytes((12, 4, 0, 1))),
    'cHRM and gAMA': with_chunk(with_chunk(saved(CLAYS), b'gAMA', struct.pack('>I', 50000)), b'cHRM', struct.pack(
        '>8I', 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))}

@pytest.mark.parametrize('name', COLORED)
def test_display_p3_is_converted_in_every_mode_and_format(tmp_path, name):
    "To the same numbers for training and for photographs"
    meant = np.array({'cHRM and gAMA': (220, 103, 82)}.get(name, MEANT))   # a gamma of 2.0, as 2.2 counts as sRGB's
    for found in ways(tmp_path, COLORED[name]):
        assert np.abs(found[0, 0].astype(int) - meant).max() <= 1 + (name == 'JPEG'), found[0, 0]
        if name in ('RGB', 'RGBA', 'RGB, a transparent color', 'P', 'WEBP', 'TIFF'): assert tuple(found[0, 0]) == MEANT
    assert 'colors converted to sRGB' in read_picture(COLORED[name]).notes

def test_color_is_converted_before_a_picture_is_laid_on_another():
    half = CLAYS.convert('RGBA')
    half.putalpha(Image.fromarray(np.uint8([[255, 0]]).repeat(40, 0).repeat(20, 1)))
    for data in (saved(half, icc_profile=P3), saved(half, 'TIFF', icc_profile=P3)):
        found = read_picture(data, alpha=(10, 20, 30)).pixels
        assert tuple(found[0, 0]) == MEANT and tuple(found[0, -1]) == (10, 20, 30)
    assert reading._colors(reading._small(half.convert('PA')), P3, GRAY).getpixel((0, 0)) == MEANT

@pytest.mark.parametrize('mode', ['L', 'LA', 'I;16', '1'])
def test_gray_is_converted_by_a_profile_of_gray_and_stays_gray(tmp_path, mode):
    gray = Image.new('L', (40, 40), 128)
    im = (Image.fromarray(np.full((40, 40), 128*257, np.uint16)) if mode == 'I;16' else
          Image.new('1', (40, 40), 1) if mode == '1' else gray.convert(mode))
    data = saved(im, icc_profile=gray_profile(1.))
    found = read_picture(data).pixels
    assert found.shape == (40, 40) and abs(int(found[0, 0]) - (255 if mode == '1' else 188)) <= 1   # half of the light
    (tmp_path/'x.png').write_bytes(data)
    assert ImageFolderDataset(tmp_path).num_channels == 1

def test_a_gray_picture_may_carry_a_profile_of_rgb():
    found = read_picture(saved(Image.new('L', (40, 40), 128), icc_profile=profile(gamma=1.))).pixels
    assert found.shape == (40, 40) and abs(int(found[0, 0]) - 188) <= 1

def test_inks_are_converted_by_their_profile(tmp_path):
    for found in ways(tmp_path, saved(CLAYS.convert('CMYK'), 'JPEG', icc_profile=ink_profile())):
        assert np.abs(found.astype(int) - 119).max() <= 3
    for found in ways(tmp_path, saved(CLAYS.convert('CMYK'), 'TIFF')):
        assert np.array_equal(found, np.asarray(CLAYS.convert('CMYK').convert('RGB')))

def test_adobe_rgb_that_only_exif_names():
    said = Image.Exif()
    said[0x8769] = {0xA001: 65535, 0xA005: {1: 'R03'}}
    found = read_picture(saved(CLAYS, 'JPEG', quality=100, subsampling=0, exif=said)).pixels[0, 0].astype(int)
    assert found == pytest.approx((228, 99, 75), abs=3)   # its green is purer, so its red is less orange

@pytest.mark.skipif('.avif' not in Image.registered_extensions(), reason='this Pillow has no AVIF')
def test_code_points_of_an_avif():
    data = saved(CLAYS, 'AVIF', quality=100)
    at = data.find(b'colrnclx')
    if at < 0: pytest.skip('written without code points')
    p3 = data[:at + 8] + struct.pack('>HH', 12, 4) + data[at + 12:]
    assert read_picture(p3).pixels[0, 0].astype(int) == pytest.approx(MEANT, abs=3)
    with pytest.raises(Rejected, match='HDR'): look_at(data[:at + 8] + struct.pack('>HH', 9, 16) + data[at + 12:])

@pytest.mark.parametrize('code, said', [((9, 16), 'HDR .PQ.; save it as sRGB'), ((9, 18), 'HDR .HLG.'),
                                        ((8, 13), 'the code points 8 and 13')])
def test_colors_that_no_eight_bits_hold(tmp_path, code, said):
    data = with_chunk(saved(CLAYS), b'cICP', bytes((*code, 0, 1)))
    for e in ways(tmp_path, data):
        with pytest.raises((Rejected, ValueError), match=said): raise e

def test_what_was_right_keeps_its_bytes():
    "Plain pictures of every format, and those whose profile or numbers say sRGB, are what Pillow decodes"
    noise = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    srgb = with_chunk(with_chunk(saved(noise), b'gAMA', struct.pack('>I', 45455)), b'cHRM', struct.pack(
        '>8I', 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    linear = with_chunk(with_chunk(saved(noise), b'gAMA', struct.pack('>I', 100000)), b'sRGB', b'\0')
    files = [saved(noise, kind) for kind in ('PNG', 'JPEG', 'BMP', 'WEBP', 'TIFF', 'PPM')]
    files += [saved(noise.convert(mode)) for mode in ('L', '1', 'P')] + [saved(noise.quantize(16), bits=4)]
    files += [saved(noise, kind, icc_profile=o) for kind in ('PNG', 'JPEG') for o in (profile(), b'no profile')]
    for data in (*files, srgb, linear, with_chunk(saved(noise), b'cICP', bytes((1, 13, 0, 1)))):
        with Image.open(io.BytesIO(data)) as im: meant = np.asarray(im.convert('L' if im.mode in '1L' else 'RGB'))
        found = read_picture(data)
        assert np.array_equal(found.pixels, meant) and found.notes == () and look_at(data)[0][:2] == meant.shape[:2]

# ---- transparency

def holes():
    "Make pictures in which something shows through, and the same pictures without: name → (with, without)"
    clear, solid = Image.new('L', (40, 40), 255), Image.new('L', (40, 40), 255)
    clear.paste(0, (0, 0, 20, 20))
    with_hole, without, gray = CLAYS.convert('RGBA'), CLAYS.convert('RGBA'), Image.new('L', (40, 40), 85)
    with_hole.putalpha(clear)
    gray.paste(170, (0, 0, 20, 20))
    two = np.uint8([[1, 2]]).repeat(20, 1).repeat(40, 0)
    mixed = PALETTE.copy()
    mixed.paste(1 - PALETTE.getpixel((0, 0)), (0, 0, 20, 20))
    packed = np.packbits(np.unpackbits(two[..., None], axis=2)[..., 6:].reshape(40, -1), axis=1)
    quarter = png(packed, 0, 8, (b'tRNS', struct.pack('>H', 1)))
    quarter = quarter[:8] + chunk(b'IHDR', struct.pack('>IIBBBBB', 40, 40, 2, 0, 0, 0, 0)) + quarter[33:]
    return {'RGBA': (saved(with_hole), saved(without)), 'LA': (saved(Image.merge('LA', [gray, clear])),
                                                              saved(Image.merge('LA', [gray, solid]))),
            'palette PNG': (saved(mixed, transparency=bytes((0, 0))), saved(mixed, transparency=bytes((255, 255)))),
            'a color of RGB': (saved(CLAYS, transparency=CLAY), saved(CLAYS, transparency=(1, 2, 3))),
            'a gray': (saved(gray, transparency=170), saved(gray, transparency=3)), 'a gray of 2 bits': (quarter, None),
            'GIF': (saved(mixed, 'GIF', transparency=mixed.getpixel((0, 0))), saved(mixed, 'GIF')),
            'WEBP': (saved(with_hole, 'WEBP', lossless=True), saved(without, 'WEBP', lossless=True)),
            'TIFF': (saved(with_hole, 'TIFF'), saved(without, 'TIFF'))}

@pytest.mark.parametrize('name', holes())
def test_one_rule_for_transparency(tmp_path, name):
    "Training refuses what shows through, and names the command; prepare lays it on gray; nothing else changes"
    folder = tmp_path/"a clinic's"
    folder.mkdir()
    data, opaque = holes()[name]
    refused, laid = ways(folder, data)
    assert isinstance(refused, ValueError) and 'x.png is transparent' in str(refused)
    command = shlex.split(str(refused).partition('white: ')[2])
    assert command[:3] == ['cleftgan', 'dataset', str(folder)] and command[-2:] == ['--alpha', 'white']
    assert (laid == 119).all(2).any()
    with pytest.raises(Transparent): read_picture(data)
    if opaque is None: return
    with Image.open(io.BytesIO(opaque)) as im: plain = np.asarray(im.convert('RGB'))
    for found in ways(folder, opaque): assert np.array_equal(found, plain)

# ---- range

def test_twelve_bits_in_sixteen(tmp_path):
    "Refused with the reason, unless the file says so; then in the right range"
    ramp = np.linspace(0, 4095, 48)[None].repeat(48, 0).round().astype(np.uint16)
    meant = np.rint(ramp*(255/4095)).astype(np.uint8)
    for data in (saved(Image.fromarray(ramp)), png(ramp[..., None].repeat(3, 2), 2, 16),
                 saved(Image.fromarray(ramp), 'TIFF'), saved(Image.fromarray(ramp.astype(np.int32)), 'TIFF')):
        for e in ways(tmp_path, data): assert 'nearly black' in str(e) and '12-bit numbers' in str(e)
    bits = np.unpackbits(ramp.astype('>u2').view(np.uint8).reshape(48, 48, 2), axis=2)[..., 4:]
    packed = np.packbits(bits.reshape(48, -1), 1)
    tags = [(256, 48), (257, 48), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 48), (279, packed.size)]
    tiff = (struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + b''.join(struct.pack('<HHII', t, 4, 1, v) for t, v in tags)
            + bytes(4)).ljust(200, b'\0') + packed.tobytes()
    for data in (png(ramp, 0, 16, (b'sBIT', b'\x0c')), tiff):
        for found in ways(tmp_path, data): assert np.array_equal(found[..., 0], meant)

def test_sixteen_bits_that_fill_their_range(tmp_path):
    ramp = np.linspace(0, 255, 48)[None].repeat(48, 0).round().astype(np.uint8)
    for data in (saved(Image.fromarray(ramp*np.uint16(257))), png(ramp.astype(int)*257, 0, 16, (b'sBIT', b'\x0c')),
                 b'P5 48 48 65535\n' + (ramp.astype(int)*257).astype('>u2').tobytes(),
                 png((ramp.astype(int)*257)[..., None].repeat(3, 2), 2, 16)):
        for found in ways(tmp_path, data): assert np.array_equal(found[..., 0], ramp)
    assert not read_picture(saved(Image.fromarray(np.zeros((48, 48), np.uint16)))).pixels.any()   # black is black

# ---- other formats, by name

def boxes(*brands): return struct.pack('>I4s', 8 + 4*len(brands), b'ftyp') + b''.join(brands) + bytes(40)

def tiff(tags, more=b''):
    "Write a TIFF of 160 x 120 with these tags besides"
    tags = {256: 160, 257: 120, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 120, 279: 19200} | tags
    return (struct.pack('<2sHIH', b'II', 42, 8, len(tags)) + b''.join(struct.pack('<HHII', t, 4, 1, v)
                                                                      for t, v in sorted(tags.items()))
            + bytes(4)).ljust(300, b'\0') + more.ljust(100, b'\0') + bytes(19200)

LARGER = struct.pack('<H', 2) + struct.pack('<HHII', 256, 4, 1, 6000) + struct.pack('<HHII', 257, 4, 1, 4000) + bytes(4)
SMALLER = struct.pack('<H', 1) + struct.pack('<HHII', 256, 4, 1, 60) + bytes(4)

NAMED = [
    *[(boxes(b'mif1', bytes(4), o), 'HEIC') for o in (b'heic', b'heix', b'hevc', b'hevx', b'heim')],
    (boxes(b'hevc', bytes(4), b'msf1'), 'HEIC'), (boxes(b'msf1', bytes(4)), 'HEIF'), (boxes(b'mif1', bytes(4)), 'HEIF'),
    (boxes(b'crx ', bytes(4)), 'raw camera'), (boxes(b'qt  ', bytes(4)), 'a film'),
    (boxes(b'isom', bytes(4), b'mp41'), 'a film'),
    (tiff({50706: 1}), 'raw camera'), (tiff({254: 1}), 'raw camera'), (tiff({330: 300}, LARGER), 'raw camera'),
    (tiff({262: 32803}), 'raw camera'), (b'II*\0\x10\0\0\0CR\2\0' + bytes(40), 'raw camera'),
    (b'FUJIFILMCCD-RAW' + bytes(40), 'raw camera'), (b'\xff\x0a' + bytes(40), 'JPEG XL')]

@pytest.mark.parametrize('data, said', NAMED, ids=range(len(NAMED)))
def test_other_formats_are_named_and_no_preview_is_taken(tmp_path, data, said):
    for e in ways(tmp_path, data):
        assert isinstance(e, Exception) and 'another format: ' in str(e) and said in str(e), e
        assert 'export it as JPEG or PNG' in str(e)

def test_a_tiff_with_a_smaller_copy_inside_is_a_picture():
    assert read_picture(tiff({330: 300}, SMALLER)).pixels.shape == (120, 160)

@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'TIFF', 'PNG'])
def test_of_several_frames_the_first_is_taken_and_it_is_said(tmp_path, kind):
    first, second = FACE.quantize(8).convert('RGB'), FACE.rotate(90).quantize(8).convert('RGB')
    more = dict(lossless=True) if kind == 'WEBP' else {}
    for found in ways(tmp_path, saved(first, kind, save_all=True, append_images=[second], **more)):
        assert np.abs(found.astype(int) - np.asarray(first)).max() <= 8*(kind == 'GIF')
    assert '2 frames, the first taken' in read_photo(tmp_path/'x.png').notes
    assert 'special: 1 of 1: 2 frames, the first taken' in ImageFolderDataset(tmp_path).summary()

# ---- folders

def test_nothing_in_a_folder_disappears_silently(tmp_path):
    folder, other = tmp_path/'in', tmp_path/'other'
    folder.mkdir()
    other.mkdir()
    for name in ('a.jfif', 'b.gif', 'c.bmp', 'd.tif', 'e.JPE', 'f.PNM'):
        kind = dict(gif='GIF', bmp='BMP', tif='TIFF', pnm='PPM').get(name[2:].lower(), 'JPEG')
        (folder/name).write_bytes(saved(FACE, kind))
    (other/'z.png').write_bytes(saved(FACE))
    (folder/'round').symlink_to('.')
    (folder/'linked').symlink_to(other)
    (folder/'file.png').symlink_to(other/'z.png')
    for name in ('phone.HEIC', 'x.dng', 'no ending', 'read\x1b[2Kme.txt', '.DS_Store', 'dataset.json'):
        (folder/name).write_text('{}')
    ds = ImageFolderDataset(folder)
    assert ds.names == ['a.jfif', 'b.gif', 'c.bmp', 'd.tif', 'e.JPE', 'f.PNM', 'file.png']
    assert len(ds.batch(range(7))[0]) == 7
    assert set(ds.left_out()) == {'round', 'linked', 'phone.HEIC', 'x.dng', 'no ending', 'read\x1b[2Kme.txt'}
    said = ds.summary()
    assert '7 pictures of 48x48 RGB' in said and 'labels: none' in said and '\x1b' not in said
    for o in ('linked folders (not followed): 2 (linked, round)', 'HEIC of a phone (export as JPEG): 1 (phone.HEIC)',
              'raw of a camera (export as JPEG): 1 (x.dng)', 'no ending of a picture: 2 (no ending'): assert o in said
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty/there').symlink_to(other)
    with pytest.raises(ValueError, match='has no images; accepted: .*; left out, linked folders .*: 1 .there'):
        ImageFolderDataset(tmp_path/'empty')

def test_train_says_what_it_reads_before_it_starts(tmp_path, monkeypatch, capsys):
    for name in ('a/1.png', 'b/2.png'):
        (tmp_path/name).parent.mkdir()
        (tmp_path/name).write_bytes(saved(FACE))
    labels = [['a/1.png', [0, 1]], ['b/2.png', [1, 0]]]
    (tmp_path/'dataset.json').write_text(json.dumps(dict(labels=labels, label_names=['age', 'sex'])))
    (tmp_path/'c.heic').touch()
    import cleftgan_nb.training
    def stopped(*_, **__): raise cleftgan_nb.training.Stopped('no more')
    monkeypatch.setattr(cleftgan_nb.training, 'train', stopped)
    for more, said in ((), 'in dataset.json, not used'), (('--set', 'labels=true'), '2 numbers: age, sex'):
        assert cli.main(['train', str(tmp_path), '--out', str(tmp_path.parent/'run'), *more]) == 2
        out = capsys.readouterr().out
        assert f'{tmp_path.name}: 2 pictures of 48x48 RGB, mirrored to 4' in out and said in out and 'c.heic' in out

# ---- limits

def test_a_large_claim_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    "Also where only decoding tells whether something shows through"
    def decode(*_): raise AssertionError('decoded')
    monkeypatch.setattr('PIL.ImageFile.ImageFile.load', decode)
    data = bytearray(holes()['WEBP'][0])
    at = data.index(b'VP8L') + 9
    head = int.from_bytes(data[at:at + 4], 'little')
    data[at:at + 4] = struct.pack('<I', head & ~0xfffffff | 7999 | 7999 << 14)
    for e in ways(tmp_path, bytes(data)): assert 'too large to decode: 977 MiB' in str(e), e

@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='only Linux counts what a process takes')
def test_threads_leave_no_limit_of_memory_behind():
    data, before = saved(Image.new('RGB', (600, 600))), resource.getrlimit(resource.RLIMIT_DATA)
    with ThreadPoolExecutor(4) as pool: list(pool.map(read_picture, [data]*24))
    assert resource.getrlimit(resource.RLIMIT_DATA) == before

def test_endings_are_those_of_the_formats():
    Image.init()
    assert {Image.EXTENSION.get(o) for o in ENDINGS} - {None} <= set(reading.FORMATS)
