// Memory as a DLPack tensor, which torch takes over in one short call. The structs are those of DLPack 0.8, whose names and
// layout are fixed (https://dmlc.github.io/dlpack).
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "memory/scratch.h"

namespace gcsa_ext {

struct DLDevice {
    int32_t device_type, device_id;
};
struct DLDataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor dl_tensor;
    void* manager_ctx;
    void (*deleter)(DLManagedTensor*);
};

// A tensor on the CPU in memory that is kept from call to call, and goes back when its owner calls the deleter.
class RecycledTensor {
   public:
    RecycledTensor(DLDataType dtype, std::vector<int64_t> shape, std::vector<int64_t> strides)
        : shape_(std::move(shape)), strides_(std::move(strides)), memory_(bytes_(dtype), Scratch::Use::result) {
        constexpr int32_t cpu = 1;
        managed_ = {
            {memory_.data(), {cpu, 0}, static_cast<int32_t>(shape_.size()), dtype, shape_.data(), strides_.data(), 0},
            this,
            [](DLManagedTensor* managed) { delete static_cast<RecycledTensor*>(managed->manager_ctx); }
        };
    }
    DLManagedTensor* managed() { return &managed_; }

   private:
    int64_t bytes_(DLDataType dtype) const {
        int64_t bytes = dtype.bits / 8;
        for (const int64_t size : shape_) bytes *= size;
        return bytes;
    }

    std::vector<int64_t> shape_, strides_;
    Scratch memory_;
    DLManagedTensor managed_;
};

}  // namespace gcsa_ext
