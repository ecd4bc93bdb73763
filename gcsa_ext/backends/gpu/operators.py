"""The operators of a backend for GPUs, from checked arguments to the launches of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcsa_ext.backends.gpu.attention import Attention, contiguous, convolution_backward
from gcsa_ext.backends.gpu.launches import ChannelGate, Gates, Norm
from gcsa_ext.backends.gpu.maps import saved_shape
from gcsa_ext.backends.operands import ChannelGateArguments, NormGateArguments
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
            "gcsa_inference": self.attention.inference,
            "gcsa_backward": self.attention.backward,
            "norm_gate": self.norm_gate,
            "norm_gate_backward": self.norm_gate_backward,
            "saved_shape": saved_shape,
        }

    def channel_gate(self, *args: Any) -> Tensor:
        """See reference.channel_gate."""
        a = ChannelGateArguments(*args)
        layout = memory_format(a.x)
        if a.x.numel() == 0:
            return torch.empty_like(a.x, memory_format=layout)
        with torch.cuda.device_of(a.x):
            gate = ChannelGate([w.contiguous() for w in a[1:5]], a.groups, a.sigmoid)
            return self.attention.channel_gate(a.x.contiguous(memory_format=layout), gate, layout)

    def channel_gate_backward(self, grad_out: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
        """See backends/reference.py."""
        a, (need_x, need_weights) = ChannelGateArguments(*args[:7]), args[7:]
        layout = memory_format(a.x)
        gate = ChannelGate([w.contiguous() for w in a[1:5]], a.groups, a.sigmoid)
        if a.x.numel() == 0:
            grad_x = torch.empty_like(a.x, memory_format=layout) if need_x else None
            return grad_x, *(torch.zeros_like(w) if need_weights else None for w in gate.weights)
        with torch.cuda.device_of(a.x):
            x, grad_out = (t.contiguous(memory_format=layout) for t in (a.x, grad_out))
            grad_x, grads = self.attention.channel_gate_backward(
                grad_out, x, gate, layout, need_x, need_weights
            )
        return grad_x, *grads

    def norm_gate(self, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """See reference.norm_gate; also copies of the used mean and (biased) variance, float32 (C,)."""
        a = NormGateArguments(*args)
        layout = memory_format(a.z)
        if a.u.numel() == 0:
            used = [
                a.u.new_zeros(a.u.shape[1], dtype=torch.float32)
                if v is None
                else v.to(torch.float32, copy=True)
                for v in (a.mean, a.var)
            ]
            return torch.empty_like(a.z, memory_format=layout), used[0], used[1]
        with torch.cuda.device_of(a.u):
            u, z = (t.contiguous(memory_format=layout) for t in (a.u, a.z))
            if a.mean is None or a.var is None:
                mean, var = self._gates.batch_statistics(u, None, layout)
            else:
                mean, var = (v.to(torch.float32, copy=True).contiguous() for v in (a.mean, a.var))
            norm = Norm(contiguous(a.weight), contiguous(a.bias), mean, var, None, a.eps)
            return self._gates.norm_forward(u, z, norm, layout, layout), mean, var

    def norm_gate_backward(self, grad_out: Tensor, *args: Any) -> tuple[Tensor | None, ...]:
        """See backends/reference.py."""
        a, (batch_statistics, *need) = NormGateArguments(*args[:7]), args[7:]
        layout = memory_format(a.z)
        if a.u.numel() == 0:
            grads = (
                *(torch.empty_like(t, memory_format=layout) for t in (a.u, a.z)),
                *(None if v is None else torch.zeros_like(v) for v in (a.weight, a.bias)),
            )
            return tuple(grad if needed else None for grad, needed in zip(grads, need, strict=True))
        with torch.cuda.device_of(a.u):
            u, z, grad_out = (t.contiguous(memory_format=layout) for t in (a.u, a.z, grad_out))
            assert a.mean is not None and a.var is not None
            mean, var = a.mean.contiguous(), a.var.contiguous()
            norm = Norm(contiguous(a.weight), contiguous(a.bias), mean, var, None, a.eps)
            return self._gates.norm_backward(grad_out, u, z, norm, batch_statistics, need, layout, layout)[:4]
