#include "gemm/strassen.h"

#include <algorithm>
#include <type_traits>

#include "gemm/panels.h"
#include "runtime/memory.h"
#include "runtime/scratch.h"

#define BCNET_KERNELS "gemm/strassen_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {

std::int64_t strassen_workspace(std::int64_t pairs) {
  constexpr std::int64_t sums = 5;  // StoredSum in strassen_kernels.h
  return sums * pairs * scratch_stride(kDepthBlock);
}

void multiply_strassen(InstructionSet instruction_set, Matrix<float> a, std::int64_t pairs, const float* panels,
                       std::int64_t depth, std::int64_t panel_pairs, bool relu, float* workspace,
                       MutableMatrix<float> out) {
  BCNET_VERSION(instruction_set, multiply_pairs)(a, pairs, panels, depth, panel_pairs, relu, workspace, out);
}

}  // namespace bcnet_fast
