// Attention, and the KV cache's copies, for one instruction set: over the lanes of simd_*.h and after ops_body.h.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "activation_body.h"
#include "ops.h"

namespace gpt2d {
namespace {

template <class T>
inline F take(const T *p) {
    if constexpr (std::is_same_v<T, float>) return load(p);
    else return load_half(p);
}
inline void put(float *p, float x) { *p = x; }
inline void put(uint16_t *p, float x) { *p = half(x); }
inline float get(const float *p) { return *p; }
inline float get(const uint16_t *p) { return from_half(*p); }

// R tokens at positions first..first+R-1 of a row, each over what is before it and itself.
template <class T, int R>
void attend_tile(const Attention &a, int token) {
    auto *keys = static_cast<const T *>(a.cache.keys), *values = static_cast<const T *>(a.cache.values);
    int first = a.past + token, last = first + R - 1, length = (last + LANES) / LANES * LANES, head = a.padded;
    float *q = a.scratch, *scores = q + QUERIES * head;
    for (int r = 0; r < R; r++)
        for (int d = 0; d < head; d++) q[r * head + d] = d < a.head ? a.q[size_t(token + r) * a.stride + d] * a.factor : 0.f;
    F top[R], total[R];
    for (int r = 0; r < R; r++) top[r] = set(-INFINITY), total[r] = set(0.f);
    for (int p = 0; p < length; p += LANES, keys += head * LANES) {
        F even[R], odd[R];
        for (int r = 0; r < R; r++) even[r] = odd[r] = set(0.f);
        for (int d = 0; d < head; d += 2) {
            F k0 = take(keys + d * LANES), k1 = take(keys + (d + 1) * LANES);
            for (int r = 0; r < R; r++) {
                even[r] = fma(k0, set(q[r * head + d]), even[r]);
                odd[r] = fma(k1, set(q[r * head + d + 1]), odd[r]);
            }
        }
        for (int r = 0; r < R; r++) {
            F s = even[r] + odd[r];
            if (p + LANES > first + r + 1) s = first_lanes(s, std::max(0, first + r + 1 - p), -INFINITY);
            store(scores + r * length + p, s);
            top[r] = max(top[r], s);
        }
    }
    for (int r = 0; r < R; r++) {
        F highest = set(largest(top[r]));
        for (int p = 0; p < length; p += LANES) {
            F s = load(scores + r * length + p), e = exponential(s - highest);
            if (p + LANES > first + r + 1) e = first_lanes(e, std::max(0, first + r + 1 - p), 0.f);
            store(scores + r * length + p, e);
            total[r] = total[r] + e;
        }
    }
    for (int d = 0; d < head; d += 4 * LANES) {  // a register for 16 values of each token; 4 of them cover an ordinary head
        int n = std::min(4, (head - d) / LANES);
        F out[R][4];
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 4; i++) out[r][i] = set(0.f);
        auto add = [&](auto count) {
            for (int p = 0; p <= last; p++) {
                const T *v = values + size_t(p) * head + d;
                for (int i = 0; i < count; i++) {
                    F x = take(v + i * LANES);
                    for (int r = 0; r < R; r++) out[r][i] = fma(x, set(scores[r * length + p]), out[r][i]);
                }
            }
        };
        if (n == 4) add(std::integral_constant<int, 4>{});
        else add(n);
        for (int r = 0; r < R; r++) {
            F inverse = set(1 / sum(total[r]));
            for (int i = 0; i < n; i++) {
                float *to = a.out + size_t(token + r) * a.out_stride + d + i * LANES;
                if (d + (i + 1) * LANES <= a.head) {
                    store(to, out[r][i] * inverse);
                } else {
                    float part[LANES];
                    store(part, out[r][i] * inverse);
                    std::copy(part, part + std::max(0, a.head - d - i * LANES), to);
                }
            }
        }
    }
}

template <class T>
void attend_of(const Attention &a) {
    auto *keys = static_cast<T *>(a.cache.keys), *values = static_cast<T *>(a.cache.values);
    for (int i = 0; i < a.count; i++) {
        int p = a.past + i;
        const float *k = a.k + size_t(i) * a.stride, *v = a.v + size_t(i) * a.stride;
        T *to = keys + size_t(p / LANES) * a.padded * LANES + p % LANES;
        for (int d = 0; d < a.head; d++) put(to + d * LANES, k[d]), put(values + size_t(p) * a.padded + d, v[d]);
    }
    int token = 0;
    for (; token + QUERIES <= a.count; token += QUERIES) attend_tile<T, QUERIES>(a, token);
    for (; token < a.count; token++) attend_tile<T, 1>(a, token);
}

void attend(const Attention &a) { a.cache.half ? attend_of<uint16_t>(a) : attend_of<float>(a); }

template <class T, bool OUT>
void copy_of(const Cache &cache, int padded, int head, int positions, T *k, T *v) {
    auto *keys = static_cast<T *>(cache.keys), *values = static_cast<T *>(cache.values);
    for (int p = 0; p < positions; p++)
        for (int d = 0; d < head; d++) {
            T &key = keys[(size_t(p / LANES) * padded + d) * LANES + p % LANES], &value = values[size_t(p) * padded + d];
            if constexpr (OUT) k[p * head + d] = key, v[p * head + d] = value;
            else key = k[p * head + d], value = v[p * head + d];
        }
}

void copy_out(const Cache &cache, int padded, int head, int positions, void *keys, void *values) {
    if (cache.half) copy_of<uint16_t, true>(cache, padded, head, positions, static_cast<uint16_t *>(keys), static_cast<uint16_t *>(values));
    else copy_of<float, true>(cache, padded, head, positions, static_cast<float *>(keys), static_cast<float *>(values));
}

void copy_in(const Cache &cache, int padded, int head, int positions, const void *keys, const void *values) {
    auto *k = const_cast<void *>(keys), *v = const_cast<void *>(values);
    if (cache.half) copy_of<uint16_t, false>(cache, padded, head, positions, static_cast<uint16_t *>(k), static_cast<uint16_t *>(v));
    else copy_of<float, false>(cache, padded, head, positions, static_cast<float *>(k), static_cast<float *>(v));
}

}  // namespace
}  // namespace gpt2d
