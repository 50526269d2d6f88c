// The LM head: read once for all, or in two passes where only the largest logits are needed.
//
// A coarse head of 4 bits gives a coarse logit of each token, and within how much of it the exact one is. Strips of 16 tokens
// with the largest coarse logits are read at 8 bits, and so is every strip in which a token may still be among the best. An
// exact logit has the bits that it has where the whole head is read.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <functional>
#include <iterator>

#include "model.h"

namespace gpt2d {
namespace {

constexpr int MOST_ROWS = 2;                    // with more, weights that are read once serve them all
constexpr size_t LEAST_BYTES = size_t(4) << 20;  // of a head that is read in two passes: a smaller one lies in a cache
// Of the strips: with more of them than the first, two passes take longer than one; with more than the second, what is left of
// the second pass does. The first pass takes 0.53 of the whole head; one row gains up to half of the strips, two up to 0.3.
constexpr double WORTH_SHARE = 0.3, MOST_SHARE = 0.7;
constexpr int FAILURES = 2, REST = 32;  // after FAILURES steps in a row that were not worth it, REST read the whole head at once

}  // namespace

bool Model::notes_tops(const Step &step) const { return step.wanted_count > MOST_ROWS; }

bool Model::in_two_passes(const Step &step) {
    logits_.resize(MOST_ROWS * size_t(lm_head_.outputs));
    if (!step.best || !step.wanted_count || step.wanted_count > MOST_ROWS || shape_.head_bits == 32) return false;
    auto all = [&](int k) { return k == 0 || k >= shape_.vocabulary; };
    if (std::any_of(step.best, step.best + step.wanted_count, all)) return false;
    auto strips = size_t(this->strips()), blocks = size_t(width_ / BLOCK);
    if (!two_.always) {
        size_t likely = 0;
        for (int i = 0; i < step.wanted_count; i++) likely += 2 * size_t(step.best[i]);
        if (lm_head_.panels() * lm_head_.panel_bytes() < LEAST_BYTES || double(likely) > WORTH_SHARE * double(strips)) return false;
        if (two_.resting > 0) {
            two_.resting--;
            return false;
        }
    }
    two_.norms.resize(MOST_ROWS * blocks), two_.offsets.resize(MOST_ROWS * blocks);
    for (auto *values : {&two_.tops, &two_.most, &two_.exact_tops}) values->resize(MOST_ROWS * strips);
    two_.values.reserve(strips * STRIP), two_.listed.resize(strips + 1), two_.count = 0;
    two_.read.assign(strips, 0);
    two_.whole = false, two_.broken = false;
    return true;
}

// What the first pass wants of a row that the last norm has made.
void Model::prepare(int row) {
    int blocks = width_ / BLOCK;
    for (int b = 0; b < blocks; b++) {
        const int8_t *q = &q_[size_t(row) * width_ + size_t(b) * BLOCK];
        int squares = 0;
        for (int i = 0; i < BLOCK; i++) squares += q[i] * q[i];
        two_.norms[size_t(row * blocks + b)] = scales_[size_t(row * blocks + b)] * std::sqrt(float(squares));
        two_.offsets[size_t(row * blocks + b)] = offsets_[size_t(row * blocks + b)] / lm_head_.zero() * coarse_.zero();
    }
}

void Model::raise_head(const Rows &x, const Step &step) {
    if (!step.wanted_count) return;
    if (two_.used) raise_best(x, step);
    else raise_whole(x, step);
}

// Of several rows straight to where the logits are wanted, but those of the last chunk, behind which is the head's padding. Of a
// part's chunks the largest logits are noted while it is in a near cache: who chooses tokens need not read them all again. One row
// or two wait for what they load, and nothing else may hold them up.
void Model::raise_whole(const Rows &x, const Step &step) {
    if (!notes_tops(step)) {
        team_.work_off(lm_head_.panels(), part_of(lm_head_), [&](int first, int end) {
            ops_.matmul(lm_head_, x, step.wanted_count, {logits_.data(), lm_head_.outputs, Finish::store}, first, end);
            hand_out(step, first * PANEL, end * PANEL);
        });
        return;
    }
    constexpr int EACH = CHUNK / PANEL;
    int n = shape_.vocabulary, last = chunks() - 1;
    team_.work_off(chunks(), std::max(1, part_of(lm_head_) / EACH), [&](int first, int end) {
        int whole = std::min(end, last);
        ops_.matmul(lm_head_, x, step.wanted_count, {step.logits, n, Finish::store}, first * EACH, whole * EACH);
        if (end > last) {
            Matrix tail = lm_head_;
            tail.data += size_t(last) * EACH * lm_head_.panel_bytes(), tail.outputs -= last * CHUNK;
            ops_.matmul(tail, x, step.wanted_count, {tail_.data(), CHUNK, Finish::store}, 0, tail.panels());
        }
        for (int i = 0; i < step.wanted_count; i++) {
            float *y = step.logits + size_t(i) * size_t(n);
            if (end > last) std::copy_n(&tail_[size_t(i) * CHUNK], n - last * CHUNK, y + last * CHUNK);
            if (!ops_.find_tops(y, n, first, end, &tops_[size_t(i) * size_t(chunks())])) all_numbers_ = false;
        }
    });
}

// The logits of these tokens, without the head's padding.
void Model::hand_out(const Step &step, int first, int end) {
    end = std::min(end, shape_.vocabulary);
    for (int i = 0; i < step.wanted_count; i++) {
        const float *made = &logits_[size_t(i) * lm_head_.outputs];
        std::copy(made + std::min(first, end), made + end, step.logits + size_t(i) * shape_.vocabulary + std::min(first, end));
    }
}

void Model::raise_best(const Rows &x, const Step &step) {
    int rows = step.wanted_count, wide = lm_head_.outputs, vocabulary = shape_.vocabulary, blocks = width_ / BLOCK;
    Rows coarse{x.floats, x.stride, x.q, x.scales, two_.offsets.data()};
    auto each_row = [&](int first, int end, auto look) {  // at the logits of these strips, of which the head's padding is none
        for (int i = 0; i < rows; i++) {
            float *y = &logits_[size_t(i) * wide];
            for (int k = std::max(vocabulary, first * STRIP); k < end * STRIP; k++) y[k] = -FLT_MAX;
            if (!look(y, i)) two_.broken = true;
        }
    };
    team_.share(lm_head_.panels(), part_of(coarse_), [&](int first, int end) {
        for (int p = first; p < end; p++) {
            ops_.matmul(coarse_, coarse, rows, {logits_.data(), wide, Finish::store}, p, p + 1);
            each_row(2 * p, 2 * p + 2, [&](const float *y, int i) {
                const float *norms = &two_.norms[size_t(i * blocks)];
                return ops_.bound(coarse_, y, coarse_norms_, norms, p, p + 1, &two_.tops[size_t(i * strips())], &two_.most[size_t(i * strips())]);
            });
        }
        for (int i = 0; i < rows; i++) {
            float *to = step.logits + size_t(i) * vocabulary;
            std::fill(to + first * PANEL, to + std::min(end * PANEL, vocabulary), -INFINITY);
        }
    }, [&] { list_likely(step); });
    auto exact = [&](const int *strips, int count) {
        return [=, &x, &step, &each_row](int first, int end) {
            first *= 2, end = std::min(2 * end, count);
            ops_.matmul_strips(lm_head_, x, rows, logits_.data(), wide, strips, first, end, count);
            for (int i = first; i < end; i++) {
                int strip = strips[i];
                each_row(strip, strip + 1, [&](const float *y, int row) { return ops_.largest(y, strip, strip + 1, &two_.exact_tops[size_t(row * this->strips())]); });
                hand_out(step, strips[i] * STRIP, (strips[i] + 1) * STRIP);
            }
        };
    };
    auto part = [&](int pairs) { return std::max(1, pairs / (4 * team_.used())); };
    if (!two_.whole) {
        int count = int(two_.first), pairs = (count + 1) / 2;
        team_.share(pairs, part(pairs), exact(two_.listed.data(), count), [&] { list_possible(step); });
    }
    if (two_.whole) return raise_whole(x, step);
    int count = int(two_.count - two_.first), pairs = (count + 1) / 2;
    team_.work_off(pairs, part(pairs), exact(two_.listed.data() + two_.first, count));
}

// The strips in which the 2k largest coarse logits are, and some more: the largest of each strip says which.
void Model::list_likely(const Step &step) {
    if (give_up()) return;
    size_t strips = two_.read.size();
    auto &values = two_.values;
    for (int i = 0; i < step.wanted_count; i++) {
        const float *tops = &two_.tops[size_t(i) * size_t(this->strips())];
        size_t wanted = 2 * size_t(step.best[i]), together = 16 * wanted > strips ? 1 : 8;
        values.clear();
        for (size_t s = 0; s < strips; s += together) values.push_back(*std::max_element(tops + s, tops + std::min(s + together, strips)));
        wanted = std::min(wanted, values.size());
        std::nth_element(values.begin(), values.begin() + long(wanted) - 1, values.end(), std::greater<float>());
        float least = values[wanted - 1];
        for (size_t s = 0; s < strips; s++) two_.read[s] |= tops[s] >= least;
    }
    list([&](size_t s) { return two_.read[s] != 0; });
    two_.first = two_.count;
    if (two_.whole) note(false);
}

// All others in which an exact logit may be one of the best, or equal to the last of them.
void Model::list_possible(const Step &step) {
    if (give_up()) return;
    float least[MOST_ROWS];
    for (int i = 0; i < step.wanted_count; i++) least[i] = least_of_best(step, i);
    list([&](size_t s) {
        bool possible = false;
        for (int i = 0; i < step.wanted_count; i++) possible |= two_.most[size_t(i) * two_.read.size() + s] >= least[i];
        return possible & !two_.read[s];
    });
    bool worth = !two_.whole && double(two_.count) <= WORTH_SHARE * double(two_.read.size());
    note(worth);
}

// The whole head is read where something is not a number, of which no order can be made.
bool Model::give_up() {
    if (two_.broken) two_.whole = true, note(false);
    return two_.broken;
}

// Whether the two passes of a step were worth it.
void Model::note(bool worth) {
    two_.failed = worth ? 0 : two_.failed + 1;
    if (two_.failed == FAILURES) two_.failed = 0, two_.resting = REST;
}

// Adds strips to those that are read exactly; if they become too many, the whole head is.
template <class Wanted>
void Model::list(Wanted wanted) {
    size_t strips = two_.read.size(), count = two_.count;
    for (size_t s = 0; s < strips; s++) two_.listed[count] = int(s), count += wanted(s);  // no branch: half a nanosecond each
    two_.count = count;
    two_.whole = !two_.always && double(count) > MOST_SHARE * double(strips);
}

// The smallest of the best logits of a row among those that were read: none of the best of all is below it.
float Model::least_of_best(const Step &step, int row) {
    const float *logits = &logits_[size_t(row) * lm_head_.outputs], *tops = &two_.exact_tops[size_t(row) * size_t(this->strips())];
    auto kth_largest = [&] {
        auto &values = two_.values;
        if (values.size() < size_t(step.best[row])) return -INFINITY;
        auto kth = values.begin() + step.best[row] - 1;
        std::nth_element(values.begin(), kth, values.end(), std::greater<float>());
        return *kth;
    };
    two_.values.clear();
    for (size_t i = 0; i < two_.count; i++) two_.values.push_back(tops[two_.listed[i]]);
    float bound = kth_largest();  // of the strips' largest, so that few logits are looked at
    two_.values.clear();
    for (size_t i = 0; i < two_.count; i++) {
        int s = two_.listed[i];
        const float *y = logits + s * STRIP;
        if (tops[s] >= bound) std::copy_if(y, y + STRIP, std::back_inserter(two_.values), [&](float x) { return x >= bound; });
    }
    return kth_largest();
}

}  // namespace gpt2d
