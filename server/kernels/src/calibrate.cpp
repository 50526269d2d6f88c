// The weights of an output are rounded one input after the other, and what each loses is made good by those that follow:
// by the error divided by U[k][k] times the rest of row k of U, where U^T U is the inverse of the inputs' products H.
// Inputs keep their order (taking the largest first made the blocks' scales worse), and a block's scale is fitted when its turn
// comes, to what the earlier blocks have left of it, as the fp16 that it will be.
//
// Every number is the result of the same operations in the same order, whatever the number of threads or the width of the
// registers: threads share out rows or columns, never a sum, and no loop over lanes adds them up.
#include "calibrate.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops.h"
#include "simd_plain.h"

namespace gpt2d {
namespace {

constexpr int STRIPE = 64;          // rows or columns of a square that are worked on together
constexpr int ROWS = 64;            // outputs that go through the matrix together, so that a row of U is read once for them
constexpr int WIDE = 1024;          // columns of a row that stay in the first-level cache meanwhile
constexpr double DAMPING = 0.01;    // of the mean of the diagonal, added to it
constexpr float SHRINKS[] = {8.f / 7, 1, 0.94f, 0.88f, 0.82f, 0.76f};  // as in server/convert/quantise.py

// to[0..n-1] -= the sum over k of factors[k] times row k of `from`, k from 0 to count - 1, one after the other.
template <class Number>
void subtract(Number *to, int n, const Number *factors, int count, const Number *from, size_t stride) {
    for (int begin = 0; begin < n; begin += WIDE) {
        int width = std::min(WIDE, n - begin);
        Number *__restrict y = to + begin;
        int k = 0;
        for (; k + 4 <= count; k += 4) {
            const Number *__restrict a = from + size_t(k) * stride + begin, *__restrict b = a + stride;
            const Number *__restrict c = b + stride, *__restrict d = c + stride;
            Number fa = factors[k], fb = factors[k + 1], fc = factors[k + 2], fd = factors[k + 3];
            for (int i = 0; i < width; i++) y[i] = (((y[i] - fa * a[i]) - fb * b[i]) - fc * c[i]) - fd * d[i];
        }
        for (; k < count; k++) {
            const Number *__restrict a = from + size_t(k) * stride + begin;
            for (int i = 0; i < width; i++) y[i] -= factors[k] * a[i];
        }
    }
}

// The lower triangle of a becomes L, with L L^T = a. Run by all threads. `panel` is [STRIPE, n]. Sets *ok.
void cholesky(double *a, int n, double *panel, Team &team, bool *ok) {
    auto row = [&](int i) { return a + size_t(i) * n; };
    for (int b = 0; b < n; b += STRIPE) {
        int e = std::min(b + STRIPE, n);
        // Rows begin..end-1 of the stripe's columns; those of the stripe itself need each other.
        auto solve = [&](int i) {
            for (int j = b; j < std::min(i + 1, e); j++) {
                double sum = row(i)[j];
                for (int k = b; k < j; k++) sum -= row(i)[k] * row(j)[k];
                if (j < i) row(i)[j] = sum / row(j)[j];
                else if (sum > 0) row(i)[j] = std::sqrt(sum);
                else *ok = false, row(i)[j] = 1;
            }
        };
        team.share(1, 1, [&](int, int) {
            for (int i = b; i < e; i++) solve(i);
        });
        team.share(n - e, STRIPE, [&](int first, int end) {
            for (int i = e + first; i < e + end; i++) {
                solve(i);
                for (int k = b; k < e; k++) panel[size_t(k - b) * n + i] = row(i)[k];
            }
        });
        team.share(n - e, 8, [&](int first, int end) {
            for (int i = e + first; i < e + end; i++) subtract(row(i) + e, i + 1 - e, row(i) + b, e - b, panel + e, size_t(n));
        });
    }
}

// The lower triangle of L becomes that of its inverse. Run by all threads. `panel` is [STRIPE, n].
void invert(double *a, int n, double *panel, Team &team) {
    auto row = [&](int i) { return a + size_t(i) * n; };
    for (int b = 0; b < n; b += STRIPE) {
        int e = std::min(b + STRIPE, n);
        team.share(1, 1, [&](int, int) {
            for (int i = b; i < e; i++) std::copy(row(i), row(i) + i + 1, panel + size_t(i - b) * n);
        });
        team.share(e, STRIPE, [&](int first, int end) {  // columns; of row i those up to i
            for (int i = b; i < e; i++) {
                const double *factors = panel + size_t(i - b) * n;
                int to = std::min(end, i + 1);
                if (to <= first) continue;
                for (int j = first; j < to; j++) row(i)[j] = j == i ? 1 : 0;
                int whole = std::min(to - 1, i);  // row k of the inverse ends at k: from here on rows reach through these columns
                for (int k = first; k < whole; k++)
                    for (int j = first; j <= k; j++) row(i)[j] -= factors[k] * row(k)[j];
                subtract(row(i) + first, to - first, factors + whole, i - whole, row(whole) + first, size_t(n));
                for (int j = first; j < to; j++) row(i)[j] /= factors[i];
            }
        });
    }
}

// A whole number from -8 to 7; to even where two are as near.
inline float rounded(float x) {
    constexpr float even = 12582912.f;  // 1.5 * 2^23
    x = x > -8 ? x : -8.f, x = x < 7 ? x : 7.f;
    return x + even - even;
}

inline uint16_t half(float x) {
    uint16_t halves[16];
    store_half(halves, set(x));
    return halves[0];
}

inline float inverse(float x) { return std::fabs(x) >= 1.17549435e-38f ? 1 / x : 0.f; }

// The scale, as fp16, of the candidates that has the least squared error, each refitted to its values by least squares.
uint16_t fitted(const float *w) {
    float high = w[0], low = w[0];
    for (int i = 1; i < BLOCK; i++) high = std::max(high, w[i]), low = std::min(low, w[i]);
    float reach = (high > -low ? high : low) / -8, best = 0, best_gain = 0;
    for (float shrink : SHRINKS) {
        float factor = inverse(reach * shrink), squares = 0, products = 0;
        for (int i = 0; i < BLOCK; i++) {
            float q = rounded(w[i] * factor);
            squares += q * q, products += q * w[i];
        }
        float scale = products * inverse(squares), gain = scale * scale * squares;
        if (gain > best_gain) best_gain = gain, best = scale;
    }
    return half(best);
}

// Outputs first..end-1.
void round_rows(int first, int end, int inputs, const float *u, float *weights, uint8_t *values, uint16_t *scales) {
    for (int b = 0; b < inputs; b += BLOCK) {
        for (int n = first; n < end; n++) {
            float *w = weights + size_t(n) * inputs, errors[BLOCK];
            uint16_t stored = fitted(w + b);
            float scale = from_half(stored), factor = inverse(scale);
            scales[size_t(n) * (inputs / BLOCK) + b / BLOCK] = stored;
            for (int k = b; k < b + BLOCK; k++) {
                const float *row = u + size_t(k) * inputs;
                float q = rounded(w[k] * factor);
                values[size_t(n) * inputs + k] = uint8_t(int(q) + 8);
                errors[k - b] = (w[k] - q * scale) / row[k];
                subtract(w + k + 1, b + BLOCK - k - 1, &errors[k - b], 1, row + k + 1, 0);
            }
            subtract(w + b + BLOCK, inputs - b - BLOCK, errors, BLOCK, u + size_t(b) * inputs + b + BLOCK, size_t(inputs));
        }
    }
}

}  // namespace

bool calibrate(int outputs, int inputs, double *hessian, float *weights, uint8_t *values, uint16_t *scales, Team &team) {
    auto n = size_t(inputs);
    double mean = 0;
    for (size_t i = 0; i < n; i++) mean += hessian[i * n + i];
    if (!(mean > 0) || !std::isfinite(mean)) return false;
    for (size_t i = 0; i < n; i++) hessian[i * n + i] += DAMPING * mean / inputs;
    std::vector<double> panel(STRIPE * n);
    std::vector<float> u(n * n);
    bool ok = true;
    // From the last input to the first, H is L L^T: then U is the inverse of L, in the same order.
    std::reverse(hessian, hessian + n * n);
    team.run([&] {
        cholesky(hessian, inputs, panel.data(), team, &ok);
        invert(hessian, inputs, panel.data(), team);
        team.share(inputs, 1, [&](int first, int end) {
            for (int k = first; k < end; k++)
                for (int j = k; j < inputs; j++) u[size_t(k) * n + j] = float(hessian[(n - 1 - k) * n + (n - 1 - j)]);
        });
        team.work_off(outputs, ROWS, [&](int first, int end) { round_rows(first, end, inputs, u.data(), weights, values, scales); });
    });
    return ok;
}

}  // namespace gpt2d
