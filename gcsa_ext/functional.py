"""The operators as functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcsa_ext import ops, reference  # noqa: F401  (the operators are defined when ops is imported)
from gcsa_ext.backends import cpu, forced_backend, unsupported
from gcsa_ext.transforms import transformed

__all__ = [
    "channel_gate",
    "conv2d_same",
    "explain_convolution",
    "frequency_mask",
    "frequency_mask_",
    "norm_gate",
    "random_frequency_mask",
    "release_workspace",
    "update_statistics",
]


def channel_gate(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int = 1, sigmoid: bool = True
) -> Tensor:
    """Gate every position with its own two-layer perceptron over the channels, then shuffle the channels.

    ``a[:, p] = sigmoid(w2 @ relu(w1 @ x[:, p] + b1) + b2)``, ``y = x * a``, and with G groups of C / G
    channels ``out[:, j * G + i] = y[:, i * (C / G) + j]``: steps 1 and 2 of GCSA. The pass over x reads it
    once and writes the result once; the backward pass computes a again, so only x and the weights are saved.

    Args:
        x: (N, C, H, W), float32, float64 or bfloat16 (float32 inside), on a GPU float16 instead of float64;
            contiguous or channels_last, kept; other strides are copied. Other dtypes and devices are computed
            by plain PyTorch.
        w1: (h, C), b1: (h,), w2: (C, h), b2: (C,): the layers, of x's dtype and device. Under autocast they
            are cast to the dtype of x, which the result keeps.
        groups: number of groups of the channel shuffle, which divides C; 1 leaves the channels in place.
        sigmoid: False leaves the sigmoid out (``a = w2 @ relu(...) + b2``), as some public GAM modules do.

    Returns:
        (N, C, H, W) in the layout of x.

    Raises:
        ValueError: a shape or groups that does not fit; TypeError: a dtype or device that does not.
    """
    if transformed():
        return reference.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    out: Tensor = torch.ops.gcsa_ext.channel_gate(x, w1, b1, w2, b2, groups, sigmoid)
    return out


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with 'same' zero padding and stride 1, as ``F.conv2d(x, weight, bias, padding=k // 2)`` does.

    On a CPU, kernels of 3 to 11 are convolved by Fourier transforms of tiles (overlap-save), or in bfloat16
    on the processor's matrix registers (AMX), wherever that was measured to be faster than torch's
    convolution; `explain_convolution` says which it is and why.

    Args:
        x: (N, C, H, W), float32, float64 or bfloat16 (sums in float32); contiguous or channels_last, kept;
            other strides are copied. Tensors of other dtypes and devices are computed by torch.
        weight: (O, C, k, k) with odd k, bias: (O,) or None; of x's dtype and device. Under autocast all are
            cast as for torch's convolution.

    Returns:
        (N, O, H, W) in the layout of x. A value of x that is not finite makes a whole tile of its own image
        not finite, rather than its neighbourhood of k x k.

    Raises:
        ValueError: a shape that does not fit; TypeError: a dtype or device that does not.
    """
    if transformed():
        return reference.conv2d_same(x, weight, bias)
    out: Tensor = torch.ops.gcsa_ext.conv2d_same(x, weight, bias)
    return out


def explain_convolution(x: Tensor, weight: Tensor) -> str:
    """How `conv2d_same` computes these (shapes, layout, dtype and device count), and why, in words."""
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
    """Free the memory that the kernels keep from call to call, at most 1 GiB.

    Returns:
        How many bytes that was. The workspace of calls that run in other threads stays.
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

    This is the end of step 3 and step 4 of GCSA. The arguments after z mean what they mean for
    torch.nn.functional.batch_norm: with `training` the statistics are those of this batch, over N, H and W,
    and the running ones, where given, are updated in place (with the unbiased variance).

    Args:
        u, z: (N, C, H, W), float32, float64 or bfloat16 (float32 inside), on a GPU float16 instead of
            float64; contiguous or channels_last as z is, kept; other strides are copied. Of two dtypes the
            wider one counts.
        weight, bias: (C,) scale and shift, or None for 1 and 0; any floating dtype.
        running_mean, running_var: (C,); needed unless `training`.
        momentum: share of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in the layout of z.

    Raises:
        ValueError: a shape that does not fit, no running statistics where they are needed, or a training
            batch with a single value per channel; TypeError: a dtype or device that does not fit.
    """
    if u.dtype != z.dtype:
        dtype = torch.promote_types(u.dtype, z.dtype)
        u, z = u.to(dtype), z.to(dtype)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("norm_gate: expected running_mean and running_var unless training")
        if transformed():
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
    if transformed():
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
    """Move running statistics towards those of a batch with this many values per channel, in place.

    Args:
        running_mean, running_var: (C,), or None: left out.
        mean, var: (C,), var biased; the running one becomes unbiased, as in torch's batch normalisation.
        momentum: share of the new statistics; None for the average of all batches.
        batches: int64, how many batches there were before, or None. Counted up.
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
                # In torch 2.6 a share of another dtype is an error.
                share = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
                running.lerp_(new.to(running.dtype), share)


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
    """Set bands of frequency bins to one value (SpecAugment, arXiv 1904.08779, section 2).

    The gradient of a masked bin is 0. Bins ``start <= bin < start + width`` of every band are masked; what of
    a band lies outside the spectrogram is ignored.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        start, width: integers of shape (*batch, bands), or broadcastable to it: (bands,) masks all samples
            alike. In bins.
        value: what masked bins become.

    Returns:
        A new contiguous tensor of the spectrogram's shape.

    Raises:
        ValueError: a shape that does not fit; TypeError: a dtype or device that does not.
    """
    if transformed():
        return reference.frequency_mask(spectrogram, start, width, value)
    out: Tensor = torch.ops.gcsa_ext.frequency_mask(spectrogram, start, width, value)
    return out


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
    """`frequency_mask` in place: only masked bins are written. Returns the spectrogram itself.

    Args and errors are those of `frequency_mask`; as with every in-place operation of torch, a leaf that
    requires a gradient is refused with a RuntimeError.
    """
    if transformed() or (spectrogram.requires_grad and torch.is_grad_enabled()):
        return spectrogram.masked_fill_(reference.frequency_bands(spectrogram, start, width), value)
    torch.ops.gcsa_ext.frequency_mask_(spectrogram, start, width, value)
    return spectrogram


def random_frequency_mask(
    spectrogram: Tensor,
    widest: int,
    bands: int = 1,
    iid: bool = False,
    value: float = 0.0,
    inplace: bool = False,
) -> Tensor:
    """`frequency_mask`, or `frequency_mask_`, of random bands (SpecAugment, arXiv 1904.08779, section 2).

    A band is ``trunc(u * widest)`` bins wide and starts at ``trunc(v * (freq - u * widest))``, with u and v
    uniform in [0, 1). Drawn are, band by band, u of every sample, then v of every sample.

    Args:
        spectrogram: (*batch, freq, time), any floating dtype.
        widest: exclusive upper end of a band's width in bins.
        bands: bands per sample; they may overlap.
        iid: draw for every sample, in the spectrogram's dtype and on its device, rather than once for all, in
            torch's default dtype and on its default device.
        value: what masked bins become.
        inplace: overwrite the spectrogram and return it.

    Raises:
        ValueError: a shape that does not fit; TypeError: a dtype that does not.
    """
    if spectrogram.dim() < 2:
        raise ValueError(
            f"random_frequency_mask: expected a spectrogram (..., freq, time), got {tuple(spectrogram.shape)}"
        )
    if not spectrogram.is_floating_point():
        raise TypeError(
            f"random_frequency_mask: expected a spectrogram of a floating dtype, got {spectrogram.dtype}"
        )
    draws = _uniform(bands, spectrogram if iid else None)
    u, v = draws.movedim(0, -1).unbind(0)
    width = u * widest
    start = v * (spectrogram.shape[-2] - width)
    mask = frequency_mask_ if inplace else frequency_mask
    device = spectrogram.device
    return mask(spectrogram, start.long().to(device), width.long().to(device), value)


def _uniform(bands: int, like: Tensor | None) -> Tensor:
    """Random numbers (bands, 2, *batch), those of every [i, j] drawn before the next; see above for None."""
    if like is None:
        draws = torch.empty(bands, 2)
    else:
        shape = (bands, 2, *like.shape[:-2])
        if like.is_cpu:
            return torch.rand(shape, dtype=like.dtype, device=like.device)
        draws = torch.empty(shape, dtype=like.dtype, device=like.device)
    if draws.is_cpu:
        return draws.uniform_()
    # Only the CPU's generator gives one call the numbers that it would give several calls.
    for numbers in draws.flatten(0, 1):
        numbers.uniform_()
    return draws
