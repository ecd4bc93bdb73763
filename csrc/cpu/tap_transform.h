// The spectrum of a kernel's taps in a tile, for many channels at once, and back.
//
// With so few taps the sums are shorter than a fast transform. Along one axis, with the taps at -R ... R around 0,
//
//   W[k] = w[0] + sum_d (w[d] + w[-d]) cos(2 pi k d / T)  -  i sum_d (w[d] - w[-d]) sin(2 pi k d / T),    d = 1 ... R
//
// and W[T - k] differs in a sign only. Frequencies are numbered as in spectrum.h, without its factor of 2.
#pragma once

#include <cstdint>

#include "fft.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

constexpr int largest_radius = 5;

template <class T>
class TapTransform {
    static constexpr int L = lanes<T>;

   public:
    TapTransform(int64_t height, int64_t width, int64_t kernel)
        : height_(static_cast<int>(height)), width_(static_cast<int>(width)), radius_(static_cast<int>(kernel / 2)) {
        fill_(y_, height_);
        fill_(x_, width_);
    }

    // What a product with a spectrum of TileTransform must be multiplied by; of two of these, for `backward`.
    T scale() const { return T(1) / T(2 * height_ * width_); }
    T backward_scale() const { return T(1) / T(4 * height_ * width_); }
    // The scratch memory of one transform, in elements.
    static constexpr int64_t scratch(int64_t width, int64_t kernel) { return kernel * (width / 2 + 1) * 2 * L; }

    // taps: (kernel, kernel) vectors; frequency f goes to out + f * stride, real and then imaginary parts. `conjugate` takes
    // the taps from the other end of both axes.
    void forward(const T* taps, bool conjugate, T* out, int64_t stride, T* scratch) const {
        switch (radius_) {
            case 1: return forward_<1>(taps, conjugate, out, stride, scratch);
            case 2: return forward_<2>(taps, conjugate, out, stride, scratch);
            case 3: return forward_<3>(taps, conjugate, out, stride, scratch);
            case 4: return forward_<4>(taps, conjugate, out, stride, scratch);
            case 5: return forward_<5>(taps, conjugate, out, stride, scratch);
        }
    }
    // The values at the taps' places of what has this spectrum, times height * width.
    void backward(const T* in, int64_t stride, T* taps, T* scratch) const {
        switch (radius_) {
            case 1: return backward_<1>(in, stride, taps, scratch);
            case 2: return backward_<2>(in, stride, taps, scratch);
            case 3: return backward_<3>(in, stride, taps, scratch);
            case 4: return backward_<4>(in, stride, taps, scratch);
            case 5: return backward_<5>(in, stride, taps, scratch);
        }
    }

   private:
    struct Waves {  // of 2 pi k d / length, for k = 0 ... length / 2 and d = 1 ... largest_radius
        T cos[longest_fft / 2 + 1][largest_radius], sin[longest_fft / 2 + 1][largest_radius];
    };
    static void fill_(Waves& waves, int length) {
        const Length<T> table = find_length<T>(length);
        for (int k = 0; k <= length / 2; ++k)
            for (int d = 1; d <= largest_radius; ++d) {
                waves.cos[k][d - 1] = table.cos[k * d % length];
                waves.sin[k][d - 1] = table.sin[k * d % length];
            }
    }
    static vec<T> get_(const T* from) { return load(from, Full<T>{}); }
    static void put_(T* to, vec<T> re, vec<T> im) {
        store(to, re, Full<T>{});
        store(to + L, im, Full<T>{});
    }

    template <int R>
    void forward_(const T* taps, bool conjugate, T* out, int64_t stride, T* scratch) const {
        constexpr int K = 2 * R + 1;
        const int half = width_ / 2, H = height_;
        const int64_t row = (half + 1) * 2 * L;  // of scratch: the spectra of the rows
        for (int y = 0; y < K; ++y) {
            const T* const w = taps + y * K * L + R * L;
            vec<T> even[R], odd[R];
            for (int d = 1; d <= R; ++d) {
                even[d - 1] = get_(w + d * L) + get_(w - d * L);
                odd[d - 1] = get_(w - d * L) - get_(w + d * L);
            }
            const vec<T> middle = get_(w);
            for (int k = 0; k <= half; ++k) {
                vec<T> re = middle, im{};
                for (int d = 0; d < R; ++d) {
                    re += x_.cos[k][d] * even[d];
                    im += x_.sin[k][d] * odd[d];
                }
                put_(scratch + y * row + k * 2 * L, re, im);
            }
        }
        const T sign = conjugate ? T(-1) : T(1);
        for (int k = 0; k <= half; ++k) {
            const T* const w = scratch + R * row + k * 2 * L;
            vec<T> even_re[R], even_im[R], odd_re[R], odd_im[R];
            for (int d = 1; d <= R; ++d) {
                const T *const after = w + d * row, *const before = w - d * row;
                even_re[d - 1] = get_(after) + get_(before);
                even_im[d - 1] = sign * (get_(after + L) + get_(before + L));
                odd_re[d - 1] = sign * (get_(after) - get_(before));
                odd_im[d - 1] = get_(after + L) - get_(before + L);
            }
            const vec<T> middle_re = get_(w), middle_im = sign * get_(w + L);
            const bool edge = k == 0 || k == half;  // real rows: half of the column is the other's conjugate
            const int first = !edge ? (k - 1) * H : (half - 1) * H + (k == 0 ? 0 : H / 2 + 1);
            for (int j = 0; j <= H / 2; ++j) {
                vec<T> re = middle_re, im = middle_im, a{}, b{};
                for (int d = 0; d < R; ++d) {
                    re += y_.cos[j][d] * even_re[d];
                    im += y_.cos[j][d] * even_im[d];
                    a += y_.sin[j][d] * odd_im[d];
                    b += y_.sin[j][d] * odd_re[d];
                }
                put_(out + (first + j) * stride, re + a, im - b);
                if (!edge && j > 0 && j < H / 2) put_(out + (first + H - j) * stride, re - a, im + b);
            }
        }
    }

    template <int R>
    void backward_(const T* in, int64_t stride, T* taps, T* scratch) const {
        constexpr int K = 2 * R + 1;
        const int half = width_ / 2, H = height_;
        const int64_t row = (half + 1) * 2 * L;
        for (int k = 0; k <= half; ++k) {
            const bool edge = k == 0 || k == half;
            const int first = !edge ? (k - 1) * H : (half - 1) * H + (k == 0 ? 0 : H / 2 + 1);
            // sum_j F[j] exp(2 pi i j d / H) = even[d] + odd[d], of which odd changes its sign with d
            vec<T> even_re[R + 1] = {}, even_im[R + 1] = {}, odd_re[R] = {}, odd_im[R] = {};
            for (int j = 0; j <= H / 2; ++j) {
                const T* const at = in + (first + j) * stride;
                vec<T> re = get_(at), im = get_(at + L), sum_re = re, sum_im = im, difference_re = re, difference_im = im;
                if (j > 0 && j < H / 2) {  // and its mirror image, for the edges the conjugate
                    const T* const mirror = edge ? at : in + (first + H - j) * stride;
                    const vec<T> mirror_re = get_(mirror), mirror_im = edge ? -get_(mirror + L) : get_(mirror + L);
                    sum_re += mirror_re;
                    sum_im += mirror_im;
                    difference_re -= mirror_re;
                    difference_im -= mirror_im;
                }
                even_re[0] += sum_re;
                even_im[0] += sum_im;
                for (int d = 0; d < R; ++d) {
                    even_re[d + 1] += y_.cos[j][d] * sum_re;
                    even_im[d + 1] += y_.cos[j][d] * sum_im;
                    odd_re[d] -= y_.sin[j][d] * difference_im;
                    odd_im[d] += y_.sin[j][d] * difference_re;
                }
            }
            T* const to = scratch + R * row + k * 2 * L;
            put_(to, even_re[0], even_im[0]);
            for (int d = 0; d < R; ++d) {
                put_(to + (d + 1) * row, even_re[d + 1] + odd_re[d], even_im[d + 1] + odd_im[d]);
                put_(to - (d + 1) * row, even_re[d + 1] - odd_re[d], even_im[d + 1] - odd_im[d]);
            }
        }
        for (int y = 0; y < K; ++y) {
            // Columns between the edges stand for two, one the other's conjugate.
            vec<T> even[R + 1] = {}, odd[R] = {};
            for (int k = 0; k <= half; ++k) {
                const T* const at = scratch + y * row + k * 2 * L;
                const T twice = k == 0 || k == half ? T(1) : T(2);
                const vec<T> re = twice * get_(at), im = twice * get_(at + L);
                even[0] += re;
                for (int d = 0; d < R; ++d) {
                    even[d + 1] += x_.cos[k][d] * re;
                    odd[d] -= x_.sin[k][d] * im;
                }
            }
            T* const to = taps + (y * K + R) * L;
            store(to, even[0], Full<T>{});
            for (int d = 0; d < R; ++d) {
                store(to + (d + 1) * L, even[d + 1] + odd[d], Full<T>{});
                store(to - (d + 1) * L, even[d + 1] - odd[d], Full<T>{});
            }
        }
    }

    int height_, width_, radius_;
    Waves y_, x_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
