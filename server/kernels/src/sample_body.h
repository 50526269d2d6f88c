// Logits -> token, for one instruction set: the arithmetic of server/worker/sampling.py, so that both choose the same token.
// What is kept is decided by values alone. Weights lie in chunks of 64 tokens, 0 where a token is dropped; a chunk without others goes.
#include <cfloat>
#include <cstdint>
#include <cstring>

namespace gpt2d {
namespace {

constexpr float LEAST = -87.f;  // e^x is 0 below it
constexpr int SEVERAL = 1024;   // values among which one is found by counting: sixteen of them take half a nanosecond each time
constexpr int FEW = 96;         // keys are sorted at a time: 1 to 2 us, as much as looking at 3,000 takes; top-k 50 leaves 60

bool find_tops(const float *logits, int n, int first, int end, float *tops) {
    bool nan = false;
    float rest[CHUNK];
    for (int c = first; c < end; c++) {
        const float *x = logits + c * CHUNK;
        if ((c + 1) * CHUNK > n) std::fill(std::copy(x, logits + n, rest), rest + CHUNK, -INFINITY), x = rest;
        F p = load(x), q = load(x + LANES), r = load(x + 2 * LANES), s = load(x + 3 * LANES);
        nan = nan || any_nan(p) || any_nan(q) || any_nan(r) || any_nan(s);
        tops[c] = largest(max(max(p, q), max(r, s)));
    }
    return !nan;
}

// Whether these settings leave the likeliest token, at least.
bool sensible(const gpt2d_choice &c) {
    return std::isfinite(c.temperature) && c.min_p <= 1 && c.top_p >= 0 && c.typical_p >= 0;
}

bool edit(float *logits, int n, const gpt2d_choice &c) {
    auto known = [&](const int32_t *ids, int count) { return std::all_of(ids, ids + count, [&](int id) { return id >= 0 && id < n; }); };
    if (!known(c.biased, c.biased_count) || !known(c.banned, c.banned_count) || !known(c.seen, c.seen_count)) return false;
    for (int i = 0; i < c.biased_count; i++) logits[c.biased[i]] += c.biases[i];
    for (int i = 0; i < c.banned_count; i++) logits[c.banned[i]] = -INFINITY;
    for (int i = 0; i < c.seen_count; i++) {
        float x = logits[c.seen[i]], times = float(c.counts[i]);
        x = x > 0 ? x / c.repetition : x * c.repetition;
        x -= times > 0 ? c.presence : 0.f;
        logits[c.seen[i]] = x - c.frequency * times;
    }
    return true;
}

// What is read behind n keys counts for nothing.
inline void end(Draft &draft, int n) {
    std::fill_n(&draft.keys[size_t(n)], LANES, INFINITY), std::fill_n(&draft.masses[size_t(n)], LANES, 0.f);
}

// Floats as whole numbers in the same order, and back.
inline int32_t ordered(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits ^ (bits >> 31 & INT32_MAX);
}
inline float unordered(int32_t key) {
    float x;
    return key ^= key >> 31 & INT32_MAX, std::memcpy(&x, &key, 4), x;
}

// The k-th largest of n values, or less: so that of these at most k + slack are not below it, and what equals the k-th. Halves what
// is possible and counts: no branch for a value, since those foreseen wrongly cost most. Behind the values is room for -inf.
float kth_largest(float *x, int n, int k, float highest, int slack) {
    std::fill_n(x + n, LANES, -INFINITY);
    int64_t low = ordered(-INFINITY), high = int64_t(ordered(highest)) + 1;  // at least k are not below the first, fewer not below the second
    F one = set(1.f);
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        float limit = unordered(int32_t(middle));
        F count = set(0.f), other = count;
        for (int i = 0; i < n; i += 2 * LANES) {
            count = count + zero_below(one, load(x + i), limit);
            if (i + LANES < n) other = other + zero_below(one, load(x + i + LANES), limit);
        }
        int found = int(sum(count + other));
        if (found < k) high = middle;
        else low = middle;
        if (found >= k && found <= k + slack) break;
    }
    return unordered(int32_t(low));
}

// The first of the keys, in ascending order, at which the running sum of their masses passes `limit`, or the last. It is not
// below `least`. A sorted sample says between which two keys it will be, and only what lies there is looked at again (Floyd
// and Rivest 1975), or what the sums of the three parts say where the sample was wrong.
float where_sum_passes(const float *key, const float *mass, int n, float least, double limit, bool guess, Draft &draft) {
    std::pair<float, float> few[FEW];
    double before = 0;
    for (;;) {
        int count = std::min(n, FEW), step = n / count;
        for (int i = 0; i < count; i++) few[i] = {key[i * step], mass[i * step]};
        std::sort(few, few + count);
        if (count == n) {
            for (int i = 0; i < n; i++)
                if ((before += double(few[i].second)) > limit) return few[i].first;
            return few[n - 1].first;
        }
        float lo = least, up = INFINITY;
        if (!guess) {
            lo = few[count / 3].first, up = std::max(few[count * 2 / 3].first, std::nextafterf(lo, INFINITY));
        } else {
            double sum = 0, squares = 0, wanted = (limit - before) / n * count;
            for (auto [k, m] : few) {
                sum += double(m), squares += double(m) * double(m);
                double doubt = 2 * std::sqrt(squares);
                if (sum + doubt <= wanted) lo = std::max(lo, k);
                if (sum - doubt <= wanted) continue;
                up = std::nextafterf(k, INFINITY);
                break;
            }
        }
        Sums lower = no_sums(), within = no_sums();
        int kept = 0;
        bool ahead = guess && key != draft.keys.data();  // what lies where it is guessed to be is kept in the same pass
        float guessed[] = {lo, up};
        auto keep = [&](F k, F m) {
            if (mass != key) store_between(&draft.masses[size_t(kept)], m, k, lo, up);
            kept += store_between(&draft.keys[size_t(kept)], k, k, lo, up);
        };
        for (int i = 0; i < n; i += LANES) {
            F k = load(key + i), m = load(mass + i), from = zero_below(m, k, lo);
            lower = add(lower, m - from), within = add(within, from - zero_below(m, k, up));
            if (ahead) keep(k, m);
        }
        double below = before + total(lower), inside = below + total(within);
        if (below > limit) up = lo, lo = -INFINITY;
        else if (inside > limit || up == INFINITY) before = below;
        else before = inside, lo = up, up = INFINITY;
        if (up == std::nextafterf(lo, INFINITY)) return lo;  // the last of all, too, where all sums together do not pass the limit
        if (!ahead || lo != guessed[0] || up != guessed[1]) {
            kept = 0;
            for (int i = 0; i < n; i += LANES) keep(load(key + i), load(mass + i));
        }
        if (!kept) return std::nextafterf(lo, -INFINITY);  // the last: all sums together do not pass the limit
        guess = guess && kept <= n / 2, n = kept;
        if (mass == key) std::copy_n(draft.keys.data(), n, draft.masses.data());
        key = draft.keys.data(), mass = draft.masses.data();
        end(draft, n);
    }
}

// Makes new weights of each chunk of the draft that is wanted, 16 at a time, and sums them; returns the sum of all.
template <class Wanted, class Make>
double weigh(Draft &draft, Wanted wanted, Make make) {
    int count = 0;
    double sum = 0;
    for (int c = 0; c < draft.count; c++) {
        if (!wanted(draft.largests[size_t(draft.chunks[size_t(c)])])) continue;
        float *w = &draft.weights[size_t(count) * CHUNK];
        F x0 = make(c, 0), x1 = make(c, 16), x2 = make(c, 32), x3 = make(c, 48);
        store(w, x0), store(w + 16, x1), store(w + 32, x2), store(w + 48, x3);
        double own = total(add(add(add(add(no_sums(), x0), x1), x2), x3));
        if (own == 0) continue;
        draft.chunks[size_t(count)] = draft.chunks[size_t(c)], draft.sums[size_t(count)] = own;
        sum += own, count++;
    }
    draft.count = count;
    return sum;
}

// Finds the largest of each chunk after the choice has changed logits, where `tops` were those before that, or null.
bool find_tops_again(const float *logits, int n, const gpt2d_choice &c, const float *tops, float *largests) {
    int chunks = (n + CHUNK - 1) / CHUNK;
    if (!tops || c.biased_count + c.banned_count + c.seen_count > chunks) return find_tops(logits, n, 0, chunks, largests);
    std::copy_n(tops, chunks, largests);
    auto look_at = [&](const int32_t *ids, int count) {
        return std::all_of(ids, ids + count, [&](int id) { return find_tops(logits, n, id / CHUNK, id / CHUNK + 1, largests); });
    };
    return look_at(c.biased, c.biased_count) && look_at(c.banned, c.banned_count) && look_at(c.seen, c.seen_count);
}

int sample(float *logits, int n, const gpt2d_choice &choice, const float *tops, Draft &draft) {
    if (!sensible(choice) || !edit(logits, n, choice)) return -1;
    int whole = n / CHUNK, chunks = (n + CHUNK - 1) / CHUNK;
    float rest[CHUNK];
    std::copy_n(logits + whole * CHUNK, n % CHUNK, rest), std::fill(rest + n % CHUNK, rest + CHUNK, -INFINITY);
    auto at = [&](int c) { return c < whole ? logits + c * CHUNK : rest; };
    float *largests = draft.largests.data();
    if (!find_tops_again(logits, n, choice, tops, largests)) return -1;
    float highest = *std::max_element(largests, largests + chunks);
    if (!std::isfinite(highest)) return -1;
    if (choice.temperature <= 0) {
        int first = int(std::find(largests, largests + chunks, highest) - largests) * CHUNK;
        return int(std::find(logits + first, logits + n, highest) - logits);
    }

    auto all = [](float) { return true; };
    auto look_at = [&](auto wanted) {
        draft.count = 0;
        for (int c = 0; c < chunks; c++)
            if (wanted(largests[c])) draft.chunks[size_t(draft.count++)] = c;
    };
    float threshold = -INFINITY, *w = draft.weights.data(), *keys = draft.keys.data(), *masses = draft.masses.data();
    if (int k = choice.top_k; k > 0 && k < n) {
        if (k <= chunks) {  // the k-th largest of the chunks' largests is at most that of all
            std::copy_n(largests, chunks, w);
            threshold = kth_largest(w, chunks, k, highest, k / 8);
        }
        look_at([&](float x) { return x >= threshold; });
        int size = 0;
        for (int c = 0; c < draft.count; c++)
            for (int i = 0; i < CHUNK; i += LANES) {
                F x = load(at(draft.chunks[size_t(c)]) + i);
                size += store_between(keys + size, x, x, threshold, INFINITY);
            }
        if (size <= SEVERAL) {
            threshold = std::max(threshold, kth_largest(keys, size, k, highest, 0));
        } else {
            std::fill_n(masses, size, 1.f), end(draft, size);
            threshold = where_sum_passes(keys, masses, size, -INFINITY, size - k, true, draft);
        }
    }
    float least = choice.top_p < 1 ? 0.f : choice.min_p;  // of the weights; the largest is 1
    auto reaches = [&](float weight) {  // whether a chunk may have such a weight, by its largest logit
        double coldest = weight > 0 ? double(choice.temperature) * (std::log(double(weight)) - 1e-3) : -INFINITY;
        return [=](float x) { return double(x) - double(highest) >= coldest; };
    };
    auto reaches_least = reaches(least);
    look_at([&](float x) { return x >= threshold && reaches_least(x); });
    F top = set(highest), temperature = set(choice.temperature);
    float *exponents = draft.exponents.data();  // of all chunks
    bool some = least > 0 || threshold > -INFINITY;
    double sum = weigh(draft, all, [&](int c, int i) {
        F logit = load(at(draft.chunks[size_t(c)]) + i), x = logit - top;
        if (choice.temperature != 1) x = x / temperature;  // which takes as long as half of e^x
        F e = zero_below(exponential(x), x, LEAST);
        if (choice.typical_p < 1) store(exponents + draft.chunks[size_t(c)] * CHUNK + i, max(set(LEAST), x));
        return some ? zero_below(zero_below(e, e, least), logit, threshold) : e;
    });
    if (choice.top_p < 1) {
        double limit = (1 - choice.top_p) * sum;
        int size = draft.count * CHUNK;  // weights that are less than limit / size come to less than the limit together
        least = std::max(choice.min_p, where_sum_passes(w, w, size, float(limit / size) * 0.999f, limit, true, draft));
        sum = weigh(draft, reaches(least), [&](int c, int i) {
            F x = load(w + c * CHUNK + i);
            return zero_below(x, x, least);
        });
    }
    if (choice.typical_p < 1) {
        // A token's surprise is the logarithm of all weights' sum less x, of which its weight is e^x: it is as far from the mean
        // as x is from the mean of x.
        auto exponent = [&](int c, int i) { return load(exponents + draft.chunks[size_t(c)] * CHUNK + i); };
        double mean = 0;
        for (int c = 0; c < draft.count; c++) {
            Sums sums = no_sums();
            for (int i = 0; i < CHUNK; i += LANES) sums = add(sums, load(w + c * CHUNK + i) * exponent(c, i));
            mean += total(sums);
        }
        mean /= sum;
        float high = float(mean), low = float(mean - double(high)), *distances = exponents;
        for (int c = 0; c < draft.count; c++)
            for (int i = 0; i < CHUNK; i += LANES) store(distances + c * CHUNK + i, abs((exponent(c, i) - set(high)) - set(low)));
        double limit = std::nextafter(choice.typical_p * sum, 0.0);  // the sum need only reach it
        float beyond = std::nextafterf(where_sum_passes(distances, w, draft.count * CHUNK, 0.f, limit, false, draft), INFINITY);
        auto near = [&](float x) { return (std::max(LEAST, (x - highest) / choice.temperature) - high) - low > -beyond; };
        sum = weigh(draft, near, [&](int c, int i) {
            F x = load(w + c * CHUNK + i);
            return x - zero_below(x, load(distances + c * CHUNK + i), beyond);
        });
    }

    double target = choice.uniform * sum, passed = 0;
    for (int c = 0; c < draft.count; c++) {
        if (passed + draft.sums[size_t(c)] <= target && c + 1 < draft.count) {
            passed += draft.sums[size_t(c)];
            continue;
        }
        int last = -1;
        for (int i = 0; i < CHUNK && passed <= target; i++)
            if (w[c * CHUNK + i] > 0) passed += double(w[c * CHUNK + i]), last = draft.chunks[size_t(c)] * CHUNK + i;
        return last;
    }
    return -1;
}

}  // namespace
}  // namespace gpt2d
