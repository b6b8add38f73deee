// What the kernels share: the processor's vectors, how threads share work, e^x. kernels.py calls the kernels, build.py
// compiles them for the processor at hand.
//
// An output row depends on its own input alone, down to the last bit: each sum is taken in one order, however many rows
// are computed together and by however many threads. The threads are those of PyTorch's OpenMP, which is in the process.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <omp.h>

#if defined(__AVX512F__)
constexpr long LANES = 16;  // numbers in a vector
#elif defined(__AVX__)
constexpr long LANES = 8;
#else
constexpr long LANES = 4;
#endif
constexpr long LINE = 16;      // numbers in a cache line
constexpr long FEW = 1 << 14;  // numbers that one thread works through before another would have woken

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

struct Range { long begin, end; };

// The calling thread's share of some items.
inline Range share(long count) {
    const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    return {count * thread / threads, count * (thread + 1) / threads};
}

// Brings numbers into the cache.
inline void fetch(const float* start, long count) {
    for (long i = 0; i < count; i += LINE) __builtin_prefetch(start + i);
}

// e^x to 2 units in the last place, for x <= 0; 0 below -87.
inline float exponential(float x) {
    const float clamped = x < -87.0f ? -87.0f : x;
    const float whole = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float rest = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    const int bits = ((int)whole + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x < -87.0f ? 0.0f : y * scale;
}
