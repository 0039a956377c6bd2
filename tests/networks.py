"""The networks that the tests use, arguments for a short one, and the runtimes that files of them need."""
import importlib.util

import pytest
import timm

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.deploy.runtimes import RUNTIMES

ARCHITECTURES = timm.list_models(module='mobilenext')
SMALL = 'mobilenext_035'
# one of each kind of block and of padding, norm and activation
FAMILIES = [SMALL, 'mobilenext_100_id050', 'mobilenext_s', 'mobilenext_l', 'mobilenext_l_ghost']
# architecture -> the authors' network with the same parameters
OFFICIAL_NAME = {name: 'mnext' + name.removeprefix('mobilenext').split('_id')[0] for name in ARCHITECTURES}
# Arguments for five blocks of all kinds, for what is slow by the block, as compilers are: with both depthwise convs,
# both and a shortcut, the one that strides, none. Its branches show in answers and gradients from the start.
SHORT = dict(stages=((2, 96, 1, 2, 3), (6, 144, 1, 1, 3), (6, 192, 1, 2, 3), (6, 288, 2, 1, 5)), depth_mult=1.,
             zero_init_last=False)
needs_exporter = pytest.mark.skipif(
    importlib.util.find_spec('timmx') is None, reason="timmx is not installed, which the extra 'export' brings")


def need(runtime: str, int8: bool = False) -> None:
    """Skip a test if its runtime is not installed."""
    missing = RUNTIMES[runtime].missing(int8)
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed, which the extra {RUNTIMES[runtime].extra!r} brings")
