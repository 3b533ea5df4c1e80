// LayerNorm(x + residual) over rows, without scale and shift, and its gradient (bcnet_fast.ops.add_layer_norm).
//
// All arrays are [rows, columns], contiguous, with columns >= 1, except rstd [rows]. T is float or double; all
// arithmetic is done in T, in a fixed order: the result has the same bits for every instruction set and number of
// threads.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// rstd: gets 1 / sqrt(variance + eps) of each row. Reads each row from memory once. Requires: out overlaps no input.
template <typename T>
void add_layer_norm(const T* x, const T* residual, std::int64_t rows, std::int64_t columns, double eps,
                    InstructionSet instruction_set, int threads, T* out, T* rstd);

// grad_input = the gradient of both inputs, from that of out, and from out and rstd themselves.
template <typename T>
void add_layer_norm_backward(const T* grad, const T* out, const T* rstd, std::int64_t rows, std::int64_t columns,
                             InstructionSet instruction_set, int threads, T* grad_input);

}  // namespace bcnet_fast
