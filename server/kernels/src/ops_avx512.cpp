#include "simd_avx512.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::avx512_ops = {table<false>("avx512", has_avx512), table<true>("avx512", has_avx512)};
