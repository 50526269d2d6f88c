// Sixteen lanes as four vectors of four, in the vector types of gcc and clang: SSE2 and NEON have such registers, and for
// others a compiler makes do. Products of bytes are left to whoever includes this.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace gpt2d {
namespace {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(8)));
typedef double Doubles __attribute__((vector_size(16)));
typedef float Two __attribute__((vector_size(8)));
typedef int64_t Longs __attribute__((vector_size(16)));
typedef uint8_t Sixteen __attribute__((vector_size(16)));

struct F { Floats a, b, c, d; };
struct I { Ints a, b, c, d; };

template <class To, class From>
inline To as(From x) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &x, sizeof to);
    return to;
}
template <class To>
inline To read(const void *p) {
    To to;
    std::memcpy(&to, p, sizeof to);
    return to;
}
inline Floats four(float x) { return Floats{x, x, x, x}; }
// yes where the mask is all ones, no where it is 0.
inline Floats choose(Ints mask, Floats yes, Floats no) { return as<Floats>((mask & as<Ints>(yes)) | (~mask & as<Ints>(no))); }
inline bool any(Ints mask) {
#if defined(__SSE2__)
    return _mm_movemask_epi8(as<__m128i>(mask)) != 0;
#else
    auto both = as<Longs>(mask);
    return (both[0] | both[1]) != 0;
#endif
}

// f of each of the four vectors. These are arguments and results on the stack where a compiler does not put a function's code in place.
#define GPT2D_IN_PLACE inline __attribute__((always_inline))
template <class To = F, class Function, class... From>
GPT2D_IN_PLACE To parts(Function f, const From &...x) {
    return {f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
}

inline F load(const float *p) { return {read<Floats>(p), read<Floats>(p + 4), read<Floats>(p + 8), read<Floats>(p + 12)}; }
inline void store(float *p, F x) { std::memcpy(p, &x, sizeof x); }
inline F set(float x) { return {four(x), four(x), four(x), four(x)}; }
inline F operator+(F x, F y) { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
inline F operator-(F x, F y) { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
inline F operator*(F x, F y) { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
inline F operator/(F x, F y) { return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }

#if defined(__aarch64__)
GPT2D_IN_PLACE F fma(F x, F y, F z) {
    return parts([](Floats p, Floats q, Floats r) { return Floats(vfmaq_f32(r, p, q)); }, x, y, z);
}
#else
// x y + z, rounded once, without an instruction for it: the product is exact in double, and the sum is rounded to double and
// then to float. That differs from rounding once only where the sum in double lies in the middle between two floats, which it
// may not have been: there, and below the normal floats, whose middles lie elsewhere, it is rounded to odd first.
inline Doubles lower(Floats x) { return __builtin_convertvector(__builtin_shufflevector(x, x, 0, 1), Doubles); }
inline Doubles upper(Floats x) { return __builtin_convertvector(__builtin_shufflevector(x, x, 2, 3), Doubles); }
inline Floats join(Doubles low, Doubles high) {
    return __builtin_shufflevector(__builtin_convertvector(low, Two), __builtin_convertvector(high, Two), 0, 1, 2, 3);
}
// The sum of p and z of which the last bit is 1 wherever it is not exact (Boldo and Melquiond 2008; the error is Knuth's).
inline Doubles add_to_odd(Doubles p, Doubles z) {
    Doubles sum = p + z, back = sum - p, error = (p - (sum - back)) + (z - back);
    auto bits = as<Longs>(sum);
    Longs inexact = (error > 0) | (error < 0), even = (bits & 1) - 1, away = (error > 0) == (sum > 0);
    // One step towards what was lost: up or down by one in the bits, as the signs are.
    return as<Doubles>(bits + (inexact & even & ((away & 1) - (~away & 1))));
}
__attribute__((noinline)) inline Floats fma_to_odd(Floats x, Floats y, Floats z) {
    return join(add_to_odd(lower(x) * lower(y), lower(z)), add_to_odd(upper(x) * upper(y), upper(z)));
}
GPT2D_IN_PLACE F fma(F x, F y, F z) {
    Ints doubtful = {};
    auto one = [&](Floats p, Floats q, Floats r) __attribute__((always_inline)) {
        Doubles low = lower(p) * lower(q) + lower(r), high = upper(p) * upper(q) + upper(r);
        Floats rounded = join(low, high);
        Ints rests = __builtin_shufflevector(as<Ints>(low), as<Ints>(high), 0, 2, 4, 6);  // of a double's lower bits 29 are lost
        doubtful |= (rests & 0x1fffffff) == 0x10000000;
        doubtful |= (as<Ints>(rounded) & 0x7fffffff) < 0x00800000;
        return rounded;
    };
    F found = parts(one, x, y, z);
    if (__builtin_expect(any(doubtful), 0)) found = parts(fma_to_odd, x, y, z);
    return found;
}
#endif

// As x86 does it: the second where one of them is not a number, or where they are equal.
#if defined(__SSE2__)
inline Floats greater(Floats p, Floats q) { return _mm_max_ps(p, q); }
inline Floats smaller(Floats p, Floats q) { return _mm_min_ps(p, q); }
#else
inline Floats greater(Floats p, Floats q) { return choose(p > q, p, q); }
inline Floats smaller(Floats p, Floats q) { return choose(p < q, p, q); }
#endif
inline F root(F x) {
    auto four_roots = [](Floats p) {
        for (int i = 0; i < 4; i++) p[i] = std::sqrt(p[i]);
        return p;
    };
    return parts(four_roots, x);
}
inline F max(F x, F y) { return parts(greater, x, y); }
inline F min(F x, F y) { return parts(smaller, x, y); }
inline F abs(F x) { return parts([](Floats p) { return as<Floats>(as<Ints>(p) & 0x7fffffff); }, x); }
inline float sum(F x) {
    Floats s = (x.a + x.c) + (x.b + x.d);
    return (s[0] + s[2]) + (s[1] + s[3]);
}
inline float largest(F x) {
    Floats s = greater(greater(x.a, x.c), greater(x.b, x.d));
    s = greater(s, __builtin_shufflevector(s, s, 2, 3, 2, 3));
    return greater(s, __builtin_shufflevector(s, s, 1, 1, 1, 1))[0];
}
// For x between -2^22 and 2^22: where the last bit of a float is worth 1, a sum is rounded to the nearest whole number.
constexpr float WHOLE = 12582912.f;
inline F round(F x) { return (x + set(WHOLE)) - set(WHOLE); }
inline Ints whole(Floats x) { return as<Ints>(as<Bits>(x + four(WHOLE)) - as<Bits>(four(WHOLE))); }  // others wrap
inline F scale2(F x, F n) {  // for n of whole numbers from -126 to 127
    return parts([](Floats p, Floats k) { return p * as<Floats>((whole(k) + 127) << 23); }, x, n);
}
inline F first_lanes(F x, int n, float rest) {
    auto some = [&](Floats p, int from) { return choose(Ints{from, from + 1, from + 2, from + 3} < n, p, four(rest)); };
    return {some(x.a, 0), some(x.b, 4), some(x.c, 8), some(x.d, 12)};
}

// IEEE 754 binary16, rounding to nearest even.
GPT2D_IN_PLACE Floats from_halves(Halves h) {
#if defined(__aarch64__)
    return vcvt_f32_f16(as<float16x4_t>(h));
#else
    auto all = __builtin_convertvector(h, Bits);
    Bits rest = (all & 0x7fff) << 13, exponent = rest & 0x0f800000, adjusted = rest + (112u << 23);
    adjusted += Bits(exponent == 0x0f800000) & (112u << 23);  // infinity, and what is not a number
    Bits tiny = Bits(exponent == 0);
    auto small = as<Bits>(as<Floats>(adjusted + (1u << 23)) - as<Floats>(Bits{} + (113u << 23)));
    return as<Floats>((all & 0x8000) << 16 | (tiny & small) | (~tiny & adjusted));
#endif
}
inline Halves to_halves(Floats x) {
#if defined(__aarch64__)
    return as<Halves>(vcvt_f16_f32(x));
#else
    Bits bits = as<Bits>(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    Bits normal = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
    Bits tiny = as<Bits>(as<Floats>(size) + four(0.5f)) - as<Bits>(four(0.5f));  // a float's last bit is worth 2^-24 there
    Bits is_tiny = Bits(as<Ints>(size) < 0x38800000), is_large = Bits(as<Ints>(size) >= 0x47800000);
    Bits is_nan = Bits(as<Ints>(size) > 0x7f800000), large = (is_nan & 0x200) | 0x7c00;
    return __builtin_convertvector(sign | (is_large & large) | (~is_large & ((is_tiny & tiny) | (~is_tiny & normal))), Halves);
#endif
}
GPT2D_IN_PLACE F load_half(const uint16_t *p) {
    return {from_halves(read<Halves>(p)), from_halves(read<Halves>(p + 4)), from_halves(read<Halves>(p + 8)), from_halves(read<Halves>(p + 12))};
}
inline void store_half(uint16_t *p, F x) {
    Halves parts[4] = {to_halves(x.a), to_halves(x.b), to_halves(x.c), to_halves(x.d)};
    std::memcpy(p, parts, sizeof parts);
}
inline float from_half(uint16_t x) { return from_halves(Halves{x, x, x, x})[0]; }

struct Sums { Doubles a, b, c, d; };
#if defined(__aarch64__)
inline Doubles lower(Floats x) { return vcvt_f64_f32(vget_low_f32(x)); }
inline Doubles upper(Floats x) { return vcvt_high_f64_f32(x); }
#endif
inline Sums no_sums() {
    Doubles none = {};
    return {none, none, none, none};
}
inline Sums add(Sums s, F x) {
    return {s.a + lower(x.a) + lower(x.c), s.b + upper(x.a) + upper(x.c), s.c + lower(x.b) + lower(x.d), s.d + upper(x.b) + upper(x.d)};
}
inline double total(Sums s) {
    Doubles t = (s.a + s.c) + (s.b + s.d);
    return t[0] + t[1];
}
inline int store_between(float *p, F x, F key, float lo, float up) {
    float all[16], keys[16];
    store(all, x), store(keys, key);
    int n = 0;
    for (int i = 0; i < 16; i++) {
        p[n] = all[i];
        n += keys[i] >= lo && keys[i] < up;
    }
    return n;
}
inline bool any_nan(F x) { return any((x.a != x.a) | (x.b != x.b) | (x.c != x.c) | (x.d != x.d)); }
inline F zero_below(F a, F x, float limit) {
    return parts([&](Floats p, Floats q) { return as<Floats>(as<Ints>(p) & (q >= four(limit))); }, a, x);
}

inline I set_int(int32_t x) {
    Ints all = {x, x, x, x};
    return {all, all, all, all};
}
inline F to_float(I x) {
    return parts([](Ints p) { return __builtin_convertvector(p, Floats); }, x);
}
inline I operator+(I x, I y) { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
inline int32_t sum(I x) {
    Ints t = (x.a + x.b) + (x.c + x.d);
    return (t[0] + t[2]) + (t[1] + t[3]);
}
inline I store_bytes(int8_t *p, F x) {
    Ints a = whole(x.a), b = whole(x.b), c = whole(x.c), d = whole(x.d);
#if defined(__SSE2__)
    auto pack = [](Ints u, Ints v) { return _mm_packs_epi32(as<__m128i>(u), as<__m128i>(v)); };
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(pack(a, b), pack(c, d)));
#else
    typedef int8_t Four __attribute__((vector_size(4)));
    Four bytes[] = {__builtin_convertvector(a, Four), __builtin_convertvector(b, Four), __builtin_convertvector(c, Four), __builtin_convertvector(d, Four)};
    std::memcpy(p, bytes, sizeof bytes);
#endif
    return {a, b, c, d};
}

struct Bytes { Sixteen a, b, c, d; };  // 16 lanes of 4 bytes
using Part = Sixteen;                  // of a block's weights: 4 of each of 4 outputs
constexpr int PARTS = 8;
inline Part load_part(const uint8_t *p) { return read<Sixteen>(p); }
inline Part low(Part x) { return x & 15; }
inline Part high(Part x) { return x >> 4; }
inline Bytes load_bytes(const uint8_t *p) { return {load_part(p), load_part(p + 16), load_part(p + 32), load_part(p + 48)}; }
inline Sixteen everywhere(const void *p) {  // four bytes, in every lane
    auto x = read<int32_t>(p);
    return as<Sixteen>(Ints{x, x, x, x});
}
inline Bytes broadcast(const int8_t *p) { return {everywhere(p), everywhere(p), everywhere(p), everywhere(p)}; }

}  // namespace
}  // namespace gpt2d
