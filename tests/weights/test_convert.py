"""Converting checkpoints: what the folder holds, what is refused, and that nothing is left of a failure."""
import argparse
import json
import stat

import official
import pytest
import timm
import torch
from huggingface_hub.errors import HTTPError
from safetensors import safe_open
from timm.data import resolve_model_data_config

import timm_mobilenext
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import clear_errors, convert, load, main, read_label_names

SMALL = 'mobilenext_035'


@pytest.fixture
def tuned(tmp_path, calibrated):
    """A checkpoint as train.py writes it of a model for five classes of grey images, and the model."""
    model = calibrated(SMALL, num_classes=5, in_chans=1, identity_ratio=0.5).float()
    path = tmp_path / 'checkpoint-3.pth.tar'
    args = argparse.Namespace(
        model=SMALL, num_classes=5, in_chans=1, model_kwargs={'identity_ratio': 0.5}, gp=None, eval_metric='top1',
        img_size=None, input_size=(1, 96, 96), mean=(0.5,), std=(0.25,), crop_pct=1.0, interpolation='bilinear')
    zeros = {f'module.{k}': v * 0 for k, v in model.state_dict().items()}
    torch.save(dict(epoch=3, arch=SMALL, state_dict=zeros, state_dict_ema=model.state_dict(), args=args,
                    optimizer={}, version=2, metric=87.5), path)
    return path, model


def header(folder) -> dict[str, str]:
    with safe_open(folder / 'model.safetensors', 'pt') as file:
        return file.metadata()


@pytest.mark.parametrize('name', SOURCES)
def test_authors_files(name, tmp_path, known_files):
    """Each of the authors' files becomes a folder that timm answers golden logits from, with its provenance in it."""
    folder = convert(name, known_files[name], tmp_path / 'out')
    assert sorted(file.name for file in folder.iterdir()) == ['config.json', 'model.safetensors']
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    with torch.no_grad():
        assert official.golden_error(model(official.images()), official.case(name)) < 2e-3
    assert header(folder) == {
        'format': 'pt', 'architecture': name, 'source': SOURCES[name].url, 'git_blob_id': SOURCES[name].blob,
        'license': 'bsd-3-clause-clear', 'converter': f'timm-mobilenext {timm_mobilenext.__version__}'}
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['num_classes'], config['pretrained_cfg']['tag']) == (name, 1000, 'in1k')
    assert config['pretrained_cfg']['input_size'] == [3, 224, 224]
    assert not {'model_args', 'label_names'} & config.keys()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1  # safetensors alone would write a file that other users cannot read


def test_command_downloads(server, client):
    """`python -m timm_mobilenext convert NAME` downloads the authors' file, and says how to load the folder."""
    out = client.run("from timm_mobilenext.weights.convert import main; main(['mobilenext_100.in1k'])")
    assert out.startswith("mobilenext_100.in1k: timm.create_model('local-dir:mobilenext_100.in1k', pretrained=True)")
    assert (client.folder / 'mobilenext_100.in1k' / 'model.safetensors').exists()
    assert server.log == ['GET /files/mobilenext_100/model_best.pth.tar']


def test_trained_model(tuned, tmp_path):
    """A checkpoint of train.py brings its EMA weights, classes, channels, model arguments and image transform."""
    path, model = tuned
    labels = tmp_path / 'labels.txt'
    labels.write_text('ankle boot\nbag\ncoat\ndress\npullover\n')
    assert main([SMALL, str(path), '-o', str(tmp_path / 'out'), '--label-names', str(labels)]) == 0
    loaded = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = torch.randn(2, 1, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert model(x).std() > 1e-3
    data = resolve_model_data_config(loaded)
    assert (tuple(data['input_size']), data['mean'], data['crop_pct']) == ((1, 96, 96), [0.5], 1.0)
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['model_args'] == {'identity_ratio': 0.5, 'in_chans': 1}
    assert config['label_names'] == ['ankle boot', 'bag', 'coat', 'dress', 'pullover']
    assert header(tmp_path / 'out')['source'] == 'checkpoint-3.pth.tar'
    assert 'license' not in header(tmp_path / 'out') | config['pretrained_cfg']


@pytest.mark.parametrize(('changed', 'metric', 'top1', 'pool'), [
    ({}, 87.5, 87.5, 'avg'), (dict(eval_metric='loss'), 87.5, None, 'avg'), ({}, None, None, 'avg'),
    (dict(gp='max'), 87.5, 87.5, 'max'), (dict(model_kwargs=None), 87.5, 87.5, 'avg')])
def test_what_train_py_says(changed, metric, top1, pool, tuned, tmp_path):
    """Of train.py's checkpoint the pooling is taken, and the metric where it is the top-1 accuracy."""
    saved = torch.load(tuned[0], weights_only=False)
    vars(saved['args']).update(changed)
    torch.save(saved | dict(metric=metric), tmp_path / 'changed.pth.tar')
    loaded = load(None, tmp_path / 'changed.pth.tar')
    assert (loaded.provenance['architecture'], loaded.top1, loaded.model.global_pool.pool_type) == (SMALL, top1, pool)


def test_checkpoint_of_no_known_architecture(tuned, tmp_path):
    """A checkpoint that says nothing of its architecture, or another name, is an error where none is given."""
    saved = torch.load(tuned[0], weights_only=False)
    torch.save(saved['state_dict_ema'], tmp_path / 'mute.pth')
    with pytest.raises(ValueError, match=r'mute\.pth does not say of which architecture it is: expected one of '):
        load(None, tmp_path / 'mute.pth')
    saved['args'].model = 'resnet18'
    torch.save(saved, tmp_path / 'foreign.pth')
    with pytest.raises(ValueError, match=r"foreign\.pth is of 'resnet18': expected one of mobilenext_035, "):
        load(None, tmp_path / 'foreign.pth')


def test_label_names(tmp_path):
    """The names of the classes are the lines of a file that say anything."""
    (tmp_path / 'names.txt').write_text('ankle boot\n\n  bag \n', encoding='utf-8')
    (tmp_path / 'empty.txt').touch()
    assert read_label_names(str(tmp_path / 'names.txt')) == ['ankle boot', 'bag']
    assert read_label_names(str(tmp_path / 'empty.txt')) is read_label_names(None) is None


@pytest.mark.parametrize(('model', 'args', 'theirs'), [
    ('mobilenext_100', dict(pretrained=True), True),
    ('mobilenext_100.in1k', dict(pretrained=True, pretrained_path=None), True),
    ('hf-hub:timm-mobilenext/mobilenext_100.in1k', dict(pretrained=True), True),
    ('mobilenext_100', dict(pretrained=True, pretrained_path='other.pth'), False),
    ('mobilenext_100', dict(pretrained=True, initial_checkpoint='other.pth'), False),
    ('hf-hub:me/mobilenext_100', dict(pretrained=True), False),
    ('mobilenext_100', dict(pretrained=False), False),
    ('mobilenext_100', {}, False),
])
def test_licence(model, args, theirs, tmp_path):
    """What says that it was fine-tuned from the authors' weights gets and keeps their licence, all else gets none."""
    state = timm.create_model('mobilenext_100', num_classes=2).state_dict()
    torch.save(dict(state_dict=state, args=argparse.Namespace(model=model, **args)), tmp_path / 'tuned.pth.tar')
    known = dict(license='bsd-3-clause-clear', derived_from=SOURCES['mobilenext_100'].url) if theirs else {}
    first = convert('mobilenext_100', tmp_path / 'tuned.pth.tar', tmp_path / 'first')
    again = convert('mobilenext_100', first / 'model.safetensors', tmp_path / 'again')
    for folder in (first, again):
        assert {key: header(folder)[key] for key in ('license', 'derived_from') if key in header(folder)} == known
    named = convert('mobilenext_100', tmp_path / 'tuned.pth.tar', tmp_path / 'named', license='mit')
    assert header(named)['license'] == 'mit'
    assert json.loads((named / 'config.json').read_text())['pretrained_cfg']['license'] == 'mit'


def test_licence_of_a_converted_file(tmp_path, known_files):
    """What was converted from an authors' file keeps licence and origin when it is converted once more."""
    first = convert('mobilenext_100', known_files['mobilenext_100'], tmp_path / 'first')
    again = convert('mobilenext_100', first / 'model.safetensors', tmp_path / 'again')
    assert header(again)['license'] == 'bsd-3-clause-clear'
    assert header(again)['derived_from'] == header(first)['source'] == SOURCES['mobilenext_100'].url


def test_feature_extractor(tmp_path):
    """A model without a classifier converts to one without a classifier."""
    model = timm.create_model(SMALL, num_classes=0)
    torch.save(model.state_dict(), tmp_path / 'features.pth')
    folder = convert(SMALL, tmp_path / 'features.pth', tmp_path / 'in' / 'new' / 'folders')
    assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 0


def test_wrong_architecture(tuned, tmp_path, known_files):
    """A file that is known to be of another architecture is refused, where its weights would fit."""
    with pytest.raises(ValueError, match='holds mobilenext_100_id050, which mobilenext_100 may load without an error'):
        convert('mobilenext_100', known_files['mobilenext_100_id050'], tmp_path / 'out')
    with pytest.raises(ValueError, match='holds mobilenext_035, which mobilenext_100'):
        convert('mobilenext_100', tuned[0], tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('args', 'message'), [
    (['mobilenext_36'], "error: There is no 'mobilenext_36': expected one of mobilenext_035, "),
    (['mobilenext_035'], 'error: The authors published no weights of mobilenext_035, only of mobilenext_100, '),
    (['mobilenext_035', 'no.pth'], "error: [Errno 2] No such file or directory: 'no.pth'"),
    (['mobilenext_035', 'text.pth'], 'error: text.pth was not loaded: '),
    (['mobilenext_050', 'checkpoint-3.pth.tar'], 'error: checkpoint-3.pth.tar holds mobilenext_035'),
    (['mobilenext_035', 'checkpoint-3.pth.tar', '--label-names', 'text.pth'], 'error: There are 1 label names, expec'),
    (['mobilenext_035', 'checkpoint-3.pth.tar', '--model-kwargs', 'width_mult=0.5'], 'error: The checkpoint is of ano'),
    (['mobilenext_035', 'checkpoint-3.pth.tar', '--output', 'text.pth'], 'error: text.pth exists: expected a new fold'),
])
def test_errors(args, message, tuned, tmp_path, monkeypatch):
    """What goes wrong ends the command with one message, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as error:
        main(args)
    assert str(error.value).startswith(message)
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_do_not_come_back(tuned, tmp_path, monkeypatch):
    """Weights that timm does not read back as they were written are an error, and leave no folder."""
    from timm_mobilenext.weights import convert as module

    save_file = module.save_file
    monkeypatch.setattr(module, 'save_file', lambda state, *args, **kwargs: save_file(
        {key: value + 1 for key, value in state.items()}, *args, **kwargs))
    with pytest.raises(RuntimeError, match=r'timm does not read the weights back that were written to .*out\.'):
        convert(SMALL, tuned[0], tmp_path / 'new' / 'folder' / 'out')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(('error', 'said'), [
    (ImportError('it'), 'it'), (OSError('it'), 'it'), (RuntimeError('it'), 'it'), (ValueError('it'), 'it'),
    (HTTPError('it'), 'it'), (KeyboardInterrupt(), 'interrupted')])
def test_one_line(error, said):
    """Whatever a library calls a failure, a command ends in one line without a traceback."""
    with pytest.raises(SystemExit) as end, clear_errors():
        raise error
    assert end.value.code == f'error: {said}'


def test_wrong_blob_leaves_nothing(server, client):
    """A download that is not the authors' file ends the command, and neither folder nor download stay."""
    server.faults['files'] = 'cut'
    error = client.fail("__import__('timm_mobilenext.weights.convert').convert.main(['mobilenext_100', '-o', 'out'])")
    assert error.startswith('SystemExit: error: ')
    assert 'cut short or changed' in error
    assert [file.name for file in client.folder.iterdir() if not file.name.startswith('run')] == ['torch']
    assert list(client.torch_cache.iterdir()) == []
