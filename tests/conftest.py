"Fixtures that several test files share"
import shutil
import signal

import pytest

if hasattr(signal, 'SIGHUP'): signal.signal(signal.SIGHUP, signal.SIG_DFL)   # under nohup it would be ignored, and tests send it

FLAGS = ('--headless --no-sandbox --disable-dev-shm-usage --disable-gpu --disable-quic --no-first-run '
         '--disable-background-networking --disable-component-update --disable-sync'.split())


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    "Start Chromium without a screen, where it is installed"
    chromium, driver = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
    if not (chromium and driver):
        pytest.skip('no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)')
    webdriver = pytest.importorskip('selenium.webdriver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}']: options.add_argument(flag)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()
