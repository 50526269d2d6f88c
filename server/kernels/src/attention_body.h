// Attention, and the KV cache's copies, for one instruction set: over the lanes of simd_*.h and after ops_body.h.
//
// A few queries of a row attend together, in three passes: their scores for each position, a softmax of these, and the sum of
// the values. No pass depends on what attends together: each sum has the order that docs/kernels.md says.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "activation_body.h"
#include "ops.h"

namespace gpt2d {
namespace {

// Positions whose keys, then values, all QUERIES use before the next: 8 or 16 KB, in the first-level cache with their scores.
constexpr int SPAN = 4 * LANES;
constexpr int SOON = 6;  // tokens before a token's k and v are needed, whose rows are too far apart for the processor to foresee

inline F take(const float *p) { return load(p); }
inline F take(const uint16_t *p) { return load_half(p); }
inline void put(float *p, F x) { store(p, x); }
inline void put(uint16_t *p, F x) { store_half(p, x); }

// Lanes of which only the first n exist; 0 in the others.
inline F load_some(const float *p, int n) {
    if (n >= LANES) return load(p);
    float part[LANES] = {};
    std::copy_n(p, std::max(0, n), part);
    return load(part);
}
inline void store_some(float *p, F x, int n) {
    if (n >= LANES) return store(p, x);
    float part[LANES];
    store(part, x);
    std::copy_n(part, std::max(0, n), p);
}

// A row's keys and values of one layer and head, block by block of 16 positions. T is what an element is: at 8 bits, int8_t.
template <class T>
struct Blocks {
    static constexpr bool BYTES = sizeof(T) == 1;
    Blocks(const Cache &cache, int padded)
        : first(cache.first), stride(cache.stride), half(Cache::half_block(padded, 8 * sizeof(T))), elements(LANES * sizeof(T) * padded) {}
    T *keys(int position) const { return at(position, 0); }
    T *values(int position) const { return at(position, half); }
    float *key_scales(int position) const { return reinterpret_cast<float *>(at(position, elements)); }
    float *value_scales(int position) const { return reinterpret_cast<float *>(at(position, half + elements)); }
    // Where the first byte of a position's values is; the next is four further.
    T *value_bytes(int position, int padded) const { return values(position) + position % LANES / 4 * 4 * padded + position % 4; }
    T *at(int position, size_t byte) const { return reinterpret_cast<T *>(first + position / LANES * stride + byte); }
    unsigned char *const first;
    const size_t stride, half, elements;  // bytes from a block to the next, of its keys as of its values, and of these without scales
};

// Calls f(d, sixteen of a head's values) with what the bytes round from d on, and returns what one step of these is.
template <class Function>
inline float quantise_head(const float *x, int head, int padded, Function f) {
    F top = set(0.f);
    for (int d = 0; d < padded; d += LANES) top = max(top, abs(load_some(x + d, head - d)));
    float most = largest(top);
    F inverse = set(most > 1e-30f ? 127.f / most : 0.f);
    F least = set(-127.f);  // what is not a number becomes this, and none is less
    for (int d = 0; d < padded; d += LANES) f(d, max(load_some(x + d, head - d) * inverse, least));
    return most / 127.f;
}

// Four dimensions of a key, as they lie between those of other positions: 128 more, which the dot product's first side must be.
inline void put_key(int8_t *group, const int8_t *q) {
    uint32_t four;
    std::memcpy(&four, q, 4);
    four ^= 0x80808080;
    std::memcpy(group, &four, 4);
}

// Memory brings what the next pass reads while this one computes: values while scoring, the next head's keys while adding values.
// Into the second-level cache: these wait for memory in places of their own, and the first level's are left to this pass.
// The first queries do it for all.
template <int N, class T>
inline void fetch(const T *from) {
    for (int i = 0; i < N; i += 64 / sizeof(T)) prefetch_far(from + i);
}

// Calls f(0), ..., f(N - 1), as `each` does.
template <int N, class Function>
inline void repeat(Function f) {
    each(std::make_index_sequence<N>{}, f);
}

// The scores of R queries for a block of keys. What lies `ahead` of these is fetched.
template <int R, bool FIRST, class T>
void score(const T *keys, ptrdiff_t ahead, const float *q, int head, float *scores, int length) {
    F even[R], odd[R];
    repeat<R>([&](auto r) { even[r] = odd[r] = set(0.f); });
    for (int d = 0; d < head; d += 2, keys += 2 * LANES) {
        if (FIRST) fetch<2 * LANES>(keys + ahead);
        F k0 = take(keys), k1 = take(keys + LANES);
        repeat<R>([&](auto r) {
            even[r] = fma(k0, set(q[r * head + d]), even[r]);
            odd[r] = fma(k1, set(q[r * head + d + 1]), odd[r]);
        });
    }
    repeat<R>([&](auto r) { store(scores + r * length, even[r] + odd[r]); });
}

// Queries as bytes, and bytes that say in steps of 1/FINE what rounding to them has left: the keys' bytes lose enough.
constexpr float FINE = 128;
struct ByteQueries {
    int8_t *q, *rest;
    float scale[QUERIES];
    int32_t offset[QUERIES], rest_offset[QUERIES];  // -128 times their sums

    void put(int r, const float *x, int head, int padded, float factor) {
        I total = set_int(0), rest_total = set_int(0);
        scale[r] = factor * quantise_head(x, head, padded, [&](int d, F y) {
            total = total + store_bytes(q + size_t(r) * padded + d, y);
            rest_total = rest_total + store_bytes(rest + size_t(r) * padded + d, (y - round(y)) * set(FINE));
        });
        offset[r] = -128 * sum(total), rest_offset[r] = -128 * sum(rest_total);
    }
};

// The same for keys and queries of bytes.
template <int R, bool FIRST>
void score_bytes(const int8_t *keys, ptrdiff_t ahead, const ByteQueries &queries, int first, int head, float *scores, int length) {
    const int8_t *q = queries.q + size_t(first) * head, *rest = queries.rest + size_t(first) * head;
    I dot[R], fine[R];
    repeat<R>([&](auto r) {
        dot[r] = set_int(SIGNED_BYTES ? 0 : queries.offset[first + r]), fine[r] = set_int(SIGNED_BYTES ? 0 : queries.rest_offset[first + r]);
    });
    for (int d = 0; d < head; d += 4, keys += 4 * LANES) {
        if (FIRST) prefetch_far(keys + ahead);
        Bytes k = load_bytes(reinterpret_cast<const uint8_t *>(keys));
        repeat<R>([&](auto r) {
            dot[r] = dot8(dot[r], k, broadcast(q + r * head + d)), fine[r] = dot8(fine[r], k, broadcast(rest + r * head + d));
        });
    }
    if (FIRST) prefetch_far(keys + ahead);
    F scale = load(reinterpret_cast<const float *>(keys));
    repeat<R>([&](auto r) {
        F sum = to_float(dot[r]) + to_float(fine[r]) * set(1 / FINE);
        store(scores + r * length, sum * (scale * set(queries.scale[first + r])));
    });
}

// Makes weights of a query's scores for the `count` positions that it sees, 0 for the rest; returns one over their sum.
inline float softmax(float *scores, int count, int length) {
    auto masked = [&](F x, int p, float rest) { return p + LANES > count ? first_lanes(x, count - p, rest) : x; };
    F top = set(-INFINITY), total = set(0.f);
    for (int p = 0; p < count; p += LANES) top = max(top, masked(load(scores + p), p, -INFINITY));
    F highest = set(largest(top));
    for (int p = 0; p < count; p += LANES) {
        F e = masked(exponential(load(scores + p) - highest), p, 0.f);
        store(scores + p, e);
        total = total + e;
    }
    for (int p = (count + LANES - 1) / LANES * LANES; p < length; p += LANES) store(scores + p, set(0.f));
    return 1 / sum(total);
}

// Weights as bytes that the dot product's first side can be, 0 to 127, and what these leave in steps of 1/127. They lie in the
// place of the `length` weights: 16 bytes and what they leave, for each 16 positions. Each of the `count` weights that are not 0
// takes its value's scale with it; returns what one step is.
inline float make_bytes(const Blocks<int8_t> &cache, float *weights, int count, int length) {
    F top = set(0.f);
    for (int p = 0; p < count; p += LANES) {
        F w = load(weights + p) * load(cache.value_scales(p));
        if (p + LANES > count) w = first_lanes(w, count - p, 0.f);  // what is not seen may have any scale
        store(weights + p, w);
        top = max(top, w);
    }
    float most = largest(top);
    F inverse = set(most > 1e-30f ? 127.f / most : 0.f);
    auto *to = reinterpret_cast<int8_t *>(weights);
    for (int p = 0; p < length; p += LANES) {
        F y = load(weights + p) * inverse, whole = round(y - set(0.5f));  // at most y
        store_bytes(to + 2 * p, whole), store_bytes(to + 2 * p + LANES, (y - whole) * set(127.f));
    }
    return most / 127.f;
}

// Adds the values from a block's position `p` up to `end`, times R queries' weights, to N registers of their sums.
template <int R, int N, bool FIRST, class T>
void add_values(const Blocks<T> &cache, ptrdiff_t ahead, int p, int end, int d, const float *weights, int length, float *sums, int head) {
    F out[R * N], x[N];
    repeat<R * N>([&](auto i) { out[i] = load(sums + i / N * head + i % N * LANES); });
    while (p < end) {
        const T *v = cache.values(p) + d;
        for (int stop = std::min(p + LANES, end); p < stop; p++, v += head) {
            if (FIRST) fetch<N * LANES>(reinterpret_cast<const T *>(reinterpret_cast<const char *>(v) + ahead));
            repeat<N>([&](auto i) { x[i] = take(v + i * LANES); });
            repeat<R>([&](auto r) {
                F w = set(weights[r * length + p]);
                repeat<N>([&](auto i) { out[r * N + i] = fma(x[i], w, out[r * N + i]); });
            });
        }
    }
    repeat<R * N>([&](auto i) { store(sums + i / N * head + i % N * LANES, out[i]); });
}

// The same for values and weights of bytes, of all positions up to `end`: the sums are whole numbers, and those of what is left.
template <int R, int N, bool FIRST>
void add_bytes(const Blocks<int8_t> &cache, ptrdiff_t ahead, int end, int d, const float *weights, int length, float *sums, int head) {
    I out[R * N], fine[R * N];
    repeat<R * N>([&](auto i) { out[i] = fine[i] = set_int(0); });
    for (int p = 0; p < end; p += LANES) {
        const int8_t *v = cache.values(p) + 4 * d;
        if (FIRST) prefetch_far(reinterpret_cast<const char *>(cache.value_scales(p)) + ahead);
        for (int g = 0; g < LANES; g += 4, v += 4 * head) {
            if (FIRST) repeat<N>([&](auto i) { prefetch_far(v + i * 4 * LANES + ahead); });
            repeat<R>([&](auto r) {
                auto *w = reinterpret_cast<const int8_t *>(weights + r * length) + 2 * p + g;
                Bytes whole = broadcast(w), left = broadcast(w + LANES);
                repeat<N>([&](auto i) {
                    Bytes x = load_bytes(reinterpret_cast<const uint8_t *>(v) + i * 4 * LANES);
                    out[r * N + i] = dot4(out[r * N + i], whole, x), fine[r * N + i] = dot4(fine[r * N + i], left, x);
                });
            });
        }
    }
    repeat<R * N>([&](auto i) { store(sums + i / N * head + i % N * LANES, to_float(out[i]) + to_float(fine[i]) * set(1 / 127.f)); });
}

template <int N>
using Count = std::integral_constant<int, N>;

// Calls f(how many, the first of them) for n queries: as many at once as the registers hold, then two, then one.
template <class Function>
inline void in_groups(int n, Function f) {
    int r = 0;
    for (; r + GROUP <= n; r += GROUP) f(Count<GROUP>{}, r);
    for (; r + 2 <= n; r += 2) f(Count<2>{}, r);
    if (r < n) f(Count<1>{}, r);
}

// n tokens from `token` on, each over what is before it and itself.
template <class T>
void attend_together(const Attention &a, int token, int n) {
    const Blocks<T> cache(a.cache, a.padded);
    int first = a.past + token, length = (first + n + LANES - 1) / LANES * LANES, head = a.padded;
    float *q = a.scratch, *scores = q + n * head, *sums = q, inverse[QUERIES];
    ByteQueries bytes;  // in the same place, where keys are bytes
    bytes.q = reinterpret_cast<int8_t *>(q), bytes.rest = bytes.q + size_t(n) * head;
    for (int r = 0; r < n; r++) {
        const float *from = a.q + size_t(token + r) * a.stride;
        if constexpr (Blocks<T>::BYTES) {
            bytes.put(r, from, a.head, head, a.factor);
        } else {
            for (int d = 0; d < head; d += LANES) store(q + r * head + d, load_some(from + d, a.head - d) * set(a.factor));
        }
    }
    for (int span = 0; span < length; span += SPAN) {
        in_groups(n, [&](auto count, int r) {
            int end = std::min(span + SPAN, first + r + count);
            if constexpr (Blocks<T>::BYTES) {
                auto *f = token + r == 0 ? score_bytes<count, true> : score_bytes<count, false>;
                for (int p = span; p < end; p += LANES) f(cache.keys(p), ptrdiff_t(cache.half), bytes, r, head, scores + r * length + p, length);
            } else {
                auto *f = token + r == 0 ? score<count, true, T> : score<count, false, T>;
                for (int p = span; p < end; p += LANES)
                    f(cache.keys(p), cache.values(p) - cache.keys(p), q + r * head, head, scores + r * length + p, length);
            }
        });
    }
    for (int r = 0; r < n; r++) {
        inverse[r] = softmax(scores + r * length, first + r + 1, length);
        if constexpr (Blocks<T>::BYTES) inverse[r] *= make_bytes(cache, scores + r * length, first + r + 1, length);
    }
    std::fill_n(sums, n * head, 0.f);  // in the place of the queries
    ptrdiff_t ahead = static_cast<const char *>(a.next) - reinterpret_cast<const char *>(cache.values(0));
    for (int span = 0; span < length; span += Blocks<T>::BYTES ? length : SPAN) {
        in_groups(n, [&](auto count, int r) {
            int end = std::min(span + SPAN, first + r + count), d = 0;
            auto next = [&](auto registers) {
                constexpr int N = registers;
                if constexpr (Blocks<T>::BYTES) {
                    auto *f = token + r == 0 ? add_bytes<count, N, true> : add_bytes<count, N, false>;
                    f(cache, ahead, first + r + count, d, scores + r * length, length, sums + r * head + d, head);
                } else {
                    auto *f = token + r == 0 ? add_values<count, N, true, T> : add_values<count, N, false, T>;
                    f(cache, ahead, span, end, d, scores + r * length, length, sums + r * head + d, head);
                }
                d += N * LANES;
            };
            constexpr int AT_ONCE = Blocks<T>::BYTES && count > 1 ? (VALUES + 1) / 2 : VALUES;  // bytes have two sums each
            while (d + AT_ONCE * LANES <= head) next(Count<AT_ONCE>{});
            while (d < head) next(Count<1>{});
        });
    }
    for (int r = 0; r < n; r++)
        for (int d = 0; d < head; d += LANES)
            store_some(a.out + size_t(token + r) * a.out_stride + d, load(sums + r * head + d) * set(inverse[r]), a.head - d);
}

// A token's key and value, at its position.
template <class T>
inline void put_token(const Blocks<T> &cache, const Attention &a, int p, const float *k, const float *v) {
    T *key = cache.keys(p) + p % LANES, *value = cache.values(p) + p % LANES * a.padded, part[LANES];
    for (int d = 0; d < a.padded; d += LANES) {
        put(part, load_some(k + d, a.head - d)), put(value + d, load_some(v + d, a.head - d));
        for (int j = 0; j < LANES; j++) key[(d + j) * LANES] = part[j];
    }
}
inline void put_token(const Blocks<int8_t> &cache, const Attention &a, int p, const float *k, const float *v) {
    int8_t *key = cache.keys(p) + p % LANES * 4, *value = cache.value_bytes(p, a.padded), part[LANES];
    cache.key_scales(p)[p % LANES] = quantise_head(k, a.head, a.padded, [&](int d, F y) {
        store_bytes(part, y);
        for (int i = 0; i < LANES; i += 4) put_key(key + (d + i) * LANES, part + i);
    });
    cache.value_scales(p)[p % LANES] = quantise_head(v, a.head, a.padded, [&](int d, F y) {
        store_bytes(part, y);
        for (int i = 0; i < LANES; i++) value[(d + i) * 4] = part[i];
    });
}

template <class T>
void attend_of(const Attention &a) {
    const Blocks<T> cache(a.cache, a.padded);
    for (int i = 0; i < a.count; i++) {
        const float *k = a.k + size_t(i) * a.stride, *v = a.v + size_t(i) * a.stride;
        for (int d = 0; d < a.padded && i + SOON < a.count; d += LANES) prefetch(k + SOON * a.stride + d), prefetch(v + SOON * a.stride + d);
        put_token(cache, a, a.past + i, k, v);
    }
    for (int token = 0; token < a.count; token += QUERIES) attend_together<T>(a, token, std::min(QUERIES, a.count - token));
}

// Calls f with an element of the kind that a cache has.
template <class Function>
inline void with_elements(const Cache &cache, Function f) {
    if (cache.bits == 8) f(int8_t{});
    else if (cache.bits == 16) f(uint16_t{});
    else f(float{});
}

void attend(const Attention &a) {
    with_elements(a.cache, [&](auto element) { attend_of<decltype(element)>(a); });
}

template <class T>
inline void take_token(const Blocks<T> &cache, int padded, int head, int p, T *k, T *v) {
    const T *key = cache.keys(p) + p % LANES;
    for (int d = 0; d < head; d++) k[d] = key[d * LANES];
    std::copy_n(cache.values(p) + p % LANES * padded, head, v);
}
template <class T>
inline void give_token(const Blocks<T> &cache, int padded, int head, int p, const T *k, const T *v) {
    T *key = cache.keys(p) + p % LANES;
    for (int d = 0; d < padded; d++) key[d * LANES] = d < head ? k[d] : 0;  // what pads a key adds nothing to a score
    std::copy_n(v, head, cache.values(p) + p % LANES * padded);
}

// What pads a head of bytes is multiplied by a query's 0.
inline void take_token(const Blocks<int8_t> &cache, int padded, int head, int p, int8_t *k, int8_t *v) {
    const int8_t *key = cache.keys(p) + p % LANES * 4;
    for (int d = 0; d < head; d++) k[d] = int8_t(key[d / 4 * 4 * LANES + d % 4] ^ -128);
    const int8_t *value = cache.value_bytes(p, padded);
    for (int d = 0; d < head; d++) v[d] = value[d * 4];
    std::memcpy(k + head, cache.key_scales(p) + p % LANES, Cache::SCALE);
    std::memcpy(v + head, cache.value_scales(p) + p % LANES, Cache::SCALE);
}
inline void give_token(const Blocks<int8_t> &cache, int padded, int head, int p, const int8_t *k, const int8_t *v) {
    int8_t *key = cache.keys(p) + p % LANES * 4;
    for (int d = 0; d < head; d++) key[d / 4 * 4 * LANES + d % 4] = int8_t(k[d] ^ -128);
    int8_t *value = cache.value_bytes(p, padded);
    for (int d = 0; d < head; d++) value[d * 4] = v[d];
    std::memcpy(cache.key_scales(p) + p % LANES, k + head, Cache::SCALE);
    std::memcpy(cache.value_scales(p) + p % LANES, v + head, Cache::SCALE);
}

void copy_out(const Cache &cache, int padded, int head, int positions, void *keys, void *values) {
    with_elements(cache, [&](auto element) {
        using T = decltype(element);
        const Blocks<T> blocks(cache, padded);
        size_t one = Cache::position(head, cache.bits) / sizeof(T);
        auto *k = static_cast<T *>(keys), *v = static_cast<T *>(values);
        for (int p = 0; p < positions; p++) take_token(blocks, padded, head, p, k + p * one, v + p * one);
    });
}

void copy_in(const Cache &cache, int padded, int head, int positions, const void *keys, const void *values) {
    with_elements(cache, [&](auto element) {
        using T = decltype(element);
        const Blocks<T> blocks(cache, padded);
        size_t one = Cache::position(head, cache.bits) / sizeof(T);
        auto *k = static_cast<const T *>(keys), *v = static_cast<const T *>(values);
        for (int p = 0; p < positions; p++) give_token(blocks, padded, head, p, k + p * one, v + p * one);
    });
}

}  // namespace
}  // namespace gpt2d
