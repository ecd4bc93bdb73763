"""Backend "cpu": the C++ kernels of csrc/cpu. Here tensors become addresses, but for the calls of whole
modules, which csrc/attention.h and csrc/masking.h take.

Every function takes checked arguments (see gcsa_ext/ops) on the CPU with a dtype of `DTYPES`, makes them
contiguous in the layout of the first, and returns new tensors in that layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import native
from gcsa_ext.layout import memory_format
from gcsa_ext.reference import accumulator_dtype

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
MASK_DTYPES = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}

_CPU = torch.device("cpu")


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can."""
    reason = native.load_error or _isa_error
    if reason is not None:
        return reason
    if device != _CPU and device.type != "cpu":  # the first, which is much faster, settles nearly all
        return f"the cpu backend takes tensors on the CPU, not on {device}"
    dtypes = MASK_DTYPES if operator.startswith("frequency_mask") else DTYPES
    if dtype not in dtypes:
        return f"the cpu backend has {operator} for {', '.join(map(str, dtypes))}, not {dtype}"
    return None


def isa() -> str:
    """The instruction set in use: "baseline", "avx2", "avx512" or "amx" (AVX-512 and matrix registers).

    Raises:
        RuntimeError: GCSA_EXT_CPU_ISA names one that is unknown or that this processor lacks.
    """
    assert native.extension is not None
    return str(native.extension.cpu_isa())


def _find_isa_error() -> str | None:
    try:
        isa()
    except RuntimeError as error:
        return str(error)
    return None


_isa_error = None if native.extension is None else _find_isa_error()
_HAS_AMX = native.extension is not None and _isa_error is None and isa() == "amx"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _empty(
    shape: Sequence[int],
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """An uninitialised tensor, if it is large in memory that is kept from call to call (csrc/tensors.h)."""
    assert native.extension is not None
    out: Tensor = native.extension.empty(shape, dtype, layout == torch.channels_last)
    return out


def _contiguous(x: Tensor, layout: torch.memory_format) -> Tensor:
    # Asking first costs less than a conversion that has nothing to do.
    return x if x.is_contiguous(memory_format=layout) else x.contiguous(memory_format=layout)


def _map_sizes(x: Tensor, layout: torch.memory_format) -> tuple[int, bool, int, int, int, int]:
    N, C, H, W = x.shape
    return DTYPES[x.dtype], layout == torch.channels_last, N, C, H * W, native.threads()


def channel_gate(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, groups: int, sigmoid: bool
) -> Tensor:
    """See reference.channel_gate."""
    layout = memory_format(x)
    out = _empty(x.shape, x.dtype, layout)
    if out.numel() == 0:
        return out
    x = x.contiguous(memory_format=layout)
    weights = [w.contiguous() for w in (w1, b1, w2, b2)]
    assert native.extension is not None
    native.extension.channel_gate_forward(
        *_map_sizes(x, layout),
        w1.shape[0],
        groups,
        sigmoid,
        _address(x),
        *map(_address, weights),
        _address(out),
    )
    return out


def channel_gate_backward(
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
    grad_x = _empty(x.shape, x.dtype, layout) if need_x else None
    grads = [torch.empty_like(w) if need_weights else None for w in weights]
    if x.numel() == 0:
        return grad_x, *(None if grad is None else grad.zero_() for grad in grads)  # type: ignore[return-value]
    x, grad_out = x.contiguous(memory_format=layout), grad_out.contiguous(memory_format=layout)
    assert native.extension is not None
    native.extension.channel_gate_backward(
        *_map_sizes(x, layout),
        w1.shape[0],
        groups,
        sigmoid,
        _address(x),
        *map(_address, weights),
        _address(grad_out),
        _address(grad_x),
        *map(_address, grads),
    )
    return grad_x, *grads  # type: ignore[return-value]


def norm_gate(
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
    dtype = accumulator_dtype(u.dtype)
    out = _empty(z.shape, z.dtype, layout)
    batch_statistics = mean is None or var is None
    used_mean, used_var = (
        torch.zeros(u.shape[1], dtype=dtype) if v is None else v.to(dtype, copy=True) for v in (mean, var)
    )
    if out.numel() == 0:
        return out, used_mean, used_var
    u, z = u.contiguous(memory_format=layout), z.contiguous(memory_format=layout)
    vectors = [None if v is None else v.to(dtype).contiguous() for v in (weight, bias, used_mean, used_var)]
    assert native.extension is not None
    native.extension.norm_gate_forward(
        *_map_sizes(u, layout),
        batch_statistics,
        eps,
        _address(u),
        _address(z),
        *map(_address, vectors),
        _address(out),
    )
    return out, used_mean, used_var


def norm_gate_backward(
    grad_out: Tensor,
    u: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    batch_statistics: bool,
    need: tuple[bool, bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of u, z, weight, bias, None where not needed; mean and var are those of the forward
    pass."""
    layout = memory_format(z)
    dtype = accumulator_dtype(u.dtype)
    need_u, need_z, need_weight, need_bias = need
    grad_u = _empty(u.shape, u.dtype, layout) if need_u else None
    grad_z = _empty(z.shape, z.dtype, layout) if need_z else None
    grad_weight = torch.zeros(u.shape[1], dtype=dtype) if need_weight else None
    grad_bias = torch.zeros(u.shape[1], dtype=dtype) if need_bias else None
    if u.numel() > 0:
        u, z, grad_out = (t.contiguous(memory_format=layout) for t in (u, z, grad_out))
        vectors = [None if v is None else v.to(dtype).contiguous() for v in (weight, bias, mean, var)]
        assert native.extension is not None
        native.extension.norm_gate_backward(
            *_map_sizes(u, layout),
            batch_statistics,
            eps,
            _address(u),
            _address(z),
            *map(_address, vectors),
            *map(_address, (grad_out, grad_u, grad_z, grad_weight, grad_bias)),
        )
    if grad_weight is not None and weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_u, grad_z, grad_weight, grad_bias


def _spatial_sizes(x: Tensor, layout: torch.memory_format) -> tuple[int, bool, int, int, int, int, int]:
    N, C, H, W = x.shape
    return DTYPES[x.dtype], layout == torch.channels_last, N, C, H, W, native.threads()


def explain_convolution(x: Tensor, weight: Tensor) -> tuple[str, str]:
    """How `conv2d_same` computes: "fft", "amx" (the matrix registers) or "direct" (torch's convolution), and
    the reason in words.

    The limits were measured against torch's convolution (oneDNN) on 2 cores with AVX-512, those for bfloat16
    with AMX, with kernels of 3 to 11, 4 to 256 channels and maps of 7x7 to 56x56:
    ``python benchmarks/crossover.py``.
    """
    (N, C, H, W), (out_channels, k) = x.shape, weight.shape[::3]
    positions = N * H * W
    if k > 11:
        return "direct", f"no tile for a {k}x{k} kernel"
    if _HAS_AMX and x.dtype == torch.bfloat16:
        if memory_format(x) == torch.channels_last:
            return "direct", "it uses the matrix registers too, and takes channels_last as it is"
        words = f"{k}x{k} taps for {C}x{out_channels} channels at {positions} positions"
        if (
            k < 3
            or N * W < 8
            or (positions >= 2000 and (k == 3 or max(C, out_channels) < 16))
            or (positions < 100 and C * out_channels > 20000)
        ):
            return "direct", f"it uses the matrix registers too, and is as fast with {words}"
        return "amx", words
    if k < 3 or (k == 3 and (min(C, out_channels) < 16 or positions < 300)):
        return (
            "direct",
            f"a {k}x{k} kernel has too few taps for {C}x{out_channels} channels at {positions} positions",
        )
    if k == 5 and max(C, out_channels) < 8:
        return "direct", f"{C} and {out_channels} channels leave most of a vector empty"
    if k == 5 and positions < 100 and C * out_channels > 4000:
        return "direct", f"{C}x{out_channels} weights are transformed for {positions} positions only"
    return "fft", f"{k}x{k} taps cost more than the transforms of {positions} positions"


def conv2d_same(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See reference.conv2d_same."""
    if explain_convolution(x, weight)[0] == "direct":
        return reference.conv2d_same(x, weight, bias)
    layout, dtype = memory_format(x), accumulator_dtype(x.dtype)
    out_channels, k = weight.shape[::3]
    out = _empty((x.shape[0], out_channels, *x.shape[2:]), x.dtype, layout)
    x, weight = x.contiguous(memory_format=layout), weight.to(dtype).contiguous()
    bias = None if bias is None else bias.to(dtype).contiguous()
    assert native.extension is not None
    native.extension.convolution_forward(
        *_spatial_sizes(x, layout), out_channels, k, *map(_address, (x, weight, bias, out))
    )
    return out


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, None where not needed."""
    layout, dtype = memory_format(x), accumulator_dtype(x.dtype)
    if explain_convolution(x, weight)[0] == "direct":
        p = weight.shape[-1] // 2
        grads = torch.ops.aten.convolution_backward(
            grad_out, x, weight, None, [1, 1], [p, p], [1, 1], False, [0, 0], 1, [need_x, need_weight, False]
        )
        return None if grads[0] is None else grads[0].contiguous(memory_format=layout), grads[1]
    grad_x = _empty(x.shape, x.dtype, layout) if need_x else None
    grad_weight = _empty(weight.shape, dtype) if need_weight else None
    x, grad_out = x.contiguous(memory_format=layout), grad_out.contiguous(memory_format=layout)
    weight32 = weight.to(dtype).contiguous()
    assert native.extension is not None
    native.extension.convolution_backward(
        *_spatial_sizes(x, layout),
        *weight.shape[::3],
        *map(_address, (x, weight32, grad_out, grad_x, grad_weight)),
    )
    return grad_x, None if grad_weight is None else grad_weight.to(weight.dtype)


def _gcsa_vectors(
    x: Tensor, gate: Sequence[Tensor], layers: Sequence[Tensor | None]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The channel gate's weights in the dtype of x, all others in that of sums; contiguous."""
    dtype = accumulator_dtype(x.dtype)

    def convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()

    return [convert(w, x.dtype) for w in gate], [None if v is None else convert(v, dtype) for v in layers]


def saved_shape(channels: int, x: Tensor) -> tuple[int, int, int, int]:
    """Of what is kept of a convolution's output: channels padded to the lanes of the widest vector."""
    N, _, H, W = x.shape
    lanes = 64 // accumulator_dtype(x.dtype).itemsize
    return N, (channels + lanes - 1) // lanes * lanes, H, W


def gcsa(
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    statistics: Sequence[Tensor | None],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
    mixed: bool,
    save: bool,
) -> tuple[Tensor, ...]:
    """See reference.gcsa: w1, b1, w2, b2; weight and bias of both convolutions; of both normalisations;
    mean and var of both, None for the batch's. With `mixed` the layers of a float32 map round what they
    multiply to bfloat16 where the processor has matrix registers (AMX) and the map fills them; those of a
    bfloat16 map then always do. Gradients of the channel gate are computed in float32.

    Returns:
        The result; if `save`, the convolutions' outputs in the kernels' own layout (else empty tensors);
        the statistics it used (biased variance), those given as copies if `save`.
    """
    layout, dtype = memory_format(x), accumulator_dtype(x.dtype)
    out = _empty(x.shape, x.dtype, layout)
    h, C, k, _ = convolutions[0].shape
    u1, u2 = (_empty(saved_shape(channels, x) if save else (0,), x.dtype) for channels in (h, C))
    batch_statistics = (statistics[0] is None, statistics[2] is None)
    used = [
        torch.empty(channels, dtype=dtype)
        if value is None
        else value
        if not save and value.dtype == dtype and value.is_contiguous()
        else value.to(dtype, copy=True)
        for value, channels in zip(statistics, (h, h, C, C), strict=True)
    ]
    x = _contiguous(x, layout)
    saved = (_address(u1), _address(u2)) if save else (0, 0)
    sources = convolutions[::2]
    gate, layers = _gcsa_vectors(x, gate, (*convolutions, *norms))
    tensors = (x, *gate, *layers[:6], *used[:2], *layers[6:], *used[2:], out)
    assert native.extension is not None
    native.extension.gcsa_forward(
        *_spatial_sizes(x, layout),
        h,
        groups,
        sigmoid,
        mixed,
        k,
        batch_statistics,
        eps,
        [*map(_address, tensors), *saved],
        list(map(_address, sources)),
    )
    return out, u1, u2, *used


def gcsa_backward(
    grad_out: Tensor,
    x: Tensor,
    gate: Sequence[Tensor],
    convolutions: tuple[Tensor, Tensor | None, Tensor, Tensor | None],
    norms: Sequence[Tensor | None],
    used: Sequence[Tensor | None],
    saved: tuple[Tensor, Tensor],
    batch_statistics: tuple[bool, bool],
    eps: tuple[float, float],
    groups: int,
    sigmoid: bool,
    mixed: bool,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of x, gate, convolutions and norms, None where not needed; `used` and `saved` are
    results of the forward pass."""
    layout = memory_format(x)
    h, _, k, _ = convolutions[0].shape
    inputs = [x, *gate, *convolutions, *norms]
    # The four of the gate come together.
    need = [need[0], *4 * (any(need[1:5]),), *need[5:]]
    x, grad_out = _contiguous(x, layout), _contiguous(grad_out, layout)
    gate, layers = _gcsa_vectors(x, gate, (*convolutions, *norms))
    # Hooks on saved tensors may have laid them out in another way.
    kept = [u.contiguous() for u in saved]
    used = [v if v is None else v.to(accumulator_dtype(x.dtype)).contiguous() for v in used]
    grads = [
        _empty(t.shape, t.dtype, layout if i == 0 else torch.contiguous_format)
        if wanted and t is not None
        else None
        for i, (t, wanted) in enumerate(zip((x, *gate, *layers), need, strict=True))
    ]
    tensors = [x, *gate, *layers[:4], *layers[4:6], *used[:2], *layers[6:], *used[2:], None, *kept]
    # The kernel's order: x, gate; convolution and normalisation of the first, of the second.
    first, second = (5, 6, 9, 10), (7, 8, 11, 12)
    assert native.extension is not None
    native.extension.gcsa_backward(
        *_spatial_sizes(x, layout),
        h,
        groups,
        sigmoid,
        mixed,
        k,
        batch_statistics,
        eps,
        list(map(_address, tensors)),
        _address(grad_out),
        [_address(grads[i]) for i in (*range(5), *first, *second)],
    )
    return [
        grad if grad is None or t is None or grad.dtype == t.dtype else grad.to(t.dtype)
        for grad, t in zip(grads, inputs, strict=True)
    ]


def release_workspace() -> int:
    """Give back the memory and the weights' spectra that kernels keep; returns how many bytes that was."""
    return 0 if native.extension is None else int(native.extension.release_scratch())


@functools.lru_cache(maxsize=256)
def _bits(value: float, sign: float, dtype: torch.dtype) -> int:
    """The bits of `value` as an element of `dtype`, as an unsigned number.

    `sign` is the sign of `value`: it keeps 0.0 and -0.0, which are equal, apart in the cache.
    """
    integer = MASK_DTYPES[dtype]
    signed = int(torch.tensor(value, dtype=dtype, device="cpu").view(integer).item())
    return signed & (1 << 8 * integer.itemsize) - 1


def _mask_sizes(
    spectrogram: Tensor, bands: int, shared: bool, value: float
) -> tuple[int, int, int, int, int, bool, int, int]:
    *_, freq, time = spectrogram.shape
    return (
        spectrogram.numel() // (freq * time),
        freq,
        time,
        native.threads(),
        bands,
        shared,
        spectrogram.element_size(),
        _bits(value, math.copysign(1.0, value), spectrogram.dtype),
    )


def _mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float, out: Tensor) -> None:
    if out.numel() == 0:
        return
    bands = start.shape[-1]
    shared = start.numel() == bands
    if not shared:
        start, width = (t.expand(*spectrogram.shape[:-2], bands) for t in (start, width))
    start, width = start.to(torch.int64).contiguous(), width.to(torch.int64).contiguous()
    assert native.extension is not None
    native.extension.frequency_mask(
        *_mask_sizes(spectrogram, bands, shared, value),
        _address(start),
        _address(width),
        _address(spectrogram),
        _address(out),
    )


def frequency_mask(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> Tensor:
    """See reference.frequency_mask; contiguous."""
    spectrogram = spectrogram.contiguous()
    assert native.extension is not None
    out: Tensor = native.extension.empty_spectrogram(spectrogram.shape, spectrogram.dtype)
    _mask(spectrogram, start, width, value, out)
    return out


def frequency_mask_(spectrogram: Tensor, start: Tensor, width: Tensor, value: float) -> None:
    """Mask a contiguous spectrogram in place."""
    _mask(spectrogram, start, width, value, spectrogram)


def mask_randomly(
    spectrogram: Tensor, widest: int, bands: int, iid: bool, value: float, inplace: bool
) -> Tensor | None:
    """See functional.random_frequency_mask; None, before anything is drawn, where this is not for the tensor
    (csrc/masking.h)."""
    if native.extension is None or _isa_error is not None or spectrogram.dtype not in MASK_DTYPES:
        return None
    if type(widest) is not int or type(bands) is not int:
        return None
    bits = _bits(value, math.copysign(1.0, value), spectrogram.dtype)
    out: Tensor | None = native.extension.mask_randomly(spectrogram, widest, bands, iid, bits, inplace)
    return out
