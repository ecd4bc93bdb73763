#include "memory/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __unix__
#include <pthread.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace gcsa_ext {
namespace {

struct Piece {
    void* data;
    int64_t bytes;
};

constexpr int64_t page = 4096;
constexpr int64_t large_page = 2 << 20;   // spares most TLB misses
constexpr int64_t most_kept = 1ll << 30;  // bytes
constexpr int64_t largest_result(int64_t bytes) { return bytes + bytes / 4 + large_page; }

constexpr size_t most_pieces = 64;

// Never destroyed, since other threads may outlive static objects.
struct Kept {
    std::mutex mutex;
    std::vector<Piece> pieces;
};
Kept& kept() {
    static Kept* const instance = [] {
        auto* const made = new Kept;
        made->pieces.reserve(most_pieces);  // adding one in a destructor must not fail
#ifdef __unix__
        // A child must not inherit the lock of a thread that it does not have.
        pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });
#endif
        return made;
    }();
    return *instance;
}

int64_t kept_bytes() {
    int64_t sum = 0;
    for (const Piece& piece : kept().pieces) sum += piece.bytes;
    return sum;
}

#ifdef __linux__
// Not through malloc, which gives back neither what it skips for the alignment nor, always, what is freed.
void* allocate(int64_t bytes) {
    const int64_t mapped = bytes + large_page;
    void* const all = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    const auto begin = reinterpret_cast<uintptr_t>(all), aligned = (begin + large_page - 1) / large_page * large_page;
    if (aligned > begin) munmap(all, aligned - begin);
    if (begin + large_page > aligned) munmap(reinterpret_cast<void*>(aligned + bytes), begin + large_page - aligned);
    madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
    return reinterpret_cast<void*>(aligned);
}
void give_back(const Piece& piece) { munmap(piece.data, piece.bytes); }
#else
void* allocate(int64_t bytes) {
    if (void* const data = std::aligned_alloc(page, bytes)) return data;
    throw std::bad_alloc();
}
void give_back(const Piece& piece) { std::free(piece.data); }
#endif

}  // namespace

Scratch::Scratch(int64_t bytes, Use use) : data_(nullptr), lasting_(use == Use::lasting) {
    // Others than a workspace end in small pages: rounding maps of a few megabytes up to large ones would waste a fifth.
    const int64_t unit = use == Use::workspace ? large_page : page;
    bytes_ = std::max((bytes + unit - 1) / unit, int64_t(1)) * unit;
    if (!lasting_) {
        const std::lock_guard<std::mutex> lock(kept().mutex);
        auto& pieces = kept().pieces;
        auto best = pieces.end(), smaller = pieces.end();
        for (auto piece = pieces.begin(); piece != pieces.end(); ++piece) {
            if (piece->bytes < bytes_) {
                if (smaller == pieces.end() || piece->bytes > smaller->bytes) smaller = piece;
            } else if (use == Use::workspace || piece->bytes <= largest_result(bytes_)) {
                if (best == pieces.end() || piece->bytes < best->bytes) best = piece;
            }
        }
        if (best != pieces.end()) {
            data_ = best->data;
            bytes_ = best->bytes;
            pieces.erase(best);
            return;
        }
        // A larger workspace takes the place of the one that is too small now.
        if (use == Use::workspace && smaller != pieces.end()) {
            give_back(*smaller);
            pieces.erase(smaller);
        }
    }
    data_ = allocate(bytes_);
}

Scratch::~Scratch() {
    if (lasting_) {
        give_back({data_, bytes_});
        return;
    }
    const std::lock_guard<std::mutex> lock(kept().mutex);
    auto& pieces = kept().pieces;
    // What was used last is the likeliest to be asked for again; what has waited longest goes.
    while (!pieces.empty() && (kept_bytes() + bytes_ > most_kept || pieces.size() == most_pieces)) {
        give_back(pieces.front());
        pieces.erase(pieces.begin());
    }
    if (bytes_ <= most_kept)
        pieces.push_back({data_, bytes_});
    else
        give_back({data_, bytes_});
}

int64_t release_scratch() {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    const int64_t bytes = kept_bytes();
    for (const Piece& piece : kept().pieces) give_back(piece);
    kept().pieces.clear();
    return bytes;
}

}  // namespace gcsa_ext
