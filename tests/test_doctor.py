"""The command doctor says what is installed and where weights would come from."""
import re
import subprocess
import sys

import pytest
import timm
import torch

import timm_mobilenext
from timm_mobilenext import doctor
from timm_mobilenext.doctor import count
from timm_mobilenext.weights.authors import SOURCES


def places(report: str) -> dict[str, str]:
    """The last column of the report by architecture."""
    rows = [re.split(r' {2,}', line) for line in report.splitlines() if line.startswith('mobilenext_')]
    return {row[0]: row[-1] for row in rows}


@pytest.mark.slow
def test_command():
    """The command prints versions, all architectures with their figures, and the line that registers the models."""
    result = subprocess.run(
        [sys.executable, '-m', 'timm_mobilenext', 'doctor'], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, '')
    assert f'timm-mobilenext {timm_mobilenext.__version__}, timm {timm.__version__}, torch {torch.__version__}' in (
        result.stdout.splitlines()[0])
    assert re.search(r'mobilenext_100 +3\.535 +311\.3 +74\.02  not cached, and HF_HUB_OFFLINE is set', result.stdout)
    assert re.search(r'mobilenext_035 +1\.914 +75\.1 +64\.7  none', result.stdout)
    assert list(places(result.stdout)) == timm.list_models(module='mobilenext')
    assert result.stdout.rstrip().endswith('import timm_mobilenext  # this line registers the models with timm')


@pytest.mark.slow
def test_places(on_hub, client):
    """The report says of all weights where they are then loaded from."""
    found = places(client.run("""
timm.create_model('mobilenext_s', pretrained=True)
from timm_mobilenext.doctor import main
assert main([]) == 0"""))
    expected = dict.fromkeys(timm.list_models(module='mobilenext'), 'none')
    expected |= dict.fromkeys(SOURCES, f"authors' file ({client.env['HF_ENDPOINT'].removeprefix('http://')})")
    expected['mobilenext_100'] = f'Hub ({on_hub})'
    expected['mobilenext_s'] = f"cache of torch.hub, authors' file ({next(client.torch_cache.iterdir()).name})"
    assert found == expected


def test_ctrl_c(monkeypatch):
    """Ctrl-C ends the command with one line."""
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, 'report', interrupt)
    with pytest.raises(SystemExit, match=r'^error: interrupted$'):
        doctor.main([])


def test_count(capsys):
    """Counting changes neither the statistics nor the hooks of a model, and prints nothing."""
    model = timm.create_model('mobilenext_035')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    params, madds, activations = count(model)
    assert (params, madds) == (1_913_976, 75_141_032)
    assert not torch.nn.modules.module._global_forward_hooks
    assert capsys.readouterr().out == ''
    sizes = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda module, args, out: sizes.append(out.numel()))
    model(torch.zeros(1, 3, 224, 224))
    assert sum(sizes) == activations
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
