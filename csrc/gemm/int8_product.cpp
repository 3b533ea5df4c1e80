#include "gemm/int8_product.h"

#include <algorithm>
#include <cstdint>

#include "gemm/panels.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kInt8RowGap =
    64;  // bytes between rounded rows, which keeps a tile's rows in different cache sets

}  // namespace
}  // namespace bcnet_fast

#define BCNET_AVX512_EXTRA ",avx512vnni"
#define BCNET_KERNELS "gemm/int8_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {

bool has_int8_instruction() {
#ifdef BCNET_X86
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

std::int64_t int8_workspace(std::int64_t rows, const PackedWeight& weight) {
  constexpr std::int64_t scale_and_zero_point = sizeof(float) + sizeof(std::int32_t);
  return rows * (weight.padded_inputs() + kInt8RowGap + scale_and_zero_point);
}

void multiply_int8(InstructionSet instruction_set, Matrix<float> a, std::int64_t rows, const PackedWeight& weight,
                   std::int64_t group, bool relu, char* workspace, MutableMatrix<float> out) {
  BCNET_VERSION(instruction_set, multiply_int8_rows)(a, rows, weight, group, relu, workspace, out);
}

}  // namespace bcnet_fast
