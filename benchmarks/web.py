"""Measure the page that runs the networks in a browser: latency, seconds to the first answer, large photographs.

    npm install onnxruntime-web@1.30.0 && pip install '.[browser,compare,quickstart,web]' && python benchmarks/web.py

Needs Chromium and its driver. The networks have untrained weights, which take as long as others. The page itself times
each pair of networks, in turn. The first answer is measured at 10 Mbit/s, with a picture that is chosen at once.
"""
import argparse
import contextlib
import csv
import json
import shutil
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.optim.swa_utils import update_bn

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.deploy import web

NETWORKS = ('mobilenext_100', 'mobilenext_100_id050', 'mobilenetv2_100')
FP32 = 'mobilenext_100, fp32'
PAIRS = [  # the second is measured over the first
    ('mobilenetv2_100', 'mobilenext_100'), ('mobilenext_100', 'mobilenext_100_id050'), (FP32, 'mobilenext_100')]
NETWORK = dict(offline=False, latency=40, downloadThroughput=10e6 / 8, uploadThroughput=10e6 / 8)  # ms, bytes a second


def build(folder: Path, runtime: Path | None) -> Path:
    """Make a site of the networks with int8 weights, and of the first in fp32 too."""
    for name in NETWORKS:
        torch.manual_seed(0)
        model = timm.create_model(name)
        update_bn([torch.randn(8, 3, 96, 96)], model)
        timm.models.save_for_hf(model, folder / name, safe_serialization=True)
    site, other = folder / 'site', folder / 'other'
    about = web.make([str(folder / name) for name in NETWORKS], site, runtime=runtime, keep=True)
    about['models'] += web.make(
        [f'{FP32}={folder / NETWORKS[0]}'], other, weights='fp32', runtime=runtime, keep=True)['models']
    shutil.copytree(other / 'files', site / 'files', dirs_exist_ok=True)
    (site / 'models.json').write_text(json.dumps(about))
    return site


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium without a window and with an empty profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium') or shutil.which('google-chrome')
    for option in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-background-networking', 'disable-sync'):
        options.add_argument(f'--{option}')
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which('chromedriver')))
    driver.set_script_timeout(120)
    driver.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument', dict(source="""
        window.heard = []; window.measured = [];
        document.addEventListener('answer', ({detail}) => heard.push({...detail, at: performance.now()}));
        document.addEventListener('measured', ({detail}) => measured.push(detail));
    """))
    try:
        yield driver
    finally:
        driver.quit()


def wait(driver: Any, expression: str) -> Any:
    """Wait until an expression of the page is true, and return it."""
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(driver, 120, 0.02).until(lambda its: its.execute_script(f'return {expression}'))


def select(driver: Any, *names: str) -> None:
    """Choose the networks, and wait until both can answer."""
    for place, name in enumerate(names):
        driver.execute_script(
            'const its = document.querySelectorAll("article select")[arguments[0]]; its.value = arguments[1];'
            'its.dispatchEvent(new Event("change"))', place, name)
    wait(driver, '[...document.querySelectorAll("article > div:not([hidden]) > .loading")].every(its => its.hidden)')


def latency(url: str, threads: int, row: Callable[..., None]) -> None:
    """Time each pair of networks, in turn."""
    with browser() as driver:
        driver.get(f'{url}?threads={threads}')
        wait(driver, 'document.querySelectorAll("article select").length === 2')
        for pair in PAIRS:
            select(driver, '', '')
            select(driver, *pair)
            driver.execute_script('measured.length = 0; document.getElementById("measure").click()')
            first, second = (statistics.median(times) for times in wait(driver, 'measured[0]')['times'])
            row('latency over', f'{pair[1]} / {pair[0]}', second / first, 'ratio', threads)
            row('latency', pair[0], first, 'ms', threads)
            row('latency', pair[1], second, 'ms', threads)


def first_answer(url: str, picture: Path, row: Callable[..., None]) -> None:
    """Measure the seconds to the first answer, on a first visit and on the next one, medians of three."""
    seconds: dict[str, list[float]] = {'cold': [], 'warm': []}
    for _ in range(3):
        with browser() as driver:
            driver.execute_cdp_cmd('Network.enable', {})
            driver.execute_cdp_cmd('Network.emulateNetworkConditions', NETWORK)
            for visit in seconds:
                driver.get(url)
                driver.find_element('id', 'file').send_keys(str(picture))
                seconds[visit].append(wait(driver, 'heard[0]?.at') / 1e3)
                driver.execute_async_script('navigator.serviceWorker.ready.then(arguments[0])')
                wait(driver, 'measured.length')
    for visit, measured in seconds.items():
        row(f'first answer, {visit}', NETWORKS[0], statistics.median(measured), 's')


def large(url: str, folder: Path, row: Callable[..., None]) -> None:
    """Measure how long 12 megapixels take, and how long the page cannot draw meanwhile."""
    picture = Image.fromarray(load_sample_image('china.jpg')).resize((4000, 3000), Image.Resampling.BICUBIC)
    with browser() as driver:
        driver.get(url)
        wait(driver, 'document.querySelectorAll("article select").length === 2')
        select(driver, NETWORKS[0], '')
        driver.execute_script("""
            window.gap = 0;
            let last = performance.now();
            const tick = now => { gap = Math.max(gap, now - last); last = now; requestAnimationFrame(tick); };
            requestAnimationFrame(tick);
        """)
        for name, turned in (('wide', picture), ('tall', picture.transpose(Image.Transpose.ROTATE_90))):
            path = folder / f'{name}.jpg'
            turned.save(path, quality=90)
            times = []
            for _ in range(9):
                driver.execute_script('heard.length = 0; window.gap = 0')
                driver.find_element('id', 'file').send_keys(str(path))
                times.append(wait(driver, 'heard[0]')['ms'] | {'gap': driver.execute_script('return gap')})
            for part, what in (('decode', 'decoding'), ('prepare', 'resizing, cropping, normalizing'),
                               ('gap', 'longest time without a frame')):
                row(f'12 megapixels, {name}: {what}', '', statistics.median(time[part] for time in times), 'ms')
            row(f'12 megapixels, {name}: first resizing', '', times[0]['prepare'], 'ms')


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the medians of the networks with one thread."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    timed = [row for row in rows if row['what'] == 'latency' and str(row['threads']) == '1']
    of = {row['network']: float(row['value']) for row in timed}
    figure, axes = plt.subplots(figsize=(6, 2.6), layout='constrained')
    axes.barh([*of], [*of.values()])
    axes.invert_yaxis()
    axes.set_xlabel('ms of one image at 224 px in WebAssembly, one thread')
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runtime', type=Path, metavar='DIR', help='see `python -m timm_mobilenext web`')
    parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'results', help='folder of the results')
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def row(what: str, network: str, value: float, unit: str, threads: int = 1) -> None:
        rows.append(dict(what=what, network=network, value=f'{value:.4g}', unit=unit, threads=threads))
        print(*rows[-1].values(), sep=', ', flush=True)

    with tempfile.TemporaryDirectory() as work:
        site = build(Path(work), args.runtime)
        models = json.loads((site / 'models.json').read_text())
        for model in models['models']:
            row('file', model['name'], model['file']['size'] / 1e6, 'MB')
            row('to download', model['name'], model['file']['bytes'] / 1e6, 'MB')
        row('to download', 'runtime', models['runtime']['bytes'] / 1e6, 'MB')
        picture = Path(work) / 'china.jpg'
        Image.fromarray(load_sample_image('china.jpg')).save(picture, quality=95)
        with web.server(site) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f'http://127.0.0.1:{server.server_address[1]}/'
            for threads in (1, 2):
                latency(url, threads, row)
            first_answer(url, picture, row)
            large(url, Path(work), row)
            server.shutdown()
    args.output.mkdir(exist_ok=True)
    with (args.output / 'web.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, args.output / 'web.png')


if __name__ == '__main__':
    main()
