"""effdet, timm's EfficientDet, takes the models as backbones."""
import pytest
import torch
from networks import FAMILIES

import timm_mobilenext  # noqa: F401 - registers the models

effdet = pytest.importorskip('effdet', reason="effdet, of the extra 'effdet', is not installed")


def create(name: str) -> torch.nn.Module:
    """Return a small EfficientDet on a backbone."""
    config = effdet.get_efficientdet_config('efficientdet_d0')
    config.backbone_name = name
    config.backbone_args = {}
    config.image_size = (128, 128)
    config.num_classes = 2
    config.fpn_channels, config.fpn_cell_repeats, config.box_class_repeats = 16, 1, 1
    return effdet.EfficientDet(config, pretrained_backbone=False)


@pytest.mark.parametrize('name', FAMILIES)
def test_detector(name, train_step, tmp_path):
    """`EfficientDet(config)` with `config.backbone_name = 'mobilenext_035'` trains, predicts, saves and reloads."""
    images = torch.randn(2, 3, 128, 128)
    model = create(name)
    bench = effdet.DetBenchTrain(model, create_labeler=True)
    target = dict(
        bbox=torch.tensor([[[20., 20, 90, 90]]] * 2), cls=torch.ones(2, 1),
        img_scale=torch.ones(2), img_size=torch.full((2, 2), 128.))
    train_step(bench, lambda: bench(images, target)['loss'])
    with torch.no_grad():
        found = effdet.DetBenchPredict(model).eval()(images)
    assert found.shape == (2, 100, 6)  # box, score, class
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    again = create(name)
    again.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    with torch.no_grad():
        assert torch.equal(effdet.DetBenchPredict(again).eval()(images), found)
