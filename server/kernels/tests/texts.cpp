// Goes on with texts as a worker does, for processors on which Python would be too slow: texts MODEL SET, and on stdin a shape, then
// for each text the prompt's tokens, how its tokens are chosen and the random numbers for it. Prints a line of tokens for each.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

#include "check.h"

namespace {

template <class T>
std::vector<T> numbers() {
    size_t count = 0;
    CHECK(std::cin >> count);
    std::vector<T> found(count);
    for (T &number : found) CHECK(std::cin >> number);
    return found;
}

gpt2d_shape shape() {
    auto n = numbers<int32_t>();
    CHECK(n.size() == 13);
    float epsilon = 0;
    CHECK(std::cin >> epsilon);
    return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], n[11], epsilon, n[12]};
}

int32_t next(gpt2d_model *model, const char *set, const std::vector<int32_t> &ids, int past, const gpt2d_choice &choice, int vocabulary) {
    std::vector<int32_t> rows(ids.size(), 0), positions;
    for (size_t i = 0; i < ids.size(); i++) positions.push_back(past + int32_t(i));
    std::vector<float> logits(size_t(vocabulary), 0.f);
    const int32_t last = int32_t(ids.size()) - 1, first = 0;
    CHECK(gpt2d_forward(model, last + 1, ids.data(), rows.data(), positions.data(), 1, &last, logits.data(), nullptr, nullptr) == 0);
    const gpt2d_choice *choices[] = {&choice};
    int32_t token = -1;
    CHECK(gpt2d_sample(set, 1, &first, logits.data(), vocabulary, choices, &token) == 0 && token >= 0);
    return token;
}

}  // namespace

int main(int count, char **arguments) {
    CHECK(count == 3);
    const char *set = arguments[2];
    const gpt2d_shape of = shape();
    gpt2d_model *model = gpt2d_new(&of, 1, 2, set);
    CHECK(model);
    size_t bytes = 0;
    auto *weights = static_cast<char *>(gpt2d_weights(model, &bytes));
    std::ifstream file(arguments[1], std::ios::binary);
    CHECK(file.read(weights, std::streamsize(bytes)) && file.peek() == EOF);
    size_t texts = 0;
    CHECK(std::cin >> texts);
    for (; texts; texts--) {
        auto ids = numbers<int32_t>();
        gpt2d_choice choice = {};
        CHECK(std::cin >> choice.temperature >> choice.top_k >> choice.top_p >> choice.min_p >> choice.typical_p);
        choice.repetition = 1;
        int past = 0;
        for (double uniform : numbers<double>()) {
            choice.uniform = uniform;
            int32_t token = next(model, set, ids, past, choice, of.vocabulary);
            std::printf("%d ", token);
            past += int(ids.size()), ids = {token};
        }
        std::printf("\n");
    }
    gpt2d_free(model);
    return 0;
}
