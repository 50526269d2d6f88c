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

constexpr int LANES = 16, LINE = 64;
// Bytes that a tile fetches before it needs them. Quantised weights into the second-level cache: there as many lines may be on
// their way as memory wants, and a hundred come within a tile's time. Floats keep the first-level cache too busy to wait: AMD's
// processors fetch them into it at once, Intel's into the second level and, FLOATS_SOON before their use, into the first.
constexpr int AHEAD = 8192, FLOATS_SOON = 1024;

inline void quantise_block(F lo, F hi, int zero, int8_t *q, float *scale, int32_t *offset) {
    float top = largest(max(abs(lo), abs(hi)));
    F inverse = set(top > 1e-30f ? 127.f / top : 0.f);
    F least = set(-127.f);  // what is not a number becomes this, and none is less
    I first = store_bytes(q, max(lo * inverse, least)), second = store_bytes(q + LANES, max(hi * inverse, least));
    *scale = top / 127.f;
    *offset = -zero * sum(first + second);
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

// Which of the tiles that go through a panel one is.
struct Turn { size_t tile, tiles; };

// The sums of a tile. As an argument and a result: what a reference names, gcc stores in each turn of a loop.
template <int R>
struct TileSums { F of[R][2]; };

// Memory is to bring weights all the time, also while others are multiplied. So at each block a tile that has the panel to
// itself fetches what comes AHEAD, and of several each fetches its share of the same block of the next panel. Up to three rows
// compute so little that AMD's own fetching keeps up and more is in its way. There one or two would run ahead at int8, and
// what they load would take the places that fetching needs: they wait for it at each block. Floats are four times the bytes. Intel's
// processors bring these only by their own fetching, which follows what is read: there a panel's first tile reads it from memory as
// if it were alone, and the others find it in the second-level cache.
enum class Fetching { share, ahead, into_first, wait, none };

// In loops: gcc 12 takes a lambda that only fetches for one that does nothing, and leaves it out.
template <int BITS, Fetching FETCHING>
inline void fetch(const uint8_t *w, int inputs, Turn turn) {
    constexpr size_t BYTES = Matrix::block_bytes(BITS);
    if constexpr (FETCHING == Fetching::share) {
        for (size_t i = turn.tile * LINE; i < BYTES; i += turn.tiles * LINE) prefetch_far(w + inputs / BLOCK * BYTES + i);
    } else if constexpr (FETCHING == Fetching::ahead) {
#pragma GCC unroll 20
        for (size_t i = 0; i < BYTES; i += LINE) prefetch_far(w + AHEAD + i);
    }
}

// A tile: R rows of x times one panel.
template <int R, Fetching FETCHING>
inline TileSums<R> multiply_floats(const uint8_t *w, int inputs, const Rows &x, int row, Turn turn, TileSums<R> out) {
    const float *a[R];
    for (int r = 0; r < R; r++) a[r] = x.floats + size_t(row + r) * x.stride;
    for (int k = 0; k < inputs; k++, w += PANEL * 4) {
        auto *from = reinterpret_cast<const float *>(w);
        if (FETCHING == Fetching::share && k % BLOCK == 0) fetch<32, FETCHING>(w, inputs, turn);
        if (FETCHING == Fetching::ahead) prefetch_far(w + AHEAD), prefetch_far(w + AHEAD + LINE);
        if (FETCHING == Fetching::ahead) prefetch(w + FLOATS_SOON), prefetch(w + FLOATS_SOON + LINE);
        if (FETCHING == Fetching::into_first) prefetch(w + AHEAD), prefetch(w + AHEAD + LINE);
        F w0 = load(from), w1 = load(from + LANES);
        each(std::make_index_sequence<R>{}, [&](auto r) {
            F v = set(a[r][k]);
            out.of[r][0] = fma(w0, v, out.of[r][0]), out.of[r][1] = fma(w1, v, out.of[r][1]);
        });
    }
    return out;
}

// Where R rows of x have their bytes, scales and offsets.
template <int R>
struct Quantised {
    const int8_t *q[R];
    const float *scale[R];
    const int32_t *offset[R];

    Quantised(const Rows &x, int row) {
        for (int r = 0; r < R; r++) {
            size_t at = size_t(row + r) * x.stride;
            q[r] = x.q + at, scale[r] = x.scales + at / BLOCK, offset[r] = x.offsets + at / BLOCK;
        }
    }
};

// A block times R rows: of sets that have `in_pairs`, which define it.
template <int BITS, int R, class Of, class Sums>
Sums multiply_pairs(const uint8_t *w, const Of &of, int b, Sums out);

// A block's weights are multiplied by R rows in parts, those of a register, and as many of them together as there are registers
// for their sums.
template <int BITS, int R, Fetching FETCHING>
inline TileSums<R> multiply_blocks(const uint8_t *w, int inputs, const Rows &x, int row, Turn turn, TileSums<R> out) {
    constexpr size_t BYTES = Matrix::block_bytes(BITS);
    const Quantised<R> of(x, row);
    for (int b = 0; b < inputs / BLOCK; b++, w += BYTES) {
        fetch<BITS, FETCHING>(w, inputs, turn);
        if (FETCHING == Fetching::wait && BITS == 8 && R <= 2) wait_for_loads();
        if constexpr (in_pairs(R)) {
            out = multiply_pairs<BITS, R>(w, of, b, out);
            continue;
        }
        Inputs<BITS> in[R];
        for (int r = 0; r < R; r++) in[r] = inputs_of<BITS>(of.q[r] + b * BLOCK);
        Dot<BITS> dots[R][PARTS];
        each(std::make_index_sequence<PARTS / together(R)>{}, [&](auto turn) {
            constexpr int T = together(R), FIRST = turn * T;
            if (FIRST) asm volatile("" : : : "memory");  // else what is loaded in each turn would be kept, by way of the stack
            Dot<BITS> dot[R][T];
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++) dot[r][t] = start<BITS>(of.offset[r][b]);
            for (int j = 0; j < BITS; j++) {
                Part ws[T];
                for (int t = 0; t < T; t++) ws[t] = load_part(w + j * 128 + (FIRST + t) * sizeof(Part));
                for (int r = 0; r < R; r++) {
                    if constexpr (BITS == 8) {
                        auto v = pick(in[r], j);
                        for (int t = 0; t < T; t++) dot[r][t] = multiply8(dot[r][t], ws[t], v);
                    } else {
                        auto v = pick(in[r], 2 * j), u = pick(in[r], 2 * j + 1);
                        for (int t = 0; t < T; t++) dot[r][t] = multiply4(multiply4(dot[r][t], low(ws[t]), v), high(ws[t]), u);
                    }
                }
            }
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++) dots[r][FIRST + t] = dot[r][t];
        });
        auto *scales = reinterpret_cast<const uint16_t *>(w + BYTES - 64);
        F s0 = load_half(scales), s1 = load_half(scales + LANES);
        for (int r = 0; r < R; r++) {
            F s = set(of.scale[r][b]);
            I first = finish<BITS>(dots[r], of.offset[r][b]), second = finish<BITS>(dots[r] + PARTS / 2, of.offset[r][b]);
            out.of[r][0] = fma(to_float(first), s0 * s, out.of[r][0]), out.of[r][1] = fma(to_float(second), s1 * s, out.of[r][1]);
        }
    }
    return out;
}

template <int BITS, int R, Fetching FETCHING>
inline TileSums<R> multiply(const uint8_t *w, int inputs, const Rows &x, int row, Turn turn, const TileSums<R> &out) {
    if constexpr (BITS == 32) return multiply_floats<R, FETCHING>(w, inputs, x, row, turn, out);
    else return multiply_blocks<BITS, R, FETCHING>(w, inputs, x, row, turn, out);
}

// Two strips of 8 bits, wherever they lie.
struct Strips {
    const uint8_t *w[2], *scales[2];

    Strips(const Matrix &m, int one, int other) : w{m.strip(one), m.strip(other)} {
        for (int i : {0, 1}) scales[i] = w[i] + m.inputs * STRIP;
    }
};

// R rows of x times two strips, while the next two are fetched, or of several tiles each fetches its share of them: with the
// operations of a panel, in their order. It does not wait for loads: nothing else fetches what it reads.
template <int R, bool ALONE>
inline TileSums<R> multiply_strips(const Strips &strips, const Strips &next, int inputs, const Rows &x, int row, Turn turn, TileSums<R> out) {
    constexpr size_t BYTES = Matrix::block_bytes(8);
    const Quantised<R> of(x, row);
    size_t blocks = size_t(inputs / BLOCK), half = (blocks + 1) / 2;
    for (size_t b = 0, at = 0; b < blocks; b++, at += BLOCK * STRIP) {
        const uint8_t *w = b < half ? next.w[0] + b * BYTES : next.w[1] + (b - half) * BYTES;  // one after the other
        if constexpr (ALONE) {
#pragma GCC unroll 17
            for (size_t i = 0; i < BYTES; i += LINE) prefetch_far(w + i);
        } else {
            for (size_t i = turn.tile * LINE; i < BYTES; i += turn.tiles * LINE) prefetch_far(w + i);
        }
        Inputs<8> in[R];
        for (int r = 0; r < R; r++) in[r] = inputs_of<8>(of.q[r] + b * BLOCK);
        Dot<8> dots[R][PARTS];
        each(std::make_index_sequence<PARTS / together(R)>{}, [&](auto turn) {
            constexpr int T = together(R), FIRST = turn * T, HALF = PARTS / 2;
            if (FIRST) asm volatile("" : : : "memory");  // as in a panel
            Dot<8> dot[R][T];
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++) dot[r][t] = start<8>(of.offset[r][b]);
            for (int j = 0; j < 8; j++) {
                Part ws[T];
                for (int t = 0; t < T; t++) ws[t] = load_part(strips.w[(FIRST + t) / HALF] + at + j * 64 + (FIRST + t) % HALF * sizeof(Part));
                for (int r = 0; r < R; r++) {
                    auto v = pick(in[r], j);
                    for (int t = 0; t < T; t++) dot[r][t] = multiply8(dot[r][t], ws[t], v);
                }
            }
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++) dots[r][FIRST + t] = dot[r][t];
        });
        F s0 = load_half(reinterpret_cast<const uint16_t *>(strips.scales[0] + at / LANES));
        F s1 = load_half(reinterpret_cast<const uint16_t *>(strips.scales[1] + at / LANES));
        for (int r = 0; r < R; r++) {
            F s = set(of.scale[r][b]);
            I first = finish<8>(dots[r], of.offset[r][b]), second = finish<8>(dots[r] + PARTS / 2, of.offset[r][b]);
            out.of[r][0] = fma(to_float(first), s0 * s, out.of[r][0]), out.of[r][1] = fma(to_float(second), s1 * s, out.of[r][1]);
        }
    }
    return out;
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

// How weights are fetched where this is the panel's only tile, and where it shares the panel with others: `none` leaves it to the
// first of them.
template <int BITS, bool APART, int R, Fetching ALONE, Fetching SHARED>
void tile(const Matrix &m, const uint8_t *panel, const Rows &x, int row, Turn turn, const Result &result, int n) {
    TileSums<R> out;
    for (int r = 0; r < R && !result.blocks; r++) {  // where the results go
        float *to = result.y + size_t(row + r) * result.stride + n;
        prefetch(to), prefetch(to + LANES);
    }
    for (int r = 0; r < R; r++)
        for (int g = 0; g < 2; g++) out.of[r][g] = m.bias ? load(m.bias + n + g * LANES) : set(0.f);
    if constexpr (APART) {
        int strip = n / STRIP;
        Strips strips(m, strip, strip + 1), next(m, strip + 2, strip + 3);
        if (turn.tiles == 1) out = multiply_strips<R, true>(strips, next, m.inputs, x, row, turn, out);
        else out = multiply_strips<R, false>(strips, next, m.inputs, x, row, turn, out);
    } else if (turn.tiles == 1 || (SHARED == Fetching::none && turn.tile == 0)) out = multiply<BITS, R, ALONE>(panel, m.inputs, x, row, turn, out);
    else out = multiply<BITS, R, SHARED>(panel, m.inputs, x, row, turn, out);
    for (int r = 0; r < R; r++) {
        float *to = result.y + size_t(row + r) * result.stride + n;
        F lo = out.of[r][0], hi = out.of[r][1];
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

// Each panel goes through as few tiles as there can be, of equal height. Without `AHEAD` few rows leave fetching to the processor.
template <int BITS, bool APART, bool AHEAD, size_t... R>
void matmul_of(const Matrix &m, const Rows &x, int rows, const Result &result, int first, int end, std::index_sequence<R...>) {
    constexpr auto alone = [](size_t height) {
        if (BITS == 32 && height == 1 && PARTS > 2) return Fetching::into_first;  // a row has loads enough in half registers
        if (AHEAD) return Fetching::ahead;
        if (BITS == 32) return Fetching::into_first;
        return height > 3 ? Fetching::ahead : Fetching::wait;
    };
    constexpr Fetching shared = AHEAD && BITS == 32 ? Fetching::none : Fetching::share;
    static constexpr decltype(&tile<BITS, APART, 1, alone(1), shared>) of_height[] = {tile<BITS, APART, R + 1, alone(R + 1), shared>...};
    constexpr int highest = sizeof...(R);
    int tiles = (rows + highest - 1) / highest;
    for (int p = first; p < end; p++) {
        const uint8_t *panel = m.data + p * m.panel_bytes();
        for (int t = 0, row = 0, height; t < tiles; t++, row += height) {
            height = (rows - row) / (tiles - t);
            of_height[height - 1](m, panel, x, row, {size_t(t), size_t(tiles)}, result, p * PANEL);
        }
    }
}

template <bool AHEAD>
void matmul(const Matrix &m, const Rows &x, int rows, const Result &result, int first, int end) {
    std::make_index_sequence<BLOCK_ROWS> heights;
    if (m.bits == 32) matmul_of<32, false, AHEAD>(m, x, rows, result, first, end, std::make_index_sequence<FLOAT_ROWS>{});
    else if (m.apart) matmul_of<8, true, true>(m, x, rows, result, first, end, heights);
    else if (m.bits == 8) matmul_of<8, false, AHEAD>(m, x, rows, result, first, end, heights);
    else matmul_of<4, false, AHEAD>(m, x, rows, result, first, end, heights);
}

template <int R>
void strips_of(const Matrix &m, const Rows &x, int row, float *y, int stride, const int *strips, int first, int end, int count) {
    for (int i = first; i < end; i += 2) {
        auto strip = [&](int k) { return strips[std::min(k, count - 1)]; };  // the last one twice where their number is odd
        TileSums<R> out;
        for (int r = 0; r < R; r++) out.of[r][0] = out.of[r][1] = set(0.f);
        out = multiply_strips<R, true>({m, strip(i), strip(i + 1)}, {m, strip(i + 2), strip(i + 3)}, m.inputs, x, row, {0, 1}, out);
        for (int r = 0; r < R; r++)
            for (int g = 0; g < 2; g++) store(y + size_t(row + r) * stride + strip(i + g) * STRIP, out.of[r][g]);
    }
}

void matmul_strips(const Matrix &m, const Rows &x, int rows, float *y, int stride, const int *strips, int first, int end, int count) {
    constexpr int highest = std::min(2, BLOCK_ROWS);
    for (int row = 0, height; row < rows; row += height) {
        height = std::min(highest, rows - row);
        if (height == highest) strips_of<highest>(m, x, row, y, stride, strips, first, end, count);
        else strips_of<1>(m, x, row, y, stride, strips, first, end, count);
    }
}

bool largest_of_strips(const float *y, int first, int end, float *tops) {
    F nothing = set(0.f);  // what is no number less itself is none
    for (int i = first; i < end; i++) {
        F x = load(y + i * STRIP);
        nothing = nothing + (x - x);
        tops[i] = largest(x);
    }
    return !any_nan(nothing);
}

bool bound(const Matrix &m, const float *y, const uint16_t *norms, const float *x_norms, int first, int end, float *tops, float *most) {
    size_t bytes = Matrix::block_bytes(m.bits), blocks = size_t(m.inputs / BLOCK);
    F deviations = set(DEVIATIONS / std::sqrt(float(BLOCK))), nothing = set(0.f);
    for (int p = first; p < end; p++) {
        F squares[2] = {set(0.f), set(0.f)};
        const uint8_t *scales = m.data + p * m.panel_bytes() + bytes - PANEL * 2;
        for (size_t b = 0; b < blocks; b++, scales += bytes) {
            F left_out = set(from_half(norms[size_t(p) * blocks + b]) * x_norms[b]);
            for (int g : {0, 1}) {
                F x = load_half(reinterpret_cast<const uint16_t *>(scales) + g * LANES) * left_out;
                squares[g] = fma(x, x, squares[g]);
            }
        }
        for (int g : {0, 1}) {
            F x = load(y + p * PANEL + g * LANES), highest = fma(root(squares[g]), deviations, x);
            nothing = nothing + (highest - highest);
            tops[2 * p + g] = largest(x), most[2 * p + g] = largest(highest);
        }
    }
    return !any_nan(nothing);
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
    size_t floats = Matrix::block_bytes(32);
    if (table.bits == 32) {
        const uint8_t *block = table.data + token / PANEL * table.panel_bytes();
        for (int k = 0; k < table.inputs; k += BLOCK, block += floats) {
            auto *column = reinterpret_cast<const float *>(block) + token % PANEL;
            for (int i = 0; i < BLOCK; i++) x[k + i] = column[i * PANEL] + place[k + i];
        }
        return;
    }
    const uint8_t *values = table.strip(token / STRIP);
    auto *scales = reinterpret_cast<const uint16_t *>(values + table.inputs * STRIP);
    int n = token % STRIP;
    for (int k = 0; k < table.inputs; k += BLOCK, values += BLOCK * STRIP, scales += STRIP) {
        float scale = from_half(scales[n]);
        for (int i = 0; i < BLOCK; i++) x[k + i] = float(values[i / 4 * 64 + n * 4 + i % 4] - 128) * scale + place[k + i];
    }
}

}  // namespace
}  // namespace gpt2d
