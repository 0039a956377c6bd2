"""The page in a real browser: Python's answers, two networks, the camera, no network, bad input, everybody."""
import base64
import gzip
import itertools
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from photographs import pieces
from PIL import Image
from timm.data import create_transform

pytestmark = [pytest.mark.usefixtures('exporter'), pytest.mark.slow]


@pytest.fixture(scope='session')
def photographs(tmp_path_factory) -> list[Path]:
    """A hundred photographs, cut from two of scikit-learn, of all sizes from 60 to 1500 pixels and in three formats."""
    folder = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(1)
    for i, (_, image) in enumerate(pieces(100, 1)):
        if i % 4 == 0:
            image = image.resize((int(rng.integers(60, 1500)), int(rng.integers(60, 1500))), Image.Resampling.LANCZOS)
        image.save(folder / f'{i:02}.{("jpg", "png", "webp")[i % 3]}', quality=92)
    return sorted(folder.iterdir())


@pytest.fixture(scope='session')
def photograph(photographs) -> Path:
    return photographs[0]


def change(site: Path, folder: Path, **changes: object) -> Path:
    """Return a copy of a site in which the files that match a name are gone (None) or have another content."""
    shutil.copytree(site, folder)
    for name, content in changes.items():
        path, = folder.rglob(name)
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def test_answers(browser, visit, python, photographs):
    """A hundred photographs get Python's class, and logits within 1e-4 of Python's."""
    visit('fp32')
    for path in photographs:
        for name, logits in browser.answer(path).items():
            expected = python('fp32', path, name)
            assert logits.argmax() == expected.argmax(), (path, name)
            np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0, err_msg=f'{path.name}, {name}')
    assert not browser.errors()


def test_preprocessing(browser, serve, sites):
    """Every size, crop, interpolation and number of channels gives timm's tensor to the bit, of any shape of image."""
    browser.open(serve(sites['one']))
    rng = np.random.default_rng(0)
    for width, height in ((116, 318), (318, 116), (40, 30), (2, 300), (300, 2)):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        browser.js("""
            const {prepare} = await import(new URL('preprocess.js', location.href));
            const pixels = Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0)),
              [width, height] = arguments.slice(1);
            const read = (x, y, w, h) => Uint8Array.from({length: w * h * 4}, (_, i) =>
              pixels[((y + Math.floor(i / w / 4)) * width + x) * 4 + i % (w * 4)]);
            window.prepared = model => [...prepare(read, width, height, model)];
        """, base64.b64encode(pixels.tobytes()).decode(), width, height)
        image = Image.fromarray(pixels[..., :3])
        for mode, crop_pct, (h, w), interpolation, channels in itertools.product(
                ('center', 'squash', 'border'), (0.875, 1.), ((32, 32), (24, 40)), ('bicubic', 'bilinear'), (1, 3)):
            if mode == 'border' and 2 in (width, height):
                continue  # timm makes it 0 pixels wide, which is an error there
            config = dict(
                input_size=(channels, h, w), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode,
                mean=(0.485, 0.456, 0.406)[:channels], std=(0.229, 0.224, 0.225)[:channels])
            right = create_transform(**config)(image if channels == 3 else image.convert('L')).flatten().numpy()
            found = np.array(browser.js('return prepared(arguments[0])', config), np.float32)
            np.testing.assert_array_equal(found, right, err_msg=f'{width} x {height}, {config}')


def test_kinds_of_pictures(browser, visit, python, photograph, tmp_path):
    """Turned, grey, transparent and long pictures are answered as in Python; large ones are reduced first."""
    with Image.open(photograph) as opened:
        image = opened.convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    hole = image.convert('RGBA')
    hole.paste((255, 0, 0, 0), (0, 0, image.width // 2, image.height))
    visit('fp32')
    for file, picture, options in (
            ('turned.jpg', image, dict(exif=turned)), ('grey.jpg', image.convert('L'), {}), ('hole.png', hole, {}),
            ('long.png', image.resize((20_000, 1)), {})):
        picture.save(tmp_path / file, **options)
        for name, logits in browser.answer(tmp_path / file).items():
            np.testing.assert_allclose(logits, python('fp32', tmp_path / file, name), atol=1e-4, err_msg=file)
    assert browser.text('#note') == 'The network sees only the middle, 0.004 % of it.'

    image.resize((6000, 4000)).save(tmp_path / 'huge.jpg', exif=turned)  # which phones cannot hold whole
    assert len(browser.answer(tmp_path / 'huge.jpg')) == 2
    assert browser.text('#note').startswith('It has 24 million pixels and was reduced first')
    assert browser.js('const {width, height} = document.getElementById("preview"); return width < height')  # turned
    assert not browser.errors()


def test_one_network(browser, visit, python, digits):
    """One network alone, of one channel, offers an example and reads digits as in Python, without select or ratio."""
    visit('one', 1)
    browser.wait('document.getElementById("state").textContent.startsWith("Ready.")')
    browser.click('#example')
    assert browser.wait('heard.find(its => its.name === "The example")')
    for label in range(10):
        path = next((digits / 'validation' / str(label)).iterdir())
        logits = browser.answer(path, 1)['Ziffern']
        np.testing.assert_allclose(logits, python('one', path, 'Ziffern'), atol=1e-4)
    assert browser.text('#answers li:first-child').startswith(f'class {logits.argmax()}')  # its classes have no names
    browser.wait('measured.length')
    assert browser.js('return document.querySelectorAll("select").length') == 0
    assert browser.text('article h2') == 'Ziffern'
    assert browser.text('table').startswith('Ziffern ')
    assert 'Ratio' not in browser.text()
    assert browser.js('return document.getElementById("preview").getBoundingClientRect().width') > 200  # enlarged


def test_two_networks(browser, visit, python, photograph):
    """Both answer side by side, in int8 close to fp32, are timed in turn, change places, and one can go away."""
    visit('int8')
    for name, logits in browser.answer(photograph).items():
        np.testing.assert_allclose(logits, python('int8', photograph, name), atol=1e-4)
        if name == 'mobilenext_100':
            np.testing.assert_allclose(logits, python('fp32', photograph, name), atol=0.2)
    timed = browser.wait('measured[0]')
    assert timed['names'] == ['mobilenext_100', 'mobilenetv2_035']
    assert [len(times) for times in timed['times']] == [21, 21]
    rows = [row.split() for row in browser.text('#times').splitlines()]
    assert (rows[0][0], *rows[0][2:]) == ('mobilenext_100', 'ms', '1.00')
    assert float(rows[1][1]) == pytest.approx(np.median(timed['times'][1]), abs=0.06)
    shown = browser.text('article:first-of-type .bars').split('\n')
    shares = [float(percent.removesuffix(' %')) for percent in shown[1::2]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert browser.js('return document.getElementById("spoken").textContent').startswith(
        f'mobilenext_100: {shown[0]}, {shown[1]}. mobilenetv2_035: ')

    browser.select(0, 'mobilenetv2_035')
    browser.wait('document.querySelectorAll("article select")[1].value === "mobilenext_100"')
    assert list(browser.answer(photograph)) == ['mobilenetv2_035', 'mobilenext_100']
    browser.select(1, '')
    assert list(browser.answer(photograph, 1)) == ['mobilenetv2_035']
    browser.click('#measure')
    browser.wait('measured.at(-1).names.length === 1')
    assert not browser.errors()


def test_drop_and_paste(browser, visit):
    """A picture can be dropped and pasted; anything else is a sentence."""
    visit('one', 1)
    give = """
        const canvas = new OffscreenCanvas(9, 9), data = new DataTransfer();
        canvas.getContext('2d').fillRect(0, 0, 5, 5);
        if (arguments[1]) data.items.add(new File([await canvas.convertToBlob()], arguments[0]));
        const options = {dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new (arguments[0] === 'drop' ? DragEvent : ClipboardEvent)(arguments[0], options));
    """
    for way, said in (('drop', 'This is not a file'), ('paste', 'The clipboard has no picture.')):
        browser.js(give, way, True)
        browser.wait('heard.some(its => its.name === arguments[0] && its.answers.length === 1)', way)
        browser.js(give, way, False)
        assert browser.text('#message').startswith(said)


def test_offline(browser, visit, serve, photograph):
    """After one visit the page starts and answers without a server, on what it stored."""
    visit('fp32')
    browser.js('await navigator.serviceWorker.ready')
    serve.stop()
    browser.driver.refresh()
    browser.ready()
    assert len(browser.answer(photograph)) == 2
    browser.select(1, 'Ziffern')  # which was not looked at before
    browser.wait('document.querySelectorAll("article [role=alert]")[1].textContent')
    said = browser.text('article:nth-of-type(2) [role=alert]')
    assert said.startswith('Ziffern could not be loaded: it is not stored here, and the server cannot be reached.')
    assert browser.answer(photograph, 1)


def test_newer_version(browser, visit, sites, tmp_path):
    """When the site is made again, the next visit brings the new page, which forgets the networks that are gone."""
    site = change(sites['int8'], tmp_path / 'site')
    visit(site)
    browser.js('await navigator.serviceWorker.ready')
    about = json.loads((site / 'models.json').read_text())
    about['models'] = about['models'][:1]
    (site / 'models.json').write_text(json.dumps(about))
    (site / 'sw.js').write_text((site / 'sw.js').read_text().replace("const VERSION = '", "const VERSION = 'new-"))
    browser.driver.refresh()
    browser.wait('caches.keys().then(names => names.length === 2 && names.some(name => name.includes("new-")))')
    browser.driver.refresh()
    browser.ready(1)
    browser.wait('caches.open(`timm-mobilenext:${location.pathname}:files`).then(cache => cache.keys())'
                 '.then(kept => kept.length === 2)')


def test_plain_host(browser, serve, sites, photograph):
    """On a host that sends no headers, below a path, it works with one thread, with more from the second visit on."""
    url = serve(sites['int8'].parent, is_plain=True) + 'int8/'
    device = 'document.getElementById("device").textContent'
    browser.open(url)
    browser.ready()
    first = browser.answer(photograph)
    browser.wait(f'{device}.includes("one thread")')
    browser.js('await navigator.serviceWorker.ready')
    browser.open(f'{url}index.html?threads=2')
    browser.ready()
    again = browser.answer(photograph)
    browser.wait(f'{device}.includes("2 threads")')
    np.testing.assert_allclose(again['mobilenext_100'], first['mobilenext_100'], atol=1e-4)


def test_bad_pictures(browser, visit, photograph, tmp_path):
    """What cannot be classified is one sentence, the answer before it goes away, and the page continues."""
    size = struct.pack('>IIBBBBB', 20_000, 15_000, 8, 2, 0, 0, 0)
    visit('int8')
    for name, bad, said in (
            ('words.jpg', b'These are words.', 'words.jpg is not an image that this page can read. Use JPEG, PNG, '),
            ('empty.png', b'', 'empty.png is empty.'),
            ('cut.jpg', photograph.read_bytes()[:800],
             'cut.jpg is damaged or cut off: it starts as JPEG, but the browser cannot decode it.'),
            ('a.heic', b'\0\0\0\x18ftypheic\0\0\0\0', 'a.heic cannot be shown: this browser does not read HEIC'),
            ('huge.png', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + size + b'\0' * 4,
             'huge.png has 300 million pixels. Use a picture of at most 120 million.')):
        assert len(browser.answer(photograph)) == 2
        assert browser.text('#message') == ''
        (tmp_path / name).write_bytes(bad)
        browser.give(tmp_path / name)
        browser.wait('document.getElementById("message").textContent.startsWith(arguments[0])', said)
        assert browser.js('return document.querySelectorAll(".bars li").length') == 0
        assert browser.text('#stage').startswith('Ready.')


@pytest.mark.parametrize(('content', 'said'), [(None, 'the download was cut off after'), (b'no network', '')])
def test_network_that_fails(content, said, browser, serve, sites, photograph, tmp_path):
    """A network that does not load is a sentence and is not stored; the other answers, and the next visit loads it."""
    packed, = (sites['int8'] / 'files').glob('mobilenetv2*')
    bad = gzip.compress(content) if content else packed.read_bytes()[:-1000]
    about = json.loads((sites['int8'] / 'models.json').read_text())
    if content:
        about['models'][1]['file'].update(bytes=len(bad), size=len(content))
    site = change(sites['int8'], tmp_path / 'site', **{packed.name: bad, 'models.json': about})
    browser.open(serve(site))
    browser.wait('document.querySelectorAll("article [role=alert]")[1]?.textContent')
    alert = browser.text('article:nth-of-type(2) [role=alert]')
    assert alert.startswith(f'mobilenetv2_035 could not be loaded: {said}')
    assert list(browser.answer(photograph, 1)) == ['mobilenext_100']
    assert browser.js('return await caches.match(arguments[0]) === undefined', f'files/{packed.name}')
    if not content:
        shutil.copy(packed, site / 'files')
        browser.driver.refresh()
        browser.ready()


@pytest.mark.parametrize(('missing', 'said'), [
    ('models.json', 'The list of networks could not be loaded: the server answers 404. Load the page again.'),
    ('worker.js', 'Ziffern could not be loaded: a file of the page is missing.'),
    ('', 'This browser is too old to run the network.'),
])
def test_page_that_misses_a_part(missing, said, browser, serve, sites, tmp_path):
    """A part of the site that is missing, and what an old browser lacks, are a sentence."""
    site = change(sites['one'], tmp_path / 'site', **({missing: None} if missing else {}))
    browser.open(serve(site, is_plain=True), '' if missing else 'delete window.OffscreenCanvas')
    browser.wait('document.querySelector("main").innerText.includes(arguments[0])', said)


def test_no_storage(browser, serve, sites, photograph):
    """The page works if the storage is full, and without any."""
    url = serve(sites['int8'])
    browser.driver.get(url + 'README.md')  # the quota is that of an origin that is open
    browser.cdp('Storage.overrideQuotaForOrigin', origin=url.rstrip('/'), quotaSize=100_000)
    for before in ('', 'delete window.caches; delete Navigator.prototype.serviceWorker;'):
        browser.open(url, before)
        browser.ready()
        assert len(browser.answer(photograph)) == 2


def test_camera(chromium, serve, sites):
    """The camera is classified live, a picture is taken and classified, and the camera stops."""
    browser = chromium('use-fake-device-for-media-stream', 'use-fake-ui-for-media-stream')
    with browser.driver:
        browser.open(serve(sites['int8']))
        browser.ready()
        browser.click('#camera')
        browser.wait('heard.filter(its => its.name === "camera" && its.answers.length === 2).length > 4')
        assert browser.text('#camera') == 'Stop the camera'
        assert browser.text('article:first-of-type .ms').endswith(' ms')
        browser.click('#shoot')
        browser.wait('heard.some(its => its.name === "The photograph" && its.answers.length === 2)')
        assert browser.js('return document.getElementById("video").srcObject') is None
        assert browser.text('#camera') == 'Camera'


def test_no_camera(browser, visit):
    """No camera, a refused one, and a page that may not have one, are a sentence."""
    def click(said: str) -> None:
        browser.click('#camera')
        browser.wait('document.getElementById("message").textContent.startsWith(arguments[0])', said)

    visit('one', 1)
    click('This device has no camera.')
    browser.js('navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError") }')
    click('The browser does not allow the camera')
    visit('one', 1, 'delete Navigator.prototype.mediaDevices; '
          'Object.defineProperty(window, "isSecureContext", {value: false})')
    click('Browsers allow the camera only over https')


@pytest.mark.parametrize(('width', 'height'), [(400, 740), (1200, 800)])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_everybody(width, height, dark, browser, visit, sites, npm, photograph):
    """On phones and desktops, light and dark: axe finds no fault, nothing is wider than the screen, keys reach all."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def violations() -> list:
        return [(its['id'], its['nodes'][0]['html']) for its in browser.js('return (await axe.run()).violations')]

    browser.size(width, height, dark)
    visit('int8')
    browser.cdp('Runtime.evaluate', expression=(npm / 'axe-core' / 'axe.min.js').read_text())
    assert violations() == []
    browser.answer(photograph)
    browser.wait('measured.length')
    browser.js('document.querySelectorAll("details").forEach(its => its.open = true);'
               'document.querySelector("td").textContent = "1234.5 ms"')
    assert violations() == []
    assert browser.js('return document.documentElement.scrollWidth <= innerWidth')
    assert browser.js('return document.querySelector("td").getBoundingClientRect().height') < 40  # one line
    assert ('drop' in browser.text()) == (width > 600)
    labels = browser.driver.find_elements('css selector', '.bars li span:first-child')
    assert {label.text for label in labels} <= {*json.loads((sites['int8'] / 'models.json').read_text())['labels'][0]}
    assert all(label.rect['x'] >= 0 and label.rect['x'] + label.rect['width'] <= width for label in labels)
    reached = []
    for _ in range(10):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(browser.js('return document.activeElement.id || document.activeElement.tagName'))
    assert reached == ['file', 'camera', 'SELECT', 'SUMMARY', 'SELECT', 'SUMMARY', 'SUMMARY', 'measure', 'A', 'A']
