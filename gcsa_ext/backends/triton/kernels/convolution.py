"""A convolution with 'same' padding as a matrix product, with the normalisation and gate behind it.

For maps x (N, C, P), P = H * W, and a weight of O filters with KERNEL x KERNEL taps, r = KERNEL // 2::

    u[n, o, (i, j)] = sum over taps (a, b) and channels c of
                      weight[o, a, b, c] * x[n, c, (i + a - r, j + b - r)],   x = 0 outside of the map
    v   = (u + offset - mean) / sqrt(var + eps) * scale + shift
    out = z * sigmoid(v)   or   relu(v)

The product is [positions x (taps * channels)] by [(taps * channels) x filters]. Its left operand is never
stored: a tile of it is a tile of x, shifted by the offset of the tap. Products take operands in the dtype of
x and sum in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gcsa_ext.backends.triton.kernels.batch_norm import load_norm, store_activated
from gcsa_ext.backends.triton.kernels.tile import block_of_positions, count_positions, position_offsets


@triton.jit(do_not_specialize=["position_units", "P_UNITS", "W", "steps_per_split"])
def convolution_norm(
    x, taps, z, scale, shift, mean, var, offset, out, partial, eps,
    position_units, C, P_UNITS, W, filters, steps_per_split,
    UNIT: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    KERNEL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``out = z * sigmoid(norm(conv(x)))``, or ``relu(norm(conv(x)))`` where z is None.

    x (N, C, P) and z (N, O, P) in LAST's layout, out (N, O, P) in OUT_LAST's; taps: (O, KERNEL, KERNEL, C),
    of x's dtype; scale, shift, offset: (O,) of any dtype, or None for 1, 0, 0; mean, var: (O,) float32.

    Program (i, j, s) computes BLOCK_P positions of BLOCK_O filters. A step is one tap of BLOCK_C channels. If
    partial (splits, positions, O) float32 is given, the program writes the sum of steps_per_split steps from
    s * steps_per_split on to it, and `finish_convolution_norm` computes the rest.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    position, is_position = block_of_positions(tl.program_id(0), positions, BLOCK_P, WIDE)
    filter_ = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_filter = filter_ < filters
    row, column = position % P // W, position % W
    H = P // W
    at_tap = position_offsets(position, C, P, LAST)
    along_c = tl.cast(1, tl.int64) if LAST else tl.cast(P, tl.int64)
    along_p = tl.cast(C, tl.int64) if LAST else tl.cast(1, tl.int64)
    taps_of_filter = taps + filter_.to(tl.int64) * (KERNEL * KERNEL * C)

    blocks = tl.cdiv(C, BLOCK_C)
    first = tl.program_id(2) * steps_per_split
    last = tl.minimum(first + steps_per_split, KERNEL * KERNEL * blocks)
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for step in range(first, last):
        tap = step // blocks
        down, right = tap // KERNEL - KERNEL // 2, tap % KERNEL - KERNEL // 2
        channel = (step - tap * blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
        is_channel = channel < C
        is_inside = is_position & (row + down >= 0) & (row + down < H)
        is_inside &= (column + right >= 0) & (column + right < W)
        at = at_tap + (tl.cast(down, tl.int64) * W + right) * along_p
        if LAST:
            tile = tl.load(
                x + at[:, None] + channel[None, :],
                mask=is_inside[:, None] & is_channel[None, :],
                other=0.0,
            )
        else:
            tile = tl.trans(
                tl.load(
                    x + channel.to(tl.int64)[:, None] * along_c + at[None, :],
                    mask=is_channel[:, None] & is_inside[None, :],
                    other=0.0,
                )
            )
        tap_tile = tl.load(
            taps_of_filter[:, None] + (tap * C + channel)[None, :],
            mask=is_filter[:, None] & is_channel[None, :],
            other=0.0,
        )
        sums = tl.dot(tile, tl.trans(tap_tile), sums, input_precision=PRECISION)

    if partial is None:
        mean_, rstd, scale_, shift_ = load_norm(scale, shift, mean, var, offset, eps, filter_, is_filter)
        v = (tl.trans(sums) - mean_) * rstd * scale_ + shift_
        store_activated(
            out, v, z, filter_, is_filter, position, is_position, filters, P, LAST, OUT_LAST, ADD=False
        )
    else:
        at_sum = (tl.program_id(2).to(tl.int64) * positions + position) * filters
        inside = is_position[:, None] & is_filter[None, :]
        tl.store(partial + at_sum[:, None] + filter_[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=["position_units", "P_UNITS", "splits"])
def finish_convolution_norm(
    partial, z, scale, shift, mean, var, offset, out, eps, position_units, P_UNITS, filters, splits,
    UNIT: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """The rest of `convolution_norm`: the sum over splits, in a fixed order, normalisation and gate."""
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    position, is_position = block_of_positions(tl.program_id(0), positions, BLOCK_P, WIDE)
    filter_ = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_filter = filter_ < filters
    inside = is_position[:, None] & is_filter[None, :]
    at = partial + (position.to(tl.int64) * filters)[:, None] + filter_[None, :]
    sums = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    for split in range(splits):
        sums += tl.load(at + tl.cast(split, tl.int64) * positions * filters, mask=inside, other=0.0)
    mean_, rstd, scale_, shift_ = load_norm(scale, shift, mean, var, offset, eps, filter_, is_filter)
    v = (tl.trans(sums) - mean_) * rstd * scale_ + shift_
    store_activated(
        out, v, z, filter_, is_filter, position, is_position, filters, P, LAST, OUT_LAST, ADD=False
    )
