"""Decode steps on an NVIDIA GPU: Triton kernels over the paged KV cache, replayed as CUDA graphs."""
