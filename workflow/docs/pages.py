"""Notebooks and Markdown files as pages: directives obeyed, links followed, pictures brought along. A link that
leads nowhere is an error."""
import os
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

import nbformat

from cleftgan_nb.foreign import code, markdown as plain
from cleftgan_nb.study.articles import blocks, numbers, parameters

root = Path(__file__).resolve().parent.parent.parent
settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']

CODE = re.compile(r'(^ {0,3}(```+|~~~+).*?^ {0,3}\2[ ]*$|`[^`\n]+`|\$\$.+?\$\$)', re.M | re.S)
DIRECTIVE = re.compile(r'^[ ]*#[ ]*\|.*\n?', re.M)
PROGRESS = re.compile(r'[^\r\n]*\d%\|[^\r\n]*(?:\r\n|\r|\n|$)')   # bars
PICTURES = {'.png', '.jpg', '.jpeg', '.gif', '.webp', '.svg'}


def shows(output):
    "Whether an output is a figure, a table or a sentence, not what a program says."
    return any(k.startswith('image/') or k in ('text/html', 'text/markdown') for k in output.get('data', {}))


def has(cell, directive): return bool(re.search(rf'^[ ]*#[ ]*\|[ ]*{directive}[ ]*$', cell.source, re.M))


def executed(notebook):
    """The copy that the committed run of the study or the survey has left (of the first network, where there are
    several), or the notebook itself. Only phantoms are in it."""
    copies = []
    if notebook.parent.name == 'study':
        copies = [root/'outputs/cpu'/f'{notebook.stem}{network}.ipynb' for network in ('', '-stylegan3-t')]
    if notebook.parent.name == 'survey':
        copies = [root/'outputs/survey'/f'survey-{notebook.stem.partition("_")[2]}.ipynb']
    return next((o for o in copies if o.is_file()), notebook)


class Pages:
    "Pages by their names on the site, such as 'ops/07_fused'"

    def __init__(self, to):
        self.to, self.titles, self.broken = Path(to), {}, []
        self.sources = sorted(o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts)
        # file of the repository → page
        self.places = {o: o.relative_to(root/'nbs') for o in self.sources}
        self.places |= {o: Path('cards')/('index.md' if o.name == 'README.md' else o.name)
                        for o in (root/'data_cards').glob('*.md')}
        self.places |= {root/'nbs'/o: Path(o)/'index.md'
                        for o in {p.parent.name for p in self.sources if p.parent != root/'nbs'}}
        self.places |= {root/'data_cards': Path('cards/index.md'),
                        root/'nbs/guide/02_commands.ipynb': Path('commands/index.md'),
                        root/'CHANGELOG.md': Path('changelog.md')}
        self.exports = {}                                                                    # page → module

    def write(self, name, text):
        "A page of Markdown."
        path = self.to/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')
        self.remember(name, text)

    def remember(self, name, text):
        title, about = re.search(r'^# (.+?)$\s*(?:> ?((?:.+\n?)+?)(?:\n\s*\n|\n*\Z))?', text, re.M).groups()
        self.titles[str(Path(name).with_suffix(''))] = (title.strip(),
                                                        ' '.join((about or '').replace('\n>', ' ').split()))

    def link(self, target, source, page):
        "Where a link of a file of the repository leads, from a page of the site."
        path, hash, anchor = target.partition('#')
        if re.match(r'[a-z]+:', target) or not path: return target
        file = Path(os.path.normpath(source.parent/path))
        if file.suffix in PICTURES: return self.picture(file, page)
        if file in self.places: return os.path.relpath(self.places[file], Path(page).parent) + hash + anchor
        if file.exists() and file.is_relative_to(root):
            kind = 'tree' if file.is_dir() else 'blob'
            return (f'{settings["git_url"]}/{kind}/{settings["branch"]}/{file.relative_to(root).as_posix()}' + hash
                    + anchor)
        self.broken.append(f'{source.relative_to(root)}: {target}')
        return target

    def picture(self, file, page):
        "A picture, brought beside the page."
        if not file.is_file():
            self.broken.append(f'{page}: no picture {file}')
            return str(file)
        to = self.to/Path(page).parent/file.parent.name/file.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, to)
        return f'{file.parent.name}/{file.name}'

    def links(self, text, source, page):
        "Markdown with its links followed; code and formulas stay as they are."
        parts = CODE.split(text)
        for i in range(0, len(parts), 3):
            parts[i] = re.sub(r'(\]\()([^)\s]+)', lambda m: m[1] + self.link(m[2], source, page), parts[i])
        return ''.join(o for i, o in enumerate(parts) if i % 3 != 2)

    def cell(self, c, source, page):
        "A cell as the site shows it."
        if c.cell_type == 'markdown':
            c.source = self.links(c.source, source, page)
            return c
        c.metadata = nbformat.NotebookNode({'tags': ['remove-input']} if has(c, r'(echo:\s*false|hide_input)') else {})
        if alt := re.search(r'^#\|\s*fig-alt:\s*(.+)$', c.source, re.M):
            c.metadata['mystnb'] = {'image': {'alt': alt[1].strip()}}
        c.source, c.execution_count = DIRECTIVE.sub('', c.source).strip('\n'), None
        c.outputs = [o for o in map(self.output, c.outputs) if o]
        return c

    def article(self, cells, source, page):
        "An article's cells: what they show, then their code behind a click, and the parameters once, as a table."
        v4, made = nbformat.v4, []
        for kind, some in blocks(cells):
            if kind == 'markdown': made.append(self.cell(some[0], source, page))
            elif kind == 'parameters':
                rows = [f'| {code(name)} | {code(value)} | {plain(meaning)} |' for name, value, meaning in parameters(cells)]
                made.append(v4.new_markdown_cell('\n'.join(['| parameter | value | what it is |', '|---|---|---|', *rows])))
            else:
                prompt = numbers(some)
                some = [self.cell(c, source, page) for c in some]
                printed = [o for c in some for o in c.outputs if not shows(o)]
                for c in some:
                    if shown := [o for o in c.outputs if shows(o)]:
                        kept = {k: v for k, v in c.metadata.items() if k == 'mystnb'}
                        made.append(v4.new_code_cell('…', outputs=shown, metadata=dict(tags=['remove-input'], **kept)))
                if text := '\n\n'.join(c.source for c in some if c.source):
                    about = dict(tags=['hide-cell'], mystnb=dict(code_prompt_show=prompt, code_prompt_hide=prompt))
                    made.append(v4.new_code_cell(text, outputs=printed, metadata=about))
        return made

    def output(self, o):
        "An output that needs no kernel and no other host."
        if o.output_type == 'stream': o.text = PROGRESS.sub('', o.text)
        if o.output_type not in ('display_data', 'execute_result'): return o if o.get('text', o) else None
        o.data = {k: v for k, v in o.data.items() if 'widget' not in k and 'javascript' not in k}
        if set(o.data) <= {'text/plain'} and re.match(r'(HBox|VBox|Output)\(|.*\d%\|', o.data.get('text/plain', '')):
            return None
        return o

    def notebook(self, source, page):
        "The notebook of a file, ready for the site; the module that it exports."
        nb = nbformat.read(executed(source), 4)
        module = next((m[1] for c in nb.cells if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c.source, re.M))), None)
        cells = [c for c in nb.cells if not has(c, 'hide') and not has(c, r'default_exp\s+\S+')]
        folded = source.parent.name in ('study', 'survey') and not module and parameters(cells)
        nb.cells = [o for o in (self.article(cells, source, page) if folded else [self.cell(c, source, page) for c in cells])
                    if o.cell_type != 'code' or o.source or o.outputs]
        nb.metadata = nbformat.NotebookNode(kernelspec=dict(name='python3', display_name='Python 3'),
                                            language_info=dict(name='python', pygments_lexer='ipython3'))
        return nb, module

    def notebooks(self):
        "Every notebook but the home page and the commands."
        for source in self.sources:
            page = self.places[source]
            if page.suffix != '.ipynb' or page.name == 'index.ipynb': continue
            nb, module = self.notebook(source, page)
            self.remember(page, nb.cells[0].source)
            if module: self.exports[module] = str(page.with_suffix(''))
            nb.cells.insert(1, nbformat.v4.new_markdown_cell(self.whence(source, module, page)))
            self.save(nb, page)

    def whence(self, source, module, page):
        "A line that says where a page is from."
        git = f'{settings["git_url"]}/blob/{settings["branch"]}/{source.relative_to(root).as_posix()}'
        api = (f' · exports [`cleftgan_nb.{module}`]({os.path.relpath(f"api/cleftgan_nb.{module}.md", page.parent)})'
               if module else '')
        return f':::{{container}} whence\n[{source.relative_to(root).as_posix()}]({git}){api}\n:::'

    def save(self, nb, page):
        (self.to/page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, self.to/page)

    def page(self, source, page):
        "A Markdown file."
        self.write(page, self.links(source.read_text(encoding='utf-8'), source, page))

    def cards(self):
        for source in sorted((root/'data_cards').glob('*.md')): self.page(source, str(self.places[source]))
        names = [o.removeprefix('cards/') for o in self.titles if o.startswith('cards/') and o != 'cards/index']
        with open(self.to/'cards/index.md', 'a', encoding='utf-8') as f:
            f.write('\n```{toctree}\n:hidden:\n' + '\n'.join('Card for a clinic <clinic-template>'
                                                             if o == 'clinic-template' else o for o in names)
                    + '\n```\n')

    def home(self, ways, contents):
        "The first page, from the notebook of the README. Called last: it knows of all broken links."
        nb, _ = self.notebook(root/'nbs/index.ipynb', Path('index.ipynb'))
        nb.cells.insert(1, nbformat.v4.new_markdown_cell(f':::{{container}} ways\n{ways}\n:::'))
        nb.cells.append(nbformat.v4.new_markdown_cell(contents))
        self.save(nb, Path('index.ipynb'))
        if self.broken: raise SystemExit('links that lead nowhere:\n  ' + '\n  '.join(self.broken))
