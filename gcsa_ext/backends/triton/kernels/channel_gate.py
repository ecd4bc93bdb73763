"""The channel gate: a two-layer perceptron over the channels of every position, the product, the shuffle.

With x (C, positions), w1 (h, C), w2 (C, h) and G groups of C / G channels::

    v1 = w1 x + b1,   hidden = relu(v1),   v2 = w2 hidden + b2,   a = sigmoid(v2)
    out[j * G + i] = (x * a)[i * (C / G) + j]

If GROUPS is 0, tiles are indexed by the channel of `out`: writes are contiguous in both layouts, and the rows
of x, w1 and w2 are gathered. This would gather single values where the channels of x are contiguous
(channels_last). If the number of groups is also a power of two, tiles are therefore indexed by the channel of
x, and transposed between registers to the order of `out`; GROUPS is then the number of groups. Products take
operands in the dtype of x and sum in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gcsa_ext.backends.triton.kernels.tile import (
    block_of_positions,
    count_positions,
    load_tile,
    load_vector,
    store_tile,
)


@triton.jit
def _channels(start, C, groups, BLOCK_C: tl.constexpr, GROUPS: tl.constexpr):
    """The indices in x of the BLOCK_C channels of `out` from `start` on, and which of them exist.

    They are in the order of `out`, or, if GROUPS is not 0, in that of x: one group after the other.
    """
    if GROUPS:
        run: tl.constexpr = BLOCK_C // GROUPS
        row = tl.arange(0, BLOCK_C)
        in_group = start // GROUPS + row % run
        channel = row // run * (C // GROUPS) + in_group
        is_channel = in_group < C // GROUPS
    else:
        out_channel = start + tl.arange(0, BLOCK_C)
        channel = (out_channel % groups) * (C // groups) + out_channel // groups
        is_channel = out_channel < C
    return channel, is_channel


@triton.jit
def _transpose_channels(tile, A: tl.constexpr, B: tl.constexpr):
    """Transpose the first axis: channel a * B + b of (A * B, positions) becomes channel b * A + a."""
    positions: tl.constexpr = tile.shape[1]
    return tl.reshape(tl.permute(tl.reshape(tile, (A, B, positions)), (1, 0, 2)), (B * A, positions))


@triton.jit
def _store_out(
    out, tile, start, position, is_position, C, P,
    LAST: tl.constexpr, BLOCK_C: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Write a tile of the channels that `_channels` lists."""
    channel = start + tl.arange(0, BLOCK_C)
    if GROUPS:
        tile = _transpose_channels(tile.to(out.dtype.element_ty), GROUPS, BLOCK_C // GROUPS)
    store_tile(out, tile, channel, channel < C, position, is_position, C, P, LAST)


@triton.jit
def _load_gradient(
    grad, start, position, is_position, C, P,
    LAST: tl.constexpr, BLOCK_C: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The float32 gradients of the channels that `_channels` lists, from a map in the order of `out`."""
    channel = start + tl.arange(0, BLOCK_C)
    tile = load_tile(grad, channel, channel < C, position, is_position, C, P, LAST)
    if GROUPS:
        tile = _transpose_channels(tile, BLOCK_C // GROUPS, GROUPS)
    return tile.to(tl.float32)


@triton.jit
def _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype: tl.constexpr):
    """A tile (units, channels) of w1."""
    inside = is_unit[:, None] & is_channel[None, :]
    return tl.load(w1 + unit[:, None] * C + channel[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype: tl.constexpr):
    """A tile (channels, units) of w2."""
    inside = is_channel[:, None] & is_unit[None, :]
    return tl.load(w2 + channel[:, None] * h + unit[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _activate(v1, is_unit, is_position, dtype: tl.constexpr):
    """relu, which keeps NaN; 0 outside of units and positions, where an infinite weight could give NaN."""
    hidden = tl.where(v1 < 0.0, 0.0, v1)
    return tl.where(is_unit[:, None] & is_position[None, :], hidden, 0.0).to(dtype)


@triton.jit
def _gate(w2_tile, hidden, bias2, SIGMOID: tl.constexpr, PRECISION: tl.constexpr):
    """The gate a (channels, positions), and its derivative with respect to v2."""
    v2 = tl.dot(w2_tile, hidden, input_precision=PRECISION) + bias2[:, None]
    if SIGMOID:
        a = tl.sigmoid(v2)
        slope = a * (1.0 - a)
    else:
        a = v2
        slope = tl.full(v2.shape, 1.0, tl.float32)
    return a, slope


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def channel_gate_forward(
    x, w1, b1, w2, b2, out, position_units, C, P_UNITS, h, groups,
    UNIT: tl.constexpr, WIDE: tl.constexpr, X_LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    SIGMOID: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """``out = shuffle(x * sigmoid(w2 relu(w1 x + b1) + b2))`` for few channels: BLOCK_C >= C, BLOCK_H >= h.

    x: (N, C, P) in X_LAST's layout; out: (N, C, P) in OUT_LAST's; w1: (h, C), b1: (h,), w2: (C, h), b2: (C,).
    A program holds the weights and loops over blocks of positions. The next blocks are loaded while one is
    computed.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    dtype: tl.constexpr = x.dtype.element_ty
    unit = tl.arange(0, BLOCK_H)
    is_unit = unit < h
    channel, is_channel = _channels(0, C, groups, BLOCK_C, GROUPS)
    bias1, bias2 = load_vector(b1, unit, is_unit, 0.0), load_vector(b2, channel, is_channel, 0.0)
    weight1 = _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype)
    weight2 = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
    for block in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        position, is_position = block_of_positions(block, positions, BLOCK_P, WIDE)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        v1 = tl.dot(weight1, tile, input_precision=PRECISION) + bias1[:, None]
        hidden = _activate(v1, is_unit, is_position, dtype)
        a, _slope = _gate(weight2, hidden, bias2, SIGMOID, PRECISION)
        gated = tile.to(tl.float32) * a
        _store_out(out, gated, 0, position, is_position, C, P, OUT_LAST, BLOCK_C, GROUPS)


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def channel_gate_forward_split(
    x, w1, b1, w2, b2, out, position_units, C, P_UNITS, h, groups,
    UNIT: tl.constexpr, WIDE: tl.constexpr, X_LAST: tl.constexpr, OUT_LAST: tl.constexpr,
    SIGMOID: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """`channel_gate_forward` for any number of channels; one program per BLOCK_P positions.

    A program makes two passes over the channels. The first block of channels stays in registers between the
    passes, the others are read again, from the cache.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    dtype: tl.constexpr = x.dtype.element_ty
    position, is_position = block_of_positions(tl.program_id(0), positions, BLOCK_P, WIDE)
    unit = tl.arange(0, BLOCK_H)
    is_unit = unit < h
    bias1 = load_vector(b1, unit, is_unit, 0.0)

    first_channel, is_first = _channels(0, C, groups, BLOCK_C, GROUPS)
    first = load_tile(x, first_channel, is_first, position, is_position, C, P, X_LAST)
    weight = _load_w1(w1, first_channel, is_first, unit, is_unit, C, dtype)
    v1 = tl.dot(weight, first, input_precision=PRECISION)
    for start in range(BLOCK_C, C, BLOCK_C):
        channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        weight = _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype)
        v1 = tl.dot(weight, tile, v1, input_precision=PRECISION)
    hidden = _activate(v1 + bias1[:, None], is_unit, is_position, dtype)

    weight = _load_w2(w2, first_channel, is_first, unit, is_unit, h, dtype)
    a, _slope = _gate(weight, hidden, load_vector(b2, first_channel, is_first, 0.0), SIGMOID, PRECISION)
    gated = first.to(tl.float32) * a
    _store_out(out, gated, 0, position, is_position, C, P, OUT_LAST, BLOCK_C, GROUPS)
    for start in range(BLOCK_C, C, BLOCK_C):
        channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        weight = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
        a, _slope = _gate(weight, hidden, load_vector(b2, channel, is_channel, 0.0), SIGMOID, PRECISION)
        gated = tile.to(tl.float32) * a
        _store_out(out, gated, start, position, is_position, C, P, OUT_LAST, BLOCK_C, GROUPS)


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def channel_gate_backward(
    grad, x, w1, b1, w2, b2, grad_x, partial, position_units, C, P_UNITS, h, groups,
    UNIT: tl.constexpr, WIDE: tl.constexpr, X_LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    SIGMOID: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """All gradients in one pass over x and the gradient, for few channels: BLOCK_C >= C, BLOCK_H >= h. ::

        g2 = unshuffle(grad) * x * a (1 - a),   g1 = (v1 > 0) w2' g2,   grad_x = unshuffle(grad) * a + w1' g1
        grad_w2 = g2 hidden',   grad_b2 = sum g2,   grad_w1 = g1 x',   grad_b1 = sum g1

    grad: (N, C, P) in GRAD_LAST's layout; x, grad_x: in X_LAST's; grad_x and partial may be None. Every
    program loops over blocks of positions and writes its sums into its row of partial:
    (programs, h * C + h + C * h + C) float32, the gradients of w1, b1, w2, b2 one after the other.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    dtype: tl.constexpr = x.dtype.element_ty
    unit = tl.arange(0, BLOCK_H)
    is_unit = unit < h
    channel, is_channel = _channels(0, C, groups, BLOCK_C, GROUPS)
    bias1, bias2 = load_vector(b1, unit, is_unit, 0.0), load_vector(b2, channel, is_channel, 0.0)
    weight1 = _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype)
    weight2 = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
    sum_w1 = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)  # transposed
    sum_w2 = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)
    sum_b1 = tl.zeros((BLOCK_H,), tl.float32)
    sum_b2 = tl.zeros((BLOCK_C,), tl.float32)

    for block in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        position, is_position = block_of_positions(block, positions, BLOCK_P, WIDE)
        inside = is_channel[:, None] & is_position[None, :]
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        g = _load_gradient(grad, 0, position, is_position, C, P, GRAD_LAST, BLOCK_C, GROUPS)
        v1 = tl.dot(weight1, tile, input_precision=PRECISION) + bias1[:, None]
        hidden = _activate(v1, is_unit, is_position, dtype)
        a, slope = _gate(weight2, hidden, bias2, SIGMOID, PRECISION)
        g2 = tl.where(inside, g * tile.to(tl.float32) * slope, 0.0)
        g1 = tl.dot(tl.trans(weight2), g2.to(dtype), input_precision=PRECISION)
        g1 = tl.where((is_unit[:, None] & is_position[None, :]) & ~(v1 <= 0.0), g1, 0.0)
        if grad_x is not None:
            gx = tl.dot(tl.trans(weight1), g1.to(dtype), g * a, input_precision=PRECISION)
            store_tile(grad_x, gx, channel, is_channel, position, is_position, C, P, X_LAST)
        if partial is not None:
            sum_w1 = tl.dot(tile, tl.trans(g1.to(dtype)), sum_w1, input_precision=PRECISION)
            sum_w2 = tl.dot(g2.to(dtype), tl.trans(hidden), sum_w2, input_precision=PRECISION)
            sum_b1 += tl.sum(g1, 1)
            sum_b2 += tl.sum(g2, 1)

    if partial is not None:
        row = partial + tl.program_id(0).to(tl.int64) * (2 * h * C + h + C)
        _store_sums(row, sum_w1, sum_w2, sum_b2, channel, is_channel, unit, is_unit, C, h)
        tl.store(row + h * C + unit, sum_b1, mask=is_unit)


@triton.jit
def _store_sums(row, sum_w1, sum_w2, sum_b2, channel, is_channel, unit, is_unit, C, h):
    """Write the gradients of w1 (given transposed), w2 and b2 into a row of partial sums."""
    inside = is_channel[:, None] & is_unit[None, :]
    tl.store(row + unit[None, :] * C + channel[:, None], sum_w1, mask=inside)
    tl.store(row + h * C + h + channel[:, None] * h + unit[None, :], sum_w2, mask=inside)
    tl.store(row + 2 * h * C + h + channel, sum_b2, mask=is_channel)


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def channel_gate_backward_x(
    grad, x, w1, b1, w2, b2, grad_x, hidden_out, g1_out, position_units, C, P_UNITS, h, groups,
    UNIT: tl.constexpr, WIDE: tl.constexpr, X_LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    SIGMOID: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The first half of `channel_gate_backward` for any number of channels: the gradient of x.

    One program per BLOCK_P positions. grad_x may be None. hidden_out, g1_out: (h, positions), for
    `channel_gate_backward_weights`, or None.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    dtype: tl.constexpr = x.dtype.element_ty
    position, is_position = block_of_positions(tl.program_id(0), positions, BLOCK_P, WIDE)
    unit = tl.arange(0, BLOCK_H)
    is_unit = unit < h
    v1 = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    for start in range(0, C, BLOCK_C):
        channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        weight = _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype)
        v1 = tl.dot(weight, tile, v1, input_precision=PRECISION)
    v1 += load_vector(b1, unit, is_unit, 0.0)[:, None]
    hidden = _activate(v1, is_unit, is_position, dtype)

    g1 = tl.zeros((BLOCK_H, BLOCK_P), tl.float32)
    for start in range(0, C, BLOCK_C):
        channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        g = _load_gradient(grad, start, position, is_position, C, P, GRAD_LAST, BLOCK_C, GROUPS)
        weight = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
        a, slope = _gate(weight, hidden, load_vector(b2, channel, is_channel, 0.0), SIGMOID, PRECISION)
        inside = is_channel[:, None] & is_position[None, :]
        g2 = tl.where(inside, g * tile.to(tl.float32) * slope, 0.0)
        g1 = tl.dot(tl.trans(weight), g2.to(dtype), g1, input_precision=PRECISION)
    at_unit = is_unit[:, None] & is_position[None, :]
    g1 = tl.where(at_unit & ~(v1 <= 0.0), g1, 0.0).to(dtype)

    if hidden_out is not None:
        at = unit.to(tl.int64)[:, None] * positions + position[None, :]
        tl.store(hidden_out + at, hidden, mask=at_unit)
        tl.store(g1_out + at, g1, mask=at_unit)

    if grad_x is not None:
        for start in range(0, C, BLOCK_C):
            channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
            g = _load_gradient(grad, start, position, is_position, C, P, GRAD_LAST, BLOCK_C, GROUPS)
            weight = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
            a, slope = _gate(weight, hidden, load_vector(b2, channel, is_channel, 0.0), SIGMOID, PRECISION)
            weight = _load_w1(w1, channel, is_channel, unit, is_unit, C, dtype)
            gx = tl.dot(tl.trans(weight), g1, g * a, input_precision=PRECISION)
            store_tile(grad_x, gx, channel, is_channel, position, is_position, C, P, X_LAST)


@triton.jit(do_not_specialize=["position_units", "P_UNITS"])
def channel_gate_backward_weights(
    grad, x, w2, b2, hidden_in, g1_in, partial, position_units, C, P_UNITS, h, groups,
    UNIT: tl.constexpr, WIDE: tl.constexpr, X_LAST: tl.constexpr, GRAD_LAST: tl.constexpr,
    SIGMOID: tl.constexpr, PRECISION: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The second half of `channel_gate_backward` for any number of channels: the gradients of the weights.

    Program (i, j) sums over every num_programs(0)-th block of positions, for the j-th BLOCK_C channels.

    hidden_in, g1_in: (h, positions), of the first half; partial: (programs along i, ...) as in
    `channel_gate_backward`.
    """
    P = count_positions(P_UNITS, UNIT, WIDE)
    positions = count_positions(position_units, UNIT, WIDE)
    dtype: tl.constexpr = x.dtype.element_ty
    unit = tl.arange(0, BLOCK_H)
    is_unit = unit < h
    start = tl.program_id(1) * BLOCK_C
    channel, is_channel = _channels(start, C, groups, BLOCK_C, GROUPS)
    bias2 = load_vector(b2, channel, is_channel, 0.0)
    weight2 = _load_w2(w2, channel, is_channel, unit, is_unit, h, dtype)
    sum_w1 = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)  # transposed
    sum_w2 = tl.zeros((BLOCK_C, BLOCK_H), tl.float32)
    sum_b1 = tl.zeros((BLOCK_H,), tl.float32)
    sum_b2 = tl.zeros((BLOCK_C,), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(positions, BLOCK_P), tl.num_programs(0)):
        position, is_position = block_of_positions(block, positions, BLOCK_P, WIDE)
        at = unit.to(tl.int64)[:, None] * positions + position[None, :]
        at_unit = is_unit[:, None] & is_position[None, :]
        hidden = tl.load(hidden_in + at, mask=at_unit, other=0.0)
        g1 = tl.load(g1_in + at, mask=at_unit, other=0.0)
        tile = load_tile(x, channel, is_channel, position, is_position, C, P, X_LAST)
        g = _load_gradient(grad, start, position, is_position, C, P, GRAD_LAST, BLOCK_C, GROUPS)
        _a, slope = _gate(weight2, hidden, bias2, SIGMOID, PRECISION)
        inside = is_channel[:, None] & is_position[None, :]
        g2 = tl.where(inside, g * tile.to(tl.float32) * slope, 0.0)
        sum_w1 = tl.dot(tile, tl.trans(g1), sum_w1, input_precision=PRECISION)
        sum_w2 = tl.dot(g2.to(dtype), tl.trans(hidden), sum_w2, input_precision=PRECISION)
        sum_b1 += tl.sum(g1.to(tl.float32), 1)
        sum_b2 += tl.sum(g2, 1)
    row = partial + tl.program_id(0).to(tl.int64) * (2 * h * C + h + C)
    _store_sums(row, sum_w1, sum_w2, sum_b2, channel, is_channel, unit, is_unit, C, h)
    if tl.program_id(1) == 0:
        tl.store(row + h * C + unit, sum_b1, mask=is_unit)
