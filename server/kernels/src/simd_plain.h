// Sixteen lanes in plain C++: the reference, and what runs where there is nothing better.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace gpt2d {
namespace {

constexpr int BLOCK_ROWS = 1, FLOAT_ROWS = 1;
constexpr int GROUP = 1, VALUES = 1;
constexpr bool SIGNED_BYTES = false;

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct Bytes { uint8_t v[64]; };

template <class Function>
inline F each(Function f) {
    F r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return r;
}

// IEEE 754 binary16, rounding to nearest even.
inline float from_half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else return (sign ? -1.f : 1.f) * std::ldexp(float(mantissa), -24);
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline uint16_t half(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) return uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
    if (bits < 0x38800000) {  // below the smallest normal number
        std::memcpy(&f, &bits, 4);
        return uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(f, 24))));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return uint16_t(sign | (bits - 0x38000000) >> 13);
}

inline F load(const float *p) { return each([&](int i) { return p[i]; }); }
inline void store(float *p, F a) { std::memcpy(p, a.v, 64); }
inline F load_half(const uint16_t *p) { return each([&](int i) { return from_half(p[i]); }); }
inline void store_half(uint16_t *p, F a) { for (int i = 0; i < 16; i++) p[i] = half(a.v[i]); }
inline F set(float x) { return each([&](int) { return x; }); }
inline F fma(F a, F b, F c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F operator+(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline F operator-(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline F operator*(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline F operator/(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline F max(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F min(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F abs(F a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
inline float sum(F a) {
    float s = 0;
    for (float x : a.v) s += x;
    return s;
}
inline float largest(F a) {
    float m = a.v[0];
    for (float x : a.v) m = x > m ? x : m;
    return m;
}
inline F round(F a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
inline F scale2(F a, F n) { return each([&](int i) { return std::ldexp(a.v[i], int(n.v[i])); }); }
inline F first_lanes(F a, int n, float rest) { return each([&](int i) { return i < n ? a.v[i] : rest; }); }

struct Sums { double v[8]; };
inline Sums no_sums() { return {}; }
inline Sums add(Sums s, F a) {
    for (int i = 0; i < 16; i++) s.v[i & 7] += double(a.v[i]);
    return s;
}
inline double total(Sums s) { return ((s.v[0] + s.v[4]) + (s.v[2] + s.v[6])) + ((s.v[1] + s.v[5]) + (s.v[3] + s.v[7])); }
inline int store_between(float *p, F a, F key, float lo, float up) {
    int n = 0;
    for (int i = 0; i < 16; i++)
        if (key.v[i] >= lo && key.v[i] < up) p[n++] = a.v[i];
    return n;
}
inline bool any_nan(F a) {
    bool found = false;
    for (float x : a.v) found |= x != x;
    return found;
}
inline F zero_below(F a, F x, float limit) { return each([&](int i) { return x.v[i] >= limit ? a.v[i] : 0.f; }); }

inline I set_int(int32_t x) {
    I r;
    for (int32_t &i : r.v) i = x;
    return r;
}
inline F to_float(I a) { return each([&](int i) { return float(a.v[i]); }); }
inline int32_t store_bytes(int8_t *p, F a) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) {
        auto x = int32_t(std::nearbyint(a.v[i]));
        total += x, p[i] = int8_t(x);
    }
    return total;
}
inline Bytes load_bytes(const uint8_t *p) {
    Bytes r;
    std::memcpy(r.v, p, 64);
    return r;
}
inline Bytes low(Bytes a) {
    for (uint8_t &x : a.v) x &= 15;
    return a;
}
inline Bytes high(Bytes a) {
    for (uint8_t &x : a.v) x >>= 4;
    return a;
}
inline Bytes broadcast(const int8_t *p) {
    Bytes r;
    for (int i = 0; i < 64; i++) r.v[i] = uint8_t(p[i & 3]);
    return r;
}
inline I dot8(I sum, Bytes w, Bytes a) {
    for (int i = 0; i < 64; i++) sum.v[i / 4] += int32_t(w.v[i]) * int8_t(a.v[i]);
    return sum;
}
inline I dot4(I sum, Bytes w, Bytes a) { return dot8(sum, w, a); }
inline void prefetch(const void *) {}
inline void prefetch_far(const void *) {}
inline void wait_for_loads() {}

}  // namespace
}  // namespace gpt2d
