// GPTQ (Frantar et al. 2022): 4-bit values that make good together what each of them loses alone.
#pragma once
#include <cstdint>

#include "team.h"

namespace gpt2d {

// A matrix of `outputs` by `inputs`, a multiple of 32, whose inputs have the products `hessian`, the sum of x x^T over them.
// Makes values 0 to 15 (zero is 8), [outputs, inputs], and fp16 scales, [outputs, inputs / 32]. Uses up hessian and weights.
// False where the hessian is that of no inputs. Throws std::bad_alloc.
bool calibrate(int outputs, int inputs, double *hessian, float *weights, uint8_t *values, uint16_t *scales, Team &team);

}  // namespace gpt2d
