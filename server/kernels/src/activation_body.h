// What stands between the MLP's two matrices, over the sixteen lanes that the simd_*.h before this one defines; and e^x.
// Each agrees with transformers' own to a few units in the last place of the larger of x and 1 (tests/server/test_activations.py).
#pragma once
#include "gpt2d_kernels.h"

namespace gpt2d {
namespace {

// e^x for x from -87 to 88, relative error below 2e-7: 2^n times a polynomial in the rest, its Taylor series.
inline F exponential(F x) {
    F t = max(x, set(-87.f)) * set(1.44269504f), n = round(t), f = t - n, p = set(1.54035304e-4f);
    for (float c : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f}) p = fma(p, f, set(c));
    return scale2(p, n);
}

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) = x / (1 + e^(-2 u)): GPT-2's, Hendrycks and Gimpel 2016.
inline F gelu_new(F x) {
    F u = set(-2 * 0.79788456f) * fma(set(0.044715f) * x, x * x, x);
    return x / (set(1.f) + exponential(min(u, set(80.f))));
}

// x times the normal distribution's share below x = max(x, 0) - |x| / 2 erfc(|x| / sqrt(2)). erfc(z) = e^(-z^2) t Q(t) with
// t = 1 / (1 + 0.3275911 z), as Abramowitz and Stegun 7.1.26; Q has two more terms and a relative error of 6e-8 up to z = 7.
inline F gelu(F x) {
    F size = abs(x), t = set(1.f) / fma(set(0.3275911f * 0.70710678f), size, set(1.f)), q = set(-0.144473398f);
    for (float c : {0.511005685f, -0.431423175f, 0.477754313f, 0.0117442017f, 0.210325844f, 0.179957922f, 0.185108552f})
        q = fma(q, t, set(c));
    return max(set(0.f), x) - size * set(0.5f) * (t * q) * exponential(set(-0.5f) * x * x);
}

// x / (1 + e^(-k x)): silu with k = 1, quick_gelu with k = 1.702.
inline F sigmoid_times(F x, float k) { return x / (set(1.f) + exponential(min(set(-k) * x, set(80.f)))); }

// 1 - 2 / (1 + e^(2 x)); near 0, where that loses x's last bits, Taylor's series.
inline F tangent(F x) {
    constexpr float NEAR = 0.4f;
    F size = abs(x), s = max(set(-NEAR), min(set(NEAR), x)), z = s * s, p = set(-0.00886323553f);
    for (float c : {0.0218694885f, -0.0539682540f, 0.133333333f, -0.333333333f}) p = fma(p, z, set(c));
    F close = fma(s * z, p, s), far = set(1.f) - set(2.f) / (set(1.f) + exponential(min(x + x, set(80.f))));
    return zero_below(far, size, NEAR) + (close - zero_below(close, size, NEAR));
}

// x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2).
inline F mish(F x) {
    F e = exponential(min(x, set(40.f))), n = e * (e + set(2.f));
    return x * (n / (n + set(2.f)));
}

// Calls `use` with the function that has that number: it is known where `use` is compiled, and asked for once in a tile.
template <class Use>
inline void with_activation(int activation, Use use) {
    switch (activation) {
        case GPT2D_GELU_NEW: return use([](F x) { return gelu_new(x); });
        case GPT2D_GELU: return use([](F x) { return gelu(x); });
        case GPT2D_RELU: return use([](F x) { return max(set(0.f), x); });  // in this order: of a NaN comes a NaN
        case GPT2D_SILU: return use([](F x) { return sigmoid_times(x, 1.f); });
        case GPT2D_QUICK_GELU: return use([](F x) { return sigmoid_times(x, 1.702f); });
        case GPT2D_TANH: return use([](F x) { return tangent(x); });
        case GPT2D_MISH: return use([](F x) { return mish(x); });
    }
}

}  // namespace
}  // namespace gpt2d
