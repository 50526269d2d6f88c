// Memory runs out at each allocation in turn, of every call: the call says so, and the same call then works as if nothing had been.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

#include "check.h"

namespace {

std::atomic<int> allocations_left{-1};  // negative: no limit

void count() {
    if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc{};
}

void *got(void *memory) {
    if (!memory) throw std::bad_alloc{};
    return memory;
}

}  // namespace

// The library's allocations come here, too.
void *operator new(size_t bytes) { return count(), got(std::malloc(bytes)); }
void *operator new(size_t bytes, std::align_val_t to) {
    size_t n = size_t(to);
    return count(), got(std::aligned_alloc(n, (bytes + n - 1) / n * n));
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, size_t) noexcept { std::free(memory); }
void operator delete(void *memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void *memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

constexpr int CONTEXT = 50, VOCABULARY = 77, LAYERS = 2, WIDTH = 60;

// Returns how often the call failed before it got all that it needs.
int until_it_works(const std::function<int()> &call) {
    for (int n = 0;; n++) {
        allocations_left = n;
        int code = call();
        allocations_left = -1;
        if (code == 0) return n;
        CHECK(code == GPT2D_NO_MEMORY && n < 200);
    }
}

gpt2d_model *make(int bits, int cache_bits, int threads, bool short_of_memory) {
    gpt2d_shape shape = {LAYERS, 3, WIDTH, 100, CONTEXT, VOCABULARY, bits, bits == 32 ? 32 : 8, 1, GPT2D_GELU_NEW, 1, 0, 1e-5f, cache_bits};
    gpt2d_model *model = nullptr;
    auto call = [&] {
        model = gpt2d_new(&shape, 2, threads, nullptr);
        return model ? 0 : int(GPT2D_NO_MEMORY);
    };
    int failures = short_of_memory ? until_it_works(call) : call();
    CHECK(short_of_memory ? failures > threads : failures == 0);
    size_t bytes;
    auto *data = static_cast<unsigned char *>(gpt2d_weights(model, &bytes));
    for (size_t i = 0; i < bytes; i += 4) {
        float x = float(i * 7919 % 2001) / 1e4f - 0.1f;
        if (bits == 32) std::memcpy(data + i, &x, 4);
        else data[i] = data[i + 1] = data[i + 2] = data[i + 3] = (unsigned char)(i * 31 % 48);  // as halves: small numbers
    }
    return model;
}

// The logits after each of the first `count` tokens of a text.
std::vector<float> run(gpt2d_model *model, int count, bool short_of_memory) {
    std::vector<int32_t> ids, rows(size_t(count), 0), places;
    for (int i = 0; i < count; i++) ids.push_back(i * 31 % VOCABULARY), places.push_back(i);
    std::vector<float> logits(size_t(count) * VOCABULARY);
    auto call = [&] {
        return gpt2d_forward(model, count, ids.data(), rows.data(), places.data(), count, places.data(), logits.data(), nullptr, nullptr);
    };
    int failures = short_of_memory ? until_it_works(call) : call();
    CHECK(short_of_memory ? failures > 0 : failures == 0);
    return logits;
}

void a_model(int bits, int cache_bits, int threads) {
    gpt2d_model *spared = make(bits, cache_bits, threads, false), *model = make(bits, cache_bits, threads, true);
    for (int count : {1, 9, 40}) CHECK(run(model, count, true) == run(spared, count, false));
    gpt2d_free(model);

    // A long call for which there is no memory leaves too little for a middling one, which has to find that out.
    model = make(bits, cache_bits, threads, false);
    run(model, 2, false);
    std::vector<int32_t> ids(40, 1), rows(40, 0), places;
    for (int i = 0; i < 40; i++) places.push_back(i);
    float logits[VOCABULARY];
    for (int n = 0; n < 4; n++) {
        allocations_left = n;
        CHECK(gpt2d_forward(model, 40, ids.data(), rows.data(), places.data(), 1, places.data(), logits, nullptr, nullptr) == GPT2D_NO_MEMORY);
        allocations_left = -1;
    }
    CHECK(run(model, 30, false) == run(spared, 30, false));

    std::vector<float> keys(size_t(LAYERS * 20 * WIDTH)), values(keys.size());
    until_it_works([&] { return gpt2d_export(model, 0, 20, keys.data(), values.data()); });
    until_it_works([&] { return gpt2d_restore(model, 1, 20, keys.data(), values.data()); });
    until_it_works([&] { return gpt2d_move(model, 1, 0, 0, 20); });
    gpt2d_free(model);
    gpt2d_free(spared);
}

void sampling() {
    std::vector<float> logits;
    for (int i = 0; i < 2 * VOCABULARY; i++) logits.push_back(float(i * 7919 % 1000) / 100);
    gpt2d_choice choice{0.5, 0.9, 0.9, 0.7f, 0.05f, 50, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, nullptr, 1.f, 0.f, 0.f};
    const gpt2d_choice *choices[] = {&choice, &choice};
    const int32_t rows[] = {0, 1};
    int32_t tokens[] = {-2, -2}, again[] = {-2, -2};
    gpt2d_model *model = make(8, 8, 2, false);
    auto alone = [&](int32_t *to) { return gpt2d_sample(nullptr, 2, rows, logits.data(), VOCABULARY, choices, to); };
    auto together = [&](int32_t *to) { return gpt2d_choose(model, 2, rows, logits.data(), choices, to); };
    CHECK(until_it_works([&] { return alone(tokens); }) > 0);
    CHECK(until_it_works([&] { return together(again); }) > 0);
    for (int i = 0; i < 2; i++) CHECK(tokens[i] >= 0 && tokens[i] == again[i]);
    gpt2d_free(model);
}

}  // namespace

int main() {
    for (int threads : {1, 2, 4}) {
        a_model(32, 32, threads);
        for (int bits : {8, 4})
            for (int cache_bits : {16, 8}) a_model(bits, cache_bits, threads);
    }
    sampling();
    std::puts("ok");
    return 0;
}
