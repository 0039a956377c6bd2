"""Converting weights: the kinds of source, what the folder has, what is refused. A failure leaves nothing behind."""
import argparse
import json
import stat

import pytest
import timm
import torch
from networks import SMALL
from safetensors import safe_open
from timm.data import resolve_model_data_config

import timm_mobilenext
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import convert, load, main

LABELS = ['ankle boot', 'bag', 'coat', 'dress', 'pullover']


def save_checkpoint(path, network, metric=None, **args) -> None:
    """Write a checkpoint as train.py does, with EMA weights if `model_ema` is one of its arguments."""
    weights = network.state_dict()
    raw = {'state_dict': {f'module.{k}': v * 0 for k, v in weights.items()}, 'state_dict_ema': weights}
    defaults = dict(gp=None, img_size=None, input_size=None, in_chans=None, mean=None, std=None, eval_metric='top1')
    torch.save({
        **(raw if args.get('model_ema') else {'state_dict': weights}), 'epoch': 3, 'arch': args['model'],
        'optimizer': {}, 'version': 2, 'metric': metric, 'args': argparse.Namespace(**defaults | args)}, path)


@pytest.fixture
def tuned(tmp_path, calibrated):
    """A checkpoint as train.py writes it of a model for five classes of grey images, and the model."""
    model = calibrated(SMALL, num_classes=5, in_chans=1, identity_ratio=0.5, bn_eps=0.01).float()
    path = tmp_path / 'checkpoint-3.pth.tar'
    save_checkpoint(
        path, model, 87.5, model=SMALL, num_classes=5, in_chans=1, model_kwargs={'identity_ratio': 0.5}, bn_eps=0.01,
        input_size=(1, 96, 96), mean=(0.5,), std=(0.25,), crop_pct=1.0, interpolation='bilinear', model_ema=True)
    return path, model


def test_authors_file(tmp_path, known_files):
    """An authors' file is recognized by its content, and becomes a folder with its provenance in it."""
    name = 'mobilenext_l_ghost'
    folder = convert(known_files[name], tmp_path / 'out')
    assert sorted(file.name for file in folder.iterdir()) == ['config.json', 'model.safetensors']
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        assert file.metadata() == {
            'format': 'pt', 'architecture': name, 'source': SOURCES[name].url, 'git_blob_id': SOURCES[name].blob,
            'license': 'bsd-3-clause-clear', 'converter': f'timm-mobilenext {timm_mobilenext.__version__}'}
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['pretrained_cfg']['tag']) == (name, 1000, 'in1k')
    assert config['pretrained_cfg']['input_size'] == [3, 224, 224]
    assert not {'model_args', 'label_names'} & config.keys()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1  # safetensors itself writes a file that other users cannot read


def test_trained_model(tuned, tmp_path):
    """A checkpoint of train.py brings its EMA weights, classes, channels, model arguments and image transform."""
    path, model = tuned
    labels = tmp_path / 'labels.txt'
    labels.write_text('ankle boot\n\n  bag \n' + '\n'.join(LABELS[2:]))  # the lines that say anything
    assert main([str(path), '-o', str(tmp_path / 'out'), '--label-names', str(labels)]) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.randn(2, 1, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    data = resolve_model_data_config(loaded)
    assert (tuple(data['input_size']), data['mean'], data['crop_pct']) == ((1, 96, 96), [0.5], 1.0)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['model_args'] == {'identity_ratio': 0.5, 'in_chans': 1, 'bn_eps': 0.01}
    assert config['label_names'] == LABELS
    assert 'license' not in config['pretrained_cfg']
    again = load(convert(tmp_path / 'out', tmp_path / 'again'))  # a converted folder is a source too
    with torch.no_grad():
        assert torch.equal(again.model(x), model(x))
    assert again.model.pretrained_cfg['label_names'] == LABELS
    assert again.provenance['source'] == 'again'


@pytest.mark.parametrize(('changed', 'metric', 'top1', 'pool'), [
    ({}, 87.5, 87.5, 'avg'), (dict(eval_metric='loss'), 87.5, None, 'avg'), ({}, None, None, 'avg'),
    (dict(gp='max'), 87.5, 87.5, 'max'), (dict(model_kwargs=None), 87.5, 87.5, 'avg')])
def test_what_train_py_says(changed, metric, top1, pool, tuned, tmp_path):
    """Of train.py's checkpoint the pooling is taken, and the metric where it is the top-1 accuracy."""
    saved = torch.load(tuned[0], weights_only=False)
    vars(saved['args']).update(changed)
    torch.save(saved | dict(metric=metric), tmp_path / 'changed.pth.tar')
    loaded = load(tmp_path / 'changed.pth.tar')
    assert (loaded.provenance['architecture'], loaded.top1, loaded.model.global_pool.pool_type) == (SMALL, top1, pool)


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('mobilenetv2_050', {}), ('deit_tiny_distilled_patch16_224', dict(img_size=64)), ('tresnet_m', {})])
def test_other_models_of_timm(name, kwargs, tmp_path):
    """Checkpoints of train.py load whatever the model of timm, its classifiers and its first conv."""
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    path = tmp_path / 'model_best.pth.tar'
    save_checkpoint(path, model, model=name, num_classes=5, model_kwargs=kwargs)
    loaded = load(path).model
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(('model', 'args', 'is_known'), [
    ('mobilenext_100.in1k', dict(pretrained=True, pretrained_path=None), True),
    ('hf-hub:timm-mobilenext/mobilenext_100.in1k', dict(pretrained=True), True),
    ('mobilenext_100', dict(pretrained=True, pretrained_path='other.pth'), False),
    ('hf-hub:me/mobilenext_100', dict(pretrained=True), False),
    ('mobilenext_100', dict(pretrained=False), False),
])
def test_licence(model, args, is_known, tmp_path):
    """What says that it was fine-tuned from the authors' weights gets the licence of these, all else what is named."""
    path = tmp_path / 'tuned.pth.tar'
    save_checkpoint(path, timm.create_model('mobilenext_100', num_classes=2), model=model, num_classes=2, **args)
    known = dict(license='bsd-3-clause-clear', derived_from=SOURCES['mobilenext_100'].url) if is_known else {}
    said = load(path).provenance
    assert {key: said[key] for key in ('license', 'derived_from') if key in said} == known
    assert load(path, license='mit').provenance['license'] == 'mit'


def test_licence_of_a_converted_file(converted):
    """What was converted from an authors' file keeps licence and origin, as a folder and as a file."""
    for source in (converted, converted / 'model.safetensors'):
        said = load(source).provenance
        assert (said['architecture'], said['license']) == ('mobilenext_100', 'bsd-3-clause-clear')
        assert said['derived_from'] == SOURCES['mobilenext_100'].url


def test_feature_extractor(tmp_path):
    """A state dict without a classifier converts to a model without one, under the architecture that is named."""
    model = timm.create_model(SMALL, num_classes=0)
    torch.save(model.state_dict(), tmp_path / 'features.pth')
    folder = convert(tmp_path / 'features.pth', tmp_path / 'in' / 'new' / 'folders', model=SMALL)
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 0


def test_wrong_architecture(tmp_path, known_files):
    """A file that is known to be of another architecture is refused, also where its weights would fit."""
    with pytest.raises(ValueError, match=r'is of mobilenext_100_id050, not of mobilenext_100: give --model mob'):
        convert(known_files['mobilenext_100_id050'], tmp_path / 'out', model='mobilenext_100')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('args', 'message'), [
    (['mobilenext_36'], 'mobilenext_36 is not a model, a file or a converted folder. Did you mean mobilenext_0'),
    (['mobilenext_035'], 'No pretrained weights exist for mobilenext_035. '),
    (['runs/no.pth'], 'runs/no.pth is not a model, a file or a converted folder. Give a model name with weights, '),
    (['no.pth', '--model', SMALL], 'Checkpoint no.pth does not exist, and --model mobilenext_035 names the architec'),
    (['mute.pth'], 'mute.pth does not say which architecture it is of. Name it, e.g. --model mobilenext_050.'),
    (['mute.pth', '--model', 'mobilenext_36'], 'mobilenext_36 is not a model (--model). Did you mean mobilenext_'),
    (['text.pth', '--model', SMALL], 'text.pth was not loaded (UnpicklingError). It is damaged, or not a check'),
    (['checkpoint-3.pth.tar', '--model', 'mobilenext_050'],
     'checkpoint-3.pth.tar is of mobilenext_035, not of mobilenext_050: give --model mobilenext_035.'),
    (['checkpoint-3.pth.tar', '--label-names', 'text.pth'], '1 label names for 5 classes: give one name for each.'),
    (['checkpoint-3.pth.tar', '--model-kwargs', 'width_mult=0.5'], 'Error(s) in loading state_dict for MobileNeXt'),
    (['checkpoint-3.pth.tar', '--output', 'text.pth'], 'text.pth exists already. Give the name of a new folder (--out'),
])
def test_errors(args, message, tuned, tmp_path, monkeypatch):
    """What goes wrong ends the command with one message, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    torch.save(tuned[1].state_dict(), 'mute.pth')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as error:
        main(['--output', 'out', *args])
    assert str(error.value).startswith(f'error: {message}')
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(('args', 'message'), [
    (['a.pth'], 'error: the following arguments are required: --output/-o.\n'),
    (['--model-kwargs', 'a.pth', '-o', 'x'], 'error: --model-kwargs a.pth: expected KEY=VALUE, e.g. width_mult=1.1.\n'),
    (['--model-kwargs', 'a=1', '-o', 'x'], 'error: the following arguments are required: SOURCE. It comes first'),
    (['a.pth', SMALL, '-o', 'x'], f'error: unrecognized arguments: {SMALL}. The architecture of a checkpoint is'),
])
def test_command_lines_that_fail(args, message, capsys):
    """A slip on the command line is answered with what is missing, in the form of all errors."""
    with pytest.raises(SystemExit):
        main(args)
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.endswith('usage: python -m timm_mobilenext convert SOURCE --output DIR [OPTIONS]\n')
