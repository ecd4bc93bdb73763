"""The operators of a backend for GPUs, from checked arguments to the launches of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends.gpu.attention import Attention, contiguous, convolution_backward
from gcsa_ext.backends.gpu.launches import Gates, Norm
from gcsa_ext.backends.gpu.maps import saved_shape
from gcsa_ext.layout import memory_format


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight by torch's convolution, None where not needed."""
    return convolution_backward(grad_out, x, weight, need_x, need_weight, memory_format(x))


class Operators:
    """The operators by the kernels of `gates`."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self.attention = Attention(gates)

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """The functions that the backend registers, by the names of the operators."""
        return {
            "channel_gate": self.channel_gate,
            "channel_gate_backward": self.channel_gate_backward,
            "conv2d_same_backward": conv2d_same_backward,
            "gcsa": self.attention.forward,
            "gcsa_backward": self.attention.backward,
            "norm_gate": self.norm_gate,
            "norm_gate_backward": self.norm_gate_backward,
            "saved_shape": saved_shape,
        }

    def channel_gate(
        self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int, sigmoid: bool
    ) -> Tensor:
        """See reference.channel_gate."""
        layout = memory_format(x)
        if x.numel() == 0:
            return torch.empty_like(x, memory_format=layout)
        with torch.cuda.device_of(x):
            x, weights = x.contiguous(memory_format=layout), [w.contiguous() for w in (w1, b1, w2, b2)]
            return self.attention.channel_gate(x, weights, groups, sigmoid, layout)

    def channel_gate_backward(
        self,
        grad_out: Tensor,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        groups: int,
        sigmoid: bool,
        need_x: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x, w1, b1, w2, b2, None where not needed."""
        layout = memory_format(x)
        weights = [w.contiguous() for w in (w1, b1, w2, b2)]
        if x.numel() == 0:
            grad_x: Tensor | None = torch.empty_like(x, memory_format=layout) if need_x else None
            grads = [torch.zeros_like(w) if need_weights else None for w in weights]
        else:
            with torch.cuda.device_of(x):
                x, grad_out = x.contiguous(memory_format=layout), grad_out.contiguous(memory_format=layout)
                grad_x, grads = self.attention.channel_gate_backward(
                    grad_out, x, weights, groups, sigmoid, layout, need_x, need_weights
                )
        return grad_x, grads[0], grads[1], grads[2], grads[3]

    def norm_gate(
        self,
        u: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See reference.norm_gate; also copies of the used mean and (biased) variance, float32 (C,)."""
        layout = memory_format(z)
        if u.numel() == 0:
            used = [
                u.new_zeros(u.shape[1], dtype=torch.float32) if v is None else v.to(torch.float32, copy=True)
                for v in (mean, var)
            ]
            return torch.empty_like(z, memory_format=layout), used[0], used[1]
        with torch.cuda.device_of(u):
            u, z = u.contiguous(memory_format=layout), z.contiguous(memory_format=layout)
            if mean is None or var is None:
                used_mean, used_var = self._gates.batch_statistics(u, None, layout)
            else:
                used_mean, used_var = (v.to(torch.float32, copy=True).contiguous() for v in (mean, var))
            norm = Norm(contiguous(weight), contiguous(bias), used_mean, used_var, None, eps)
            return self._gates.norm_forward(u, z, norm, layout, layout), used_mean, used_var

    def norm_gate_backward(
        self,
        grad_out: Tensor,
        u: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        batch_statistics: bool,
        *need: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of u, z, weight, bias, None where not needed.

        mean and var are the statistics that the forward pass used.
        """
        layout = memory_format(z)
        weight, bias = contiguous(weight), contiguous(bias)
        if u.numel() == 0:
            grads = (
                torch.empty_like(u, memory_format=layout),
                torch.empty_like(z, memory_format=layout),
                None if weight is None else torch.zeros_like(weight),
                None if bias is None else torch.zeros_like(bias),
            )
            return tuple(grad if needed else None for grad, needed in zip(grads, need, strict=True))  # type: ignore[return-value]
        with torch.cuda.device_of(u):
            u, z, grad_out = (t.contiguous(memory_format=layout) for t in (u, z, grad_out))
            norm = Norm(weight, bias, mean.contiguous(), var.contiguous(), None, eps)
            return self._gates.norm_backward(grad_out, u, z, norm, batch_statistics, need, layout, layout)[:4]
