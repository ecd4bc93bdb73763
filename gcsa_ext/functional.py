"""The operators as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcsa_ext import ops, reference  # noqa: F401  (the operators are defined when ops is imported)
from gcsa_ext.backends import cpu, forced_backend, unsupported
from gcsa_ext.transforms import needs_plain_torch

__all__ = [
    "channel_gate",
    "conv2d_same",
    "explain_convolution",
    "frequency_mask",
    "frequency_mask_",
    "norm_gate",
    "random_frequency_mask",
    "random_spectrogram_mask",
    "random_time_mask",
    "release_workspace",
    "time_mask",
    "time_mask_",
    "update_statistics",
]


def channel_gate(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int = 1, sigmoid: bool = True
) -> Tensor:
    """Gate every position with its own two-layer perceptron over the channels, then shuffle the channels.

    ``a[:, p] = sigmoid(w2 @ relu(w1 @ x[:, p] + b1) + b2)``, ``y = x * a``, and with G groups of C / G
    channels ``out[:, j * G + i] = y[:, i * (C / G) + j]``: steps 1 and 2 of GCSA (arXiv 2503.11935). The
    forward pass reads x once and writes the result once. The backward pass computes a again, so only x and
    the weights are saved.

    Args:
        x: (N, C, H, W). Kernels take float32, float64 and bfloat16 on the CPU, float32, float16 and bfloat16
            on a GPU; they compute in float32, or float64 for float64. Plain PyTorch computes other dtypes and
            devices. The result keeps the layout of x if that is contiguous or channels_last; x in other
            strides is copied.
        w1: (h, C). b1: (h,). w2: (C, h). b2: (C,). Of the dtype and device of x. Under autocast they are cast
            to the dtype of x, which the result keeps.
        groups: number of groups of the channel shuffle, which divides C; 1 leaves the channels in place.
        sigmoid: False leaves the sigmoid out (``a = w2 @ relu(...) + b2``), as some public GAM modules do.

    Returns:
        (N, C, H, W), of the dtype and in the layout of x.

    Raises:
        ValueError: a shape or `groups` does not fit.
        TypeError: a dtype or device does not fit.
    """
    if needs_plain_torch():
        return reference.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    out: Tensor = torch.ops.gcsa_ext.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    return out


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with 'same' zero padding and stride 1, as ``F.conv2d(x, weight, bias, padding=k // 2)`` does.

    On a CPU, kernel sizes of 3 to 11 are computed by Fourier transforms of tiles (overlap-save), or in
    bfloat16 by the processor's matrix registers (AMX), wherever that was measured to be faster than torch's
    convolution. `explain_convolution` names the algorithm and the reason.

    Args:
        x: (N, C, H, W). Kernels take float32, float64 and bfloat16 (with sums in float32) on the CPU. Torch
            computes other dtypes and devices. The result keeps the layout of x if that is contiguous or
            channels_last; x in other strides is copied.
        weight: (O, C, k, k), k odd, of the dtype and device of x.
        bias: (O,), of the dtype and device of x, or None. Under autocast x, weight and bias are cast as for
            torch's convolution.

    Returns:
        (N, O, H, W), of the dtype and in the layout of x. With Fourier transforms a value of x that is not
        finite makes a whole tile of its image not finite, not only its neighbourhood of k x k.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype or device does not fit.
    """
    if needs_plain_torch():
        return reference.conv2d_same(x, weight, bias)
    out: Tensor = torch.ops.gcsa_ext.conv2d_same(x, weight, bias)
    return out


def explain_convolution(x: Tensor, weight: Tensor) -> str:
    """The algorithm that `conv2d_same` takes for these arguments, and the reason, in words.

    Args:
        x: (N, C, H, W). weight: (O, C, k, k). Only shapes, layout, dtype and device matter, not the values.
    """
    reason = unsupported("cpu", "conv2d_same", x.device, x.dtype)
    if reason is None and (forced := forced_backend()) not in (None, "cpu"):
        reason = f"backend {forced!r} is forced"
    algorithm, reason = ("direct", reason) if reason else cpu.explain_convolution(x, weight)
    names = {
        "fft": "Fourier transforms of tiles",
        "amx": "the processor's matrix registers (AMX)",
        "direct": "torch's convolution",
    }
    return f"{names[algorithm]}: {reason}"


def release_workspace() -> int:
    """Free the workspaces that the kernels on the CPU cache between calls, at most 1 GiB.

    Returns:
        The number of bytes freed. Workspaces of calls that are running in other threads are not freed.
    """
    return cpu.release_workspace()


def norm_gate(
    u: Tensor,
    z: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Gate z with the sigmoid of a batch-normalised u: ``z * sigmoid(batch_norm(u))``.

    This is the end of step 3 and step 4 of GCSA (arXiv 2503.11935). The arguments after z are those of
    torch.nn.functional.batch_norm. With `training` the statistics are those of this batch, over N, H and W,
    and the running ones, if given, are updated in place (with the unbiased variance).

    Args:
        u, z: (N, C, H, W). Kernels take float32, float64 and bfloat16 on the CPU, float32, float16 and
            bfloat16 on a GPU; they compute in float32, or float64 for float64. Plain PyTorch computes other
            dtypes and devices. Two different dtypes are promoted to one. The result keeps the layout of z if
            that is contiguous or channels_last; u and z in other layouts are copied.
        weight, bias: (C,) scale and shift, or None for 1 and 0; any floating dtype.
        running_mean, running_var: (C,), any floating dtype; needed unless `training`.
        training: whether to normalise with the statistics of this batch.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        (N, C, H, W), in the layout of z.

    Raises:
        ValueError: a shape does not fit, running statistics are needed but missing, or a batch in training
            has a single value per channel.
        TypeError: a dtype or device does not fit.
    """
    if u.dtype != z.dtype:
        dtype = torch.promote_types(u.dtype, z.dtype)
        u, z = u.to(dtype), z.to(dtype)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("norm_gate: expected running_mean and running_var unless training")
        if needs_plain_torch():
            return reference.norm_gate(u, z, weight, bias, running_mean, running_var, eps)
        out: Tensor = torch.ops.gcsa_ext.norm_gate(u, z, weight, bias, running_mean, running_var, eps)[0]
        return out
    values = u.numel() // u.shape[1] if u.dim() > 1 and u.shape[1] else 0
    if values == 1:
        raise ValueError(
            f"norm_gate: expected more than one value per channel in training, got u {tuple(u.shape)}"
        )
    for name, vector in (("running_mean", running_mean), ("running_var", running_var)):
        if vector is not None and vector.shape != u.shape[1:2]:
            raise ValueError(
                f"norm_gate: expected {name} of shape (C,) for u {tuple(u.shape)}, got {tuple(vector.shape)}"
            )
    if needs_plain_torch():
        gate = torch.sigmoid(
            F.batch_norm(u, running_mean, running_var, weight, bias, True, float(momentum), eps)
        )
        return z * gate
    out, mean, var = torch.ops.gcsa_ext.norm_gate(u, z, weight, bias, None, None, eps)
    update_statistics(running_mean, running_var, mean, var, values, momentum)
    return out


def update_statistics(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    values: int,
    momentum: float | Tensor | None,
    batches: Tensor | None = None,
) -> None:
    """Update running statistics with those of a batch, in place, as torch's batch normalisation does.

    Args:
        running_mean, running_var: (C,), or None, which is left out.
        mean, var: (C,), the statistics of the batch, var biased. The running variance is unbiased.
        values: number of values per channel in the batch. With fewer than 2 nothing is updated.
        momentum: share of the new statistics; None for the average of all batches.
        batches: int64 scalar, the number of batches before this one, or None. It is increased by 1.
    """
    if values < 2:
        return
    with torch.no_grad():
        if batches is not None:
            batches.add_(1)
        if momentum is None:
            momentum = 0.0 if batches is None else 1 / batches.to(torch.float32)
        for running, new in ((running_mean, mean), (running_var, var * (values / (values - 1)))):
            if running is not None:
                # torch 2.6 refuses a share of another dtype.
                share = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
                running.lerp_(new.to(running.dtype), share)


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """Set bands of frequency bins to one value (SpecAugment, arXiv 1904.08779, section 2).

    Bins ``start <= bin < start + width`` of every band are masked. The part of a band that is outside the
    spectrogram is ignored. The gradient of a masked bin is 0.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        start, width: integers, in bins, of shape (*batch, bands) or broadcastable to it: (bands,) masks all
            samples alike.
        value: the new value of masked bins: a number, or a tensor of one element, which is cast to the dtype
            and device of the spectrogram. A tensor's gradient is the sum of those of all masked elements.

    Returns:
        A new contiguous tensor of the spectrogram's shape.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype or device does not fit.
    """
    return _mask(spectrogram, start, width, value, 0, False)


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """`frequency_mask` in place: only masked bins are written. Returns the spectrogram itself.

    Arguments and errors are those of `frequency_mask`. As with every in-place operation of torch, a leaf that
    requires a gradient raises a RuntimeError.
    """
    return _mask(spectrogram, start, width, value, 0, True)


def time_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """Set bands of frames to one value (SpecAugment, arXiv 1904.08779, section 2).

    Frames ``start <= frame < start + width`` of every band are masked. Otherwise it is `frequency_mask`.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        start, width: integers, in frames, of shape (*batch, bands) or broadcastable to it: (bands,) masks all
            samples alike.
        value: the new value of masked frames, a number or a tensor; see `frequency_mask`.

    Returns:
        A new contiguous tensor of the spectrogram's shape.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype or device does not fit.
    """
    return _mask(spectrogram, start, width, value, reference.ALL_BANDS, False)


def time_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float | Tensor = 0.0) -> Tensor:
    """`time_mask` in place: only masked frames are written. Returns the spectrogram itself.

    Arguments and errors are those of `time_mask`. As with every in-place operation of torch, a leaf that
    requires a gradient raises a RuntimeError.
    """
    return _mask(spectrogram, start, width, value, reference.ALL_BANDS, True)


def random_frequency_mask(
    spectrogram: Tensor,
    widest: int,
    bands: int = 1,
    iid: bool = False,
    value: float | Tensor = 0.0,
    inplace: bool = False,
) -> Tensor:
    """`frequency_mask`, or `frequency_mask_`, of random bands (SpecAugment, arXiv 1904.08779, section 2).

    A band is ``trunc(u * widest)`` bins wide and starts at ``trunc(v * (freq - u * widest))``, with u and v
    uniform in [0, 1). For each band in turn, u of every sample is drawn, then v of every sample.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        widest: exclusive upper end of a band's width in bins.
        bands: bands per sample, at least 1; they may overlap.
        iid: True draws bands for every sample, in the spectrogram's dtype and on its device. False draws
            bands for all samples together, in torch's default dtype and on its default device.
        value: the new value of masked bins, a number or a tensor; see `frequency_mask`.
        inplace: overwrite the spectrogram and return it.

    Returns:
        A tensor of the spectrogram's shape.

    Raises:
        ValueError: a shape or the number of bands does not fit.
        TypeError: a dtype does not fit.
    """
    return _random_mask("random_frequency_mask", spectrogram, (0, 0), (widest, bands), iid, value, inplace)


def random_time_mask(
    spectrogram: Tensor,
    widest: int,
    bands: int = 1,
    iid: bool = False,
    value: float | Tensor = 0.0,
    inplace: bool = False,
) -> Tensor:
    """`time_mask`, or `time_mask_`, of random bands (SpecAugment, arXiv 1904.08779, section 2).

    Arguments, draws, result and errors are those of `random_frequency_mask`, with frames in place of bins.
    """
    return _random_mask("random_time_mask", spectrogram, (widest, bands), (0, 0), iid, value, inplace)


def random_spectrogram_mask(
    spectrogram: Tensor,
    widest_time: int,
    widest_freq: int,
    time_bands: int = 1,
    freq_bands: int = 1,
    iid: bool = False,
    value: float | Tensor = 0.0,
    inplace: bool = False,
) -> Tensor:
    """Mask random bands of frames and of frequency bins in one pass (SpecAugment, arXiv 1904.08779).

    The result is that of `random_time_mask`, then `random_frequency_mask`, which draw the same numbers in the
    same order.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        widest_time, widest_freq: exclusive upper end of a band's width, in frames and in bins.
        time_bands, freq_bands: bands per sample, at least one of both kinds together; they may overlap.
        iid, value, inplace: see `random_frequency_mask`.

    Returns:
        A tensor of the spectrogram's shape.

    Raises:
        ValueError: a shape or a number of bands does not fit.
        TypeError: a dtype does not fit.
    """
    time, freq = (widest_time, time_bands), (widest_freq, freq_bands)
    return _random_mask("random_spectrogram_mask", spectrogram, time, freq, iid, value, inplace)


def _mask(
    spectrogram: Tensor, start: Tensor, width: Tensor, value: float | Tensor, time_bands: int, inplace: bool
) -> Tensor:
    """The operators spectrogram_mask and spectrogram_mask_; the first `time_bands` bands are of frames."""
    fill = None
    if isinstance(value, Tensor):
        if value.dim() > 0:
            if value.numel() != 1:
                raise ValueError(
                    f"masking: expected a value of one element, got a tensor {tuple(value.shape)}"
                )
            value = value.reshape(())
        fill = value.to(spectrogram.device, spectrogram.dtype)
        value = 0.0
    if inplace:
        differentiable = spectrogram.requires_grad or (fill is not None and fill.requires_grad)
        if needs_plain_torch() or (differentiable and torch.is_grad_enabled()):
            if fill is not None:
                return spectrogram.copy_(
                    reference.spectrogram_mask(spectrogram, start, width, value, time_bands, fill)
                )
            bands = reference.spectrogram_bands(spectrogram, start, width, time_bands)
            return spectrogram.masked_fill_(bands, value)
        torch.ops.gcsa_ext.spectrogram_mask_(spectrogram, start, width, value, time_bands, fill)
        return spectrogram
    if needs_plain_torch():
        return reference.spectrogram_mask(spectrogram, start, width, value, time_bands, fill)
    out: Tensor = torch.ops.gcsa_ext.spectrogram_mask(spectrogram, start, width, value, time_bands, fill)
    return out


def _random_mask(
    name: str,
    spectrogram: Tensor,
    time: tuple[int, int],
    freq: tuple[int, int],
    iid: bool,
    value: float | Tensor,
    inplace: bool,
) -> Tensor:
    """Mask random bands of frames, then of bins.

    Args:
        name: the caller's, for errors.
        time, freq: the upper end of a band's width, and the number of bands, of either kind.
        spectrogram, iid, value, inplace: see `random_frequency_mask`.
    """
    if spectrogram.dim() < 2:
        raise ValueError(f"{name}: expected a spectrogram (..., freq, time), got {tuple(spectrogram.shape)}")
    if not spectrogram.is_floating_point():
        raise TypeError(f"{name}: expected a spectrogram of a floating dtype, got {spectrogram.dtype}")
    if min(time[1], freq[1]) < 0 or time[1] + freq[1] < 1:
        raise ValueError(
            f"{name}: expected at least one band, got {time[1]} of frames and {freq[1]} of frequency bins"
        )
    like = spectrogram if iid else None
    time_bands = time[1]
    if time[1] == 0:
        start, width = _random_bands(*freq, spectrogram.shape[-2], like)
    elif freq[1] == 0:
        start, width = _random_bands(*time, spectrogram.shape[-1], like)
        time_bands = reference.ALL_BANDS
    else:
        frames = _random_bands(*time, spectrogram.shape[-1], like)
        bins = _random_bands(*freq, spectrogram.shape[-2], like)
        start, width = torch.cat((frames[0], bins[0]), -1), torch.cat((frames[1], bins[1]), -1)
    device = spectrogram.device
    start, width = start.to(device, torch.int64), width.to(device, torch.int64)
    return _mask(spectrogram, start, width, value, time_bands, inplace)


def _random_bands(widest: int, bands: int, size: int, like: Tensor | None) -> tuple[Tensor, Tensor]:
    """The start and width of random bands of an axis of this size, (*batch, bands), not yet truncated.

    Args:
        widest, bands: see `random_frequency_mask`.
        like: see `_uniform`, as for the batch.
    """
    u, v = _uniform(bands, like).movedim(0, -1).unbind(0)
    width = u * widest
    return v * (size - width), width


def _uniform(bands: int, like: Tensor | None) -> Tensor:
    """Uniform random numbers (bands, 2, *batch), drawn in the order of the first two axes.

    batch, dtype and device are those of the spectrogram `like`; without it batch is empty and torch's
    defaults hold.
    """
    if like is None:
        draws = torch.empty(bands, 2)
    else:
        shape = (bands, 2, *like.shape[:-2])
        if like.is_cpu:
            return torch.rand(shape, dtype=like.dtype, device=like.device)
        draws = torch.empty(shape, dtype=like.dtype, device=like.device)
    if draws.is_cpu:
        return draws.uniform_()
    # On other devices one call draws other numbers than several calls do.
    for numbers in draws.flatten(0, 1):
        numbers.uniform_()
    return draws
