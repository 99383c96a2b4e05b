"""The site: pages from notebooks, cards, the library and the command line, by Sphinx into _docs. Nothing is fetched."""
import argparse
import os
import shutil
import sys
from importlib.metadata import files
from pathlib import Path

from sphinx.cmd.build import main as sphinx

sys.path.insert(0, str(Path(__file__).parent))
import api  # noqa: E402
import commands  # noqa: E402
from pages import Pages, root  # noqa: E402

SECTIONS = {                                         # folder of nbs → heading, and a sentence for its first page
    'guide': ('Guides', 'How to do something with the project, from the first picture to your own photographs.'),
    'study': ('The study', 'Executable articles: who is in the cohorts, what is trained, and how good it is. `make '
                           'study` runs them all.'),
    'survey': ('The survey', 'Other systems, from a VAE to diffusion, for the same core-minutes; which one for your '
                             'folder. `make study PROFILE=survey` runs them all.'),
    'explore': ('Exploring', 'Latents, sliders and inversion, in JupyterLab or as pictures.'),
    'data': ('Cohorts', 'From a mesh to portraits with a cleft lip of known severity; from photographs to a dataset.'),
    'ops': ('Operators', 'The few operations that StyleGAN needs, each as its formula and as kernels for a CPU.'),
    'networks': ('Networks', 'StyleGAN3, StyleGAN2 and their discriminator.'),
    'checkpoints': ('Checkpoints', 'Files that networks are kept in, and published ones that are read without '
                                   'running them.'),
    'training': ('Training', 'Augmentation, losses, and a loop that goes on after any interruption to the last bit.'),
    'metrics': ('Metrics', 'How far generated images are from real ones, and what each number cannot see.'),
    'bench': ('Benchmarks', 'What was measured, on which machine. `make bench` measures again.'),
    '': ('More of the library', 'Files, values, words of strangers, and the command line.')}


def toctree(names, caption=''):
    "Pages for the sidebar, in MyST."
    return '```{toctree}\n:hidden:\n' + f':caption: {caption}\n'*bool(caption) + '\n'.join(names) + '\n```\n'


def section(pages, folder):
    "The first page of a section."
    title, about = SECTIONS[folder]
    names = sorted(o.stem for o in pages.places.values()
                   if o.suffix == '.ipynb' and o.parent == Path(folder) and o.stem != 'index')
    if not names: return None
    lines = [f'- [{title}]({name}.ipynb): {about}' for name in names
             for title, about in [pages.titles[str(Path(folder)/name)]]]
    page = f'{folder}/index' if folder else 'library'
    pages.write(f'{page}.md', f'# {title}\n\n{about}\n\n' + '\n'.join(lines) + '\n\n' + toctree(names))
    return page


def stage(to):
    "All pages, as Sphinx reads them."
    pages = Pages(to)
    pages.notebooks()
    pages.cards()
    pages.page(root/'CHANGELOG.md', 'changelog.md')
    command_pages, api_pages = commands.write(pages), api.write(pages)
    contents = {o: section(pages, o) for o in SECTIONS}
    pages.home('[Quickstart](guide/00_quickstart.ipynb) · [The study](study/index.md) · [Your own '
               'photographs](guide/01_own_photographs.ipynb) · [Commands](commands/index.md) · [API](api/index.md)',
               toctree([contents[o] for o in ('guide', 'study', 'survey') if contents[o]] + [command_pages], caption='Use it')
               + '\n' + toctree([contents[o] for o in SECTIONS if o not in ('guide', 'study', 'survey') and contents[o]],
                                caption='How it works')
               + '\n' + toctree([api_pages, 'cards/index', 'changelog'], caption='Look up'))


def build(out, work):
    "Sphinx's exit code. What was in `out` stays until its successor is complete."
    shutil.rmtree(work, ignore_errors=True)
    stage(work/'pages')
    os.environ['CLEFTGAN_ROOT'] = str(root)
    code = sphinx(['-b', 'html', '-c', str(Path(__file__).parent), '-d', str(work/'doctrees'), '-q', '-W', '-j',
                   'auto', str(work/'pages'), str(work/'html')])
    if code: return code
    [mathjax] = [o for o in files('sphinx-mathjax-offline') if o.name == 'tex-svg-full.js']
    (work/'html/_static/mathjax').mkdir(exist_ok=True)
    shutil.copy2(mathjax.locate(), work/'html/_static/mathjax')
    (work/'html/.nojekyll').touch()                # GitHub Pages leaves folders that begin with _ alone
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(work/'html', out)
    return 0


if __name__ == '__main__':
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument('--out', type=Path, default=root/'_docs')
    arguments.add_argument('--work', type=Path, default=root/'_proc/site',
                           help='folder for what is made on the way; it is emptied')
    given = arguments.parse_args()
    code = build(given.out.resolve(), given.work.resolve())
    if not code: print(f'{given.out}/index.html')
    sys.exit(code)
