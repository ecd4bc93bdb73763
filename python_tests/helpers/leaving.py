"""Networks with an attention, and what the tests of exported and copied networks ask about them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from public_attention import GroupedAttention, PlainAttention, randomize_statistics
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import gcsa_ext


class Net(nn.Module):
    """A convolution, an attention and a linear layer: (N, 3, H, W) to (N, 5)."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.attention = attention
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.stem(x)).mean((2, 3)))


class WithMasking(Net):
    """The same with frequency masking of the input."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__(attention)
        self.masking = gcsa_ext.FrequencyMasking(4, iid_masks=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.masking(x))


CHANNELS = 16
MAKERS: dict[str, Callable[[], Net]] = {
    "plain GCSA": lambda: Net(PlainAttention(CHANNELS)),
    "grouped GAM": lambda: Net(GroupedAttention(CHANNELS)),
    "modules of gcsa_ext": lambda: WithMasking(gcsa_ext.GCSA(CHANNELS)),
}
FUSED = [name for name in MAKERS if name != "modules of gcsa_ext"]
"""The networks with an attention that replace_attention fuses."""


def network(name: str) -> Net:
    """A new network in evaluation, with random statistics in its normalisations."""
    model = MAKERS[name]()
    randomize_statistics(model)
    return model.eval()


def plain_and_fused(name: str) -> tuple[Net, Net]:
    """A network as it is, and a copy of it that is fused. Only the modules of gcsa_ext are fused in both."""
    plain = network(name)
    fused = copy.deepcopy(plain)
    assert gcsa_ext.replace_attention(fused) == (name in FUSED)
    return plain, fused


def same_steps(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    """Require equal results, gradients and buffers of one training step of two models."""
    results = []
    for model in (a, b):
        torch.manual_seed(1)  # of the masking
        model.zero_grad()
        results.append(model.train()(x))
        results[-1].square().mean().backward()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    same_gradients(a, b)
    for one, other in zip(a.buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def same_gradients(a: nn.Module, b: nn.Module) -> None:
    """Require equal gradients of the parameters of two models."""
    scale = max(p.grad.abs().max().item() for p in a.parameters() if p.grad is not None)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5 * scale)


class OperatorCalls(TorchDispatchMode):
    """The names of the operators of gcsa_ext that are called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        if name.startswith("gcsa_ext."):
            self.names.append(name.removeprefix("gcsa_ext.").removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def operators_called(model: Callable[..., Any], *args: Any) -> list[str]:
    """The operators of gcsa_ext that one call without gradients calls."""
    with torch.no_grad(), OperatorCalls() as calls:
        model(*args)
    return calls.names
