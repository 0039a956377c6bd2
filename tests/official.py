"""The authors' recorded layouts and answers, and weights made by formula. No file of the authors is kept.

`data/official.json` has the keys and shapes of the authors' state dicts with their parameters and multiply-adds.
`data/golden.json` has what the authors' code answered to `images()`, with weights by the formula below (torch 2.14.1,
CPU). `data/paddle.json` has both for PaddleClas's code. None of it was made with this package.
"""
import argparse
import hashlib
import json
import math
import pickle
import zlib
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np
import torch

OFFICIAL, GOLDEN, PADDLE = (
    json.loads(Path(__file__).with_name('data').joinpath(f'{name}.json').read_text())
    for name in ('official', 'golden', 'paddle'))


def uniform(key: str, n: int) -> np.ndarray:
    """Return n numbers in [0, 1), float64, that depend only on `key` and their index."""
    with np.errstate(over='ignore'):
        h = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(key.encode()))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # murmur3's finalizer
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        h ^= h >> np.uint32(16)
    return (h >> np.uint32(8)) / 2.0 ** 24


def fill(key: str, shape: list[int], gain: float) -> torch.Tensor:
    """Return the values of one entry of an official state dict, float32."""
    if key.endswith('num_batches_tracked'):
        return torch.tensor(0)
    u = uniform(key, math.prod(shape))
    v = 2 * u - 1
    if key.endswith('running_var'):
        x = 0.5 + u
    elif key.endswith(('running_mean', 'bias')):
        x = 0.25 * v
    elif len(shape) == 1:
        x = 0.75 + 0.5 * u
    elif len(shape) == 4:
        x = v * math.sqrt(3 * gain / math.prod(shape[1:]))
    else:
        x = v * math.sqrt(3 / shape[1])
    return torch.from_numpy(x.astype(np.float32).reshape(shape))


def state_dict(name: str) -> dict[str, torch.Tensor]:
    """Return the state dict of an official model, the authors' keys with values by formula."""
    model = OFFICIAL['models'][name]
    keys = OFFICIAL['keys'][model['keys']]
    return {key: fill(key, shape, model['weight_gain']) for key, shape in zip(keys, model['shapes'], strict=True)}


def case(name: str) -> str:
    """Return the recorded answer, in float32, of the weights that the authors published for an architecture."""
    return {'mobilenext_100_id050': 'mnext_100/div2/float32'}.get(name, f'm{name.removeprefix("mobile")}/div1/float32')


def save_checkpoint(path: Path, name: str, ema: bool) -> None:
    """Write a training checkpoint as the authors' saver did with the torch of 2020: an old container, tensors on a GPU.

    Args:
        path: The file.
        name: Name of the architecture.
        ema: Put the weights into the exponential moving average, and zeros in their place.
    """
    weights = state_dict(case(name).split('/')[0])
    checkpoint = dict(
        epoch=207, arch='i2rnetv3', state_dict=OrderedDict(weights),
        optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(9))}, param_groups=[dict(lr=0.1, params=[0])]),
        args=argparse.Namespace(model='i2rnetv3', batch_size=64, mean=None), version=2, metric=74.022)
    if ema:
        checkpoint |= dict(
            state_dict_ema=OrderedDict(weights), state_dict=OrderedDict((k, v * 0) for k, v in weights.items()))
    with mock.patch('torch.serialization.location_tag', return_value='cuda:0'):
        torch.save(checkpoint, path, _use_new_zipfile_serialization=False)


def pdparams() -> dict[str, np.ndarray]:
    """Return the state dict of PaddleClas's width 1.0, with the values of the authors' by formula."""
    arrays = {}
    for key, shape in PADDLE['keys'].items():
        torch_key = key.replace('_mean', 'running_mean').replace('_variance', 'running_var')
        is_linear = len(shape) == 2  # which PaddlePaddle saves transposed
        gain = OFFICIAL['models']['mnext_100']['weight_gain']
        value = fill(torch_key, shape[::-1] if is_linear else shape, gain).numpy()
        arrays[key] = value.T if is_linear else value
    return arrays


def save_pdparams(path: Path, protocol: int = 4) -> None:
    """Write these as `paddle.save` does: NumPy's arrays in a plain pickle, and a table of Paddle's own names.

    Args:
        path: The file.
        protocol: 4 is the default of paddle.save. 2 saves bytes as text, here with the names of NumPy 1.
    """
    table = {'classifier.1.bias': 'linear_0.b_0'}
    content = pickle.dumps({**pdparams(), 'StructuredToParameterName@@': table}, protocol)
    path.write_bytes(content.replace(b'numpy._core.', b'numpy.core.') if protocol == 2 else content)


def images() -> torch.Tensor:
    """Return images (2, 3, 224, 224), float32: triangle waves and noise of 8 bits."""
    b, c, i, j = np.meshgrid(*(np.arange(n) for n in (2, 3, 224, 224)), indexing='ij')

    def triangle(t: np.ndarray, period: int) -> np.ndarray:
        return np.abs(t % period - period // 2) * 4.0 / period - 1.0

    wave = 0.75 * triangle(i * (c + 1) + 13 * b, 64) + 0.75 * triangle(j * (b + 1) + 5 * c, 128)
    noise = (np.floor(uniform('input', b.size) * 256.0) - 128.0) / 256.0
    image = (wave + noise.reshape(b.shape)).astype(np.float32)
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN['input_sha256']
    return torch.from_numpy(image)


def golden_error(logits: torch.Tensor, case: str) -> float:
    """Return the largest difference of logits (2, 1000) to a recorded answer, relative to its standard deviation."""
    want, got = (GOLDEN['cases'] | PADDLE['cases'])[case], logits.double().numpy()
    errors = [np.abs(got[:, :16] - np.array(want['first16'])).max()]
    errors += [abs(got.mean() - want['mean']), abs(got.std() - want['std'])]
    errors += [abs(np.sqrt((got * got).sum()) - want['l2']) / want['l2'] * want['std']]
    assert got.argmax(1).tolist() == want['argmax']
    return max(errors) / want['std']
