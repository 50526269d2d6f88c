#include "simd_dotprod.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::dotprod_ops = {table<false>("dotprod", has_dotprod), table<true>("dotprod", has_dotprod)};
