// Sixteen lanes on what every processor of its family has (SSE2, NEON without dot products), or in plain C++.
#pragma once
#include "simd_four.h"
#include "simd_inputs.h"

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 1, FLOAT_ROWS = 1;
constexpr int together(int) { return PARTS; }
constexpr bool in_pairs(int) { return false; }
constexpr int GROUP = 1, VALUES = 1;

// The sums of four outputs, and four inputs of each more: these are the same for all outputs.
#if defined(__SSE2__)
constexpr bool SIGNED_BYTES = false;
inline Ints add_products(Ints sum, Sixteen w, Sixteen x) {
    // Those with even numbers, then those with odd ones, as 16 bits.
    auto weights = as<__m128i>(w), inputs = as<__m128i>(x);
    __m128i even = _mm_madd_epi16(_mm_and_si128(weights, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(inputs, 8), 8));
    __m128i odd = _mm_madd_epi16(_mm_srli_epi16(weights, 8), _mm_srai_epi16(inputs, 8));
    return sum + as<Ints>(even) + as<Ints>(odd);
}
#elif defined(__aarch64__)
constexpr bool SIGNED_BYTES = true;
inline Ints add_products(Ints sum, Sixteen w, Sixteen x) {  // two products of 127 by -128 fit 16 bits
    auto weights = as<int8x16_t>(w), inputs = as<int8x16_t>(x);
    int16x8_t first = vmull_s8(vget_low_s8(weights), vget_low_s8(inputs)), second = vmull_high_s8(weights, inputs);
    return as<Ints>(vpadalq_s16(as<int32x4_t>(sum), vpaddq_s16(first, second)));
}
#else
constexpr bool SIGNED_BYTES = false;
inline Ints add_products(Ints sum, Sixteen w, Sixteen x) {
    for (int i = 0; i < 16; i++) sum[i / 4] += int32_t(w[i]) * int8_t(x[i]);
    return sum;
}
#endif

inline Sixteen pick(const int8_t *in, int j) { return everywhere(in + 4 * j); }  // four of them, in every lane
template <int BITS>
using Dot = Ints;  // sums of a block's products
template <int BITS>
inline Ints start(int32_t offset) {
    return Ints{} + (SIGNED_BYTES && BITS == 8 ? 0 : offset);
}
inline Ints multiply4(Ints sum, Part w, Sixteen x) { return add_products(sum, w, x); }
inline Ints multiply8(Ints sum, Part w, Sixteen x) { return add_products(sum, SIGNED_BYTES ? w ^ 128 : w, x); }
template <int BITS>
inline I finish(const Ints *dots, int32_t) {
    return {dots[0], dots[1], dots[2], dots[3]};
}
inline I dot8(I sum, Bytes w, Bytes x) { return parts<I>(multiply8, sum, w, x); }
inline I dot4(I sum, Bytes w, Bytes x) { return parts<I>(multiply4, sum, w, x); }
inline void prefetch(const void *p) { __builtin_prefetch(p); }
inline void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }
inline void wait_for_loads() {}

}  // namespace
}  // namespace gpt2d
