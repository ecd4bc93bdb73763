"""What the backends for GPUs share: the operators channel_gate, norm_gate, conv2d_same and gcsa, from checked
arguments to the launches of a backend's gates. Convolutions are torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gcsa_ext.backends import reference
from gcsa_ext.backends.operands import Arguments
from gcsa_ext.layout import memory_format


@contextlib.contextmanager
def _on_device_of(x: Tensor) -> Iterator[None]:
    """On the GPU of x, without autocast, which would cast what the operators have cast themselves."""
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


class Norm(NamedTuple):
    """A batch normalisation of C channels: (u + offset - mean) / sqrt(var + eps) * weight + bias."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    offset: Tensor | None
    eps: float


class NormGradients(NamedTuple):
    u: Tensor | None
    z: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    sums: Tensor | None
    """(2 * C,) float32, the gradients of a weight and of a bias, where they were needed for anything."""


class Gates(Protocol):
    """The launches of a backend's kernels. Maps (N, C, H, W) come not empty and contiguous in the given
    layout, vectors contiguous in any floating dtype."""

    def takes_channel_gate(self, channels: int, hidden: int, dtype: torch.dtype, /) -> bool:
        """Whether there is a kernel for so many hidden units; torch computes the gate otherwise."""

    def channel_gate(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        groups: int,
        sigmoid: bool,
        layout: torch.memory_format,
        out_layout: torch.memory_format,
        /,
    ) -> Tensor:
        """See reference.channel_gate; x in `layout`, the result in `out_layout`."""

    def channel_gate_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
        groups: int,
        sigmoid: bool,
        layout: torch.memory_format,
        grad_layout: torch.memory_format,
        need_x: bool,
        need_weights: bool,
        /,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x, in its `layout`, and of the weights, from that of the result, `grad`, in
        `grad_layout`."""

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
        """z * sigmoid(norm(u)), or relu(norm(u)) without z; u in `layout`, z in `z_layout` or in that of u,
        the result in `out_layout`: a new map, or what `add_to` holds with this added to it."""

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
        """The gradients of u, z, weight and bias that are needed; `grad` in `grad_layout`, all else in
        `layout`. With `batch_statistics` norm.mean and norm.var depend on u."""


class Convolution(Protocol):
    """A convolution with the normalisation and the gate behind it in one launch."""

    def unsupported(self, x: Tensor, weight: Tensor, /) -> str | None:
        """Why it cannot or should not run, or None if it can."""

    def convolution_norm(
        self,
        x: Tensor,
        weight: Tensor,
        z: Tensor | None,
        norm: Norm,
        layout: torch.memory_format,
        out_layout: torch.memory_format,
        /,
    ) -> Tensor:
        """`Gates.norm_forward` of the convolution of x, in `layout`, with `weight`, in channels_last."""


def _contiguous(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _float32(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.to(torch.float32).contiguous()


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight by torch's convolution, None where not needed."""
    return _convolution_backward(grad_out, x, weight, need_x, need_weight, memory_format(x))


def convolution_layout(x: Tensor) -> torch.memory_format:
    """The layout of all maps inside of a GCSA: 16-bit convolutions run on matrix units, which take
    channels_last; the gates on either side read and write x's own layout, so that nothing is transposed in a
    pass of its own."""
    return torch.channels_last if x.dtype.itemsize == 2 else memory_format(x)


def saved_shape(channels: int, x: Tensor) -> tuple[int, ...]:
    """Of what is kept of a convolution's output: contiguous in the layout inside, whose number of axes tells
    it, should x come back to the backward pass in another one."""
    N, _, H, W = x.shape
    if convolution_layout(x) == torch.channels_last:
        return N, H * W, 1, channels
    return N, channels, H * W


def _to_saved(u: Tensor, layout: torch.memory_format) -> Tensor:
    return u.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(2) if layout == torch.channels_last else u.flatten(2)


def _from_saved(saved: Tensor, x: Tensor, layout: torch.memory_format) -> Tensor:
    N, _, H, W = x.shape
    if layout == torch.channels_last:
        return saved.view(N, H, W, saved.shape[3]).permute(0, 3, 1, 2)
    return saved.view(N, saved.shape[1], H, W)


def _convolution_backward(
    grad: Tensor | None,
    x: Tensor | None,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    layout: torch.memory_format,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight by torch's convolution; for that of x only its shape counts."""
    if grad is None or x is None or not (need_x or need_weight):
        return None, None
    padding = 2 * [weight.shape[-1] // 2]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], 1, [need_x, need_weight, False]
    )
    return None if grad_x is None else grad_x.contiguous(memory_format=layout), grad_weight


def _offset_gradient(norm: Norm, grads: NormGradients, batch_statistics: bool) -> Tensor | None:
    """Of a convolution's bias: the sum of the gradient of the normalisation's input over all positions."""
    if norm.offset is None:
        return None
    if batch_statistics or grads.sums is None:  # the batch's mean takes the bias out again
        return torch.zeros_like(norm.offset)
    slope = grads.sums[norm.mean.shape[0] :] * torch.rsqrt(norm.var + norm.eps)
    return slope if norm.weight is None else slope * norm.weight


def _like(grad: Tensor, parameter: Tensor) -> Tensor:
    """The gradient of a parameter in its dtype and layout."""
    layout = memory_format(parameter) if parameter.dim() == 4 else torch.contiguous_format
    return grad.to(parameter.dtype).contiguous(memory_format=layout)


class _Layer(NamedTuple):
    """A convolution and the normalisation behind it, vectors contiguous, statistics float32."""

    is_last: bool
    weight: Tensor
    offset: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float

    def norm(self) -> Norm:
        """The normalisation, whose statistics are known."""
        mean, var = cast("tuple[Tensor, Tensor]", (self.mean, self.var))
        return Norm(self.scale, self.shift, mean, var, self.offset, self.eps)


def _layers(a: Arguments) -> tuple[_Layer, _Layer]:
    """Both convolutions with their normalisations."""
    return (
        _Layer(
            False,
            a.conv1_weight,
            _contiguous(a.conv1_bias),
            _contiguous(a.norm1_weight),
            _contiguous(a.norm1_bias),
            _float32(a.mean1),
            _float32(a.var1),
            a.eps1,
        ),
        _Layer(
            True,
            a.conv2_weight,
            _contiguous(a.conv2_bias),
            _contiguous(a.norm2_weight),
            _contiguous(a.norm2_bias),
            _float32(a.mean2),
            _float32(a.var2),
            a.eps2,
        ),
    )


class Operators:
    """The operators, by the kernels of `gates`, and in evaluation by
    `convolution` where there is one that takes the layer."""

    def __init__(self, gates: Gates, convolution: Convolution | None = None) -> None:
        self._gates = gates
        self._convolution = convolution

    def functions(self) -> Mapping[str, Callable[..., Any]]:
        """What a backend registers; convolutions alone are torch's."""
        return {
            "channel_gate": self.channel_gate,
            "channel_gate_backward": self.channel_gate_backward,
            "conv2d_same_backward": conv2d_same_backward,
            "gcsa": self.gcsa,
            "gcsa_backward": self.gcsa_backward,
            "norm_gate": self.norm_gate,
            "norm_gate_backward": self.norm_gate_backward,
            "saved_shape": saved_shape,
        }

    def channel_gate(
        self, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int, sigmoid: bool
    ) -> Tensor:
        """See reference.channel_gate; what `takes_channel_gate` refuses is left to torch."""
        if not self._gates.takes_channel_gate(x.shape[1], w1.shape[0], x.dtype):
            return reference.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
        layout = memory_format(x)
        if x.numel() == 0:
            return torch.empty_like(x, memory_format=layout)
        with torch.cuda.device_of(x):
            weights = [w.contiguous() for w in (w1, b1, w2, b2)]
            return self._gates.channel_gate(
                x.contiguous(memory_format=layout), weights, groups, sigmoid, layout, layout
            )

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
        if not self._gates.takes_channel_gate(x.shape[1], w1.shape[0], x.dtype):
            return reference.channel_gate_backward(
                grad_out, x, w1, b1, w2, b2, groups, sigmoid, need_x, need_weights
            )
        layout = memory_format(x)
        weights = [w.contiguous() for w in (w1, b1, w2, b2)]
        if x.numel() == 0:
            grad_x: Tensor | None = torch.empty_like(x, memory_format=layout) if need_x else None
            grads = [torch.zeros_like(w) if need_weights else None for w in weights]
        else:
            with torch.cuda.device_of(x):
                x, grad_out = x.contiguous(memory_format=layout), grad_out.contiguous(memory_format=layout)
                grad_x, grads = self._gates.channel_gate_backward(
                    grad_out, x, weights, groups, sigmoid, layout, layout, need_x, need_weights
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
        """See reference.norm_gate; also copies of the statistics it used (biased variance)."""
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
            norm = Norm(_contiguous(weight), _contiguous(bias), used_mean, used_var, None, eps)
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
        """The gradients of u, z, weight, bias, None where not needed; mean and var are those of the forward
        pass."""
        layout = memory_format(z)
        weight, bias = _contiguous(weight), _contiguous(bias)
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

    def gcsa(self, a: Arguments, save: bool) -> tuple[Tensor, ...]:
        """See reference.gcsa; arguments and results as those of backends/reference.py.

        Convolutions are torch's, but where the backend has one that does not object, and without their bias:
        it is added inside the normalisation. So with running statistics nothing is computed that folding them
        into the weights would save.
        """
        layout, padding = convolution_layout(a.x), a.conv1_weight.shape[-1] // 2
        used: list[Tensor] = []
        with _on_device_of(a.x):
            x = a.x.contiguous(memory_format=memory_format(a.x))
            gate = [w.contiguous() for w in a.gate]
            z = self._gate(x, gate, a.groups, a.sigmoid, layout)
            u, saved = z, []
            for layer in _layers(a):
                gated, out_layout = (z, memory_format(x)) if layer.is_last else (None, layout)
                fused = None if save or layer.mean is None else self._fused(u, layer.weight)
                if fused is None:
                    u = F.conv2d(u, layer.weight.to(x.dtype, memory_format=layout), padding=padding)
                    u = u.contiguous(memory_format=layout)
                mean, var = layer.mean, layer.var
                if mean is None or var is None:
                    mean, var = self._gates.batch_statistics(u, layer.offset, layout)
                    used += mean, var
                elif save:
                    used += mean.clone(), var.clone()
                else:
                    used += mean.new_empty(0), var.new_empty(0)
                saved.append(_to_saved(u, layout) if save else x.new_empty(0))
                norm = Norm(layer.scale, layer.shift, mean, var, layer.offset, layer.eps)
                if fused is not None:
                    taps = layer.weight.to(x.dtype, memory_format=torch.channels_last)
                    u = fused.convolution_norm(u, taps, gated, norm, layout, out_layout)
                else:
                    u = self._gates.norm_forward(u, gated, norm, layout, out_layout)
        return u, *saved, *used

    def gcsa_backward(
        self,
        grad_out: Tensor,
        a: Arguments,
        saved1: Tensor,
        saved2: Tensor,
        batch_statistics: tuple[bool, bool],
        need: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """See backends/reference.py. All that lies between x and the convolutions' outputs is computed
        again."""
        layout, outside = convolution_layout(a.x), memory_format(a.x)
        first, second = _layers(a)
        need_x, *need_gate = need[:5]
        need_z = need_x or any(need_gate)
        need_u1 = need_z or need[5] or need[6]
        need_hidden = need_u1 or need[9] or need[10]
        need_u2 = need_hidden or need[7] or need[8]
        with _on_device_of(a.x):
            x, grad_out = a.x.contiguous(memory_format=outside), grad_out.contiguous(memory_format=outside)
            gate = [w.contiguous() for w in a.gate]
            # Hooks on saved tensors may have changed their layout.
            u1, u2 = (_from_saved(u.contiguous(), x, layout) for u in (saved1, saved2))
            weights = [layer.weight.to(x.dtype, memory_format=layout) for layer in (first, second)]
            norm1, norm2 = first.norm(), second.norm()

            def gated() -> Tensor:
                return self._gate(x, gate, a.groups, a.sigmoid, layout)

            # As few maps as possible live at once: z is computed twice rather than kept, each map is let go
            # after its last use, and both gradients of z are added up in one.
            needed = (need_u2, False, need[11], need[12])
            grads2 = self._gates.norm_backward(
                grad_out, u2, gated(), norm2, batch_statistics[1], needed, layout, outside, need[8]
            )
            hidden = self._gates.norm_forward(u1, None, norm1, layout, layout) if need[7] else None
            _, grad_weight2 = _convolution_backward(grads2.u, hidden, weights[1], False, need[7], layout)
            del hidden
            grad_hidden, _ = _convolution_backward(grads2.u, u1, weights[1], need_hidden, False, layout)
            grads2 = grads2._replace(u=None)
            grads1 = NormGradients(None, None, None, None, None)
            if grad_hidden is not None:
                needed = (need_u1, False, need[9], need[10])
                grads1 = self._gates.norm_backward(
                    grad_hidden, u1, None, norm1, batch_statistics[0], needed, layout, layout, need[6]
                )
            del grad_hidden
            z = gated() if need[5] else None
            _, grad_weight1 = _convolution_backward(grads1.u, z, weights[0], False, need[5], layout)
            del z
            grad_z, _ = _convolution_backward(grads1.u, u2, weights[0], need_z, False, layout)
            grads1 = grads1._replace(u=None)
            biases = [
                _offset_gradient(norm, grads, batch) if needed else None
                for norm, grads, batch, needed in zip(
                    (norm1, norm2), (grads1, grads2), batch_statistics, (need[6], need[8]), strict=True
                )
            ]
            if grad_z is not None:
                self._gates.norm_forward(u2, grad_out, norm2, layout, layout, outside, add_to=grad_z)
                grad_x, gate_grads = self._gate_backward(
                    grad_z, x, gate, a.groups, a.sigmoid, layout, need_x, any(need_gate)
                )
            else:
                grad_x, gate_grads = None, [None, None, None, None]
        convolutions = (a.conv1_weight, a.conv1_bias, a.conv2_weight, a.conv2_bias)
        convolution_grads = (grad_weight1, biases[0], grad_weight2, biases[1])
        return [
            grad_x,
            *gate_grads,
            *(
                None if grad is None or parameter is None else _like(grad, parameter)
                for grad, parameter in zip(convolution_grads, convolutions, strict=True)
            ),
            *(grads1.weight, grads1.bias, grads2.weight, grads2.bias),
        ]

    def _fused(self, x: Tensor, weight: Tensor) -> Convolution | None:
        takes = self._convolution is not None and self._convolution.unsupported(x, weight) is None
        return self._convolution if takes else None

    def _gate(
        self, x: Tensor, gate: Sequence[Tensor], groups: int, sigmoid: bool, layout: torch.memory_format
    ) -> Tensor:
        """The channel gate from x to the layout inside."""
        if not self._gates.takes_channel_gate(x.shape[1], gate[0].shape[0], x.dtype):
            w1, b1, w2, b2 = (w.to(x.dtype) for w in gate)
            return reference.channel_gate(x, w1, b1, w2, b2, groups, sigmoid).contiguous(memory_format=layout)
        return self._gates.channel_gate(x, gate, groups, sigmoid, memory_format(x), layout)

    def _gate_backward(
        self,
        grad: Tensor,
        x: Tensor,
        gate: Sequence[Tensor],
        groups: int,
        sigmoid: bool,
        layout: torch.memory_format,
        need_x: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        if not self._gates.takes_channel_gate(x.shape[1], gate[0].shape[0], x.dtype):
            w1, b1, w2, b2 = (w.to(x.dtype) for w in gate)
            grad_x, *found = reference.channel_gate_backward(
                grad, x, w1, b1, w2, b2, groups, sigmoid, need_x, need_weights
            )
            return grad_x, [None if g is None else g.to(w.dtype) for g, w in zip(found, gate, strict=True)]
        return self._gates.channel_gate_backward(
            grad, x, gate, groups, sigmoid, memory_format(x), layout, need_x, need_weights
        )
