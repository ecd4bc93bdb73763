"""A tile of a feature map: some channels at some positions, in either memory layout.

The positions of a map (N, C, P), P = H * W, are numbered through all images, so that small maps fill whole
tiles: `positions` = N * P is their number. Kernels take P and `positions` divided by UNIT, the largest power
of two up to 16 that divides P. From the multiplication by UNIT the compiler learns how many positions are
contiguous, and loads this many at once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_positions(units, UNIT: tl.constexpr, WIDE: tl.constexpr):
    """`positions`, or P, from the number of units; in 64 bits if WIDE, which one large image may need."""
    return tl.cast(units, tl.int64) * UNIT if WIDE else units * UNIT


@triton.jit
def block_of_positions(block, positions, BLOCK_P: tl.constexpr, WIDE: tl.constexpr):
    """The positions (BLOCK_P,) of one block, and which of them exist; WIDE counts in 64 bits."""
    if WIDE:
        block = tl.cast(block, tl.int64)
    position = block * BLOCK_P + tl.arange(0, BLOCK_P)
    return position, position < positions


@triton.jit
def position_offsets(position, C, P, LAST: tl.constexpr):
    """The offset of channel 0 at each position, in elements (int64); LAST means channels_last."""
    return position.to(tl.int64) * C if LAST else (position // P).to(tl.int64) * C * P + position % P


@triton.jit
def channel_offsets(channel, P, LAST: tl.constexpr):
    """The offset of each channel from channel 0 at the same position, in elements (int64)."""
    return channel.to(tl.int64) if LAST else channel.to(tl.int64) * P


@triton.jit
def load_tile(map_, channel, is_channel, position, is_position, C, P, LAST: tl.constexpr):
    """The tile (channels, positions), 0 outside of the map; lanes run along the contiguous axis."""
    along_c, along_p = channel_offsets(channel, P, LAST), position_offsets(position, C, P, LAST)
    if LAST:
        inside = is_position[:, None] & is_channel[None, :]
        tile = tl.trans(tl.load(map_ + along_p[:, None] + along_c[None, :], mask=inside, other=0.0))
    else:
        inside = is_channel[:, None] & is_position[None, :]
        tile = tl.load(map_ + along_c[:, None] + along_p[None, :], mask=inside, other=0.0)
    return tile


@triton.jit
def store_tile(map_, tile, channel, is_channel, position, is_position, C, P, LAST: tl.constexpr):
    """Write the part of the tile (channels, positions) that is inside of the map."""
    along_c, along_p = channel_offsets(channel, P, LAST), position_offsets(position, C, P, LAST)
    tile = tile.to(map_.dtype.element_ty)
    if LAST:
        inside = is_position[:, None] & is_channel[None, :]
        tl.store(map_ + along_p[:, None] + along_c[None, :], tl.trans(tile), mask=inside)
    else:
        inside = is_channel[:, None] & is_position[None, :]
        tl.store(map_ + along_c[:, None] + along_p[None, :], tile, mask=inside)


@triton.jit
def load_vector(vector, index, inside, otherwise):
    """float32 values of a vector at `index`; `otherwise` for indices outside and for a missing vector."""
    if vector is None:
        values = tl.full(index.shape, otherwise, tl.float32)
    else:
        values = tl.load(vector + index, mask=inside, other=otherwise).to(tl.float32)
    return values


@triton.jit
def sum_partials(
    partial, total, out1, out2, out3, out4, size1, size2, size3, size4, rows,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ``partial.sum(0)`` to total, and its consecutive pieces of the given sizes to out1 to out4.

    It is the second stage of every sum over positions. Its order is fixed, so two runs give the same bits.

    partial: (rows, size1 + ... + size4) float32; total: (size1 + ... + size4,) float32, or None; out_i:
    (size_i,) of any floating dtype, or None.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    width = size1 + size2 + size3 + size4
    sums = tl.zeros((BLOCK_ROWS, BLOCK), tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        sums += tl.load(partial + row.to(tl.int64)[:, None] * width + column[None, :], mask=inside, other=0.0)
    values = tl.sum(sums, 0)
    if total is not None:
        tl.store(total + column, values, mask=column < width)
    _store_piece(out1, values, column, 0, size1)
    _store_piece(out2, values, column, size1, size2)
    _store_piece(out3, values, column, size1 + size2, size3)
    _store_piece(out4, values, column, size1 + size2 + size3, size4)


@triton.jit
def _store_piece(out, values, column, first, size):
    if out is not None:
        index = column - first
        tl.store(out + index, values.to(out.dtype.element_ty), mask=(index >= 0) & (index < size))
