// Sixteen lanes on NEON with sdot, which adds four products of signed bytes to each of four sums: Armv8.2 and later.
#pragma once
#include "simd_four.h"

namespace gpt2d {
namespace {

// Of 32 registers at most 24 are sums.
constexpr int BLOCK_ROWS = 6, FLOAT_ROWS = 2;
constexpr int together(int rows) { return rows > 3 ? 4 : 8; }
constexpr int GROUP = 2, VALUES = 2;  // of attention: sums of 2 queries for even and odd dimensions, then of 2 x 2 times 16 values
constexpr bool SIGNED_BYTES = true;   // 8-bit weights are multiplied as signed: the offset is not needed

template <int BITS>
using Inputs = const int8_t *;  // of a block
template <int BITS>
inline Inputs<BITS> inputs_of(const int8_t *q) {
    return q;
}
inline Sixteen pick(const int8_t *in, int j) { return everywhere(in + 4 * j); }  // four of them, in every lane
template <int BITS>
using Dot = Ints;  // sums of a block's products
template <int BITS>
inline Ints start(int32_t offset) {
    return Ints{} + (BITS == 8 ? 0 : offset);
}
inline Ints multiply4(Ints sum, Part w, Sixteen x) {
    return as<Ints>(vdotq_s32(as<int32x4_t>(sum), as<int8x16_t>(w), as<int8x16_t>(x)));
}
inline Ints multiply8(Ints sum, Part w, Sixteen x) { return multiply4(sum, w ^ 128, x); }
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
