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

Scratch::Scratch(int64_t bytes) : data_(nullptr), bytes_((bytes + page - 1) / page * page) {
    if (bytes_ == 0) bytes_ = page;
    {
        const std::lock_guard<std::mutex> lock(kept().mutex);
        auto& pieces = kept().pieces;
        size_t best = pieces.size();
        for (size_t i = 0; i < pieces.size(); ++i)
            if (pieces[i].bytes >= bytes_ && (best == pieces.size() || pieces[i].bytes < pieces[best].bytes)) best = i;
        if (best < pieces.size()) {
            data_ = pieces[best].data;
            bytes_ = pieces[best].bytes;
            pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(best));
            return;
        }
        // A larger piece will take the place of the largest one, which is too small.
        size_t largest = pieces.size();
        for (size_t i = 0; i < pieces.size(); ++i)
            if (largest == pieces.size() || pieces[i].bytes > pieces[largest].bytes) largest = i;
        if (largest < pieces.size()) {
            std::free(pieces[largest].data);
            pieces.erase(pieces.begin() + static_cast<std::ptrdiff_t>(largest));
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
    if (kept_bytes() + bytes_ <= most_kept && pieces.size() < most_pieces)
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
