// Sixteen lanes on AVX2.
#pragma once
#include "ops.h"
#include "simd_ymm.h"

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 4;  // of 16 registers 8 are sums
constexpr int together(int rows) { return rows > 2 ? 2 : 4; }

// vpmaddubsw, which multiplies bytes, adds two products in 16 bits: of 4-bit weights a whole block fits these, 8 times 2 products
// of 15 by 127. Of 8-bit weights not even two would, so these are widened to 16 bits, those with even places and those with odd
// ones, as inputs are once in a block. Signs are not taken off instead (vpabsb, vpsignb): these want vpmaddubsw's pipes.
struct Halves { alignas(32) int16_t even[BLOCK / 2], odd[BLOCK / 2]; };
struct Pairs { __m256i even, odd; };
template <int BITS>
using Inputs = std::conditional_t<BITS == 8, Halves, const int8_t *>;
template <int BITS>
inline Inputs<BITS> inputs_of(const int8_t *q) {
    if constexpr (BITS == 4) return q;
    else {
        __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(q));
        Halves in;
        _mm256_store_si256(reinterpret_cast<__m256i *>(in.even), _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8));
        _mm256_store_si256(reinterpret_cast<__m256i *>(in.odd), _mm256_srai_epi16(all, 8));
        return in;
    }
}
inline __m256i pick(const int8_t *in, int j) { return everywhere(in + 4 * j); }  // four of them, in every lane
inline Pairs pick(const Halves &in, int j) {
    return {everywhere(in.even + 2 * j), everywhere(in.odd + 2 * j)};
}

// Of 8 outputs a sum each, or two of 16 bits.
template <int BITS>
using Dot = __m256i;
template <int BITS>
inline __m256i start(int32_t offset) {
    return _mm256_set1_epi32(BITS == 8 ? offset : 0);
}
inline __m256i multiply8(__m256i sum, Part w, Pairs x) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), x.even));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), x.odd));
    asm volatile("" : "+x"(sum));  // else gcc takes all products before all sums, and has no registers for them
    return sum;
}
inline __m256i multiply4(__m256i sum, Part w, __m256i x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
template <int BITS>
inline I finish(const __m256i *dots, int32_t offset) {
    if constexpr (BITS == 8) return {dots[0], dots[1]};
    auto widen = [&](__m256i x) { return _mm256_add_epi32(_mm256_madd_epi16(x, _mm256_set1_epi16(1)), _mm256_set1_epi32(offset)); };
    return {widen(dots[0]), widen(dots[1])};
}

// Attention's: 8-bit weights are multiplied as signed, by their magnitude, and what they are multiplied by takes the sign, so
// that no sum of two products saturates 16 bits.
constexpr bool SIGNED_BYTES = true;
inline __m256i add_dot(__m256i sum, __m256i w, __m256i a) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1)));
}
inline __m256i add_signed(__m256i sum, __m256i w, __m256i a) {
    w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return add_dot(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}
inline I dot8(I sum, Bytes w, Bytes a) { return {add_signed(sum.a, w.a, a.a), add_signed(sum.b, w.b, a.b)}; }
inline I dot4(I sum, Bytes w, Bytes a) { return {add_dot(sum.a, w.a, a.a), add_dot(sum.b, w.b, a.b)}; }

}  // namespace
}  // namespace gpt2d
