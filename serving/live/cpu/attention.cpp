// Attention of sequences that decode, read through their block tables from the paged KV cache.

#include <vector>

#include "vectors.h"

namespace {

constexpr long TOKENS_AHEAD = 4;  // between the token whose keys or values are used and that whose are fetched

// Replaces scores by their softmax.
void soften(float* scores, long count) {
    float largest = scores[0], sum = 0.0f;
#pragma omp simd reduction(max : largest)
    for (long i = 0; i < count; i++) largest = std::max(largest, scores[i]);
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < count; i++) sum += scores[i] = exponential(scores[i] - largest);
    const float factor = 1.0f / sum;
#pragma omp simd
    for (long i = 0; i < count; i++) scores[i] *= factor;
}

// A paged KV pool, [blocks, block_size, kv_heads, head_size].
struct Pool {
    const float *keys, *values;
    long block_size, kv_heads, head_size;
    long token(const int* table, long at) const {
        return ((long)table[at / block_size] * block_size + at % block_size) * kv_heads * head_size;
    }
};

// Attention of some query heads of one row over its sequence's first tokens. SIZE is the head's, or 0: any.
template <long SIZE>
void attend_heads(const float* query, Range heads, long group, const Pool& pool, const int* table, long context,
                  float* out, std::vector<float>& scores) {
    const long size = SIZE ? SIZE : pool.head_size;
    const float scale = 1.0f / std::sqrt((float)size);
    scores.resize((heads.end - heads.begin) * context);
    for (long t = 0; t < context; t++) {
        const float* token = pool.keys + pool.token(table, t);
        const float* ahead = pool.keys + pool.token(table, std::min(t + TOKENS_AHEAD, context - 1));
        for (long h = heads.begin; h < heads.end; h++) {
            const float *q = query + h * size, *k = token + h / group * size;
            fetch(ahead + h / group * size, size);
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (long d = 0; d < size; d++) sum += q[d] * k[d];
            scores[(h - heads.begin) * context + t] = sum * scale;
        }
    }
    for (long h = heads.begin; h < heads.end; h++) soften(&scores[(h - heads.begin) * context], context);
    std::memset(out + heads.begin * size, 0, (heads.end - heads.begin) * size * sizeof(float));
    for (long t = 0; t < context; t++) {
        const float* token = pool.values + pool.token(table, t);
        const float* ahead = pool.values + pool.token(table, std::min(t + TOKENS_AHEAD, context - 1));
        for (long h = heads.begin; h < heads.end; h++) {
            const float *v = token + h / group * size, weight = scores[(h - heads.begin) * context + t];
            float* to = out + h * size;
            fetch(ahead + h / group * size, size);
#pragma omp simd
            for (long d = 0; d < size; d++) to[d] += weight * v[d];
        }
    }
}

}  // namespace

extern "C" {

// Attention of rows of heads, query_stride apart, each the latest token of its sequence; out [rows, heads, size].
void attend(const float* query, long query_stride, const float* keys, const float* values, const int* tables,
            long table_stride, const int* contexts, float* out, long rows, long heads, long kv_heads, long size,
            long block_size, int threads) {
    const Pool pool{keys, values, block_size, kv_heads, size};
    const long parts = std::min(heads, std::max(1L, (4 * threads + rows - 1) / rows));
    const auto attend_some = size == 64 ? attend_heads<64> : size == 128 ? attend_heads<128> : attend_heads<0>;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scores;
#pragma omp for schedule(dynamic)
        for (long item = 0; item < rows * parts; item++) {
            const long row = item / parts, part = item % parts;
            attend_some(query + row * query_stride, {heads * part / parts, heads * (part + 1) / parts},
                        heads / kv_heads, pool, tables + row * table_stride, contexts[row], out + row * heads * size,
                        scores);
        }
    }
}

}  // extern "C"
