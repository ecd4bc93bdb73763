"""Batch normalisation and the gate z * sigmoid(...), the gate z * (...) or relu(...) behind it.

For maps u (N, C, P) with count = N * P values per channel, and `offset` (C,), the bias of the convolution
that computed u without it::

    xhat = (u + offset - mean) * rstd,   rstd = 1 / sqrt(var + eps),   v = weight * xhat + bias
    out  = z * sigmoid(v)   or   z * v   or   relu(v)

Kernels compute in float32. weight, bias, offset: (C,) of any floating dtype, or None for 1, 0, 0; mean, var:
(C,) float32. A program computes BLOCK_C channels of one or more blocks of BLOCK_P positions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gcsa_ext.backends.triton.kernels.tile import (
    block_of_positions,
    channel_offsets,
    count_positions,
    load_tile,
    load_vector,
    position_offsets,
    store_tile,
)


@triton.jit
def _merge(mean, square, count, AXIS: tl.constexpr):
    """Merge the statistics of parts by Chan's formula: mean, sum of squared deviations, count.

    mean, square, count: (channels, parts) or (parts, channels) float32, with the parts along AXIS; the count
    of an empty part is 0.
    """
    total = tl.sum(count, AXIS)
    merged = tl.sum(mean * count, AXIS) / total
    distance = tl.where(count > 0.0, mean - tl.expand_dims(merged, AXIS), 0.0)
    # A second step corrects the rounding errors of the first.
    merged += tl.sum(distance * count, AXIS) / total
    distance = tl.where(count > 0.0, mean - tl.expand_dims(merged, AXIS), 0.0)
    return merged, tl.sum(square, AXIS) + tl.sum(count * distance * distance, AXIS), total


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def batch_statistics(
    u, offset, mean, var, partial, position_units, C, P_UNITS,
    UNIT: tl.constexpr, WIDE: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every channel in one pass over u.

    Each lane computes Welford's recurrence of the distance from its channel's first value, so that neither a
    mean far from zero nor a long sum costs digits. Lanes, then programs, are merged by Chan's formula.

    Program (i, j) takes every num_programs(0)-th block of positions of BLOCK_C channels. With one program
    along i partial is None, and the program writes mean (offset added) and the biased var: (C,) float32.
    Otherwise each program writes its part of partial: (3, programs, C) float32, the means, the squares and
    the counts, for `merge_statistics`. AHEAD - 1 blocks are being loaded while one is computed.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    split, splits = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    first = position_offsets(split.to(tl.int64) * BLOCK_P, C, P, LAST)
    origin = load_vector(u + first, channel_offsets(channel, P, LAST), is_channel, 0.0)
    running = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    square = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    steps = 0.0
    for block in tl.range(split, tl.cdiv(positions, BLOCK_P), splits, num_stages=AHEAD):
        position, is_position = block_of_positions(block, positions, BLOCK_P, WIDE)
        tile = load_tile(u, channel, is_channel, position, is_position, C, P, LAST).to(tl.float32)
        tile -= origin[:, None]
        steps += 1.0
        delta = tl.where(is_position[None, :], tile - running, 0.0)
        running += delta * (1.0 / steps)
        square += delta * tl.where(is_position[None, :], tile - running, 0.0)
        count += tl.where(is_position, 1.0, 0.0)
    counts = tl.broadcast_to(count[None, :], (BLOCK_C, BLOCK_P))
    merged, squares, total = _merge(running, square, counts, 1)
    merged += origin
    if partial is None:
        merged += load_vector(offset, channel, is_channel, 0.0)
        tl.store(mean + channel, merged, mask=is_channel)
        tl.store(var + channel, squares / total, mask=is_channel)
    else:
        at = split.to(tl.int64) * C + channel
        tl.store(partial + at, merged, mask=is_channel)
        tl.store(partial + splits.to(tl.int64) * C + at, squares, mask=is_channel)
        tl.store(partial + 2 * splits.to(tl.int64) * C + at, total, mask=is_channel)


@triton.jit(do_not_specialize=["parts"])
def merge_statistics(partial, offset, mean, var, C, parts, BLOCK_C: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """The second stage of `batch_statistics`: partial (3, parts, C) to mean (offset added) and var: (C,)."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    merged = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        inside = (part < parts)[:, None] & is_channel[None, :]
        at = part[:, None] * C + channel[None, :]
        means = tl.load(partial + at, mask=inside, other=0.0)
        squares = tl.load(partial + parts * C + at, mask=inside, other=0.0)
        counts = tl.load(partial + 2 * parts * C + at, mask=inside, other=0.0)
        block_mean, block_square, block_total = _merge(means, squares, counts, 0)
        distance = tl.where(total > 0.0, block_mean - merged, 0.0)
        share = block_total / (total + block_total)
        square += block_square + distance * distance * total * share
        merged = tl.where(total > 0.0, merged + distance * share, block_mean)
        total += block_total
    merged += load_vector(offset, channel, is_channel, 0.0)
    tl.store(mean + channel, merged, mask=is_channel)
    tl.store(var + channel, square / total, mask=is_channel)


@triton.jit
def _load_norm(weight, bias, mean, var, offset, eps, channel, is_channel):
    """mean - offset, rstd, weight and bias, each as a column (channels, 1)."""
    shift = load_vector(mean, channel, is_channel, 0.0) - load_vector(offset, channel, is_channel, 0.0)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(load_vector(var, channel, is_channel, 1.0) + eps))
    scale = load_vector(weight, channel, is_channel, 1.0)
    return shift[:, None], rstd[:, None], scale[:, None], load_vector(bias, channel, is_channel, 0.0)[:, None]


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def norm_forward(
    u, z, weight, bias, mean, var, offset, out, eps, position_units, C, P_UNITS,
    UNIT: tl.constexpr, WIDE: tl.constexpr,
    LAST: tl.constexpr, Z_LAST: tl.constexpr, OUT_LAST: tl.constexpr, ADD: tl.constexpr,
    SIGMOID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """``out = z * sigmoid(v)``, ``out = z * v`` without SIGMOID, or ``out = relu(v)`` where z is None;
    ``out += ...`` if ADD.

    u is in LAST's layout, z in Z_LAST's and out in OUT_LAST's.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    position, is_position = block_of_positions(tl.program_id(0), positions, BLOCK_P, WIDE)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    shift, rstd, scale, at_zero = _load_norm(weight, bias, mean, var, offset, eps, channel, is_channel)
    tile = load_tile(u, channel, is_channel, position, is_position, C, P, LAST).to(tl.float32)
    v = (tile - shift) * rstd * scale + at_zero
    if z is None:
        result = tl.where(v < 0.0, 0.0, v)
    else:
        gated = load_tile(z, channel, is_channel, position, is_position, C, P, Z_LAST)
        result = gated.to(tl.float32) * (tl.sigmoid(v) if SIGMOID else v)
    if ADD:
        result += load_tile(out, channel, is_channel, position, is_position, C, P, OUT_LAST).to(tl.float32)
    store_tile(out, result, channel, is_channel, position, is_position, C, P, OUT_LAST)


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def norm_backward(
    grad, u, z, weight, bias, mean, var, offset, sums, grad_u, grad_z, partial, eps,
    position_units, C, P_UNITS, UNIT: tl.constexpr, WIDE: tl.constexpr,
    GRAD_LAST: tl.constexpr, LAST: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """One pass over grad, u and z, which writes gradients, or the sums that they need, or both. ::

        s = sigmoid(v),   gv = grad * z * s (1 - s),   grad_z = grad * s       or gv = (v > 0) grad without z
        s = v,            gv = grad * z,               grad_z = grad * s       without SIGMOID
        grad_weight = sum gv * xhat,   grad_bias = sum gv
        grad_u = weight * rstd * (gv - grad_bias / count - xhat * grad_weight / count)

    grad: in GRAD_LAST's layout; u, z, grad_u, grad_z: in LAST's. An output that is None is not written. sums:
    (2 * C,) float32, grad_weight and then grad_bias, to read; None means that mean and var are constants, and
    grad_u has no terms but gv. Program (i, j) takes every num_programs(0)-th block of positions of BLOCK_C
    channels and writes its sums into row i of partial: (programs, 2 * C) float32. AHEAD: as in
    `batch_statistics`.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_channel = channel < C
    shift, rstd, scale, at_zero = _load_norm(weight, bias, mean, var, offset, eps, channel, is_channel)
    if sums is not None:
        values = positions.to(tl.float32)
        mean_gvx = (tl.load(sums + channel, mask=is_channel, other=0.0) / values)[:, None]
        mean_gv = (tl.load(sums + C + channel, mask=is_channel, other=0.0) / values)[:, None]
    sum_gvx = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    sum_gv = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for block in tl.range(
        tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0), num_stages=AHEAD
    ):
        position, is_position = block_of_positions(block, positions, BLOCK_P, WIDE)
        g = load_tile(grad, channel, is_channel, position, is_position, C, P, GRAD_LAST).to(tl.float32)
        tile = load_tile(u, channel, is_channel, position, is_position, C, P, LAST).to(tl.float32)
        xhat = (tile - shift) * rstd
        v = xhat * scale + at_zero
        if z is None:
            gv = tl.where(v <= 0.0, 0.0, g)
        else:
            s = tl.sigmoid(v) if SIGMOID else v
            gated = load_tile(z, channel, is_channel, position, is_position, C, P, LAST)
            gv = g * gated.to(tl.float32)
            if SIGMOID:
                gv *= s * (1.0 - s)
            if grad_z is not None:
                store_tile(grad_z, g * s, channel, is_channel, position, is_position, C, P, LAST)
        if partial is not None:
            sum_gvx += tl.where(is_position[None, :], gv * xhat, 0.0)
            sum_gv += tl.where(is_position[None, :], gv, 0.0)
        if grad_u is not None:
            if sums is not None:
                gv = gv - mean_gv - xhat * mean_gvx
            store_tile(grad_u, gv * rstd * scale, channel, is_channel, position, is_position, C, P, LAST)
    if partial is not None:
        row = partial + tl.program_id(0).to(tl.int64) * 2 * C
        tl.store(row + channel, tl.sum(sum_gvx, 1), mask=is_channel)
        tl.store(row + C + channel, tl.sum(sum_gv, 1), mask=is_channel)
