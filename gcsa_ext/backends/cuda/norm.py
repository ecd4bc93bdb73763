"""The launches of batch normalisation with what follows it, see csrc/cuda/norm.h.

Sums over positions are made in two stages without atomic additions, in an order that depends on the shape
and on whether maps begin at a multiple of 16 bytes, so that two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcsa_ext.backends.cuda.launch import ELEMENTS, VECTOR_ELEMENTS, address, kernels, target
from gcsa_ext.backends.gpu import Norm, NormGradients


def _is_last(layout: torch.memory_format) -> bool:
    return layout == torch.channels_last


def _vector(vector: Tensor | None) -> tuple[int, int]:
    return (0, 0) if vector is None else (vector.data_ptr(), VECTOR_ELEMENTS[vector.dtype])


def _sizes(u: Tensor) -> tuple[int, int, int]:
    N, C, H, W = u.shape
    return N, C, H * W


def _parts(u: Tensor, last: bool, other_last: bool) -> int:
    """How many partial sums there are of each channel."""
    return int(kernels().norm_parts(ELEMENTS[u.dtype], last, last != other_last, *_sizes(u)))


def batch_statistics(u: Tensor, offset: Tensor | None, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float32 (C,), of u + offset over all positions of u (N, C, H, W)."""
    last, C = _is_last(layout), u.shape[1]
    mean, var = (u.new_empty(C, dtype=torch.float32) for _ in range(2))
    partial = u.new_empty((3, _parts(u, last, last), C), dtype=torch.float32)
    kernels().norm_statistics(
        target(u),
        ELEMENTS[u.dtype],
        last,
        *_sizes(u),
        address(u),
        _vector(offset),
        *map(address, (mean, var, partial)),
    )
    return mean, var


def _mixes(u: Tensor, layout: torch.memory_format) -> bool:
    """Whether there are kernels for another map that is contiguous: where u, of 16 bits, is channels_last, as
    all maps inside of a GCSA are."""
    return _is_last(layout) and u.dtype.itemsize == 2


def _normalisation(norm: Norm) -> tuple[object, ...]:
    vectors = map(_vector, (norm.weight, norm.bias, norm.offset))
    return *vectors, address(norm.mean), address(norm.var)


def norm_forward(
    u: Tensor,
    z: Tensor | None,
    norm: Norm,
    layout: torch.memory_format,
    out_layout: torch.memory_format,
    z_layout: torch.memory_format | None = None,
    add_to: Tensor | None = None,
) -> Tensor:
    """z * sigmoid(norm(u)), or relu(norm(u)) without z; u (N, C, H, W) in `layout`, z in `z_layout` or in
    that of u, the result in `out_layout`: a new map, or what `add_to` holds with this added to it."""
    z_layout = z_layout or layout
    if z is not None and z_layout != layout and not (_mixes(u, layout) and out_layout == layout):
        z, z_layout = z.contiguous(memory_format=layout), layout
    if out_layout != layout and (add_to is not None or not _mixes(u, layout)):
        out = norm_forward(u, z, norm, layout, layout, z_layout)
        return out.contiguous(memory_format=out_layout) if add_to is None else add_to.add_(out)
    out = torch.empty_like(u, memory_format=out_layout) if add_to is None else add_to
    kernels().norm_forward(
        target(u),
        ELEMENTS[u.dtype],
        tuple(map(_is_last, (layout, z_layout, out_layout))),
        add_to is not None,
        *_sizes(u),
        norm.eps,
        address(u),
        address(z),
        *_normalisation(norm),
        address(out),
    )
    return out


def norm_backward(
    grad: Tensor,
    u: Tensor,
    z: Tensor | None,
    norm: Norm,
    batch_statistics: bool,
    need: Sequence[bool],
    layout: torch.memory_format,
    grad_layout: torch.memory_format,
    need_sums: bool = False,
) -> NormGradients:
    """The gradients of u, z, weight and bias that are needed; `grad` in `grad_layout`, all else in `layout`.

    With `batch_statistics` norm.mean and norm.var depend on u. The gradient of u then needs sums over all
    positions, hence two passes over the maps, and one pass otherwise.
    """
    need_u, need_z, need_weight, need_bias = need
    if grad_layout != layout and not _mixes(u, layout):
        grad, grad_layout = grad.contiguous(memory_format=layout), layout
    C = u.shape[1]
    grad_u = torch.empty_like(u, memory_format=layout) if need_u else None
    grad_z = torch.empty_like(u, memory_format=layout) if need_z and z is not None else None
    grad_weight = torch.empty_like(norm.weight) if need_weight and norm.weight is not None else None
    grad_bias = torch.empty_like(norm.bias) if need_bias and norm.bias is not None else None

    def run(
        grad_u: Tensor | None, grad_z: Tensor | None, sums: Tensor | None, partial: Tensor | None
    ) -> None:
        kernels().norm_backward(
            target(u),
            ELEMENTS[u.dtype],
            _is_last(layout),
            _is_last(grad_layout),
            *_sizes(u),
            norm.eps,
            address(u),
            address(z),
            *_normalisation(norm),
            *map(address, (grad, grad_u, grad_z, sums, partial)),
        )

    first_for_sums = batch_statistics and need_u
    sums = None
    if first_for_sums or need_sums or grad_weight is not None or grad_bias is not None:
        parts = _parts(u, _is_last(layout), _is_last(grad_layout))
        partial = u.new_empty((parts, 2, C), dtype=torch.float32)
        sums = u.new_empty(2 * C, dtype=torch.float32)
        if first_for_sums:
            run(None, None, None, partial)
        else:
            run(grad_u, grad_z, None, partial)
        kernels().norm_sums(
            target(u), parts, C, address(partial), address(sums), _vector(grad_weight), _vector(grad_bias)
        )
    if first_for_sums:
        run(grad_u, grad_z, sums, None)
    elif sums is None and (grad_u is not None or grad_z is not None):
        run(grad_u, grad_z, None, None)
    return NormGradients(grad_u, grad_z, grad_weight, grad_bias, sums)
