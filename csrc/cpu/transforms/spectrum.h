// The spectrum of a real tile of height x width points, for many channels at once (one per vector lane), and back.
//
// Only half of a real signal's spectrum is kept, F[-ky, -kx] being the conjugate of F[ky, kx]:
//
//   columns kx = 1 ... width / 2 - 1       all ky                     frequency (kx - 1) * height + ky
//   column  kx = 0, then kx = width / 2    ky = 0 ... height / 2 - 1  after those
//
// F[0, kx] and F[height / 2, kx] of the last two columns are real. They are stored together, as the real and the imaginary
// part of frequency ky = 0.
//
// Two rows (real) go through one complex transform as its real and imaginary part, and so do the columns kx = 0 and
// kx = width / 2, which are real after the rows' transform. Taking the two apart leaves a factor of 2, the same at every
// frequency, in the spectrum: see `scale`.
#pragma once

#include <cstdint>

#include "cpu/transforms/fft.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

template <class T>
class TileTransform {
    static constexpr int L = lanes<T>;

   public:
    TileTransform(int64_t height, int64_t width)
        : height_(height), width_(width), y_(find_length<T>(height)), x_(find_length<T>(width)) {}

    // The factor that makes `inverse` of a product of two spectra the convolution.
    T scale() const { return T(1) / T(4 * height_ * width_); }
    // The scratch memory of one transform, in elements.
    static constexpr int64_t scratch(int64_t height, int64_t width) { return (width / 2 * height + width) * 2 * L; }

    // row(y) returns the address of row y, `width` vectors, or null where it is zero; all rows are zero, and not read,
    // outside of [begin, end). Frequency f goes to out + f * stride: the real parts, then the imaginary ones, and if it is
    // to have three parts their sums.
    template <int parts, class Row>
    void forward(const Row& row, int64_t begin, int64_t end, T* out, int64_t stride, T* scratch) const {
        const int64_t half = width_ / 2, H = height_;
        T* const columns = scratch;
        T* const zeros = columns + half * H * 2 * L;
        for (int64_t i = 0; i < width_; ++i) store(zeros + i * L, vec<T>{}, Full<T>{});

        for (int64_t y = 0; y < H; y += 2) {
            const T *const upper = row(y), *const lower = row(y + 1);
            T* const at = columns + y * 2 * L;
            if (upper || lower)
                x_.fft_of_rows(upper ? upper : zeros, lower ? lower : zeros, begin, end, at, H * 2 * L);
            else
                for (int64_t k = 0; k < half; ++k)
                    for (int i = 0; i < 4; ++i) store(at + k * H * 2 * L + i * L, vec<T>{}, Full<T>{});
        }

        const Fft<T> column_fft = parts == 3 ? y_.fft_and_sums : y_.fft;
        prefetch_column_<parts>(out, H, stride);
        for (int64_t k = 1; k < half; ++k) {
            prefetch_column_<parts>(out + k * H * stride, H, stride);
            T* const from = columns + k * H * 2 * L;
            T* const to = out + (k - 1) * H * stride;
            column_fft({from, from + L, 2 * L}, {to, to + L, stride});
        }
        y_.fft({columns, columns + L, 2 * L}, {columns, columns + L, 2 * L});
        T* const first = out + (half - 1) * H * stride;
        T* const middle = first + H / 2 * stride;
        const auto lowest = at_(columns, 0), highest = at_(columns, H / 2);
        put<2>(Sequence<T>{first, first + L, stride}, 0, {2 * lowest.re, 2 * highest.re});
        put<2>(Sequence<T>{middle, middle + L, stride}, 0, {2 * lowest.im, 2 * highest.im});
        for (int64_t k = 1; k < H / 2; ++k) {
            const auto a = at_(columns, k), b = at_(columns, H - k);
            put<parts>(Sequence<T>{first, first + L, stride}, k * stride, {a.re + b.re, a.im - b.im});
            put<parts>(Sequence<T>{middle, middle + L, stride}, k * stride, {a.im + b.im, b.re - a.re});
        }
    }

    // sink(i, row, step) gets row (first + i) mod height for i = 0 ... count - 1: `width` vectors, `step` elements apart.
    template <class Sink>
    void inverse(const T* in, int64_t stride, int64_t first_row, int64_t count, const Sink& sink, T* scratch) const {
        const int64_t half = width_ / 2, H = height_;
        T* const columns = scratch;
        T* const pair = columns + half * H * 2 * L;

        for (int64_t k = 1; k < half; ++k) {
            T* const from = const_cast<T*>(in) + (k - 1) * H * stride;
            for (int64_t f = 0; f < H; ++f) prefetch(from + (H + f) * stride, 2 * L);  // the next column
            T* const to = columns + k * H * 2 * L;
            cpu::GCSA_EXT_ISA::inverse<T>(y_.fft, {from, from + L, stride}, {to, to + L, 2 * L});
        }
        const T* const first = in + (half - 1) * H * stride;
        const T* const middle = first + H / 2 * stride;
        const auto real_of_first = at_(first, 0), real_of_middle = at_(middle, 0);
        put_(columns, 0, {real_of_first.re, real_of_middle.re});
        put_(columns, H / 2, {real_of_first.im, real_of_middle.im});
        for (int64_t k = 1; k < H / 2; ++k) {
            const auto a = at_(first + k * stride, 0), b = at_(middle + k * stride, 0);
            put_(columns, k, {a.re - b.im, a.im + b.re});
            put_(columns, H - k, {a.re + b.im, b.re - a.im});
        }
        cpu::GCSA_EXT_ISA::inverse<T>(y_.fft, {columns, columns + L, 2 * L}, {columns, columns + L, 2 * L});

        for (int64_t i = 0; i < count; i += 2) {
            const int64_t upper = (first_row + i) % H, lower = (first_row + i + 1) % H;
            x_.inverse_of_rows(columns, H * 2 * L, upper * 2 * L, lower * 2 * L, pair);
            sink(i, pair, int64_t(2 * L));
            if (i + 1 < count) sink(i + 1, pair + L, int64_t(2 * L));
        }
    }

   private:
    // Prefetches the places that a column's spectrum is written to, one per frequency. The last products have likely left
    // them in another core's cache. (Inlined for the reason in vector.h.)
    template <int parts>
    static GCSA_EXT_INLINE void prefetch_column_(T* out, int64_t height, int64_t stride) {
        for (int64_t f = 0; f < height; ++f) prefetch_to_write(out + f * stride, parts * L);
    }
    static Complex<T> at_(const T* base, int64_t i) {
        return {load(base + i * 2 * L, Full<T>{}), load(base + i * 2 * L + L, Full<T>{})};
    }
    static void put_(T* base, int64_t i, Complex<T> value) {
        store(base + i * 2 * L, value.re, Full<T>{});
        store(base + i * 2 * L + L, value.im, Full<T>{});
    }

    int64_t height_, width_;
    Length<T> y_, x_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
