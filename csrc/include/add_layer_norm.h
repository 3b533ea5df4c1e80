// LayerNorm(x + residual) over rows, without scale and shift, and its gradient. The semantics are those of
// bcnet_fast.ops.add_layer_norm.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

// All arrays are [rows, columns], contiguous, columns >= 1, but rstd [rows]: 1 / sqrt(variance + eps) of each row. T is
// float or double, and all arithmetic is done in T, in an order of its own: the result has the same bits for every
// instruction set and number of threads. Each row is read from memory once. out may not overlap the inputs.
template <typename T>
void add_layer_norm(const T* x, const T* residual, std::int64_t rows, std::int64_t columns, double eps,
                    InstructionSet instruction_set, int threads, T* out, T* rstd);

// The gradient of both inputs, from that of out, and from out and rstd themselves.
template <typename T>
void add_layer_norm_backward(const T* grad, const T* out, const T* rstd, std::int64_t rows, std::int64_t columns,
                             InstructionSet instruction_set, int threads, T* grad_input);

}  // namespace bcnet_fast
