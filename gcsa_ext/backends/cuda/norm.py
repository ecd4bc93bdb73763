"""The launches of batch normalisation and the gate or relu behind it, see csrc/cuda/norm.h.

Sums over positions are computed in two stages without atomic additions. Their order depends on the shape and
on whether maps begin at a multiple of 16 bytes, so two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcsa_ext.backends.cuda.launch import ELEMENTS, address, kernels, target, vector
from gcsa_ext.backends.gpu import Norm, NormGradients
from gcsa_ext.backends.gpu.maps import is_last


def _sizes(u: Tensor) -> tuple[int, int, int]:
    N, C, H, W = u.shape
    return N, C, H * W


def _parts(u: Tensor, last: bool, other_last: bool) -> int:
    """The number of partial sums of each channel."""
    return int(kernels().norm_parts(ELEMENTS[u.dtype], last, last != other_last, *_sizes(u)))


def batch_statistics(u: Tensor, offset: Tensor | None, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """See `Gates.batch_statistics`."""
    last, C = is_last(layout), u.shape[1]
    mean, var = (u.new_empty(C, dtype=torch.float32) for _ in range(2))
    partial = u.new_empty((3, _parts(u, last, last), C), dtype=torch.float32)
    kernels().norm_statistics(
        target(u),
        ELEMENTS[u.dtype],
        last,
        *_sizes(u),
        address(u),
        vector(offset),
        *map(address, (mean, var, partial)),
    )
    return mean, var


def _takes_contiguous_maps(u: Tensor, layout: torch.memory_format) -> bool:
    """Whether there are kernels for u in channels_last beside other maps that are contiguous.

    There are for 16-bit maps: those inside a GCSA are in channels_last, those outside may be contiguous.
    """
    return is_last(layout) and u.dtype.itemsize == 2


def _normalisation(norm: Norm) -> tuple[object, ...]:
    """The arguments of the compiled functions that describe `norm`."""
    if not norm.sigmoid:
        raise NotImplementedError("the CUDA kernels have the spatial gate with its sigmoid only")
    vectors = map(vector, (norm.weight, norm.bias, norm.offset))
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
    """See `Gates.norm_forward`. Maps in layouts for which there is no kernel are copied."""
    z_layout = z_layout or layout
    contiguous_maps = _takes_contiguous_maps(u, layout)
    if z is not None and z_layout != layout and not (contiguous_maps and out_layout == layout):
        z, z_layout = z.contiguous(memory_format=layout), layout
    if out_layout != layout and (add_to is not None or not contiguous_maps):
        out = norm_forward(u, z, norm, layout, layout, z_layout)
        return out.contiguous(memory_format=out_layout) if add_to is None else add_to.add_(out)
    out = torch.empty_like(u, memory_format=out_layout) if add_to is None else add_to
    kernels().norm_forward(
        target(u),
        ELEMENTS[u.dtype],
        tuple(map(is_last, (layout, z_layout, out_layout))),
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
    """See `Gates.norm_backward`.

    With `batch_statistics` the gradient of u needs sums over all positions, hence two passes over the maps.
    All else takes one pass.
    """
    if grad_layout != layout and not _takes_contiguous_maps(u, layout):
        grad, grad_layout = grad.contiguous(memory_format=layout), layout
    C = u.shape[1]
    grads = NormGradients.empty(u, z, norm, need, layout)
    grad_u, grad_z, grad_weight, grad_bias, _ = grads

    def run(
        grad_u: Tensor | None, grad_z: Tensor | None, sums: Tensor | None, partial: Tensor | None
    ) -> None:
        """One pass over the maps, which writes the gradients and partial sums that are not None."""
        kernels().norm_backward(
            target(u),
            ELEMENTS[u.dtype],
            is_last(layout),
            is_last(grad_layout),
            *_sizes(u),
            norm.eps,
            address(u),
            address(z),
            *_normalisation(norm),
            *map(address, (grad, grad_u, grad_z, sums, partial)),
        )

    two_passes = batch_statistics and grad_u is not None
    sums = None
    if two_passes or need_sums or grad_weight is not None or grad_bias is not None:
        parts = _parts(u, is_last(layout), is_last(grad_layout))
        partial = u.new_empty((parts, 2, C), dtype=torch.float32)
        sums = u.new_empty(2 * C, dtype=torch.float32)
        if two_passes:
            run(None, None, None, partial)
        else:
            run(grad_u, grad_z, None, partial)
        kernels().norm_sums(
            target(u), parts, C, address(partial), address(sums), vector(grad_weight), vector(grad_bias)
        )
    if two_passes:
        run(grad_u, grad_z, sums, None)
    elif sums is None and (grad_u is not None or grad_z is not None):
        run(grad_u, grad_z, None, None)
    return grads._replace(sums=sums)
