#include "simd_plain.h"
// The lanes come first.
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::plain_ops = {table<false>("plain", [] { return true; }), table<true>("plain", [] { return true; })};
