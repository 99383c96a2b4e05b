"""The explorer in a real browser: JupyterLab opens the notebook, runs it, and moving a slider changes the face"""
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest

pytest.importorskip('jupyterlab'), pytest.importorskip('ipywidgets'), pytest.importorskip('selenium')
pytestmark = pytest.mark.slow
root = Path(__file__).resolve().parent.parent
PARAMETERS = "checkpoint, dataset, run, faces = 'phantom-64-cleft-stylegan3-t', 'faces.zip', 'run', 4"


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "Start JupyterLab in its own folder, with the notebook and a few phantoms"
    from cleftgan_nb.data import cohort
    folder, state, token = tmp_path_factory.mktemp('lab'), tmp_path_factory.mktemp('jupyter'), secrets.token_hex(8)
    notebook = nbformat.read(root/'nbs/guide/03_try_it.ipynb', 4)
    [parameters] = [o for o in notebook.cells if 'parameters' in o.metadata.get('tags', [])]
    parameters.source = PARAMETERS
    for cell in notebook.cells: cell.get('outputs', []).clear()      # anything seen later was made now
    nbformat.write(notebook, folder/'try_it.ipynb')
    cohort('cleft', 16, folder/'faces.zip', workers=1, progress=False)
    tick(folder/'run', 1)
    settings = state/'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false"}')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1',
               f'--ServerApp.port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
               f'--ServerApp.root_dir={folder}', '--LabApp.expose_app_in_browser=True',
               '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--LabApp.news_url=None']
    env = os.environ | {'PYTHONPATH': str(root), 'JUPYTER_CONFIG_DIR': str(state/'config'),
                        'JUPYTER_RUNTIME_DIR': str(state/'run'), 'JUPYTERLAB_SETTINGS_DIR': str(state/'settings'),
                        'JUPYTERLAB_WORKSPACES_DIR': str(state/'workspaces'), 'IPYTHONDIR': str(state/'ipython'),
                        'JUPYTER_PLATFORM_DIRS': '1'}
    with open(state/'log', 'w') as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
    address = f'http://127.0.0.1:{port}'
    try:
        until(lambda: answers(f'{address}/api', server, state/'log'), 90, 'JupyterLab does not answer')
        yield f'{address}/lab/tree/try_it.ipynb?reset&token={token}', folder
    finally:
        server.terminate()                                           # its kernels with it
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()


def tick(folder, n):
    "Write a run that has come this far"
    from PIL import Image
    folder.mkdir(exist_ok=True)
    (folder/'log.jsonl').write_text(''.join(json.dumps({'kimg': 4*t, 'step': t, 'r_t': t/10,
                                                          'augment_p': t/100, 'loss/G': 1 + 1/t}) + '\n'
                                              for t in range(1, n + 1)))
    Image.new('RGB', (256, 64), (40*n, 90, 120)).save(folder/f'fakes-{4 * n:06d}.png')


def until(condition, seconds, complaint):
    "Wait for something, or say what did not come"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition(): return found
        time.sleep(.25)
    pytest.fail(f'{complaint() if callable(complaint) else complaint} after {seconds} s')


def answers(address, server, log):
    assert server.poll() is None, log.read_text()[-3000:]
    try: return urlopen(address, timeout=5).status == 200
    except (URLError, OSError): return False


PIXELS = '''const o = [...document.querySelectorAll('.jp-OutputArea img.widget-image')]
    .filter(o => o.offsetParent && o.complete && o.naturalWidth)[arguments[0]];
if (!o) return null;
const c = document.createElement('canvas'); c.width = o.naturalWidth; c.height = o.naturalHeight;
const g = c.getContext('2d'); g.drawImage(o, 0, 0);
return [...g.getImageData(0, 0, c.width, c.height).data].filter((v, i) => i % 4 < 3)'''
ERRORS = ("return [...document.querySelectorAll('.jp-OutputArea-output[data-mime-type=\"application/vnd.jupyter.error\"], "
          ".jp-RenderedText[data-mime-type*=\"stderr\"]')].map(o => o.innerText).join('\\n')")


def picture(browser, which=0):
    "Read what the browser shows, pixel by pixel; None before there is anything"
    import numpy as np
    found = browser.execute_script(PIXELS, which)
    return np.array(found, float) if found else None


def changed(browser, before, which=0, least=.5):
    "Check whether the picture has become another one, by its mean gray levels"
    now = picture(browser, which)
    return now is not None and (now.shape != before.shape or abs(now - before).mean() > least)


def slider(browser, words):
    "Find the handle of a visible slider by the words before it"
    from selenium.webdriver.common.by import By
    [row] = [o for o in browser.find_elements(By.CSS_SELECTOR, '.widget-slider')
             if o.is_displayed() and o.find_element(By.CSS_SELECTOR, '.widget-label').text == words]
    return row.find_element(By.CSS_SELECTOR, '.noUi-handle')


def press(browser, words):
    "Press a button or a tab by the words on it"
    from selenium.webdriver.common.by import By
    [button] = [o for o in browser.find_elements(By.CSS_SELECTOR, '.jupyter-button, .widget-tab .lm-TabBar-tab')
                if o.is_displayed() and o.text == words]
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', button)
    button.click()


@pytest.fixture(scope='module')
def shown(browser, lab, tmp_path_factory):
    "Run the notebook, and return the folder of the screenshots"
    address, _ = lab
    browser.set_window_size(1280, 1100)
    browser.get(address)
    until(lambda: browser.execute_script("return !!window.jupyterapp && !!document.querySelector('.jp-Notebook "
                                         ".jp-Cell')"), 90, 'JupyterLab shows no notebook')
    status = 'window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status'
    until(lambda: browser.execute_script(f"return {status} === 'idle'"), 90, 'the kernel is not ready')
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    until(lambda: picture(browser) is not None, 240, lambda: f'no picture: {browser.execute_script(ERRORS)}')
    browser.execute_script("document.querySelector('.jp-OutputArea .widget-tab').scrollIntoView()")
    return tmp_path_factory.mktemp('screenshots')


def test_the_severity_slider_changes_the_picture(browser, shown):
    from selenium.webdriver.common.keys import Keys
    before = picture(browser)
    slider(browser, 'severity').send_keys(Keys.ARROW_LEFT*25)
    until(lambda: changed(browser, before), 30, 'the picture is the same')
    readout = browser.execute_script("return [...document.querySelectorAll('.widget-slider')].filter(o => "
                                     "o.innerText.includes('severity'))[0].querySelector('.widget-readout').innerText")
    assert float(readout.replace('\u2212', '-')) == -.5
    browser.save_screenshot(str(shown/'slider.png'))
    after = picture(browser)
    slider(browser, 'severity').send_keys(Keys.ARROW_RIGHT*25)
    until(lambda: picture(browser) is not None and not changed(browser, before, least=.01), 30,
          'back where it was, the slider gives another picture')
    assert abs(after - before).mean() > .5


def test_a_picture_is_saved_and_its_code_is_shown(browser, shown, lab):
    from PIL import Image
    press(browser, 'Save PNG')
    [path] = until(lambda: list(lab[1].glob('face-*.png')), 30, 'nothing was saved')
    with Image.open(path) as image:
        assert image.text['Source'] == 'synthetic' and 'code' in json.loads(image.text['recipe'])
    press(browser, 'Copy as code')
    until(lambda: 'checkpoints.load' in (browser.execute_script("return document.querySelector('.jp-OutputArea "
                                                                "textarea')?.value") or ''), 30, 'no code is shown')
    browser.save_screenshot(str(shown/'code.png'))


@pytest.mark.parametrize('tab, pictures', [('Severity', 6), ('Walk', 7), ('Layers', 1)])
def test_every_tab_shows_pictures(browser, shown, tab, pictures):
    press(browser, tab)
    # the last of its pictures; below Walk and Layers is the face, once more
    until(lambda: picture(browser, pictures) is not None, 60, f'{tab} is empty')
    browser.save_screenshot(str(shown/f'{tab.lower()}.png'))


def test_neighbors_come_when_the_button_is_pressed(browser, shown):
    press(browser, 'Neighbors')
    press(browser, 'Look for neighbors')
    until(lambda: picture(browser) is not None, 120, 'no neighbors')
    browser.save_screenshot(str(shown/'neighbors.png'))


def test_a_run_is_followed(browser, shown, lab):
    press(browser, 'Training')
    until(lambda: picture(browser) is not None, 60, 'no curves')
    before = picture(browser)
    press(browser, 'Follow')
    tick(lab[1]/'run', 2)
    until(lambda: changed(browser, before), 60, 'a new tick is not shown')
    press(browser, 'Follow')
    browser.save_screenshot(str(shown/'training.png'))
