"""API pages from the library itself: signature, what each parameter is (docments), and the notebook that tells why."""
import importlib
import inspect
import pkgutil
import re

import cleftgan_nb
from fastcore.docments import docments

HEADINGS = {'ops': 'Operators', 'networks': 'Networks', 'data': 'Cohorts', 'training': 'Training',
            'metrics': 'Metrics', 'explore': 'Exploring'}


def plain(text):
    "Words of a comment, so that Markdown leaves them alone."
    return re.sub(r'([|*<>\[\]$\\])', r'\\\1', ' '.join(str(text).split()))


def shown(value, most=60):
    "A value in a few characters."
    if inspect.isclass(value) or inspect.isroutine(value): return value.__name__
    if isinstance(value, float): return f'{value:.6g}'
    text = re.sub(r'\bat 0x[0-9a-f]+|<(?:class|function) ', '', repr(value))
    return text if len(text) <= most else text[:most - 1] + '…'


def code(text): return '`' + text.replace('|', '\\|').replace('`', "'") + '`' if text else ''


def kind(anno):
    "A type's name."
    if anno is inspect.Parameter.empty or anno is None or anno is type(None): return ''
    return (anno if isinstance(anno, str) else getattr(anno, '__name__', str(anno))
            if not getattr(anno, '__args__', None) else str(anno))


def signature(f):
    "Parameters with their defaults; what each is stands in the table."
    try: found = inspect.signature(f)
    except (TypeError, ValueError): return '(…)'
    shorter = lambda o: o.replace(annotation=o.empty, default=o.empty if o.default is o.empty else Shown(o.default))
    return str(found.replace(parameters=[shorter(o) for k, o in found.parameters.items() if k != 'self'],
                             return_annotation=found.empty))


class Shown:
    "A default as a signature shows it"
    def __init__(self, value): self.value = value
    def __repr__(self):
        text = shown(self.value, 40)
        return (text if re.fullmatch(r"""[-\w.]+|'[^'"]*'|"[^"]*"|\([-\w., ']*\)|\[[-\w., ']*\]""", text)
                and '…' not in text else '...')


def table(f):
    "What the parameters are, and what is returned."
    try: found = {k: v for k, v in docments(f, full=True).items() if k != 'self'}
    except Exception: return ''                      # built-in or compiled: it has no source to read
    rows = [(k, v) for k, v in found.items() if k != 'return'
            and (v.docment or v.default is not inspect.Parameter.empty)]
    back = found.get('return')
    text = ''
    if rows:
        text += '| parameter | type | default | is |\n|---|---|---|---|\n'
        for k, v in rows:
            text += (f'| {code(k)} | {code(kind(v.anno))} | '
                     f'{code("" if v.default is inspect.Parameter.empty else shown(v.default))} | '
                     f'{plain(v.docment or "")} |\n')
    if back and (back.docment or kind(back.anno)):
        text += f'\n**Returns** {code(kind(back.anno))} {plain(back.docment or "")}\n'
    return text


def entry(name, value, module, how):
    "One function or class in Sphinx's domain of Python, with its public methods."
    what = 'class' if inspect.isclass(value) else 'function'
    doc = ((inspect.getdoc(value) or '') if not inspect.isclass(value)
           or '__doc__' in vars(value) and not (value.__doc__ or '').startswith(value.__name__ + '(') else '')
    body = f'{plain(doc)}\n\n{how}{table(value)}\n'
    if what == 'class':
        for k, v in vars(value).items():
            if inspect.isfunction(v) and k[0] != '_' and v.__module__.startswith('cleftgan_nb'):
                body += f'\n```{{py:method}} {k}{signature(v)}\n{plain(inspect.getdoc(v) or "")}\n\n{table(v)}\n```\n'
    return f'````{{py:{what}}} {name}{signature(value)}\n:module: {module}\n\n{body}````\n\n'


def documented(module):
    "What a module exports: callables of its own, and everything else."
    own, other = {}, {}
    for name in getattr(module, '__all__', None) or ():
        value = getattr(module, name)
        value = getattr(value, 'py_func', value)     # compiled by numba
        (own if callable(value) and getattr(value, '__module__', '') == module.__name__
         and (inspect.isclass(value) or inspect.isroutine(value)) else other)[name] = value
    return own, other


def public():
    "What users import from the packages: name → package."
    found = {}
    for package in HEADINGS:
        try: module = importlib.import_module(f'cleftgan_nb.{package}')
        except ModuleNotFoundError: continue
        for name in getattr(module, '__all__', None) or dir(module):
            if name[0] != '_' and not inspect.ismodule(getattr(module, name)):
                found[package, name] = getattr(module, name)
    return found


def module_page(pages, module, own, other, imports):
    short = module.__name__.removeprefix('cleftgan_nb.')
    about = pages.titles.get(pages.exports.get(short), ('', ''))
    package = short.split('.')[0]
    text = f'# `{module.__name__}`\n\n> {about[1] or (module.__doc__ or "What is in it").strip()}\n\n'
    if about[0]:
        text += f':::{{container}} whence\nFrom the notebook [{about[0]}](../{pages.exports[short]}.ipynb)\n:::\n\n'
    # what users import comes first
    for name, value in sorted(own.items(), key=lambda o: (package, o[0]) not in imports):
        text += entry(name, value, module.__name__, f'`from cleftgan_nb.{package} import {name}`\n\n'
                      if (package, name) in imports else '')
    if constants := {k: v for k, v in other.items() if not inspect.ismodule(v)}:
        text += ('## Constants\n\n| name | value |\n|---|---|\n'
                 + ''.join(f'| {code(k)} | {code(shown(v))} |\n' for k, v in constants.items()))
    pages.write(f'api/{module.__name__}.md', text)


def write(pages):
    "All API pages; the name of the first."
    imports = public()
    modules = [importlib.import_module(o.name) for o in pkgutil.walk_packages(cleftgan_nb.__path__, 'cleftgan_nb.')
               if o.name.rpartition('.')[2][0] != '_' and not o.ispkg]
    for module in modules: module_page(pages, module, *documented(module), imports)
    names = [o.__name__ for o in modules]
    text = '# API\n\n> What to import, and every module behind it\n\n## Public names\n\n'
    for package, title in HEADINGS.items():
        here = {name: value for (of, name), value in imports.items() if of == package}
        if here:
            text += (f'**{title}**: `from cleftgan_nb.{package} import …`\n\n'
                     + ', '.join(linked(k, v, names) for k, v in here.items()) + '\n\n')
    text += '## Modules\n\n' + ''.join(f'- [`{o}`]({o}.md): {pages.titles["api/" + o][1].rstrip(".")}\n' for o in names)
    pages.write('api/index.md', text + '\n```{toctree}\n:hidden:\n'
                + '\n'.join(f'{o.removeprefix("cleftgan_nb.")} <{o}>' for o in names) + '\n```\n')
    return 'api/index'


def linked(name, value, names):
    module = getattr(value, '__module__', None)
    return f'{{py:obj}}`{name} <{module}.{name}>`' if module in names else f'`{name}`'
