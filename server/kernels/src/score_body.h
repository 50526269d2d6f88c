// What is told of a row of logits, for one instruction set: parts of it by themselves, then all parts in their order.
#include <cmath>

namespace gpt2d {
namespace {

Survey survey(const float *y, int n, float own, const float *members) {
    F high = load(y), nothing = set(0.f);  // what is no number less itself is none
    for (int i = 0; i < n; i += LANES) {
        F x = load(y + i);
        nothing = nothing + (x - x), high = max(high, x);
    }
    Survey found{};
    found.highest = largest(high), found.broken = any_nan(nothing);
    float above = std::nextafter(own, INFINITY);
    F top = set(found.highest), one = set(1.f), sum = set(0.f), weighted = set(0.f), mass = set(0.f), greater = set(0.f);
    for (int i = 0; i < n; i += LANES) {
        F logit = load(y + i), x = logit - top, e = zero_below(exponential(x), x, LEAST);
        sum = sum + e, weighted = fma(e, max(x, set(LEAST)), weighted);
        greater = greater + zero_below(one, logit, above);
        if (members) mass = fma(e, load(members + i), mass);
    }
    found.sum = total(add(no_sums(), sum)), found.weighted = total(add(no_sums(), weighted));
    found.mass = total(add(no_sums(), mass)), found.greater = int32_t(total(add(no_sums(), greater)));
    return found;
}

Survey join(const Survey *parts, int count) {
    Survey all{};
    all.highest = -INFINITY, all.at = -1;
    for (int i = 0; i < count; i++) {
        all.broken |= parts[i].broken, all.greater += parts[i].greater;
        if (parts[i].highest > all.highest) all.highest = parts[i].highest, all.at = parts[i].at;
    }
    for (int i = 0; i < count; i++) {
        const Survey &part = parts[i];
        float lower = part.highest - all.highest, lanes[LANES];
        if (!(lower >= LEAST)) continue;
        store(lanes, exponential(set(lower)));
        double share = double(lanes[0]);
        all.sum += share * part.sum, all.mass += share * part.mass;
        all.weighted += share * (part.weighted + double(lower) * part.sum);
    }
    return all;
}

}  // namespace
}  // namespace gpt2d
