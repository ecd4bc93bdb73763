"""Which operators of torch and of gcsa_ext a forward pass calls."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts the operators that run while the context lasts; not those inside operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def calls_operator(module: nn.Module, *args: Any) -> bool:
    """Whether a forward pass calls an operator of gcsa_ext."""
    with Operators() as operators:
        module(*args)
    return any(name.startswith("gcsa_ext::") for name in operators.counts)
