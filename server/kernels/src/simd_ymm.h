// Sixteen lanes on AVX2, FMA and F16C, as two halves. Products of bytes are left to whoever includes this.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

namespace gpt2d {
namespace {

constexpr int FLOAT_ROWS = 3;
constexpr int GROUP = 2, VALUES = 2;  // of attention: sums of 2 queries for even and odd dimensions, then of 2 x 2 registers of values, each of two

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct Bytes { __m256i a, b; };  // 16 lanes of 4 bytes
using Part = __m256i;             // of a block's weights: 4 of each of 8 outputs
constexpr int PARTS = 4;
constexpr bool in_pairs(int) { return false; }

inline F load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F load_half(const uint16_t *p) {
    auto *from = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))};
}
inline void store_half(uint16_t *p, F x) {
    auto *to = reinterpret_cast<__m128i *>(p);
    _mm_storeu_si128(to, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(to + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline float from_half(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
inline F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F root(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
    __m256 sign = _mm256_set1_ps(-0.f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline float sum(F x) {
    __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
inline float largest(F x) {
    __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
inline F round(F x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline F scale2(F x, F n) {  // for n of whole numbers from -126 to 127
    auto power = [](__m256 k) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(k), _mm256_set1_epi32(127)), 23)); };
    return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))};
}
inline F first_lanes(F x, int n, float rest) {
    __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), end = _mm256_set1_epi32(n);
    __m256 a = _mm256_castsi256_ps(_mm256_cmpgt_epi32(end, at));
    __m256 b = _mm256_castsi256_ps(_mm256_cmpgt_epi32(end, _mm256_add_epi32(at, _mm256_set1_epi32(8))));
    return {_mm256_blendv_ps(_mm256_set1_ps(rest), x.a, a), _mm256_blendv_ps(_mm256_set1_ps(rest), x.b, b)};
}

struct Sums { __m256d a, b; };
inline Sums no_sums() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
inline Sums add(Sums s, F x) {
    auto low = [](__m256 v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); };
    auto high = [](__m256 v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); };
    return {_mm256_add_pd(_mm256_add_pd(s.a, low(x.a)), low(x.b)), _mm256_add_pd(_mm256_add_pd(s.b, high(x.a)), high(x.b))};
}
inline double total(Sums s) {
    __m256d t = _mm256_add_pd(s.a, s.b);
    __m128d u = _mm_add_pd(_mm256_castpd256_pd128(t), _mm256_extractf128_pd(t, 1));
    return _mm_cvtsd_f64(_mm_add_sd(u, _mm_unpackhi_pd(u, u)));
}
inline int store_between(float *p, F x, F key, float lo, float up) {
    auto in = [&](__m256 k) { return _mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(k, _mm256_set1_ps(lo), _CMP_GE_OQ), _mm256_cmp_ps(k, _mm256_set1_ps(up), _CMP_LT_OQ))); };
    alignas(32) float all[16];
    store(all, x);
    int n = 0;
    for (unsigned left = unsigned(in(key.a) | in(key.b) << 8); left; left &= left - 1) p[n++] = all[__builtin_ctz(left)];
    return n;
}
inline bool any_nan(F x) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))) != 0;
}
inline F zero_below(F a, F x, float limit) {
    __m256 l = _mm256_set1_ps(limit);
    return {_mm256_and_ps(a.a, _mm256_cmp_ps(x.a, l, _CMP_GE_OQ)), _mm256_and_ps(a.b, _mm256_cmp_ps(x.b, l, _CMP_GE_OQ))};
}

inline I set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I operator+(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline int32_t sum(I x) {
    __m256i t = _mm256_add_epi32(x.a, x.b);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(t), _mm256_extracti128_si256(t, 1));
    s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
    return _mm_cvtsi128_si32(s) + _mm_extract_epi32(s, 1);
}
inline I store_bytes(int8_t *p, F x) {
    I i = {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(i.a, i.b), 0xd8);  // packing goes by halves
    __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
    return i;
}
inline Part load_part(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline Part low(Part x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
inline Part high(Part x) { return low(_mm256_srli_epi16(x, 4)); }
inline Bytes load_bytes(const uint8_t *p) { return {load_part(p), load_part(p + 32)}; }
inline __m256i everywhere(const void *p) {  // four bytes, in every lane
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return _mm256_set1_epi32(x);
}
inline Bytes broadcast(const int8_t *p) { return {everywhere(p), everywhere(p)}; }
inline void prefetch(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T0); }
inline void prefetch_far(const void *p) { _mm_prefetch(static_cast<const char *>(p), _MM_HINT_T1); }  // into the second-level cache
inline void wait_for_loads() { _mm_lfence(); }  // until what was loaded is there

}  // namespace
}  // namespace gpt2d
