"""The site: it builds without a warning, loads nothing from other hosts, has every page, and can be searched"""
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip('sphinx'), pytest.importorskip('myst_nb'), pytest.importorskip('furo')
root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'workflow/docs'))
from pages import CODE, Pages, executed  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "Build the site as `make docs` does, with warnings as errors"
    folder = tmp_path_factory.mktemp('site')
    made = subprocess.run([sys.executable, 'workflow/docs/build.py', '--out', folder/'out', '--work',
                           folder/'work'], cwd=root, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(root)})
    assert made.returncode == 0 and 'WARNING' not in made.stderr, made.stdout + made.stderr
    return folder/'out'


def pages(site): return {str(o.relative_to(site)): o.read_text(encoding='utf-8') for o in site.rglob('*.html')}


def test_every_notebook_card_module_and_command_has_its_page(site):
    from commands import parsers, sections
    import nbformat
    found = set(pages(site))
    for notebook in (root/'nbs').rglob('*.ipynb'):
        if '.ipynb_checkpoints' in notebook.parts or notebook.name == '02_commands.ipynb': continue
        assert str(notebook.relative_to(root/'nbs').with_suffix('.html')) in found
    for card in (root/'data_cards').glob('*.md'):
        assert f'cards/{card.stem}.html' in found or card.name == 'README.md'
    for module in (root/'cleftgan_nb').rglob('*.py'):
        if module.name[0] != '_': assert f'api/{".".join(module.relative_to(root).with_suffix("").parts)}.html' in found
    told = sections(nbformat.read(root/'nbs/guide/02_commands.ipynb', 4).cells)
    for name in parsers():
        assert f'cleftgan {name} --help' in re.sub(r'<[^>]+>', '', pages(site)[f'commands/{name}.html'])
        assert (any(f'cleftgan {name}' in c.source for c in told.get(name,
                                                                     ()))), f'nbs/guide/02_commands.ipynb has no example of cleftgan {name}'


def test_nothing_is_loaded_from_other_hosts(site):
    for name, text in pages(site).items():
        tags = re.findall(r'<(?!a\b)\w+\b[^>]*?\b(?:src|srcset|href|data|poster)="(?:[a-z]+:)?//[^>]*>', text)
        assert not [o for o in tags if 'rel="canonical"' not in o], name
        assert not re.search(r'<style[^>]*>[^<]*(?:url\(|@import)[^<]*//', text), name
    for sheet in site.rglob('*.css'):
        assert not re.search(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', sheet.read_text(encoding='utf-8')), sheet.name
    assert not [o.name for o in site.rglob('*.js')
                if re.search(r'(?:fetch|import|importScripts)\(\s*["\']https?:|\.src\s*=\s*["\']https?:',
                             o.read_text(encoding='utf-8'))]


def test_tables_of_cells_are_tables(site):
    "Markdown that a cell makes is rendered as the page's own is"
    raw = [name for name, text in pages(site).items() if re.search(r'\|(-{3}|—)\|(-{3}|—)\|', re.sub(r'(?s)<pre.*?</pre>', '', text))]
    assert not raw


def test_links_and_pictures_lead_somewhere(site):
    found, lost = pages(site), []
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in found.items()}
    for name, text in found.items():
        for target in re.findall(r'<\w[^>]*?\b(?:href|src)="([^"]*)"', text):       # in tags, not in code that is shown
            path, _, anchor = target.partition('#')
            if re.match(r'[a-z]+:', target): continue
            file = os.path.normpath(os.path.join(os.path.dirname(name), path.split('?')[0])) if path else name
            if not (site/file).exists() or anchor and file in ids and anchor not in ids[file]:
                lost.append(f'{name}: {target}')
    assert not lost, '\n'.join(lost[:20])


def test_study_pages_lead_with_what_was_found(site):
    text = pages(site)['study/05_compare.html']
    article = text[text.index('<article'):]
    assert article.index('<img') < article.index('<section id="parameters">') < article.index('camera noise')
    assert article.count('class="admonition hide') > 4 and article.index('<img') < article.index('class="admonition hide')


def test_search_index_knows_the_operator(site):
    index = json.loads((site
                        / 'searchindex.js').read_text(encoding='utf-8').removeprefix('Search.setIndex(').rstrip(';').removesuffix(')'))
    hits = index['terms']['filtered_lrelu']
    assert 'ops/07_fused' in {index['docnames'][o] for o in ([hits] if isinstance(hits, int) else hits)}
    assert any('filtered_lrelu' in {o[-1] for o in entries} for entries in index['objects'].values())


def test_math_comes_along(site):
    assert ('mathjax/tex-svg-full.js' in pages(site)['ops/07_fused.html']
            and (site/'_static/mathjax/tex-svg-full.js').stat().st_size > 1 << 20)


def test_api_page_tells_what_the_parameters_are(site):
    text = re.sub(r'<[^>]+>', '', pages(site)['api/cleftgan_nb.ops.fused.html'])
    assert 'from cleftgan_nb.ops import filtered_lrelu' in text and 'filter before down-sampling' in text


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    made = Pages(tmp_path)
    text = made.links('[a](gone.ipynb) and `[b](gone.md)` and [c](../data_cards) and [d](https://example.org)',
                      root/'nbs/index.ipynb', 'index.ipynb')
    assert text == '[a](gone.ipynb) and `[b](gone.md)` and [c](cards/index.md) and [d](https://example.org)'
    assert made.broken == ['nbs/index.ipynb: gone.ipynb']
    with pytest.raises(SystemExit, match='gone.ipynb'): made.home('', '')


def test_code_is_left_alone():
    assert [o for o in CODE.split('a `b` c\n```sh\nd\n```\ne $$f$$')[1::3]] == ['`b`', '```sh\nd\n```', '$$f$$']


def test_an_executed_copy_takes_the_place_of_the_notebook(monkeypatch, tmp_path):
    import pages as module
    monkeypatch.setattr(module, 'root', tmp_path)
    notebook = root/'nbs/study/01_cohort.ipynb'
    for profile in 'smoke', 'cpu', 'paper':
        (tmp_path/'outputs'/profile).mkdir(parents=True)
        (tmp_path/'outputs'/profile/notebook.name).touch()
    assert executed(notebook) == tmp_path/'outputs/cpu/01_cohort.ipynb'
    assert executed(root/'nbs/ops/01_filters.ipynb') == root/'nbs/ops/01_filters.ipynb'


@pytest.fixture(scope='session')
def served(site):
    "Serve the site on a local port of its own"
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def wait(browser, condition, seconds=30):
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, seconds).until(lambda d: d.execute_script(f'return {condition}'))


def test_a_browser_searches_and_finds(browser, served):
    from selenium.webdriver.common.by import By
    browser.get(served)
    box = browser.find_element(By.CSS_SELECTOR, 'input[name=q]')
    box.send_keys('filtered_lrelu')
    box.submit()
    wait(browser, "document.querySelectorAll('#search-results a[href*=\"07_fused\"]').length")
    # results still arrive
    browser.execute_script("arguments[0].click()",
                           browser.find_element(By.CSS_SELECTOR, '#search-results a[href*="07_fused"]'))
    [title, *_] = json.loads((root/'nbs/ops/07_fused.ipynb').read_text())['cells'][0]['source']
    title = title.strip().removeprefix('# ')
    wait(browser, f"document.querySelector('h1') && document.querySelector('h1').innerText.includes({title!r})")


def test_search_works_without_a_server(browser, site):
    browser.get(f'file://{site}/search.html?q=filtered_lrelu')
    wait(browser, "document.querySelectorAll('#search-results a[href*=\"07_fused\"]').length")


@pytest.mark.parametrize('page', ['index.html', 'ops/07_fused.html', 'study/05_compare.html',
                                  'guide/01_own_photographs.html', 'commands/train.html',
                                  'api/cleftgan_nb.ops.fused.html', 'cards/phantom-normal.html', 'bench/00_cpu.html'])
@pytest.mark.parametrize('width', [390, 1280])
def test_a_browser_shows_the_page(browser, served, page, width):
    "Within the window's width, with its pictures and formulas, and without asking another host"
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                            dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500))
    browser.get(f'{served}/{page}')
    formulas = len(re.findall('class="math ', browser.page_source))
    wait(browser, "document.readyState === 'complete' && document.querySelectorAll('mjx-container').length >= "
                  f"{formulas}")
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    assert not browser.execute_script('return [...document.images].filter(o => o.complete && !o.naturalWidth).map(o '
                                      '=> o.src)')
    assert not [o for o in browser.execute_script("return performance.getEntriesByType('resource').map(o => o.name)")
                if not o.startswith((served, 'data:'))]
    assert not browser.execute_script("return document.querySelectorAll('mjx-merror').length")
