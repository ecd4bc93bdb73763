#include "scratch.h"

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

constexpr int64_t page = 2 << 20;         // of the large kind, which spares most TLB misses
constexpr int64_t most_kept = 1ll << 30;  // bytes
constexpr int64_t largest_result(int64_t bytes) { return bytes + bytes / 4 + page; }

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

}  // namespace

Scratch::Scratch(int64_t bytes, Use use) : data_(nullptr), bytes_((bytes + page - 1) / page * page) {
    if (bytes_ == 0) bytes_ = page;
    {
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
            std::free(smaller->data);
            pieces.erase(smaller);
        }
    }
    data_ = std::aligned_alloc(page, bytes_);
    if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(data_, bytes_, MADV_HUGEPAGE);
#endif
}

Scratch::~Scratch() {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    auto& pieces = kept().pieces;
    // What was used last is the likeliest to be asked for again; what has waited longest goes.
    while (!pieces.empty() && (kept_bytes() + bytes_ > most_kept || pieces.size() == most_pieces)) {
        std::free(pieces.front().data);
        pieces.erase(pieces.begin());
    }
    if (bytes_ <= most_kept)
        pieces.push_back({data_, bytes_});
    else
        std::free(data_);
}

int64_t release_scratch() {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    const int64_t bytes = kept_bytes();
    for (const Piece& piece : kept().pieces) std::free(piece.data);
    kept().pieces.clear();
    return bytes;
}

int64_t kept_scratch() {
    const std::lock_guard<std::mutex> lock(kept().mutex);
    return kept_bytes();
}

}  // namespace gcsa_ext
