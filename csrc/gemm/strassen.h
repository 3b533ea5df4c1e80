// Products with a packed weight in seven eighths of the multiply-adds: Strassen's algorithm, for float32.
#pragma once

#include <cstdint>

#include "gemm/matrix.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

// Floats of workspace that a product of `pairs` pairs of rows needs.
std::int64_t strassen_workspace(std::int64_t pairs);

// out = a panels, then ReLU if `relu`. Rows 2 i and 2 i + 1 are a pair, as are two panels that lie `panel_pairs` panels
// apart. Requires: an even depth.
void multiply_strassen(InstructionSet instruction_set, Matrix<float> a, std::int64_t pairs, const float* panels,
                       std::int64_t depth, std::int64_t panel_pairs, bool relu, float* workspace,
                       MutableMatrix<float> out);

}  // namespace bcnet_fast
