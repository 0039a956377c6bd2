"""Publishing to the Hub: the card, the upload, and a model that comes back bit-equal."""
import argparse
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from networks import SMALL
from PIL import Image

from timm_mobilenext.deploy.export import Exported
from timm_mobilenext.weights.authors import SOURCES
from timm_mobilenext.weights.convert import load
from timm_mobilenext.weights.publish import card, main, publish

PUBLISH = 'from timm_mobilenext.weights.publish import main\nassert main({}) == 0'
REFUSED = "__import__('timm_mobilenext.weights.publish').weights.publish.main({})"  # in one line, for client.fail


@pytest.fixture
def checkpoint(tmp_path, calibrated):
    """The state dict of a model for three classes."""
    path = tmp_path / 'mine.pth'
    torch.save(calibrated(SMALL, num_classes=3).float().state_dict(), path)
    return path


@pytest.fixture
def args(checkpoint):
    """The arguments that publish it as me/mine."""
    return [str(checkpoint), '--model', SMALL, '--repo-id', 'me/mine', '--output', 'mine']


@pytest.fixture
def published(client, args):
    """The arguments that published it, with names of the classes."""
    (client.folder / 'names.txt').write_text('cat\ndog\nowl\n')
    args = [*args, '--license', 'mit', '--label-names', 'names.txt', '--dataset', 'me/pets', '--push']
    client.run(PUBLISH.format(args))
    return args


def test_card_of_authors_weights(tmp_path, known_files):
    """The card of the authors' weights has the front matter that the Hub reads, the reported results and the origin."""
    assert publish(known_files['mobilenext_s'], tmp_path / 'out') == 'timm-mobilenext/mobilenext_s.in1k'
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {
        'LICENSE', 'README.md', 'config.json', 'model.safetensors'}
    assert 'The Clear BSD License' in (tmp_path / 'out' / 'LICENSE').read_text()
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    data = card.data.to_dict()
    assert (data['library_name'], data['license'], data['pipeline_tag'], data['datasets']) == (
        'timm', 'bsd-3-clause-clear', 'image-classification', ['imagenet-1k'])
    assert [(r.metric_name, r.metric_value, r.source_name) for r in card.data.eval_results] == [
        (f'Top {k} Accuracy', value, "reported by the authors' training log, not measured again")
        for k, value in ((1, 76.056), (5, 92.744))]
    assert all(r.source_url.startswith('https://github.com/zhoudaquan/rethinking_bottleneck_design/tree/')
               for r in card.data.eval_results)
    assert card.data.model_name == 'mobilenext_s.in1k'
    for said in (
            'for 1000 classes: MobileNeXt `mobilenext_s`, 224 x 224 pixels', '- **Classes:** those of ImageNet-1k\n',
            '- **Trained on:** ImageNet-1k\n', '- **Accuracy:** top-1 76.056 %, top-5 92.744 %, on ImageNet-1k',
            '- **Size:** 3.93 M parameters; 0.33 G multiply-adds (GMACs) and 9.97 M activations per image\n',
            '- **Licence:** The Clear BSD License, text in LICENSE\n', 'verified before the file was read\n',
            '```sh\npip install timm-mobilenext\n```', 'labels = timm.data.ImageNetInfo().label_descriptions()'):
        assert said in card.text


@pytest.mark.slow
def test_published_model(server, client, published, checkpoint):
    """What was pushed in one commit comes back bit-equal, by name and by revision, and the code in its card runs."""
    assert [request for request in server.log if '/commit/' in request] == ['POST /api/models/me/mine/commit/main']
    pinned = re.search(r"'(hf-hub:me/mine@[0-9a-f]{40})'", client.stdout)[1]
    card = ModelCard.load(server.hub / 'me' / 'mine' / 'README.md')
    assert (card.data.license, card.data.datasets, card.data.eval_results) == ('mit', ['me/pets'], None)
    assert '- **Classes:** cat, dog, owl\n- **Trained on:** me/pets\n- **Accuracy:** not stated\n' in card.text
    client.run(f"""
weights = torch.load({str(checkpoint)!r}, weights_only=True)
for name in ('hf-hub:me/mine', {pinned!r}):
    model = timm.create_model(name, pretrained=True)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
""")
    blocks = re.findall(r'```python\n(.*?)```', card.text, re.DOTALL)
    assert [block.splitlines()[0] for block in blocks] == ['import timm_mobilenext  # registers the models'] * 3
    Image.new('RGB', (300, 240), 'teal').save(client.folder / 'image.jpg')
    client.run(blocks[0])
    assert sorted(re.findall(r'^(\w+): \d+\.\d%$', client.stdout, re.M)) == ['cat', 'dog', 'owl']
    client.run(blocks[1])


@pytest.mark.slow
def test_other_weights_are_kept(server, client, published, checkpoint):
    """The same weights can be pushed again, other weights need --overwrite, an edited card stays until then."""
    card = server.hub / 'me' / 'mine' / 'README.md'
    card.write_text('My own words.')
    shutil.rmtree(client.folder / 'mine')
    client.run(PUBLISH.format(published))
    assert card.read_text() == 'My own words.'
    before = (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes()
    torch.save({k: v + 1 for k, v in torch.load(checkpoint, weights_only=True).items()}, checkpoint)
    shutil.rmtree(client.folder / 'mine')
    error = client.fail(REFUSED.format(published))
    assert 'SystemExit: error: me/mine has other weights than mine, nothing was uploaded.' in error
    assert (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes() == before
    shutil.rmtree(client.folder / 'mine')
    client.run(PUBLISH.format([*published, '--overwrite']))
    assert (server.hub / 'me' / 'mine' / 'model.safetensors').read_bytes() != before
    assert card.read_text() != 'My own words.'


@pytest.mark.slow
def test_transformers(client, published):
    """What was published loads in transformers as a model and as a pipeline, with logits bit-equal to timm's."""
    pytest.importorskip('transformers', reason='the extra `transformers` is not installed')
    Image.new('RGB', (300, 240), 'teal').save(client.folder / 'image.jpg')
    client.run("""
from transformers import AutoModelForImageClassification, pipeline
x = torch.randn(2, 3, 224, 224)
expected = timm.create_model('hf-hub:me/mine', pretrained=True).eval()(x)
assert expected.std() > 0.01
model = AutoModelForImageClassification.from_pretrained('me/mine').eval()
assert torch.equal(model(x).logits, expected)
answer = pipeline('image-classification', model='me/mine')('image.jpg')
assert sorted(a['label'] for a in answer) == ['cat', 'dog', 'owl']
""")


@pytest.mark.slow
def test_transformers_imagenet_labels(converted):
    """With the authors' weights transformers gives readable ImageNet names, which timm knows."""
    transformers = pytest.importorskip('transformers', reason='the extra `transformers` is not installed')
    model = transformers.AutoModelForImageClassification.from_pretrained(converted)
    assert model.config.id2label[281] == 'tabby, tabby cat'


@pytest.mark.slow
def test_licence_is_asked_for(server, client, args):
    """Weights of an unknown licence are not pushed, nor written for it. Without --push the card says so."""
    error = client.fail(REFUSED.format([*args, '--push']))
    assert error.startswith('SystemExit: error: The licence of the weights of ')
    assert not (client.folder / 'mine').exists()
    assert client.run(PUBLISH.format(args)).endswith('Nothing was uploaded. Upload it with --push.')
    assert server.log == []
    card = ModelCard.load(client.folder / 'mine' / 'README.md')
    assert card.data.license is None
    assert '- **Licence:** not stated, so nobody else may use these weights\n' in card.text
    assert not (client.folder / 'mine' / 'LICENSE').exists()


def test_card_of_fine_tuned_weights(tmp_path):
    """The card of weights that were fine-tuned from the authors' has the licence of these, its text and the origin."""
    args = argparse.Namespace(model='mobilenext_100', pretrained=True)
    state = timm.create_model('mobilenext_100', num_classes=3).state_dict()
    torch.save(dict(state_dict=state, args=args), tmp_path / 'tuned.pth.tar')
    publish(tmp_path / 'tuned.pth.tar', tmp_path / 'out', 'me/mine')
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert card.data.license == 'bsd-3-clause-clear'
    assert f"- **Derived from:** weights of the paper's authors, {SOURCES['mobilenext_100'].url}\n" in card.text
    assert 'labels = range(model.num_classes)\n' in card.text
    assert 'The Clear BSD License' in (tmp_path / 'out' / 'LICENSE').read_text()


@pytest.mark.parametrize('dataset', ['me/pets', None])
def test_card_of_a_training_run(dataset, tmp_path):
    """The card has the accuracy that a training run reports, in words and where the Hub reads it."""
    state = timm.create_model(SMALL, num_classes=3).state_dict()
    torch.save(dict(state_dict=state, args=argparse.Namespace(model=SMALL), metric=81.25), tmp_path / 'best.pth.tar')
    publish(tmp_path / 'best.pth.tar', tmp_path / 'out', 'me/mine', dataset=dataset)
    card = ModelCard.load(tmp_path / 'out' / 'README.md')
    assert '- **Accuracy:** top-1 81.25 %, as the training run reports it for its validation data\n' in card.text
    assert 'verified' not in card.text  # a digest is known only of the authors' files
    assert (card.data.model_name, card.data.datasets) == ('mine', dataset and [dataset])
    result, = card.data.eval_results
    assert (result.dataset_type, result.metric_name, result.metric_value, result.source_name) == (
        dataset or 'imagefolder', 'Top 1 Accuracy', 81.25, None)


@pytest.mark.parametrize(('said', 'line'), [
    (None, 'pip install timm-mobilenext\n'),  # from an index
    (dict(url='https://me.invalid/x.git', vcs_info=dict(vcs='git', commit_id='abc')),
     "pip install 'git+https://me.invalid/x.git@abc'\n"),
    (dict(url='file:///home/me/x', dir_info={}), 'needs the Python package `timm-mobilenext` ')])
def test_installation_in_the_card(said, line, checkpoint, monkeypatch):
    """The card says to install the package as the copy that wrote it was installed, if others can do so."""
    monkeypatch.setattr(
        'timm_mobilenext.weights.publish.distribution',
        lambda name: argparse.Namespace(read_text=lambda file: said and json.dumps(said)))
    text = card(load(checkpoint, SMALL), 'me/mine')
    assert line in text
    assert ('pip install' in text) == ('pip install' in line)


def test_card_of_files(checkpoint):
    """The card lists files for mobile runtimes with precision, size in MB and check, and says what they take."""
    file = Exported(Path('out/model.onnx'), 'onnx', 'fp32', (3, 64, 48), 1_234_567, note='not checked')
    text = card(load(checkpoint, SMALL), 'me/mine', exported=[file])
    assert '| `model.onnx` | fp32 | 1.23 | not checked |\n' in text
    assert "timm's transform makes it, (1, 3, 64, 48), and return logits" in text


def test_hub_refuses(server, client, args):
    """A Hub that does not answer ends the command with an error; the folder stays, and how to push it is printed."""
    server.server_close()
    printed = client.fail(REFUSED.format([*args, '--license', 'mit', '--push']))
    assert re.search(r'run `hf upload me/mine mine`\.\nSystemExit: error: .*(refused|10061)', printed)
    assert (client.folder / 'mine' / 'model.safetensors').exists()


@pytest.mark.parametrize(('more', 'message'), [
    ([], r'error: The card needs the name of a repository: --repo-id OWNER/NAME\.'),
    (['--repo-id', 'mine'], r'error: mine is not the name of a repository on the Hub: give OWNER/NAME \(--repo-id\)'),
    (['--repo-id', 'me/mine', '--int8'], '2'),  # without --format
    (['--repo-id', 'me/mine', '--model', 'resnet18'], r'error: .* is not a MobileNeXt: publish other models'),
])
def test_slips(more, message, checkpoint, tmp_path):
    """A repository without a name or an owner, and other networks, are refused before anything is written."""
    if 'resnet18' in more:
        torch.save(timm.create_model('resnet18', num_classes=3).state_dict(), checkpoint)
    with pytest.raises(SystemExit, match=message):
        main([str(checkpoint), '--model', SMALL, '--output', str(tmp_path / 'mine'), *more])
    assert not (tmp_path / 'mine').exists()
