// The running statistics of a batch normalisation.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// Moves running_mean and running_var by a share of `momentum` towards the batch's mean and (biased) variance; the running
// variance becomes the unbiased one, of `values` per channel.
template <class T>
void update_running_statistics(
    T* running_mean, T* running_var, const T* mean, const T* var, int64_t channels, int64_t values, double momentum
) {
    const T share = static_cast<T>(momentum);
    const T unbiased = static_cast<T>(static_cast<double>(values) / static_cast<double>(values - 1));
    // From the nearer end, so that a share of 1 gives exactly the batch's value.
    const auto between = [&](T running, T batch) {
        const T step = batch - running;
        return share < T(0.5) ? running + share * step : batch - (T(1) - share) * step;
    };
    for (int64_t c = 0; c < channels; ++c) {
        running_mean[c] = between(running_mean[c], mean[c]);
        running_var[c] = between(running_var[c], var[c] * unbiased);
    }
}

}  // namespace gcsa_ext
