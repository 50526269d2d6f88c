// A block's inputs for sets that multiply bytes: as they lie.
#pragma once
#include <cstdint>

namespace gpt2d {
namespace {

template <int BITS>
using Inputs = const int8_t *;
template <int BITS>
inline Inputs<BITS> inputs_of(const int8_t *q) {
    return q;
}

}  // namespace
}  // namespace gpt2d
