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
import pytest
import timm
import torch
from networks import SHORT, need
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data import create_transform

from timm_mobilenext.deploy import runtimes, web

ROOT = Path(__file__).parents[3]
CHROMIUM, DRIVER = (
    shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver'))
SIZE = 64  # pixels
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


def crop(photograph: Image.Image, part: int, rng: np.random.Generator) -> Image.Image:
    """Return a piece of a fifth of a photograph, of any size and shape."""
    left, right = part * photograph.width // 5, (part + 1) * photograph.width // 5
    width, height = rng.integers(60, right - left), rng.integers(120, photograph.height)
    x, y = rng.integers(left, right - width + 1), rng.integers(0, photograph.height - height + 1)
    return photograph.crop((x, y, x + width, y + height))


@pytest.fixture(scope='session')
def pictures() -> Callable[[int, int], Iterator[tuple[int, Image.Image]]]:
    """A function that cuts pieces from the two photographs of scikit-learn; the class is which and from where of it."""
    photographs = [Image.fromarray(image) for image in load_sample_images().images]

    def cut(count: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
        rng = np.random.default_rng(seed)
        for i in range(count):
            yield i % 10, crop(photographs[i % 10 // 5], i % 5, rng)
    return cut


@pytest.fixture(scope='session')
def trained_folders(pictures, tmp_path_factory) -> list[Path]:
    """Folders of a short MobileNeXt and a narrow MobileNetV2 that were trained on such pieces."""
    config = dict(input_size=(3, SIZE, SIZE), interpolation='bicubic', crop_pct=0.875)
    transform = create_transform(**config)
    labels, images = zip(*pictures(400, 0), strict=True)
    images, labels = torch.stack([transform(image) for image in images]), torch.tensor(labels)
    folders = []
    for name, kwargs in (('mobilenext_100', dict(width_mult=0.5, **SHORT)), ('mobilenetv2_035', {})):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **kwargs)
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=104)
        for chosen in (chosen for _ in range(8) for chosen in torch.randperm(len(images)).split(32)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=0.3).backward()
            optimizer.step()
            scheduler.step()
        model.eval()
        with torch.inference_mode():
            assert (model(images).argmax(1) == labels).float().mean() > 0.6  # they have learned something
        model.pretrained_cfg.update(config)
        folders.append(tmp_path_factory.mktemp('trained') / name)
        timm.models.save_for_hf(
            model, folders[-1], safe_serialization=True, model_args=kwargs, model_config=dict(label_names=LABELS))
    return folders


@pytest.fixture(scope='session')
def sites(exporter, npm, trained_folders, trained, tmp_path_factory) -> dict[str, Path]:
    """Sites: these in fp32 with a network of one channel that reads digits, these in int8, and the digits' alone."""
    folder, networks, digits = tmp_path_factory.mktemp('sites'), [*map(str, trained_folders)], f'Ziffern={trained}'
    sources = {'fp32': [*networks, digits], 'int8': networks, 'one': [digits]}
    for name, models in sources.items():  # keep: the MobileNetV2 is trained so little that int8 may cost it too much
        web.make(models, folder / name, weights='fp32' if name == 'fp32' else 'int8',
                 runtime=npm / 'onnxruntime-web', keep=True)
    return {name: folder / name for name in sources}


class Expected:
    """What Python answers: timm's transform, and ONNX Runtime."""

    def __init__(self, site: Path, folder: Path) -> None:
        self.models = json.loads((site / 'models.json').read_text())['models']
        self.runs = {}
        for i, model in enumerate(self.models):
            path = folder / f'{i}.onnx'
            path.write_bytes(gzip.decompress((site / model['file']['path']).read_bytes()))
            self.runs[model['name']] = runtimes.load(path, threads=1)

    def __call__(self, picture: Path, name: str, **changed: Any) -> np.ndarray:
        """Return the logits of a network for a picture, with changes to its config."""
        config = next(model for model in self.models if model['name'] == name) | changed
        keys = ('input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
        transform = create_transform(**{key: config[key] for key in keys})
        with Image.open(picture) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert('RGBA')
                image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
            image = image.convert('RGB').convert(config['input'])
        return self.runs[name](transform(image)[None].numpy()).flatten()


@pytest.fixture(scope='session')
def python(sites, tmp_path_factory) -> dict[str, Expected]:
    """Functions from a picture and the name of a network to the logits of its file, for each site."""
    return {name: Expected(site, tmp_path_factory.mktemp('expected')) for name, site in sites.items()}


@pytest.fixture(scope='session')
def expected(python) -> Expected:
    """A function from a picture and the name of a network to its logits in fp32."""
    return python['fp32']


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """A function that serves a site, as our server does or as a host that sends no headers of its own."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(folder: Path, is_plain: bool = False) -> str:
        if is_plain:
            class Silent(http.server.SimpleHTTPRequestHandler):
                def log_message(self, *args: object) -> None:
                    pass
            server = http.server.ThreadingHTTPServer(
                ('127.0.0.1', 0), functools.partial(Silent, directory=str(folder)))
        else:
            server = web.server(folder)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_address[1]}/'

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
        for option in (
                'headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-sync',
                'disable-background-networking', 'disable-component-update', *options):
            chosen.add_argument(f'--{option}')
        chosen.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        self.driver = webdriver.Chrome(chosen, webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(30)
        self.scripts: list[str] = []
        self.size(1280, 800)

    def size(self, width: int, height: int, dark: bool = False) -> None:
        """Give the page a size in pixels, and light or dark colours; a narrow one is touched."""
        self.cdp('Emulation.setTouchEmulationEnabled', enabled=width < 600)
        self.cdp(
            'Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.cdp('Emulation.setEmulatedMedia', features=[
            dict(name='prefers-color-scheme', value='dark' if dark else 'light')])

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
        self.scripts = [
            self.cdp('Page.addScriptToEvaluateOnNewDocument', source=listen + before)['identifier']]
        self.driver.get_log('browser')
        self.driver.get(url)

    def js(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page; what it returns may be a promise."""
        return self.driver.execute_async_script(
            f'const done = arguments[arguments.length - 1]; (async (...arguments) => {{ {script} }})(...arguments)'
            '.then(value => done([value]), error => done([undefined, String(error)]));', *arguments)[0]

    def wait(self, script: str, *arguments: Any) -> Any:
        """Wait until an expression of the page is true, and return it."""
        from selenium.common.exceptions import TimeoutException
        from selenium.webdriver.support.ui import WebDriverWait

        try:
            return WebDriverWait(self.driver, 30, 0.02).until(
                lambda driver: driver.execute_script(f'return {script}', *arguments))
        except TimeoutException:
            raise AssertionError(f'{script} was never true; the page says:\n{self.text()}\n{self.errors()}') from None

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
        """Choose a file, as a user would."""
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
    if not (CHROMIUM and DRIVER) and 'CI' not in os.environ:
        pytest.skip('there is no chromium with a chromedriver on this machine')
    if importlib.util.find_spec('selenium') is None and 'CI' not in os.environ:
        pytest.skip("selenium is not installed, which the extra 'browser' brings")
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
