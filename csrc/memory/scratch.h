// Memory that is kept from call to call: fresh memory costs a page fault per 4 KiB, which for a batch of maps takes as long
// as the arithmetic.
#pragma once

#include <cstdint>

namespace gcsa_ext {

// A piece of memory, of which nobody else has any part, for as long as the object lives.
class Scratch {
   public:
    // A workspace, which is given back at the end of a call, may be much larger than needed; a result, which others keep,
    // not. What lasts has no part in what is kept here: its memory is new, and goes back to the system.
    enum class Use { workspace, result, lasting };
    explicit Scratch(int64_t bytes, Use use = Use::workspace);  // std::bad_alloc
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

   private:
    void* data_;
    int64_t bytes_;
    bool lasting_;
};

// Gives back what nobody is using; returns how many bytes that was.
int64_t release_scratch();

}  // namespace gcsa_ext
