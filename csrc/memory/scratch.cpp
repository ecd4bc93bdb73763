#include "memory/scratch.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#ifdef __unix__
#include <pthread.h>
#include <unistd.h>
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

constexpr int64_t large_page = 2 << 20;     // spares most TLB misses
constexpr int64_t most_cached = 1ll << 30;  // bytes
constexpr size_t most_pieces = 64;
constexpr int64_t largest_result(int64_t bytes) { return bytes + bytes / 4 + large_page; }

int64_t page_size() {
#ifdef __unix__
    static const int64_t size = std::max<int64_t>(sysconf(_SC_PAGESIZE), 4096);  // -1 where it is unknown
    return size;
#else
    return 4096;
#endif
}

// The pieces that no Scratch holds, the one returned last at the end. Never destroyed, since other threads may outlive
// static objects.
struct Cache {
    std::mutex mutex;
    std::vector<Piece> pieces;
};
Cache& cache() {
    static Cache* const instance = [] {
        auto* const made = new Cache;
        made->pieces.reserve(most_pieces);  // a destructor adds pieces, which must not fail
#ifdef __unix__
        // A forked child must not inherit a lock that a thread of the parent holds.
        pthread_atfork([] { cache().mutex.lock(); }, [] { cache().mutex.unlock(); }, [] { cache().mutex.unlock(); });
#endif
        return made;
    }();
    return *instance;
}

int64_t total_bytes(const std::vector<Piece>& pieces) {
    int64_t sum = 0;
    for (const Piece& piece : pieces) sum += piece.bytes;
    return sum;
}

#ifdef __linux__
// Not by malloc, which returns neither the bytes it skips for the alignment nor, always, freed memory to the system.
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
void deallocate(const Piece& piece) { munmap(piece.data, piece.bytes); }
#else
void* allocate(int64_t bytes) {
    if (void* const data = std::aligned_alloc(page_size(), bytes)) return data;
    throw std::bad_alloc();
}
void deallocate(const Piece& piece) { std::free(piece.data); }
#endif

// Takes a piece of at least `wanted.bytes` out of the cache into `wanted`. Without one, `too_small` becomes the piece that a
// larger workspace is to replace, taken out of the cache too.
bool take_cached(Scratch::Use use, Piece& wanted, Piece& too_small) {
    const std::lock_guard<std::mutex> lock(cache().mutex);
    auto& pieces = cache().pieces;
    auto best = pieces.end(), smaller = pieces.end();
    for (auto piece = pieces.begin(); piece != pieces.end(); ++piece) {
        if (piece->bytes < wanted.bytes) {
            if (smaller == pieces.end() || piece->bytes > smaller->bytes) smaller = piece;
        } else if (use == Scratch::Use::workspace || piece->bytes <= largest_result(wanted.bytes)) {
            if (best == pieces.end() || piece->bytes < best->bytes) best = piece;
        }
    }
    const bool found = best != pieces.end();
    if (found) {
        wanted = *best;
        pieces.erase(best);
    } else if (use == Scratch::Use::workspace && smaller != pieces.end()) {
        too_small = *smaller;
        pieces.erase(smaller);
    }
    return found;
}

}  // namespace

Scratch::Scratch(int64_t bytes, Use use) {
    // A result ends in small pages: rounding maps of a few megabytes up to large pages would waste a fifth.
    const int64_t unit = use == Use::workspace ? large_page : page_size();
    Piece piece{nullptr, std::max((bytes + unit - 1) / unit, int64_t(1)) * unit}, too_small{nullptr, 0};
    if (!take_cached(use, piece, too_small)) {
        if (too_small.data) deallocate(too_small);
        piece.data = allocate(piece.bytes);
    }
    data_ = piece.data;
    bytes_ = piece.bytes;
}

// Pieces leave the cache under its lock and are given back to the system outside of it: unmapping takes long.
Scratch::~Scratch() {
    const Piece returned{data_, bytes_};
    const bool fits = bytes_ <= most_cached;
    Piece dropped[most_pieces];
    size_t count = 0;
    if (fits) {
        const std::lock_guard<std::mutex> lock(cache().mutex);
        auto& pieces = cache().pieces;
        // The piece that was used last is the likeliest to be asked for again; the oldest ones make room.
        while (total_bytes(pieces) + bytes_ > most_cached || pieces.size() == most_pieces) {
            dropped[count++] = pieces.front();
            pieces.erase(pieces.begin());
        }
        pieces.push_back(returned);
    }
    if (!fits) deallocate(returned);
    for (size_t i = 0; i < count; ++i) deallocate(dropped[i]);
}

int64_t release_scratch() {
    std::vector<Piece> released;
    released.reserve(most_pieces);  // the cache goes on with this memory
    {
        const std::lock_guard<std::mutex> lock(cache().mutex);
        released.swap(cache().pieces);
    }
    for (const Piece& piece : released) deallocate(piece);
    return total_bytes(released);
}

}  // namespace gcsa_ext
