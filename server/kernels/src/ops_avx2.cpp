#include "simd_avx2.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::avx2_ops = {table<false>("avx2", has_avx2), table<true>("avx2", has_avx2)};
