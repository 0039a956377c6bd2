"""Run a user's code in a process of its own, with a Hub and caches of its own.

The environment has the addresses and git blob ids of the authors' files, since the real files are unavailable, and the
pins of a release: AUTHORS_FILES and PINS, JSON by architecture.
"""
import dataclasses
import gc
import json
import os
import sys
import warnings
from pathlib import Path

REPO = 'timm-mobilenext/mobilenext_100.in1k'
CREATE = "timm.create_model('mobilenext_100', pretrained=True{})"  # with further arguments


def golden(*names: str) -> str:
    """Return code that compares the answers of pretrained models with the authors', and prints their SHA-256."""
    return f"""
import hashlib
for name in {names}:
    logits = timm.create_model(name, pretrained=True).eval()(official.images())
    assert official.golden_error(logits, official.case(name)) < 2e-3, name
    print(name, hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def weights_in(folder: Path) -> list[str]:
    """Return the names of the files with weights in a cache, without notes and locks of the Hub's client."""
    return sorted(f.name for f in folder.rglob('*') if f.is_file() and f.stat().st_size > 1000)


def main(code: str, env: dict[str, str], folder: Path, output: Path) -> None:
    """Run code in `folder` with the environment `env`; stdout and stderr go to `output` with these endings."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for stream, name in ((sys.stdout, '.stdout'), (sys.stderr, '.stderr')):
        os.dup2(os.open(f'{output}{name}', os.O_WRONLY | os.O_CREAT), stream.fileno())
    warnings.simplefilter('ignore')
    gc.disable()  # it takes half of the time of the imports below

    # here, since the Hub's client reads the environment when it is imported
    import huggingface_hub.utils._http
    import official
    import timm
    import torch

    import timm_mobilenext
    from timm_mobilenext.weights import authors
    huggingface_hub.utils._http.time.sleep = lambda seconds: None  # retries wait for 23 seconds
    for name, (url, blob) in json.loads(env['AUTHORS_FILES']).items():
        table, tagged = (authors.REPRODUCTIONS, name) if '.' in name else (authors.SOURCES, f'{name}.in1k')
        table[name] = dataclasses.replace(table[name], url=url, blob=blob)
        cfg = timm.models._registry._model_pretrained_cfgs[tagged]
        cfg.url, cfg.hf_hub_id = url, json.loads(env.get('PINS', '{}')).get(name, '')
    torch.set_grad_enabled(False)
    exec(code, dict(official=official, timm=timm, timm_mobilenext=timm_mobilenext, torch=torch))
