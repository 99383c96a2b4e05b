"""Pages of a study: a link to a cell opens its fold, and every page fits a phone"""
import nbformat
import pytest
from PIL import Image

from cleftgan_nb.study.provenance import recipe, save_figure, save_table
from cleftgan_nb.study.report import report

v4 = nbformat.v4


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    "Write the report of a study with one long table, a wide one and a figure"
    folder, about = tmp_path_factory.mktemp('study'), recipe('gray squares', dict(seed=0))
    shown = v4.new_output('display_data', {'image/png': '', 'text/plain': 'x'})
    nb = v4.new_notebook(cells=[v4.new_markdown_cell('# Gray\n\n> How gray'), v4.new_markdown_cell('## Parameters'),
                                v4.new_code_cell('n = 1 # squares', metadata=dict(tags=['parameters']), execution_count=1),
                                v4.new_markdown_cell('## Result'),
                                v4.new_code_cell('x = 1\n'*80, execution_count=2, outputs=[shown], id='abcd')])
    nbformat.write(nb, folder/'01_gray.ipynb')
    made = about | dict(made_in=dict(notebook='01_gray.ipynb', cell=2))
    save_figure(Image.new('L', (900, 3000)), folder/'a.png', made)
    save_table([dict(number=i, **{f'column_{k}': 1/3 for k in range(20)}) for i in range(99)], folder/'b.csv', made)
    return report(folder)


def test_the_finding_comes_first(study):
    text = (study.parent/'01_gray.html').read_text()
    assert text.index('<img src="a.png"') < text.index('squares</td>') and text.count('>Parameters<') == 1
    assert text.index('<details>') < text.index('id="cell-id=abcd"') and 'n = 1' not in text


@pytest.mark.slow
def test_a_link_opens_the_fold(browser, study):
    opened = "const o = document.querySelector(':target'); return [o.closest('details').open, o.getBoundingClientRect().top]"
    for page, place in ((study.parent/'01_gray.html', 'cell-id=abcd'), (study, 'b.csv')):
        browser.get('about:blank')
        browser.get(f'{page.as_uri()}#{place}')
        is_open, top = browser.execute_script(opened)
        assert is_open and 0 <= top < 200


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
def test_pages_fit_the_window(browser, study, width):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=844, deviceScaleFactor=1, mobile=width < 500))
    browser.get_log('browser')     # forget what other tests' pages said
    for page in study.parent.glob('*.html'):
        browser.get(page.as_uri())
        assert browser.execute_script('return document.documentElement.scrollWidth') <= width, page.name
        assert not browser.get_log('browser')
    browser.get(study.as_uri())
    seen = browser.execute_script("return ['.side', '.contents'].map(o => document.querySelector(o).offsetHeight > 0)")
    assert seen == [width > 1000, width < 1000]
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
