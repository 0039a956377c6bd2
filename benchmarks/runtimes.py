"""Measure MobileNeXt and timm's mobile networks in the runtimes of phones: latency, size of the file, peak memory.

    pip install '.[compare,export]' && python benchmarks/runtimes.py [--runtimes onnx litert ...] [--cores one all]
    pip install '.[compare,export]' && python benchmarks/runtimes.py --family

Batch 1 at 224 px, in fp32, int8 and, where the processor has it, OpenVINO's bf16. Writes a CSV and two plots. What was
measured in another environment, such as LiteRT's, stays in the CSV. --family measures all architectures of this
package, in fp32 and on one core, for the first table of docs/models.md, and plots nothing.

The weights are untrained, their batch norms calibrated, and int8 is calibrated on noise: this measures time and memory,
not answers. `reported_top1` is what the authors and timm report of trained weights, not measured here.

For one core, the process is pinned before it imports a runtime, as some start a thread for each core whatever they are
told. ExecuTorch's pool does so even when pinned, so it is made anew. All files run in turn in one process for each
number of cores, and the allocator keeps its memory there as in run.py. Memory is measured in a process for each file:
what it needs beyond the imports to load the file and run it three times. For `all` the cores have to be idle: PyTorch,
ncnn and ONNX Runtime spin while a thread waits for a core. With OMP_WAIT_POLICY=passive the first two sleep instead.
"""
import argparse
import csv
import importlib
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.weights.authors import CLAIMS
from timm_mobilenext.deploy.runtimes import RUNTIMES, Run, quiet

Key = tuple[str, str, str]  # runtime, model, form
ALLOCATOR = {  # see run.py
    'MALLOC_MMAP_THRESHOLD_': '4294967296', 'MALLOC_TRIM_THRESHOLD_': '8589934592', 'MALLOC_TOP_PAD_': '268435456'}
INSTRUCTIONS = (
    'avx2', 'avx512f', 'avx512_vnni', 'avx_vnni', 'avx512_bf16', 'amx_int8', 'amx_bf16', 'asimddp', 'i8mm')
LIBRARIES = {  # runtime -> its distribution, and the module that runs files
    'pytorch': ('torch', 'torch'),
    'onnx': ('onnxruntime', 'onnxruntime'),
    'openvino': ('openvino', 'openvino'),
    'executorch': ('executorch', 'executorch.runtime'),
    'ncnn': ('ncnn', 'ncnn'),
    'litert': ('ai-edge-litert', 'ai_edge_litert.interpreter'),
}
# ImageNet-1k at 224 px in %: the authors' claims, and results/results-imagenet.csv of timm's repository
REPORTED = {name: claim.top1 for name, claim in CLAIMS.items()} | {
    'mobilenetv2_100': '72.910',  # mobilenetv2_100.ra_in1k
    'mobilenetv3_large_100': '75.784',  # mobilenetv3_large_100.ra_in1k
    'efficientnet_lite0': '75.488',  # efficientnet_lite0.ra_in1k
    'mobilenetv4_conv_small': '73.756',  # mobilenetv4_conv_small.e2400_r224_in1k
}
MOBILE = ['mobilenext_100', 'mobilenext_100_id050', *(name for name in REPORTED if name not in CLAIMS)]
FAMILY = [*CLAIMS, 'mobilenetv2_100']
SIZE = 224


def processor() -> tuple[str, list[str]]:
    """Return the processor's name with its number of cores, and those of INSTRUCTIONS that it has."""
    info = Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.split(':')[1].strip() for line in info if line.startswith('model name')]
    flags = {flag for line in info if line.startswith(('flags', 'Features')) for flag in line.split(':')[1].split()}
    name = names[0] if names else platform.processor() or platform.machine()
    return f'{name}, {os.cpu_count()} cores', [flag for flag in INSTRUCTIONS if flag in flags]


def convert(
        names: list[str], runtimes: list[str], folder: Path, has_bf16: bool, has_int8: bool) -> dict[Key, Path]:
    """Write the files of the networks for the runtimes; where that fails, print why and leave the file out."""
    files: dict[Key, Path] = {}
    noise = np.random.default_rng(0).standard_normal((16, 3, SIZE, SIZE), np.float32)
    progress = tqdm([(name, runtime) for name in names for runtime in runtimes], desc='converting', leave=False)
    for name, runtime in progress:
        progress.set_description(f'{name}, {runtime}')
        source = folder / name
        if runtime == 'pytorch':
            torch.manual_seed(0)
            model = timm.create_model(name)
            update_bn([torch.randn(4, 3, SIZE, SIZE)], model)  # without it, an untrained network answers about 1e-14
            timm.models.save_for_hf(model, str(source), safe_serialization=True)
            files[runtime, name, 'eager'] = source / 'model.safetensors'
            continue
        engine = RUNTIMES[runtime]
        plain, int8 = (source / f'{form}{engine.suffixes[0]}' for form in ('model', 'int8'))
        try:
            engine.convert(source, plain, (3, SIZE, SIZE))
            files[runtime, name, 'fp32'] = plain
            if runtime == 'openvino' and has_bf16:
                files[runtime, name, 'bf16'] = plain
            if has_int8 and 'int8' in engine.precisions:
                engine.quantize(source, plain, int8, noise)
                files[runtime, name, 'int8'] = int8
        except Exception as error:  # of whatever kind a converter raises
            progress.write(f'{name}, {runtime}: not converted, {error!r:.200}')
    return dict(sorted(files.items(), key=lambda item: (runtimes.index(item[0][0]), item[0][2])))


def load(key: Key, path: Path, threads: int) -> Run:
    """Return a file as a function of an image, that uses so many threads."""
    runtime, _, form = key
    with quiet():
        if runtime == 'pytorch':
            torch.set_num_threads(threads)
            model = timm.create_model(f'local-dir:{path.parent}', pretrained=True).eval()

            @torch.inference_mode()
            def run(image: np.ndarray) -> np.ndarray:
                return model(torch.from_numpy(image)).numpy()
            return run
        if runtime == 'executorch':
            from executorch.extension.pybindings import portable_lib

            if portable_lib._threadpool_get_thread_count() != threads:
                portable_lib._unsafe_reset_threadpool(threads)
        return RUNTIMES[runtime].load(path, threads, **(dict(precision='bf16') if form == 'bf16' else {}))


def peak(key: Key, path: Path, threads: int) -> float:
    """Return the MB that loading a file and running it three times takes at most, beyond what is imported."""
    def most() -> float:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith('VmHWM:')) * 1024 / 1e6

    image = np.ones((1, 3, SIZE, SIZE), np.float32)
    with quiet():
        importlib.import_module(LIBRARIES[key[0]][1])
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = most()
    run = load(key, path, threads)
    for _ in range(3):
        run(image)
    return most() - before


def interleave(files: dict[Key, Path], threads: int, rounds: int) -> dict[Key, list[float]]:
    """Run all files in turn and return the seconds of each: of the second of two runs in a row, with warm caches."""
    image = np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE), np.float32)
    runs = {key: load(key, path, threads) for key, path in tqdm(files.items(), desc='loading', leave=False)}
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for i in tqdm(range(rounds + 2), desc=f'latency, threads {threads}', leave=False):
        for key, run in runs.items():
            if threads > 1:
                time.sleep(0.05)  # the pool of the runtime before it still spins, on a core that this one needs
            run(image)
            start = time.perf_counter()
            run(image)
            if i > 1:  # the first two warm up
                times[key].append(time.perf_counter() - start)
    return times


def apart(cores: set[int], function: Callable, *args: Any) -> Any:
    """Call a function in a process of its own on these cores."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the process inherits it
    try:
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            return pool.submit(function, *args).result()
    finally:
        os.sched_setaffinity(0, own)


def compare(
        times: dict[Key, list[float]], peaks: dict[tuple[str, Key], float], files: dict[Key, Path], cores: str,
        threads: int,
) -> list[dict]:
    """Return a row per file, with its ratios to eager PyTorch, to mobilenetv2_100 and to fp32."""
    medians = {key: statistics.median(samples) for key, samples in times.items()}
    rows = []
    for key, samples in times.items():
        runtime, model, form = key
        low, median, high = (round(value * 1e3, 4) for value in statistics.quantiles(samples, n=4))
        row = dict(
            runtime=runtime, model=model, form=form, cores=cores, threads=threads, batch=1, size=SIZE, median=median,
            quartile1=low, quartile3=high, samples=len(samples))
        baselines = {
            'over_eager': ('pytorch', model, 'eager'), 'over_mobilenetv2_100': (runtime, 'mobilenetv2_100', form),
            'over_fp32': (runtime, model, 'fp32')}
        for column, baseline in baselines.items():
            row[column] = round(medians[key] / medians[baseline], 4) if baseline in medians else ''
        size = RUNTIMES[runtime].size(files[key]) if runtime in RUNTIMES else os.path.getsize(files[key])
        rows.append(row | dict(
            file_mb=round(size / 1e6, 3), peak_mb=round(peaks[cores, key], 1), reported_top1=REPORTED[model]))
    return rows


def measure(args: argparse.Namespace, instructions: list[str]) -> list[dict]:
    """Convert, measure, and return the rows of the runtimes that were asked for."""
    own = os.sched_getaffinity(0)
    settings = {cores: {'one': {max(own)}, 'all': own}[cores] for cores in args.cores}
    peaks: dict[tuple[str, Key], float] = {}
    rows = []
    with tempfile.TemporaryDirectory() as work:
        has_bf16 = not args.family and not {'avx512_bf16', 'amx_bf16'}.isdisjoint(instructions)
        runtimes = [name for name in LIBRARIES if name in ('pytorch', *args.runtimes)]  # PyTorch is compared with
        files = convert(FAMILY if args.family else MOBILE, runtimes, Path(work), has_bf16, not args.family)
        for cores, chosen in settings.items():
            progress = tqdm(files.items(), desc=f'memory, threads {len(chosen)}', leave=False)
            for key, path in progress:
                try:
                    peaks[cores, key] = apart(chosen, peak, key, path, len(chosen))
                except Exception as error:  # of whatever kind a runtime raises, its end included
                    progress.write(f'{", ".join(key)}, threads {len(chosen)}: does not run, {error!r:.200}')
        os.environ.update(ALLOCATOR)
        for cores, chosen in settings.items():
            running = {key: path for key, path in files.items() if (cores, key) in peaks}
            times = apart(chosen, interleave, running, len(chosen), args.rounds)
            rows += compare(times, peaks, files, cores, len(chosen))
    return [row for row in rows if row['runtime'] in args.runtimes]


def draw(rows: list[dict], path: Path) -> None:
    """Plot the latency by runtime, and the reported top-1 against it."""
    import matplotlib
    matplotlib.use('agg')  # draws without a screen
    import matplotlib.pyplot as plt

    title = '{machine}, {instructions}, torch {torch}'.format(**rows[0])
    panels = sorted({row['cores'] for row in rows}, reverse=True)
    groups = sorted({(row['runtime'], row['form']) for row in rows}, key=lambda g: (list(LIBRARIES).index(g[0]), g[1]))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(6.5 * len(panels), 1.5 + 0.95 * len(groups)), squeeze=False, layout='constrained')
    for axis, cores in zip(axes[0], panels, strict=True):
        for i, model in enumerate(MOBILE):
            found = [row for row in rows if (row['cores'], row['model']) == (cores, model)]
            medians = [float(row['median']) for row in found]
            errors = [[abs(float(row['median']) - float(row[q])) for row in found] for q in ('quartile1', 'quartile3')]
            places = [groups.index((row['runtime'], row['form'])) + 0.13 * (i - 2.5) for row in found]
            axis.barh(places, medians, 0.13, xerr=errors, color=f'C{i}', label=model)
        axis.set_yticks(range(len(groups)), ['\n'.join(group) for group in groups])
        axis.set(xlabel='ms, less is better', title=f'cores: {cores}, batch 1, {SIZE} px')
        axis.invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)

    single = [row for row in rows if row['cores'] == 'one' and row['form'] in ('eager', 'fp32')]
    if not single:
        return
    names = [name for name in LIBRARIES if name in {row['runtime'] for row in single}]
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 4), squeeze=False, sharey=True, layout='constrained')
    for axis, name in zip(axes[0], names, strict=True):
        for row in (row for row in single if row['runtime'] == name):
            point = float(row['median']), float(row['reported_top1'])
            axis.plot(*point, 'o', color=f'C{MOBILE.index(row["model"])}')
            above = row['model'] not in ('mobilenext_100', 'mobilenetv4_conv_small')  # half identity lies next to them
            axis.annotate(row['model'], point, (0, 5 if above else -5), textcoords='offset points', fontsize=7,
                          ha='center', va='bottom' if above else 'top')
        axis.margins(0.35, 0.12)
        axis.set(xlabel='ms on one core', title=f'{name}, {row["form"]}', xlim=(0, 1.3 * axis.dataLim.xmax))
    axes[0, 0].set_ylabel('reported top-1, %, not measured here')
    figure.suptitle(title, fontsize=9)
    figure.savefig(path.with_stem(f'{path.stem}_top1'), dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, write the CSV and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runtimes', nargs='+', choices=LIBRARIES, default=list(LIBRARIES)[:5],
                        help='whose rows are measured (default: all but litert)')
    parser.add_argument('--cores', nargs='+', choices=['one', 'all'], default=['one', 'all'], help='(default: both)')
    parser.add_argument('--family', action='store_true', help='all of this package, in fp32, on one core')
    parser.add_argument('--rounds', type=int, default=31, help='samples of each (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=Path(__file__).parent / 'results', help='folder of the results')
    parser.add_argument('--plot-only', action='store_true', help='draw the plots from the existing CSV')
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error('quartiles take at least --rounds 2')

    if args.family:
        args.cores = ['one']

    path = args.output / ('family.csv' if args.family else 'runtimes.csv')
    rows = list(csv.DictReader(path.open(newline=''))) if path.exists() else []
    if not args.plot_only:
        machine, instructions = processor()
        print(f'{machine}, {" ".join(instructions)}')
        rows = [row for row in rows if row['runtime'] not in args.runtimes or row['cores'] not in args.cores]
        rows += [row | dict(
            instructions=' '.join(instructions), machine=machine, torch=torch.__version__, timm=timm.__version__,
            runtime_version=importlib.metadata.version(LIBRARIES[row['runtime']][0]),
        ) for row in measure(args, instructions)]
    if not rows:
        parser.error(f'there are no rows for {path}')
    if not args.plot_only:
        args.output.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0], lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)
    if not args.family:
        draw(rows, path.with_suffix('.png'))
    print(path)


if __name__ == '__main__':
    main()
