"""Set bands of frames and of frequency bins to one value. Bits are copied, so that every dtype is exact.

spectrogram, out: (batch, freq, time), viewed as integers of the size of their elements. start, width: (batch,
bands) integers, or (bands,) if SHARED. Band i of sample b is start[b, i] <= position < start[b, i] +
width[b, i]. The first time_bands bands are bands of frames, the others are bands of bins. fill: the value, an
integer like the spectrogram's, or None: then bits is the value. Grids have one dimension, since the others
are limited to 65535.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "freq", "bands", "time_bands", "bits"])
def spectrogram_mask(
    spectrogram, start, width, out, rows, freq, time, bands, time_bands, bits, fill,
    SHARED: tl.constexpr, TIME: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """``out[b, f, t] = value`` in a band, else ``spectrogram[b, f, t]``; rows = batch * freq.

    TIME: whether there are bands of frames. Masked rows are not read. Masked frames are, since accesses
    would otherwise be of single elements.
    """
    along_t = tl.cdiv(time, BLOCK_T)
    block = tl.program_id(0)
    row = (block // along_t).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = block % along_t * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = row < rows
    inside = is_row[:, None] & (column < time)[None, :]
    bin_ = row % freq
    band = row * 0 if SHARED else row // freq * bands
    masked_row = is_row & False
    for i in range(time_bands, bands):
        # The distance from the start cannot overflow, start + width could.
        from_start = bin_ - tl.load(start + band + i, mask=is_row, other=0)
        masked_row |= (from_start >= 0) & (from_start < tl.load(width + band + i, mask=is_row, other=0))
    at = row[:, None] * time + column[None, :]
    tile = tl.load(spectrogram + at, mask=inside & ~masked_row[:, None], other=0)
    masked = inside & masked_row[:, None]
    if TIME:
        frame = column.to(tl.int64)[None, :]
        for i in range(time_bands):
            from_start = frame - tl.load(start + band + i, mask=is_row, other=0)[:, None]
            count = tl.load(width + band + i, mask=is_row, other=0)[:, None]
            masked |= (from_start >= 0) & (from_start < count)
    value = bits.to(out.dtype.element_ty) if fill is None else tl.load(fill)
    tl.store(out + at, tl.where(masked, value, tile), mask=inside)


@triton.jit(do_not_specialize=["freq", "bands", "time_bands", "bits"])
def spectrogram_mask_in_place(
    spectrogram, start, width, freq, time, bands, time_bands, bits, fill,
    SHARED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Write the value into the bands, and nothing else.

    There is one program per band of a sample and BLOCK_T columns. Where bands overlap, programs write the
    same.
    """
    along_t = tl.cdiv(time, BLOCK_T)
    block = tl.program_id(0)
    band = block // along_t
    sample = band // bands
    is_time = band - sample * bands < time_bands
    if SHARED:
        band -= sample * bands
    first = tl.load(start + band).to(tl.int64)
    count = tl.load(width + band).to(tl.int64)
    # The band is cut to existing positions. These differences cannot overflow, first + count could.
    if first < 0:
        count = tl.where(count > 0, count + first, 0)
        first = first * 0
    size = tl.where(is_time, time, freq)
    count = tl.where(first < size, tl.minimum(count, size - first), 0)
    first_column = block % along_t * BLOCK_T
    column = first_column + tl.arange(0, BLOCK_T)
    element = bits.to(spectrogram.dtype.element_ty) if fill is None else tl.load(fill)
    value = tl.full((BLOCK_ROWS, BLOCK_T), 0, spectrogram.dtype.element_ty) + element
    top = sample.to(tl.int64) * freq
    if is_time:
        # `count` columns of all rows, counted from the band's first one
        rows = tl.where(first_column < count, freq, 0).to(tl.int64)
        for done in range(0, rows, BLOCK_ROWS):
            row = done + tl.arange(0, BLOCK_ROWS)
            at = (top + row)[:, None] * time + (first + column)[None, :]
            tl.store(spectrogram + at, value, mask=(row < rows)[:, None] & (column < count)[None, :])
    else:
        # all columns of `count` rows, in accesses as wide as the alignment of the rows allows
        top += first
        for done in range(0, count, BLOCK_ROWS):
            row = done + tl.arange(0, BLOCK_ROWS)
            at = (top + row)[:, None] * time + column[None, :]
            tl.store(spectrogram + at, value, mask=(row < count)[:, None] & (column < time)[None, :])
