// What makes no sense is refused, and nothing that a damaged file or a wrong number brings ends the process: shapes of more memory
// than can be counted, each argument of each call beside its limits, weights of any bytes, and settings of any numbers.
#include <climits>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>

#include "check.h"

namespace {

constexpr int ROWS = 3, CONTEXT = 20, VOCABULARY = 200, WIDTH = 60, LAYERS = 2;
constexpr int INPUTS = 64, OUTPUTS = 3;  // of what is calibrated
constexpr int WRONG[] = {INT_MIN, -1, INT_MAX};
constexpr gpt2d_shape SHAPE = {LAYERS, 3, WIDTH, 100, CONTEXT, VOCABULARY, 8, 8, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, 8};

gpt2d_shape shape(int bits, int cache_bits) {
    gpt2d_shape made = SHAPE;
    made.bits = bits, made.head_bits = bits == 32 ? 32 : 8, made.cache_bits = cache_bits;
    return made;
}

gpt2d_model *make(const gpt2d_shape &of, const char *set) {
    gpt2d_model *model = gpt2d_new(&of, ROWS, 2, set);
    CHECK(model);
    size_t bytes;
    void *weights = gpt2d_weights(model, &bytes);
    std::memset(weights, 0, bytes);
    return model;
}

void shapes() {
    auto refused = [](const std::function<void(gpt2d_shape &)> &change, int rows = 1, int threads = 1) {
        gpt2d_shape of = SHAPE;
        change(of);
        gpt2d_model *model = gpt2d_new(&of, rows, threads, nullptr);
        CHECK(!model);
    };
    for (int32_t gpt2d_shape::*number : {&gpt2d_shape::layers, &gpt2d_shape::heads, &gpt2d_shape::width, &gpt2d_shape::inner, &gpt2d_shape::context, &gpt2d_shape::vocabulary})
        for (int wrong : {INT_MIN, -1, 0, (1 << 20) + 1, INT_MAX}) refused([&](gpt2d_shape &s) { s.*number = wrong; });
    for (int wrong : {INT_MIN, -1, 0, 5, 64, INT_MAX})
        for (int32_t gpt2d_shape::*number : {&gpt2d_shape::bits, &gpt2d_shape::head_bits, &gpt2d_shape::cache_bits}) refused([&](gpt2d_shape &s) { s.*number = wrong; });
    for (int wrong : {INT_MIN, -1, int(GPT2D_ACTIVATIONS), INT_MAX}) refused([&](gpt2d_shape &s) { s.activation = wrong; });
    for (float wrong : {-1.f, std::numeric_limits<float>::quiet_NaN()}) refused([&](gpt2d_shape &s) { s.epsilon = wrong; });
    refused([](gpt2d_shape &s) { s.heads = 7; });
    refused([](gpt2d_shape &s) { s.heads = 1, s.width = GPT2D_WIDEST_BYTES + 1; });
    refused([](gpt2d_shape &s) { s.context = GPT2D_LONGEST_BYTES + 1; });
    for (int wrong : {INT_MIN, -1, 0}) refused([](gpt2d_shape &) {}, wrong), refused([](gpt2d_shape &) {}, 1, wrong);
    refused([](gpt2d_shape &) {}, 1, 1025);
    // Keys and values of 2^64 bytes, and weights of 2^65.
    refused([](gpt2d_shape &s) { s = {1 << 14, 1, 32, 32, 1 << 20, 32, 32, 32, 1, 0, 1, 0, 1e-5f, 32}; }, 1 << 22);
    refused([](gpt2d_shape &s) { s = {1 << 20, 1 << 20, 1 << 20, 1 << 20, 1, 32, 32, 32, 1, 0, 1, 0, 1e-5f, 32}; });
    CHECK(!gpt2d_new(nullptr, 1, 1, nullptr) && !gpt2d_new(&SHAPE, 1, 1, "") && !gpt2d_new(&SHAPE, 1, 1, ":ahead"));
}

// A step of six tokens in two rows, with every kind of result. `change` makes it wrong, or leaves it.
struct Call {
    std::vector<int32_t> ids = {1, 2, 3, 4, 5, 6}, rows = {0, 0, 0, 2, 2, 2}, positions = {0, 1, 2, 0, 1, 2};
    std::vector<int32_t> wanted = {2, 5}, best = {3, 4}, places = {1, 4}, tokens = {7, 8};
    int count = 6, wanted_count = 2, scored = 2;

    int forward(gpt2d_model *model) {
        std::vector<float> logits(2 * VOCABULARY), hidden(6 * WIDTH);
        return gpt2d_forward(model, count, ids.data(), rows.data(), positions.data(), wanted_count, wanted.data(), logits.data(), hidden.data(), best.data());
    }
    int score(gpt2d_model *model) {
        std::vector<float> logits(2 * VOCABULARY), own(2), members(VOCABULARY, 1);
        std::vector<double> totals(2), entropies(2), masses(2);
        std::vector<int32_t> ranks(2), greedy(2);
        gpt2d_scores scores = {scored, places.data(), tokens.data(), members.data(), own.data(), totals.data(), entropies.data(), masses.data(), ranks.data(), greedy.data()};
        return gpt2d_score(model, count, ids.data(), rows.data(), positions.data(), wanted_count, wanted.data(), logits.data(), &scores);
    }
    int observe(gpt2d_model *model, int layer) {
        std::vector<float> x(6 * 64), scales[4];
        std::vector<int8_t> q[4];
        int8_t *to[4];
        float *to_scales[4];
        for (int i = 0; i < 4; i++) {
            size_t inputs = i < 3 ? 64 : 128;
            q[i].resize(6 * inputs), scales[i].resize(6 * inputs / 32), to[i] = q[i].data(), to_scales[i] = scales[i].data();
        }
        return gpt2d_observe(model, layer, count, rows.data(), positions.data(), x.data(), to, to_scales);
    }
};

// Both calls take the step as it is, and refuse it with each wrong number in each place.
void steps(gpt2d_model *model) {
    CHECK(Call().forward(model) == 0 && Call().score(model) == 0 && Call().observe(model, LAYERS - 1) == 0);
    auto refused = [&](const std::function<void(Call &)> &change, bool forward = true, bool score = true) {
        Call call;
        change(call);
        CHECK(!forward || call.forward(model) == GPT2D_BAD_ARGUMENT);
        CHECK(!score || call.score(model) == GPT2D_BAD_ARGUMENT);
    };
    auto in = [](std::vector<int32_t> Call::*list, size_t at, int wrong) { return [=](Call &call) { (call.*list)[at] = wrong; }; };
    for (size_t at = 0; at < 6; at++)
        for (int wrong : WRONG) {
            for (auto list : {&Call::ids, &Call::rows, &Call::positions}) refused(in(list, at, wrong));
            refused(in(&Call::ids, at, VOCABULARY)), refused(in(&Call::rows, at, ROWS)), refused(in(&Call::positions, at, CONTEXT));
        }
    for (size_t at = 0; at < 2; at++)
        for (int wrong : {INT_MIN, -1, 6, INT_MAX}) {
            refused(in(&Call::wanted, at, wrong));
            refused(in(&Call::places, at, wrong), false);
            if (wrong < 0) refused(in(&Call::tokens, at, wrong), false), refused(in(&Call::best, at, wrong), true, false);
        }
    refused(in(&Call::tokens, 1, VOCABULARY), false);
    refused(in(&Call::rows, 5, 0)), refused(in(&Call::rows, 1, 1)), refused(in(&Call::positions, 2, 3)), refused(in(&Call::positions, 4, 0));
    for (int wrong : {INT_MIN, -1}) {
        refused([&](Call &call) { call.count = wrong; }), refused([&](Call &call) { call.wanted_count = wrong; });
        refused([&](Call &call) { call.scored = wrong; }, false);
    }
    refused([](Call &call) { call.count = 0; });
    for (int wrong : {INT_MIN, -1, LAYERS, INT_MAX}) CHECK(Call().observe(model, wrong) == GPT2D_BAD_ARGUMENT);
    CHECK(gpt2d_score(model, 1, Call().ids.data(), Call().rows.data(), Call().positions.data(), 0, nullptr, nullptr, nullptr) == GPT2D_BAD_ARGUMENT);
}

void rows_and_threads(gpt2d_model *model) {
    char none[1];
    for (int wrong : {INT_MIN, -1, ROWS, INT_MAX}) {
        CHECK(gpt2d_export(model, wrong, 0, none, none) == GPT2D_BAD_ARGUMENT && gpt2d_restore(model, wrong, 0, none, none) == GPT2D_BAD_ARGUMENT);
        CHECK(gpt2d_move(model, wrong, 0, 0, 1) == GPT2D_BAD_ARGUMENT && gpt2d_move(model, 0, wrong, 0, 1) == GPT2D_BAD_ARGUMENT);
    }
    for (int wrong : {INT_MIN, -1, CONTEXT + 1, INT_MAX}) {
        CHECK(gpt2d_export(model, 0, wrong, none, none) == GPT2D_BAD_ARGUMENT && gpt2d_restore(model, 0, wrong, none, none) == GPT2D_BAD_ARGUMENT);
        CHECK(gpt2d_move(model, 0, 1, 0, wrong) == GPT2D_BAD_ARGUMENT && gpt2d_move(model, 0, 1, wrong, CONTEXT) == GPT2D_BAD_ARGUMENT);
    }
    CHECK(gpt2d_move(model, 0, 1, 3, 2) == GPT2D_BAD_ARGUMENT && gpt2d_move(model, 0, 1, CONTEXT, CONTEXT) == 0);
    for (int wrong : {INT_MIN, -1, 0, 3, INT_MAX}) CHECK(gpt2d_use_threads(model, wrong) == GPT2D_BAD_ARGUMENT);
}

const gpt2d_choice PLAIN = {0.5, 1, 1, 1, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1, 0, 0};

void choices(gpt2d_model *model, const char *set) {
    const gpt2d_choice *all[] = {&PLAIN};
    std::vector<float> logits(VOCABULARY);
    int32_t zero = 0, token = -2;
    Call().forward(model);
    for (int wrong : {INT_MIN, -1, 2, INT_MAX}) CHECK(gpt2d_choose(model, 1, &wrong, nullptr, all, &token) == GPT2D_BAD_ARGUMENT);
    for (int wrong : {INT_MIN, -1}) {
        CHECK(gpt2d_choose(model, wrong, &zero, nullptr, all, &token) == GPT2D_BAD_ARGUMENT);
        CHECK(gpt2d_sample(set, wrong, &zero, logits.data(), VOCABULARY, all, &token) == GPT2D_BAD_ARGUMENT);
        CHECK(gpt2d_sample(set, 1, &zero, logits.data(), wrong, all, &token) == GPT2D_BAD_ARGUMENT);
    }
    CHECK(gpt2d_sample("none", 1, &zero, logits.data(), VOCABULARY, all, &token) == GPT2D_BAD_ARGUMENT);
    for (int wrong : {INT_MIN, -1, VOCABULARY, INT_MAX}) {
        gpt2d_choice choice = PLAIN;
        const gpt2d_choice *one[] = {&choice};
        const float bias = 1;
        const int32_t count = 1;
        choice.biased = choice.banned = choice.seen = &wrong, choice.biases = &bias, choice.counts = &count;
        for (int32_t gpt2d_choice::*list : {&gpt2d_choice::biased_count, &gpt2d_choice::banned_count, &gpt2d_choice::seen_count}) {
            choice.*list = 1, token = -2;
            CHECK(gpt2d_sample(set, 1, &zero, logits.data(), VOCABULARY, one, &token) == 0 && token == -1);
            choice.*list = 0;
        }
    }
    // Any settings over any logits: a token, or -1.
    constexpr float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    const float any[] = {nan, inf, -inf, -1, -0.f, 0, 1e-44f, 1e-9f, 0.3f, 0.9f, 1, 1.5f, 100, 3e38f, -3e38f};
    std::mt19937 random(11);
    auto number = [&] { return any[random() % (sizeof any / sizeof *any)]; };
    for (int turn = 0; turn < 4000; turn++) {
        bool numbers = turn % 4 != 0;
        for (float &x : logits) x = turn % 3 ? float(random() % 1000) / 50 : float(random() % 3);
        for (int i = 0; i < 5 && turn % 2; i++) logits[random() % VOCABULARY] = numbers ? -inf : number();
        gpt2d_choice choice = PLAIN;
        for (double *x : {&choice.uniform, &choice.top_p, &choice.typical_p})
            if (random() % 2) *x = double(number());
        for (float *x : {&choice.temperature, &choice.min_p})
            if (random() % 2) *x = number();
        if (random() % 2) choice.top_k = int(random() % 300) - 50;
        const int32_t seen[] = {int32_t(random() % VOCABULARY)}, times[] = {int32_t(random())};
        if (random() % 4 == 0) choice.seen_count = 1, choice.seen = seen, choice.counts = times, choice.repetition = number(), choice.presence = number();
        const gpt2d_choice *one[] = {&choice};
        CHECK(gpt2d_sample(set, 1, &zero, logits.data(), VOCABULARY, one, &token) == 0 && token >= -1 && token < VOCABULARY);
    }
}

// A file of the right size with any bytes in it: any result, and no end of the process.
void damaged_weights(int bits, int cache_bits, const char *set) {
    gpt2d_model *model = make(shape(bits, cache_bits), set);
    size_t bytes;
    auto *data = static_cast<unsigned char *>(gpt2d_weights(model, &bytes));
    std::mt19937 random(5);
    for (int turn = 0; turn < 12; turn++) {
        for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(turn < 4 ? random() : random() % 48);
        for (int i = 0; i < turn; i++) data[random() % bytes] = 255;
        for (int always : {0, 1}) {
            gpt2d_always_two_passes(model, always);
            CHECK(Call().forward(model) == 0 && Call().score(model) == 0);
            CHECK(Call().observe(model, turn % LAYERS) == (bits == 32 ? int(GPT2D_BAD_ARGUMENT) : 0));
        }
        std::vector<char> keys(size_t(LAYERS * 3 * 3 * (20 + 4) * 4)), values(keys.size());
        CHECK(gpt2d_export(model, 0, 3, keys.data(), values.data()) == 0);
        for (char &byte : keys) byte = char(random());
        CHECK(gpt2d_restore(model, 0, 3, keys.data(), keys.data()) == 0);
        Call going_on;
        for (size_t i = 0; i < 3; i++) going_on.positions[i] += 3;
        CHECK(going_on.forward(model) == 0);
    }
    gpt2d_free(model);
}

void matrices(const char *set) {
    std::vector<float> x(64), y(64), w(64 * 32);
    auto code = [&](int bits, int outputs, int inputs, int rows, int activation) {
        return gpt2d_matmul(set, bits, outputs, inputs, w.data(), rows, activation, x.data(), y.data());
    };
    CHECK(code(32, 64, 32, 1, GPT2D_NO_ACTIVATION) == 0);
    for (int wrong : {INT_MIN, -32, -1, 0, 33}) {
        CHECK(code(32, wrong, 32, 1, GPT2D_NO_ACTIVATION) == GPT2D_BAD_ARGUMENT && code(32, 64, wrong, 1, GPT2D_NO_ACTIVATION) == GPT2D_BAD_ARGUMENT);
        CHECK(wrong > 0 || code(32, 64, 32, wrong, GPT2D_NO_ACTIVATION) == GPT2D_BAD_ARGUMENT);
        CHECK(code(wrong, 64, 32, 1, GPT2D_NO_ACTIVATION) == GPT2D_BAD_ARGUMENT && (wrong == 0 || wrong == -1 || code(32, 64, 32, 1, wrong) == GPT2D_BAD_ARGUMENT));
    }
}

// Inputs without products, or with such as no inputs have, are refused; weights that are NaN or infinite give any values.
void calibration() {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
    std::vector<uint8_t> values(OUTPUTS * INPUTS);
    std::vector<uint16_t> scales(OUTPUTS * 2);
    auto code = [&](double diagonal, double other, float weight, int threads = 2, int wide = INPUTS, int high = OUTPUTS) {
        std::vector<double> products(INPUTS * INPUTS, other);
        for (size_t i = 0; i < INPUTS; i++) products[i * INPUTS + i] = diagonal;
        std::vector<float> weights(OUTPUTS * INPUTS, weight);
        return gpt2d_calibrate(high, wide, products.data(), weights.data(), threads, values.data(), scales.data());
    };
    CHECK(code(2, 1, 1) == 0);
    for (double wrong : {nan, inf, -inf, -1.0, 0.0}) CHECK(code(wrong, 1, 1) == GPT2D_BAD_ARGUMENT);
    for (double wrong : {nan, inf, 5.0}) CHECK(code(2, wrong, 1) == GPT2D_BAD_ARGUMENT);
    for (float wrong : {float(nan), float(inf), 3e38f, 1e-44f}) CHECK(code(2, 1, wrong) == 0);
    for (int wrong : {INT_MIN, -32, -1, 0}) {
        CHECK(code(2, 1, 1, wrong) == GPT2D_BAD_ARGUMENT && code(2, 1, 1, 1, wrong) == GPT2D_BAD_ARGUMENT);
        CHECK(code(2, 1, 1, 1, INPUTS, wrong) == GPT2D_BAD_ARGUMENT && code(2, 1, 1, 1, 33) == GPT2D_BAD_ARGUMENT);
    }
}

}  // namespace

int main() {
    shapes();
    calibration();
    for (const std::string &set : instruction_sets()) {
        gpt2d_model *model = make(SHAPE, set.c_str());
        steps(model);
        rows_and_threads(model);
        choices(model, set.c_str());
        gpt2d_free(model);
        matrices(set.c_str());
        damaged_weights(32, 32, set.c_str());
        for (int bits : {8, 4})
            for (int cache_bits : {8, 16}) damaged_weights(bits, cache_bits, set.c_str());
    }
    std::puts("ok");
    return 0;
}
