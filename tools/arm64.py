r"""Run exported files on the ARM instruction set: an ARM Linux of Debian's and PyPI's packages, which QEMU emulates.

    python -m timm_mobilenext export SOURCE --format onnx openvino executorch ncnn torch-export --int8 \
        --calibration images --output files
    python tools/arm64.py files --images images

This prints for each file and processor the share of JPEG images that get the same class as from PyTorch on this
machine (`model.pt2`). It also prints the largest difference of a logit to PyTorch and to the same file on this machine,
in standard deviations of all logits. It says nothing about speed. Nothing is installed: the packages lie unpacked in
--cache.

examples/cpp runs the files of ExecuTorch, whose Python package for ARM needs a version of PyTorch that PyPI has only
for CUDA. With --run, a script that imports this package runs there, with an older PyTorch.
"""
import argparse
import contextlib
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
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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
# PyTorch 2.10 is the last with a wheel for ARM that does not need CUDA; torchvision 0.25 is the one built for it.
TORCH = {'torch': '2.10.0', 'torchvision': '0.25.0'}
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'), 'timm-mobilenext', 'arm64')
# without the instructions for dot products of int8, with them, the newest
PROCESSORS = ('cortex-a72', 'cortex-a76', 'max')
SUFFIXES = ('.onnx', '.xml', '.pte', '.tflite', '.ncnn.param')


class CannotRunError(Exception):
    """Something cannot be run here, and why."""


def call(*command: str | Path, **options: object) -> str:
    """Return what a command prints, or raise `CannotRunError` with the last line of its errors."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise CannotRunError((done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1])
    return done.stdout


def installed(package: str) -> str:
    """Return a package with its version, if it is installed here."""
    try:
        return f'{package}=={TORCH.get(package) or importlib.metadata.version(package)}'
    except importlib.metadata.PackageNotFoundError:
        return package


def needed(*packages: str) -> list[str]:
    """Return packages that are installed here and all that they need, without CUDA, each with its version."""
    found, left = {}, [*map(Requirement, packages)]
    while left:
        package = left.pop()
        key = package.name, *package.extras
        if key in found or package.name.startswith(('cuda', 'nvidia', 'triton')):
            continue
        found[key] = installed(canonicalize_name(package.name))
        for part in map(Requirement, importlib.metadata.requires(package.name) or ()):
            if part.marker is None or any(part.marker.evaluate({'extra': extra}) for extra in package.extras or {''}):
                left.append(part)
    return sorted(set(found.values()))


class Machine:
    """An emulated ARM machine.

    Args:
        cache: Folder to keep it in, which takes 0.9 GB, 0.8 GB more with the package's PyTorch.
        cpu: Name of the processor, as `qemu-aarch64 -cpu help` lists them.

    Raises:
        CannotRunError: If it cannot be made here.
    """

    def __init__(self, cache: Path, cpu: str = PROCESSORS[0]) -> None:
        if not shutil.which('apt-get'):
            raise CannotRunError('The emulated machine is made of Debian packages, and apt-get is not installed here.')
        self.cache, self.cpu = cache.absolute(), cpu
        self.root = self.kept('root', DEBIAN, lambda folder: self.unpack('arm64', DEBIAN, folder))
        here = call('dpkg', '--print-architecture').strip()
        emulator = self.kept('qemu', [here], lambda folder: self.unpack(here, ['qemu-user'], folder))
        self.qemu = emulator / 'usr/bin/qemu-aarch64'

    def kept(self, name: str, contents: Sequence[str], make: Callable[[Path], object]) -> Path:
        """Return a folder of the cache with these contents; make it if it does not exist."""
        folder = self.cache / f'{name}-{zlib.crc32(repr(contents).encode()):08x}'
        if not folder.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.cache) as work:
                make(Path(work) / 'new')
                os.rename(Path(work) / 'new', folder)
        return folder

    def unpack(self, architecture: str, packages: Sequence[str], folder: Path) -> None:
        """Unpack Debian packages, downloaded from where this machine gets its own."""
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
        """Return a folder of Python packages for it."""
        platforms = [f'--platform=manylinux_2_{minor}_aarch64' for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
        return self.kept(name, packages, lambda folder: call(
            sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-compile', '--only-binary=:all:',
            *platforms, '--implementation=cp', f'--python-version={PYTHON}', '--target', folder, *packages))

    def site(self) -> Path:
        """Return the folder of the runtimes, in the versions that are installed here."""
        return self.wheels('site', [*map(installed, RUNTIMES)])

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
        site, sources = self.site(), ROOT / 'examples/cpp'
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


def prepare(model: Path, images: Sequence[Path]) -> np.ndarray:
    """Return images as a file takes them, (N, C, H, W)."""
    about = json.loads(model.with_name('model.json').read_text())
    transform = create_transform(**{key: about[key] for key in (
        'input_size', 'interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')})
    return np.stack([transform(Image.open(image).convert(about['input'])).numpy() for image in images])


def logits_here(model: Path, prepared: np.ndarray) -> np.ndarray:
    """Return the logits (N, C) of a file on this machine."""
    run = runtimes.load(model, threads=1)
    return np.stack([run(image[None]).flatten() for image in prepared])


def logits_there(
        machine: Machine, models: Sequence[Path], images: Sequence[Path], prepared: np.ndarray,
) -> dict[Path, np.ndarray]:
    """Return the logits (N, C) of files on the emulated machine, or the text of an error."""
    found: dict[Path, np.ndarray] = {}
    # One process for all that Python runs: under emulation the imports take longer than the networks.
    in_python = [model for model in models if model.suffix != '.pte']
    with tempfile.TemporaryDirectory() as work:
        np.save(f'{work}/images.npy', prepared)
        try:
            machine.python(
                Path(__file__).with_name('arm64_guest.py'), f'{work}/images.npy', f'{work}/logits.npz', *in_python,
                path=[machine.site()])
            found |= zip(in_python, np.load(f'{work}/logits.npz').values(), strict=True)
        except CannotRunError as error:
            found |= dict.fromkeys(in_python, np.array(str(error)))
    for model in models:
        if model in found:
            continue
        try:
            printed = machine.run(
                machine.programs() / 'classify_executorch', '--logits', model, model.with_name('model.json'), *images)
            found[model] = np.array([[float(word) for word in line.split('\t')[1:]] for line in printed.splitlines()])
        except CannotRunError as error:
            found[model] = np.array(str(error))
    return found


def compare(machine: Machine, models: Sequence[Path], images: Sequence[Path], processors: Sequence[str]) -> None:
    """Print what files answer on each processor beside what PyTorch answers here."""
    reference = models[0].with_name('model.pt2')
    if not reference.exists():
        raise CannotRunError(f'{reference} does not exist. Export torch-export too.')
    prepared = prepare(reference, images)
    expected, here = logits_here(reference, prepared), {}
    for model in models:
        with contextlib.suppress(ImportError):
            here[model] = logits_here(model, prepared)

    def difference(found: np.ndarray, other: np.ndarray) -> str:
        return f'{np.abs(found - other).max() / expected.std():.2g}'

    print(f'{"file":<18}{"processor":<12}{"same class":>10}{"to PyTorch":>12}{"to x86":>10}')
    for machine.cpu in processors:
        for model, found in logits_there(machine, models, images, prepared).items():
            line = f'{model.name:<18}{machine.cpu:<12}'
            if found.dtype.kind == 'U':
                print(f'{line}error: {found}')
                continue
            same = np.mean(found.argmax(1) == expected.argmax(1))
            to_x86 = difference(found, here[model]) if model in here else ''
            print(f'{line}{same:>10.1%}{difference(found, expected):>12}{to_x86:>10}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folders', nargs='*', type=Path, metavar='FOLDER',
                        help='what export wrote, model.pt2 in the first; with none the machine is made')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of JPEG files, also in folders of it')
    parser.add_argument('--num-images', type=int, default=40, metavar='N',
                        help='number of images (default: %(default)s)')
    parser.add_argument('--processors', nargs='+', default=PROCESSORS, metavar='NAME',
                        help=f'as QEMU names them (default: {" ".join(PROCESSORS)})')
    parser.add_argument('--run', nargs='+', metavar='WORD', help='a Python script to run there, and its arguments')
    parser.add_argument('--cache', type=Path, default=CACHE, metavar='DIR',
                        help='where the machine is kept (default: ~/.cache/timm-mobilenext/arm64)')
    args = parser.parse_args()
    try:
        machine = Machine(args.cache, args.processors[0])
        if args.run:
            with tempfile.TemporaryDirectory() as work:
                Path(work, 'timm_mobilenext').symlink_to(Path(timm_mobilenext.__file__).parent)
                path = [machine.wheels('package', needed('timm', 'timmx[onnx]')), Path(work)]
                print(machine.python(*args.run, path=path), end='')
            return
        if not args.folders:
            print(f'The machine is in {args.cache}.')
            return
        paths = [path for folder in args.folders for path in sorted(folder.iterdir()) if path.name.endswith(SUFFIXES)]
        images = sorted(args.images.rglob('*.jpg'))
        images = images[::max(1, len(images) // args.num_images)][:args.num_images]
        compare(machine, paths, images, args.processors)
    except CannotRunError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
