"""The launches of the channel gate, and of batch normalisation and the gate or relu behind it.

gcsa_ext/backends/gpu/launches.py has their contract. Sums over positions are computed in two stages without
atomic additions, so two runs give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gcsa_ext.backends.gpu import ChannelGate, Norm, NormGradients
from gcsa_ext.backends.gpu.maps import is_last
from gcsa_ext.backends.triton.kernels import batch_norm
from gcsa_ext.backends.triton.kernels import channel_gate as channel_gate_kernels
from gcsa_ext.backends.triton.launch import Sizes, power_of_two, precision, programs, sum_partials
from gcsa_ext.backends.triton.tuning import Configuration, launch_fastest

LARGEST_HIDDEN = 256
"""The largest number of hidden units of the channel gate that a program can hold for its positions. A larger
gate spends nearly all of its time in matrix products, and torch computes it."""


class _Blocks(NamedTuple):
    """The largest number of channels, the number of positions and the number of warps of a program."""

    channels: int
    positions: int
    warps: int

    def constants(self, channels: int, hidden: int) -> Configuration:
        """The constants of a kernel for these numbers of channels and units; tl.dot needs at least 16."""
        return {
            "BLOCK_C": min(power_of_two(channels, 16), self.channels),
            "BLOCK_H": power_of_two(hidden, 16),
            "BLOCK_P": self.positions,
            "num_warps": self.warps,
        }


# By the number of hidden units, rounded up to a power of two: the largest blocks for which code for sm_90
# keeps everything in registers (in the last row nearly everything). float32 products run on ordinary units,
# whose operands take registers too. Columns: 16 bits forward and backward, 32 bits forward and backward.
_SPLIT_BLOCKS = {
    16: (_Blocks(64, 64, 4), _Blocks(32, 32, 4), _Blocks(64, 32, 4), _Blocks(32, 32, 8)),
    32: (_Blocks(128, 64, 8), _Blocks(32, 32, 4), _Blocks(32, 32, 4), _Blocks(32, 32, 8)),
    64: (_Blocks(64, 64, 8), _Blocks(32, 32, 4), _Blocks(32, 32, 8), _Blocks(16, 32, 8)),
    128: (_Blocks(64, 32, 8), _Blocks(32, 32, 8), _Blocks(16, 32, 8), _Blocks(16, 16, 8)),
    256: (_Blocks(32, 32, 8), _Blocks(16, 16, 8), _Blocks(16, 16, 8), _Blocks(16, 16, 8)),
}


def takes_channel_gate(channels: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether a program can hold `hidden` units."""
    return hidden <= LARGEST_HIDDEN


def fits_one_block(channels: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether a program can hold all channels of its positions, and the sums of the weights' gradients."""
    all_channels, units = power_of_two(channels, 16), power_of_two(hidden, 16)
    return all_channels <= 128 and all_channels * units <= (4096 if dtype.itemsize == 2 else 1024)


def _blocks(channels: int, hidden: int, dtype: torch.dtype, backward: bool) -> Configuration:
    is_wide = dtype.itemsize != 2
    if not fits_one_block(channels, hidden, dtype):
        blocks = _SPLIT_BLOCKS[power_of_two(hidden, 16)][2 * is_wide + backward]
    elif is_wide:
        blocks = _Blocks(64, 16 if backward else 32, 8)
    else:
        blocks = _Blocks(128, 32 if backward else 64, 4 if channels <= 64 else 8)
    return blocks.constants(channels, hidden)


def forward_blocks(channels: int, hidden: int, dtype: torch.dtype) -> Configuration:
    """The blocks of `channel_gate_forward` where `fits_one_block`, else of `channel_gate_forward_split`."""
    return _blocks(channels, hidden, dtype, backward=False)


def backward_blocks(channels: int, hidden: int, dtype: torch.dtype) -> Configuration:
    """The blocks of `channel_gate_backward` where `fits_one_block`, else of `channel_gate_backward_x` and
    `channel_gate_backward_weights`."""
    return _blocks(channels, hidden, dtype, backward=True)


def contiguous_groups(groups: int, x: Tensor, layout: torch.memory_format, blocks: Configuration) -> int:
    """The kernels' constant GROUPS: `groups` if tiles are in the order of the channels of x, else 0.

    It is 0 for float32. Products on ordinary units leave no registers for the transposition, and gathering
    float32 values costs less per byte.
    """
    if not is_last(layout) or x.dtype.itemsize != 2:
        return 0
    return groups if 1 < groups <= blocks["BLOCK_C"] and groups == power_of_two(groups) else 0


def with_stages(blocks: Configuration, *stages: int) -> list[Configuration]:
    """The same blocks with each number of pipeline stages: loads are issued stages - 1 steps ahead of use.

    Triton's default is 3.
    """
    return [{**blocks, "num_stages": number} for number in stages]


def channel_gate(
    x: Tensor, gate: ChannelGate, layout: torch.memory_format, out_layout: torch.memory_format
) -> Tensor:
    """See `Gates.channel_gate`."""
    weights, groups, sigmoid = gate
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
    # For float32 any other number of stages needs more registers than there are.
    stages = (3, 2) if fits or x.dtype.itemsize == 2 else (3,)
    launch_fastest(shape_class, with_stages(blocks, *stages), launch, x)
    return out


def channel_gate_backward(
    grad: Tensor,
    x: Tensor,
    gate: ChannelGate,
    layout: torch.memory_format,
    grad_layout: torch.memory_format,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """See `Gates.channel_gate_backward`."""
    weights, groups, sigmoid = gate
    sizes, h = Sizes.of(x), weights[0].shape[0]
    C = sizes.channels
    grad_x = torch.empty_like(x, memory_format=layout) if need_x else None
    grads = [torch.empty_like(w) if need_weights else None for w in weights]
    lengths = [w.numel() for w in weights]
    blocks = backward_blocks(C, h, x.dtype)
    constants = {
        **sizes.constants,
        "X_LAST": is_last(layout),
        "GRAD_LAST": is_last(grad_layout),
        "SIGMOID": sigmoid,
        "PRECISION": precision(x),
        "GROUPS": contiguous_groups(groups, x, layout, blocks),
    }
    settings = (*sizes.arguments, h, groups)
    along_p, along_c = triton.cdiv(sizes.positions, blocks["BLOCK_P"]), triton.cdiv(C, blocks["BLOCK_C"])
    partial = None
    if fits_one_block(C, h, x.dtype):
        count = min(programs(x, 12 // blocks["num_warps"]), along_p)
        if need_weights:
            partial = x.new_empty((count, sum(lengths)), dtype=torch.float32)

        def launch(blocks: Configuration) -> None:
            channel_gate_kernels.channel_gate_backward[(count,)](
                *(grad, x, *weights, grad_x, partial, *settings), **constants, **blocks
            )

        key = (*sizes.shape_class, h, groups, layout, grad_layout, precision(x), need_x, need_weights)
        launch_fastest(("channel_gate_backward", *key), with_stages(blocks, 3, 2), launch, x)
    else:
        hidden, g1 = (x.new_empty((h, sizes.positions)) if need_weights else None for _ in range(2))
        channel_gate_kernels.channel_gate_backward_x[(along_p,)](
            *(grad, x, *weights, grad_x, hidden, g1, *settings), **constants, **blocks
        )
        if need_weights:
            count = min(triton.cdiv(programs(x, 2), along_c), along_p)
            partial = x.new_empty((count, sum(lengths)), dtype=torch.float32)
            channel_gate_kernels.channel_gate_backward_weights[(count, along_c)](
                *(grad, x, *weights[2:], hidden, g1, partial, *settings), **constants, **blocks
            )
    if partial is not None:
        sum_partials(partial, grads, lengths)
    return grad_x, grads


def norm_blocks(channels: int, *layouts: torch.memory_format, values: int = 1024) -> Configuration:
    """Blocks of `values` elements, long in the direction that is contiguous, in both where layouts differ.

    With very many channels a block holds more of them, since a grid has at most 65535 programs along them.
    """
    usual = 64 if all(map(is_last, layouts)) else 32 if any(map(is_last, layouts)) else 4
    block = min(power_of_two(channels), max(usual, power_of_two(triton.cdiv(channels, 65535))))
    return {"BLOCK_C": block, "BLOCK_P": max(1, values // block), "num_warps": 4}


def elementwise_blocks(channels: int, *layouts: torch.memory_format) -> list[Configuration]:
    """The configurations of passes without sums: the size of a block does not change the result."""
    return [norm_blocks(channels, *layouts, values=values) for values in (1024, 2048)]


def count_splits(x: Tensor, along_p: int, along_c: int) -> int:
    """The number of programs that share the positions of a block of channels."""
    return min(along_p, -(-programs(x, 4) // along_c))


def batch_statistics(u: Tensor, offset: Tensor | None, layout: torch.memory_format) -> tuple[Tensor, Tensor]:
    """See `Gates.batch_statistics`."""
    sizes = Sizes.of(u)
    blocks = norm_blocks(sizes.channels, layout)
    along_p = triton.cdiv(sizes.positions, blocks["BLOCK_P"])
    along_c = triton.cdiv(sizes.channels, blocks["BLOCK_C"])
    parts = count_splits(u, along_p, along_c)
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
    """See `Gates.norm_forward`."""
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
            SIGMOID=norm.sigmoid,
            **blocks,
        )

    configurations = elementwise_blocks(sizes.channels, layout, z_layout, out_layout)
    if add_to is None:
        shape_class = ("norm_forward", *sizes.shape_class, z is None, layout, z_layout, out_layout)
        launch_fastest(shape_class, configurations, launch, u)
    else:  # launch_fastest may launch several times, and each would add
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
    """See `Gates.norm_backward`.

    With `batch_statistics` the gradient of u needs sums over all positions, hence two passes over the maps.
    All else takes one pass.
    """
    sizes = Sizes.of(u)
    C = sizes.channels
    grads = NormGradients.empty(u, z, norm, need, layout)
    grad_u, grad_z, grad_weight, grad_bias, _ = grads
    configurations = elementwise_blocks(C, layout, grad_layout)

    def run(blocks: Configuration, count: int, *outputs: Tensor | None) -> None:
        """One pass; `outputs` are the kernel's sums (which it reads), grad_u, grad_z and partial."""
        batch_norm.norm_backward[(count, triton.cdiv(C, blocks["BLOCK_C"]))](
            *(grad, u, z, *norm[:5], *outputs, norm.eps),
            *sizes.arguments,
            **sizes.constants,
            GRAD_LAST=is_last(grad_layout),
            LAST=is_last(layout),
            SIGMOID=norm.sigmoid,
            AHEAD=1 if outputs[-1] is None else 3,
            **blocks,
        )

    two_passes = batch_statistics and grad_u is not None
    sums = None
    if two_passes or need_sums or grad_weight is not None or grad_bias is not None:
        blocks = configurations[0]  # always the same blocks, since the order of a sum depends on them
        along_p, along_c = triton.cdiv(sizes.positions, blocks["BLOCK_P"]), triton.cdiv(C, blocks["BLOCK_C"])
        parts = count_splits(u, along_p, along_c)
        partial = u.new_empty((parts, 2 * C), dtype=torch.float32)
        sums = u.new_empty(2 * C, dtype=torch.float32)
        outputs = (None, None) if two_passes else (grad_u, grad_z)
        run(blocks, parts, None, *outputs, partial)
        sum_partials(partial, (grad_weight, grad_bias), (C, C), sums)
    if two_passes or (sums is None and (grad_u is not None or grad_z is not None)):

        def launch(blocks: Configuration) -> None:
            run(blocks, triton.cdiv(sizes.positions, blocks["BLOCK_P"]), sums, grad_u, grad_z, None)

        missing = z is None, sums is None, grad_u is None, grad_z is None
        shape_class = ("norm_backward", *sizes.shape_class, *missing, layout, grad_layout)
        launch_fastest(shape_class, configurations, launch, u)
    return grads._replace(sums=sums)
