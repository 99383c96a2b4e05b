"""The project agrees with itself: quick checks, which `make test` runs first"""
import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
from configparser import ConfigParser
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points, files, requires, version
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'workflow'))
import readme  # noqa: E402

settings = ConfigParser(delimiters=['='], interpolation=None)
settings.read(root/'settings.ini', encoding='utf-8')
settings = settings['DEFAULT']


def tracked():
    "List the repository's files as git knows them"
    run = (subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True) if shutil.which('git')
           else None)
    if run is None or run.returncode: pytest.skip('not a git checkout')
    return [o for o in run.stdout.split('\0') if o and (root/o).is_file()]


def pins(python):
    "Read the pinned versions for one Python on Linux: package → version"
    env = dict(python_version=python, python_full_version=python + '.9', sys_platform='linux',
               platform_system='Linux', os_name='posix',
               platform_machine='x86_64', implementation_name='cpython', platform_python_implementation='CPython',
               extra='')
    lines = [o.split('  #')[0] for o in (root/'requirements/dev.txt').read_text().splitlines() if o and o[0] != '#']
    found = [o for o in map(Requirement, lines) if not o.marker or o.marker.evaluate(env)]
    names = [o.name for o in found]
    assert (len(names) == len(set(names))), f'pinned twice for {python}: {sorted(o for o in set(names) if names.count(o) > 1)}'
    return env, {o.name.lower(): str(o.specifier) for o in found}


def test_layout():
    top = {o.split('/')[0] for o in tracked()}
    assert top == {'nbs', 'cleftgan_nb', 'data_cards', 'outputs', 'tests', 'workflow', 'requirements', '.ci',
                   '.github', 'settings.ini', 'pyproject.toml', 'setup.py',
                   'Makefile', 'README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md', 'LICENSE',
                   'CITATION.cff', '.gitignore', '.gitattributes', '.importlinter', '.pre-commit-config.yaml'}


def test_nothing_made_is_tracked():
    ships = [o for o in tracked() if o.startswith('cleftgan_nb/assets/') and o.endswith('.safetensors')]
    made = [o for o in tracked()
            if re.match(r'(outputs/(?!README\.md|(cpu|survey|ada-514|h100|real-mouths|severity-(adaptation|regression)'
                        r'|vision-aided)/[^/]+$)|_proc|_docs'
                        r'|\.venv)', o) or o.endswith(('.safetensors', '.pkl', '.pyc')) and o not in ships]
    assert not made
    large = [o for o in tracked() if (root/o).stat().st_size > (16 if o in ships else 4) << 20]
    assert not large, 'files over 4 MiB, or models over 16 MiB'
    for folder, most in dict(cpu=20, survey=8).items():
        size = sum((root/o).stat().st_size for o in tracked() if o.startswith(f'outputs/{folder}/'))
        assert size <= most << 20, f'outputs/{folder}: {size >> 20} MiB; accepted: {most}'


def test_models_that_ship_have_cards():
    for o in tracked():
        if not o.startswith('cleftgan_nb/assets/') or not o.endswith('.safetensors'): continue
        card = root/'data_cards'/f'{Path(o).stem}.md'
        assert (card.is_file() and sha256((root/o).read_bytes()).hexdigest()
                in card.read_text(encoding='utf-8')), f'{card.name} does not describe the {o} that ships'


def test_no_path_of_a_machine():
    somewhere = re.compile(r'(?<![\w.~}])/(?:work|tmp|root|farm|home|Users)/[\w.]')
    found = []
    for name in tracked():
        data = (root/name).read_bytes()
        if b'\0' in data: continue
        found += [f'{name}:{n}: {line.strip()[:100]}' for n, line in enumerate(data.decode().splitlines(), 1)
                  if somewhere.search(line)]
    assert not found, '\n'.join(found)


def test_one_version():
    citation = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    init = ast.parse((root/'cleftgan_nb/__init__.py').read_text()).body
    [stated] = [o.value.value for o in init if isinstance(o, ast.Assign) and o.targets[0].id == '__version__']
    assert {settings['version'], str(citation['version']), stated, version('cleftgan_nb')} == {settings['version']}


def test_metadata_comes_from_settings():
    declared = {Requirement(o).name for o in requires('cleftgan_nb') if 'extra ==' not in o}
    assert declared == {Requirement(o).name for o in settings['requirements'].split()}
    [script] = entry_points(group='console_scripts', name='cleftgan')
    assert f'{script.name}={script.value}' == settings['console_scripts']
    pyproject = (root/'pyproject.toml').read_text()
    assert f'name = "{settings["lib_name"]}"' in pyproject
    for name in ('version', 'description', 'min_python', 'author', 'requirements'):
        assert settings[name] not in pyproject
    assert settings['license'] == 'apache2' and 'license = "Apache-2.0"' in pyproject
    assert 'Apache License' in (root/'LICENSE').read_text()


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_pins_fulfill_settings(python):
    env, pinned = pins(python)
    for wanted in map(Requirement, (settings['requirements'] + ' ' + settings['dev_requirements']).split()):
        if wanted.marker and not wanted.marker.evaluate(env): continue
        assert wanted.name in pinned, f'{wanted} has no pin for Python {python}: make lock'
        have = pinned[wanted.name]
        assert SpecifierSet(str(wanted.specifier)).contains(have.removeprefix('==')), f'{wanted}: {have}; make lock'
    assert all(o.startswith('==') for o in pinned.values())


# What was known on 2026-11-28 about the packages that read strangers' files or build the wheel. A new line here
# raises the floor in settings.ini, too.
KNOWN_BAD = [
    ('torch', '<2.6', 'CVE-2025-32434: torch.load executes, in spite of weights_only=True'),
    ('torch', '<2.10', 'CVE-2026-24747: torch.load with weights_only=True overwrites memory'),
    ('pillow', '<10.3', 'CVE-2024-28219: a color profile overflows a buffer of ImageCms'),
    ('pillow', '<13', 'CVE-2026-112403: a JPEG overflows a buffer of its decoder'),
    ('tqdm', '<4.66.3', 'CVE-2024-34062: its command line evaluates options'),
    ('pyyaml', '<5.4', 'CVE-2020-14343: full_load executes'),
    ('scipy', '<1.10', 'CVE-2023-25399: references are miscounted'),
    ('numpy', '<1.22.2', 'CVE-2021-41495: sorting follows a null pointer'),
    ('setuptools', '<78.1.1', 'CVE-2025-47273: a package writes outside of its folder'),
]
NO_BETTER = {('CVE-2026-112403', '3.10')}            # Pillow 13 is for Python 3.11 and newer


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12', '3.13'])
def test_no_version_is_known_to_be_bad(python):
    "Neither the pinned one nor the oldest accepted one"
    env, pinned = pins(python)
    build = re.search(r'^requires = \["(.+)"\]$', (root/'pyproject.toml').read_text(), re.M)[1]
    wanted = [o for o in map(Requirement, [*settings['requirements'].split(), build])
              if not o.marker or o.marker.evaluate(env)]
    floors = {o.name: next(s.version for s in o.specifier if s.operator == '>=') for o in wanted}
    for name, versions, why in KNOWN_BAD:
        for version in (floors[name], pinned[name].removeprefix('==')):
            assert (not SpecifierSet(versions).contains(version)
                    or (why.partition(':')[0], python)
                    in NO_BETTER), f'{name} {version}: {why}; raise it in settings.ini'


def test_environment_is_the_pinned_one():
    "Guards against testing with anything but the pinned versions"
    if '.venv' not in sys.prefix: pytest.skip('not run by make test')
    _, pinned = pins('.'.join(map(str, sys.version_info[:2])))
    for name in ('torch', 'numpy', 'numba', 'nbdev', 'pytest'):
        assert version(name).split('+')[0] == pinned[name].removeprefix('==')


def test_modules_that_are_looked_for_are_in_the_packages_that_are_declared():
    from cleftgan_nb.study import preflight
    for module, extra in (preflight.PACKAGES | preflight.PHOTOS).items():
        if module == 'snakemake' and sys.version_info < (3, 11): continue
        declared = [o.name for o in map(Requirement, requires('cleftgan_nb'))
                    if o.marker and o.marker.evaluate(dict(extra=extra))]
        assert (module in {re.split('[./]', str(o))[0] for name in declared
                           for o in files(name)}), f'the packages of the extra {extra} bring no {module}'
    assert all(o.ok for o in preflight.packages(photographs=True))


def test_readme_is_made_from_the_notebook():
    text, pictures = readme.readme()
    assert (root/'README.md').read_text(encoding='utf-8') == text, 'run make readme'
    assert pictures, 'the README shows no picture of what the code makes'
    for path, data in pictures.items(): assert path.read_bytes() == data, f'{path.name}: run make readme'


def test_readme_links_lead_somewhere():
    links = re.findall(r'\]\((?!https?:|#)([^)#]+)', (root/'README.md').read_text(encoding='utf-8'))
    assert links and not [o for o in links if not (root/o).exists()]


def test_make_lists_its_targets():
    help = subprocess.run(['make'], cwd=root, capture_output=True, text=True).stdout
    for target in ('test', 'study', 'bench', 'docs', 'lab', 'clean'):
        assert re.search(rf'^  {target} ', help, re.M), target


def test_workflows_make_what_anybody_makes():
    "A workflow calls make or .ci/run, so it builds nothing that you can't build here, and names no registry"
    found = [root/o for o in tracked() if o.startswith('.github/workflows/')]
    assert found
    for file in found:
        text = file.read_text(encoding='utf-8')
        steps = [o for job in yaml.safe_load(text)['jobs'].values() for o in job['steps']]
        assert (not [o['run'] for o in steps if not o.get('run', 'make').startswith(('make', '.ci/run'))]
                and '://' not in text), file.name


def notebooks():
    return sorted(str(o.relative_to(root)) for o in (root/'nbs').rglob('*.ipynb')
                  if '.ipynb_checkpoints' not in o.parts)


@pytest.mark.parametrize('notebook', notebooks())
def test_notebook_says_what_it_is(notebook):
    found = nbformat.read(root/notebook, 4)
    first = found.cells[0]
    assert (first.cell_type == 'markdown' and re.match(r'# .+\n+> .+',
                                                       first.source)), 'starts with a title and one sentence below it'
    errors = [c.id for c in found.cells for o in c.get('outputs', []) if o.output_type == 'error']
    assert not errors, 'stored with an error in it'
    assert ('widgets' not in found.metadata), 'stored with the state of widgets, which nothing shows: pictures stand for them'


def test_executed_notebooks_are_slim():
    for o in tracked():
        if not re.match(r'outputs/.+\.ipynb$', o): continue
        found = nbformat.read(root/o, 4)
        twice, widget = {'image/png', 'image/jpeg'}, 'application/vnd.jupyter.widget-view+json'
        kept = [out for c in found.cells for out in c.get('outputs', [])
                if twice <= out.get('data', {}).keys() or widget in out.get('data', {})]
        assert 'widgets' not in found.metadata and not kept, f'{o}: python workflow/slim.py makes it smaller'


@pytest.mark.parametrize('notebook', [o for o in notebooks() if re.match('nbs/study/(0[1-8]|1[01])_', o)])
def test_study_notebook_checks_its_parameters(notebook):
    cells = [c for c in nbformat.read(root/notebook, 4).cells if c.cell_type == 'code']
    [tagged] = [i for i, c in enumerate(cells) if 'parameters' in c.metadata.get('tags', [])]
    named = {o.targets[0].id for o in ast.parse(cells[tagged].source).body}
    assert 'check_parameters(globals(),' in cells[tagged + 1].source
    assert named == {o.arg for o in next(o for o in ast.walk(ast.parse(cells[tagged + 1].source))
                                         if isinstance(o, ast.Call)
                                         and getattr(o.func, 'id', '') == 'check_parameters').keywords}
    assert (not any(re.match(r'#\|\s*export', c.source)
                    for c in cells)), 'what a second notebook would want belongs into the library'


# The house's style. Each of these can rot unseen, so each has its number here.
MODULES = sorted(o for o in (root/'cleftgan_nb').rglob('*.py')
                 if o.name not in ('_modidx.py', '__init__.py', '__main__.py'))


@cache
def code():
    "Read the modules, the tests and the workflow: path → text"
    files = ([str(o.relative_to(root)) for o in MODULES]
             + [o for o in tracked() if re.match(r'(tests|workflow)/.*\.py$|setup\.py$', o)])
    return {o: (root/o).read_text() for o in files}


@cache
def cells(notebook):
    "Read code cells as Python: lines that only a notebook knows are left out"
    found = nbformat.read(root/notebook, 4).cells
    return [re.sub(r'^\s*[%!].*$', '', c.source, flags=re.M) for c in found if c.cell_type == 'code']


def exports(notebook):
    "Name the module that a notebook makes, such as data.cleft"
    return next((m[1] for c in cells(notebook) if (m := re.search(r'^#\|\s*default_exp\s+(\S+)', c, re.M))), None)


def test_lines_are_of_a_length_that_is_read():
    lines = [(o, l) for o, text in code().items() for l in text.split('\n')]
    lines += [(o, l) for o in notebooks() for c in cells(o) for l in c.split('\n')]
    assert not [f'{o}: {l.strip()[:60]}' for o, l in lines if len(l) > 140]
    assert sum(len(l) > 120 for _, l in lines) < .02*len(lines)


def test_a_line_holds_one_statement():
    "At the end of a notebook's cell a semicolon keeps its value off the page"
    texts = [*code().values()]
    for c in (c.rstrip().removesuffix(';') for o in notebooks() for c in cells(o)):
        try: ast.parse(c)
        except SyntaxError: continue     # a cell of shell lines
        texts.append(c)
    count = sum(t.string == ';' and t.type == tokenize.OP for text in texts
                for t in tokenize.generate_tokens(io.StringIO(text).readline))
    assert count <= .001*sum(text.count('\n') for text in texts)


def test_notebook_module_and_test_have_one_name():
    made = {exports(o): o for o in notebooks() if exports(o)}
    assert ({o.relative_to(root/'cleftgan_nb').with_suffix('').as_posix().replace('/', '.') for o in MODULES}
            == set(made))
    for module, notebook in made.items():
        folder, name = Path(notebook).parent.relative_to('nbs').as_posix(), re.sub(r'^\d+_', '', Path(notebook).stem)
        assert module == name if folder == '.' else module == f'{folder}.{name}', notebook
    known = {o.rpartition('.')[2] for o in made} | {o.partition('.')[0] for o in made}
    # of several modules, or of the project
    besides = {'project', 'docs', 'wheel', 'cluster', 'given', 'hostile', 'phantom', 'triton', 'ops_properties',
               'explorer_browser'}
    assert {o.stem.removeprefix('test_') for o in (root/'tests').glob('test_*.py')} <= known | besides


def test_every_folder_of_notebooks_is_numbered_from_0():
    folders = {}
    for o in notebooks(): folders.setdefault(Path(o).parent, []).append(Path(o).stem)
    for folder, names in folders.items():
        numbers = [o[:3] for o in sorted(names) if o != 'index']
        assert numbers == [f'{i:02}_' for i in range(len(numbers))], folder


def test_public_names_are_of_use_elsewhere():
    "What only its own notebook uses is no name for __all__"
    words = {o: set(re.findall(r'\w+', text)) for o, text in code().items()}
    words |= {o: {w for c in cells(o) for w in re.findall(r'\w+', c)} for o in notebooks()}
    made = {exports(o): o for o in notebooks() if exports(o)}
    public, idle = 0, []
    for path in MODULES:
        own = {str(path.relative_to(root)), made[path.relative_to(root
                                                                  / 'cleftgan_nb').with_suffix('').as_posix().replace('/', '.')]}
        for name in ast.literal_eval(re.search(r'^__all__ = (\[.*?\])', path.read_text(), re.M | re.S)[1]):
            public += 1
            if not any(name in found for o, found in words.items() if o not in own): idle.append(f'{path.stem}.{name}')
    assert len(idle) <= .1*public, idle


def test_docstrings_speak_one_dialect():
    "A verb and an object, no full stop; one line, or a line and an empty one"
    odd = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            first = (ast.get_docstring(node) or '').partition('\n')[0]
            if first.endswith('.') and not first.endswith('…') or len(first) > 130:
                odd.append(f'{path.stem}.{node.name}: {first}')
            if re.search(r'\w \* \w', first) and '$' not in first and 'x * w' not in first:
                odd.append(f'{path.stem}.{node.name}: {first}')
    assert not odd


def test_products_are_set_close():
    "a*b, not a * b"
    texts = [*code().values(), *(c for o in notebooks() for c in cells(o))]
    spaced = [l.strip()[:80] for text in texts for l in text.split('\n')
              if re.search(r"^[^'\"#]*[\w)\]] (\*|/|\*\*) [\w(]", l)]
    assert len(spaced) <= 20, spaced[:20]


BRITISH = ('licence memorisation colour behaviour neighbour favour centre normalise normalisation optimise '
           'optimisation initialise '
           'recognise organise analyse modelled labelled labelling cancelled travelled grey judgement artefact '
           'whilst towards '
           'visualise summarise minimise maximise generalise regularise randomise fulfil catalogue').split()


def test_spelling_is_american():
    "Names and prose; old metadata is still read, so values.py knows the old word"
    pattern = re.compile(rf'(?<![A-Za-z])({"|".join(BRITISH)})(?:s|d|r|ing)?(?![a-z])', re.I)
    prose = {o: '\n'.join(c.source for c in nbformat.read(root/o, 4).cells) for o in notebooks()}
    prose |= ({o: (root/o).read_text() for o in tracked() if o.endswith('.md') and not o.startswith('outputs/cpu')}
              | code())
    excused = {'CHANGELOG.md', 'nbs/01_values.ipynb', 'cleftgan_nb/values.py', 'tests/test_values.py',
               'tests/test_project.py'}
    found = {o: sorted({m[0] for m in pattern.finditer(text)}) for o, text in prose.items() if o not in excused}
    assert not {o: words for o, words in found.items() if words}


def test_the_readme_is_short():
    words = re.sub(r'```.*?```|<!--.*?-->|!\[.*?\]\(.*?\)|\]\(.*?\)', '', (root/'README.md').read_text(),
                   flags=re.S).split()
    assert len(words) <= 800
