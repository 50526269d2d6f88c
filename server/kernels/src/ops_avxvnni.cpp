#include "simd_avxvnni.h"
// The lanes come first.
#include "cpu.h"
#include "ops_body.h"
#include "attention_body.h"
#include "sample_body.h"
#include "score_body.h"
#include "ops_table.h"

const gpt2d::BothOps gpt2d::avxvnni_ops = {table<false>("avxvnni", has_avxvnni), table<true>("avxvnni", has_avxvnni)};
