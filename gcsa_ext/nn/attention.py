"""Global channel-spatial attention as a module."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn
from torch.fx import Proxy

from gcsa_ext import functional, reference
from gcsa_ext.backends import has_kernels
from gcsa_ext.nn import layers
from gcsa_ext.nn.layers import BatchNorm, Layers
from gcsa_ext.ops.gcsa import Arguments
from gcsa_ext.transforms import needs_plain_torch


class GCSA(nn.Module):
    """Global channel-spatial attention (arXiv 2503.11935; with groups=1 it is GAM, arXiv 2112.05561).

    ::

        y   = x * sigmoid(W2 relu(W1 x + b1) + b2)          at every position, over the channels
        z   = channel_shuffle(y, groups)
        s   = sigmoid(BN2(conv(relu(BN1(conv(z))))))        C -> h -> C channels, 'same' zero padding
        out = z * s

    The layers are ordinary ones under the names that the public GCSA and GAM modules give them, so their
    state dicts load unchanged: ``channel_attention`` = (Linear, ReLU, Linear), ``spatial_attention`` =
    (Conv2d, BatchNorm2d, ReLU, Conv2d, BatchNorm2d). The batch norm layers may be converted to SyncBatchNorm.
    A layer that was exchanged for one of another type, or that has hooks, is called as it is, without fusion.

    The grouped channel self-attention of arXiv 2404.07846, which is also called GCSA, is another operator.

    Args:
        channels: C, divisible by `groups`.
        reduction: the hidden layers have h = channels // reduction channels, at least 1.
        groups: groups of the channel shuffle.
        kernel_size: size of the kernels of both convolutions; odd.
        channel_sigmoid: False leaves the sigmoid out of the channel gate, as some public GAM modules do.

    Shape:
        (N, C, H, W) to (N, C, H, W), any N, H and W, any floating dtype; the memory layout is kept.

    Raises:
        ValueError: the sizes do not fit.
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 4,
        groups: int = 4,
        kernel_size: int = 7,
        *,
        channel_sigmoid: bool = True,
    ) -> None:
        super().__init__()
        if channels < 1 or reduction < 1 or channels // reduction < 1:
            raise ValueError(f"GCSA: expected channels // reduction >= 1, got {channels=}, {reduction=}")
        if groups < 1 or channels % groups:
            raise ValueError(f"GCSA: expected groups that divide the channels, got {channels=}, {groups=}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"GCSA: expected an odd kernel_size, got {kernel_size=}")
        hidden, padding = channels // reduction, kernel_size // 2
        self.groups = groups
        self.channel_sigmoid = channel_sigmoid
        self.channel_attention = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(channels, hidden, kernel_size, padding=padding),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, kernel_size, padding=padding),
            nn.BatchNorm2d(channels),
        )

    @classmethod
    def from_module(cls, module: nn.Module) -> GCSA:
        """The GCSA that computes what `module` computes: see `gcsa_ext.convert.from_module`."""
        from gcsa_ext import convert

        return convert.from_module(module, cls)

    def forward(self, x: Tensor) -> Tensor:
        """Gate x (N, C, H, W)."""
        # Neither a trace nor torch.fx may branch on the sizes of a map.
        if isinstance(x, Proxy) or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            z = self._channel_gate_by_layers(x)
            return z * torch.sigmoid(self.spatial_attention(z))
        weighted = layers.find(self)
        if weighted is None or not operator_takes(weighted, x):
            return self._spatial_gate(self._channel_gate(x))
        return attend(x, weighted, Settings(self.groups, self.channel_sigmoid))

    def _channel_gate(self, x: Tensor) -> Tensor:
        if not layers.are_channel_gate(self.channel_attention):
            return self._channel_gate_by_layers(x)
        first, _, second = cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(self.channel_attention))
        return functional.channel_gate(
            x, first.weight, first.bias, second.weight, second.bias, self.groups, self.channel_sigmoid
        )

    def _channel_gate_by_layers(self, x: Tensor) -> Tensor:
        pre = self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        gate = torch.sigmoid(pre) if self.channel_sigmoid else pre
        return reference.channel_shuffle(x * gate, self.groups)

    def _spatial_gate(self, z: Tensor) -> Tensor:
        # The result of an empty map is empty, but convolutions refuse empty maps.
        if z.shape[2] == 0 or z.shape[3] == 0:
            return z
        if not layers.end_in_norm_gate(self.spatial_attention):
            return z * torch.sigmoid(self.spatial_attention(z))
        *convolutions, norm = self.spatial_attention
        u = z
        for layer in convolutions:
            if layers.is_conv2d_same(layer):
                u = functional.conv2d_same(u, layer.weight, layer.bias)
            else:
                u = layer(u)
        return _norm_gate(cast("nn.BatchNorm2d", norm), u, z)

    def extra_repr(self) -> str:
        return f"groups={self.groups}" + ("" if self.channel_sigmoid else ", channel_sigmoid=False")


class Settings(NamedTuple):
    """What an attention computes with its layers: see `gcsa_ext.reference.gcsa`."""

    groups: int = 1
    sigmoid: bool = True
    gate_groups: int = 1
    gate_sigmoid: bool = True


def operator_takes(weighted: Layers, x: Tensor) -> bool:
    """Whether a kernel of the operator gcsa computes what these layers compute from x."""
    # needs_plain_torch first: a branch on the size of a traced map would be recorded as a constant.
    if needs_plain_torch() or x.dim() != 4 or x.numel() == 0 or not has_kernels("gcsa", x.device, x.dtype):
        return False
    if not layers.operator_takes(weighted):
        return False
    # A single value per channel has no variance. The layers raise an error that says so.
    uses_batch = layers.uses_batch(weighted.norm1) or layers.uses_batch(weighted.norm2)
    if uses_batch and x.numel() == x.shape[1]:
        return False
    device, dtype = "cpu" if x.is_cpu else x.device.type, x.dtype
    if is_autocast_enabled(device):
        # The operator computes in the dtype of x. On a GPU autocast wants the convolutions of a wider x in
        # its own dtype, which the layers provide.
        return device == "cpu" or dtype == torch.get_autocast_dtype(device)
    # Weights of another dtype than x are an error, which the layers raise.
    return layers.have_dtype(weighted, dtype)


def attend(x: Tensor, weighted: Layers, settings: Settings) -> Tensor:
    """What the layers compute, by the operator gcsa; their running statistics are updated.

    `operator_takes` must be true of the layers and x.
    """
    layers.compute_weights(weighted)
    (w1, b1), (w2, b2), *convolutions = (layers.weights(layer) for layer in weighted[:4])
    norm1, norm2 = weighted.norm1, weighted.norm2
    mixed = x.is_cpu and is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    a = Arguments(
        x,
        w1 if w1.dim() == 2 else w1.flatten(1),  # of a 1x1 convolution
        b1,
        w2 if w2.dim() == 2 else w2.flatten(1),
        b2,
        *convolutions[0],
        *convolutions[1],
        *_scale_and_shift(norm1),
        *_scale_and_shift(norm2),
        *_statistics(norm1, convolutions[0][0]),
        *_statistics(norm2, convolutions[1][0]),
        1.0 if norm1 is None else norm1.eps,
        1.0 if norm2 is None else norm2.eps,
        settings.groups,
        settings.sigmoid,
        mixed,
        settings.gate_groups,
        settings.gate_sigmoid,
        layers.replicates(weighted),
    )
    out: Tensor
    differentiates = is_grad_enabled() and any(t is not None and t.requires_grad for t in a.differentiable)
    if not differentiates and a.mean1 is not None and a.mean2 is not None:
        out = torch.ops.gcsa_ext.gcsa_inference.default(*a)
        return out
    out, _, _, *used = torch.ops.gcsa_ext.gcsa.default(*a)
    values = x.numel() // x.shape[1]
    for norm, mean, var in ((norm1, *used[:2]), (norm2, *used[2:])):
        if norm is not None and norm.training and norm.track_running_stats:
            running_mean, running_var, batches = (
                layers.running(norm, name) for name in ("running_mean", "running_var", "num_batches_tracked")
            )
            functional.update_statistics(running_mean, running_var, mean, var, values, norm.momentum, batches)
    return out


def layers_take(weighted: Layers, x: Tensor) -> bool:
    """Whether `attend_by_layers` computes what these layers compute from x."""
    return (
        not needs_plain_torch()
        and x.dim() == 4
        and x.numel() > 0
        and layers.is_pointwise(weighted.linear1)
        and layers.is_pointwise(weighted.linear2)
        and has_kernels("channel_gate", x.device, x.dtype)  # first: torch has no autocast on every device
        and not is_autocast_enabled("cpu" if x.is_cpu else x.device.type)
        and layers.have_dtype(weighted, x.dtype)
    )


def attend_by_layers(x: Tensor, weighted: Layers, settings: Settings) -> Tensor:
    """What the layers compute, with the convolutions called as they are and fused gates around them.

    `layers_take` must be true of the layers and x.
    """
    linear1, linear2, conv1, conv2, norm1, norm2 = weighted
    layers.compute_weights((linear1, linear2))
    (w1, b1), (w2, b2) = layers.weights(linear1), layers.weights(linear2)
    b1 = w1.new_zeros(w1.shape[0]) if b1 is None else b1
    b2 = w2.new_zeros(w2.shape[0]) if b2 is None else b2
    z = functional.channel_gate(x, w1.flatten(1), b1, w2.flatten(1), b2, settings.groups, settings.sigmoid)
    u = conv1(z)
    v = conv2(torch.relu(u if norm1 is None else norm1(u)))
    plain = settings.gate_groups == 1 and settings.gate_sigmoid
    if plain and norm2 is not None and not layers.synchronises(norm2):
        layers.compute_weights((norm2,))
        return _norm_gate(norm2, v, z)
    v = v if norm2 is None else norm2(v)
    return z * reference.channel_shuffle(
        torch.sigmoid(v) if settings.gate_sigmoid else v, settings.gate_groups
    )


def _scale_and_shift(norm: BatchNorm | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if norm is None else layers.weights(norm)


def _statistics(norm: BatchNorm | None, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The statistics to normalise the output of a convolution with; None, None for those of the batch.

    Without a normalisation both are 0, which with an eps of 1 leaves the output as it is. (An eps of 0 is
    refused by torch's batch_norm, which the reference calls.)
    """
    if norm is None:
        zeros = weight.new_zeros(weight.shape[0])
        return zeros, zeros
    if layers.uses_batch(norm):
        return None, None
    return layers.running(norm, "running_mean"), layers.running(norm, "running_var")


def _norm_gate(norm: BatchNorm, u: Tensor, z: Tensor) -> Tensor:
    """functional.norm_gate with the weights and statistics of `norm`. Its running statistics are updated."""
    use_batch = layers.uses_batch(norm)
    update = norm.training and norm.track_running_stats
    momentum = _next_momentum(norm) if update else 0.0
    return functional.norm_gate(
        u,
        z,
        norm.weight,
        norm.bias,
        norm.running_mean if update or not use_batch else None,
        norm.running_var if update or not use_batch else None,
        training=use_batch,
        momentum=momentum,
        eps=norm.eps,
    )


def _next_momentum(norm: BatchNorm) -> float | Tensor:
    """The share of this batch's statistics in the running ones. The batch is counted."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average
            return 1 / norm.num_batches_tracked.to(torch.float32)
    return 0.0 if norm.momentum is None else norm.momentum


def replace_attention(model: nn.Module | type[nn.Module], **options: Any) -> Any:
    """Fuse the attention modules inside a model: see `gcsa_ext.convert.replace_attention`."""
    from gcsa_ext import convert

    return convert.replace_attention(model, **options)
