"""The Triton kernels: device code only, one file per idea; they take addresses and sizes, not tensors."""
