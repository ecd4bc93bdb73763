// A cache of memory for workspaces and results, shared by all calls. Fresh memory costs a page fault per page, which for a
// batch of maps takes as long as the arithmetic.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// A piece of memory from the cache. The destructor returns it to the cache.
class Scratch {
   public:
    // A workspace is returned at the end of a call and may be much larger than needed. A result lives as long as its tensor
    // and may be only a little larger than needed.
    enum class Use { workspace, result };
    explicit Scratch(int64_t bytes, Use use = Use::workspace);  // std::bad_alloc
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

   private:
    void* data_;
    int64_t bytes_;
};

// Gives all cached memory that is not in use back to the system; returns how many bytes that was.
int64_t release_scratch();

}  // namespace gcsa_ext
