"""segmentation_models_pytorch takes the models as encoders, by `tu-` and their name."""
import pytest
import torch
from networks import FAMILIES, SMALL

import timm_mobilenext  # noqa: F401 - registers the models

smp = pytest.importorskip(
    'segmentation_models_pytorch', reason="segmentation_models_pytorch, of the extra 'smp', is not installed")
ARCHITECTURES = ['Unet', 'FPN', 'DeepLabV3', 'DeepLabV3Plus', 'UPerNet', 'Segformer']


@pytest.mark.parametrize(('architecture', 'name'), [
    *((architecture, SMALL) for architecture in ARCHITECTURES), *(('Unet', name) for name in FAMILIES[1:])])
def test_segmentation(architecture, name, images, train_step, tmp_path):
    """`smp.create_model(architecture, 'tu-mobilenext_035', encoder_weights=None)` trains, predicts, saves, reloads."""
    model = smp.create_model(architecture, f'tu-{name}', encoder_weights=None, classes=2)
    masks = torch.randint(2, (2, 64, 64))
    train_step(model, lambda: torch.nn.functional.cross_entropy(model(images), masks))
    with torch.no_grad():
        expected = model(images)
    assert expected.shape == (2, 2, 64, 64)
    model.save_pretrained(tmp_path / 'model')
    again = smp.from_pretrained(tmp_path / 'model').eval()
    with torch.no_grad():
        assert torch.equal(again(images), expected)


@pytest.mark.parametrize('kwargs', [
    dict(in_channels=4), dict(in_channels=1), dict(encoder_depth=3, decoder_channels=(64, 32, 16))])
def test_arguments(kwargs):
    """`smp.Unet('tu-mobilenext_035', in_channels=4)` and `encoder_depth=3` build what they say."""
    model = smp.Unet(f'tu-{SMALL}', encoder_weights=None, **kwargs).eval()
    with torch.no_grad():
        assert model(torch.randn(1, kwargs.get('in_channels', 3), 64, 64)).shape == (1, 1, 64, 64)
    assert model.encoder.model.feature_info.reduction() == [2, 4, 8, 16, 32][:kwargs.get('encoder_depth', 5)]


def test_preprocessing():
    """`smp.encoders.get_preprocessing_params('tu-mobilenext_100')` has the mean of the weights."""
    parameters = smp.encoders.get_preprocessing_params('tu-mobilenext_100')
    assert tuple(parameters['mean']) == (0.485, 0.456, 0.406)
    assert tuple(parameters['std']) == (0.229, 0.224, 0.225)
