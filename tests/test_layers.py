"""What PyTorch and timm lack: each piece on its own, and in the networks."""
import contextlib
import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn as nn
from networks import FAMILIES, SHORT, SMALL
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.utils import freeze, reparameterize_model
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.overrides import BaseTorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from timm_mobilenext import SandGlass, _layers

create = partial(timm.create_model, zero_init_last=False)  # for branches that show in answers and gradients


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass allocates and does not free: what it keeps for the backward pass, and its output."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        out = model(x)
    assert out.requires_grad
    return sum(event.self_cpu_memory_usage for event in prof.key_averages())


def step(model: nn.Module, x: torch.Tensor, run=None) -> dict[str, torch.Tensor]:
    """Take a training step without an optimizer; return the output, gradients and running statistics."""
    model.zero_grad()
    out = (run or model)(x)
    out.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return dict(out=out.detach(), **grads, **{name: b.clone() for name, b in model.named_buffers()})


class Wrapper(nn.Module):
    """What an adapter puts in the place of a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.layer(x) * 2


# -- each piece on its own

@pytest.mark.parametrize('kwargs', [
    {}, dict(apply_act=False), dict(norm_layer='groupnorm1'), dict(padding='same', act_layer='silu'),
    dict(aa_layer='blurpc'), dict(act_layer=None)])
def test_conv_norm(kwargs):
    """A ConvNorm folds to a conv and what follows the norm, with equal answers; another norm than batch norm stays."""
    torch.manual_seed(0)
    unit = _layers.ConvNorm(4, 8, **dict(kernel_size=3, stride=2) | kwargs)
    for buffer in unit.bn.buffers():
        if buffer.ndim:
            nn.init.uniform_(buffer, 0.5, 1.5)
    x = torch.randn(2, 4, 9, 9)
    folded = unit.eval().fuse()
    torch.testing.assert_close(folded(x), unit(x))
    assert (folded is unit) == (kwargs.get('norm_layer') == 'groupnorm1')
    assert [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)] == []
    assert isinstance(folded, nn.Conv2d) == (kwargs in (dict(apply_act=False), dict(act_layer=None)))


def test_is_eager():
    """Operators just run unless they are traced, compiled, transformed, rewritten or differentiated forward."""
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answers.append(_layers.is_eager(x))
            return x.relu()

    answers, model, x = [], Asks(), torch.randn(2, 3)
    model(x)
    assert answers == [True]
    torch.jit.trace(model, x, check_trace=False)
    torch.fx.symbolic_trace(model)
    torch.compile(model, backend='eager')(x)
    torch.func.vmap(model)(x)
    torch.func.functionalize(model)(x)
    torch.func.jvp(model, (x,), (x,))
    with forward_ad.dual_level():
        model(forward_ad.make_dual(x, x))
    with BaseTorchFunctionMode():
        model(x)
    assert len(answers) >= 7
    assert not any(answers[1:])


# -- in the networks

@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('identity_ratio', [1, 0.5])
def test_shortcut_in_every_mode(identity_ratio, train):
    """The shortcut has equal answers and gradients in eager mode, compiled, exported, scripted, traced, under fx."""
    torch.manual_seed(0)
    block = SandGlass(16, 16, identity_ratio=identity_ratio, dtype=torch.float64).train(train)
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64, requires_grad=True)
    branch = copy.deepcopy(block)
    branch.identity_chs = 0

    def expected(x):
        chs = int(16 * identity_ratio)
        out = branch(x)
        return torch.cat([out[:, :chs] + x[:, :chs], out[:, chs:]], dim=1)

    def answers(run):
        for m in (block, branch):
            m.zero_grad()
        out = run(x)
        grad_x, = torch.autograd.grad(out.pow(3).sum(), x)
        with torch.no_grad():
            return out.detach(), grad_x, run(x)

    ways = dict(
        eager=block,
        compile=torch.compile(block, backend='aot_eager', fullgraph=True),
        script=torch.jit.script(block),
        trace=torch.jit.trace(block, x.detach()),
        fx=torch.fx.symbolic_trace(block),
        channels_last=lambda x: block(x.contiguous(memory_format=torch.channels_last)),
        recompute=copy.deepcopy(block),
        functionalize=torch.func.functionalize(block),
    )
    ways['recompute'].recompute_act = True
    if not train:  # what PyTorch 2.5 exports in training mode has no backward pass
        ways['export'] = torch.export.export(block, (x.detach(),)).module()
    for way, run in ways.items():
        torch.testing.assert_close(answers(run), answers(expected), msg=lambda m, way=way: f'{way}: {m}')
    if not train:  # batch norm in training mode writes to its statistics, which torch.func refuses
        params, buffers = dict(block.named_parameters()), dict(block.named_buffers())

        def loss(x):
            return torch.func.functional_call(block, (params, buffers), (x[None],)).pow(3).sum()

        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x.detach()), answers(expected)[1])
        assert torch.autograd.gradgradcheck(block, (x,), fast_mode=True)


@pytest.mark.parametrize(('name', 'memory_format'), [
    (SMALL, torch.contiguous_format), ('mobilenext_100_id050', torch.channels_last)])
def test_relu6(name, memory_format):
    """The default ReLU6 keeps at most 0.76 of the memory of PyTorch's, the authors', with equal bits throughout."""
    torch.manual_seed(0)
    default = create(name, num_classes=3).to(memory_format=memory_format)
    plain = create(name, num_classes=3, act_layer=nn.ReLU6).to(memory_format=memory_format)
    plain.load_state_dict(default.state_dict())
    x = torch.randn(4, 3, 96, 96).contiguous(memory_format=memory_format)
    torch.testing.assert_close(step(default, x), step(plain, x), rtol=0, atol=0)
    assert kept_bytes(default, x) < 0.76 * kept_bytes(plain, x)


@pytest.mark.parametrize('flag', ['scriptable', 'exportable'])
def test_plain_relu6(flag):
    """Models created to be scripted or exported have PyTorch's ReLU6, as timm does with its own activations."""
    model = create(SMALL, **{flag: True})
    assert {type(m) for m in model.modules() if isinstance(m, nn.ReLU6)} == {nn.ReLU6}


@pytest.mark.parametrize(('name', 'change'), [(name, '') for name in FAMILIES] + [(SMALL, change) for change in (
    'channels_last', 'frozen', 'half frozen', 'autocast', 'folded', 'checkpointed')])
def test_recompute_act(name, change):
    """With `recompute_act` gradients agree to 1e-6 and running statistics to the bit, whatever else is changed."""
    steps = []
    for recompute_act in (False, True):
        torch.manual_seed(0)
        model = create(name, num_classes=3, recompute_act=recompute_act, **SHORT)
        x = torch.randn(4, 3, 64, 64)
        if change == 'channels_last':
            model, x = (v.to(memory_format=torch.channels_last) for v in (model, x))
        elif change == 'frozen':
            model = freeze_batch_norm_2d(model)
        elif change == 'half frozen':
            freeze(model, ['stem', 'blocks.0', 'blocks.1', 'blocks.2'])
        elif change == 'folded':
            model = reparameterize_model(model)
        elif change == 'checkpointed':
            model.set_grad_checkpointing(recompute_act)
        with torch.autocast('cpu', torch.bfloat16, enabled=change == 'autocast'):
            steps.append(step(model, x))
    expected, got = steps
    scale = max(value.abs().max() for key, value in expected.items() if 'running' not in key)
    assert expected.keys() == got.keys()
    for key in expected:
        if 'running' in key or 'tracked' in key:
            assert torch.equal(got[key], expected[key]), key
        else:
            assert (got[key] - expected[key]).abs().max() <= 1e-6 * scale, key


@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050'])
def test_memory_of_recompute_act(name):
    """With `recompute_act` training keeps at most 0.55 of the memory of PyTorch's ReLU6, with checkpoints a fifth."""
    x = torch.randn(4, 3, 96, 96)
    plain = kept_bytes(create(name, act_layer=nn.ReLU6), x)
    assert kept_bytes(create(name, recompute_act=True), x) < 0.55 * plain
    checkpointed = create(name)
    checkpointed.set_grad_checkpointing()
    assert kept_bytes(checkpointed, x) < 0.2 * plain


@pytest.mark.parametrize('memory', ['recompute_act', 'checkpointed'])
def test_distributed_data_parallel(memory, tmp_path):
    """DistributedDataParallel gives the gradients and statistics of the model alone, however memory is saved."""
    torch.manual_seed(0)
    model = create('mobilenext_100_id050', num_classes=3, recompute_act=memory == 'recompute_act', **SHORT)
    model.set_grad_checkpointing(memory == 'checkpointed')
    alone = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    torch.distributed.init_process_group('gloo', init_method=(tmp_path / 'store').as_uri(), rank=0, world_size=1)
    try:
        torch.testing.assert_close(
            step(model, x, run=nn.parallel.DistributedDataParallel(model)), step(alone, x), rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('name', [name for name in FAMILIES if 'id050' not in name])  # a slice has another gradient
def test_channels_last(name):
    """In channels_last no layer returns another layout, nor has a gradient of one inside a block, a ghost one too."""
    model = create(name).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    inside = [m for block in model.modules() if isinstance(block, SandGlass) for m in (block.dw_start, block.pw_reduce)]
    layouts = []

    def watch(m, args, out):
        layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        if type(m) is _layers.ConvNorm and m in inside:
            out.register_hook(lambda grad: layouts.append(grad.is_contiguous(memory_format=torch.channels_last)))

    for m in model.blocks.modules():
        m.register_forward_hook(watch)
    model(x).sum().backward()
    assert all(layouts)
    assert all(p.grad.is_contiguous(memory_format=torch.channels_last) for p in model.parameters() if p.ndim == 4)


@pytest.mark.parametrize('name', FAMILIES)
def test_reparameterize(name, calibrated):
    """The reparameterize_model of timm folds all batch norms away, idempotently and with equal answers."""
    model = calibrated(name).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    fused = reparameterize_model(model)
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert fused.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x))
        torch.testing.assert_close(reparameterize_model(fused)(x), fused(x), rtol=0, atol=0)
        torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))


@pytest.mark.parametrize('change', [
    lambda conv: prune.l1_unstructured(conv, 'weight', 0.5), parametrizations.weight_norm,
    parametrizations.spectral_norm, Wrapper], ids=['pruned', 'weight norm', 'spectral norm', 'adapter'])
def test_reparameterize_changed_convs(change, calibrated):
    """A unit whose conv is pruned, parametrized or wrapped keeps it, folding the others; the answers are equal."""
    model = calibrated(SMALL, **SHORT)
    units = [m for m in model.modules() if isinstance(m, _layers.ConvNorm)]
    for unit in units[::3]:
        unit.conv = change(unit.conv)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        folded = reparameterize_model(model)
        torch.testing.assert_close(folded(x), expected)
    assert len([m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]) == len(units[::3])


@pytest.mark.parametrize('change', [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_reparameterize_changed_norms(change, calibrated):
    """Synchronized and frozen batch norms are folded too."""
    model = change(calibrated(SMALL, **SHORT)).eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = reparameterize_model(model)
    torch.testing.assert_close(folded(x), model(x))
    assert not [key for key in folded.state_dict() if 'running' in key]


@pytest.mark.parametrize('name', [SMALL, 'mobilenext_l_ghost'])
def test_grad_checkpointing(name):
    """Gradient checkpointing leaves gradients and running statistics as they are, of `forward_intermediates` too."""
    torch.manual_seed(0)
    model = create(name, num_classes=3, **SHORT)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    for run in (lambda m, x: m(x), lambda m, x: m.forward_intermediates(x)[0]):
        x, steps = torch.randn(2, 3, 64, 64), []
        for network, calls in ((model, 1), (checkpointed, 2)):  # a block is computed again in the backward pass
            seen = []
            with network.blocks[0][0].pw_reduce.register_forward_hook(lambda *args, seen=seen: seen.append(1)):
                steps.append(step(network, x, run=partial(run, network)))
            assert len(seen) == calls
        torch.testing.assert_close(*steps, rtol=0, atol=0)


# what is watched in a block of this package, and in one of timm's MobileNetV2
WATCHED = {
    'mobilenext_100_id050': [
        'stem', 'stem.bn', 'blocks.2.1.dw_end', 'blocks.2.1.dw_end.bn', 'blocks.2.1.se', 'blocks.2.1.drop_path',
        'blocks.2.1.pw_expand.bn'],
    'mobilenetv2_100': ['conv_stem', 'bn1', 'blocks.2.1.conv_pwl', 'blocks.2.1.bn3', 'blocks.2.1.drop_path'],
}


@pytest.mark.parametrize('kind', ['forward_pre', 'forward', 'full_backward_pre', 'full_backward'])
@pytest.mark.parametrize('name', WATCHED)
def test_watched(name, kind):
    """Every kind of hook on any layer runs, in training without in-place activations, as in timm's MobileNetV2."""
    model = create(name, width_mult=0.35, drop_path_rate=0.1, se_ratio=0.25) if 'next' in name else (
        timm.create_model(name, drop_path_rate=0.1))
    for m in model.modules():
        if hasattr(m, 'inplace'):
            m.inplace = False
    seen = []
    for layer in WATCHED[name]:
        hook = getattr(model.get_submodule(layer), f'register_{kind}_hook')
        hook(lambda *args, layer=layer: seen.append(layer))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert sorted(seen) == sorted(WATCHED[name])


@pytest.mark.parametrize('recompute_act', [False, True])
@pytest.mark.parametrize('name', [SMALL, 'mobilenext_100_id050', 'mobilenext_l_ghost'])
def test_hook_that_replaces_an_output(name, recompute_act):
    """A tensor that a hook returns is used and not written to, with gradients and without."""
    torch.manual_seed(0)
    model = create(name, recompute_act=recompute_act, **SHORT).eval()
    x = torch.randn(2, 3, 64, 64)
    kept = {}
    for layer in ('dw_end', 'pw_reduce'):
        model.get_submodule(f'blocks.3.1.{layer}').register_forward_hook(
            lambda m, args, out, layer=layer: kept.setdefault(layer, torch.full_like(out, 0.5).detach()))
    answers = [model(x), model(x), model.requires_grad_(False)(x)]
    torch.testing.assert_close(answers[1:], answers[:1] * 2, rtol=0, atol=0)
    assert len(kept) == 2
    assert all((value == 0.5).all() for value in kept.values())


@pytest.mark.parametrize('change', ['replaced', 'wrapped', 'forward', 'global hook', 'adapter', 'mode'])
def test_recompute_act_stands_aside(change):
    """Where a unit is replaced, wrapped, rewritten or watched, `recompute_act` calls it like any other layer."""
    torch.manual_seed(0)
    model, calls = create(SMALL, recompute_act=True, num_classes=3, **SHORT), []
    block = model.blocks[3][1]
    unit = block.pw_reduce
    if change == 'replaced':
        block.pw_reduce = nn.Sequential(unit, nn.BatchNorm2d(unit.out_channels))
    elif change == 'wrapped':
        block.pw_reduce = Wrapper(unit)
    elif change == 'forward':
        forward = unit.forward
        unit.forward = lambda x: calls.append(1) or forward(x)
    elif change == 'adapter':
        unit.conv = Wrapper(unit.conv)
    start, x = copy.deepcopy(model.state_dict()), torch.randn(2, 3, 64, 64)
    with contextlib.ExitStack() as stack:
        if change == 'mode':
            stack.enter_context(BaseTorchFunctionMode())
        elif change == 'global hook':
            stack.enter_context(nn.modules.module.register_module_forward_hook(
                lambda m, args, out: calls.append(1) if m is unit else None))
        got = step(model, x)
    assert len(calls) == (change in ('forward', 'global hook'))
    model.load_state_dict(start)
    for m in model.modules():
        m.recompute_act = False
    torch.testing.assert_close(got, step(model, x), rtol=1e-5, atol=1e-5)


def test_drop_path_keeps_channels_without_shortcut():
    """A dropped block is the identity on the channels of the shortcut and unchanged on the others."""
    block = SandGlass(8, 8, identity_ratio=0.5, drop_path_rate=0.999)
    x = torch.randn(64, 8, 7, 7)
    out = block.train()(x)
    kept = copy.deepcopy(block)
    kept.drop_path = nn.Identity()
    expected = kept(x)
    dropped = [i for i in range(64) if torch.equal(out[i, :4], x[i, :4])]
    assert len(dropped) > 50
    torch.testing.assert_close(out[:, 4:], expected[:, 4:])
