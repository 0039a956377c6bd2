"""Fixtures of all tests. No test reaches outside the machine."""
import os
from collections.abc import Callable
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'  # read when timm imports the Hub's client

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.optim.swa_utils import update_bn

import timm_mobilenext


def pytest_report_header() -> str:
    return f'timm {timm.__version__}, timm_mobilenext from {Path(timm_mobilenext.__file__).parent}'


@pytest.fixture
def calibrated() -> Callable[..., torch.nn.Module]:
    """A function like `timm.create_model`: float64, with batch norm statistics that fit the weights, in eval mode.

    As the authors initialize it, an untrained MobileNeXt answers about 1e-11 in evaluation mode, where any comparison
    with an absolute tolerance finds all answers equal.
    """
    def create(name: str, **kwargs) -> torch.nn.Module:
        torch.manual_seed(0)
        model = timm.create_model(name, dtype=torch.float64, **kwargs)
        update_bn([torch.randn(4, 3, 64, 64, dtype=torch.float64)], model)
        return model.eval()
    return create


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
def timm_scripts() -> Path:
    """The folder of timm's scripts, which are in no package of it."""
    folder = Path(os.environ.get('TIMM_SCRIPTS', Path(__file__).parent.parent.parent / 'pytorch-image-models'))
    if not (folder / 'train.py').exists():
        pytest.skip(f'no checkout of timm in {folder}: set TIMM_SCRIPTS to one to run its scripts')
    return folder
