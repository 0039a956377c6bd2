"""Fixtures of all tests. No test reaches outside the machine."""
import argparse
import contextlib
import dataclasses
import gc
import json
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'  # read when timm imports the Hub's client
# Read when PyTorch is imported. The tests run in a process per core: with more threads they would wait for each other.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import client as client_process
import official
import pytest
import timm
import torch
from loopback import Loopback
from networks import SHORT
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import ImageDataset, create_transform
from torch.optim.swa_utils import update_bn

import timm_mobilenext
from timm_mobilenext.weights import authors, download
from timm_mobilenext.weights.convert import convert

# TorchScript knows builtin functions by their address, which something else may have later; then it says "builtin
# cannot be used as a value" (PyTorch 2.5.1 and 2.14.1, in one of many runs). So keep them all.
builtins, register_builtin = [], torch.jit._builtins._register_builtin
torch.jit._builtins._register_builtin = lambda function, name: (
    builtins.append(function), register_builtin(function, name))
gc.freeze()  # the garbage collector need not look at what PyTorch has made
# A shell starts background jobs with Ctrl-C ignored, which the processes of the tests would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f'timm {timm.__version__}, timm_mobilenext from {Path(timm_mobilenext.__file__).parent}'


@pytest.fixture
def calibrated() -> Callable[..., torch.nn.Module]:
    """A function like `timm.create_model`: float64, with batch norm statistics that fit the weights, in eval mode.

    An untrained MobileNeXt answers about 1e-11 in evaluation mode: too little to compare with an absolute tolerance.
    """
    def create(name: str, **kwargs) -> torch.nn.Module:
        torch.manual_seed(0)
        if name.startswith('mobilenext'):
            kwargs.setdefault('zero_init_last', False)  # for branches that show in the answers
        model = timm.create_model(name, dtype=torch.float64, **kwargs)
        update_bn([torch.randn(4, kwargs.get('in_chans', 3), 64, 64, dtype=torch.float64)], model)
        return model.eval()
    return create


@pytest.fixture(scope='session')
def authors_files(tmp_path_factory) -> dict[str, Path]:
    """Files in the layout of the authors' five, with weights by formula."""
    folder = tmp_path_factory.mktemp('authors')
    files = {}
    for name, source in authors.SOURCES.items():
        files[name] = folder / name / 'model_best.pth.tar'
        files[name].parent.mkdir()
        official.save_checkpoint(files[name], name, source.ema)
    return files


@pytest.fixture(scope='session')
def blobs(authors_files) -> dict[str, str]:
    """The git blob ids of these files."""
    return {name: download.git_blob_id(path) for name, path in authors_files.items()}


@pytest.fixture(scope='session')
def paddle_file(tmp_path_factory) -> Path:
    """A file in the layout of PaddleClas, with weights by formula."""
    path = tmp_path_factory.mktemp('paddle') / 'MobileNeXt_x1_0_pretrained.pdparams'
    official.save_pdparams(path)
    return path


@pytest.fixture
def known_files(authors_files, blobs, monkeypatch) -> dict[str, Path]:
    """The same files, and this process knows them by their git blob ids."""
    for name, source in list(authors.SOURCES.items()):
        monkeypatch.setitem(authors.SOURCES, name, dataclasses.replace(source, blob=blobs[name]))
    return authors_files


@pytest.fixture
def server(tmp_path, authors_files, paddle_file) -> Iterator[Loopback]:
    """An empty Hub, and a file server with the authors' files and PaddleClas's."""
    with Loopback(tmp_path) as server:
        for name, path in {**authors_files, 'mobilenext_100.paddle_in1k': paddle_file}.items():
            (server.files / name).symlink_to(path.parent)
        yield server


class Client:
    """Runs code in new processes that share their caches only with each other."""

    # forks of one process that has imported PyTorch, which is most of the time of `import timm`; Windows has no forks
    processes = multiprocessing.get_context(
        'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn')
    processes.set_forkserver_preload(['torch', 'torchvision'])

    def __init__(self, folder: Path, server: Loopback, blobs: dict[str, str]) -> None:
        self.folder = folder
        self.hub_cache, self.torch_cache = folder / 'hf' / 'hub', folder / 'torch' / 'hub' / 'checkpoints'
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'TIMM_', 'TORCH_'))} | {
            'HF_ENDPOINT': server.url, 'HF_HOME': str(folder / 'hf'), 'TORCH_HOME': str(folder / 'torch'),
            'HF_HUB_DISABLE_PROGRESS_BARS': '1', 'HF_TOKEN': 'hf_test', 'NO_PROXY': '127.0.0.1',
            'AUTHORS_FILES': json.dumps({
                name: (f'{server.url}/files/{name}/model_best.pth.tar', blob) for name, blob in blobs.items()} | {
                name: (f'{server.url}/files/{name}/{source.name}', None)
                for name, source in authors.REPRODUCTIONS.items()}),
        }

    def start(self, code: str, **env: str) -> multiprocessing.process.BaseProcess:
        """Start code in a process and do not wait for it."""
        output = self.folder / f'run{len(list(self.folder.glob("run*")))}'
        process = self.processes.Process(
            target=client_process.main, args=(code, self.env | env, self.folder, output), daemon=True)
        process.start()
        process.output = output
        return process

    def wait(self, process: multiprocessing.process.BaseProcess) -> int:
        """Wait for a process, keep what it printed and return its exit code."""
        process.join(timeout=300)
        self.stdout, self.stderr = (
            Path(f'{process.output}.{name}').read_text() for name in ('stdout', 'stderr'))
        return process.exitcode

    def fail(self, code: str, **env: str) -> str:
        """Run code that has to end with an error, and return the error's type and message."""
        self.run(f'try:\n    {code}\nexcept BaseException as e:\n    print(type(e).__name__ + ": " + str(e))', **env)
        assert self.stdout, f'no error, but:\n{self.stderr}'
        return self.stdout

    def run(self, code: str, **env: str) -> str:
        """Run code and return what it prints, or fail with what it says."""
        assert self.wait(self.start(code, **env)) == 0, self.stdout + self.stderr
        return self.stdout.strip()


@pytest.fixture
def client(tmp_path, server, blobs) -> Client:
    """A user's machine: a Hub to talk to and empty caches."""
    folder = tmp_path / 'client'
    folder.mkdir()
    return Client(folder, server, blobs)


@pytest.fixture(scope='session')
def converted(tmp_path_factory, authors_files, blobs) -> Path:
    """The converted weights of mobilenext_100."""
    source = dataclasses.replace(authors.SOURCES['mobilenext_100'], blob=blobs['mobilenext_100'])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(authors.SOURCES, 'mobilenext_100', source)
        return convert(authors_files['mobilenext_100'], tmp_path_factory.mktemp('converted') / 'folder')


@pytest.fixture
def on_hub(server, client, converted) -> str:
    """The name and commit of these weights on the Hub, which the client knows."""
    shutil.copytree(converted, server.hub / client_process.REPO)
    pin = f'{client_process.REPO}@{server.revision(client_process.REPO)}'
    client.env['PINS'] = json.dumps({'mobilenext_100': pin})
    return pin


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of a server that never accepts a connection, as behind a firewall: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as callers:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1)  # on macOS 0 is the maximum
        for _ in range(4):
            caller = callers.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'


@pytest.fixture(scope='session')
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real digits that come with scikit-learn, 8 x 8 pixels, as a folder of images; a fifth is for validation."""
    root = tmp_path_factory.mktemp('digits')
    data = load_digits()
    for i, (image, label) in enumerate(zip(data.images, data.target, strict=True)):
        folder = root / ('train' if i % 5 else 'validation') / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9375).astype('uint8')).save(folder / f'{i}.png')  # 0..16 -> 0..255
    return root


@pytest.fixture(scope='session')
def trained(digits, tmp_path_factory) -> Path:
    """A checkpoint as train.py writes it, of a short and narrow mobilenext_100 that was trained on these digits."""
    torch.manual_seed(0)
    kwargs = dict(width_mult=0.35, **SHORT)
    model = timm.create_model('mobilenext_100', in_chans=1, num_classes=10, **kwargs)
    data = ImageDataset(digits / 'train', input_img_mode='L', transform=create_transform(
        (1, 32, 32), mean=(0.3,), std=(0.4,), crop_pct=1.))
    images, labels = (torch.stack([torch.as_tensor(part) for part in parts]) for parts in zip(*data, strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(6):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    args = argparse.Namespace(
        model='mobilenext_100', model_kwargs=kwargs, num_classes=10, in_chans=1, img_size=32, mean=[0.3], std=[0.4],
        crop_pct=1.)
    path = tmp_path_factory.mktemp('trained') / 'model_best.pth.tar'
    torch.save(dict(state_dict=model.state_dict(), args=args, arch='mobilenext_100', epoch=5), path)
    return path


@pytest.fixture(scope='session')
def timm_scripts() -> Path:
    """The folder of timm's scripts, which its package does not have."""
    folder = Path(os.environ.get('TIMM_SCRIPTS', Path(__file__).parent.parent.parent / 'pytorch-image-models'))
    if not (folder / 'train.py').exists():
        pytest.skip(f'no checkout of timm in {folder}: set TIMM_SCRIPTS to one to run its scripts')
    return folder
