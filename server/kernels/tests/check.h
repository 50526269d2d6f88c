// What the kernels' tests have in common.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gpt2d_kernels.h"

#define CHECK(condition) \
    if (!(condition)) std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition), std::exit(1)

inline std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
    std::string names = gpt2d_instruction_sets();
    for (size_t at = 0, end; at < names.size(); at = end + 1) {
        end = std::min(names.find(',', at), names.size());
        found.push_back(names.substr(at, end - at));
    }
    return found;
}

// Any floats and any bytes will do: halves and floats whose exponents are small.
inline void fill(gpt2d_model *model, int bits) {
    size_t bytes;
    auto *data = static_cast<unsigned char *>(gpt2d_weights(model, &bytes));
    std::mt19937 random(7);
    if (bits == 32) {
        for (size_t i = 0; i < bytes / 4; i++) {
            float x = float(random() % 2001) / 1e4f - 0.1f;
            std::memcpy(data + 4 * i, &x, 4);
        }
    } else {
        for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(random() % 48);
    }
}
