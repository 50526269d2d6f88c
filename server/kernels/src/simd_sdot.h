// What sets with Arm's dot products have in common. sdot adds four products of signed bytes to each of four sums.
#pragma once
#include "simd_four.h"
#include "simd_inputs.h"

namespace gpt2d {
namespace {

constexpr int FLOAT_ROWS = 2;
constexpr int GROUP = 2, VALUES = 2;  // of attention: sums of 2 queries for even and odd dimensions, then of 2 x 2 times 16 values
constexpr bool SIGNED_BYTES = true;   // 8-bit weights are multiplied as signed: the offset is not needed

inline int8x8_t pick(const int8_t *in, int j) {  // four of them: sdot takes them for every lane, and nothing has to copy them there
    typedef int32_t Two __attribute__((vector_size(8)));
    return as<int8x8_t>(Two{read<int32_t>(in + 4 * j), 0});
}
template <int BITS>
using Dot = Ints;  // sums of a block's products
template <int BITS>
inline Ints start(int32_t offset) {
    return Ints{} + (BITS == 8 ? 0 : offset);
}
inline Ints multiply4(Ints sum, Part w, int8x8_t x) {
    return as<Ints>(vdotq_lane_s32(as<int32x4_t>(sum), as<int8x16_t>(w), x, 0));
}
inline Ints multiply8(Ints sum, Part w, int8x8_t x) { return multiply4(sum, w ^ 128, x); }
template <int BITS>
inline I finish(const Ints *dots, int32_t) {
    return {dots[0], dots[1], dots[2], dots[3]};
}
inline Ints add_products(Ints sum, Sixteen w, Sixteen x) {
    return as<Ints>(vdotq_s32(as<int32x4_t>(sum), as<int8x16_t>(w), as<int8x16_t>(x)));
}
inline I dot4(I sum, Bytes w, Bytes x) { return parts<I>(add_products, sum, w, x); }
inline I dot8(I sum, Bytes w, Bytes x) { return dot4(sum, {w.a ^ 128, w.b ^ 128, w.c ^ 128, w.d ^ 128}, x); }
inline void prefetch(const void *p) { __builtin_prefetch(p); }
inline void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }
inline void wait_for_loads() {}

}  // namespace
}  // namespace gpt2d
