// Logits -> token, for one instruction set: the arithmetic of server/worker/sampling.py, so that both choose the same token.
#include <vector>

namespace gpt2d {
namespace {

constexpr int CHUNK = 64;         // of logits that share a largest
constexpr float LEAST = -87.f;  // e^x is 0 below it

double total_of(const float *w, int n) {
    double part[8] = {};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) part[j] += double(w[i + j]);
    for (; i < n; i++) part[0] += double(w[i]);
    return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// The first of the ascending values at which their running sum passes `limit`, or the last: a quickselect by mass.
float where_sum_passes(float *a, int n, double limit) {
    double before = 0;
    for (;;) {
        float pivot = a[n / 2];
        float *less = std::partition(a, a + n, [&](float x) { return x < pivot; });
        float *equal = std::partition(less, a + n, [&](float x) { return x == pivot; });
        double sum = before + total_of(a, int(less - a));
        if (sum > limit) {
            n = int(less - a);
            continue;
        }
        before = sum + double(pivot) * double(equal - less);
        if (before > limit || equal == a + n) return pivot;
        n = int(a + n - equal), a = equal;
    }
}

template <class Keep>
void filter(std::vector<int> &ids, std::vector<float> &w, Keep keep) {
    size_t kept = 0;
    for (size_t i = 0; i < w.size(); i++)
        if (keep(w[i])) ids[kept] = ids[i], w[kept++] = w[i];
    ids.resize(kept), w.resize(kept);
}

bool penalise(float *logits, int n, const gpt2d_choice &choice) {
    for (int i = 0; i < choice.seen_count; i++) {
        int token = choice.seen[i];
        if (token < 0 || token >= n) return false;
        float x = logits[token], times = float(choice.counts[i]);
        x = x > 0 ? x / choice.repetition : x * choice.repetition;
        x -= times > 0 ? choice.presence : 0.f;
        logits[token] = x - choice.frequency * times;
    }
    return true;
}

int sample(float *logits, int n, const gpt2d_choice &choice) {
    static thread_local std::vector<float> largests, w, spare;
    static thread_local std::vector<int> ids;
    if (!penalise(logits, n, choice)) return -1;
    largests.clear();
    bool nan = false;
    for (int i = 0; i < n; i += CHUNK) {
        float m = -INFINITY;
        if (i + CHUNK <= n) {
            F a = load(logits + i), b = load(logits + i + 16), c = load(logits + i + 32), d = load(logits + i + 48);
            nan = nan || any_nan(a) || any_nan(b) || any_nan(c) || any_nan(d);
            m = largest(max(max(a, b), max(c, d)));
        } else {
            for (int j = i; j < n; j++) nan |= logits[j] != logits[j], m = std::max(m, logits[j]);
        }
        largests.push_back(m);
    }
    float highest = *std::max_element(largests.begin(), largests.end());
    if (nan || !std::isfinite(highest)) return -1;
    if (choice.temperature <= 0) {
        int at = int(std::find(largests.begin(), largests.end(), highest) - largests.begin()) * CHUNK;
        return int(std::find(logits + at, logits + n, highest) - logits);
    }

    ids.clear(), w.clear();
    if (choice.top_k > 0 && choice.top_k < n) {
        // The k-th largest of the chunks' largests is at most the k-th largest of all: what is below it needs no look.
        float bound = -INFINITY;
        if (size_t(choice.top_k) <= largests.size()) {
            spare = largests;
            std::nth_element(spare.begin(), spare.begin() + choice.top_k - 1, spare.end(), std::greater<float>());
            bound = spare[size_t(choice.top_k) - 1];
        }
        for (size_t c = 0; c < largests.size(); c++)
            if (largests[c] >= bound)
                for (int i = int(c) * CHUNK; i < std::min(n, int(c + 1) * CHUNK); i++)
                    if (logits[i] >= bound) ids.push_back(i), w.push_back(logits[i]);
        spare = w;
        std::nth_element(spare.begin(), spare.begin() + choice.top_k - 1, spare.end(), std::greater<float>());
        filter(ids, w, [threshold = spare[size_t(choice.top_k) - 1]](float x) { return x >= threshold; });
    } else {
        w.assign(logits, logits + n);
        ids.resize(size_t(n));
        for (int i = 0; i < n; i++) ids[size_t(i)] = i;
    }
    size_t count = w.size();
    w.resize((count + LANES - 1) / LANES * LANES, highest);
    F top = set(highest), temperature = set(choice.temperature);
    for (size_t i = 0; i < count; i += LANES) {
        F x = (load(&w[i]) - top) / temperature;
        store(&w[i], zero_below(exponential(x), x, LEAST));
    }
    w.resize(count);

    if (choice.top_p < 1) {
        double limit = (1 - choice.top_p) * total_of(w.data(), int(w.size()));
        spare = w;
        filter(ids, w, [threshold = where_sum_passes(spare.data(), int(spare.size()), limit)](float x) { return x >= threshold; });
    }
    if (choice.min_p > 0) filter(ids, w, [least = choice.min_p * *std::max_element(w.begin(), w.end())](float x) { return x >= least; });

    int size = int(w.size());
    double target = choice.uniform * total_of(w.data(), size), sum = 0;
    for (int i = 0; i < size; i += 256) {
        int end = std::min(size, i + 256);
        double block = total_of(&w[size_t(i)], end - i);
        if (sum + block > target || end == size) {
            for (int j = i; j < end; j++)
                if ((sum += double(w[size_t(j)])) > target) return ids[size_t(j)];
            return ids[size_t(end) - 1];
        }
        sum += block;
    }
    return -1;
}

}  // namespace
}  // namespace gpt2d
