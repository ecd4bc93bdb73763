"""The operator gcsa on GPUs, layer by layer, and its gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from gcsa_ext.backends import reference
from gcsa_ext.backends.gpu.launches import ChannelGate, Gates, Norm, NormGradients
from gcsa_ext.backends.gpu.maps import convolution_layout, from_saved, to_saved
from gcsa_ext.backends.operands import Arguments
from gcsa_ext.layout import memory_format
from gcsa_ext.reference import conv2d_same


@contextlib.contextmanager
def _on_device_of(x: Tensor) -> Iterator[None]:
    """Run on the GPU of x and without autocast: the operators cast their operands themselves."""
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        yield


def contiguous(vector: Tensor | None) -> Tensor | None:
    """A vector that may be missing, contiguous."""
    return None if vector is None else vector.contiguous()


def _float32(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.to(torch.float32).contiguous()


@overload
def shuffle(values: Tensor, groups: int) -> Tensor: ...
@overload
def shuffle(values: Tensor | None, groups: int) -> Tensor | None: ...
def shuffle(values: Tensor | None, groups: int) -> Tensor | None:
    """reference.channel_shuffle of a map (N, C, H, W), in its layout, or of a vector (C,); None stays None.

    A shuffle by C // groups undoes a shuffle by groups.
    """
    axis = 1 if values is not None and values.dim() == 4 else 0
    if values is None or groups in (1, values.shape[axis]):
        return values
    out = torch.empty_like(values)
    out.unflatten(axis, (-1, groups)).copy_(values.unflatten(axis, (groups, -1)).transpose(axis, axis + 1))
    return out


class _Layer(NamedTuple):
    """A convolution and the normalisation behind it; vectors are contiguous, statistics float32.

    The channels are shuffled in `groups` between the two, so all vectors of the normalisation and the offset
    are shuffled. mean and var are None where the statistics are those of the batch and not yet computed.
    """

    weight: Tensor
    offset: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    groups: int = 1
    sigmoid: bool = True

    def norm(self) -> Norm:
        """The normalisation; mean and var must be known."""
        mean, var = cast("tuple[Tensor, Tensor]", (self.mean, self.var))
        return Norm(self.scale, self.shift, mean, var, self.offset, self.eps, self.sigmoid)

    @property
    def inverse(self) -> int:
        """The groups of the shuffle back into the order of the convolution's outputs."""
        return self.weight.shape[0] // self.groups


def _channel_gate(a: Arguments) -> ChannelGate:
    return ChannelGate([w.contiguous() for w in a.gate], a.groups, a.sigmoid)


def _layers(a: Arguments) -> tuple[_Layer, _Layer]:
    """Both convolutions with their normalisations."""
    mean1, var1, mean2, var2 = map(_float32, a.statistics)
    offset1, scale1, shift1 = map(contiguous, (a.conv1_bias, a.norm1_weight, a.norm1_bias))
    offset2, scale2, shift2, mean2, var2 = (
        shuffle(contiguous(vector), a.gate_groups)
        for vector in (a.conv2_bias, a.norm2_weight, a.norm2_bias, mean2, var2)
    )
    settings2 = a.eps2, a.gate_groups, a.gate_sigmoid
    return (
        _Layer(a.conv1_weight, offset1, scale1, shift1, mean1, var1, a.eps1),
        _Layer(a.conv2_weight, offset2, scale2, shift2, mean2, var2, *settings2),
    )


def convolution_backward(
    grad: Tensor | None,
    x: Tensor | None,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    layout: torch.memory_format,
    replicate: bool = False,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x, in `layout`, and weight by torch's convolution, None where not needed.

    The convolution is that of reference.conv2d_same. The gradient of x depends on the shape of x alone.
    Without `grad` or x, both are None.
    """
    if grad is None or x is None or not (need_x or need_weight):
        return None, None
    groups, needs = x.shape[1] // weight.shape[1], [need_x, need_weight, False]
    zeros, copies = (0, weight.shape[-1] // 2) if replicate else (weight.shape[-1] // 2, 0)
    if copies:
        x = F.pad(x, 4 * [copies], mode="replicate")
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [zeros, zeros], [1, 1], False, [0, 0], groups, needs
    )
    if grad_x is not None and copies:
        grad_x = _replicate_backward(grad_x, copies)
    return None if grad_x is None else grad_x.contiguous(memory_format=layout), grad_weight


def _replicate_backward(grad: Tensor, copies: int) -> Tensor:
    """The gradient of a map from that of the map padded with `copies` of its edges on every side.

    torch's own has no deterministic version for GPUs.
    """
    for axis in (2, 3):
        size = grad.shape[axis] - 2 * copies
        inside = grad.narrow(axis, copies, size).clone()
        inside.select(axis, 0).add_(grad.narrow(axis, 0, copies).sum(axis))
        inside.select(axis, -1).add_(grad.narrow(axis, copies + size, copies).sum(axis))
        grad = inside
    return grad


def _recomputed_convolution_backward(
    grad: Tensor | None,
    compute_x: Callable[[], Tensor],
    like_x: Tensor,
    weight: Tensor,
    need_x: bool,
    need_weight: bool,
    layout: torch.memory_format,
    replicate: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """`convolution_backward` where x is computed again, and freed before the gradient of x is allocated.

    `like_x` is any map of the shape and dtype of x.
    """
    x = compute_x() if need_weight else None
    _, grad_weight = convolution_backward(grad, x, weight, False, need_weight, layout, replicate)
    del x
    grad_x, _ = convolution_backward(grad, like_x, weight, need_x, False, layout, replicate)
    return grad_x, grad_weight


def _offset_gradient(norm: Norm, grads: NormGradients, batch_statistics: bool) -> Tensor | None:
    """The gradient of a convolution's bias: that of the normalisation's input, summed over all positions."""
    if norm.offset is None:
        return None
    if batch_statistics or grads.sums is None:  # subtracting the mean of the batch cancels the bias
        return torch.zeros_like(norm.offset)
    slope = grads.sums[norm.mean.shape[0] :] * torch.rsqrt(norm.var + norm.eps)
    return slope if norm.weight is None else slope * norm.weight


def _like(grad: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    """The gradient of a parameter in its dtype and layout, or None if one of the two is missing."""
    if grad is None or parameter is None:
        return None
    layout = memory_format(parameter) if parameter.dim() == 4 else torch.contiguous_format
    return grad.to(parameter.dtype).contiguous(memory_format=layout)


class Attention:
    """The operator gcsa by the kernels of `gates`.

    Torch computes the convolutions. They leave out their bias, which the normalisation adds. Folding running
    statistics into the weights would therefore save nothing.
    """

    def __init__(self, gates: Gates) -> None:
        self._gates = gates

    def forward(self, a: Arguments) -> tuple[Tensor, ...]:
        """See gcsa of backends/reference.py."""
        saved: list[Tensor] = []
        used: list[Tensor] = []
        out = self._compute(a, lambda u: saved.append(u), lambda mean, var: used.extend((mean, var)))
        return out, *saved, *used

    def inference(self, a: Arguments) -> Tensor:
        """See gcsa_inference of backends/reference.py."""
        return self._compute(a)

    def _compute(
        self,
        a: Arguments,
        save: Callable[[Tensor], None] | None = None,
        use: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """The result. `save` gets the output of each convolution, `use` the statistics that normalise it."""
        layout = convolution_layout(a.x)
        with _on_device_of(a.x):
            x = a.x.contiguous(memory_format=memory_format(a.x))
            z = self.channel_gate(x, _channel_gate(a), layout)
            u = z
            layers, gated_maps, out_layouts = _layers(a), (None, z), (layout, memory_format(x))
            for layer, gated, out_layout in zip(layers, gated_maps, out_layouts, strict=True):
                u = conv2d_same(u, layer.weight.to(x.dtype, memory_format=layout), None, a.replicate)
                u = shuffle(u.contiguous(memory_format=layout), layer.groups)
                mean, var = layer.mean, layer.var
                if mean is None or var is None:
                    mean, var = self._gates.batch_statistics(u, layer.offset, layout)
                elif use is not None:
                    mean, var = mean.clone(), var.clone()
                if save is not None and use is not None:
                    save(to_saved(u, layout))
                    use(shuffle(mean, layer.inverse), shuffle(var, layer.inverse))
                norm = layer._replace(mean=mean, var=var).norm()
                u = self._gates.norm_forward(u, gated, norm, layout, out_layout)
        return u

    def backward(
        self,
        grad_out: Tensor,
        a: Arguments,
        saved1: Tensor,
        saved2: Tensor,
        batch_statistics: tuple[bool, bool],
        need: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """See backends/reference.py.

        Saved are x and the outputs of both convolutions, the maps between them are computed again. As few
        maps as possible exist at once: z is computed twice, each map is freed after its last use, and both
        gradients of z are summed in one map.
        """
        layout, outside = convolution_layout(a.x), memory_format(a.x)
        layer1, layer2 = _layers(a)
        norm1, norm2 = layer1.norm(), layer2.norm()
        need_x, *need_gate = need[:5]
        need_weight1, need_bias1, need_weight2, need_bias2, *need_norms = need[5:]
        need_z = need_x or any(need_gate)
        need_u1 = need_z or need_weight1 or need_bias1
        need_hidden = need_u1 or any(need_norms[:2])
        need_u2 = need_hidden or need_weight2 or need_bias2
        with _on_device_of(a.x):
            x, grad_out = a.x.contiguous(memory_format=outside), grad_out.contiguous(memory_format=outside)
            gate = _channel_gate(a)
            # Hooks on saved tensors may have changed their layout.
            u1, u2 = (from_saved(u.contiguous(), x, layout) for u in (saved1, saved2))
            weight1, weight2 = (w.to(x.dtype, memory_format=layout) for w in (a.conv1_weight, a.conv2_weight))

            def compute_z() -> Tensor:
                return self.channel_gate(x, gate, layout)

            def compute_hidden() -> Tensor:
                return self._gates.norm_forward(u1, None, norm1, layout, layout)

            needed = (need_u2, False, *need_norms[2:])
            grads2 = self._gates.norm_backward(
                grad_out, u2, compute_z(), norm2, batch_statistics[1], needed, layout, outside, need_bias2
            )
            grads2 = grads2._replace(u=shuffle(grads2.u, layer2.inverse))
            grad_hidden, grad_weight2 = _recomputed_convolution_backward(
                grads2.u, compute_hidden, u1, weight2, need_hidden, need_weight2, layout, a.replicate
            )
            grads2 = grads2._replace(u=None)
            grads1 = NormGradients()
            if grad_hidden is not None:
                needed = (need_u1, False, *need_norms[:2])
                grads1 = self._gates.norm_backward(
                    grad_hidden, u1, None, norm1, batch_statistics[0], needed, layout, layout, need_bias1
                )
            del grad_hidden
            grad_z, grad_weight1 = _recomputed_convolution_backward(
                grads1.u, compute_z, u2, weight1, need_z, need_weight1, layout, a.replicate
            )
            grads1 = grads1._replace(u=None)
            grad_bias1 = _offset_gradient(norm1, grads1, batch_statistics[0]) if need_bias1 else None
            grad_bias2 = _offset_gradient(norm2, grads2, batch_statistics[1]) if need_bias2 else None
            grad_x, gate_grads = None, 4 * [cast("Tensor | None", None)]
            if grad_z is not None:
                self._gates.norm_forward(u2, grad_out, norm2, layout, layout, outside, add_to=grad_z)
                grad_x, gate_grads = self.channel_gate_backward(
                    grad_z, x, gate, layout, need_x, any(need_gate)
                )
        return [
            grad_x,
            *(grad if w is not None else None for grad, w in zip(gate_grads, a[1:5], strict=True)),
            _like(grad_weight1, a.conv1_weight),
            _like(grad_bias1, a.conv1_bias),
            _like(grad_weight2, a.conv2_weight),
            _like(shuffle(grad_bias2, layer2.inverse), a.conv2_bias),
            *(grads1.weight, grads1.bias),
            *(shuffle(grad, layer2.inverse) for grad in (grads2.weight, grads2.bias)),
        ]

    def channel_gate(self, x: Tensor, gate: ChannelGate, layout: torch.memory_format) -> Tensor:
        """See reference.channel_gate; x is contiguous in `memory_format(x)`, the result in `layout`.

        Torch computes the sizes that `Gates.takes_channel_gate` refuses.
        """
        if self._takes(x, gate):
            return self._gates.channel_gate(x, gate, memory_format(x), layout)
        w1, b1, w2, b2 = (w.to(x.dtype) for w in gate.weights)
        out = reference.channel_gate(x, w1, b1, w2, b2, gate.groups, gate.sigmoid)
        return out.contiguous(memory_format=layout)

    def channel_gate_backward(
        self,
        grad: Tensor,
        x: Tensor,
        gate: ChannelGate,
        layout: torch.memory_format,
        need_x: bool,
        need_weights: bool,
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x and of the gate's weights; `grad`, that of the result, is in `layout`."""
        if self._takes(x, gate):
            return self._gates.channel_gate_backward(
                grad, x, gate, memory_format(x), layout, need_x, need_weights
            )
        weights = gate.weights
        grad_x, *grads = reference.channel_gate_backward(
            grad, x, *(w.to(x.dtype) for w in weights), gate.groups, gate.sigmoid, need_x, need_weights
        )
        return grad_x, [None if g is None else g.to(w.dtype) for g, w in zip(grads, weights, strict=True)]

    def _takes(self, x: Tensor, gate: ChannelGate) -> bool:
        return self._gates.takes_channel_gate(x.shape[1], gate.weights[0].shape[0], x.dtype)
