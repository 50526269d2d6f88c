// Steps as a worker takes them: 1 to 16 rows that begin and go on at any time, prompts and scores among them, with another number
// of threads each time, and the head in two passes. Each logit and score has the bits that its row has alone, with one thread.
#include <cmath>
#include <random>

#include "check.h"

namespace {

constexpr int ROWS = 16, THREADS = 3, LENGTH = 32, VOCABULARY = 1000;  // of four parts of the head, and 63 strips
constexpr gpt2d_shape SHAPE = {2, 2, 64, 160, 48, VOCABULARY, 0, 0, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, 0};

using Floats = std::vector<float>;

gpt2d_model *make(int bits, int cache_bits, int threads, const std::string &set) {
    gpt2d_shape shape = SHAPE;
    shape.bits = bits, shape.head_bits = bits == 32 ? 32 : 8, shape.cache_bits = cache_bits;
    gpt2d_model *model = gpt2d_new(&shape, ROWS, threads, set.c_str());
    CHECK(model);
    fill(model, bits);
    return model;
}

int32_t token(int row, int position) { return (row * 311 + position * 17) % VOCABULARY; }

struct Tokens {
    std::vector<int32_t> ids, rows, positions;

    void add(int row, int position) { ids.push_back(token(row, position)), rows.push_back(row), positions.push_back(position); }
    int count() const { return int(ids.size()); }
};

// What is told of tokens; `members` is whose mass.
struct Told {
    std::vector<int32_t> places, tokens, ranks, greedy;
    Floats own;
    std::vector<double> totals, entropies, masses;

    void of(gpt2d_model *model, const Tokens &step, const Floats &members) {
        size_t n = places.size();
        ranks.resize(n), greedy.resize(n), own.resize(n), totals.resize(n), entropies.resize(n), masses.resize(n);
        gpt2d_scores scores = {int32_t(n), places.data(), tokens.data(), members.data(), own.data(), totals.data(), entropies.data(), masses.data(), ranks.data(), greedy.data()};
        CHECK(gpt2d_score(model, step.count(), step.ids.data(), step.rows.data(), step.positions.data(), 0, nullptr, nullptr, &scores) == 0);
    }
    void same(size_t i, const Told &other, size_t j) const {
        CHECK(own[i] == other.own[j] && totals[i] == other.totals[j] && entropies[i] == other.entropies[j]);
        CHECK(masses[i] == other.masses[j] && ranks[i] == other.ranks[j] && greedy[i] == other.greedy[j]);
    }
};

Floats forward(gpt2d_model *model, const Tokens &step, const std::vector<int32_t> &wanted, const int32_t *best) {
    Floats logits(wanted.size() * VOCABULARY);
    CHECK(gpt2d_forward(model, step.count(), step.ids.data(), step.rows.data(), step.positions.data(), int(wanted.size()), wanted.data(), logits.data(), nullptr, best) == 0);
    return logits;
}

// Each row's text by itself, with one thread: logits [rows, LENGTH, VOCABULARY], and what is told of each next token.
void alone(int bits, int cache_bits, const std::string &set, const Floats &members, Floats &logits, std::vector<Told> &told) {
    gpt2d_model *model = make(bits, cache_bits, 1, set);
    for (int row = 0; row < ROWS; row++) {
        Tokens text;
        std::vector<int32_t> all;
        Told found;
        for (int i = 0; i < LENGTH; i++) text.add(row, i), all.push_back(i), found.places.push_back(i), found.tokens.push_back(token(row, i + 1));
        Floats made = forward(model, text, all, nullptr);
        logits.insert(logits.end(), made.begin(), made.end());
        found.of(model, text, members);
        told.push_back(found);
    }
    gpt2d_free(model);
}

// A few tokens of some rows, wherever these are in their texts. `past` goes on with them.
Tokens some(std::vector<int> &past, std::mt19937 &random, int rows, int most) {
    Tokens step;
    int first = int(random() % ROWS);
    for (int i = 0; i < rows; i++) {
        int row = (first + 5 * i) % ROWS, &at = past[size_t(row)];
        if (at == LENGTH) at = 0;  // another text begins
        for (int count = std::min(1 + int(random() % unsigned(most)), LENGTH - at); count; count--) step.add(row, at++);
    }
    return step;
}

void steps(int bits, int cache_bits, const std::string &set) {
    Floats members(VOCABULARY), expected;
    for (int i = 0; i < VOCABULARY; i += 3) members[size_t(i)] = 1;
    std::vector<Told> told;
    alone(bits, cache_bits, set, members, expected, told);
    gpt2d_model *model = make(bits, cache_bits, THREADS, set);
    gpt2d_always_two_passes(model, 1);
    std::mt19937 random(3);
    std::vector<int> past(ROWS, 0);
    auto threads = [&] { CHECK(gpt2d_use_threads(model, 1 + int(random() % THREADS)) == 0); };
    for (int turn = 0; turn < 32; turn++) {
        threads();
        int rows = 1 + turn % ROWS;
        Tokens step = some(past, random, rows, turn % 4 ? 1 : 7);
        if (turn % 5 == 4) {
            Told found;
            for (int i = 0; i < step.count(); i++) {
                found.places.push_back(i);
                found.tokens.push_back(token(step.rows[size_t(i)], step.positions[size_t(i)] + 1));
            }
            found.of(model, step, members);
            for (size_t i = 0; i < found.places.size(); i++) found.same(i, told[size_t(step.rows[i])], size_t(step.positions[i]));
            continue;
        }
        std::vector<int32_t> wanted, best, order;
        for (int i = 0; i < step.count(); i++)
            if (i + 1 == step.count() || step.rows[size_t(i) + 1] != step.rows[size_t(i)]) wanted.push_back(i), best.push_back(3), order.push_back(int(order.size()));
        bool two = turn % 3 == 1;
        Floats found = forward(model, step, wanted, two ? best.data() : nullptr);
        CHECK((gpt2d_strips_read(model) > 0) == (two && rows <= 2 && bits != 32));
        for (size_t i = 0; i < found.size(); i++) {
            size_t last = size_t(wanted[i / VOCABULARY]), at = (size_t(step.rows[last]) * LENGTH + size_t(step.positions[last])) * VOCABULARY + i % VOCABULARY;
            CHECK(found[i] == expected[at] || (gpt2d_strips_read(model) && std::isinf(found[i])));
        }
        gpt2d_choice choice{0.5, 0.9, 0.9, 0.7f, 0.05f, 50, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1.f, 0.f, 0.f};
        std::vector<const gpt2d_choice *> choices(wanted.size(), &choice);
        std::vector<int32_t> tokens(wanted.size(), -2), again(wanted.size(), -2);
        Floats copy = found;
        CHECK(gpt2d_choose(model, int(wanted.size()), order.data(), found.data(), choices.data(), tokens.data()) == 0);
        threads();
        CHECK(gpt2d_choose(model, int(wanted.size()), order.data(), copy.data(), choices.data(), again.data()) == 0);
        CHECK(tokens == again);
        if (turn % 7 == 6) {  // a row's keys and values by way of the caller's memory, while threads come and go
            int row = step.rows[0], positions = past[size_t(row)];
            std::vector<char> keys(size_t(2 * 2 * LENGTH * (32 + 4) * 4)), values(keys.size());
            threads();
            CHECK(gpt2d_export(model, row, positions, keys.data(), values.data()) == 0);
            threads();
            CHECK(gpt2d_restore(model, row, positions, keys.data(), values.data()) == 0);
        }
    }
    // More places than a part of the head goes through at a time.
    Tokens step;
    Told found;
    for (int row = 0; row < 4; row++)
        for (int i = 0; i < LENGTH; i++) found.places.push_back(step.count()), found.tokens.push_back(token(row, i + 1)), step.add(row, i);
    gpt2d_use_threads(model, THREADS);
    found.of(model, step, members);
    for (size_t i = 0; i < found.places.size(); i++) found.same(i, told[i / LENGTH], i % LENGTH);
    gpt2d_free(model);
}

}  // namespace

int main() {
    for (const std::string &set : instruction_sets()) {
        steps(32, 32, set);
        for (int bits : {8, 4})
            for (int cache_bits : {8, 16}) steps(bits, cache_bits, set);
    }
    std::puts("ok");
    return 0;
}
