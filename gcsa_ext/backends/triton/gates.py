"""The launches of the channel gate and of batch normalisation with what follows it.

Maps come contiguous in the given layout; vectors in any floating dtype. Sums over positions are made in two
stages without atomic additions, so that two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.gpu import Norm, NormGradients
from gcsa_ext.backends.triton.kernels import batch_norm
from gcsa_ext.backends.triton.kernels import channel_gate as channel_gate_kernels
from gcsa_ext.backends.triton.launch import Sizes, is_last, power_of_two, precision, programs, sum_partials
from gcsa_ext.backends.triton.tuning import Configuration, launch_fastest

LARGEST_HIDDEN = 256
"""Hidden units of the channel gate that a program holds for its positions. Beyond, matrix products are
nearly all of the time, and torch's are left to do them."""


class _Blocks(NamedTuple):
    channels: int
    positions: int
    warps: int

    def constants(self, channels: int, hidden: int) -> Configuration:
        """For a gate of so many channels and hidden units; tl.dot wants 16 of everything."""
        return {
            "BLOCK_C": min(power_of_two(channels, 16), self.channels),
            "BLOCK_H": power_of_two(hidden, 16),
            "BLOCK_P": self.positions,
            "num_warps": self.warps,
        }


# By hidden units rounded up, for any number of channels: the largest blocks for which code for sm_90 keeps
# everything in registers, but for a little in the last row. float32 products run on ordinary units, where
# operands take registers too.
_FORWARD_16_BIT = {
    16: _Blocks(64, 64, 4),
    32: _Blocks(128, 64, 8),
    64: _Blocks(64, 64, 8),
    128: _Blocks(64, 32, 8),
    256: _Blocks(32, 32, 8),
}
_FORWARD_32_BIT = {
    16: _Blocks(64, 32, 4),
    32: _Blocks(32, 32, 4),
    64: _Blocks(32, 32, 8),
    128: _Blocks(16, 32, 8),
    256: _Blocks(16, 16, 8),
}
_BACKWARD_16_BIT = {
    16: _Blocks(32, 32, 4),
    32: _Blocks(32, 32, 4),
    64: _Blocks(32, 32, 4),
    128: _Blocks(32, 32, 8),
    256: _Blocks(16, 16, 8),
}
_BACKWARD_32_BIT = {
    16: _Blocks(32, 32, 8),
    32: _Blocks(32, 32, 8),
    64: _Blocks(16, 32, 8),
    128: _Blocks(16, 16, 8),
    256: _Blocks(16, 16, 8),
}


def takes_channel_gate(channels: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether a program can hold so many hidden units."""
    return hidden <= LARGEST_HIDDEN


def fits_one_block(channels: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether a program holds all channels of its positions, and the sums of the weights' gradients."""
    all_channels, units = power_of_two(channels, 16), power_of_two(hidden, 16)
    return all_channels <= 128 and all_channels * units <= (4096 if dtype.itemsize == 2 else 1024)


def forward_blocks(channels: int, hidden: int, dtype: torch.dtype) -> Configuration:
    """Of `channel_gate_forward` where all fits one block, else of `channel_gate_forward_split`."""
    if fits_one_block(channels, hidden, dtype):
        if dtype.itemsize == 2:
            return _Blocks(128, 64, 4 if channels <= 64 else 8).constants(channels, hidden)
        return _Blocks(64, 32, 8).constants(channels, hidden)
    table = _FORWARD_16_BIT if dtype.itemsize == 2 else _FORWARD_32_BIT
    return table[power_of_two(hidden, 16)].constants(channels, hidden)


def backward_blocks(channels: int, hidden: int, dtype: torch.dtype) -> Configuration:
    """Of `channel_gate_backward` where all fits one block, else of `channel_gate_backward_x` and
    `..._weights`."""
    if fits_one_block(channels, hidden, dtype):
        if dtype.itemsize == 2:
            return _Blocks(128, 32, 4 if channels <= 64 else 8).constants(channels, hidden)
        return _Blocks(64, 16, 8).constants(channels, hidden)
    table = _BACKWARD_16_BIT if dtype.itemsize == 2 else _BACKWARD_32_BIT
    return table[power_of_two(hidden, 16)].constants(channels, hidden)


def contiguous_groups(groups: int, x: Tensor, layout: torch.memory_format, blocks: Configuration) -> int:
    """The number of groups where tiles are in the order of x's channels, else 0; see the kernels.

    Not for float32: its products on ordinary units leave no registers for that, and values to be gathered are
    twice as wide.
    """
    if not is_last(layout) or x.dtype.itemsize != 2:
        return 0
    return groups if 1 < groups <= blocks["BLOCK_C"] and groups == power_of_two(groups) else 0


def with_stages(blocks: Configuration, *stages: int) -> list[Configuration]:
    """The same blocks, with loads issued so many stages, less one, ahead of their use; Triton's default is
    3."""
    return [{**blocks, "num_stages": number} for number in stages]


def channel_gate(
    x: Tensor,
    weights: Sequence[Tensor],
    groups: int,
    sigmoid: bool,
    layout: torch.memory_format,
    out_layout: torch.memory_format,
) -> Tensor:
    """See reference.channel_gate; x (N, C, H, W) in `layout`, the result in `out_layout`; not empty.

    The weights w1 (h, C), b1, w2 (C, h), b2 are contiguous, of any floating dtype, and rounded to that of x.
    """
    sizes, h = Sizes.of(x), weights[0].shape[0]
    out = torch.empty_like(x, memory_format=out_layout)
    fits = fits_one_block(sizes.channels, h, x.dtype)
    kernel = (
        channel_gate_kernels.channel_gate_forward if fits else channel_gate_kernels.channel_gate_forward_split
    )

    def launch(blocks: Configuration) -> None:
        count = triton.cdiv(sizes.positions, blocks["BLOCK_P"])
        kernel[(min(programs(x, 4), count) if fits else count,)](
            x,
            *weights,
            out,
            *sizes.arguments,
            h,
            groups,
            **sizes.constants,
            X_LAST=is_last(layout),
            OUT_LAST=is_last(out_layout),
            SIGMOID=sigmoid,
            PRECISION=precision(x),
            GROUPS=contiguous_groups(groups, x, layout, blocks),
            **blocks,
        )

    shape_class = ("channel_gate", *sizes.shape_class, h, groups, layout, out_layout, precision(x))
    blocks = forward_blocks(sizes.channels, h, x.dtype)
    # float32 with other numbers would take more registers than there are.
    stages = (3, 2) if fits or x.dtype.itemsize == 2 else (3,)
    launch_fastest(shape_class, with_stages(blocks, *stages), launch, x)
    return out


def channel_gate_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    groups: int,
    sigmoid: bool,
    layout: torch.memory_format,
    grad_layout: torch.memory_format,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x, in its `layout`, and of the weights, from that of the result, `grad`."""
    sizes, h = Sizes.of(x), weights[0].shape[0]
    C = sizes.channels
    grad_x = torch.empty_like(x, memory_format=layout) if need_x else None
    found = [torch.empty_like(w) if need_weights else None for w in weights]
    constants = {
        **sizes.constants,
        "X_LAST": is_last(layout),
        "GRAD_LAST": is_last(grad_layout),
        "SIGMOID": sigmoid,
        "PRECISION": precision(x),
    }
    partial = None
    lengths = [w.numel() for w in weights]

    blocks = backward_blocks(C, h, x.dtype)
    constants["GROUPS"] = contiguous_groups(groups, x, layout, blocks)
    if fits_one_block(C, h, x.dtype):
        count = min(programs(x, 12 // blocks["num_warps"]), triton.cdiv(sizes.positions, blocks["BLOCK_P"]))
        if need_weights:
            partial = x.new_empty((count, sum(lengths)), dtype=torch.float32)

        def launch(blocks: Configuration) -> None:
            channel_gate_kernels.channel_gate_backward[(count,)](
                *(grad, x, *weights, grad_x, partial, *sizes.arguments, h, groups), **constants, **blocks
            )

        wanted = need_x, need_weights
        shape_class = (
            "channel_gate_backward",
            *sizes.shape_class,
            h,
            groups,
            layout,
            grad_layout,
            precision(x),
        )
        launch_fastest((*shape_class, *wanted), with_stages(blocks, 3, 2), launch, x)
    else:
        hidden, g1 = (x.new_empty((h, sizes.positions)) if need_weights else None for _ in range(2))
        along_p, along_c = triton.cdiv(sizes.positions, blocks["BLOCK_P"]), triton.cdiv(C, blocks["BLOCK_C"])
        channel_gate_kernels.channel_gate_backward_x[(along_p,)](
            grad,
            x,
            *weights,
            grad_x,
            hidden,
            g1,
            *sizes.arguments,
            h,
            groups,
            **constants,
            **blocks,
        )
        if need_weights:
            count = min(triton.cdiv(programs(x, 2), along_c), along_p)
            partial = x.new_empty((count, sum(lengths)), dtype=torch.float32)
            channel_gate_kernels.channel_gate_backward_weights[(count, along_c)](
                grad,
                x,
                *weights[2:],
                hidden,
                g1,
                partial,
                *sizes.arguments,
                h,
                groups,
                **constants,
                **blocks,
            )
    if partial is not None:
        sum_partials(partial, found, lengths)
    return grad_x, found


def norm_blocks(channels: int, *layouts: torch.memory_format, values: int = 1024) -> Configuration:
    """Blocks of so many values, long in the direction that is contiguous: in both, where layouts differ.

    With very many channels blocks hold more of them, since a grid has at most 65535 programs along these.
    """
    most = 64 if all(map(is_last, layouts)) else 32 if any(map(is_last, layouts)) else 4
    block = min(power_of_two(channels), max(most, power_of_two(triton.cdiv(channels, 65535))))
    return {"BLOCK_C": block, "BLOCK_P": max(1, values // block), "num_warps": 4}


def elementwise_blocks(channels: int, *layouts: torch.memory_format) -> list[Configuration]:
    """For passes without sums, whose blocks may be of any size."""
    return [norm_blocks(channels, *layouts, values=values) for values in (1024, 2048)]


def _splits(x: Tensor, along_p: int, along_c: int) -> int:
    """How many programs share the positions of a block of channels."""
    return min(along_p, -(-programs(x, 4) // along_c))


def batch_statistics(u: Tensor, offset: Tensor | None, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float32 (C,), of u + offset over all positions of u (N, C, H, W)."""
    sizes = Sizes.of(u)
    blocks = norm_blocks(sizes.channels, layout)
    along_p = triton.cdiv(sizes.positions, blocks["BLOCK_P"])
    along_c = triton.cdiv(sizes.channels, blocks["BLOCK_C"])
    parts = _splits(u, along_p, along_c)
    mean, var = (u.new_empty(sizes.channels, dtype=torch.float32) for _ in range(2))
    partial = u.new_empty((3, parts, sizes.channels), dtype=torch.float32) if parts > 1 else None
    batch_norm.batch_statistics[(parts, along_c)](
        u,
        offset,
        mean,
        var,
        partial,
        *sizes.arguments,
        **sizes.constants,
        LAST=is_last(layout),
        AHEAD=4,
        **blocks,
    )
    if partial is not None:
        block = 16
        batch_norm.merge_statistics[(triton.cdiv(sizes.channels, block),)](
            partial, offset, mean, var, sizes.channels, parts, BLOCK_C=block, BLOCK_PARTS=128
        )
    return mean, var


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
    sizes, z_layout = Sizes.of(u), z_layout or layout
    out = torch.empty_like(u, memory_format=out_layout) if add_to is None else add_to

    def launch(blocks: Configuration) -> None:
        grid = (
            triton.cdiv(sizes.positions, blocks["BLOCK_P"]),
            triton.cdiv(sizes.channels, blocks["BLOCK_C"]),
        )
        batch_norm.norm_forward[grid](
            u,
            z,
            *norm[:5],
            out,
            norm.eps,
            *sizes.arguments,
            **sizes.constants,
            LAST=is_last(layout),
            Z_LAST=is_last(z_layout),
            OUT_LAST=is_last(out_layout),
            ADD=add_to is not None,
            **blocks,
        )

    configurations = elementwise_blocks(sizes.channels, layout, z_layout, out_layout)
    if add_to is None:
        shape_class = ("norm_forward", *sizes.shape_class, z is None, layout, z_layout, out_layout)
        launch_fastest(shape_class, configurations, launch, u)
    else:  # once is enough
        launch(configurations[0])
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
    sizes = Sizes.of(u)
    C = sizes.channels
    grad_u = torch.empty_like(u, memory_format=layout) if need_u else None
    grad_z = torch.empty_like(u, memory_format=layout) if need_z and z is not None else None
    grad_weight = torch.empty_like(norm.weight) if need_weight and norm.weight is not None else None
    grad_bias = torch.empty_like(norm.bias) if need_bias and norm.bias is not None else None
    configurations = elementwise_blocks(C, layout, grad_layout)

    def run(blocks: Configuration, count: int, wanted: tuple[Tensor | None, ...]) -> None:
        """`wanted`: sums, as far as they are known, then what is to be written: see the kernel."""
        batch_norm.norm_backward[(count, triton.cdiv(C, blocks["BLOCK_C"]))](
            *(grad, u, z, *norm[:5], *wanted, norm.eps),
            *sizes.arguments,
            **sizes.constants,
            GRAD_LAST=is_last(grad_layout),
            LAST=is_last(layout),
            AHEAD=1 if wanted[-1] is None else 3,
            **blocks,
        )

    first_for_sums = batch_statistics and need_u
    sums = None
    if first_for_sums or need_sums or grad_weight is not None or grad_bias is not None:
        blocks = configurations[0]  # always the same, since the order of a sum depends on it
        along_p, along_c = triton.cdiv(sizes.positions, blocks["BLOCK_P"]), triton.cdiv(C, blocks["BLOCK_C"])
        parts = _splits(u, along_p, along_c)
        partial = u.new_empty((parts, 2 * C), dtype=torch.float32)
        sums = u.new_empty(2 * C, dtype=torch.float32)
        outputs = (None, None) if first_for_sums else (grad_u, grad_z)
        run(blocks, parts, (None, *outputs, partial))
        sum_partials(partial, (grad_weight, grad_bias), (C, C), sums)
    if first_for_sums or (sums is None and (grad_u is not None or grad_z is not None)):

        def launch(blocks: Configuration) -> None:
            run(blocks, triton.cdiv(sizes.positions, blocks["BLOCK_P"]), (sums, grad_u, grad_z, None))

        wanted = z is None, sums is None, grad_u is None, grad_z is None
        shape_class = ("norm_backward", *sizes.shape_class, *wanted, layout, grad_layout)
        launch_fastest(shape_class, configurations, launch, u)
    return NormGradients(grad_u, grad_z, grad_weight, grad_bias, sums)
