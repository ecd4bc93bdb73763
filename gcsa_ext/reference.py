"""The definition of every operator, in plain PyTorch: what "correct" means.

Nothing here is fast and nothing here is clever. Every kernel is compared with these functions in float64, and
they compute whenever no kernel can: any device, any floating dtype, any autograd order.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave `groups` groups of channels: ``out[:, j * groups + i] = x[:, i * (C // groups) + j]``.

    Args:
        x: (N, C, H, W).
        groups: number of groups; divides C.
    """
    N, C, H, W = x.shape
    return x.reshape(N, groups, C // groups, H, W).transpose(1, 2).reshape(N, C, H, W)


def channel_gate(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, groups: int, sigmoid: bool = True
) -> Tensor:
    """Gate every position with its own two-layer perceptron over the channels, then shuffle the channels.

    ``a[:, p] = sigmoid(w2 @ relu(w1 @ x[:, p] + b1) + b2)`` and ``out = channel_shuffle(x * a, groups)``.

    Args:
        x: (N, C, H, W).
        w1: (h, C). b1: (h,) or None. w2: (C, h). b2: (C,) or None.
        groups: number of shuffle groups; divides C; 1 leaves the channels in place.
        sigmoid: False leaves the gate ``a`` without its sigmoid.
    """
    pre = F.linear(torch.relu(F.linear(x.permute(0, 2, 3, 1), w1, b1)), w2, b2).permute(0, 3, 1, 2)
    return channel_shuffle(x * (torch.sigmoid(pre) if sigmoid else pre), groups)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and statistics over values of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _batch_norm(
    u: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float
) -> Tensor:
    """Batch normalisation as in `norm_gate`, with vectors in the dtype of sums."""
    dtype = accumulator_dtype(u.dtype)
    weight, bias, mean, var = (None if v is None else v.to(dtype) for v in (weight, bias, mean, var))
    return F.batch_norm(u, mean, var, weight, bias, training=mean is None, eps=eps)


def _statistics(u: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    """The given mean and variance, or those of the batch (biased), in the dtype of sums."""
    dtype = accumulator_dtype(u.dtype)
    if mean is None or var is None:
        var, mean = torch.var_mean(u.detach().to(dtype), (0, 2, 3), correction=0)
    return mean.to(dtype), var.to(dtype)


def norm_gate(
    u: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
) -> Tensor:
    """Gate z with the sigmoid of a batch-normalised u: ``z * sigmoid(batch_norm(u))``.

    Args:
        u, z: (N, C, H, W).
        weight, bias: (C,) scale and shift, or None for 1 and 0; any floating dtype, like mean and var.
        mean, var: (C,) statistics to normalise with, or None, None for those of this batch (biased variance).
        eps: added to the variance.
    """
    return z * torch.sigmoid(_batch_norm(u, weight, bias, mean, var, eps))


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None, replicate: bool = False) -> Tensor:
    """Convolve with 'same' padding and stride 1.

    Args:
        x: (N, C, H, W).
        weight: (O, C / G, k, k), k odd, for G groups of channels. bias: (O,) or None.
        replicate: pad with the values at the edge of the map instead of zeros.
    """
    padding, groups = weight.shape[-1] // 2, x.shape[1] // weight.shape[1]
    if replicate:
        return F.conv2d(F.pad(x, 4 * [padding], mode="replicate"), weight, bias, groups=groups)
    return F.conv2d(x, weight, bias, padding=padding, groups=groups)


def gcsa(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    conv1_weight: Tensor,
    conv1_bias: Tensor | None,
    conv2_weight: Tensor,
    conv2_bias: Tensor | None,
    norm1_weight: Tensor | None,
    norm1_bias: Tensor | None,
    norm2_weight: Tensor | None,
    norm2_bias: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    mean2: Tensor | None,
    var2: Tensor | None,
    eps1: float,
    eps2: float,
    groups: int,
    sigmoid: bool,
    mixed: bool = False,
    gate_groups: int = 1,
    gate_sigmoid: bool = True,
    replicate: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Global channel-spatial attention: the channel gate, then the spatial gate of two convolutions.

    ``z = channel_gate(x)``, ``u1 = conv1(z)``, ``u2 = conv2(relu(norm1(u1)))`` and
    ``out = z * channel_shuffle(sigmoid(norm2(u2)), gate_groups)``.

    Args:
        x: (N, C, H, W). w1, b1, w2, b2, groups, sigmoid: see `channel_gate`.
        conv1_weight: (m, C / G1, k1, k1), conv1_bias: (m,) or None, for m hidden channels in G1 groups.
            conv2_weight: (C, m / G2, k2, k2), conv2_bias: (C,) or None. All weights and biases so far are
            cast to the dtype of x.
        norm1_weight, norm1_bias, mean1, var1: (m,), eps1; norm2_...: (C,): see `norm_gate`.
        mixed: kernels may round the operands of products to bfloat16. The definition rounds nothing.
        gate_groups: groups of the channel shuffle of the spatial gate; divides C.
        gate_sigmoid: False leaves the spatial gate without its sigmoid.
        replicate: see `conv2d_same`.

    Returns:
        The result, and the mean1, var1, mean2, var2 with which it was normalised.
    """
    w1, w2, conv1_weight, conv2_weight = (w.to(x.dtype) for w in (w1, w2, conv1_weight, conv2_weight))
    b1, b2, conv1_bias, conv2_bias = (
        None if b is None else b.to(x.dtype) for b in (b1, b2, conv1_bias, conv2_bias)
    )
    z = channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    u1 = conv2d_same(z, conv1_weight, conv1_bias, replicate)
    a1 = torch.relu(_batch_norm(u1, norm1_weight, norm1_bias, mean1, var1, eps1))
    u2 = conv2d_same(a1, conv2_weight, conv2_bias, replicate)
    gate = _batch_norm(u2, norm2_weight, norm2_bias, mean2, var2, eps2)
    gate = channel_shuffle(torch.sigmoid(gate) if gate_sigmoid else gate, gate_groups)
    return z * gate, *_statistics(u1, mean1, var1), *_statistics(u2, mean2, var2)


ALL_BANDS = sys.maxsize
"""The number of bands of frames with which `spectrogram_mask` has no others. It does not depend on a shape,
which a trace would record."""


def _in_bands(size: int, start: Tensor, width: Tensor) -> Tensor:
    """Which of the positions 0 ... size - 1 are in a band: bool (*batch, size).

    Args:
        start, width: (*batch, bands) integers; a position i is in a band if start <= i < start + width.
    """
    from_start = torch.arange(size, device=start.device) - start.unsqueeze(-1)
    return ((from_start >= 0) & (from_start < width.unsqueeze(-1))).any(dim=-2)


def spectrogram_bands(spectrogram: Tensor, start: Tensor, width: Tensor, time_bands: int = 0) -> Tensor:
    """Which elements `spectrogram_mask` sets: bool, broadcastable to the spectrogram.

    Args:
        spectrogram: (*batch, freq, time).
        start, width, time_bands: see `spectrogram_mask`.
    """
    freq, time = spectrogram.shape[-2:]
    frames = _in_bands(time, start[..., :time_bands], width[..., :time_bands]).unsqueeze(-2)
    if time_bands == ALL_BANDS:
        return frames
    bins = _in_bands(freq, start[..., time_bands:], width[..., time_bands:]).unsqueeze(-1)
    return frames | bins if time_bands else bins


def spectrogram_mask(
    spectrogram: Tensor,
    start: Tensor,
    width: Tensor,
    value: float,
    time_bands: int = 0,
    fill: Tensor | None = None,
) -> Tensor:
    """Set the frames and frequency bins ``start <= i < start + width`` of every band to one value.

    Args:
        spectrogram: (*batch, freq, time).
        start, width: (*batch or broadcastable to it, bands) integers; a band may reach outside the
            spectrogram or be empty.
        value: what masked elements are set to.
        time_bands: the first `time_bands` bands are bands of frames, the others are bands of frequency bins.
            With `ALL_BANDS` all of them are bands of frames.
        fill: (), of the dtype and device of the spectrogram. It takes the place of `value`.
    """
    bands = spectrogram_bands(spectrogram, start, width, time_bands)
    # torch.vmap has no rule for masked_fill with a tensor.
    return spectrogram.masked_fill(bands, value) if fill is None else torch.where(bands, fill, spectrogram)


def frequency_bands(spectrogram: Tensor, start: Tensor, width: Tensor) -> Tensor:
    """Which bins `frequency_mask` sets: bool, broadcastable to the spectrogram.

    Args:
        spectrogram: (*batch, freq, time).
        start, width: (*batch or broadcastable to it, bands) integers.
    """
    return spectrogram_bands(spectrogram, start, width)


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    """Set the frequency bins ``start <= bin < start + width`` of every band to `value`.

    It is `spectrogram_mask` without bands of frames.

    Args:
        spectrogram: (*batch, freq, time).
        start, width: (*batch or broadcastable to it, bands) integers; a band may reach outside the
            spectrogram or be empty.
        value: what masked bins are set to.
    """
    return spectrogram_mask(spectrogram, start, width, value)
