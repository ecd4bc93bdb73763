"""The arguments of the operators, as named tuples, and the bands of spectrogram_mask as kernels take them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ChannelGateArguments(NamedTuple):
    """The arguments of reference.channel_gate, in its order, which is that of the schema; shapes as there."""

    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    groups: int
    sigmoid: bool = True


class NormGateArguments(NamedTuple):
    """The arguments of reference.norm_gate, in its order, which is that of the schema; shapes as there."""

    u: Tensor
    z: Tensor
    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float


class Arguments(NamedTuple):
    """The arguments of reference.gcsa, in its order, which is that of the schema; shapes as there.

    With `mixed` the layers may round the operands of products to bfloat16, as under autocast. Sums and
    results keep their dtype. csrc/python/gcsa.cpp reads the fields by their positions.
    """

    x: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
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
    mixed: bool = False
    gate_groups: int = 1
    gate_sigmoid: bool = True
    replicate: bool = False

    @property
    def plain(self) -> bool:
        """Whether both convolutions are alike, ungrouped and zero-padded, and the gate is not shuffled."""
        h, C = self.w1.shape
        k = self.conv1_weight.shape[-1]
        return (
            self.b1 is not None
            and self.b2 is not None
            and self.conv1_weight.shape == (h, C, k, k)
            and self.conv2_weight.shape == (C, h, k, k)
            and k >= 3
            and self.gate_groups == 1
            and self.gate_sigmoid
            and not self.replicate
        )

    @property
    def hidden(self) -> int:
        """The number of channels between the convolutions."""
        return self.conv1_weight.shape[0]

    @property
    def differentiable(self) -> tuple[Tensor | None, ...]:
        """The arguments that have a gradient: x and all weights."""
        return self[:DIFFERENTIABLE]  # type: ignore[return-value]

    @property
    def gate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The weights of the channel gate, with zeros for missing biases."""
        b1 = self.w1.new_zeros(self.w1.shape[0]) if self.b1 is None else self.b1
        b2 = self.w2.new_zeros(self.w2.shape[0]) if self.b2 is None else self.b2
        return self.w1, b1, self.w2, b2

    @property
    def statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The statistics to normalise with; None, None for those of the batch."""
        return self.mean1, self.var1, self.mean2, self.var2


DIFFERENTIABLE = 13
"""The number of arguments with a gradient; they come first."""


def expand_bands(spectrogram: Tensor, start: Tensor, width: Tensor) -> tuple[Tensor, Tensor, bool]:
    """start and width of spectrogram_mask, contiguous, and whether all samples share the bands.

    Both are (bands,), up to axes of size 1, if all samples share them, else (*batch, bands).
    """
    shared = start.numel() == start.shape[-1]
    if not shared:
        start, width = (t.expand(*spectrogram.shape[:-2], t.shape[-1]) for t in (start, width))
    return start.contiguous(), width.contiguous(), shared
