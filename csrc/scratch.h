// Memory that kernels work in, kept from call to call: fresh memory costs a page fault per 4 KiB, which for a transform of a
// whole batch is more than the arithmetic.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// A piece of memory for the duration of one call. Calls at the same time, from several threads, get pieces of their own.
class Scratch {
   public:
    explicit Scratch(int64_t bytes);  // std::bad_alloc
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const { return data_; }

   private:
    void* data_;
    int64_t bytes_;
};

// Gives back what no call is using; returns how many bytes that was.
int64_t release_scratch();
// What is kept at the moment, in bytes, without what calls are using.
int64_t kept_scratch();

}  // namespace gcsa_ext
