// What the processor offers and the operating system lets a program use.
#pragma once

namespace gpt2d {

bool made_by_amd();  // of x86
bool has_avx2();     // with FMA and F16C
bool has_avxvnni();  // and AVX2, FMA, F16C
bool has_dotprod();  // of Arm
bool has_i8mm();     // of Arm, and dot products
bool has_avx512();   // F, BW, DQ, VL and VNNI

}  // namespace gpt2d
