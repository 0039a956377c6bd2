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


def test_head_sees_features(digits, tmp_path):
    """`vision_learner` finds the number of features, and freezes the body but for its batch norms where asked to."""
    files = sorted((digits / 'train' / '0').iterdir())[:4]
    data = vision.ImageDataLoaders.from_path_func(
        tmp_path, files * 2, lambda path: 'odd' if path == files[1] else 'even', item_tfms=vision.Resize(64), bs=4,
        num_workers=0)
    learner = vision.vision_learner(data, SMALL, pretrained=False)
    learner.freeze()
    frozen = [name for name, p in learner.model[0].named_parameters() if not p.requires_grad]
    assert any(name.endswith('stem.conv.weight') for name in frozen)
    assert all('bn' not in name for name in frozen)
    linear = next(m for m in learner.model[1].modules() if isinstance(m, torch.nn.Linear))
    assert linear.in_features == 2 * 1280  # of the average and the maximum
