// Sixteen lanes on AVX2 with vpdpbusd for registers of 256 bits: AVX-VNNI.
#pragma once
#include "simd_ymm.h"

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 6;  // of 16 registers 12 are sums
constexpr int together(int rows) { return rows > 3 ? 2 : 4; }

template <int BITS>
using Inputs = const int8_t *;  // of a block
template <int BITS>
inline Inputs<BITS> inputs_of(const int8_t *q) {
    return q;
}
inline __m256i pick(const int8_t *in, int j) { return broadcast(in + 4 * j); }  // four of them, in every lane
template <int BITS>
using Dot = __m256i;  // sums of a block's products
template <int BITS>
inline __m256i start(int32_t offset) {
    return _mm256_set1_epi32(offset);
}
inline __m256i dot8(__m256i sum, Part w, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else  // the same of AVX512-VNNI, in another code
    return _mm256_dpbusd_epi32(sum, w, x);
#endif
}
inline __m256i dot4(__m256i sum, Part w, __m256i x) { return dot8(sum, w, x); }
template <int BITS>
inline I finish(const __m256i *dots, int32_t) {
    return {dots[0], dots[1]};
}

}  // namespace
}  // namespace gpt2d
