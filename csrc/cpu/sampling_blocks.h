// Shared by the gathering of anchor sampling and anchor projection.
#pragma once

#include <cstdint>

#include "include/anchor_sampling.h"

namespace bcnet_fast {

// Rows of packed columns that the groups of a plan read. An incomplete group is computed like a complete one, and so
// reaches beyond the last row: what it reads there is not used, and what it adds there is zero.
template <typename T>
std::int64_t packed_rows(const GroupPlan<T>& plan) {
  return plan.rows + (kGroup - 1) * plan.widest_step;
}

// A block of columns, from packed rows to the results of all anchors.
template <typename T>
struct GatheredColumns {
  const T* packed;    // [packed_rows, stride]
  const T* bias;      // of all columns of the block, existing or not
  const T* residual;  // added to each anchor's results, or null
  std::int64_t residual_stride;
  bool relu;
  int used;  // columns that exist
  T* out;
  std::int64_t out_stride;
};

}  // namespace bcnet_fast
