"""Make executed notebooks smaller: no picture is stored twice (IPython adds a JPEG to each PNG of a PIL image), PNGs
are packed as well as can be, large ones become JPEGs, since the figure lies beside the notebook, and no widgets and
progress bars are kept, which nothing could show without their kernel"""
import base64
import io
import json
import os
import re
import sys
from pathlib import Path

from PIL import Image

from cleftgan_nb.files import as_before, part


def packed(png):
    "The same pixels in fewer bytes, base64 to base64; a plot that is opaque needs no alpha."
    image, file = Image.open(io.BytesIO(base64.b64decode(png))), io.BytesIO()
    if image.mode == 'RGBA' and image.getextrema()[3] == (255, 255): image = image.convert('RGB')
    image.save(file, 'PNG', optimize=True)
    return min(base64.b64encode(file.getvalue()).decode(), png, key=len)


LARGE = 2**18   # characters of a PNG in base64: 192 KiB


def kept(png):
    "A picture as it is kept: its type, and base64."
    png = packed(png)
    if len(png) <= LARGE: return {'image/png': png}
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB').save(file, 'JPEG', quality=90)
    return {'image/jpeg': base64.b64encode(file.getvalue()).decode()}


def bar(output):
    "Is it what is left of a progress bar, as it was at its start?"
    data = output.get('data', {})
    return (output['output_type'] == 'display_data' and data.keys() == {'text/plain'}
            and re.match(r'.*\d+%\|', ''.join(data['text/plain'])) is not None)


def slim(path):
    path = Path(path)
    notebook = json.loads(path.read_text(encoding='utf-8'))
    notebook['metadata'].pop('widgets', None)
    for data in (o['data'] for c in notebook['cells'] for o in c.get('outputs', []) if 'data' in o):
        data.pop('application/vnd.jupyter.widget-view+json', None)   # a picture or words stand beside it
        if 'image/png' not in data: continue
        data.pop('image/jpeg', None)
        data.update(kept(''.join(data.pop('image/png'))))
    for c in notebook['cells']:
        if 'outputs' in c: c['outputs'] = [o for o in c['outputs'] if not bar(o)]
    with part(path) as new:
        new.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        as_before(path, new)
        os.replace(new, path)


if __name__ == '__main__':
    for path in sys.argv[1:]: slim(path)
