"""`python -m timm_mobilenext doctor` says what is installed and where weights would come from."""
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import timm
import torch

import timm_mobilenext
from timm_mobilenext import doctor
from timm_mobilenext.weights.convert import convert
from timm_mobilenext.doctor import count
from timm_mobilenext.weights.authors import SOURCES

REPORT = 'from timm_mobilenext.doctor import main\nassert main([]) == 0'
# the last column of the report alone, as the rest of it takes longer
PLACES = """
from timm_mobilenext.weights.download import locate
for name in timm.list_models(module='mobilenext'):
    print(name, '', '', '', locate(name, timeout=4), sep='  ')"""


def places(report: str) -> dict[str, str]:
    """The last column of the report by architecture."""
    rows = [re.split(r' {2,}', line) for line in report.splitlines() if line.startswith('mobilenext_')]
    return {row[0]: row[-1] for row in rows}


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


def test_places(server, client, known_files):
    """Each weight is where it would be taken from: a cache, the Hub, the authors' file, or nowhere."""
    found = places(client.run(REPORT))
    assert {found[name] for name in SOURCES} == {"authors' file (127.0.0.1:" + server.url.rpartition(':')[2] + ')'}
    assert {place for name, place in found.items() if name not in SOURCES} == {'none'}

    convert('mobilenext_s', known_files['mobilenext_s'], server.hub / 'timm-mobilenext/mobilenext_s.in1k')
    assert places(client.run(PLACES))['mobilenext_s'] == 'Hub (timm-mobilenext/mobilenext_s.in1k)'
    server.faults['hub'] = 'gated'
    assert places(client.run(PLACES))['mobilenext_s'].endswith('gated: accept its conditions there')
    server.faults.clear()

    client.run("for name in ('mobilenext_100', 'mobilenext_s'): timm.create_model(name, pretrained=True)")
    found = places(client.run(PLACES, HF_HUB_OFFLINE='1'))
    assert found['mobilenext_s'] == 'cached, from the Hub (timm-mobilenext/mobilenext_s.in1k)'
    assert re.fullmatch(r"cached, authors' file \(mobilenext-mobilenext_100-\w{8}\.pth\.tar\)", found['mobilenext_100'])
    shutil.rmtree(client.hub_cache)
    shutil.rmtree(client.torch_cache)
    server.server_close()
    assert places(client.run(PLACES))['mobilenext_l'] == (
        "out of reach (the Hub says ConnectError, the server of the authors' file URLError)")


def test_server_that_never_answers(client):
    """A Hub that takes the call and says nothing is not waited for."""
    with socket.create_server(('127.0.0.1', 0)) as silent:
        found = places(client.run(REPORT, HF_ENDPOINT=f'http://127.0.0.1:{silent.getsockname()[1]}'))
    assert found['mobilenext_100'].startswith(('no answer within 4 seconds', "authors' file"))


def test_answers_are_waited_for(monkeypatch):
    """What a server says after all figures have been counted is in the report."""
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: None)
    monkeypatch.setattr(doctor, 'count', lambda model: (0, 0, 0))
    monkeypatch.setattr(doctor, 'locate', lambda name, timeout: time.sleep(0.5) or 'here')
    assert set(places(doctor.report()).values()) == {'here'}


def test_no_answer(monkeypatch):
    """The report does not wait for servers any longer than it says."""
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: None)
    monkeypatch.setattr(doctor, 'count', lambda model: (0, 0, 0))
    answer = threading.Event()
    monkeypatch.setattr(doctor, 'locate', lambda name, timeout: answer.wait(60))
    assert set(places(doctor.report()).values()) == {'no answer within 4 seconds'}
    answer.set()


@pytest.mark.parametrize('training', [True, False])
def test_count_leaves_the_model_alone(training, capsys):
    """Counting changes neither the mode nor the statistics nor the hooks of a model, and prints nothing."""
    model = timm.create_model('mobilenext_035').train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    params, madds, activations = count(model)
    assert (params, madds) == (1_913_976, 75_141_032)
    assert {layer.training for layer in model.modules()} == {training}
    assert not any(layer._forward_hooks for layer in model.modules())
    assert capsys.readouterr().out == ''
    sizes = []
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(lambda module, args, out: sizes.append(out.numel()))
    model.eval()(torch.zeros(1, 3, 224, 224))
    assert sum(sizes) == activations
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
