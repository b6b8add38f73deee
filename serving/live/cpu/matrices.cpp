// Rows times matrices that are packed as panels. A tile of rows x one panel of sums fills the vector registers.

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "vectors.h"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr long ROWS = 12;  // of a tile: of 32 registers, room stays for a row of the panel and one number
#else
constexpr long ROWS = 6;   // of 16 registers
#endif
constexpr long PANEL = 2 * LANES;  // outputs of a packed matrix that lie together
constexpr long DEPTH = 256;        // inputs of a panel that are used for all rows of a chunk while they are in L1
constexpr long AHEAD = 128;        // inputs of a panel between what is used and what is fetched
constexpr long CHUNK = 8 * ROWS;   // rows whose sums of a panel are kept in L1
constexpr long STRIP = 64;         // inputs of a panel that are packed at once

// Adds to sums [R][PANEL] the products of R rows with a panel's next inputs; fetches what comes behind them meanwhile.
template <int R>
void add_products(const float* x, long stride, const float* panel, long depth, float* sums, const float* ahead) {
    Vector low[R], high[R];
    for (int r = 0; r < R; r++) {
        low[r] = *(const Vector*)(sums + r * PANEL);
        high[r] = *(const Vector*)(sums + r * PANEL + LANES);
    }
    for (long i = 0; i < depth; i++) {
        const Vector left = *(const Vector*)(panel + i * PANEL), right = *(const Vector*)(panel + i * PANEL + LANES);
        __builtin_prefetch(ahead + i * PANEL);
        __builtin_prefetch(ahead + i * PANEL + LANES);
        for (int r = 0; r < R; r++) {
            const float factor = x[r * stride + i];
            low[r] += factor * left;
            high[r] += factor * right;
        }
    }
    for (int r = 0; r < R; r++) {
        *(Vector*)(sums + r * PANEL) = low[r];
        *(Vector*)(sums + r * PANEL + LANES) = high[r];
    }
}

using AddProducts = void (*)(const float*, long, const float*, long, float*, const float*);
constexpr AddProducts ADD_PRODUCTS[] = {
    nullptr,         add_products<1>, add_products<2>, add_products<3>, add_products<4>,  add_products<5>,  add_products<6>,
#if defined(__AVX512F__) || defined(__aarch64__)
    add_products<7>, add_products<8>, add_products<9>, add_products<10>, add_products<11>, add_products<12>,
#endif
};

// Sums [rows][PANEL] of a chunk's rows with one whole panel. Tiles are as like in size as can be.
void sum_panel(const float* x, long rows, const float* panel, long inputs, float* sums) {
    std::memset(sums, 0, rows * PANEL * sizeof(float));
    const long tiles = (rows + ROWS - 1) / ROWS;
    for (long i = 0; i < inputs; i += DEPTH) {
        const long depth = std::min(DEPTH, inputs - i);
        const float* block = panel + i * PANEL;
        for (long t = 0; t < tiles; t++) {
            const long first = rows * t / tiles, count = rows * (t + 1) / tiles - first;
            // a tile alone fetches what it needs soon; of several, the first two fetch half of the next block each
            const float* ahead = tiles == 1 ? block + AHEAD * PANEL : t < 2 ? block + DEPTH * PANEL + t * LANES : block;
            ADD_PRODUCTS[count](x + first * inputs + i, inputs, block, depth, sums + first * PANEL, ahead);
        }
    }
}

// Fresh memory of steps that stream it from end to end: fewer pages to look up.
void use_huge_pages(void* start, unsigned long bytes) {
#if defined(__linux__)
    const unsigned long page = 1UL << 21, first = ((unsigned long)start + page - 1) & ~(page - 1);
    const unsigned long behind = ((unsigned long)start + bytes) & ~(page - 1);
    if (behind > first) madvise((void*)first, behind - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

extern "C" {

// Outputs to which a packed matrix is padded.
long panel_width() { return PANEL; }

// Packs a matrix [outputs, inputs] as panels [inputs][PANEL]; the last is padded with zeros.
void pack(const float* weight, long outputs, long inputs, float* packed, int threads) {
    const long panels = (outputs + PANEL - 1) / PANEL;
    use_huge_pages(packed, panels * PANEL * inputs * sizeof(float));
#pragma omp parallel for num_threads(threads)
    for (long p = 0; p < panels; p++) {
        float* to = packed + p * PANEL * inputs;
        const long count = std::min(PANEL, outputs - p * PANEL);
        if (count < PANEL) std::memset(to, 0, PANEL * inputs * sizeof(float));
        float block[PANEL][STRIP + 4];  // columns of the matrix itself may all fall into the same few lines of L1
        for (long i = 0; i < inputs; i += STRIP) {
            const long width = std::min(STRIP, inputs - i);
            for (long o = 0; o < count; o++)
                std::memcpy(block[o], weight + (p * PANEL + o) * inputs + i, width * sizeof(float));
            for (long j = 0; j < width; j++)
                for (long o = 0; o < count; o++) to[(i + j) * PANEL + o] = block[o][j];
        }
    }
}

// y = x W^T + bias, or y += that. x [rows, inputs] and y [rows, outputs] are contiguous; bias may be null.
void multiply(const float* x, long rows, const float* packed, const float* bias, float* y, long inputs, long outputs,
              int adds, int threads) {
    const long panels = (outputs + PANEL - 1) / PANEL, chunks = (rows + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(threads)
    {
        alignas(64) float sums[CHUNK * PANEL];
        const Range mine = share(panels * chunks);
        for (long item = mine.begin; item < mine.end; item++) {
            const long panel = item % panels, first = item / panels * CHUNK;  // x stays in L2, panels pass
            const long count = std::min(CHUNK, rows - first), width = std::min(PANEL, outputs - panel * PANEL);
            sum_panel(x + first * inputs, count, packed + panel * PANEL * inputs, inputs, sums);
            for (long r = 0; r < count; r++) {
                float* to = y + (first + r) * outputs + panel * PANEL;
                const float* sum = sums + r * PANEL;
                for (long o = 0; o < width; o++) {
                    const float value = bias ? sum[o] + bias[panel * PANEL + o] : sum[o];
                    to[o] = adds ? to[o] + value : value;
                }
            }
        }
    }
}

}  // extern "C"
