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
from PIL import Image
from timm.data import create_transform

pytestmark = [pytest.mark.usefixtures('exporter'), pytest.mark.slow]
FORMATS = {'jpg': dict(quality=92), 'png': {}, 'webp': dict(quality=90)}
FAKE_CAMERA = ('use-fake-device-for-media-stream', 'use-fake-ui-for-media-stream')


@pytest.fixture(scope='session')
def photographs(pictures, tmp_path_factory) -> list[Path]:
    """A hundred photographs, cut from two of scikit-learn, of all sizes from 60 to 1500 pixels and in three formats."""
    folder = tmp_path_factory.mktemp('photographs')
    rng = np.random.default_rng(1)
    paths = []
    for i, (_, image) in enumerate(pictures(100, 1)):
        suffix, options = [*FORMATS.items()][i % 3]
        if i % 4 == 0:
            image = image.resize((int(rng.integers(60, 1500)), int(rng.integers(60, 1500))), Image.Resampling.LANCZOS)
        paths.append(folder / f'{i}.{suffix}')
        image.save(paths[-1], **options)
    return paths


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


def test_answers(browser, visit, expected, photographs):
    """A hundred photographs get Python's class, and logits within 1e-4 of Python's."""
    visit('fp32')
    worst: dict[str, float] = {}
    for path in photographs:
        for name, logits in browser.answer(path).items():
            right = expected(path, name)
            assert logits.argmax() == right.argmax(), (path, name)
            worst[name] = max(worst.get(name, 0.), np.abs(logits - right).max())
    print(f'largest difference of a logit: {worst}')
    assert max(worst.values()) < 1e-4
    browser.select(1, 'Ziffern')  # of another size, mean, std and number of channels
    for name, logits in browser.answer(path).items():
        np.testing.assert_allclose(logits, expected(path, name), atol=1e-4)
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


def test_kinds_of_pictures(browser, visit, expected, photograph, tmp_path):
    """Turned, grey, transparent, indexed and printed pictures, and large ones, are answered as Python answers them."""
    with Image.open(photograph) as opened:
        image = opened.convert('RGB')
    turned = Image.Exif()
    turned[0x0112] = 6
    hole = image.convert('RGBA')
    hole.paste((255, 0, 0, 0), (0, 0, image.width // 2, image.height))
    large = image.resize((4000, 3000), Image.Resampling.BICUBIC)
    visit('fp32')
    for file, picture, options in (
            ('turned.jpg', image, dict(exif=turned)), ('grey.jpg', image.convert('L'), {}), ('hole.png', hole, {}),
            ('indexed.png', image.quantize(16), {}), ('first.gif', image.quantize(16), {}),
            ('printed.jpg', image.convert('CMYK'), {}), ('plain.bmp', image, {}),
            ('some.avif', image, dict(quality=80)), ('large.jpg', large, {}),
            ('tall.jpg', large.transpose(Image.Transpose.ROTATE_90), {}), ('tiny.png', image.resize((3, 2)), {}),
            ('long.png', image.resize((20_000, 1)), {}), ('thin.png', image.resize((1, 20_000)), {})):
        picture.save(tmp_path / file, **options)
        for name, logits in browser.answer(tmp_path / file).items():
            np.testing.assert_allclose(logits, expected(tmp_path / file, name), atol=1e-4, err_msg=file)
    assert browser.text('#note') == 'The network sees only the middle, 0.004 % of it.'

    huge = image.resize((6000, 4000))  # which phones cannot hold whole
    huge.save(tmp_path / 'huge.jpg', exif=turned)
    huge.save(tmp_path / 'unturned.jpg')
    for name, logits in browser.answer(tmp_path / 'huge.jpg').items():
        right, wrong = (expected(tmp_path / path, name) for path in ('huge.jpg', 'unturned.jpg'))
        assert np.abs(logits - right).max() < np.abs(logits - wrong).max() / 2
    assert browser.text('#note').startswith('It has 24 million pixels and was reduced first')
    assert browser.js('const {width, height} = document.getElementById("preview"); return width < height')
    assert not browser.errors()


def test_one_network(browser, visit, python, digits):
    """One network alone, of one channel, reads digits as in Python, with no choice of networks and no ratio."""
    visit('one', 1)
    for label in range(10):
        path = next((digits / 'validation' / str(label)).iterdir())
        logits = browser.answer(path, 1)['Ziffern']
        np.testing.assert_allclose(logits, python['one'](path, 'Ziffern'), atol=1e-4)
        assert logits.argmax() == label
    assert browser.text('#answers li:first-child').startswith('class 9')  # its classes have no names
    browser.wait('measured.length')
    assert browser.js('return document.querySelectorAll("select").length') == 0
    assert browser.text('article h2') == 'Ziffern'
    assert browser.text('table').startswith('Ziffern ')
    assert 'Ratio' not in browser.text()
    width = browser.js('return document.getElementById("preview").getBoundingClientRect().width')
    assert width > 200  # 8 pixels of the file, enlarged


def test_two_networks(browser, visit, python, photograph):
    """Both answer side by side, in int8 close to fp32, are timed in turn, change places, and one can go away."""
    visit('int8')
    for name, logits in browser.answer(photograph).items():
        np.testing.assert_allclose(logits, python['int8'](photograph, name), atol=1e-4)
        if name == 'mobilenext_100':
            np.testing.assert_allclose(logits, python['fp32'](photograph, name), atol=0.2)
    timed = browser.wait('measured[0]')
    assert timed['names'] == ['mobilenext_100', 'mobilenetv2_035']
    assert [len(times) for times in timed['times']] == [21, 21]
    rows = [row.split() for row in browser.text('#times').splitlines()]
    assert (rows[0][0], *rows[0][2:]) == ('mobilenext_100', 'ms', '1.00')
    assert float(rows[1][1]) == pytest.approx(np.median(timed['times'][1]), abs=0.06)
    assert 'one thread on ' in browser.js('return document.getElementById("device").textContent')
    shown = [item.text.split('\n') for item in browser.driver.find_elements('css selector', 'article:first-of-type li')]
    shown = [row for row in shown if len(row) == 2]  # the others are of the details, which are closed
    shares = [float(percent.removesuffix(' %')) for _, percent in shown]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert browser.js('return document.getElementById("spoken").textContent').startswith(
        f'mobilenext_100: {shown[0][0]}, {shown[0][1]}. mobilenetv2_035: ')

    browser.select(0, 'mobilenetv2_035')
    browser.wait('document.querySelectorAll("article select")[1].value === "mobilenext_100"')
    assert list(browser.answer(photograph)) == ['mobilenetv2_035', 'mobilenext_100']
    browser.select(1, '')
    assert list(browser.answer(photograph, 1)) == ['mobilenetv2_035']
    browser.js('measured.length = 0')
    browser.click('#measure')
    assert browser.wait('measured[0]')['names'] == ['mobilenetv2_035']
    assert not browser.errors()


def test_drop_and_paste(browser, visit, photograph):
    """A picture can be dropped and pasted; anything else is a sentence."""
    visit('int8')
    right = browser.answer(photograph)['mobilenext_100']
    give = """
        const file = new File([Uint8Array.from(atob(arguments[0]), c => c.charCodeAt(0))], 'given.jpg');
        const data = new DataTransfer();
        if (arguments[2]) data.items.add(file); else data.setData('text/plain', 'words');
        heard.length = 0;
        const options = {dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true};
        document.body.dispatchEvent(arguments[1] === 'drop' ?
          new DragEvent('drop', options) : new ClipboardEvent('paste', options));
    """
    content = base64.b64encode(photograph.read_bytes()).decode()
    for way, said in (('drop', 'That was not a file'), ('paste', 'There is no picture in the clipboard.')):
        browser.js(give, content, way, True)
        answers = browser.wait('heard.find(its => its.name === "given.jpg" && its.answers.length === 2)')['answers']
        np.testing.assert_array_equal(answers[0]['logits'], right)
        browser.js(give, content, way, False)
        assert browser.text('#message').startswith(said)


def test_example(browser, visit):
    """Before the first picture the page says that it is ready, and has a picture to try."""
    visit('one', 1)
    browser.wait('document.getElementById("state").textContent.startsWith("Ready.")')
    browser.click('#example')
    answer, = browser.wait('heard.find(its => its.name === "The example")')['answers']
    assert len(answer['logits']) == 10
    pixels = browser.js("""
        const {data} = document.getElementById('preview').getContext('2d').getImageData(0, 0, 480, 480);
        return new Set(new Uint32Array(data.buffer)).size""")
    assert pixels > 1000  # colours: the drawing is there


def test_offline(browser, visit, serve, photograph):
    """After one visit the page starts and answers without a server, on what it stored."""
    visit('fp32')
    first = browser.answer(photograph)
    browser.js('await navigator.serviceWorker.ready')
    serve.stop()
    browser.driver.refresh()
    browser.ready()
    again = browser.answer(photograph)
    for name, logits in first.items():
        np.testing.assert_allclose(again[name], logits, atol=1e-5)
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
    assert not browser.js('return crossOriginIsolated')
    browser.wait(f'{device}.includes("one thread")')
    browser.js('await navigator.serviceWorker.ready')
    browser.open(f'{url}index.html?threads=2')
    browser.ready()
    assert browser.js('return crossOriginIsolated')
    again = browser.answer(photograph)
    browser.wait(f'{device}.includes("2 threads")')
    for name, logits in first.items():
        np.testing.assert_allclose(again[name], logits, atol=1e-4)
    assert not browser.errors()


def test_bad_pictures(browser, visit, photograph, tmp_path):
    """What cannot be classified is one sentence, the answer before it goes away, and the page continues."""
    size = struct.pack('>IIBBBBB', 20_000, 15_000, 8, 2, 0, 0, 0)
    visit('int8')
    for name, bad, said in (
            ('words.jpg', b'These are words.', 'words.jpg is not an image we can read. Use JPEG, PNG, WebP, GIF, AVIF'),
            ('empty.png', b'', 'empty.png is empty.'),
            ('cut.jpg', photograph.read_bytes()[:800],
             'cut.jpg is damaged or cut off: it starts as JPEG, but the browser cannot decode it.'),
            ('a.heic', b'\0\0\0\x18ftypheic\0\0\0\0mif1heic',
             'a.heic cannot be shown: this browser does not read HEIC'),
            ('huge.png', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + size + b'\0' * 4,
             'huge.png has 300 million pixels. Use a picture of at most 120 million.')):
        assert len(browser.answer(photograph)) == 2
        assert browser.text('#message') == ''
        (tmp_path / name).write_bytes(bad)
        browser.give(tmp_path / name)
        browser.wait('document.getElementById("message").textContent.startsWith(arguments[0])', said)
        assert browser.js('return document.querySelectorAll(".bars li").length') == 0
        assert browser.text('#stage').startswith('Ready.')


@pytest.mark.parametrize(('spoil', 'said'), [
    (lambda packed: packed[:-1000], 'the download was cut off after'), (lambda packed: gzip.compress(b'no network'), '')
], ids=['cut', 'no network'])
def test_network_that_fails(spoil, said, browser, serve, sites, photograph, tmp_path):
    """A network that does not load is a sentence, is not kept, the other one answers, and the next visit has it."""
    packed, = (sites['int8'] / 'files').glob('mobilenetv2*')
    bad = spoil(packed.read_bytes())
    about = json.loads((sites['int8'] / 'models.json').read_text())
    file = about['models'][1]['file']
    if not said:  # it came whole
        file.update(bytes=len(bad), size=10)
    site = change(sites['int8'], tmp_path / 'site', **{packed.name: bad, 'models.json': about})
    browser.open(serve(site))
    browser.wait('document.querySelectorAll("article [role=alert]")[1]?.textContent')
    alert = browser.text('article:nth-of-type(2) [role=alert]')
    assert alert.startswith(f'mobilenetv2_035 could not be loaded: {said}')
    assert alert.endswith('. Load the page again.')
    assert list(browser.answer(photograph, 1)) == ['mobilenext_100']
    assert browser.js('return await caches.match(arguments[0]) === undefined', file['path'])
    if said:
        shutil.copy(packed, site / 'files')
        browser.driver.refresh()
        browser.ready()
        assert len(browser.answer(photograph)) == 2


@pytest.mark.parametrize(('missing', 'said'), [
    ('models.json', 'The list of networks could not be loaded: the server answers 404. Load the page again.'),
    ('worker.js', 'Ziffern could not be loaded: a part of the page is missing.'),
    ('window.OffscreenCanvas', 'This browser is too old to run the network.'),
])
def test_page_that_misses_a_part(missing, said, browser, serve, sites, tmp_path):
    """A part of the site that is missing, and what an old browser lacks, are a sentence."""
    is_file = not missing.startswith('window.')
    site = change(sites['one'], tmp_path / 'site', **({missing: None} if is_file else {}))
    browser.open(serve(site, is_plain=True), '' if is_file else f'delete {missing};')
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


def test_camera(chromium, serve, sites, expected, tmp_path):
    """The camera is classified live, a picture is taken and classified as in Python, and the camera stops."""
    browser = chromium(*FAKE_CAMERA)
    try:
        browser.open(serve(sites['fp32']))
        browser.ready()
        browser.click('#camera')
        browser.wait('heard.filter(its => its.name === "camera" && its.answers.length === 2).length > 4')
        assert browser.text('#camera') == 'Stop the camera'
        assert browser.text('article:first-of-type .ms').endswith(' ms')
        browser.js('OffscreenCanvas.prototype.convertToBlob = new Proxy(OffscreenCanvas.prototype.convertToBlob, {'
                   'apply: async (...given) => window.taken = await Reflect.apply(...given)})')
        browser.click('#shoot')
        answers = browser.wait(
            'heard.findLast(its => its.name === "The photograph" && its.answers.length === 2)')['answers']
        (tmp_path / 'taken.png').write_bytes(bytes(browser.js('return [...new Uint8Array(await taken.arrayBuffer())]')))
        with Image.open(tmp_path / 'taken.png') as taken:
            assert min(taken.size) > 100
            assert len(taken.getcolors(1 << 24)) > 10
        for answer in answers:
            np.testing.assert_allclose(answer['logits'], expected(tmp_path / 'taken.png', answer['name']), atol=1e-4)
        assert browser.js('return document.getElementById("video").srcObject') is None
        assert browser.text('#camera') == 'Camera'
        assert not browser.errors()

        browser.click('#camera')
        browser.wait('document.getElementById("video").srcObject')
        browser.js('const [track] = document.getElementById("video").srcObject.getVideoTracks(); track.stop();'
                   'track.dispatchEvent(new Event("ended"))')
        browser.wait('document.getElementById("message").textContent === "The camera was disconnected."')
    finally:
        browser.driver.quit()


def test_no_camera(browser, visit):
    """No camera, a refused one, and a page that may not have one, are a sentence."""
    said = 'document.getElementById("message").textContent.startsWith(arguments[0])'
    visit('one', 1)
    browser.click('#camera')
    browser.wait(said, 'There is no camera on this device.')
    browser.js(
        'navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError") }')
    browser.click('#camera')
    browser.wait(said, 'The camera was refused: allow it')
    visit('one', 1, 'delete Navigator.prototype.mediaDevices; '
          'Object.defineProperty(window, "isSecureContext", {value: false})')
    browser.click('#camera')
    browser.wait(said, 'Browsers allow the camera only over https')


@pytest.mark.parametrize(('width', 'height'), [(400, 740), (1200, 800)])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_everybody(width, height, dark, browser, visit, sites, npm, photograph):
    """On phones and desktops, light and dark: axe finds no fault, nothing is wider than the screen, keys reach all."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def axe() -> list:
        found = browser.js('return await axe.run()')
        assert len(found['passes']) > 15
        return [(its['id'], [node['html'] for node in its['nodes']]) for its in found['violations']]

    browser.size(width, height, dark)
    visit('int8')
    browser.cdp('Runtime.evaluate', expression=(npm / 'axe-core' / 'axe.min.js').read_text())
    assert axe() == []
    browser.answer(photograph)
    browser.wait('measured.length')
    browser.js('document.querySelectorAll("details").forEach(its => its.open = true);'
               'document.querySelector("td").textContent = "1234.5 ms"')
    assert axe() == []
    assert browser.js('return document.documentElement.scrollWidth <= innerWidth')
    assert browser.js('return document.querySelector("td").getBoundingClientRect().height') < 40  # one line
    assert ('drop' in browser.text()) == (width > 600)
    labels = browser.driver.find_elements('css selector', '.bars li span:first-child')
    assert len(labels) == 10
    assert {label.text for label in labels} <= {*json.loads((sites['int8'] / 'models.json').read_text())['labels'][0]}
    assert all(label.rect['x'] >= 0 and label.rect['x'] + label.rect['width'] <= width for label in labels)
    assert browser.js('return document.querySelectorAll(".bars b").length') == 0
    reached = []
    for _ in range(10):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.append(browser.js('return document.activeElement.id || document.activeElement.tagName'))
    assert reached == ['file', 'camera', 'SELECT', 'SUMMARY', 'SELECT', 'SUMMARY', 'SUMMARY', 'measure', 'A', 'A']
