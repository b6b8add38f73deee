// What stands between the matrices and attention, row by row; and where the threads run.

#if defined(__linux__)
#include <sched.h>
#endif

#include "vectors.h"

extern "C" {

// Binds the calling thread and those that compute with it to a core each.
void bind(const int* cores, int threads) {
#if defined(__linux__)
#pragma omp parallel num_threads(threads)
    {
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(cores[omp_get_thread_num()], &own);
        sched_setaffinity(0, sizeof own, &own);  // refused: it runs wherever it may
    }
#endif
}

// out = x / rms(x) * weight, rows [rows, size].
void norm(const float* x, const float* weight, float epsilon, float* out, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > FEW)
    for (long r = 0; r < rows; r++) {
        const float* row = x + r * size;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < size; i++) sum += row[i] * row[i];
        const float factor = 1.0f / std::sqrt(sum / size + epsilon);
#pragma omp simd
        for (long i = 0; i < size; i++) out[r * size + i] = row[i] * factor * weight[i];
    }
}

// out = silu(gate) * up of rows gate|up [rows, 2 size].
void gate(const float* gate_up, float* out, long rows, long size, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * size > FEW)
    for (long r = 0; r < rows; r++) {
        const float *gates = gate_up + 2 * r * size, *ups = gates + size;
#pragma omp simd
        for (long i = 0; i < size; i++) {
            const float small = exponential(-std::abs(gates[i]));
            out[r * size + i] = gates[i] * ((gates[i] < 0.0f ? small : 1.0f) / (1.0f + small)) * ups[i];
        }
    }
}

// Of rows q|k|v: turns q in place; k, turned, and v go to their slots in the pools. cosines and sines [rows, size] are
// those of serving/live/rope.py; null: positions are learned.
void rotate_and_store(float* qkv, const float* cosines, const float* sines, const long* slots, float* keys,
                      float* values, long rows, long heads, long kv_heads, long size, int threads) {
    const long width = (heads + 2 * kv_heads) * size, stored = kv_heads * size, half = size / 2;
#pragma omp parallel for num_threads(threads) if (rows * width > FEW)
    for (long r = 0; r < rows; r++) {
        float *row = qkv + r * width, *key = row + heads * size;
        if (cosines) {
            const float *cosine = cosines + r * size, *sine = sines + r * size;
            for (long h = 0; h < heads + kv_heads; h++) {
                float *low = row + h * size, *high = low + half;
#pragma omp simd
                for (long d = 0; d < half; d++) {
                    const float a = low[d], b = high[d];
                    low[d] = a * cosine[d] + b * sine[d];
                    high[d] = b * cosine[half + d] + a * sine[half + d];
                }
            }
        }
        std::memcpy(keys + slots[r] * stored, key, stored * sizeof(float));
        std::memcpy(values + slots[r] * stored, key + stored, stored * sizeof(float));
    }
}

}  // extern "C"
