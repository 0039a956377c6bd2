"""Draw the pictures of the docs into docs/img: SVG, for light and dark pages, readable on a phone.

    python tools/drawings.py

Channels, shortcuts and taps are read from the models, imports from the source, latencies from benchmarks/results. A
picture is 480 units wide and its text 16 high: 12 pixels in the column of a page that is 400 wide.
"""
import ast
import csv
from html import escape
from pathlib import Path

import timm

import timm_mobilenext
from timm_mobilenext.__main__ import COMMANDS
from timm_mobilenext.detection import SSDLiteFeatureExtractor
from timm_mobilenext.weights.authors import CLAIMS

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / 'docs' / 'img'
PACKAGE = Path(timm_mobilenext.__file__).parent
RESULTS = ROOT / 'benchmarks' / 'results'
WIDTH = 480
COLOURS = {  # on a light page, on a dark one
    'paper': ('#ffffff', '#0d1117'), 'ink': ('#1f2328', '#f0f6fc'), 'muted': ('#59636e', '#9198a1'),
    'line': ('#d1d9e0', '#3d444d'), 'tensor': ('#59636e', '#9198a1'), 'pale': ('#eaeef2', '#262c36'),
    'depthwise': ('#bc4c00', '#f0883e'), 'pointwise': ('#0969da', '#4493f8'), 'shortcut': ('#1a7f37', '#3fb950'),
    'violet': ('#8250df', '#ab7df8'),
}


def style() -> str:
    """Return the style sheet: for each colour a class that fills, and one, with a dash before its name, that draws."""
    sheets = [''.join(
        f'.{name}{{fill:{pair[dark]}}}.-{name}{{stroke:{pair[dark]};fill:none;stroke-width:2}}'
        for name, pair in COLOURS.items()) for dark in (0, 1)]
    return (
        "text{font:16px -apple-system,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif}"
        '.code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:15.7px}.bold{font-weight:600}'
        '.halo{stroke:#fff;stroke-width:4;paint-order:stroke}'
        f'{sheets[0]}@media (prefers-color-scheme:dark){{{sheets[1]}.halo{{stroke:#0d1117}}}}')


class Drawing(list):
    """Elements of an SVG, in the order they are drawn."""

    def shape(self, colour: str, *points: tuple[float, float], opacity: float = 1) -> None:
        """Fill a polygon."""
        self.append(f'<path class="{colour}" fill-opacity="{opacity:g}" d="M{pairs(points)}Z"/>')

    def bar(self, colour: str, x: float, y: float, width: float, height: float, radius: float = 2) -> None:
        """Fill a rectangle."""
        self.append(
            f'<rect class="{colour}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}"/>')

    def line(self, colour: str, *points: tuple[float, float], arrow: bool = False) -> None:
        """Draw a line through points, with an arrow head at its end."""
        self.append(f'<path class="-{colour}" d="M{pairs(points)}"/>')
        if arrow:
            (x0, y0), (x, y) = points[-2:]
            length = max(abs(x - x0), abs(y - y0))
            dx, dy = 5 * (x - x0) / length, 5 * (y - y0) / length
            self.shape(colour, (x + dx, y + dy), (x - dx - dy, y - dy + dx), (x - dx + dy, y - dy - dx))

    def text(self, x: float, y: float, text: str, colour: str = 'ink', anchor: str = 'start', style: str = '') -> None:
        """Write a line; `style` is any of the classes code, bold and halo."""
        self.append(
            f'<text class="{colour} {style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self, height: int, title: str) -> str:
        """Return the file."""
        return '\n'.join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img">', f'<title>{escape(title)}</title>', f'<style>{style()}</style>',
            f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>', *self, '</svg>', ''])


def pairs(points: tuple[tuple[float, float], ...]) -> str:
    """Return points as in the data of a path."""
    return 'L'.join(f'{x:g} {y:g}' for x, y in points)


def layers(model_name: str, path: str) -> tuple[list[tuple[str, int, int]], int, int]:
    """Return the convs of a SandGlass block, each its name, input and output channels, and two numbers of channels.

    They are the channels of the shortcut, and those that bypass the bottleneck.
    """
    found = timm.create_model(model_name, device='meta').get_submodule(path)
    convs = [(name, unit.conv.in_channels, unit.conv.out_channels) for name, unit in found.named_children()
             if hasattr(unit, 'conv')]
    pointwise = next(i for i, (name, *_) in enumerate(convs) if name == 'pw_reduce')
    before = convs[pointwise - 1][2] if pointwise else convs[pointwise][1]
    return convs, found.identity_chs, before - convs[pointwise][1]


def stack(
        drawing: Drawing, convs: list[tuple[str, int, int]], center: float, top: float, gap: float, scale: float,
        bypass: int = 0) -> list[float]:
    """Draw convs one below the other and the tensors between them, as wide as they have channels.

    Returns:
        The middle of each tensor, from the top.
    """
    heights = [top + i * gap for i in range(len(convs) + 1)]
    if bypass:  # beside the two pointwise convs, from the second tensor to the fourth
        drawing.bar('pale', center, heights[1], bypass * scale, 2 * gap)
    for (name, in_chs, out_chs), y in zip(convs, heights, strict=False):
        depthwise = name.startswith('dw')
        x = center if depthwise else center - bypass * scale / 2
        drawing.shape(
            'depthwise' if depthwise else 'pointwise', (x - in_chs * scale / 2, y), (x + in_chs * scale / 2, y),
            (x + out_chs * scale / 2, y + gap), (x - out_chs * scale / 2, y + gap), opacity=0.3)
        if name == 'pw_reduce':
            tensor(drawing, center, y, in_chs + bypass, scale)
        else:
            tensor(drawing, x, y, in_chs, scale)
    tensor(drawing, center, heights[-1], convs[-1][2], scale)
    return heights


def tensor(drawing: Drawing, x: float, y: float, chs: int, scale: float) -> None:
    """Draw a tensor around a point, with its channels in it or, if it is too narrow, beside it."""
    drawing.bar('tensor', x - chs * scale / 2, y - 10, chs * scale, 20)
    if chs * scale > 30:
        drawing.text(x, y + 5, str(chs), 'paper', 'middle', 'bold')
    else:
        drawing.text(x - chs * scale / 2 - 5, y + 5, str(chs), anchor='end')


def block() -> str:
    """Draw an inverted residual beside a SandGlass block, both of a network at width 1.0."""
    inverted = timm.create_model('mobilenetv2_100', device='meta').get_submodule('blocks.5.1')
    thin, wide = inverted.conv_pw.in_channels, inverted.conv_pw.out_channels
    drawing, scale, top, bottom = Drawing(), 180 / wide, 84, 332
    for center, title, network, convs in (
            (118, 'Inverted residual', 'MobileNetV2', [('pw', thin, wide), ('dw', wide, wide), ('pw', wide, thin)]),
            (356, 'SandGlass', 'MobileNeXt', layers('mobilenext_100', 'blocks.6.1')[0])):
        drawing.text(center, 28, title, anchor='middle', style='bold')
        drawing.text(center, 50, network, 'muted', 'middle')
        chs, gap = convs[0][1], (bottom - top) / len(convs)
        heights = stack(drawing, convs, center, top, gap, scale)
        for (name, *_), y in zip(convs, heights, strict=False):
            drawing.text(
                center, y + gap / 2 + 5, '3\u00d73 depthwise' if name.startswith('dw') else '1\u00d71', anchor='middle')
        edge = center + chs * scale / 2
        drawing.line(
            'shortcut', (edge, top), (center + 108, top), (center + 108, bottom), (edge + 7, bottom), arrow=True)
        drawing.text(center, 374, f'shortcut: {chs} channels', 'shortcut', 'middle', 'bold')
    return drawing.svg(392, 'Inverted residual and SandGlass block')


def forms() -> str:
    """Draw the four forms of the SandGlass block."""
    drawing = Drawing()
    for i, (title, where, model_name, path) in enumerate((
            ('full', 'repeats of a row', 'mobilenext_100', 'blocks.2.1'),
            ('strided', 'first block, stride 2', 'mobilenext_100', 'blocks.2.0'),
            ('transition', 'first block, stride 1', 'mobilenext_100', 'blocks.4.0'),
            ('ghost', 'repeats in _l_ghost', 'mobilenext_l_ghost', 'blocks.2.1'))):
        x, y = 240 * (i % 2), 262 * (i // 2)
        convs, identity_chs, bypass = layers(model_name, path)
        drawing.text(x + 14, y + 28, title, style='bold')
        drawing.text(x + 226, y + 28, path, 'muted', 'end', 'code')
        drawing.text(x + 14, y + 49, where, 'muted')
        center, scale = x + 160, 0.3
        heights = stack(drawing, convs, center, y + 78, 42, scale, bypass)
        for (name, *_), height in zip(convs, heights, strict=False):
            drawing.text(x + 14, height + 26, name, 'depthwise' if name.startswith('dw') else 'pointwise', style='code')
        if identity_chs:
            edge = center + convs[0][1] * scale / 2
            drawing.line('shortcut', (edge, heights[0]), (x + 212, heights[0]), (x + 212, heights[-1]),
                         (edge + 7, heights[-1]), arrow=True)
    return drawing.svg(536, 'The four forms of a SandGlass block')


def network() -> str:
    """Draw mobilenext_100 as one bar a block, with the taps of features_only and of SSDLite."""
    model = timm.create_model('mobilenext_100', device='meta')
    bars = [('stem', model.stem.conv.out_channels, 2)]  # name, channels, reduction
    for name, found in model.named_modules():
        if name.startswith('blocks.') and name.count('.') == 2:
            stride = getattr(getattr(found.dw_end, 'conv', None), 'stride', (1,))[0]
            bars.append((name, found.pw_expand.conv.out_channels, bars[-1][2] * stride))
    drawing, scale, left, features_x, ssdlite_x = Drawing(), 0.11, 76, 304, 406
    for x, first, second, anchor in (
            (14, 'map', '224 px', 'start'), (left, 'block', 'channels', 'start'),
            (features_x, 'features_only', 'index', 'middle'), (ssdlite_x + 10, 'SSDLite', '320 px', 'middle')):
        drawing.text(x, 26, first, 'ink', anchor, 'bold')
        drawing.text(x, 46, second, 'muted', anchor)
    y, before, places = 54, 0, {}
    for name, chs, reduction in bars:
        if reduction != before:
            y += 12
            drawing.text(14, y + 12, f'{224 // reduction} px')
        is_first = name == 'stem' or name.endswith('.0')
        drawing.bar('pointwise' if is_first else 'tensor', left, y, chs * scale, 12)
        if is_first:
            drawing.text(left + chs * scale + 6, y + 11, str(chs), 'muted')
        places[name] = y + 6, left + chs * scale + (16 + 9 * len(str(chs)) if is_first else 6)
        y, before = y + 17, reduction
    ends = {name.rpartition('.')[0] or name: name for name in places}  # of each row the last block
    # of SSDLite: the block that strides from 16 to 32, and the last
    taps = [places[f'blocks.{model.feature_info[-2]["stage"]}.0'], places[bars[-1][0]]]
    y += 12
    drawing.text(14, y + 12, 'extra')
    for chs in SSDLiteFeatureExtractor(model).out_channels[2:]:
        drawing.bar('depthwise', left, y, chs * scale, 12)
        drawing.text(left + chs * scale + 6, y + 11, str(chs), 'muted')
        taps.append((y + 6, left + chs * scale + 43))
        y += 25
    size = 320 // model.feature_info[-2]['reduction']
    for i, place in enumerate(taps, start=1):
        tap(drawing, *place, ssdlite_x, str(i), 'depthwise')
        drawing.text(ssdlite_x + 18, place[0] + 5, f'{size} px', 'muted')
        size = -(-size // 2)
    for i, info in enumerate(model.feature_info):
        tap(drawing, *places[ends[info['module']]], features_x, str(i), 'violet')
    for x, colour, meaning in ((14, 'pointwise', 'first block of a row'), (196, 'tensor', 'repeat'), (
            284, 'depthwise', "SSDLite's extra block")):
        drawing.bar(colour, x, y + 14, 12, 12)
        drawing.text(x + 18, y + 25, meaning, 'muted')
    return drawing.svg(y + 40, 'The blocks of mobilenext_100')


def tap(drawing: Drawing, y: float, start: float, x: float, name: str, colour: str) -> None:
    """Draw a line from the end of a bar to a disc with the name of a tap."""
    drawing.line('line', (start, y), (x - 11, y))
    drawing.append(f'<circle class="{colour}" cx="{x:g}" cy="{y:g}" r="11"/>')
    drawing.text(x, y + 5, name, 'paper', 'middle', 'bold')


def identity() -> str:
    """Draw which channels take the shortcut, by the identity tensor multiplier, with the reported top-1."""
    drawing = Drawing()
    drawing.text(14, 28, 'Channels of a block', style='bold')
    drawing.text(466, 28, 'top-1, reported', 'muted', 'end')
    for i, name in enumerate(f'mobilenext_100{multiplier}' for multiplier in ('', '_id050', '_id033', '_id025')):
        y, width = 60 + 62 * i, 370
        convs, identity_chs, _ = layers(name, 'blocks.2.1')
        chs = convs[-1][2]
        split = width * identity_chs / chs
        drawing.text(14, y, name, style='code')
        drawing.bar('pale', 14, y + 10, width, 26)
        drawing.bar('shortcut', 14, y + 10, split, 26)
        drawing.text(14 + split / 2, y + 28, str(identity_chs), 'paper', 'middle', 'bold')
        if chs > identity_chs:
            drawing.text(14 + (split + width) / 2, y + 28, str(chs - identity_chs), 'muted', 'middle')
        drawing.text(466, y + 28, f'{CLAIMS[name].top1} %', anchor='end')
    for x, colour, meaning in ((14, 'shortcut', 'branch + shortcut'), (190, 'pale', 'branch only')):
        drawing.bar(colour, x, 308, 12, 12)
        drawing.text(x + 18, 319, meaning, 'muted')
    return drawing.svg(334, 'Channels that take the shortcut')


def weights() -> str:
    """Draw where pretrained weights are looked for, in order."""
    drawing = Drawing()
    drawing.text(240, 28, "create_model('mobilenext_100', pretrained=True)", anchor='middle', style='code')
    drawing.line('muted', (30, 40), (30, 58), arrow=True)
    for i, (place, note, colour, dashes) in enumerate((
            ('a file that you name', 'pretrained_cfg_overlay=dict(file=...)', 'violet', ''),
            ('cache of the Hugging Face Hub', 'after the first release: the pinned commit', 'tensor', '5 4'),
            ("cache of the paper authors' files", 'git blob id verified again', 'tensor', ''),
            ('Hugging Face Hub', 'after the first release: the pinned commit', 'pointwise', '5 4'),
            ("the paper authors' repository", 'GitHub; git blob id verified', 'pointwise', ''))):
        y = 66 + 74 * i
        if i:
            drawing.line('muted', (30, y - 24), (30, y - 7), arrow=True)
            drawing.text(46, y - 10, 'not there' if i > 1 else 'none named', 'muted')
        drawing.append(
            f'<rect class="-{colour}" x="14" y="{y:g}" width="452" height="48" rx="6" stroke-dasharray="{dashes}"/>')
        drawing.text(30, y + 20, f'{i + 1} {place}', style='bold')
        drawing.text(48, y + 39, note, 'muted', style='code' if '=' in note else '')
    return drawing.svg(428, 'Where pretrained weights come from')


def package() -> str:
    """Draw the modules of the package, each above all that it imports and close below the modules that import it."""
    files = {path.relative_to(PACKAGE).with_suffix('').as_posix().removesuffix('/__init__'): path
             for path in sorted(PACKAGE.rglob('*.py')) if ast.parse(path.read_text()).body[1:]}  # more than a docstring
    del files['__init__']  # its names are those of mobilenext
    names = {f'timm_mobilenext.{name.replace("/", ".")}': name for name in files}
    imports = {name: {names[found] for found in imported(path) if found in names} - {name}
               for name, path in files.items()}
    imports['__main__'] |= {names[f'timm_mobilenext.{module}'] for module, _ in COMMANDS.values()} | {'launch/hook'}

    def height(name: str) -> int:
        return 1 + max(map(height, imports[name]), default=0)

    heights = {}  # from the top, under the lowest of its users
    for name in sorted(files, key=height, reverse=True):
        users = [heights[user] for user in files if name in imports[user]]
        heights[name] = min(users) - 1 if users else height(name)
    drawing, colours = Drawing(), {'weights': 'shortcut', 'deploy': 'depthwise', 'launch': 'violet', '': 'pointwise'}
    for row, level in enumerate(sorted(set(heights.values()), reverse=True)):
        found = [name.rpartition('/') for name in sorted(files) if heights[name] == level]
        x = 244 - sum(9.5 * len(module) + 26 for *_, module in found) / 2
        for folder, _, module in found:
            width = 9.5 * len(module) + 18
            drawing.bar(colours[folder], x, 20 + 40 * row, width, 28, 6)
            drawing.text(x + width / 2, 39 + 40 * row, module, 'paper', 'middle', 'code bold')
            x += width + 8
    y = 44 + 40 * row
    drawing.line('muted', (440, 24), (440, y - 2), arrow=True)
    drawing.append(f'<g transform="translate(458 {y / 2:g}) rotate(90)">')
    drawing.text(0, 0, 'imports', 'muted', 'middle')
    drawing.append('</g>')
    for i, (folder, colour) in enumerate(colours.items()):
        drawing.bar(colour, 14 + 118 * i, y + 22, 12, 12)
        drawing.text(32 + 118 * i, y + 33, f'{folder}/' if folder else 'top', 'muted')
    return drawing.svg(y + 50, 'Modules, each above what it imports')


def imported(path: Path) -> set[str]:
    """Return the absolute names that a file imports at its top, and of `from a import b` both a and a.b."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def latency() -> str:
    """Plot reported top-1 against measured latency in ONNX Runtime, over that of mobilenext_100 in the same run."""
    points = {}
    for file in ('runtimes.csv', 'family.csv'):  # runs of their own: of what is in both, the second
        with (RESULTS / file).open(newline='') as rows:
            found = {row['model']: row for row in csv.DictReader(rows) if (
                row['runtime'], row['form'], row['cores']) == ('onnx', 'fp32', 'one')}
        points |= {name: (float(row['median']) / float(found['mobilenext_100']['median']), float(row['reported_top1']))
                   for name, row in found.items()}
    drawing = Drawing()

    def place(latency: float, top1: float) -> tuple[float, float]:
        return 46 + 155 * latency, 432 - 28 * (top1 - 64)

    for top1 in range(64, 79, 2):
        y = place(0, top1)[1]
        drawing.line('line', (46, y), (466, y))
        drawing.text(38, y + 5, str(top1), 'muted', 'end')
    for ratio in (0, 0.5, 1, 1.5, 2, 2.5):
        drawing.text(place(ratio, 0)[0], 454, f'{ratio:g}', 'muted', 'middle')
    drawing.text(14, 22, 'top-1 in %, reported', 'muted')
    drawing.text(466, 478, 'latency, mobilenext_100 = 1', 'muted', 'end')
    for name, label, dx, dy, anchor in LABELS:
        x, y = place(*points[name])
        colour = 'pointwise' if name.startswith('mobilenext') else 'depthwise'
        drawing.append(f'<circle class="{colour}" cx="{x:g}" cy="{y:g}" r="5"/>')
        drawing.text(x + dx, y + dy, label, colour, anchor, 'halo bold' if name == 'mobilenext_100' else 'halo')
    return drawing.svg(492, 'Reported top-1 against latency in ONNX Runtime')


LABELS = (  # architecture, label, its place beside the point and its anchor
    ('mobilenext_035', '035', 10, 5, 'start'), ('mobilenext_050', '050', 10, 5, 'start'),
    ('mobilenext_075', '075', 10, 5, 'start'), ('mobilenext_100', 'mobilenext_100', 10, 5, 'start'),
    ('mobilenext_140', '140', 10, 5, 'start'), ('mobilenext_s', 's', 0, -10, 'middle'),
    ('mobilenext_l', 'l', 0, -10, 'middle'), ('mobilenext_l_ghost', 'l_ghost', 0, -10, 'middle'),
    ('mobilenetv2_100', 'MobileNetV2', 10, 5, 'start'),
    ('mobilenetv3_large_100', 'MobileNetV3 large', 0, -10, 'middle'),
    ('efficientnet_lite0', 'EfficientNet Lite0', 10, 5, 'start'),
    ('mobilenetv4_conv_small', 'MobileNetV4 small', -14, -10, 'middle'),
)


DRAWINGS = (block, forms, network, identity, weights, package, latency)

if __name__ == '__main__':
    IMAGES.mkdir(exist_ok=True)
    for draw in DRAWINGS:
        (IMAGES / f'{draw.__name__}.svg').write_text(draw(), encoding='utf-8')
