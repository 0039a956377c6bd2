"""Weights of PaddlePaddle: they answer as PaddleClas's code did, no code of a file runs, and the tag loads them."""
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import official
import pytest
import timm
import torch
from safetensors import safe_open

from timm_mobilenext.weights.authors import REPRODUCTIONS
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.weights.download import git_blob_id, read

NAME = 'mobilenext_100.paddle_in1k'


def answers(model: str | Path) -> torch.Tensor:
    """Return the logits (2, 1000) of a converted folder, float64: in float32 these weights magnify each rounding."""
    with torch.no_grad():
        return timm.create_model(f'local-dir:{model}', pretrained=True).eval().double()(official.images().double())


@pytest.mark.parametrize('protocol', [2, 4])
def test_convert(protocol, tmp_path):
    """A file in either protocol that paddle.save has used becomes a network that answers as PaddleClas's did."""
    path = tmp_path / 'weights.pdparams'
    official.save_pdparams(path, protocol)
    assert len(read(path)) == len(official.PADDLE['keys']) == 372
    folder = convert(path, tmp_path / 'folder', model='mobilenext_100')
    assert official.golden_error(answers(folder), 'paddleclas/float64') < 1e-6
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        assert 'license' not in file.metadata()  # it may be anyone's


def test_convert_by_tag(tmp_path, paddle_file):
    """With the tag, the file counts as PaddleClas's, and its licence and origin go with the weights."""
    folder = convert(paddle_file, tmp_path / 'folder', model=NAME)
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        header = file.metadata()
    source = REPRODUCTIONS[NAME]
    assert (header['source'], header['license']) == (source.url, 'apache-2.0')
    assert header['git_blob_id'] == git_blob_id(paddle_file)
    assert timm.create_model(f'local-dir:{folder}').pretrained_cfg['license'] == 'apache-2.0'


def test_the_authors_answer():
    """PaddleClas's code and the authors' are one network: with the same weights they gave the same recorded answer."""
    recorded = [official.GOLDEN['cases']['mnext_100/div1/float64'], official.PADDLE['cases']['paddleclas/float64']]
    np.testing.assert_allclose(*(answer['first16'] for answer in recorded), rtol=0, atol=1e-8)


def test_what_is_not_read(tmp_path):
    """A file that asks for code is refused before any of it runs; the bits of bfloat16 do not pass for weights."""
    path = tmp_path / 'weights.pdparams'
    path.write_bytes(b'cos\nmkdir\n(V' + str(tmp_path / 'trace').encode() + b'\ntR.')  # the pickle of a call
    with pytest.raises(RuntimeError, match=r'was not loaded \(it asks for the code of os\.mkdir\)'):
        read(path)
    assert not (tmp_path / 'trace').exists()
    path.write_bytes(pickle.dumps({'a': np.zeros(3, np.uint16), 'b': np.ones(3, np.float32)}, protocol=2))
    assert read(path).keys() == {'b'}


@pytest.mark.slow
def test_pretrained(server, client):
    """The tag takes PaddleClas's file while the Hub has none, says that no digest is known, and caches it."""
    create = f"timm.create_model('{NAME}', pretrained=True)"
    client.run(create)
    url = f'{server.url}/files/{NAME}/MobileNeXt_x1_0_pretrained.pdparams'
    assert client.stderr.startswith(f"Taking PaddleClas's file {url}, of which no digest is known.\n")
    file, = client.torch_cache.iterdir()
    assert file.name == 'MobileNeXt_x1_0_pretrained.pdparams'
    server.log.clear()
    client.run(create)
    assert server.log == []
    os.truncate(file, 1_000_000)
    assert f'RuntimeError: {file} was not loaded (' in client.fail(create)


def test_paddle(tmp_path):
    """What paddle.save writes now, of the same weights, converts to the recorded answer."""
    paddle = pytest.importorskip('paddle', reason='paddlepaddle is not installed')
    path = tmp_path / 'weights.pdparams'
    paddle.save({k: paddle.to_tensor(np.ascontiguousarray(v)) for k, v in official.pdparams().items()}, str(path))
    assert official.golden_error(answers(convert(path, tmp_path / 'folder', model=NAME)), 'paddleclas/float64') < 1e-6


def test_paddleclas(tmp_path):
    """PaddleClas's own network, saved by paddle.save, and the one converted from that file give the same logits."""
    checkout = os.environ.get('PADDLECLAS')
    if not checkout:
        pytest.skip('set PADDLECLAS to a checkout of github.com/PaddlePaddle/PaddleClas')
    paddle = pytest.importorskip('paddle', reason='paddlepaddle is not installed')
    code = Path(checkout, 'ppcls', 'arch', 'backbone', 'model_zoo', 'mobilenext.py').read_text()
    module = types.ModuleType('mobilenext')  # without the import of what downloads weights
    exec(code.replace('from ....utils.save_load import load_dygraph_pretrain', ''), module.__dict__)
    paddle.set_default_dtype('float64')
    network = module.MobileNeXt_x1_0()
    network.eval()
    assert {key: value.shape for key, value in network.state_dict().items()} == official.PADDLE['keys']
    network.set_state_dict({
        key: paddle.to_tensor(np.ascontiguousarray(value, np.float64)) for key, value in official.pdparams().items()})
    path = tmp_path / 'weights.pdparams'
    paddle.save(network.state_dict(), str(path))
    logits = network(paddle.to_tensor(official.images().numpy().astype(np.float64))).numpy()
    ours = answers(convert(path, tmp_path / 'folder', model=NAME)).numpy()
    print('largest difference', np.abs(ours - logits).max(), file=sys.stderr)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5)
    assert official.golden_error(torch.from_numpy(logits), 'paddleclas/float64') < 1e-6
