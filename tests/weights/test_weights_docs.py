"""The commands and the code of docs/weights.md run as they are printed."""
import argparse
import re
import shlex

import pytest
import timm
import torch
from pages import DOCS, commands

from timm_mobilenext.weights.authors import SOURCES

PAGE = (DOCS / 'weights.md').read_text(encoding='utf-8')
RUN = """
import sys
from timm_mobilenext.__main__ import main
for args in {}:
    sys.argv = ['timm_mobilenext', *args]
    assert main() == 0"""


@pytest.mark.slow
def test_page(server, client):
    """All commands run, on a Hub of this machine, and the code then loads the weights of the checkpoint."""
    model = timm.create_model('mobilenext_050', num_classes=10)
    args = argparse.Namespace(model='mobilenext_050', num_classes=10, in_chans=None, input_size=None)
    torch.save(dict(state_dict=model.state_dict(), args=args), client.folder / 'model_best.pth.tar')
    torch.save(model.state_dict(), client.folder / 'weights.pth')
    (client.folder / 'names.txt').write_text('\n'.join('abcdefghij'))
    lines = [shlex.split(line) for line in commands(PAGE, marked=True)]
    assert [line[:3] for line in lines] == [['python', '-m', 'timm_mobilenext']] * 4
    client.run(RUN.format([line[3:] for line in lines]))
    assert (server.hub / 'me' / 'mine' / 'README.md').exists()
    block, = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    client.run(block + """
expected = torch.load('weights.pth')
for network in (model, converted):
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())
assert torch.equal(backbone.stem.conv.weight, expected['stem.conv.weight'])""")


def test_authors_weights():
    """The table has each file with its blob id, its accuracies in %, and whether they are of the EMA weights."""
    for name, source in SOURCES.items():
        file = '/'.join(source.url.split('/')[-2:])
        row = f'| `{name}` | `{file}` | `{source.blob}` | {source.top1:.3f} / {source.top5:.3f} |'
        line, = (line for line in PAGE.splitlines() if line.startswith(row))
        assert ('EMA' in line) == source.ema
