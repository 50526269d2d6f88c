// What the kernels' tests have in common.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
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
