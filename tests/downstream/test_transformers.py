"""transformers takes the models by name and by folder."""
from pathlib import Path

import pytest
import timm
import torch
from networks import SMALL
from PIL import Image

import timm_mobilenext  # noqa: F401 - registers the models
from timm_mobilenext.weights.convert import convert

transformers = pytest.importorskip('transformers', reason="the extra 'transformers' is not installed")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A converted checkpoint of three classes."""
    torch.save(timm.create_model(SMALL, num_classes=3).state_dict(), tmp_path / 'tuned.pth')
    return convert(tmp_path / 'tuned.pth', tmp_path / 'model', model=SMALL, label_names=['cat', 'dog', 'owl'])


def test_classification(folder, images, train_step, tmp_path):
    """`AutoModelForImageClassification.from_pretrained(folder)` trains, and reloads with equal answers."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    timms = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(model(images).logits, timms(images))
    train_step(model, lambda: model(images, labels=torch.tensor([0, 2])).loss)
    model.save_pretrained(tmp_path / 'saved')
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / 'saved').eval()
    assert torch.equal(again(images).logits, model(images).logits)


def test_other_classes(folder, images):
    """`from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)` gives a new classifier and the features."""
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True).eval()
    assert model(images).logits.shape == (2, 5)
    features = transformers.AutoModel.from_pretrained(folder).eval()
    old = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert torch.equal(features(images).last_hidden_state, old.forward_features(images))


def test_pipelines(folder, tmp_path):
    """`pipeline('image-classification', model=folder)` names classes, and `'image-feature-extraction'` pools."""
    Image.new('RGB', (80, 64), 'teal').save(tmp_path / 'image.png')
    answer = transformers.pipeline('image-classification', model=str(folder))(str(tmp_path / 'image.png'))
    assert {found['label'] for found in answer} == {'cat', 'dog', 'owl'}
    assert sum(found['score'] for found in answer) == pytest.approx(1, abs=1e-4)
    extract = transformers.pipeline('image-feature-extraction', model=str(folder), pool=True)
    pooled = extract(str(tmp_path / 'image.png'))
    assert torch.tensor(pooled).shape == (1, 1280)


def test_backbone(client):
    """`AutoBackbone.from_pretrained('mobilenext_100', out_indices=(1, 2, 3, 4))` has timm's pretrained parameters."""
    # Not its running statistics: transformers 5.24.0 sets them back, in any network of timm (its pull request #43520
    # was about that). They are loaded here as a user would have to.
    client.run("""
from transformers import AutoBackbone
images = torch.randn(2, 3, 64, 64)
kwargs = dict(out_indices=(1, 2, 3, 4))
model = AutoBackbone.from_pretrained('mobilenext_100', **kwargs)
timms = timm.create_model('mobilenext_100', pretrained=True, features_only=True, **kwargs)
for (name, got), want in zip(model.named_parameters(), timms.parameters(), strict=True):
    assert torch.equal(got, want), name
model._backbone.load_state_dict(timms.state_dict())
for got, want in zip(model.eval()(images).feature_maps, timms.eval()(images), strict=True):
    assert torch.equal(got, want) and want.std() > 0.01
""")


def test_detr(images, train_step, tmp_path):
    """`DetrConfig(backbone_config=TimmBackboneConfig(backbone='mobilenext_035'))` is a DETR that trains and reloads."""
    backbone = transformers.TimmBackboneConfig(backbone=SMALL, out_indices=[1, 2, 3, 4])
    config = transformers.DetrConfig(
        backbone_config=backbone, num_labels=2, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5)
    model = transformers.DetrForObjectDetection(config)
    labels = [dict(class_labels=torch.tensor([1]), boxes=torch.tensor([[0.5, 0.5, 0.4, 0.4]]))] * 2
    train_step(model, lambda: model(images, labels=labels).loss)
    found = model(images)
    assert found.pred_boxes.shape == (2, 5, 4)
    model.save_pretrained(tmp_path / 'detr')
    again = transformers.DetrForObjectDetection.from_pretrained(tmp_path / 'detr').eval()
    assert torch.equal(again(images).pred_boxes, found.pred_boxes)
