"""The launches that a backend for GPUs implements, as the protocol `Gates`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class ChannelGate(NamedTuple):
    """The weights w1 (h, C), b1 (h,), w2 (C, h), b2 (C,) of a channel gate, and its settings."""

    weights: Sequence[Tensor]
    groups: int
    sigmoid: bool


class Norm(NamedTuple):
    """A batch normalisation of C channels: (u + offset - mean) / sqrt(var + eps) * weight + bias.

    All vectors are (C,). `offset` is the bias of the convolution that made u, which the convolution leaves
    out. `sigmoid` belongs to the gate of `Gates.norm_forward`; CUDA has no kernels where it is False.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    offset: Tensor | None
    eps: float
    sigmoid: bool = True


class NormGradients(NamedTuple):
    """The gradients of `Gates.norm_backward`, None where not needed."""

    u: Tensor | None = None
    z: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    sums: Tensor | None = None
    """(2 * C,) float32: the gradient of a weight, then that of a bias; None if nothing needed these sums."""

    @classmethod
    def empty(
        cls, u: Tensor, z: Tensor | None, norm: Norm, need: Sequence[bool], layout: torch.memory_format
    ) -> NormGradients:
        """Uninitialised gradients of those of u, z, norm.weight and norm.bias that exist and are needed."""
        need_u, need_z, need_weight, need_bias = need
        return cls(
            torch.empty_like(u, memory_format=layout) if need_u else None,
            torch.empty_like(u, memory_format=layout) if need_z and z is not None else None,
            torch.empty_like(norm.weight) if need_weight and norm.weight is not None else None,
            torch.empty_like(norm.bias) if need_bias and norm.bias is not None else None,
        )


class Gates(Protocol):
    """The launches of a backend's kernels.

    Every map (N, C, H, W) has at least one element and is contiguous in the layout given for it. Every vector
    is contiguous, in any floating dtype.
    """

    def takes_channel_gate(self, channels: int, hidden: int, dtype: torch.dtype, /) -> bool:
        """Whether there is a kernel for these numbers of channels and hidden units, else torch computes."""

    def channel_gate(
        self, x: Tensor, gate: ChannelGate, layout: torch.memory_format, out_layout: torch.memory_format, /
    ) -> Tensor:
        """See reference.channel_gate; x in `layout`, the result in `out_layout`.

        The weights are cast to the dtype of x.
        """

    def channel_gate_backward(
        self,
        grad: Tensor,
        x: Tensor,
        gate: ChannelGate,
        layout: torch.memory_format,
        grad_layout: torch.memory_format,
        need_x: bool,
        need_weights: bool,
        /,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x, in its `layout`, and of the weights.

        `grad` is the gradient of the result, in `grad_layout`.
        """

    def batch_statistics(
        self, u: Tensor, offset: Tensor | None, layout: torch.memory_format, /
    ) -> tuple[Tensor, Tensor]:
        """Mean and biased variance, float32 (C,), of u + offset over all positions of u."""

    def norm_forward(
        self,
        u: Tensor,
        z: Tensor | None,
        norm: Norm,
        layout: torch.memory_format,
        out_layout: torch.memory_format,
        z_layout: torch.memory_format | None = None,
        add_to: Tensor | None = None,
    ) -> Tensor:
        """z * sigmoid(norm(u)), z * norm(u) without norm.sigmoid, or relu(norm(u)) where z is None.

        u is in `layout`, z in `z_layout` (by default that of u). The result is a new map in `out_layout`, or
        is added to `add_to`, a map in `out_layout`, in place.
        """

    def norm_backward(
        self,
        grad: Tensor,
        u: Tensor,
        z: Tensor | None,
        norm: Norm,
        batch_statistics: bool,
        need: Sequence[bool],
        layout: torch.memory_format,
        grad_layout: torch.memory_format,
        need_sums: bool = False,
        /,
    ) -> NormGradients:
        """The gradients of u, z, weight and bias, each if `need` says so.

        `grad`, the gradient of the result, is in `grad_layout`, all other maps are in `layout`. With
        `batch_statistics` norm.mean and norm.var depend on u, otherwise they are constants.
        """
