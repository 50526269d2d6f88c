// The table of what the bodies before this one define.
#include "ops.h"

namespace gpt2d {
namespace {

template <bool AHEAD>
constexpr Ops table(const char *name, bool (*usable)()) {
    return {name,  usable, matmul<AHEAD>, matmul_strips, largest_of_strips, bound, norm, quantise, embed, attend, find_tops, sample,
            survey, join, copy_out, copy_in};
}

}  // namespace
}  // namespace gpt2d
