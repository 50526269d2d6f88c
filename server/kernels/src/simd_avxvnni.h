// Sixteen lanes on AVX2 with vpdpbusd for registers of 256 bits: AVX-VNNI.
#pragma once
#include "simd_inputs.h"
#include "simd_ymm.h"

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 6;  // of 16 registers 12 are sums
constexpr int together(int rows) { return rows > 3 ? 2 : 4; }

inline __m256i pick(const int8_t *in, int j) { return everywhere(in + 4 * j); }  // four of them, in every lane
template <int BITS>
using Dot = __m256i;  // sums of a block's products
template <int BITS>
inline __m256i start(int32_t offset) {
    return _mm256_set1_epi32(offset);
}
inline __m256i multiply8(__m256i sum, Part w, __m256i x) {
#if defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else  // the same of AVX512-VNNI, in another code
    return _mm256_dpbusd_epi32(sum, w, x);
#endif
}
inline __m256i multiply4(__m256i sum, Part w, __m256i x) { return multiply8(sum, w, x); }
template <int BITS>
inline I finish(const __m256i *dots, int32_t) {
    return {dots[0], dots[1]};
}

constexpr bool SIGNED_BYTES = false;  // for dot8: the offset is needed
inline I dot8(I sum, Bytes w, Bytes a) { return {multiply8(sum.a, w.a, a.a), multiply8(sum.b, w.b, a.b)}; }
inline I dot4(I sum, Bytes w, Bytes a) { return dot8(sum, w, a); }

}  // namespace
}  // namespace gpt2d
