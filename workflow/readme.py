"""README.md from nbs/index.ipynb, as stored: nothing is run. Pictures in its outputs go to nbs/images."""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

root = Path(__file__).resolve().parent.parent


class Directives(Preprocessor):
    """Obey and drop the notebook's `#|` lines: `#| hide` drops the cell, `#| echo: false` its code, `#| fig-alt:`
    describes its picture; the tag not-in-readme drops it."""

    def preprocess(self, nb, resources):
        nb.cells = [self.cell(c) for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)
                    and 'not-in-readme' not in c.metadata.get('tags', [])]
        nb.metadata['language_info'] = dict(name='python')   # nbdev_clean drops it; it colors the code
        return nb, resources

    def cell(self, c):
        if re.search(r'^#\|\s*echo:\s*false\s*$', c.source, re.M): c.metadata['transient'] = {'remove_source': True}
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        return c


def readme():
    "The README's text, and the pictures it shows: path → bytes."
    nb = nbformat.read(root/'nbs/index.ipynb', 4)
    resources = dict(unique_key='index', output_files_dir='images')
    text, resources = MarkdownExporter(preprocessors=[Directives]).from_notebook_node(nb, resources)
    for alt in re.findall(r'^#\|\s*fig-alt:\s*(.+)$', '\n'.join(c.source for c in nb.cells), re.M):
        text = text.replace('![png]', f'![{alt}]', 1)
    text = re.sub(r'(\]\()(?!https?:|#|\.\./)', r'\1nbs/', text).replace('](../', '](')   # links are relative to nbs/
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    text = ('<!-- made by `make readme` from nbs/index.ipynb: edit that -->\n\n'
            + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n')
    return text, {root/'nbs'/name: data for name, data in resources['outputs'].items() if name in text}


if __name__ == '__main__':
    text, pictures = readme()
    (root/'README.md').write_text(text, encoding='utf-8')
    for path, data in pictures.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
