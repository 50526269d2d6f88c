#include "simd_i8mm.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"

const gpt2d::Ops gpt2d::i8mm_ops = {"i8mm", has_i8mm, matmul, matmul_strips, largest_of_strips, bound, norm, quantise, embed, attend, find_tops, sample, survey, join, copy_out, copy_in};
