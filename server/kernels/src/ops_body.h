// The operations of one instruction set, over the sixteen lanes that the simd_*.h before this one defines.
// Whatever the number of rows, each output is computed by the same operations in the same order: the same bits in any batch.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "activation_body.h"
#include "ops.h"

namespace gpt2d {
namespace {

constexpr int LANES = 16;
constexpr int AHEAD = 4096;  // bytes that are fetched before they are needed

inline void quantise_block(F lo, F hi, int zero, int8_t *q, float *scale, int32_t *offset) {
    float top = largest(max(abs(lo), abs(hi)));
    F inverse = set(top > 1e-30f ? 127.f / top : 0.f);
    int32_t total = store_bytes(q, lo * inverse);
    total += store_bytes(q + LANES, hi * inverse);
    *scale = top / 127.f;
    *offset = -zero * total;
}

void quantise(const float *x, int n, int zero, int8_t *q, float *scales, int32_t *offsets) {
    for (int b = 0; b < n / BLOCK; b++, x += BLOCK, q += BLOCK) quantise_block(load(x), load(x + LANES), zero, q, scales + b, offsets + b);
}

// Calls f(0), ..., f(N - 1), each with a constant: gcc keeps an array in registers only where no index is a variable when
// it decides that, which is before it unrolls loops.
template <class Function, size_t... N>
inline void each(std::index_sequence<N...>, Function f) {
    (f(std::integral_constant<size_t, N>{}), ...);
}

// A tile: R rows of x times one panel. The first tile fetches what comes after its weights; for those after it they are near.
template <int BITS, int R, bool FIRST>
inline void multiply(const uint8_t *w, int inputs, const Rows &x, int row, F (&out)[R][2]) {
    if constexpr (BITS == 32) {
        const float *a[R];
        for (int r = 0; r < R; r++) a[r] = x.floats + size_t(row + r) * x.stride;
        for (int k = 0; k < inputs; k++, w += 2 * LANES * 4) {
            if (FIRST) prefetch(w + AHEAD), prefetch(w + AHEAD + 64);
            F w0 = load(reinterpret_cast<const float *>(w)), w1 = load(reinterpret_cast<const float *>(w) + LANES);
            each(std::make_index_sequence<R>{}, [&](auto r) {
                F v = set(a[r][k]);
                out[r][0] = fma(w0, v, out[r][0]), out[r][1] = fma(w1, v, out[r][1]);
            });
        }
    } else {
        constexpr size_t BYTES = Matrix::block_bytes(BITS);
        const int8_t *q[R];
        const float *scale[R];
        const int32_t *offset[R];
        for (int r = 0; r < R; r++) {
            size_t at = size_t(row + r) * x.stride;
            q[r] = x.q + at, scale[r] = x.scales + at / BLOCK, offset[r] = x.offsets + at / BLOCK;
        }
        for (int b = 0; b < inputs / BLOCK; b++, w += BYTES) {
            for (size_t i = 0; FIRST && i < BYTES; i += 64) prefetch(w + AHEAD + i);
            I dot[R][2];
            for (int r = 0; r < R; r++) dot[r][0] = dot[r][1] = set_int(BITS == 8 && SIGNED_BYTES ? 0 : offset[r][b]);
            for (int j = 0; j < BITS; j++) {
                Bytes w0 = load_bytes(w + j * 128), w1 = load_bytes(w + j * 128 + 64);
                for (int r = 0; r < R; r++) {
                    const int8_t *a = q[r] + b * BLOCK + j * 4 * (8 / BITS);
                    Bytes v = broadcast(a);
                    if constexpr (BITS == 8) {
                        dot[r][0] = dot8(dot[r][0], w0, v), dot[r][1] = dot8(dot[r][1], w1, v);
                    } else {
                        Bytes u = broadcast(a + 4);
                        dot[r][0] = dot4(dot4(dot[r][0], low(w0), v), high(w0), u);
                        dot[r][1] = dot4(dot4(dot[r][1], low(w1), v), high(w1), u);
                    }
                }
            }
            auto *scales = reinterpret_cast<const uint16_t *>(w + BYTES - 64);
            F s0 = load_half(scales), s1 = load_half(scales + LANES);
            for (int r = 0; r < R; r++) {
                F s = set(scale[r][b]);
                out[r][0] = fma(to_float(dot[r][0]), s0 * s, out[r][0]), out[r][1] = fma(to_float(dot[r][1]), s1 * s, out[r][1]);
            }
        }
    }
}

// Two registers of outputs are a block of inputs of what is multiplied next.
inline void quantise_into(const Result &result, int row, int n, F lo, F hi) {
    const Rows &next = *result.blocks;
    size_t at = size_t(row) * next.stride + n;
    quantise_block(lo, hi, result.zero, next.q + at, next.scales + at / BLOCK, next.offsets + at / BLOCK);
}

// Makes active what a tile has stored. Not in the tile: there the compiler would keep fewer sums in registers.
__attribute__((noinline)) void activate(const Result &result, int row, int rows, int n) {
    with_activation(result.activation, [&](auto function) {
        for (int r = row; r < row + rows; r++) {
            float *y = result.y + size_t(r) * result.stride + n;
            F lo = function(load(y)), hi = function(load(y + LANES));
            if (result.blocks) quantise_into(result, r, n, lo, hi);
            else store(y, lo), store(y + LANES, hi);
        }
    });
}

template <int BITS, int R>
void tile(const Matrix &m, const uint8_t *panel, const Rows &x, int row, const Result &result, int n) {
    F out[R][2];
    for (int r = 0; r < R; r++)
        for (int g = 0; g < 2; g++) out[r][g] = m.bias ? load(m.bias + n + g * LANES) : set(0.f);
    row ? multiply<BITS, R, false>(panel, m.inputs, x, row, out) : multiply<BITS, R, true>(panel, m.inputs, x, row, out);
    for (int r = 0; r < R; r++) {
        float *to = result.y + size_t(row + r) * result.stride + n;
        F lo = out[r][0], hi = out[r][1];
        if (result.finish == Finish::gelu_new) {
            lo = gelu_new(lo), hi = gelu_new(hi);
            if (result.blocks) {
                quantise_into(result, row + r, n, lo, hi);
                continue;
            }
        } else if (result.finish == Finish::add) {
            lo = load(to) + lo, hi = load(to + LANES) + hi;
        }
        store(to, lo), store(to + LANES, hi);
    }
    if (result.finish == Finish::activate) activate(result, row, R, n);
}

template <int N>
using Count = std::integral_constant<int, N>;

template <int BITS>
void matmul_of(const Matrix &m, const Rows &x, int rows, const Result &result, int first, int end) {
    for (int p = first; p < end; p++) {
        const uint8_t *panel = m.data + p * m.panel_bytes();
        int row = 0, left = rows;
        while (left > 0) {
            auto next = [&](auto count) {
                tile<BITS, count>(m, panel, x, row, result, p * PANEL);
                row += count, left -= count;
            };
            if (left >= 6 && left != 8 && TILE_ROWS >= 6) next(Count<TILE_ROWS >= 6 ? 6 : 1>{});
            else if (left >= 4 && TILE_ROWS >= 4) next(Count<TILE_ROWS >= 4 ? 4 : 1>{});
            else if (left >= 2 && TILE_ROWS >= 2) next(Count<TILE_ROWS >= 2 ? 2 : 1>{});
            else next(Count<1>{});
        }
    }
}

void matmul(const Matrix &m, const Rows &x, int rows, const Result &result, int first, int end) {
    auto *of = m.bits == 32 ? matmul_of<32> : m.bits == 8 ? matmul_of<8> : matmul_of<4>;
    of(m, x, rows, result, first, end);
}

void norm(const float *x, const float *gain, const float *bias, int width, int padded, float epsilon, float *y) {
    F total = set(0.f), squares = set(0.f);
    for (int i = 0; i < padded; i += LANES) total = total + load(x + i);
    F mean = set(sum(total) / float(width));
    for (int i = 0; i < padded; i += LANES) {
        F d = load(x + i) - mean;
        if (i + LANES > width) d = first_lanes(d, std::max(0, width - i), 0.f);
        squares = fma(d, d, squares);
    }
    F scale = set(1 / std::sqrt(sum(squares) / float(width) + epsilon));
    for (int i = 0; i < padded; i += LANES) store(y + i, fma((load(x + i) - mean) * scale, load(gain + i), load(bias + i)));
}

void embed(const Matrix &table, int token, const float *place, float *x) {
    const uint8_t *panel = table.data + token / PANEL * table.panel_bytes();
    int n = token % PANEL;
    for (int k = 0; k < table.inputs; k++) {
        const uint8_t *block = panel + k / BLOCK * Matrix::block_bytes(table.bits);
        int i = k % BLOCK;
        if (table.bits == 32) {
            x[k] = reinterpret_cast<const float *>(block)[i * PANEL + n] + place[k];
        } else {  // 8 bits
            float scale = from_half(reinterpret_cast<const uint16_t *>(block + BLOCK * PANEL)[n]);
            x[k] = float(block[i / 4 * 128 + n * 4 + i % 4] - 128) * scale + place[k];
        }
    }
}

}  // namespace
}  // namespace gpt2d
