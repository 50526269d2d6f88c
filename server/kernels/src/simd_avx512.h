// Sixteen lanes on AVX512-VNNI.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "simd_inputs.h"

namespace gpt2d {
namespace {

// Rows of a tile. Blocks: 2 registers of outputs, each with a sum and a dot product, are 24 of 32 registers; with 8 rows some
// would spill (150 instead of 180 GMAC/s a core on Zen 4). Floats: more rows would take more pointers than there are.
constexpr int BLOCK_ROWS = 6, FLOAT_ROWS = 8;
constexpr bool SIGNED_BYTES = false;  // for dot8: the offset is needed
constexpr int PARTS = 2;              // of a panel
constexpr int together(int) { return 2; }
constexpr bool in_pairs(int) { return false; }
constexpr int GROUP = 6, VALUES = 4;  // of attention: sums of 6 queries for even and odd dimensions, then of 6 x 4 registers of values

struct F { __m512 v; };
struct I { __m512i v; };
struct Bytes { __m512i v; };  // 16 lanes of 4 bytes
using Part = Bytes;            // of a block's weights: 4 of each of 16 outputs

inline F load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline void store(float *p, F a) { _mm512_storeu_ps(p, a.v); }
inline F load_half(const uint16_t *p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))}; }
inline void store_half(uint16_t *p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline float from_half(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
inline F set(float x) { return {_mm512_set1_ps(x)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F root(F a) { return {_mm512_sqrt_ps(a.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline float sum(F a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(F a) { return _mm512_reduce_max_ps(a.v); }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F scale2(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }                                             // a * 2^n
inline F first_lanes(F a, int n, float rest) { return {_mm512_mask_mov_ps(_mm512_set1_ps(rest), __mmask16((1u << n) - 1), a.v)}; }

struct Sums { __m512d v; };  // eight, of lanes i and i+8 in double
inline Sums no_sums() { return {_mm512_setzero_pd()}; }
inline Sums add(Sums s, F a) {
    s.v = _mm512_add_pd(s.v, _mm512_cvtps_pd(_mm512_castps512_ps256(a.v)));
    return {_mm512_add_pd(s.v, _mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1)))};
}
inline double total(Sums s) { return _mm512_reduce_add_pd(s.v); }  // a tree: i and i+4, i+2, i+1
// Writes the lanes of a whose keys are at least lo and below up, in their order, and returns how many: up to 16 floats change.
inline int store_between(float *p, F a, F key, float lo, float up) {
    __mmask16 in = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(key.v, _mm512_set1_ps(lo), _CMP_GE_OQ), key.v, _mm512_set1_ps(up), _CMP_LT_OQ);
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(in, a.v));
    return __builtin_popcount(in);
}
inline bool any_nan(F a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q) != 0; }
inline F zero_below(F a, F x, float limit) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ), a.v)}; }

inline I set_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a.v); }
inline I store_bytes(int8_t *p, F a) {  // returns what it has rounded to
    I i = {_mm512_cvtps_epi32(a.v)};
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtsepi32_epi8(i.v));
    return i;
}
inline Bytes load_bytes(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
inline Part load_part(const uint8_t *p) { return load_bytes(p); }
inline Part low(Part a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline Part high(Part a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
inline Bytes broadcast(const int8_t *p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return {_mm512_set1_epi32(x)};
}
inline Bytes pick(const int8_t *in, int j) { return broadcast(in + 4 * j); }  // four of them, in every lane
template <int BITS>
using Dot = I;  // sums of a block's products
template <int BITS>
inline I start(int32_t offset) {
    return set_int(offset);
}
inline I dot8(I sum, Bytes w, Bytes a) { return {_mm512_dpbusd_epi32(sum.v, w.v, a.v)}; }
inline I dot4(I sum, Bytes w, Bytes a) { return dot8(sum, w, a); }
inline I multiply8(I sum, Part w, Bytes a) { return dot8(sum, w, a); }
inline I multiply4(I sum, Part w, Bytes a) { return dot8(sum, w, a); }
template <int BITS>
inline I finish(const I *dots, int32_t) {
    return dots[0];
}
inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
inline void prefetch_far(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }  // into the second-level cache
inline void wait_for_loads() { _mm_lfence(); }  // until what was loaded is there

}  // namespace
}  // namespace gpt2d
