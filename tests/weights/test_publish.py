"""Publishing to the Hub: the card, the upload, and that what was uploaded comes back bit-equal."""
import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from networks import needs_exporter
from PIL import Image

from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import load
from timm_mobilenext.deploy.export import Exported
from timm_mobilenext.weights.publish import card, main, publish

SMALL = 'mobilenext_035'
PUBLISH = 'from timm_mobilenext.weights.publish import main\nassert main({}) == 0'


@pytest.fixture
def checkpoint(tmp_path, calibrated):
    """The state dict of a model for three classes."""
    path = tmp_path / 'mine.pth'
    torch.save(calibrated(SMALL, num_classes=3).float().state_dict(), path)
    return path


@pytest.fixture
def published(client, checkpoint):
    """The arguments that published it as me/mine."""
    args = [SMALL, str(checkpoint), '--repo-id', 'me/mine', '--output', 'mine', '--license', 'mit', '--push']
    (client.folder / 'names.txt').write_text('a\nb\nc\n')
    client.run(PUBLISH.format([*args, '--label-names', 'names.txt', '--dataset', 'me/abc']))
    return args


def test_card_of_authors_weights(tmp_path, known_files):
    """The card of the authors' weights has the front matter the Hub reads, the reported results and their origin."""
    folder = publish('mobilenext_s', known_files['mobilenext_s'], tmp_path / 'out')
    assert {file.name for file in folder.iterdir()} == {'LICENSE', 'README.md', 'config.json', 'model.safetensors'}
    assert 'The Clear BSD License' in (folder / 'LICENSE').read_text()
    card = ModelCard.load(folder / 'README.md')
    data = card.data.to_dict()
    assert (data['library_name'], data['license'], data['pipeline_tag'], data['datasets'], data['metrics']) == (
        'timm', 'bsd-3-clause-clear', 'image-classification', ['imagenet-1k'], ['accuracy'])
    assert {'image-classification', 'timm', 'transformers', 'mobilenext'} <= set(data['tags'])
    assert [(r.metric_name, r.metric_value, r.source_name) for r in card.data.eval_results] == [
        (f'Top {k} Accuracy', value, "reported by the authors' training log, not measured again")
        for k, value in ((1, 76.056), (5, 92.744))]
    assert all(r.source_url.startswith('https://github.com/zhoudaquan/rethinking_bottleneck_design/tree/')
               for r in card.data.eval_results)
    assert card.data.model_name == 'mobilenext_s.in1k'
    assert '- **Dataset:** ImageNet-1k\n' in card.text
    assert re.search(r'\*\*Git blob id of the source:\*\* [0-9a-f]{40}, verified before it was read\n', card.text)
    assert 'Params (M): 3.93' in card.text
    assert 'GMACs: 0.33' in card.text
    assert 'Activations (M): 9.97' in card.text
    assert '## Results' in card.text
    assert '| **mobilenext_s** | 3.93 | 0.33 | 76.056 | 92.744 |' in card.text
    assert 'ca388f33536dba371e82807553042a938e082e4c' not in card.text  # it names the file that was converted


def test_card_code(client, published):
    """Every usage block of the card begins with the import that registers the models, and runs."""
    card = (client.folder / 'mine' / 'README.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', card, re.DOTALL)
    assert len(blocks) == 4
    assert '## Results' not in card  # a checkpoint that says nothing of any
    Image.new('RGB', (300, 240), 'teal').save(client.folder / 'image.jpg')
    for block in blocks:
        assert block.startswith('import timm_mobilenext  # registers the models\n')
        if 'transformers' not in block:
            client.run(block)


def test_published_model_comes_back(server, client, published, checkpoint):
    """What was pushed in one commit is created anew from the Hub, bit-equal, by name and by pinned revision."""
    assert [request for request in server.log if '/commit/' in request] == ['POST /api/models/me/mine/commit/main']
    pinned = re.search(r"'(hf-hub:me/mine@[0-9a-f]{40})'", client.stdout)[1]
    card = ModelCard.load(server.hub / 'me' / 'mine' / 'README.md')
    assert (card.data.license, card.data.datasets, card.data.eval_results) == ('mit', ['me/abc'], None)
    assert '- **Dataset:** me/abc\n' in card.text
    assert not (server.hub / 'me' / 'mine' / 'LICENSE').exists()
    client.run(f"""
weights = torch.load({str(checkpoint)!r}, weights_only=True)
for name in ('hf-hub:me/mine', {pinned!r}):
    model = timm.create_model(name, pretrained=True)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert model.pretrained_cfg['label_names'] == ['a', 'b', 'c']
""")


def test_other_weights_are_kept(server, client, published, checkpoint):
    """Pushing the same weights again works, other weights are refused until told, an edited card stays."""
    card = server.hub / 'me' / 'mine' / 'README.md'
    card.write_text('My own words.')
    shutil.rmtree(client.folder / 'mine')
    client.run(PUBLISH.format(published))
    assert card.read_text() == 'My own words.'
    before = (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes()
    torch.save({k: v + 1 for k, v in torch.load(checkpoint, weights_only=True).items()}, checkpoint)
    shutil.rmtree(client.folder / 'mine')
    error = client.fail(f"__import__('timm_mobilenext.weights.publish').publish.main({published})")
    assert 'SystemExit: error: me/mine has other weights than mine, nothing was uploaded.' in error
    assert '--overwrite' in error
    assert (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes() == before
    shutil.rmtree(client.folder / 'mine')
    client.run(PUBLISH.format([*published, '--overwrite']))
    assert (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes() != before
    assert card.read_text() != 'My own words.'


def test_authors_repository_is_named_without_its_pin(server, client):
    """The authors' weights go to the repository that they are registered under, whatever that is pinned to."""
    client.run(
        PUBLISH.format(['mobilenext_100', '--push']),
        HUB_IDS=json.dumps({'mobilenext_100': f'timm-mobilenext/mobilenext_100.in1k@{"0" * 40}'}))
    assert (server.hub / 'timm-mobilenext' / 'mobilenext_100.in1k' / 'model.safetensors').exists()
    card = (client.folder / 'mobilenext_100' / 'README.md').read_text()
    assert "'hf-hub:timm-mobilenext/mobilenext_100.in1k'" in card


def test_transformers(client, published):
    """What was published loads in transformers as a model and a pipeline, with logits bit-equal to timm's."""
    pytest.importorskip('transformers', reason='the extra `transformers` is not installed')
    Image.new('RGB', (300, 240), 'teal').save(client.folder / 'image.jpg')
    client.run("""
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
x = torch.randn(2, 3, 224, 224)
expected = timm.create_model('hf-hub:me/mine', pretrained=True).eval()(x)
assert expected.std() > 0.01
for place in ('me/mine', 'mine'):
    model = AutoModelForImageClassification.from_pretrained(place).eval()
    assert torch.equal(model(x).logits, expected)
answer = pipeline('image-classification', model='me/mine')('image.jpg')
assert sorted(a['label'] for a in answer) == ['a', 'b', 'c']
""")


def test_transformers_imagenet_labels(client, known_files):
    """With the authors' weights transformers answers with readable ImageNet names, which timm knows."""
    pytest.importorskip('transformers', reason='the extra `transformers` is not installed')
    folder = publish('mobilenext_100', known_files['mobilenext_100'], client.folder / 'out')
    client.run(f"""
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained({str(folder)!r}).eval()
assert model.config.id2label[281] == 'tabby, tabby cat'
assert official.golden_error(model(official.images()).logits, 'mnext_100/div1/float32') < 2e-3
""")


def test_licence_is_asked_for(server, client, checkpoint):
    """Weights of an unknown licence are not pushed, nor is a folder of them made; without --push the card has none."""
    args = [SMALL, str(checkpoint), '--repo-id', 'me/mine', '--output', 'mine']
    error = client.fail(f"__import__('timm_mobilenext.weights.publish').publish.main({[*args, '--push']})")
    assert error.startswith(f'SystemExit: error: Under which licence are the weights of {checkpoint}?')
    assert '--license' in error
    assert server.log == []
    assert not (client.folder / 'mine').exists()
    client.run(PUBLISH.format(args))
    card = ModelCard.load(client.folder / 'mine' / 'README.md')
    assert card.data.license is None
    assert '- **Licence:** not stated\n' in card.text
    assert 'authors' not in card.text
    assert not (client.folder / 'mine' / 'LICENSE').exists()


def test_card_of_fine_tuned_weights(tmp_path):
    """Weights that say that they were fine-tuned from the authors' have their licence, its text and the origin."""
    args = argparse.Namespace(model='mobilenext_100', pretrained=True)
    state = timm.create_model('mobilenext_100', num_classes=3).state_dict()
    torch.save(dict(state_dict=state, args=args), tmp_path / 'tuned.pth.tar')
    folder = publish('mobilenext_100', tmp_path / 'tuned.pth.tar', tmp_path / 'out', repo_id='me/mine')
    card = ModelCard.load(folder / 'README.md')
    assert card.data.license == 'bsd-3-clause-clear'
    assert f'- **Derived from:** weights of the authors, {SOURCES["mobilenext_100"].url}\n' in card.text
    assert 'The Clear BSD License' in (folder / 'LICENSE').read_text()


@pytest.mark.parametrize('dataset', ['me/abc', None])
def test_card_of_a_training_run(dataset, tmp_path):
    """The accuracy that a training run reports is in the card, and read by the Hub where the data has a name there."""
    state = timm.create_model(SMALL, num_classes=3).state_dict()
    torch.save(dict(state_dict=state, args=argparse.Namespace(model=SMALL), metric=81.25), tmp_path / 'best.pth.tar')
    folder = publish(SMALL, tmp_path / 'best.pth.tar', tmp_path / 'out', repo_id='me/mine', dataset=dataset)
    card = ModelCard.load(folder / 'README.md')
    assert '## Results\n\nTop-1 accuracy 81.25 %, as the training run reports it' in card.text
    assert 'verified' not in card.text  # of the authors' files alone is it known what they should be
    if dataset:
        assert card.data.model_name == 'mine'
        result, = card.data.eval_results
        assert (result.dataset_type, result.dataset_name, result.metric_name, result.metric_value) == (
            'me/abc', 'me/abc', 'Top 1 Accuracy', 81.25)
        assert result.source_name is None
    else:
        assert card.data.eval_results is card.data.datasets is card.data.model_name is None
        assert 'Dataset' not in card.text


@needs_exporter
@pytest.mark.parametrize('options', [dict(num_images=1, img_size=32), None])
def test_formats_of_a_function_call(options, checkpoint, tmp_path):
    """The function `publish` writes files for mobile runtimes too, with options of export or with none."""
    options = options and dict(options, keep=True)
    folder = publish(
        SMALL, checkpoint, tmp_path / 'out', repo_id='me/mine', license='mit', formats=['torchscript'],
        export_options=options)
    about = json.loads((folder / 'model.json').read_text())
    assert about['files'][0]['input_size'] == [3, *[32 if options else 224] * 2]


def test_card_of_files(checkpoint):
    """Files for mobile runtimes are in the card with precision, size in MB, check and the shape of what they take."""
    files = [Exported(Path(f'out/model{precision}.onnx'), 'onnx', 'fp32', (3, 64, 48), 1_234_567, note='not checked')
             for precision in ('', '.int8')]
    text = card(load(SMALL, checkpoint), 'me/mine', exported=files)
    assert '| `model.onnx` | fp32 | 1.23 | not checked |\n| `model.int8.onnx` | fp32 | 1.23 | not checked |\n' in text
    assert "timm's transform makes it, (1, 3, 64, 48), and return logits" in text
    assert "load(hf_hub_download('me/mine', 'model.onnx'))\nlogits = run(np.zeros((1, 3, 64, 48), np.float32))" in text
    assert 'mobile runtimes' not in card(load(SMALL, checkpoint), 'me/mine')


def test_nothing_is_uploaded_unasked(server, client, checkpoint):
    """Without --push the command makes the folder, says so, and talks to nobody."""
    out = client.run(PUBLISH.format([SMALL, str(checkpoint), '--repo-id', 'me/mine', '--output', 'mine']))
    assert out.endswith('Nothing was uploaded: --push does it.')
    assert server.log == []


def test_hub_refuses(server, client, checkpoint):
    """A Hub that does not answer ends the command with its message; the folder is there to be pushed later."""
    server.server_close()
    args = [SMALL, str(checkpoint), '--repo-id', 'me/mine', '--output', 'mine', '--license', 'mit', '--push']
    error = client.fail(f"__import__('timm_mobilenext.weights.publish').publish.main({args})")
    assert re.search(r'SystemExit: error: .*(refused|10061).*\nmine was not uploaded to me/mine\.', error)
    assert '`hf upload me/mine mine`' in error
    assert (client.folder / 'mine' / 'model.safetensors').exists()


def test_repository_has_to_be_named(checkpoint, tmp_path):
    """A model of one's own needs the name of a repository, before anything is written."""
    with pytest.raises(SystemExit, match=r'none of the authors. files: name its repository'):
        main([SMALL, str(checkpoint), '--output', str(tmp_path / 'mine')])
    assert not (tmp_path / 'mine').exists()
    assert timm.create_model(SMALL, checkpoint_path=str(checkpoint), num_classes=3).num_classes == 3


def test_options_of_files_need_formats(checkpoint, capsys):
    """Options of files for mobile runtimes are an error where no files were asked for."""
    with pytest.raises(SystemExit):
        main([SMALL, str(checkpoint), '--int8'])
    assert 'name their --formats' in capsys.readouterr().err
