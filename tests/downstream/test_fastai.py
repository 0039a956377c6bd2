"""fastai takes the models by name."""
import pytest
import torch
from networks import SMALL

import timm_mobilenext  # noqa: F401 - registers the models

vision = pytest.importorskip('fastai.vision.all', reason="fastai, of the extra 'fastai', is not installed")


def test_vision_learner(digits, tmp_path):
    """`vision_learner(dls, 'mobilenext_035', pretrained=False)` fits, predicts, exports, and is loaded again."""
    files = [path for label in '01' for path in sorted((digits / 'train' / label).iterdir())[:16]]
    data = vision.ImageDataLoaders.from_path_func(
        tmp_path, files, vision.parent_label, item_tfms=vision.Resize(64), bs=8, num_workers=0)
    learner = vision.vision_learner(data, SMALL, pretrained=False, metrics=vision.accuracy)
    stem = next(p for name, p in learner.model.named_parameters() if name.endswith('stem.conv.weight'))
    before = stem.detach().clone()
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-2)
    assert not torch.equal(stem, before)
    label, _, probabilities = learner.predict(files[0])
    assert label in ('0', '1')
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    learner.export(tmp_path / 'learner.pkl')
    again = vision.load_learner(tmp_path / 'learner.pkl')
    assert torch.equal(again.predict(files[0])[2], probabilities)
