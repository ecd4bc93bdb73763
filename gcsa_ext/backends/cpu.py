"""Backend "cpu": the C++ kernels of csrc/cpu, called by the functions of csrc/python, which take tensors.

Arguments are checked by gcsa_ext/ops, on the CPU, and of a dtype of `DTYPES` (`MASK_DTYPES` for
spectrogram_mask). Results are new tensors in the layout of the first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gcsa_ext import reference
from gcsa_ext.backends import native
from gcsa_ext.backends.bits import element_bits, unsigned_bits
from gcsa_ext.backends.operands import Arguments, expand_bands
from gcsa_ext.layout import memory_format
from gcsa_ext.reference import accumulator_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
MASK_DTYPES = (*DTYPES, torch.float16)

_CPU = torch.device("cpu")


def unsupported(operator: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run `operator` on such tensors, or None if it can."""
    reason = native.load_error or _isa_error
    if reason is not None:
        return reason
    if device != _CPU and device.type != "cpu":  # `!=` is much faster and nearly always decides
        return f"the cpu backend takes tensors on the CPU, not on {device}"
    dtypes = MASK_DTYPES if operator.startswith("spectrogram_mask") else DTYPES
    if dtype not in dtypes:
        return f"the cpu backend has {operator} for {', '.join(map(str, dtypes))}, not {dtype}"
    return None


def takes(a: Arguments) -> bool:
    """The kernels of gcsa take all arguments."""
    return True


def isa() -> str:
    """The instruction set in use: "baseline", "avx2", "avx512" or "amx" (AVX-512 and matrix registers).

    Raises:
        RuntimeError: GCSA_EXT_CPU_ISA names an instruction set that is unknown or that this processor lacks.
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
HAS_AMX = native.extension is not None and _isa_error is None and isa() == "amx"


def explain_convolution(x: Tensor, weight: Tensor) -> tuple[str, str]:
    """The algorithm of `conv2d_same` for x (N, C, H, W) and weight (O, C, k, k), and the reason for it.

    The algorithm is "fft", "amx" (the matrix registers) or "direct" (torch's convolution). The limits between
    them were measured against torch's convolution (oneDNN) on 2 cores with AVX-512, those for bfloat16 with
    AMX, with kernels of 3 to 11, 4 to 256 channels and maps of 7x7 to 56x56: ``python
    benchmarks/crossover.py``.
    """
    (N, C, H, W), (out_channels, k) = x.shape, weight.shape[::3]
    positions = N * H * W
    if k > 11:
        return "direct", f"no tile for a {k}x{k} kernel"
    if HAS_AMX and x.dtype == torch.bfloat16:
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
    """See reference.conv2d_same; by the algorithm of `explain_convolution`."""
    if explain_convolution(x, weight)[0] == "direct":
        return reference.conv2d_same(x, weight, bias).contiguous(memory_format=memory_format(x))
    assert native.extension is not None
    out: Tensor = native.extension.convolution(x, weight, bias)
    return out


def conv2d_same_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, None where not needed; by the algorithm of `explain_convolution`."""
    if explain_convolution(x, weight)[0] == "direct":
        p = weight.shape[-1] // 2
        needs = [need_x, need_weight, False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_out, x, weight, None, [1, 1], [p, p], [1, 1], False, [0, 0], 1, needs
        )
        return grad_x, grad_weight
    assert native.extension is not None
    grad_x, grad_weight = native.extension.convolution_backward(grad_out, x, weight, need_x, need_weight)
    return grad_x, grad_weight


def saved_shape(channels: int, x: Tensor) -> tuple[int, int, int, int]:
    """The shape in which gcsa saves a convolution's output: channels padded to whole vectors of 64 bytes."""
    N, _, H, W = x.shape
    lanes = 64 // accumulator_dtype(x.dtype).itemsize
    return N, (channels + lanes - 1) // lanes * lanes, H, W


def release_workspace() -> int:
    """Free the cached workspaces of the kernels; returns their size in bytes."""
    return 0 if native.extension is None else int(native.extension.release_scratch())


def _mask_into(
    out: Tensor,
    spectrogram: Tensor,
    start: Tensor,
    width: Tensor,
    value: float,
    time_bands: int,
    fill: Tensor | None,
) -> None:
    """Write the masked spectrogram to `out`, which may be the spectrogram itself; both are contiguous."""
    start, width, _ = expand_bands(spectrogram, start, width)
    if start.dtype != torch.int64 or width.dtype != torch.int64:
        start, width = start.to(torch.int64), width.to(torch.int64)
    bits = unsigned_bits(value, spectrogram.dtype) if fill is None else element_bits(fill)
    assert native.extension is not None
    native.extension.mask_into(out, spectrogram, start, width, min(time_bands, start.shape[-1]), bits)


def spectrogram_mask(spectrogram: Tensor, *args: Any) -> Tensor:
    """See reference.spectrogram_mask; the result is contiguous."""
    spectrogram = spectrogram.contiguous()
    assert native.extension is not None
    out: Tensor = native.extension.empty_spectrogram(spectrogram)
    _mask_into(out, spectrogram, *args)
    return out


def spectrogram_mask_(spectrogram: Tensor, *args: Any) -> None:
    """Mask a contiguous spectrogram in place."""
    _mask_into(spectrogram, spectrogram, *args)


operators: Mapping[str, Callable[..., Any]] = {}
if native.extension is not None:
    operators = {
        "channel_gate": native.extension.channel_gate,
        "channel_gate_backward": native.extension.channel_gate_backward,
        "conv2d_same": conv2d_same,
        "conv2d_same_backward": conv2d_same_backward,
        "gcsa": native.extension.gcsa,
        "gcsa_backward": native.extension.gcsa_backward,
        "gcsa_inference": native.extension.gcsa_inference,
        "norm_gate": native.extension.norm_gate,
        "norm_gate_backward": native.extension.norm_gate_backward,
        "saved_shape": saved_shape,
        "spectrogram_mask": spectrogram_mask,
        "spectrogram_mask_": spectrogram_mask_,
    }
