// Products of rows, rounded to 8 bits, with an int8 weight.
#pragma once

#include <cstdint>
#include <limits>

#include "gemm/matrix.h"
#include "gemm/packed_weight.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

// Inputs of an int8 weight, so that sums fit in 32 bits.
constexpr std::int64_t kMaxInt8Inputs = std::numeric_limits<std::int32_t>::max() / (255 * 127);

// Whether the processor multiplies and adds four bytes in one instruction (AVX-512 VNNI), and the compiler can name it.
// Without it the products are plain code, slower than those of float32.
bool has_int8_instruction();

// Bytes of workspace that `multiply_int8` needs for `rows` rows.
std::int64_t int8_workspace(std::int64_t rows, const PackedWeight& weight);

// out = a weight[group]^T, then ReLU if `relu`. Rounds each row of a to 8 bits with a scale and a zero point of its
// own; sums are exact. A row that is not finite becomes NaN. Requires: has_int8_instruction() for the set avx512.
void multiply_int8(InstructionSet instruction_set, Matrix<float> a, std::int64_t rows, const PackedWeight& weight,
                   std::int64_t group, bool relu, char* workspace, MutableMatrix<float> out);

}  // namespace bcnet_fast
