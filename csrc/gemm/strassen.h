// Products with a packed weight in seven eighths of the multiply-adds: Strassen's algorithm, for float32.
#pragma once

#include <cstdint>

#include "include/layers.h"
#include "simd/simd.h"

namespace bcnet_fast {

// Elements of scratch that a product of so many pairs of rows takes.
std::int64_t strassen_scratch(std::int64_t pairs);

// out = a panels, then ReLU if asked for, of pairs of rows (2 i and 2 i + 1) and of pairs of panels, whose partners are
// `panel_pairs` apart. The depth is even.
void multiply_strassen(InstructionSet instruction_set, Matrix<float> a, std::int64_t pairs, const float* panels,
                       std::int64_t depth, std::int64_t panel_pairs, bool relu, float* scratch, float* out,
                       std::int64_t out_stride);

}  // namespace bcnet_fast
