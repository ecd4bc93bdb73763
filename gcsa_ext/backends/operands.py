"""The operands of the operator gcsa, as they travel from its contract to the backends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """The arguments of reference.gcsa, in its order, which is that of the schema; shapes as there.

    With `mixed` the layers may round what they multiply to bfloat16, as under autocast; sums and results stay
    as they are. csrc/python/gcsa.cpp reads the fields by their positions.
    """

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    conv1_weight: Tensor
    conv1_bias: Tensor | None
    conv2_weight: Tensor
    conv2_bias: Tensor | None
    norm1_weight: Tensor | None
    norm1_bias: Tensor | None
    norm2_weight: Tensor | None
    norm2_bias: Tensor | None
    mean1: Tensor | None
    var1: Tensor | None
    mean2: Tensor | None
    var2: Tensor | None
    eps1: float
    eps2: float
    groups: int
    sigmoid: bool
    mixed: bool

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The operands that have a gradient: x and all weights."""
        return self[:DIFFERENTIABLE]  # type: ignore[return-value]

    @property
    def gate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of the channel gate."""
        return self.w1, self.b1, self.w2, self.b2

    @property
    def statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.mean1, self.var1, self.mean2, self.var2


DIFFERENTIABLE = 13
"""How many of the arguments, from the first on, have a gradient."""
