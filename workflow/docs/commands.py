"""A page for each command: what --help says, and the section of nbs/guide/02_commands.ipynb that uses it."""
import os
import re
from pathlib import Path

import nbformat

from pages import root

GUIDE = root/'nbs/guide/02_commands.ipynb'


def parsers():
    "The parsers of the command line: name → argparse's."
    from cleftgan_nb.cli import _parser
    [commands] = [o for o in _parser()._actions if o.choices and hasattr(o, '_name_parser_map')]
    return {o.dest: (commands.choices[o.dest], o.help) for o in commands._choices_actions}


def sections(cells):
    "Cells of the guide by the command in their heading, '## cleftgan phantom'; those before the first under ''."
    found, name = {'': []}, ''
    for c in cells:
        if m := re.match(r'## `?cleftgan ([\w-]+)`?\s*', c.source):
            name = m[1]
            c.source = c.source[m.end():]
        found.setdefault(name, []).append(c)
    return found


def helped(parser):
    os.environ['COLUMNS'] = '92'
    return f'```text\n$ {parser.prog} --help\n{parser.format_help()}```'


def write(pages):
    "A page for each command and a list of them; the name of the list."
    nb, _ = pages.notebook(GUIDE, Path('commands/index.ipynb'))
    found, markdown, known = sections(nb.cells), nbformat.v4.new_markdown_cell, parsers()
    for name, (parser, about) in known.items():
        cells = [markdown(f'# `cleftgan {name}`\n> {about[0].upper()}{about[1:]}'), markdown('## For example'),
                 *found.get(name, []), markdown(f'## Help\n\n{helped(parser)}')]
        if name not in found: del cells[1]
        page = nbformat.v4.new_notebook(cells=[o for o in cells if o.source or o.get('outputs')], metadata=nb.metadata)
        pages.remember(f'commands/{name}.ipynb', cells[0].source)
        pages.save(page, Path(f'commands/{name}.ipynb'))
    text = ('\n\n'.join(c.source for c in found['']) + '\n\n'
            + ''.join(f'- [`cleftgan {k}`]({k}.ipynb): {v[1]}\n' for k, v in known.items()))
    pages.write('commands/index.md', text + '\n```{toctree}\n:hidden:\n' + '\n'.join(known) + '\n```\n')
    return 'commands/index'
