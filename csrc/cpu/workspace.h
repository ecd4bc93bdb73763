// Memory for one call of a kernel, divided into pieces that begin with a cache line.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "cpu/vector.h"

namespace gcsa_ext::cpu::GCSA_EXT_ISA {

constexpr int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <class T>
class Workspace {
   public:
    explicit Workspace(int64_t count)
        : data_(static_cast<T*>(std::aligned_alloc(64, round_up((count < 1 ? 1 : count) * sizeof(T), 64)))) {
        if (!data_) throw std::bad_alloc();
    }
    ~Workspace() { std::free(data_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    T* data() const { return data_; }

   private:
    T* data_;
};

// Divides memory into consecutive pieces, each a multiple of 64 bytes long.
template <class T>
class Pieces {
   public:
    explicit Pieces(T* next) : next_(next) {}
    static constexpr int64_t size(int64_t count) { return round_up(count, 64 / sizeof(T)); }
    T* take(int64_t count) {
        T* piece = next_;
        next_ += size(count);
        return piece;
    }

   private:
    T* next_;
};

}  // namespace gcsa_ext::cpu::GCSA_EXT_ISA
