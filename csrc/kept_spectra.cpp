#include "kept_spectra.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <list>
#include <mutex>
#include <utility>

#ifdef __unix__
#include <pthread.h>
#endif

namespace gcsa_ext {
namespace {

constexpr int64_t most_kept = 256 << 20, most_spectra = 8 << 20;  // bytes, of all and of one
constexpr size_t most_entries = 256;
constexpr int64_t usual_weights = 256 << 10;
std::atomic<int64_t> most_weights = usual_weights;

using Entries = std::list<std::shared_ptr<const KeptSpectra>>;  // the last used one first

// Never destroyed, since other threads may outlive static objects.
struct Store {
    std::mutex mutex;
    Entries entries;

    auto find(const WeightsKey& key) {
        return std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry->key == key; });
    }
};
Store& store() {
    static Store* const instance = [] {
        auto* const made = new Store;
#ifdef __unix__
        // A child must not inherit the lock of a thread that it does not have.
        pthread_atfork([] { store().mutex.lock(); }, [] { store().mutex.unlock(); }, [] { store().mutex.unlock(); });
#endif
        return made;
    }();
    return *instance;
}

int64_t bytes_of(const KeptSpectra& entry) {
    return static_cast<int64_t>(entry.weights.size()) + (entry.spectra ? entry.spectra->bytes() : 0);
}

}  // namespace

std::shared_ptr<const KeptSpectra> find_spectra(const WeightsKey& key) {
    const std::lock_guard<std::mutex> lock(store().mutex);
    Entries& entries = store().entries;
    const auto found = store().find(key);
    if (found == entries.end()) return nullptr;
    entries.splice(entries.begin(), entries, found);
    return entries.front();
}

void keep_spectra(KeptSpectra kept) {
    Entries gone;  // freed without the lock
    const std::lock_guard<std::mutex> lock(store().mutex);
    Entries& entries = store().entries;
    const auto before = store().find(kept.key);
    if (before != entries.end()) gone.splice(gone.end(), entries, before);
    entries.push_front(std::make_shared<const KeptSpectra>(std::move(kept)));
    int64_t sum = 0;
    for (const auto& entry : entries) sum += bytes_of(*entry);
    while (sum > most_kept || entries.size() > most_entries) {
        sum -= bytes_of(*entries.back());
        gone.splice(gone.end(), entries, std::prev(entries.end()));
    }
}

void release_spectra() {
    Entries gone;
    const std::lock_guard<std::mutex> lock(store().mutex);
    gone.swap(store().entries);
}

bool worth_keeping(int64_t weights_bytes, int64_t spectra_bytes) {
    const int64_t most = most_weights;
    return weights_bytes <= most && (spectra_bytes <= most_spectra || most > usual_weights);
}
int64_t keep_weights_up_to(int64_t bytes) { return most_weights.exchange(bytes); }

}  // namespace gcsa_ext
