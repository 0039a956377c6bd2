"""Fixtures of the libraries downstream. Inputs are small: what is tested is that a library takes the models."""
from collections.abc import Callable

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> torch.Tensor:
    """A batch of two images, (2, 3, 64, 64)."""
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def train_step() -> Callable[[torch.nn.Module, Callable[[], torch.Tensor]], None]:
    """A function that takes a training step on the loss of a model, and checks that it moved the backbone."""
    def step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
        model.train()
        stem = next(p for name, p in model.named_parameters() if name.endswith('stem.conv.weight'))
        before = stem.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        value = loss()
        assert torch.isfinite(value)
        value.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        assert not torch.equal(stem, before)
        model.eval()
    return step
