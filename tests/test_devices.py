"""The examples in C++ and Node.js answer as Python does, and so do the files on the ARM instruction set."""
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import photographs
import pytest
from networks import FAMILIES, SHORT, need, needs_exporter

import timm_mobilenext

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location('arm64', ROOT / 'tools/arm64.py')
arm64 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(arm64)
# runtime -> its program of examples/cpp, and its file in fp32; the one in int8 is beside it
PROGRAMS = {
    'onnx': ('onnxruntime', 'model.onnx'), 'openvino': ('openvino', 'model.xml'),
    'executorch': ('executorch', 'model.pte'), 'ncnn': ('ncnn', 'model.ncnn.param')}
# OpenVINO 2026.4 cannot run int8 on a processor without instructions for dot products.
FAILS = {('model.int8.xml', 'cortex-a72')}
pytestmark = [needs_exporter, pytest.mark.slow]
needs_arm = pytest.mark.skipif(
    'ARM64_CACHE' not in os.environ, reason='set ARM64_CACHE to a folder for the emulated machine, which takes 2 GB')


@pytest.fixture(scope='module')
def images(tmp_path_factory) -> list[Path]:
    """Twenty photographs."""
    folder = tmp_path_factory.mktemp('images')
    photographs.save_pieces(folder, 20, 1)
    return sorted(folder.rglob('*.jpg'))


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a network that was trained on photographs, and one of images to calibrate by."""
    folder = tmp_path_factory.mktemp('network')
    photographs.train('mobilenext_100', folder / 'network', width_mult=0.5, **SHORT)
    photographs.save_pieces(folder / 'calibration', 60, 2)
    return folder / 'network', folder / 'calibration'


def export(python: str, source: tuple[Path, Path], output: Path, *formats: str) -> Path:
    """Return a folder of the files of formats in fp32 and int8."""
    subprocess.run(
        [python, '-m', 'timm_mobilenext', 'export', source[0], '--format', *formats, '--int8', '--calibration',
         source[1], '--output', output], check=True, timeout=900)
    return output


@pytest.fixture(scope='module')
def files(source, tmp_path_factory) -> Path:
    """A folder of files in fp32 and int8."""
    for runtime in PROGRAMS:
        need(runtime, int8=True)
    return export(sys.executable, source, tmp_path_factory.mktemp('files') / 'files', *PROGRAMS, 'torch-export')


def check_program(program: Sequence[str | Path], path: Path, images: Sequence[Path]) -> None:
    """Check that a program prints the logits that Python finds, and the name of the best class."""
    def call(*options: str) -> list[str]:
        arguments = [*options, path, path.with_name('model.json'), *images]
        return subprocess.run([*program, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()

    expected = arm64.logits_here(path, arm64.prepare(path, images))
    found = np.array([[float(word) for word in line.split('\t')[1:]] for line in call('--logits')])
    assert found.argmax(1).tolist() == expected.argmax(1).tolist()
    assert np.abs(found - expected).max() < 1e-3
    for line, image, logits in zip(call(), images, expected, strict=True):
        assert line.startswith(f'{image}: {photographs.LABELS[logits.argmax()]} ')


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> Path:
    """The folder of the programs of examples/cpp that can be built here."""
    for tool in ('cmake', 'c++'):
        if not shutil.which(tool):
            pytest.skip(f'{tool} is not installed')
    site, folder = Path(sysconfig.get_path('purelib')), tmp_path_factory.mktemp('cpp')
    library, = site.glob('onnxruntime/capi/libonnxruntime.so.*')
    headers = [f'-DONNXRUNTIME_INCLUDE_DIR={os.environ["ONNXRUNTIME_INCLUDE_DIR"]}'] * (
        'ONNXRUNTIME_INCLUDE_DIR' in os.environ)
    subprocess.run([
        'cmake', '-S', ROOT / 'examples/cpp', '-B', folder, f'-DOpenVINO_DIR={site}/openvino/cmake',
        f'-Dexecutorch_DIR={site}/executorch/share/cmake', f'-DONNXRUNTIME_LIBRARY={library}', *headers], check=True)
    subprocess.run(['cmake', '--build', folder], check=True)
    return folder


@pytest.mark.parametrize('runtime', PROGRAMS)
def test_cpp(runtime, programs, files, images):
    """The program in C++ goes from a photograph to Python's logits and label, in fp32 and int8."""
    name, file = PROGRAMS[runtime]
    if not (programs / f'classify_{name}').exists():
        pytest.skip(f"CMake has not found {name}'s headers and library")
    check_program([programs / f'classify_{name}'], files / file, images)
    if runtime != 'ncnn':
        check_program([programs / f'classify_{name}'], files / file.replace('model', 'model.int8'), images)


def test_bad_jpeg(programs, files, tmp_path):
    """A file that is not a JPEG is an error of one line."""
    (tmp_path / 'image.jpg').write_bytes(b'GIF89a')
    done = subprocess.run(
        [programs / 'classify_executorch', files / 'model.pte', files / 'model.json', tmp_path / 'image.jpg'],
        capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith('error: Not a JPEG file')


@pytest.mark.parametrize('file', ['model.onnx', 'model.int8.onnx'])
def test_node(file, files, images, tmp_path):
    """The program for Node.js goes from a photograph to Python's logits and label."""
    if not (ROOT / 'examples/node/node_modules').is_dir():
        pytest.skip('npm has not installed the packages of examples/node/package.json')
    # As in a checkout, with the package that is tested.
    (tmp_path / 'timm_mobilenext').symlink_to(Path(timm_mobilenext.__file__).parent)
    shutil.copytree(ROOT / 'examples/node', tmp_path / 'examples/node', ignore=shutil.ignore_patterns('node_modules'))
    (tmp_path / 'examples/node/node_modules').symlink_to(ROOT / 'examples/node/node_modules')
    check_program(['node', tmp_path / 'examples/node/classify.js'], files / file, images)


@needs_arm
@pytest.mark.parametrize('runtime', ['onnx', 'openvino', 'executorch'])
def test_cpp_on_arm(runtime, files, images):
    """The program in C++, built for ARM, goes there from a photograph to Python's logits and label here."""
    machine = arm64.Machine(Path(os.environ['ARM64_CACHE']))
    name, file = PROGRAMS[runtime]
    check_program(
        [machine.qemu, '-cpu', machine.cpu, '-L', machine.root, machine.programs() / f'classify_{name}'], files / file,
        images[:5])


def on_arm(*arguments: str | Path) -> list[str]:
    """Return the lines that tools/arm64.py prints."""
    command = [sys.executable, ROOT / 'tools/arm64.py', *arguments, '--cache', os.environ['ARM64_CACHE']]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


@needs_arm
def test_files_on_arm(source, files, images, tmp_path):
    """Files answer on ARM as PyTorch does here, on processors without and with dot products and on the newest."""
    folders = [files]
    if python := os.environ.get('LITERT_PYTHON'):
        folders.append(export(python, source, tmp_path / 'tflite', 'litert'))
    seen, failed = set(), set()
    for line in on_arm(*folders, '--images', images[0].parents[1])[1:]:
        file, processor, same, *differences = line.split(maxsplit=4)
        seen.add((file, processor))
        if same == 'error:':
            failed.add((file, processor))
        elif 'int8' in file:
            assert float(same.rstrip('%')) >= 90, line
            assert all(float(difference) < 0.25 for difference in differences[1:]), line  # to the same file on x86
        else:
            assert same == '100.0%', line
            assert all(float(difference) < 1e-4 for difference in differences), line
    assert failed == FAILS
    assert len(seen) == len(arm64.PROCESSORS) * (7 + 2 * (len(folders) - 1))


@needs_arm
def test_package_on_arm():
    """On ARM the package gives the reference code's answers, folds its networks and exports one to ONNX."""
    lines = on_arm('--processors', 'cortex-a76', '--run', ROOT / 'tests/on_arm.py', *FAMILIES)
    errors = {name: errors for name, *errors in map(str.split, lines) if name.startswith('mobilenext')}
    assert errors.keys() == set(FAMILIES)
    assert all(float(error) < 2e-3 for pair in errors.values() for error in pair), errors
    assert any('model.onnx: ' in line for line in lines)
