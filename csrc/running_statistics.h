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
    for (int64_t c = 0; c < channels; ++c) {
        running_mean[c] += share * (mean[c] - running_mean[c]);
        running_var[c] += share * (var[c] * unbiased - running_var[c]);
    }
}

}  // namespace gcsa_ext
