#include "simd_avx512.h"
// The lanes come first.
#include "ops_body.h"
#include "sample_body.h"

const gpt2d::Ops gpt2d::avx512_ops = {"avx512", usable_here, matmul, norm, quantise, embed, attend, sample, copy_out, copy_in};
