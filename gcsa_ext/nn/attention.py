"""Global channel-spatial attention as a module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, is_autocast_enabled, is_grad_enabled, nn

from gcsa_ext import functional, reference
from gcsa_ext.backends import has_kernels
from gcsa_ext.nn import layers
from gcsa_ext.nn.layers import BatchNorm, Layers
from gcsa_ext.ops.gcsa import Arguments
from gcsa_ext.transforms import transformed


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
        weighted = layers.find(self)
        if weighted is None or not _operator_takes(weighted, x):
            return self._spatial_gate(self._channel_gate(x))
        return _fused(x, weighted, self.groups, self.channel_sigmoid)

    def _channel_gate(self, x: Tensor) -> Tensor:
        if not layers.are_channel_gate(self.channel_attention):
            pre = self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            gate = torch.sigmoid(pre) if self.channel_sigmoid else pre
            return reference.channel_shuffle(x * gate, self.groups)
        first, _, second = cast("tuple[nn.Linear, nn.ReLU, nn.Linear]", tuple(self.channel_attention))
        return functional.channel_gate(
            x, first.weight, first.bias, second.weight, second.bias, self.groups, self.channel_sigmoid
        )

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


def _operator_takes(weighted: Layers, x: Tensor) -> bool:
    """Whether a kernel of the operator gcsa computes what these layers compute from x."""
    if x.dim() != 4 or x.numel() == 0 or transformed() or not has_kernels("gcsa", x.device, x.dtype):
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
    weights = (layers.weights(layer) for layer in weighted[:4])
    return all(tensor is None or tensor.dtype == dtype for pair in weights for tensor in pair)


def _fused(x: Tensor, weighted: Layers, groups: int, channel_sigmoid: bool) -> Tensor:
    """What the layers compute, by the operator gcsa; their running statistics are updated."""
    statistics = (
        None if layers.uses_batch(norm) else layers.running(norm, name)
        for norm in (weighted.norm1, weighted.norm2)
        for name in ("running_mean", "running_var")
    )
    weights: Iterable[Any] = (tensor for layer in weighted for tensor in layers.weights(layer))
    eps = weighted.norm1.eps, weighted.norm2.eps
    mixed = x.is_cpu and is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    a = Arguments(*(x, *weights, *statistics, *eps, groups, channel_sigmoid, mixed))
    out: Tensor
    differentiates = is_grad_enabled() and any(t is not None and t.requires_grad for t in a.differentiable)
    if not differentiates and a.mean1 is not None and a.mean2 is not None:
        out = torch.ops.gcsa_ext.gcsa_inference.default(*a)
        return out
    out, _, _, *used = torch.ops.gcsa_ext.gcsa.default(*a)
    values = x.numel() // x.shape[1]
    for norm, mean, var in ((weighted.norm1, *used[:2]), (weighted.norm2, *used[2:])):
        if norm.training and norm.track_running_stats:
            running_mean, running_var, batches = (
                layers.running(norm, name) for name in ("running_mean", "running_var", "num_batches_tracked")
            )
            functional.update_statistics(running_mean, running_var, mean, var, values, norm.momentum, batches)
    return out


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


def replace_attention(model: nn.Module) -> int:
    """Exchange the attention modules inside a model: see `gcsa_ext.convert.replace_attention`."""
    from gcsa_ext import convert

    return convert.replace_attention(model)
