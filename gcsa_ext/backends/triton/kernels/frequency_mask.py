"""Set bands of frequency bins to one value. Bits are copied, so the result is exact in every dtype.

spectrogram, out: (batch, freq, time), viewed as integers of the size of their elements. bits: the bits of the
value. start, width: (batch, bands) integers, or (bands,) if SHARED. Band i of sample b is the bins f with
``start[b, i] <= f < start[b, i] + width[b, i]``. Grids have one dimension, since the others are limited to
65535.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "freq", "bands", "bits"])
def frequency_mask(
    spectrogram, start, width, out, rows, freq, time, bands, bits,
    SHARED: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """``out[b, f] = value`` in a band, else ``spectrogram[b, f]``; rows = batch * freq.

    Masked rows are not read.
    """
    along_t = tl.cdiv(time, BLOCK_T)
    block = tl.program_id(0)
    row = (block // along_t).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = block % along_t * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = row < rows
    bin_ = row % freq
    band = row * 0 if SHARED else row // freq * bands
    masked = is_row & False
    for i in range(bands):
        # The distance from the start cannot overflow, start + width could.
        from_start = bin_ - tl.load(start + band + i, mask=is_row, other=0)
        masked |= (from_start >= 0) & (from_start < tl.load(width + band + i, mask=is_row, other=0))
    masked &= is_row
    at = row[:, None] * time + column[None, :]
    is_column = (column < time)[None, :]
    kept = (is_row & ~masked)[:, None] & is_column
    tile = tl.load(spectrogram + at, mask=kept, other=0)
    value = bits.to(out.dtype.element_ty)
    tl.store(out + at, tl.where(masked[:, None], value, tile), mask=is_row[:, None] & is_column)


@triton.jit(do_not_specialize=["freq", "bands", "bits"])
def frequency_mask_in_place(
    spectrogram, start, width, freq, time, bands, bits,
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
    if SHARED:
        band -= sample * bands
    first = tl.load(start + band).to(tl.int64)
    count = tl.load(width + band).to(tl.int64)
    # The band is cut to existing bins. These differences cannot overflow, first + count could.
    if first < 0:
        count = tl.where(count > 0, count + first, 0)
        first = first * 0
    count = tl.where(first < freq, tl.minimum(count, freq - first), 0)
    column = block % along_t * BLOCK_T + tl.arange(0, BLOCK_T)
    is_column = (column < time)[None, :]
    value = tl.full((BLOCK_ROWS, BLOCK_T), bits, spectrogram.dtype.element_ty)
    top = sample.to(tl.int64) * freq + first
    for done in range(0, count, BLOCK_ROWS):
        row = done + tl.arange(0, BLOCK_ROWS)
        at = (top + row)[:, None] * time + column[None, :]
        tl.store(spectrogram + at, value, mask=(row < count)[:, None] & is_column)
