// The kernels by themselves: every instruction set, odd sizes, several threads, all functions. All sets give the same bits, and
// what is printed is the same on every processor. For the sanitizers, and for processors that are emulated.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

const gpt2d_shape ODD = {2, 3, 60, 100, 50, 77, 0, 0, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, 0};

gpt2d_model *make(int bits, int cache_bits, int rows, int threads, const std::string &set, int activation) {
    gpt2d_shape shape = ODD;
    shape.activation = activation, shape.scaled = activation % 2, shape.scaled_by_layer = activation % 3 == 0;
    shape.bits = bits, shape.head_bits = bits == 32 ? 32 : 8, shape.cache_bits = cache_bits;
    gpt2d_model *model = gpt2d_new(&shape, rows, threads, set.c_str());
    CHECK(model);
    fill(model, bits);
    return model;
}

std::vector<float> run(gpt2d_model *model, int row, const std::vector<int32_t> &ids, int past) {
    std::vector<int32_t> rows(ids.size(), row), positions, wanted;
    for (size_t i = 0; i < ids.size(); i++) positions.push_back(past + int32_t(i)), wanted.push_back(int32_t(i));
    std::vector<float> logits(ids.size() * size_t(ODD.vocabulary));
    CHECK(gpt2d_forward(model, int(ids.size()), ids.data(), rows.data(), positions.data(), int(ids.size()), wanted.data(), logits.data(), nullptr, nullptr) == 0);
    return logits;
}

// Returns the logits, of which the same must come in other ways.
std::vector<float> a_model(int bits, int cache_bits, int threads, const std::string &set, int activation) {
    gpt2d_model *model = make(bits, cache_bits, 3, threads, set, activation);
    std::vector<int32_t> ids;
    for (int i = 0; i < 50; i++) ids.push_back(i * 31 % ODD.vocabulary);
    std::vector<float> all = run(model, 0, ids, 0);
    for (float x : all) CHECK(std::isfinite(x));
    auto part = [&](int first, int end) { return std::vector<float>(all.begin() + first * ODD.vocabulary, all.begin() + end * ODD.vocabulary); };
    CHECK(run(model, 2, {ids.begin(), ids.begin() + 17}, 0) == part(0, 17));
    for (int i = 17; i < 20; i++) CHECK(run(model, 2, {ids[size_t(i)]}, i) == part(i, i + 1));
    for (int i = 20, count = 1; count <= 5; i += count++) CHECK(run(model, 2, {ids.begin() + i, ids.begin() + i + count}, i) == part(i, i + count));
    std::vector<int32_t> rows(50, 1), places, ranks(50), greedy(50);
    std::vector<float> own(50), members(size_t(ODD.vocabulary), 1.f);
    std::vector<double> totals(50), entropies(50), masses(50);
    for (int i = 0; i < 50; i++) places.push_back(i);
    gpt2d_scores scores = {50, places.data(), ids.data(), members.data(), own.data(), totals.data(), entropies.data(), masses.data(), ranks.data(), greedy.data()};
    CHECK(gpt2d_score(model, 50, ids.data(), rows.data(), places.data(), 0, nullptr, nullptr, &scores) == 0);
    for (int i = 0; i < 50; i++) {
        const float *y = &all[size_t(i * ODD.vocabulary)];
        CHECK(own[size_t(i)] == y[ids[size_t(i)]] && greedy[size_t(i)] == std::max_element(y, y + ODD.vocabulary) - y);
        CHECK(ranks[size_t(i)] == 1 + std::count_if(y, y + ODD.vocabulary, [&](float x) { return x > own[size_t(i)]; }));
        CHECK(std::fabs(masses[size_t(i)]) < 1e-6 && entropies[size_t(i)] >= 0 && totals[size_t(i)] >= double(own[size_t(i)]));
    }
    CHECK(gpt2d_move(model, 2, 1, 0, 20) == 0);
    std::vector<float> keys(size_t(ODD.layers * 20 * ODD.width)), values(keys.size());
    CHECK(gpt2d_export(model, 1, 20, keys.data(), values.data()) == 0);
    run(model, 1, {ids.begin() + 9, ids.begin() + 40}, 0);
    CHECK(gpt2d_restore(model, 1, 20, keys.data(), values.data()) == 0);
    CHECK(run(model, 1, {ids.begin() + 20, ids.end()}, 20) == part(20, 50));
    int32_t id = ODD.vocabulary, zero = 0;
    float none[77];
    CHECK(gpt2d_forward(model, 1, &id, &zero, &zero, 1, &zero, none, nullptr, nullptr) == GPT2D_BAD_ARGUMENT);
    gpt2d_free(model);
    return all;
}

// Few rows fetch their weights ahead or leave that to the processor, whichever suits it.
void both_ways_of_fetching(const std::string &set) {
    for (int bits : {8, 4}) CHECK(a_model(bits, 16, 2, set + ":ahead", 0) == a_model(bits, 16, 2, set + ":wait", 0));
    gpt2d_shape shape = {1, 1, 4, 4, 4, 4, 32, 32, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, 32};
    CHECK(!gpt2d_new(&shape, 1, 1, (set + ":other").c_str()));
}

// Alone and by a model's threads, with everything that a choice can ask for.
std::vector<int32_t> sampling(const std::string &set) {
    std::vector<int32_t> chosen;
    for (int n : {1, 5, 64, 77, 1000}) {
        std::mt19937 random(5);
        std::vector<float> logits;
        for (int i = 0; i < 3 * n; i++) logits.push_back(float(random() % 1000) / 100);
        gpt2d_shape shape = {1, 1, 4, 4, 4, n, 32, 32, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, 32};
        gpt2d_model *model = gpt2d_new(&shape, 1, 2, set.c_str());
        CHECK(model);
        const int32_t rows[] = {0, 1, 2}, seen[] = {0, n - 1}, counts[] = {0, 3};
        const float biases[] = {0.5f, -1.f};
        for (int k : {0, 1, 3, 50, 2000})
            for (double p : {1.0, 0.9, 0.01})
                for (double typical : {1.0, 0.7, 0.01})
                    for (double u : {0.0, 0.5, 0.999999}) {
                        gpt2d_choice choice{u, p, typical, 0.7f, 0.05f, k, 2, n > 2, n > 1 ? 2 : 1, seen, biases, seen, seen, counts, 1.2f, 0.1f, 0.3f};
                        const gpt2d_choice *choices[] = {&choice, &choice, &choice};
                        int32_t tokens[] = {-2, -2, -2}, again[] = {-2, -2, -2};
                        std::vector<float> changed = logits;
                        CHECK(gpt2d_sample(set.c_str(), 3, rows, changed.data(), n, choices, tokens) == 0);
                        changed = logits;
                        CHECK(gpt2d_choose(model, 3, rows, changed.data(), choices, again) == 0);
                        for (int i = 0; i < 3; i++) CHECK(tokens[i] >= 0 && tokens[i] < n && tokens[i] == again[i]);
                        chosen.insert(chosen.end(), tokens, tokens + 3);
                    }
        gpt2d_free(model);
    }
    return chosen;
}

// y = x[0] w[0], then fma by fma: what is tried needs a single rounding, numbers below the normal ones, and ones too large.
std::vector<float> roundings(const std::string &set) {
    const float tie = 1 + 1.f / 4096, tiny = 1e-9f, few[] = {tie, -tie, tiny, -tiny, 1e-30f, -1e-20f, 3e-38f, 1e19f, 0.f, -0.f, 1.f, 3.f, 0.1f, 1e-44f};
    constexpr int INPUTS = 32, OUTPUTS = 64, ROWS = 40, COUNT = sizeof few / sizeof *few;
    std::mt19937 random(3);
    std::vector<float> w, x, y(ROWS * OUTPUTS);
    for (int i = 0; i < INPUTS * OUTPUTS; i++) w.push_back(few[random() % COUNT]);
    for (int i = 0; i < ROWS * INPUTS; i++) x.push_back(i % INPUTS < 1 + i / INPUTS % 4 ? few[random() % COUNT] : 0.f);
    w[0] = x[0] = tiny, w[32] = x[1] = tie, x[2] = x[3] = 0;
    CHECK(gpt2d_matmul(set.c_str(), 32, OUTPUTS, INPUTS, w.data(), ROWS, GPT2D_NO_ACTIVATION, x.data(), y.data()) == 0);
    CHECK(y[0] == std::nextafterf(tie * tie, 2));  // tie * tie alone goes to the even one below
    return y;
}

// A caller's way of rounding, towards zero and without numbers below the normal ones, changes nothing and is kept.
#if defined(__x86_64__)
void set_rounding(bool other) { _mm_setcsr(other ? 0xffc0 : 0x1f80); }
bool other_rounding() { return (_mm_getcsr() & ~0x3fu) == 0xffc0; }
#elif defined(__aarch64__)
void set_rounding(bool other) { asm volatile("msr fpcr, %0" : : "r"(other ? uint64_t(7) << 22 : uint64_t(0))); }
bool other_rounding() {
    uint64_t now;
    asm volatile("mrs %0, fpcr" : "=r"(now));
    return now == uint64_t(7) << 22;
}
#else
void set_rounding(bool) {}
bool other_rounding() { return true; }
#endif

void a_caller_with_other_rounding(const std::string &set) {
    for (int bits : {32, 8}) {
        gpt2d_model *model = make(bits, bits == 32 ? 32 : 16, 1, 2, set, 0);
        const std::vector<int32_t> ids = {5, 9, 2, 8};
        std::vector<float> expected = run(model, 0, ids, 0);
        set_rounding(true);
        std::vector<float> found = run(model, 0, ids, 0);
        bool kept = other_rounding();
        set_rounding(false);
        CHECK(kept && found == expected);
        gpt2d_free(model);
    }
}

// FNV-1a, and only of what is a number: what is none may differ in its other bits.
struct Digest {
    uint64_t value = 14695981039346656037u;
    template <class T>
    void add(const std::vector<T> &data) {
        for (T x : data) {
            unsigned char bytes[sizeof(T)] = {};
            if (x == x) std::memcpy(bytes, &x, sizeof x);
            for (unsigned char byte : bytes) value = (value ^ byte) * 1099511628211u;
        }
    }
};

// A layer alone, and matrices calibrated with what it saw: the same with one thread and three.
std::vector<float> calibration(const std::string &set) {
    constexpr int count = 20, width = 64, outputs = 70;
    gpt2d_model *model = make(8, 16, 1, 2, set, GPT2D_GELU_NEW);
    std::mt19937 random(3);
    auto numbers = [&](size_t n) {
        std::vector<float> made(n);
        for (float &x : made) x = float(random() % 2001) / 1000 - 1;
        return made;
    };
    std::vector<float> x = numbers(count * width);
    std::vector<int32_t> rows(count, 0), positions;
    for (int i = 0; i < count; i++) positions.push_back(i);
    std::vector<int8_t> q[4];
    std::vector<float> scales[4];
    int8_t *to[4];
    float *to_scales[4];
    for (int i = 0; i < 4; i++) {
        size_t inputs = i < 3 ? width : 128;
        q[i].resize(count * inputs), scales[i].resize(count * inputs / 32);
        to[i] = q[i].data(), to_scales[i] = scales[i].data();
    }
    CHECK(gpt2d_observe(model, 2, count, rows.data(), positions.data(), x.data(), to, to_scales) == GPT2D_BAD_ARGUMENT);
    CHECK(gpt2d_observe(model, 1, count, rows.data(), positions.data(), x.data(), to, to_scales) == 0);
    for (float value : x) CHECK(std::isfinite(value));
    gpt2d_free(model);
    for (int inputs : {64, 128, 160}) {
        std::vector<float> weights = numbers(size_t(outputs) * inputs), seen = numbers(size_t(300) * inputs);
        std::vector<uint8_t> values[2];
        std::vector<uint16_t> steps[2];
        for (int i : {0, 1}) {
            std::vector<double> products(size_t(inputs) * inputs);
            for (int t = 0; t < 300; t++)
                for (int a = 0; a < inputs; a++)
                    for (int b = 0; b < inputs; b++) products[size_t(a) * inputs + b] += std::floor(seen[size_t(t) * inputs + a] * 100) * std::floor(seen[size_t(t) * inputs + b] * 100);
            std::vector<float> copy = weights;
            values[i].resize(weights.size()), steps[i].resize(weights.size() / 32);
            CHECK(gpt2d_calibrate(outputs, inputs, products.data(), copy.data(), 1 + 2 * i, values[i].data(), steps[i].data()) == 0);
        }
        CHECK(values[0] == values[1] && steps[0] == steps[1]);
    }
    return x;
}

}  // namespace

int main() {
    std::vector<uint64_t> digests;
    for (const std::string &set : instruction_sets()) {
        Digest digest;
        const int kinds[][2] = {{32, 32}, {8, 16}, {4, 16}, {8, 8}, {4, 8}};  // bits of weights, of keys and values
        for (auto [bits, cache_bits] : kinds)
            for (int activation = 0; activation < GPT2D_ACTIVATIONS; activation++)
                digest.add(a_model(bits, cache_bits, 1 + activation % 3, set, activation));
        digest.add(sampling(set));
        digest.add(roundings(set));
        digest.add(calibration(set));
        a_caller_with_other_rounding(set);
        both_ways_of_fetching(set);
        std::fprintf(stderr, "%s: %016llx\n", set.c_str(), (unsigned long long)digest.value);
        digests.push_back(digest.value);
    }
    for (uint64_t digest : digests) CHECK(digest == digests[0]);
    std::printf("%016llx\n", (unsigned long long)digests[0]);
    return 0;
}
