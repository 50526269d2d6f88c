// What is told of tokens at their places: the head is computed a few panels at a time, and no logit of them is kept.
#include <algorithm>
#include <cmath>
#include <limits>

#include "model.h"

namespace gpt2d {
namespace {

constexpr int PANELS = 8;      // of a part, whose logits lie in a second-level cache with its weights
constexpr int AT_ONCE = 120;   // rows of a part: a multiple of the heights of all tiles
constexpr int WIDE = PANELS * PANEL;

// The natural logarithm of a positive number, by sums and products alone: the same bits everywhere. 2 artanh((m - 1) / (m + 1)).
double logarithm(double x) {
    int exponent;
    double m = std::frexp(x, &exponent);
    if (m < 0.70710678118654752) m *= 2, exponent--;
    double s = (m - 1) / (m + 1), z = s * s, sum = 0;
    for (int k = 21; k >= 1; k -= 2) sum = sum * z + 1.0 / k;
    return 2 * s * sum + exponent * 0.69314718055994531;
}

Rows from(const Rows &x, int row) {
    size_t at = size_t(row) * x.stride;
    if (!x.q) return {x.floats + at, x.stride};
    return {x.floats + at, x.stride, x.q + at, x.scales + at / BLOCK, x.offsets + at / BLOCK};
}

Matrix panels(const Matrix &m, int first, int count) {
    Matrix part = m;
    part.data += size_t(first) * m.panel_bytes(), part.outputs = count * PANEL;
    return part;
}

}  // namespace

int Model::parts() const { return (lm_head_.panels() + PANELS - 1) / PANELS; }

void Model::reserve_scores(const Step &step) {
    auto count = size_t(step.scores->count), threads = size_t(team_.size());
    tiles_.resize(threads * AT_ONCE * WIDE);
    surveys_.resize(std::max(surveys_.size(), count * size_t(parts())));
    tops_seen_.assign(threads * count, -INFINITY);
    if (!step.scores->members) return;
    members_.assign(size_t(lm_head_.outputs), 0.f);  // none of the head's padding
    std::copy_n(step.scores->members, shape_.vocabulary, members_.begin());
}

// The token's own logit, which the others are compared with, then all of each part, then what all parts say.
void Model::raise_scores(const Rows &x, const Step &step) {
    const gpt2d_scores &scores = *step.scores;
    int count = scores.count, parts = this->parts();
    team_.share(count, 8, [&](int first, int end) {
        for (int i = first; i < end; i++) {
            float made[PANEL];
            ops_.matmul(panels(lm_head_, scores.tokens[i] / PANEL, 1), from(x, i), 1, {made, PANEL, Finish::store}, 0, 1);
            scores.logits[i] = made[scores.tokens[i] % PANEL];
        }
    });
    team_.share(parts, 1, [&](int first, int end) {
        for (int part = first; part < end; part++) {
            for (int row = 0; row < count; row += AT_ONCE) survey_part(x, scores, part, row, std::min(AT_ONCE, count - row));
        }
    });
    team_.work_off(count, 8, [&](int first, int end) {
        for (int i = first; i < end; i++) {
            Survey all = ops_.join(&surveys_[size_t(i) * parts], parts);
            double log_sum = logarithm(all.sum);
            if (all.broken || !std::isfinite(all.highest)) scores.logits[i] = std::numeric_limits<float>::quiet_NaN();
            scores.totals[i] = double(all.highest) + log_sum;
            scores.entropies[i] = std::max(0.0, log_sum - all.weighted / all.sum);
            scores.ranks[i] = 1 + all.greater, scores.greedy[i] = all.at;
            if (scores.members) scores.masses[i] = all.mass > 0 ? logarithm(all.mass) - log_sum : -INFINITY;
        }
    });
}

void Model::survey_part(const Rows &x, const gpt2d_scores &scores, int part, int row, int rows) {
    int first = part * PANELS, count = std::min(PANELS, lm_head_.panels() - first), wide = count * PANEL;
    float *tile = &tiles_[size_t(Team::place()) * AT_ONCE * WIDE], *seen = &tops_seen_[size_t(Team::place()) * scores.count];
    ops_.matmul(panels(lm_head_, first, count), from(x, row), rows, {tile, wide, Finish::store}, 0, count);
    int padding = std::max(0, (first + count) * PANEL - shape_.vocabulary);
    const float *members = scores.members ? &members_[size_t(first) * PANEL] : nullptr;
    for (int i = row; i < row + rows; i++) {
        float *y = tile + size_t(i - row) * wide;
        std::fill(y + wide - padding, y + wide, -std::numeric_limits<float>::max());
        Survey found = ops_.survey(y, wide, scores.logits[i], members);
        found.at = -1;
        if (found.highest >= seen[i]) {  // else it is not the largest of all, and nobody asks where it is
            seen[i] = found.highest;
            found.at = first * PANEL + int(std::find(y, y + wide, found.highest) - y);
        }
        surveys_[size_t(i) * parts() + part] = found;
    }
}

}  // namespace gpt2d
