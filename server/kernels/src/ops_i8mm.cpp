#include "simd_i8mm.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::i8mm_ops = {table<false>("i8mm", has_i8mm), table<true>("i8mm", has_i8mm)};
