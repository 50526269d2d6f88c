// Sixteen lanes on NEON with usmmla, which adds eight products of bytes to each of four sums, of two outputs and two rows: in all
// of Armv8.6 and in many processors before (Apple since M2, Graviton since 3). Fewer than four rows are multiplied by sdot.
#pragma once
#include "ops.h"
#include "simd_sdot.h"

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 4;              // of 32 registers 16 are sums; with six rows gcc would put some of 24 on the stack
constexpr int together(int) { return 8; }  // of up to three rows
constexpr bool in_pairs(int rows) { return rows > 3; }

// Half a panel's sums of a block. In a panel four inputs of an output lie together, and the next four of four outputs are in
// another register: both are zipped to eight of two outputs.
template <int BITS, int R, int HALF, class Quantised, class Sums>
GPT2D_IN_PLACE Sums multiply_half(const uint8_t *w, const int8x16_t (&in)[4][R / 2], const Quantised &of, int b, Sums out) {
    constexpr int PAIRS = R / 2, T = PARTS / 2;
    int32x4_t sums[PAIRS][T][2];
    for (int p = 0; p < PAIRS; p++) {
        int32_t one = of.offset[2 * p][b], other = of.offset[2 * p + 1][b];
        for (int t = 0; t < T; t++) sums[p][t][0] = sums[p][t][1] = as<int32x4_t>(Ints{one, other, one, other});
    }
#pragma GCC unroll 1
    for (int k = 0; k < 4; k++)
        for (int t = 0; t < T; t++) {
            const uint8_t *from = w + k * (BITS * 32) + HALF * 64 + t * sizeof(Part);
            Part part = load_part(from), u = BITS == 8 ? part : low(part), v = BITS == 8 ? load_part(from + 128) : high(part);
            auto near = as<uint8x16_t>(vzip1q_s32(as<int32x4_t>(u), as<int32x4_t>(v)));
            auto far = as<uint8x16_t>(vzip2q_s32(as<int32x4_t>(u), as<int32x4_t>(v)));
            for (int p = 0; p < PAIRS; p++) {
                sums[p][t][0] = vusmmlaq_s32(sums[p][t][0], near, in[k][p]);
                sums[p][t][1] = vusmmlaq_s32(sums[p][t][1], far, in[k][p]);
            }
        }
    F scale = load_half(reinterpret_cast<const uint16_t *>(w + BITS * 128) + HALF * 16);
    for (int r = 0; r < R; r++) {
        auto of_row = [&](int t) {
            auto &s = sums[r / 2][t];
            return as<Ints>(r % 2 ? vuzp2q_s32(s[0], s[1]) : vuzp1q_s32(s[0], s[1]));
        };
        F whole = to_float(I{of_row(0), of_row(1), of_row(2), of_row(3)});
        out.of[r][HALF] = fma(whole, scale * set(of.scale[r][b]), out.of[r][HALF]);
    }
    return out;
}

template <int BITS, int R, class Quantised, class Sums>
GPT2D_IN_PLACE Sums multiply_pairs(const uint8_t *w, const Quantised &of, int b, Sums out) {
    static_assert(R % 2 == 0, "two rows together");
    int8x16_t in[4][R / 2];  // eight inputs of both rows
    for (int r = 0; r < R; r += 2)
        for (int half = 0; half < 2; half++) {
            auto one = read<int64x2_t>(of.q[r] + b * BLOCK + half * 16), other = read<int64x2_t>(of.q[r + 1] + b * BLOCK + half * 16);
            in[2 * half][r / 2] = as<int8x16_t>(vzip1q_s64(one, other));
            in[2 * half + 1][r / 2] = as<int8x16_t>(vzip2q_s64(one, other));
        }
    return multiply_half<BITS, R, 1>(w, in, of, b, multiply_half<BITS, R, 0>(w, in, of, b, out));
}

}  // namespace
}  // namespace gpt2d
