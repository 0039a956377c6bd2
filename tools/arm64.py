r"""Run exported files on the ARM instruction set: an ARM Linux of Debian's and PyPI's packages, which QEMU emulates.

    python -m timm_mobilenext export SOURCE --format onnx openvino executorch ncnn torch-export --int8 \
        --calibration images --output files
    python tools/arm64.py files --images images

prints for each file and processor the share of JPEG images that get the class that PyTorch gives here, by `model.pt2`,
and the largest difference of a logit, in standard deviations of all logits, to PyTorch and to the same file here. It
says nothing of speed. Files of ExecuTorch are run by examples/cpp, as its Python package for ARM wants its own version
of PyTorch, which PyPI has only for CUDA. `--run` runs a script that imports this package, by an older PyTorch. Nothing
is installed: the packages lie unpacked in --cache.
"""
import argparse
import csv
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import create_transform

import timm_mobilenext
from timm_mobilenext.deploy import runtimes

ROOT = Path(__file__).parents[1]
SUITE, PYTHON = 'trixie', '3.13'
DEBIAN = (
    'libc6', 'libgcc-s1', 'libstdc++6', 'libgomp1', 'zlib1g', 'libexpat1', 'libffi8', 'libbz2-1.0', 'liblzma5',
    'libssl3t64', 'libzstd1', 'libuuid1', f'python{PYTHON}-minimal', f'libpython{PYTHON}-minimal',
    f'libpython{PYTHON}-stdlib', 'libjpeg62-turbo', 'libjpeg62-turbo-dev', 'libonnxruntime-dev', 'nlohmann-json3-dev')
RUNTIMES = (
    'numpy', 'onnxruntime', 'ncnn', 'ai-edge-litert', 'openvino', 'openvino-telemetry', 'executorch', 'flatbuffers')
# PyTorch 2.10 is the last with a wheel for ARM that does not want CUDA.
PACKAGE = (
    'torch==2.10.0', 'torchvision==0.25.0', 'timm', 'timmx', 'onnx', 'onnxscript', 'onnx-ir', 'onnxslim', 'colorama',
    'ml-dtypes', 'numpy', 'pillow', 'pyyaml', 'huggingface-hub', 'safetensors', 'tqdm', 'sympy', 'mpmath', 'networkx',
    'jinja2', 'markupsafe', 'fsspec', 'filelock', 'typing-extensions', 'packaging', 'httpx2', 'httpcore2', 'h11',
    'anyio', 'idna', 'certifi', 'truststore', 'click', 'rich', 'typer', 'shellingham', 'markdown-it-py', 'mdurl',
    'pygments', 'annotated-doc', 'protobuf', 'setuptools', 'onnxruntime', 'flatbuffers')
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'), 'timm-mobilenext', 'arm64')
# without the instructions for dot products of int8, with them, the newest
PROCESSORS = ('cortex-a72', 'cortex-a76', 'max')
SUFFIXES = ('.onnx', '.xml', '.pte', '.tflite', '.ncnn.param')


class CannotRunError(Exception):
    """Something cannot be run here, and why."""


def call(*command: str | Path, **options: object) -> str:
    """Return what a command prints, or raise `CannotRunError` with the end of what it complains of."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f'exit status {done.returncode}']
        raise CannotRunError(lines[-1].strip())
    return done.stdout


class Machine:
    """An emulated ARM machine.

    Args:
        cache: Folder to keep it in, which takes 0.5 GB, 1.2 GB more with the package's PyTorch.
        cpu: Name of the processor, as `qemu-aarch64 -cpu help` lists them.

    Raises:
        CannotRunError: If it cannot be made here.
    """

    def __init__(self, cache: Path, cpu: str = PROCESSORS[0]) -> None:
        for tool in ('apt-get', 'dpkg-deb'):
            if not shutil.which(tool):
                raise CannotRunError(f'The emulated machine is made of Debian packages, and there is no {tool} here.')
        self.cache, self.cpu = cache.absolute(), cpu
        self.root = self.kept('root', DEBIAN, lambda folder: self.unpack('arm64', DEBIAN, folder))
        here = call('dpkg', '--print-architecture').strip()
        emulator = self.kept('qemu', [here], lambda folder: self.unpack(here, ['qemu-user'], folder))
        self.qemu = emulator / 'usr/bin/qemu-aarch64'

    def kept(self, name: str, contents: Sequence[str], make: Callable[[Path], object]) -> Path:
        """Return a folder of the cache with these contents, made if it is not there."""
        folder = self.cache / f'{name}-{zlib.crc32(repr(contents).encode()):08x}'
        if not folder.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache) as work:
                make(Path(work) / 'new')
                os.rename(Path(work) / 'new', folder)
        return folder

    def unpack(self, architecture: str, packages: Sequence[str], folder: Path) -> None:
        """Unpack Debian packages, from where this machine has its own."""
        index = call('apt-get', 'indextargets', '--format', '$(REPO_URI) $(COMPONENT) $(CREATED_BY)')
        addresses = {line.split()[0] for line in index.splitlines() if line.endswith('/debian/ main Packages')}
        if not addresses:
            raise CannotRunError("The emulated machine is made of Debian packages, and apt's sources are not Debian's.")
        with tempfile.TemporaryDirectory(dir=self.cache) as state:
            for part in ('lists/partial', 'archives/partial', 'packages'):
                Path(state, part).mkdir(parents=True)
            Path(state, 'status').touch()
            Path(state, 'sources').write_text(''.join(
                f'deb [arch={architecture} signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] '
                f'{address} {SUITE} main\n' for address in sorted(addresses)))
            Path(state, 'config').write_text(
                f'APT::Architecture "{architecture}"; APT::Architectures {{ "{architecture}"; }}; '
                f'APT::Sandbox::User ""; Dir::State "{state}"; Dir::State::status "{state}/status"; '
                f'Dir::Cache "{state}"; Dir::Etc::sourcelist "{state}/sources"; Dir::Etc::sourceparts "-";')
            environment = os.environ | {'APT_CONFIG': f'{state}/config'}
            call('apt-get', 'update', '--error-on=any', env=environment)
            call('apt-get', 'download', *packages, env=environment, cwd=Path(state, 'packages'))
            for package in Path(state, 'packages').iterdir():
                call('dpkg-deb', '-x', package, folder)
        if not (folder / 'lib').exists():
            (folder / 'lib').symlink_to('usr/lib')  # as Debian's base-files does

    def wheels(self, name: str, packages: Sequence[str]) -> Path:
        """Return a folder of Python packages for it: those that are installed here in the same versions."""
        def pin(package: str) -> str:
            try:
                return package if '=' in package else f'{package}=={importlib.metadata.version(package)}'
            except importlib.metadata.PackageNotFoundError:
                return package

        platforms = [f'--platform=manylinux_2_{minor}_aarch64' for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
        pinned = [pin(package) for package in packages]
        return self.kept(name, pinned, lambda folder: call(
            sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--only-binary=:all:', *platforms,
            '--implementation=cp', f'--python-version={PYTHON}', '--target', folder, *pinned))

    def run(self, program: str | Path, *arguments: str | Path, path: Sequence[Path] = ()) -> str:
        """Run a program of the machine, and return what it prints."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith('OPENBLAS_')} | {
            'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1',
            'PYTHONPATH': os.pathsep.join(map(str, path))}
        return call(self.qemu, '-cpu', self.cpu, '-L', self.root, program, *arguments, env=environment)

    def python(self, *arguments: str | Path, path: Sequence[Path] = ()) -> str:
        """Run its Python."""
        return self.run(self.root / f'usr/bin/python{PYTHON}', *arguments, path=path)

    def programs(self) -> Path:
        """Return the folder of examples/cpp, built for it."""
        site, sources = self.wheels('site', RUNTIMES), ROOT / 'examples/cpp'
        include, library = self.root / 'usr/include', self.root / 'usr/lib/aarch64-linux-gnu'
        onnxruntime, = site.glob('onnxruntime/capi/libonnxruntime.so.*')

        def build(folder: Path) -> None:
            options = dict(
                CMAKE_SYSTEM_NAME='Linux', CMAKE_SYSTEM_PROCESSOR='aarch64', CMAKE_CXX_COMPILER='aarch64-linux-gnu-g++',
                CMAKE_CXX_FLAGS=f'-I{include}/aarch64-linux-gnu', JSON_INCLUDE_DIR=include, JPEG_INCLUDE_DIR=include,
                JPEG_LIBRARY=library / 'libjpeg.so', OpenVINO_DIR=site / 'openvino/cmake',
                executorch_DIR=site / 'executorch/share/cmake', ONNXRUNTIME_LIBRARY=onnxruntime,
                ONNXRUNTIME_INCLUDE_DIR=include / 'onnxruntime')
            call('cmake', '-S', sources, '-B', folder, *(f'-D{key}={value}' for key, value in options.items()))
            call('cmake', '--build', folder)

        return self.kept('cpp', [str(site), *(file.read_text() for file in sorted(sources.iterdir()))], build)


def answers(machine: Machine, path: Path, images: Sequence[Path], prepared: np.ndarray, work: Path) -> np.ndarray:
    """Return the logits (N, C) of a file for images, on the machine."""
    if path.suffix == '.pte':
        printed = machine.run(
            machine.programs() / 'classify_executorch', '--logits', path, path.with_name('model.json'), *images)
        return np.array([[float(word) for word in line.split('\t')[1:]] for line in printed.splitlines()])
    np.save(work / 'images.npy', prepared)
    machine.python(
        Path(__file__).with_name('arm64_guest.py'), path, work / 'images.npy', work / 'answers.npy',
        path=[machine.wheels('site', RUNTIMES)])
    return np.load(work / 'answers.npy')


def compare(machine: Machine, paths: Sequence[Path], images: Sequence[Path], cpus: Sequence[str]) -> list[dict]:
    """Return what files answer on each processor beside what PyTorch answers here."""
    about = json.loads(paths[0].with_name('model.json').read_text())
    transform = create_transform(**{key: about[key] for key in (
        'input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')})
    prepared = np.stack([transform(Image.open(image).convert(about['input'])).numpy() for image in images])

    def here(path: Path) -> np.ndarray:
        run = runtimes.load(path, threads=1)
        return np.stack([run(image[None]).flatten() for image in prepared])

    reference, rows = paths[0].with_name('model.pt2'), []
    if not reference.exists():
        raise CannotRunError(f'{reference} does not exist. Export torch-export too.')
    expected = here(reference)
    for path in paths:
        try:
            x86 = here(path)
        except ImportError:
            x86 = None
        for cpu in cpus:
            row = dict(file=path.name, processor=cpu, agreement='', difference='', from_x86='', error='')
            machine.cpu = cpu
            try:
                with tempfile.TemporaryDirectory() as work:
                    found = answers(machine, path, images, prepared, Path(work))
                row['agreement'] = np.mean(found.argmax(1) == expected.argmax(1)).item()
                row['difference'] = float(np.abs(found - expected).max() / expected.std())
                if x86 is not None:
                    row['from_x86'] = float(np.abs(found - x86).max() / expected.std())
            except CannotRunError as error:
                row['error'] = str(error)
            rows.append(row)
            print('  '.join(f'{key} {value:.2g}' if isinstance(value, float) else str(value)
                            for key, value in row.items() if value != ''), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='*', type=Path, metavar='FOLDER',
                        help='what export wrote, the first with model.pt2; none: make the machine')
    parser.add_argument('--images', type=Path, metavar='DIR', help='JPEG files, also in folders')
    parser.add_argument('--num-images', type=int, default=40, metavar='N', help='how many of them (default: 40)')
    parser.add_argument('--processors', nargs='+', default=PROCESSORS, metavar='NAME',
                        help=f'as QEMU names them (default: {" ".join(PROCESSORS)})')
    parser.add_argument('--run', nargs='+', metavar='WORD', help='a Python script to run, and its arguments')
    parser.add_argument('--cache', type=Path, default=CACHE, metavar='DIR',
                        help='where the machine is kept (default: ~/.cache/timm-mobilenext/arm64)')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write what was found there too')
    args = parser.parse_args()
    try:
        machine = Machine(args.cache, args.processors[0])
        if args.run:
            with tempfile.TemporaryDirectory() as work:
                Path(work, 'timm_mobilenext').symlink_to(Path(timm_mobilenext.__file__).parent)
                path = [machine.wheels('package', PACKAGE), Path(work)]
                print(machine.python(*args.run, path=path))
            return
        if not args.folders:
            print(f'The machine is in {args.cache}.')
            return
        paths = [path for folder in args.folders for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
        images = sorted(args.images.rglob('*.jpg'))
        images = images[::max(1, len(images) // args.num_images)][:args.num_images]
        rows = compare(machine, paths, images, args.processors)
    except CannotRunError as error:
        sys.exit(f'error: {error}')
    if args.csv:
        with args.csv.open('w', newline='') as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    main()
