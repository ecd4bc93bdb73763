// The spectrum of a kernel's taps in a tile, for many channels at once, and back.
//
// With so few taps the sums are shorter than a fast transform. Along one axis, with the taps at -R ... R around 0,
//
//   W[k] = w[0] + sum_d (w[d] + w[-d]) cos(2 pi k d / T)  -  i sum_d (w[d] - w[-d]) sin(2 pi k d / T),    d = 1 ... R
//
// and W[T - k] differs in a sign only. Frequencies are numbered as in spectrum.h, without its factor of 2.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/transforms/fft.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

constexpr int largest_radius = 5;

template <class T>
class TapTransform {
    static constexpr int L = lanes<T>;

   public:
    TapTransform(int64_t height, int64_t width, int64_t kernel)
        : height_(static_cast<int>(height)),
          width_(static_cast<int>(width)),
          radius_(static_cast<int>(kernel / 2)),
          scale_(T(1) / T(2 * height * width)) {
        fill_(y_, height_, 1);
        fill_(x_, width_, 1);
        fill_(scaled_x_, width_, scale_);
    }

    // The factor for `backward` of a product of two spectra of TileTransform.
    T backward_scale() const { return T(1) / T(4 * height_ * width_); }
    // The memory of the rows' spectra of one input, in elements.
    static constexpr int64_t rows_size(int64_t width, int64_t kernel) { return kernel * (width / 2) * 2 * L; }
    // Columns of a spectrum, and where the frequencies of each begin.
    int columns() const { return width_ / 2 + 1; }
    int first_frequency(int column) const {
        const int half = width_ / 2;
        return column == 0      ? (half - 1) * height_
               : column == half ? (half - 1) * height_ + height_ / 2
                                : (column - 1) * height_;
    }

    // From taps, (kernel, kernel) vectors, to the spectra of their rows. They are scaled so that a product with a spectrum
    // of TileTransform needs no other factor.
    void forward_rows(const T* taps, T* rows) const {
        with_radius_([&](auto R) { forward_rows_<R.value>(taps, rows); });
    }
    // From those of `count` inputs, `rows_size` apart, to one column of their spectra: frequency j of input i goes to
    // out + j * stride + i * 2 L.
    GCSA_EXT_INLINE void forward_column(const T* rows, int64_t count, int column, T* out, int64_t stride) const {
        with_radius_([&](auto R) __attribute__((always_inline)) {
            const int64_t size = rows_size(width_, 2 * R.value + 1);
            for (int64_t i = 0; i < count; ++i)
                if (is_edge_(column))
                    forward_edge_<R.value>(rows + i * size, column, out + i * 2 * L, stride);
                else
                    forward_column_<R.value>(rows + i * size, column, out + i * 2 * L, stride);
        });
    }
    int frequencies(int column) const { return is_edge_(column) ? height_ / 2 : height_; }
    // From a spectrum to the values at the places of the taps, times height * width. `rows` is scratch.
    void backward(const T* in, int64_t stride, T* taps, T* rows) const {
        with_radius_([&](auto R) { backward_<R.value>(in, stride, taps, rows); });
    }

   private:
    struct Waves {  // of 2 pi k d / length, for k = 0 ... length / 2 and d = 1 ... largest_radius
        T cos[longest_fft / 2 + 1][largest_radius], sin[longest_fft / 2 + 1][largest_radius];
    };
    static void fill_(Waves& waves, int length, T factor) {
        const Length<T> table = find_length<T>(length);
        for (int k = 0; k <= length / 2; ++k)
            for (int d = 1; d <= largest_radius; ++d) {
                waves.cos[k][d - 1] = factor * table.cos[k * d % length];
                waves.sin[k][d - 1] = factor * table.sin[k * d % length];
            }
    }
    template <class Body>
    GCSA_EXT_INLINE void with_radius_(const Body& body) const {
        switch (radius_) {
            case 1: return body(std::integral_constant<int, 1>{});
            case 2: return body(std::integral_constant<int, 2>{});
            case 3: return body(std::integral_constant<int, 3>{});
            case 4: return body(std::integral_constant<int, 4>{});
            case 5: return body(std::integral_constant<int, 5>{});
        }
    }
    // Columns whose rows are real: half of such a column is the conjugate of the other half.
    bool is_edge_(int column) const { return column == 0 || 2 * column == width_; }
    static vec<T> get_(const T* from) { return load(from, Full<T>{}); }
    static void put_(T* to, vec<T> re, vec<T> im) {
        store(to, re, Full<T>{});
        store(to + L, im, Full<T>{});
    }

    // The sums over the taps at an even and at an odd distance from the middle, for a frequency k of up to a quarter of the
    // length T. Those of T / 2 - k differ in signs only: cos(2 pi (T / 2 - k) d / T) = +- cos(2 pi k d / T).
    struct Halves {
        vec<T> even, odd;
    };
    template <int R>
    static GCSA_EXT_INLINE Halves cosine_sums_(const T* cos, vec<T> middle, const vec<T> (&w)[R]) {
        Halves sum{middle, cos[0] * w[0]};
        for (int d = 2; d <= R; ++d) (d % 2 ? sum.odd : sum.even) += cos[d - 1] * w[d - 1];
        return sum;
    }
    template <int R>
    static GCSA_EXT_INLINE Halves sine_sums_(const T* sin, const vec<T> (&w)[R]) {
        Halves sum{R > 1 ? sin[1] * w[R > 1] : vec<T>{}, sin[0] * w[0]};
        for (int d = 3; d <= R; ++d) (d % 2 ? sum.odd : sum.even) += sin[d - 1] * w[d - 1];
        return sum;
    }

    // rows: [column][row of taps][re, im], but column width / 2, which is real as column 0 is, in place of its imaginary
    // part
    template <int R>
    void forward_rows_(const T* taps, T* rows) const {
        constexpr int K = 2 * R + 1;
        const int half = width_ / 2;
        for (int y = 0; y < K; ++y) {
            const T* const w = taps + y * K * L + R * L;
            vec<T> plus[R], minus[R];
            for (int d = 1; d <= R; ++d) {
                plus[d - 1] = get_(w + d * L) + get_(w - d * L);
                minus[d - 1] = get_(w - d * L) - get_(w + d * L);
            }
            const vec<T> middle = scale_ * get_(w);
            T* const to = rows + y * 2 * L;
            const Halves real = cosine_sums_(scaled_x_.cos[0], middle, plus);
            put_(to, real.even + real.odd, real.even - real.odd);
            for (int k = 1; k <= half / 2; ++k) {
                const Halves re = cosine_sums_(scaled_x_.cos[k], middle, plus), im = sine_sums_(scaled_x_.sin[k], minus);
                put_(to + k * K * 2 * L, re.even + re.odd, im.odd + im.even);
                put_(to + (half - k) * K * 2 * L, re.even - re.odd, im.odd - im.even);
            }
        }
    }

    template <int R>
    GCSA_EXT_INLINE void forward_column_(const T* rows, int column, T* out, int64_t stride) const {
        constexpr int K = 2 * R + 1, row = 2 * L;
        const int half = height_ / 2;
        const T* const w = rows + (column * K + R) * row;
        vec<T> plus_re[R], plus_im[R], minus_re[R], minus_im[R];
        for (int d = 1; d <= R; ++d) {
            const T *const after = w + d * row, *const before = w - d * row;
            plus_re[d - 1] = get_(after) + get_(before);
            plus_im[d - 1] = get_(after + L) + get_(before + L);
            minus_re[d - 1] = get_(after) - get_(before);
            minus_im[d - 1] = get_(after + L) - get_(before + L);
        }
        const vec<T> middle_re = get_(w), middle_im = get_(w + L);
        // 0 and half, where the sines are 0
        const Halves re = cosine_sums_(y_.cos[0], middle_re, plus_re), im = cosine_sums_(y_.cos[0], middle_im, plus_im);
        put_(out, re.even + re.odd, im.even + im.odd);
        put_(out + half * stride, re.even - re.odd, im.even - im.odd);
        // j and half - j, and behind half their mirror images
        for (int j = 1; j <= half / 2; ++j) {
            const Halves re = cosine_sums_(y_.cos[j], middle_re, plus_re), im = cosine_sums_(y_.cos[j], middle_im, plus_im);
            const Halves a = sine_sums_(y_.sin[j], minus_im), b = sine_sums_(y_.sin[j], minus_re);
            const auto put = [&](int to, vec<T> re, vec<T> im, vec<T> a, vec<T> b) {
                put_(out + to * stride, re + a, im - b);
                put_(out + (height_ - to) * stride, re - a, im + b);
            };
            put(j, re.even + re.odd, im.even + im.odd, a.odd + a.even, b.odd + b.even);
            if (2 * j < half) put(half - j, re.even - re.odd, im.even - im.odd, a.odd - a.even, b.odd - b.even);
        }
    }
    // The rows are real here, and half of the column is the conjugate of the other half.
    template <int R>
    GCSA_EXT_INLINE void forward_edge_(const T* rows, int column, T* out, int64_t stride) const {
        constexpr int row = 2 * L;
        const int half = height_ / 2;
        const T* const w = rows + R * row + (column ? L : 0);
        vec<T> plus[R], minus[R];
        for (int d = 1; d <= R; ++d) {
            plus[d - 1] = get_(w + d * row) + get_(w - d * row);
            minus[d - 1] = get_(w - d * row) - get_(w + d * row);
        }
        const vec<T> middle = get_(w);
        const Halves real = cosine_sums_(y_.cos[0], middle, plus);
        put_(out, real.even + real.odd, real.even - real.odd);
        for (int j = 1; j <= half / 2; ++j) {
            const Halves re = cosine_sums_(y_.cos[j], middle, plus), im = sine_sums_(y_.sin[j], minus);
            put_(out + j * stride, re.even + re.odd, im.odd + im.even);
            put_(out + (half - j) * stride, re.even - re.odd, im.odd - im.even);
        }
    }

    // Adds the terms of frequencies k and T / 2 - k, given as their sum and difference, to the sums for all distances.
    template <int R>
    static GCSA_EXT_INLINE void add_cosines_(const T* cos, vec<T> plus, vec<T> minus, vec<T> (&sum)[R + 1]) {
        sum[0] += plus;
        for (int d = 1; d <= R; ++d) sum[d] += cos[d - 1] * (d % 2 ? minus : plus);
    }
    template <int R>
    static GCSA_EXT_INLINE void add_sines_(const T* sin, vec<T> plus, vec<T> minus, vec<T> (&sum)[R + 1]) {
        for (int d = 1; d <= R; ++d) sum[d] += sin[d - 1] * (d % 2 ? plus : minus);
    }

    template <int R>
    void backward_(const T* in, int64_t stride, T* taps, T* rows) const {
        for (int k = 0; k < columns(); ++k)
            is_edge_(k) ? backward_edge_<R>(in + first_frequency(k) * stride, stride, k, rows)
                        : backward_column_<R>(in + first_frequency(k) * stride, stride, k, rows);
        for (int y = 0; y < 2 * R + 1; ++y) backward_row_<R>(rows, y, taps);
    }

    // sum_j F[j] exp(2 pi i j d / H) = even[d] + odd[d], of which odd changes its sign with d
    template <int R>
    void backward_column_(const T* in, int64_t stride, int column, T* rows) const {
        constexpr int K = 2 * R + 1, row = 2 * L;
        const int H = height_, half = H / 2;
        struct Pair {
            vec<T> sum_re, sum_im, difference_re, difference_im;
        };
        // A frequency and its mirror image
        const auto pair = [&](int j) -> Pair {
            const T* const at = in + j * stride;
            const vec<T> re = get_(at), im = get_(at + L);
            if (j == 0 || j == half) return {re, im, vec<T>{}, vec<T>{}};
            const T* const mirror = in + (H - j) * stride;
            const vec<T> mirror_re = get_(mirror), mirror_im = get_(mirror + L);
            return {re + mirror_re, im + mirror_im, re - mirror_re, im - mirror_im};
        };
        vec<T> even_re[R + 1] = {}, even_im[R + 1] = {}, odd_re[R + 1] = {}, odd_im[R + 1] = {};
        for (int j = 0; j <= half / 2; ++j) {
            const Pair a = pair(j), b = 2 * j == half ? Pair{} : pair(half - j);
            const T *const cos = y_.cos[j], *const sin = y_.sin[j];
            add_cosines_<R>(cos, a.sum_re + b.sum_re, a.sum_re - b.sum_re, even_re);
            add_cosines_<R>(cos, a.sum_im + b.sum_im, a.sum_im - b.sum_im, even_im);
            add_sines_<R>(sin, a.difference_re + b.difference_re, a.difference_re - b.difference_re, odd_im);
            add_sines_<R>(sin, a.difference_im + b.difference_im, a.difference_im - b.difference_im, odd_re);
        }
        T* const to = rows + (column * K + R) * row;
        put_(to, even_re[0], even_im[0]);
        for (int d = 1; d <= R; ++d) {
            put_(to + d * row, even_re[d] - odd_re[d], even_im[d] + odd_im[d]);
            put_(to - d * row, even_re[d] + odd_re[d], even_im[d] - odd_im[d]);
        }
    }
    // The mirror image is the conjugate, and the sums are real.
    template <int R>
    void backward_edge_(const T* in, int64_t stride, int column, T* rows) const {
        constexpr int row = 2 * L;
        const int half = height_ / 2;
        vec<T> even[R + 1] = {}, odd[R + 1] = {};
        add_cosines_<R>(y_.cos[0], get_(in) + get_(in + L), get_(in) - get_(in + L), even);
        for (int j = 1; j <= half / 2; ++j) {
            const T *const at = in + j * stride, *const other = in + (half - j) * stride;
            const bool middle = 2 * j == half;
            const vec<T> a_re = 2 * get_(at), a_im = 2 * get_(at + L);
            const vec<T> b_re = middle ? vec<T>{} : 2 * get_(other), b_im = middle ? vec<T>{} : 2 * get_(other + L);
            add_cosines_<R>(y_.cos[j], a_re + b_re, a_re - b_re, even);
            add_sines_<R>(y_.sin[j], a_im + b_im, a_im - b_im, odd);
        }
        T* const to = rows + R * row + (column ? L : 0);
        store(to, even[0], Full<T>{});
        for (int d = 1; d <= R; ++d) {
            store(to + d * row, even[d] - odd[d], Full<T>{});
            store(to - d * row, even[d] + odd[d], Full<T>{});
        }
    }
    // Columns between the edges stand for two, one the other's conjugate.
    template <int R>
    void backward_row_(const T* rows, int y, T* taps) const {
        constexpr int K = 2 * R + 1, row = 2 * L;
        const int half = width_ / 2;
        const auto column = [&](int k) { return rows + (k * K + y) * row; };
        vec<T> even[R + 1] = {}, odd[R + 1] = {};
        add_cosines_<R>(x_.cos[0], get_(column(0)) + get_(column(0) + L), get_(column(0)) - get_(column(0) + L), even);
        for (int k = 1; k <= half / 2; ++k) {
            const bool middle = 2 * k == half;
            const T *const at = column(k), *const other = column(half - k);
            const vec<T> a_re = 2 * get_(at), a_im = 2 * get_(at + L);
            const vec<T> b_re = middle ? vec<T>{} : 2 * get_(other), b_im = middle ? vec<T>{} : 2 * get_(other + L);
            add_cosines_<R>(x_.cos[k], a_re + b_re, a_re - b_re, even);
            add_sines_<R>(x_.sin[k], a_im + b_im, a_im - b_im, odd);
        }
        T* const to = taps + (y * K + R) * L;
        store(to, even[0], Full<T>{});
        for (int d = 1; d <= R; ++d) {
            store(to + d * L, even[d] - odd[d], Full<T>{});
            store(to - d * L, even[d] + odd[d], Full<T>{});
        }
    }

    int height_, width_, radius_;
    T scale_;
    Waves y_, x_, scaled_x_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
