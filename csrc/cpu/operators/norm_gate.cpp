// Norm gate on the CPU. A unit of work is a channel (contiguous) or a vector of neighbouring channels (channels_last), by
// one thread: statistics and result are computed while the data is in the cache, and no sum depends on the number of
// threads.

#include "params/norm_gate.h"

#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "cpu/sigmoid.h"
#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {
namespace {

// One unit of work.
template <class T, Layout layout>
struct Unit {
    using A = accumulator<T>;
    static constexpr bool one_channel = layout == Layout::contiguous;

    const FeatureMap& map;
    int64_t channel;  // the first

    static int64_t count(const FeatureMap& map) {
        return one_channel ? map.channels : (map.channels + lanes<A> - 1) / lanes<A>;
    }
    static Unit at(const FeatureMap& map, int64_t index) { return {map, one_channel ? index : index * lanes<A>}; }

    int width() const {  // channels
        return one_channel ? 1 : static_cast<int>(map.channels - channel < lanes<A> ? map.channels - channel : lanes<A>);
    }

    // Calls body(offset, count) for every vector, where count is Full<T> or the number of elements of a shorter one, and
    // end_of_segment() after every segment, where sums in a vector are to be added to float64 ones.
    template <class Body, class EndOfSegment>
    void for_each(const Body& body, const EndOfSegment& end_of_segment) const {
        if constexpr (one_channel) {
            for (int64_t n = 0; n < map.batch; ++n) {
                const int64_t base = (n * map.channels + channel) * map.positions;
                for (int64_t begin = 0; begin < map.positions; begin += segment * lanes<A>) {
                    const int64_t end =
                        begin + segment * lanes<A> < map.positions ? begin + segment * lanes<A> : map.positions;
                    int64_t i = begin;
                    for (; i + lanes<A> <= end; i += lanes<A>) body(base + i, Full<T>{});
                    if (i < end) body(base + i, static_cast<int>(end - i));
                    end_of_segment();
                }
            }
        } else {
            const int64_t rows = map.batch * map.positions;
            const int w = width();
            for (int64_t begin = 0; begin < rows; begin += segment) {
                const int64_t end = begin + segment < rows ? begin + segment : rows;
                if (w == lanes<A>)
                    for (int64_t row = begin; row < end; ++row) body(row * map.channels + channel, Full<T>{});
                else
                    for (int64_t row = begin; row < end; ++row) body(row * map.channels + channel, w);
                end_of_segment();
            }
        }
    }

    // A per-channel vector's values for this unit: the channel's in every lane, or each channel's in its own.
    vec<A> channel_values(const void* from, A otherwise) const {
        if (!from) return broadcast(otherwise);
        const A* values = static_cast<const A*>(from) + channel;
        return one_channel ? broadcast(*values) : load(values, width());
    }
    void store_channel_values(void* to, vec<A> values) const { store(static_cast<A*>(to) + channel, values, width()); }

   private:
    static constexpr int64_t segment = 128;  // vectors; short, so that float32 sums lose little precision
};

// A sum over a unit: in a vector within a segment, in float64 beyond.
template <class A>
class Sum {
   public:
    void add(vec<A> value) { partial_ += value; }
    void end_of_segment() {
        for (int i = 0; i < lanes<A>; ++i) total_[i] += static_cast<double>(partial_[i]);
        partial_ = vec<A>{};
    }
    // The sum divided by `by`; over all lanes where they belong to one channel.
    vec<A> result(bool one_channel, double by) const {
        vec<A> values;
        double all = 0;
        for (int i = 0; i < lanes<A>; ++i) all += total_[i];
        for (int i = 0; i < lanes<A>; ++i) values[i] = static_cast<A>((one_channel ? all : total_[i]) / by);
        return values;
    }

   private:
    vec<A> partial_{};
    double total_[lanes<A>] = {};
};

// Clears the lanes behind the end of a shorter vector, which must add nothing to a sum.
template <class T>
inline vec<accumulator<T>> only_first(vec<accumulator<T>> value, Full<T>) {
    return value;
}
template <class T>
inline vec<accumulator<T>> only_first(vec<accumulator<T>> value, int count) {
    for (int i = count; i < lanes<accumulator<T>>; ++i) value[i] = 0;
    return value;
}

template <class A>
inline vec<A> inverse_sqrt(vec<A> x) {
    vec<A> y;
    for (int i = 0; i < lanes<A>; ++i) y[i] = A(1) / (sizeof(A) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]));
    return y;
}

template <class T, Layout layout>
void forward(const NormGateForward& p) {
    using A = accumulator<T>;
    using U = Unit<T, layout>;
    const T *u = static_cast<const T*>(p.u), *z = static_cast<const T*>(p.z);
    T* out = static_cast<T*>(p.out);
    const double per_channel = static_cast<double>(p.map.batch * p.map.positions);
    parallel_for(p.map.threads, U::count(p.map), [&](int, int64_t begin, int64_t end) {
        const Sigmoid<A> sigmoid;
        for (int64_t index = begin; index < end; ++index) {
            const U unit = U::at(p.map, index);
            if (p.batch_statistics) {
                Sum<A> sum, rest, squares;
                unit.for_each([&](int64_t at, auto count) { sum.add(load(u + at, count)); }, [&] { sum.end_of_segment(); });
                const vec<A> near_mean = sum.result(U::one_channel, per_channel);
                unit.for_each(
                    [&](int64_t at, auto count) {
                        const vec<A> d = only_first<T>(load(u + at, count) - near_mean, count);
                        rest.add(d);
                        squares.add(d * d);
                    },
                    [&] { rest.end_of_segment(), squares.end_of_segment(); }
                );
                // Where the mean is far from 0, the sum of u has lost digits; the sum of u - near_mean has not.
                const vec<A> shift = rest.result(U::one_channel, per_channel);
                unit.store_channel_values(p.mean, near_mean + shift);
                unit.store_channel_values(p.var, squares.result(U::one_channel, per_channel) - shift * shift);
            }
            const vec<A> mean = unit.channel_values(p.mean, 0), bias = unit.channel_values(p.bias, 0);
            const vec<A> scale =
                inverse_sqrt<A>(unit.channel_values(p.var, 1) + static_cast<A>(p.eps)) * unit.channel_values(p.weight, 1);
            unit.for_each(
                [&](int64_t at, auto count) {
                    const vec<A> v = (load(u + at, count) - mean) * scale + bias;
                    store(out + at, load(z + at, count) * sigmoid(v), count);
                },
                [] {}
            );
        }
    });
}

// With s = sigmoid(v), n = (u - mean) / sqrt(var + eps) and d = grad_out z s (1 - s), the gradient of v:
//   grad_z = grad_out s,  grad_bias = sum d,  grad_weight = sum d n,
//   grad_u = weight / sqrt(var + eps) (d - [average d + n average (d n)]), the bracket only with the batch's statistics.
template <class T, Layout layout>
void backward(const NormGateBackward& q) {
    using A = accumulator<T>;
    using U = Unit<T, layout>;
    const NormGateForward& p = q.forward;
    const T *u = static_cast<const T*>(p.u), *z = static_cast<const T*>(p.z), *grad_out = static_cast<const T*>(q.grad_out);
    T *grad_u = static_cast<T*>(q.grad_u), *grad_z = static_cast<T*>(q.grad_z);
    const double per_channel = static_cast<double>(p.map.batch * p.map.positions);
    const bool centre = p.batch_statistics && grad_u;
    parallel_for(p.map.threads, U::count(p.map), [&](int, int64_t begin, int64_t end) {
        const Sigmoid<A> sigmoid;
        for (int64_t index = begin; index < end; ++index) {
            const U unit = U::at(p.map, index);
            const vec<A> mean = unit.channel_values(p.mean, 0), bias = unit.channel_values(p.bias, 0);
            const vec<A> weight = unit.channel_values(p.weight, 1);
            const vec<A> inverse_std = inverse_sqrt<A>(unit.channel_values(p.var, 1) + static_cast<A>(p.eps));

            vec<A> average_d{}, average_dn{};
            if (centre || q.grad_weight || q.grad_bias) {
                Sum<A> sum_d, sum_dn;
                unit.for_each(
                    [&](int64_t at, auto count) {
                        const vec<A> n = (load(u + at, count) - mean) * inverse_std;
                        const vec<A> s = sigmoid(n * weight + bias);
                        // grad_out is zero behind the end of a shorter vector, and so is d.
                        const vec<A> d = load(grad_out + at, count) * load(z + at, count) * s * (A(1) - s);
                        sum_d.add(only_first<T>(d, count));
                        sum_dn.add(only_first<T>(d * n, count));
                    },
                    [&] { sum_d.end_of_segment(), sum_dn.end_of_segment(); }
                );
                if (q.grad_bias) unit.store_channel_values(q.grad_bias, sum_d.result(U::one_channel, 1));
                if (q.grad_weight) unit.store_channel_values(q.grad_weight, sum_dn.result(U::one_channel, 1));
                if (centre) {
                    average_d = sum_d.result(U::one_channel, per_channel);
                    average_dn = sum_dn.result(U::one_channel, per_channel);
                }
            }
            if (!grad_u && !grad_z) continue;
            unit.for_each(
                [&](int64_t at, auto count) {
                    const vec<A> n = (load(u + at, count) - mean) * inverse_std, g = load(grad_out + at, count);
                    const vec<A> s = sigmoid(n * weight + bias);
                    if (grad_z) store(grad_z + at, g * s, count);
                    if (grad_u) {
                        const vec<A> d = g * load(z + at, count) * s * (A(1) - s);
                        // Without averages n must stay out of the sum: an infinite n times 0 is NaN.
                        const vec<A> from_v = p.batch_statistics ? d - average_d - n * average_dn : d;
                        store(grad_u + at, weight * inverse_std * from_v, count);
                    }
                },
                [] {}
            );
        }
    });
}

template <class T>
void forward(const NormGateForward& p) {
    p.map.layout == Layout::contiguous ? forward<T, Layout::contiguous>(p) : forward<T, Layout::channels_last>(p);
}
template <class T>
void backward(const NormGateBackward& p) {
    p.forward.map.layout == Layout::contiguous ? backward<T, Layout::contiguous>(p) : backward<T, Layout::channels_last>(p);
}

}  // namespace

template <>
void run(const NormGateForward& p) {
    with_element(p.map.dtype, [&](auto element) { forward<decltype(element)>(p); });
}

template <>
void run(const NormGateBackward& p) {
    with_element(p.forward.map.dtype, [&](auto element) { backward<decltype(element)>(p); });
}

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
