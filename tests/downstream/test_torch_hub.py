"""torch.hub takes the models from a checkout."""
from pathlib import Path

import torch
from networks import SMALL

ROOT = str(Path(__file__).parents[2])


def test_load(images, train_step, tmp_path):
    """`torch.hub.load(CHECKOUT, 'mobilenext_035', source='local', num_classes=7)` trains, predicts and reloads."""
    model = torch.hub.load(ROOT, SMALL, source='local', num_classes=7)
    train_step(model, lambda: torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 6])))
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (2, 7)
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    again = torch.hub.load(ROOT, SMALL, source='local', num_classes=7).eval()
    again.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    with torch.no_grad():
        assert torch.equal(again(images), expected)
