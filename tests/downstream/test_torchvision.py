"""torchvision's detectors take the models by their features; its SSDLite is `timm_mobilenext.detection`."""
import pytest
import timm
import torch
from networks import FAMILIES, SMALL
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.detection import ssdlite320

TARGETS = [dict(boxes=torch.tensor([[10., 10, 50, 50]]), labels=torch.tensor([1]))] * 2


class Pyramid(torch.nn.Module):
    """A feature pyramid on the last three features of a backbone."""

    out_channels = 32

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the pyramid of images (B, 3, H, W)."""
        return self.fpn({str(i): features for i, features in enumerate(self.body(x))})


def create_retinanet(name: str) -> RetinaNet:
    """Return torchvision's RetinaNet on a backbone, for small images."""
    return RetinaNet(
        Pyramid(name), num_classes=2, min_size=64, max_size=64, score_thresh=0., detections_per_img=10,
        anchor_generator=AnchorGenerator(((16,), (32,), (48,)), ((0.5, 1., 2.),) * 3))


def create_ssdlite(name: str) -> torch.nn.Module:
    """Return SSDLite on a backbone."""
    return ssdlite320(name, num_classes=2, detections_per_img=10)


@pytest.mark.parametrize(('create', 'name'), [
    *((create_retinanet, name) for name in FAMILIES), (create_ssdlite, SMALL)])
def test_detector(create, name, train_step, tmp_path):
    """`RetinaNet` on `timm.create_model(name, features_only=True)`, and `ssdlite320`, train, predict and reload."""
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    model = create(name)
    train_step(model, lambda: sum(model(images, TARGETS).values()))
    with torch.no_grad():
        found = model(images)
    assert [len(boxes['boxes']) for boxes in found] == [10, 10]
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    again = create(name)
    again.load_state_dict(torch.load(tmp_path / 'model.pth', weights_only=True))
    with torch.no_grad():
        for got, want in zip(again.eval()(images), found, strict=True):
            assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050'])  # the others need timm's, for TensorFlow's padding
def test_feature_extractor(name, images):
    """`torchvision.models.feature_extraction.create_feature_extractor` reaches every row of the ReLU6 family."""
    model = timm.create_model(name).eval()
    nodes = [f'blocks.{row}' for row in range(len(model.blocks))]
    with torch.no_grad():
        got = create_feature_extractor(model, nodes)(images)
        want = model.forward_intermediates(images, intermediates_only=True, extra_blocks=True)
    assert [*got] == nodes
    for features, expected in zip(got.values(), want[1:], strict=True):
        torch.testing.assert_close(features, expected)
