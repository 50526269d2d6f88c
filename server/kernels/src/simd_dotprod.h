// Sixteen lanes on NEON with sdot: Armv8.2 and later.
#pragma once
#include "simd_sdot.h"

namespace gpt2d {
namespace {

// Of 32 registers 20 to 24 are sums; with six rows gcc would put some of 24 on the stack.
constexpr int BLOCK_ROWS = 5;
constexpr int together(int rows) { return rows > 3 ? 4 : 8; }
constexpr bool in_pairs(int) { return false; }

}  // namespace
}  // namespace gpt2d
