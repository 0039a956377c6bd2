"""Measure MobileNeXt in PyTorch beside timm's networks and the authors' code: time, memory, growth, start-up.

    pip install '.[compare]' && python benchmarks/run.py [--official mnext.py] [--kinds latency training ...]

Writes a CSV and a plot for each kind. All that is compared runs in turn, one sample of each a round, so that what else
the machine does slows all alike; medians are compared. README.md beside this file says how to read the results.
"""
import argparse
import csv
import importlib.util
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# glibc hands memory back to the kernel between operators, which then clears every page again; read at process start
ALLOCATOR = {
    'MALLOC_MMAP_THRESHOLD_': '4294967296', 'MALLOC_TRIM_THRESHOLD_': '8589934592', 'MALLOC_TOP_PAD_': '268435456'}
KINDS = ('latency', 'training', 'memory', 'scaling', 'startup')
OURS = ('mobilenext_100', 'mobilenext_100_id050')
PEERS = ('mobilenetv2_100', 'mobilenetv3_large_100', 'efficientnet_lite0')

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--official', type=Path, metavar='PATH', help="the authors' mnext.py, to compare with")
parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, help='what to measure (default: everything)')
parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'results', help='folder of the results')
parser.add_argument('--threads', type=int, default=1, help='threads of PyTorch (default: %(default)s)')
parser.add_argument('--rounds', type=int, default=11,
                    help='samples of each at batch 32 (default: %(default)s); two or three times as many at batch 1')
parser.add_argument('--default-allocator', action='store_true', help="leave glibc's settings as they are")
parser.add_argument('--plot-only', action='store_true', help='draw the plots from the CSVs that are there')
parser.add_argument('--memory-of', nargs=3, help=argparse.SUPPRESS)  # a process of its own for each measurement
args = parser.parse_args()
if __name__ == '__main__' and not (args.default_allocator or args.memory_of or ALLOCATOR.items() <= os.environ.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

import timm
import torch
import torch.nn as nn
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from timm.utils import reparameterize_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.doctor import count

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
OFFICIAL = ['official', 'official/2'] if args.official else []
MIXED = [  # what is measured on a GPU beyond what is on a CPU
    (name, f'{compiled}{dtype} channels_last')
    for name in (*OURS, 'mobilenetv2_100') for compiled in ('', 'compiled ') for dtype in ('bf16', 'fp16')]


def machine() -> str:
    """Return the name of the processor and its number of cores."""
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*: (.*)', info.read_text()) if info.exists() else None
    return f'{name[1] if name else platform.processor()}, {os.cpu_count()} cores'


def create(name: str, **kwargs) -> nn.Module:
    """Create a model of timm, or the authors' as `official` and, with an identity divisor, `official/2`."""
    torch.manual_seed(0)
    if not name.startswith('official'):
        return timm.create_model(name, **kwargs)
    spec = importlib.util.spec_from_file_location('mnext', args.official)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MXNet()
    for block in model.modules():
        if hasattr(block, 'identity_div'):
            block.identity_div = int(name.partition('/')[2] or 1)
    return model


def fold(model: nn.Module) -> nn.Module:
    """Fold all batch norms: ours through timm's call, those of timm's networks, which know no such call, here."""
    x = torch.randn(1, 3, 64, 64)
    folded = reparameterize_model(model)
    for parent in list(folded.modules()):
        for (name, conv), (norm_name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, norm.act)
    assert not [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-2, atol=1e-3)
    return folded


def place(
        model: nn.Module, form: str, batch: int, size: int, device: str,
) -> tuple[nn.Module, torch.Tensor, torch.autocast]:
    """Return a model and images (B, 3, size, size) in the layout of a form, and a context of its precision."""
    layout = torch.channels_last if 'channels_last' in form else torch.contiguous_format
    x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
    amp = torch.autocast(device, torch.bfloat16 if 'bf16' in form else torch.float16, enabled='16' in form)
    return model.to(device, memory_format=layout), x, amp


def inference(name: str, form: str, batch: int, size: int = 224, device: str = 'cpu') -> Callable[[], object]:
    """Return a function that runs a forward pass. A form is words: folded, channels_last, compiled, bf16, fp16."""
    model = create(name)
    update_bn([torch.randn(4, 3, 224, 224)], model)  # else it answers about 1e-14, and such numbers are slow
    model.eval()
    model, x, amp = place(fold(model) if 'folded' in form else model, form, batch, size, device)
    if 'compiled' in form:
        torch.compiler.reset()
        model = torch.compile(model, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def run() -> None:
        with amp, torch._inductor.config.patch(freezing=True):
            model(x)
        if device == 'cuda':
            torch.cuda.synchronize()
    run()  # compiles
    return run


def training(name: str, form: str, batch: int, device: str = 'cpu') -> Callable[[], object]:
    """Return a function that runs a forward and a backward pass; more words: recompute_act, checkpointed."""
    model = create(name, **(dict(recompute_act=True) if 'recompute_act' in form else {}))
    if 'checkpointed' in form:
        model.set_grad_checkpointing()
    model, x, amp = place(model.train(), form, batch, 224, device)
    target = torch.arange(batch, device=device)
    run_model = torch.compile(model, fullgraph=True, dynamic=False) if 'compiled' in form else model

    def run(between: Callable[[], object] = lambda: None) -> None:
        model.zero_grad(set_to_none=False)
        with amp:
            loss = cross_entropy(run_model(x), target)
        between()
        loss.backward()
        if device == 'cuda':
            torch.cuda.synchronize()
    run()
    return run


def interleave(
        runs: dict[tuple, Callable[[], object]], rounds: int, title: str, twice: bool = False,
) -> dict[tuple, list[float]]:
    """Run everything in turn and return the seconds of each.

    Short runs are run twice in a row and the second is timed: the first brings back to the processor's caches what the
    other runs have driven out.
    """
    times: dict[tuple, list[float]] = {key: [] for key in runs}
    for i in tqdm(range(rounds + 2), desc=title, leave=False):
        for key, run in runs.items():
            if twice:
                run()
            start = time.perf_counter()
            run()
            if i > 1:  # the first two warm up
                times[key].append(time.perf_counter() - start)
    return times


def spread(samples: list[float]) -> dict[str, float]:
    """Return median and quartiles, of seconds in milliseconds."""
    low, median, high = statistics.quantiles(samples, n=4)
    return dict(median=round(median * 1e3, 4), quartile1=round(low * 1e3, 4), quartile3=round(high * 1e3, 4))


def compare(times: dict[tuple, list[float]], **fixed) -> list[dict]:
    """Return a row for each key, with its ratio to the authors' code and, in the same form, to mobilenetv2_100."""
    medians = {key: statistics.median(samples) for key, samples in times.items()}
    rows = []
    for (name, form), samples in times.items():
        row = dict(model=name, form=form, **fixed, **spread(samples), unit='ms', samples=len(samples))
        baselines = {
            'over_official': ('official', 'eager'), 'over_official_channels_last': ('official', 'channels_last'),
            'over_mobilenetv2_100': ('mobilenetv2_100', form)}
        for column, baseline in baselines.items():
            row[column] = round(medians[name, form] / medians[baseline], 4) if baseline in medians else ''
        rows.append(row)
    return rows


def measure_latency() -> list[dict]:
    """Time forward passes, as created and in the forms that are faster."""
    rows = []
    forms = ('eager', 'channels_last', 'folded channels_last')
    keys = list(itertools.product((*OURS, *PEERS), forms)) + list(itertools.product(OFFICIAL, forms[:2]))
    keys += [(name, 'compiled channels_last') for name in (
        *OURS, 'mobilenext_100_id033', 'mobilenext_100_id025', 'mobilenetv2_100')]
    for device, batch in itertools.product(DEVICES, (1, 32)):
        runs = {key: inference(*key, batch, device=device) for key in tqdm(
            keys + MIXED * (device == 'cuda'), desc='building', leave=False)}
        is_short = batch == 1
        times = interleave(runs, args.rounds * (3 if is_short else 1), f'latency, batch {batch}', twice=is_short)
        rows += compare(times, batch=batch, size=224, device=device)
    return rows


def measure_training() -> list[dict]:
    """Time forward and backward passes."""
    rows = []
    keys = list(itertools.product((*OURS, 'mobilenetv2_100', *OFFICIAL[:1]), ('eager', 'channels_last')))
    keys += [('mobilenext_100', f'{form} channels_last') for form in ('recompute_act', 'checkpointed')]
    keys += [('mobilenetv2_100', 'checkpointed channels_last')]
    for device in DEVICES:
        runs = {key: training(*key, 32, device) for key in keys + MIXED * (device == 'cuda')}
        rows += compare(interleave(runs, args.rounds, 'training'), batch=32, size=224, device=device)
    return rows


def resident(device: str, peak: bool = False) -> float:
    """Return the bytes that the tensors of a GPU or the process take, or took at most."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'{"VmHWM" if peak else "VmRSS"}:\s+(\d+)', status)[1])


def memory_of(name: str, form: str, device: str) -> None:
    """Print the MB that a forward pass at batch 32 keeps for backward, and the peak of the step, over the start."""
    run = training(name, form, 32, device)
    run()
    seen = []
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # starts the peak anew
    start = resident(device)
    run(between=lambda: seen.append(resident(device)))
    print((seen[0] - start) / 1e6, (resident(device, peak=True) - start) / 1e6)


def measure_memory() -> list[dict]:
    """Measure the memory of a training step, each in a process of its own."""
    keys = list(itertools.product((*OURS, 'mobilenetv2_100', *OFFICIAL), ('eager', 'channels_last')))
    keys += itertools.product(OURS, [
        form + layout for form in ('recompute_act', 'checkpointed') for layout in ('', ' channels_last')])
    keys += [('mobilenetv2_100', 'checkpointed')]
    # every tensor its own mapping, so that the resident memory is that of the tensors
    env = {name: value for name, value in os.environ.items() if name not in ALLOCATOR} | {
        'MALLOC_MMAP_THRESHOLD_': '65536'}
    rows = []
    for device in DEVICES:
        figures = {}
        for key in tqdm(keys, desc='memory', leave=False):
            command = [sys.executable, __file__, '--memory-of', *key, device, '--threads', str(os.cpu_count())]
            command += ['--official', str(args.official)] if args.official else []
            printed = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout.split()
            figures[key] = dict(zip(('kept for backward', 'peak'), map(float, printed), strict=True))
        for (name, form), measured in figures.items():
            for figure, value in measured.items():
                row = dict(model=name, form=form, figure=figure, batch=32, size=224, device=device,
                           median=round(value, 1), unit='MB', samples=1)
                if args.official:
                    row['over_official'] = round(value / figures['official', 'eager'][figure], 4)
                rows.append(row)
    return rows


def measure_scaling() -> list[dict]:
    """Time forward passes by width, resolution and batch size."""
    shapes = {
        'width': [(width, 1, 224) for width in ('035', '050', '075', '100', '140')],
        'resolution': [('100', 1, size) for size in (128, 160, 192, 224, 288, 384, 512)],
        'batch': [('100', batch, 224) for batch in (1, 2, 4, 8, 16, 32, 64)],
    }
    rows = []
    for axis, points in shapes.items():
        keys = [(f'{family}_{width}', *shape) for width, *shape in points for family in ('mobilenext', 'mobilenetv2')]
        runs = {key: inference(key[0], 'folded channels_last', *key[1:]) for key in keys}
        times = interleave(runs, args.rounds * (1 if axis == 'batch' else 2), axis, twice=axis != 'batch')
        for (name, batch, size), samples in times.items():
            _, madds, _ = count(timm.create_model(name, device='meta'))
            madds = madds * batch * (size / 224) ** 2  # of the convolutions, which are nearly all
            rows.append(dict(
                axis=axis, model=name, form='folded channels_last', batch=batch, size=size, device='cpu',
                **spread(samples), unit='ms', samples=len(samples), madds_millions=round(madds / 1e6, 1),
                ns_per_madd=round(statistics.median(samples) / madds * 1e9, 5)))
    return rows


def measure_startup() -> list[dict]:
    """Time the import, the creation of a model and loading its weights."""
    code = 'import time, timm; t = time.perf_counter(); import timm_mobilenext; print(time.perf_counter() - t)'
    imports = [float(subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.PIPE).stdout)
               for _ in tqdm(range(7), desc='import', leave=False)]
    rows = [dict(model='timm_mobilenext', form='import, after timm', device='cpu', **spread(imports), unit='ms',
                 samples=len(imports))]
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[tuple, Callable[[], object]] = {}
        for name in ('mobilenext_100', 'mobilenetv2_100'):
            model, path = timm.create_model(name), f'{folder}/{name}.safetensors'
            save_file(model.state_dict(), path)
            runs[name, 'create_model'] = partial(timm.create_model, name)
            runs[name, 'create_model, meta device'] = partial(timm.create_model, name, device='meta')
            runs[name, 'load safetensors'] = partial(timm.models.load_checkpoint, model, path)
        rows += compare(interleave(runs, 31, 'start-up'), device='cpu')
    return rows


def plot(kind: str, rows: list[dict]) -> None:
    """Draw a kind's rows: curves for growth, otherwise bars with their quartiles."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    groups: dict[str, list[dict]] = {}
    for row in rows:
        title = row.get('axis') or row.get('figure') or (f'batch {row["batch"]}' if row.get('batch') else row['form'])
        groups.setdefault(f'{title}, {row["device"]}', []).append(row)
    height = 4 if kind == 'scaling' else 1.2 + 0.24 * max(map(len, groups.values()))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(6.5 * len(groups), height), squeeze=False, layout='constrained')
    for axis, (title, group) in zip(axes[0], groups.items(), strict=True):
        axis.set_title(title)
        if kind == 'scaling':
            column = {'width': 'madds_millions', 'resolution': 'size', 'batch': 'batch'}[group[0]['axis']]
            for family in ('mobilenext', 'mobilenetv2'):
                points = [row for row in group if row['model'].startswith(family)]
                axis.plot([float(row[column]) for row in points], [float(row['ns_per_madd']) for row in points],
                          marker='o', label=family)
            axis.set(xlabel=column.replace('madds_millions', 'multiply-adds (M)'), ylabel='ns per multiply-add', ylim=0,
                     xscale='log')
            axis.legend()
            continue
        group.sort(key=lambda row: float(row['median']))
        names = [f'{row["model"]}, {row["form"]}' for row in group]
        errors = [[abs(float(row['median']) - float(row.get(quartile) or row['median'])) for row in group]
                  for quartile in ('quartile1', 'quartile3')]
        colors = ['C1' if 'official' in name else 'C0' if 'mobilenext' in name else 'C7' for name in names]
        axis.barh(names, [float(row['median']) for row in group], xerr=errors, color=colors)
        axis.set(xlabel=f'{group[0]["unit"]}, less is better')
        axis.invert_yaxis()
    figure.suptitle('{}: {machine}, threads {threads}, torch {torch}'.format(kind, **rows[0]), fontsize=10)
    figure.savefig(args.output / f'{kind}.png', dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure each kind, write its CSV and draw it."""
    torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_of(*args.memory_of)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    where = dict(
        threads=args.threads, machine=machine(), torch=torch.__version__, timm=timm.__version__,
        allocator='default' if args.default_allocator else 'memory kept')
    print(', '.join(f'{key}: {value}' for key, value in where.items()))
    if 'cuda' not in DEVICES:
        print('CUDA: not run, there is no device.')
    if not args.official:
        print("The authors' code: not run, no --official PATH.")
    for kind in args.kinds:
        path = args.output / f'{kind}.csv'
        if not args.plot_only:
            rows = [row | where for row in globals()[f'measure_{kind}']()]
            columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
            with path.open('w', newline='') as file:
                writer = csv.DictWriter(file, columns, lineterminator='\n')
                writer.writeheader()
                writer.writerows(rows)
        with path.open(newline='') as file:
            plot(kind, list(csv.DictReader(file)))
        print(f'{path}, {path.with_suffix(".png")}')


if __name__ == '__main__':
    main()
