#include "memory/kept_spectra.h"

#include <atomic>
#include <functional>
#include <iterator>
#include <list>
#include <mutex>
#include <new>
#include <unordered_map>
#include <utility>

#ifdef __unix__
#include <pthread.h>
#endif

namespace gcsa_ext {
namespace {

constexpr int64_t most_kept = 256 << 20, most_spectra = 8 << 20;  // bytes, of all and of one
constexpr size_t most_entries = 4096;                             // spectra are mappings, of which Linux allows 65530
constexpr int64_t usual_weights = 256 << 10;
std::atomic<int64_t> most_weights = usual_weights;

struct Hash {
    size_t operator()(const WeightsKey& key) const {
        size_t hash = std::hash<const void*>()(key.source);
        for (const int64_t part : {key.outputs, key.inputs, key.tile_height, key.tile_width})
            hash = hash * 31 + static_cast<size_t>(part);
        return hash;
    }
};
using Entries = std::list<std::shared_ptr<const KeptSpectra>>;  // the last used one first

int64_t bytes_of(const KeptSpectra& entry) {
    return static_cast<int64_t>(entry.weights.size()) + (entry.spectra ? entry.spectra->bytes() : 0);
}

// Never destroyed, since other threads may outlive static objects.
struct Store {
    std::mutex mutex;
    Entries entries;
    std::unordered_map<WeightsKey, Entries::iterator, Hash> places;
    int64_t bytes = 0;

    void move_out(Entries::iterator entry, Entries& to) {
        bytes -= bytes_of(**entry);
        places.erase((*entry)->key);
        to.splice(to.end(), entries, entry);
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

}  // namespace

std::shared_ptr<const KeptSpectra> find_spectra(const WeightsKey& key) {
    const std::lock_guard<std::mutex> lock(store().mutex);
    const auto found = store().places.find(key);
    if (found == store().places.end()) return nullptr;
    Entries& entries = store().entries;
    entries.splice(entries.begin(), entries, found->second);
    return entries.front();
}

void keep_spectra(const WeightsKey& key, const void* weights, int64_t bytes, std::shared_ptr<const Scratch> spectra) noexcept
    try {
    const char* const begin = static_cast<const char*>(weights);
    Entries entry{std::make_shared<const KeptSpectra>(KeptSpectra{key, {begin, begin + bytes}, std::move(spectra)})};
    Entries gone;  // freed without the lock
    const std::lock_guard<std::mutex> lock(store().mutex);
    Store& all = store();
    const auto before = all.places.find(key);
    if (before != all.places.end()) all.move_out(before->second, gone);
    all.places.emplace(key, entry.begin());
    all.entries.splice(all.entries.begin(), entry);
    all.bytes += bytes_of(*all.entries.front());
    while (all.bytes > most_kept || all.entries.size() > most_entries) all.move_out(std::prev(all.entries.end()), gone);
} catch (const std::bad_alloc&) {
}

int64_t release_spectra() {
    Entries gone;
    const std::lock_guard<std::mutex> lock(store().mutex);
    gone.swap(store().entries);
    store().places.clear();
    return std::exchange(store().bytes, 0);
}

bool worth_keeping(int64_t weights_bytes, int64_t spectra_bytes) {
    const int64_t most = most_weights;
    return weights_bytes <= most && (spectra_bytes <= most_spectra || most > usual_weights);
}
int64_t keep_weights_up_to(int64_t bytes) { return most_weights.exchange(bytes); }

}  // namespace gcsa_ext
