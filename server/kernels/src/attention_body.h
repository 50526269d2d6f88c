// Attention, and the KV cache's copies, for one instruction set: over the lanes of simd_*.h and after ops_body.h.
//
// A few queries of a row attend together, in three passes: their scores for each position, a softmax of these, and the sum of
// the values. No pass depends on what attends together: each sum has the order that docs/kernels.md says.
#include <algorithm>
#include <cmath>
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

// A row's keys and values of one layer and head, block by block of 16 positions.
template <class T>
struct Blocks {
    Blocks(const Cache &cache, int padded) : first(static_cast<T *>(cache.first)), stride(cache.stride), size(padded * LANES) {}
    T *keys(int position) const { return first + position / LANES * stride; }
    T *values(int position) const { return keys(position) + size; }
    T *const first;
    const size_t stride;   // from a block to the next
    const ptrdiff_t size;  // of a block's keys, and of its values
};

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

// Adds the values from a block's position `p` up to `end`, times R queries' weights, to N registers of their sums.
template <int R, int N, bool FIRST, class T>
void add_values(const Blocks<const T> &cache, ptrdiff_t ahead, int p, int end, int d, const float *weights, int length, float *sums, int head) {
    F out[R * N], x[N];
    repeat<R * N>([&](auto i) { out[i] = load(sums + i / N * head + i % N * LANES); });
    while (p < end) {
        const T *v = cache.values(p) + d;
        for (int stop = std::min(p + LANES, end); p < stop; p++, v += head) {
            if (FIRST) fetch<N * LANES>(v + ahead);
            repeat<N>([&](auto i) { x[i] = take(v + i * LANES); });
            repeat<R>([&](auto r) {
                F w = set(weights[r * length + p]);
                repeat<N>([&](auto i) { out[r * N + i] = fma(x[i], w, out[r * N + i]); });
            });
        }
    }
    repeat<R * N>([&](auto i) { store(sums + i / N * head + i % N * LANES, out[i]); });
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
    const Blocks<const T> cache(a.cache, a.padded);
    int first = a.past + token, length = (first + n + LANES - 1) / LANES * LANES, head = a.padded;
    float *q = a.scratch, *scores = q + n * head, *sums = q, inverse[QUERIES];
    for (int r = 0; r < n; r++)
        for (int d = 0; d < head; d += LANES)
            store(q + r * head + d, load_some(a.q + size_t(token + r) * a.stride + d, a.head - d) * set(a.factor));
    for (int span = 0; span < length; span += SPAN) {
        in_groups(n, [&](auto count, int r) {
            auto *f = token + r == 0 ? score<count, true, T> : score<count, false, T>;
            int end = std::min(span + SPAN, first + r + count);
            for (int p = span; p < end; p += LANES)
                f(cache.keys(p), cache.size, q + r * head, head, scores + r * length + p, length);
        });
    }
    for (int r = 0; r < n; r++) inverse[r] = softmax(scores + r * length, first + r + 1, length);
    std::fill_n(sums, n * head, 0.f);  // in the place of the queries
    ptrdiff_t ahead = static_cast<const T *>(a.next) - cache.values(0);
    for (int span = 0; span < length; span += SPAN) {
        in_groups(n, [&](auto count, int r) {
            int end = std::min(span + SPAN, first + r + count), d = 0;
            auto next = [&](auto registers) {
                auto *f = token + r == 0 ? add_values<count, registers, true, T> : add_values<count, registers, false, T>;
                f(cache, ahead, span, end, d, scores + r * length, length, sums + r * head + d, head);
                d += registers * LANES;
            };
            while (d + VALUES * LANES <= head) next(Count<VALUES>{});
            while (d < head) next(Count<1>{});
        });
    }
    for (int r = 0; r < n; r++)
        for (int d = 0; d < head; d += LANES)
            store_some(a.out + size_t(token + r) * a.out_stride + d, load(sums + r * head + d) * set(inverse[r]), a.head - d);
}

template <class T>
void attend_of(const Attention &a) {
    const Blocks<T> cache(a.cache, a.padded);
    for (int i = 0; i < a.count; i++) {
        const float *k = a.k + size_t(i) * a.stride, *v = a.v + size_t(i) * a.stride;
        int p = a.past + i;
        T *key = cache.keys(p) + p % LANES, *value = cache.values(p) + p % LANES * a.padded, part[LANES];
        for (int d = 0; d < a.padded; d += LANES) {
            if (i + SOON < a.count) prefetch(k + SOON * a.stride + d), prefetch(v + SOON * a.stride + d);
            put(part, load_some(k + d, a.head - d)), put(value + d, load_some(v + d, a.head - d));
            for (int j = 0; j < LANES; j++) key[(d + j) * LANES] = part[j];
        }
    }
    for (int token = 0; token < a.count; token += QUERIES) attend_together<T>(a, token, std::min(QUERIES, a.count - token));
}

void attend(const Attention &a) { a.cache.half ? attend_of<uint16_t>(a) : attend_of<float>(a); }

template <class T>
void copy_out_of(const Cache &cache, int padded, int head, int positions, T *k, T *v) {
    const Blocks<const T> blocks(cache, padded);
    for (int p = 0; p < positions; p++, k += head, v += head) {
        const T *key = blocks.keys(p) + p % LANES, *value = blocks.values(p) + p % LANES * padded;
        for (int d = 0; d < head; d++) k[d] = key[d * LANES];
        std::copy_n(value, head, v);
    }
}

template <class T>
void copy_into(const Cache &cache, int padded, int head, int positions, const T *k, const T *v) {
    const Blocks<T> blocks(cache, padded);
    for (int p = 0; p < positions; p++, k += head, v += head) {
        T *key = blocks.keys(p) + p % LANES, *value = blocks.values(p) + p % LANES * padded;
        for (int d = 0; d < padded; d++) key[d * LANES] = d < head ? k[d] : 0;  // what pads a key adds nothing to a score
        std::copy_n(v, head, value);
    }
}

void copy_out(const Cache &cache, int padded, int head, int positions, void *keys, void *values) {
    if (cache.half) copy_out_of(cache, padded, head, positions, static_cast<uint16_t *>(keys), static_cast<uint16_t *>(values));
    else copy_out_of(cache, padded, head, positions, static_cast<float *>(keys), static_cast<float *>(values));
}

void copy_in(const Cache &cache, int padded, int head, int positions, const void *keys, const void *values) {
    if (cache.half) copy_into(cache, padded, head, positions, static_cast<const uint16_t *>(keys), static_cast<const uint16_t *>(values));
    else copy_into(cache, padded, head, positions, static_cast<const float *>(keys), static_cast<const float *>(values));
}

}  // namespace
}  // namespace gpt2d
