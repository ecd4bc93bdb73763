"""Bands of frequency bins set to one value, on the bits of the elements: exact in every dtype."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "freq", "bands", "bits"])
def frequency_mask(
    spectrogram, start, width, out, rows, freq, time, bands, bits,
    SHARED: tl.constexpr, IN_PLACE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """``out[b, f] = value`` where ``start[b, i] <= f < start[b, i] + width[b, i]`` for some band i, else
    ``spectrogram[b, f]``.

    spectrogram, out: (batch, freq, time) as integers of their elements' size, rows = batch * freq; masked
    rows are not read, and IN_PLACE the others are neither read nor written. start, width: (batch, bands)
    integers, or (bands,) if SHARED. bits: those of the value.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row = row < rows
    bin_ = row % freq
    band = row * 0 if SHARED else row // freq * bands
    masked = is_row & False
    for i in range(bands):
        # Compared as a distance, which cannot overflow where start + width would.
        from_start = bin_ - tl.load(start + band + i, mask=is_row, other=0)
        masked |= (from_start >= 0) & (from_start < tl.load(width + band + i, mask=is_row, other=0))
    masked &= is_row
    at = row[:, None] * time + column[None, :]
    is_column = (column < time)[None, :]
    value = bits.to(out.dtype.element_ty)
    if IN_PLACE:
        tl.store(out + at, tl.broadcast_to(value, (BLOCK_ROWS, BLOCK_T)), mask=masked[:, None] & is_column)
    else:
        kept = (is_row & ~masked)[:, None] & is_column
        tile = tl.load(spectrogram + at, mask=kept, other=0)
        tl.store(out + at, tl.where(masked[:, None], value, tile), mask=is_row[:, None] & is_column)
