"""A real browser, sites of networks that are trained here, and Python's answers to the same pictures."""
import functools
import gzip
import http.server
import importlib.util
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
from networks import SHORT, need
from PIL import Image, ImageOps
from timm.data import create_transform

from timm_mobilenext.deploy import runtimes, web

ROOT = Path(__file__).parents[3]
CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
# Names of classes: long as German ones are, written from right to left, with what HTML would take for its own.
LABELS = [
    'Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen', 'برج المعبد الصيني القديم', 'שמיים וענפים',
    '<b>roof</b>', 'lake & shore', '湖', 'petal, yellow', 'Blütenstand der Gewöhnlichen Sonnenblumengewächse', 'stem',
    'ground']


@pytest.fixture(scope='session')
def exporter() -> None:
    if importlib.util.find_spec('timmx') is None:
        pytest.skip("timmx is not installed, which the extra 'web' brings")
    need('onnx')


@pytest.fixture(scope='session')
def npm() -> Path:
    """The folder of npm's packages."""
    folder = Path(os.environ.get('NODE_MODULES', ROOT / 'node_modules')).absolute()
    if not (folder / 'onnxruntime-web').is_dir() and 'CI' not in os.environ:
        pytest.skip(f'npm has not installed the packages of tests/deploy/web/package.json in {folder}')
    return folder


@pytest.fixture(scope='session')
def trained_folders(tmp_path_factory) -> list[Path]:
    """Folders of a short MobileNeXt and a narrow MobileNetV2 that were trained on pieces of photographs."""
    folder = tmp_path_factory.mktemp('trained')
    photographs.train('mobilenext_100', folder / 'mobilenext_100', width_mult=0.5, **SHORT)
    photographs.train('mobilenetv2_035', folder / 'mobilenetv2_035')
    return [folder / 'mobilenext_100', folder / 'mobilenetv2_035']


@pytest.fixture(scope='session')
def sites(exporter, npm, trained_folders, trained, tmp_path_factory) -> dict[str, Path]:
    """Sites: these in fp32 with a network of one channel that reads digits, these in int8, and the digits' alone."""
    folder, networks, digits = tmp_path_factory.mktemp('sites'), [*map(str, trained_folders)], f'Ziffern={trained}'
    sources = {'fp32': [*networks, digits], 'int8': networks, 'one': [digits]}
    for name, models in sources.items():  # keep: the MobileNetV2 is trained so little that int8 may cost it too much
        web.make(models, folder / name, weights='fp32' if name == 'fp32' else 'int8', keep=True,
                 label_names=None if name == 'one' else LABELS, runtime=npm / 'onnxruntime-web')
    return {name: folder / name for name in sources}


@pytest.fixture(scope='session')
def python(sites, tmp_path_factory) -> Callable[[str, Path, str], np.ndarray]:
    """A function from a site, a picture and a network's name to the logits of timm's transform and ONNX Runtime."""
    @functools.cache
    def load(site: str, name: str) -> tuple[runtimes.Run, Callable, str]:
        models = json.loads((sites[site] / 'models.json').read_text())['models']
        about = next(model for model in models if model['name'] == name)
        path = tmp_path_factory.mktemp('expected') / 'model.onnx'
        path.write_bytes(gzip.decompress((sites[site] / about['file']['path']).read_bytes()))
        keys = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
        return runtimes.load(path, threads=1), create_transform(**{key: about[key] for key in keys}), about['input']

    def logits(site: str, picture: Path, name: str) -> np.ndarray:
        run, transform, mode = load(site, name)
        with Image.open(picture) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
            return run(transform(image.convert('RGB').convert(mode))[None].numpy()).flatten()
    return logits


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A function that serves a site, as our server does or as a host that sends no headers of its own."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path, is_plain: bool = False) -> str:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) if is_plain else web.server(folder))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_address[1]}/'

    def stop() -> None:
        while servers:
            server = servers.pop()
            server.shutdown()
            server.server_close()

    start.stop = stop  # type: ignore[attr-defined]
    yield start
    stop()


class Browser:
    """Chromium without a window, on a page."""

    def __init__(self, *options: str) -> None:
        from selenium import webdriver

        chosen = webdriver.ChromeOptions()
        chosen.binary_location = CHROMIUM
        for option in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-background-networking', *options):
            chosen.add_argument(f'--{option}')
        chosen.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        self.driver = webdriver.Chrome(chosen, webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(30)
        self.scripts: list[str] = []
        self.size(1280, 800)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Give the page a size in pixels, and light or dark colours; a narrow one is touched."""
        is_phone, colours = width < 600, 'dark' if dark else 'light'
        self.cdp('Emulation.setTouchEmulationEnabled', enabled=is_phone)
        self.cdp('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=is_phone)
        self.cdp('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=colours)])

    def cdp(self, command: str, **arguments: Any) -> Any:
        """Run a command of the Chrome DevTools Protocol, and return its result."""
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, url: str, before: str = '') -> None:
        """Open a page, with a script that runs before its own."""
        for script in self.scripts:
            self.cdp('Page.removeScriptToEvaluateOnNewDocument', identifier=script)
        listen = """
            window.heard = []; window.measured = [];
            document.addEventListener('answer', event => heard.push(event.detail));
            document.addEventListener('measured', event => measured.push(event.detail));
        """
        self.scripts = [self.cdp('Page.addScriptToEvaluateOnNewDocument', source=listen + before)['identifier']]
        self.driver.get_log('browser')
        self.driver.get(url)

    def js(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; what it returns may be a promise."""
        return self.driver.execute_async_script(
            f'const done = arguments[arguments.length - 1]; (async (...arguments) => {{ {script} }})(...arguments)'
            '.then(value => done([value]), error => done([undefined, String(error)]));', *arguments)[0]

    def wait(self, script: str, *arguments: Any) -> Any:
        """Wait until an expression of the page is true, and return it."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, 0.02).until(
            lambda driver: driver.execute_script(f'return {script}', *arguments), f'{script} was never true')

    def text(self, element: str = 'body') -> str:
        """Return the text that an element shows."""
        return self.driver.find_element('css selector', element).text

    def errors(self) -> list[str]:
        """Return the errors in the console."""
        return [entry['message'] for entry in self.driver.get_log('browser') if entry['level'] == 'SEVERE']

    def click(self, element: str) -> None:
        """Click on an element."""
        self.driver.find_element('css selector', element).click()

    def select(self, place: int, name: str) -> None:
        """Choose a network in the first or the second place."""
        from selenium.webdriver.support.ui import Select

        Select(self.driver.find_elements('css selector', 'article select')[place]).select_by_value(name)

    def ready(self, count: int = 2) -> None:
        """Wait until this many networks can answer."""
        self.wait('document.querySelectorAll("article").length'
                  ' && [...document.querySelectorAll("article > div:not([hidden]) > .loading")]'
                  '.filter(its => its.hidden).length === arguments[0]', count)

    def give(self, path: Path) -> None:
        """Choose a file."""
        self.driver.find_element('id', 'file').send_keys(str(path))

    def answer(self, path: Path, count: int = 2) -> dict[str, np.ndarray]:
        """Choose a file, and return the logits of this many networks."""
        self.js('heard.length = 0')
        self.give(path)
        answers = self.wait(
            '(its => its?.name === arguments[0] && its.answers.length === arguments[1] && its.answers)(heard.at(-1))',
            path.name, count)
        return {answer['name']: np.array(answer['logits']) for answer in answers}


@pytest.fixture(scope='session')
def chromium(exporter, npm) -> Callable[..., Browser]:
    """A function that starts a browser."""
    if not (CHROMIUM and DRIVER and importlib.util.find_spec('selenium')) and 'CI' not in os.environ:
        pytest.skip("chromium, chromedriver or selenium is not installed; the extra 'browser' brings the last")
    return Browser


@pytest.fixture(scope='session')
def shared_browser(chromium) -> Iterator[Browser]:
    browser = chromium()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(shared_browser) -> Iterator[Browser]:
    """A browser at the size of a desktop, that has seen no site of this test."""
    shared_browser.size(1280, 800)
    yield shared_browser
    shared_browser.driver.get('about:blank')


@pytest.fixture
def visit(browser, serve, sites) -> Callable[..., str]:
    """A function that opens a site, one of `sites` or a folder, and waits until its networks can answer."""
    def visit(site: str | Path, count: int = 2, before: str = '') -> str:
        url = serve(sites.get(site, site))
        browser.open(url, before)
        browser.ready(count)
        return url
    return visit
