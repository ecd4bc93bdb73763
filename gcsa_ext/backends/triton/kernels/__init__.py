"""The Triton kernels: device code only, one file per idea. They take addresses and sizes and know no torch."""
