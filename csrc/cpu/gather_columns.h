// The gathering of a block of columns by the groups of a plan: the innermost loops of anchor projection.
#pragma once

#include <cstdint>
#include <cstring>

#include "include/anchor_sampling.h"
#include "simd/simd.h"

namespace bcnet_fast {

// A block of columns: two vectors where there are 32 registers for the sums of eight anchors, else one.
template <int bytes, typename T>
struct Columns {
  static constexpr int vectors = bytes >= 64 ? 2 : 1;
  using V = Vector<T, bytes>;
  static constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T));
  static constexpr int width = vectors * lanes;
};

// An incomplete group is worked on like a complete one, and so reaches beyond the last row: what it reads there is not
// used, and what it adds there is zero.
template <typename T>
std::int64_t packed_rows(const GroupPlan<T>& plan) {
  return plan.rows + (kGroup - 1) * plan.widest_step;
}

// A block of columns on its way from packed rows to the results of all anchors.
template <typename T>
struct GatheredColumns {
  const T* packed;  // packed_rows of them
  const T* bias;    // of all columns of the block, those that do not exist included
  const T* added;   // null, or what is added to each anchor's results
  std::int64_t added_stride;
  bool relu;
  int used;  // columns that exist
  T* out;
  std::int64_t out_stride;
};

// For the groups from `first` to `last`. Packed rows are `stride` elements apart.
template <int bytes, int stride, typename T>
BCNET_INLINE void gather_columns(const GatheredColumns<T>& columns, const GroupPlan<T>& plan, std::int64_t first,
                                 std::int64_t last) {
  using C = Columns<bytes, T>;
  using V = typename C::V;
  for (std::int64_t g = first; g < last; ++g) {
    const std::int32_t* const anchors = plan.order + g * kGroup;
    const std::int32_t* const lists = plan.offsets + g * (kGroup + 1);
    const std::int64_t step = plan.step[g] * std::int64_t{stride};
    V sums[kGroup][C::vectors];
    for (int r = 0; r < kGroup; ++r) {
      for (int v = 0; v < C::vectors; ++v) sums[r][v] = load<V>(columns.bias + v * C::lanes);
    }
    for (std::int32_t i = lists[0]; i < lists[1]; ++i) {
      const T* const row = columns.packed + plan.tap_rows[i] * std::int64_t{stride};
      const V weight = splat<V>(plan.tap_weights[i]);
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < C::vectors; ++v) sums[r][v] += weight * load<V>(row + r * step + v * C::lanes);
      }
    }
    T results[kGroup][C::width];
    std::memcpy(results, sums, sizeof(results));
    for (int r = 0; r < kGroup && anchors[r] >= 0; ++r) {
      V own[C::vectors];
      std::memcpy(own, results[r], sizeof(own));
      for (std::int32_t i = lists[r + 1]; i < lists[r + 2]; ++i) {
        const T* const row = columns.packed + plan.tap_rows[i] * std::int64_t{stride};
        const V weight = splat<V>(plan.tap_weights[i]);
        for (int v = 0; v < C::vectors; ++v) own[v] += weight * load<V>(row + v * C::lanes);
      }
      if (columns.added) {
        const T* const from = columns.added + anchors[r] * columns.added_stride;
        V added[C::vectors] = {};
        if (columns.used == C::width) {
          std::memcpy(added, from, sizeof(added));  // of a size that the compiler knows
        } else {
          std::memcpy(added, from, sizeof(T) * columns.used);
        }
        for (int v = 0; v < C::vectors; ++v) own[v] += added[v];
      }
      for (int v = 0; v < C::vectors; ++v) own[v] = columns.relu ? (own[v] < V{} ? V{} : own[v]) : own[v];
      T* const to = columns.out + anchors[r] * columns.out_stride;
      if (columns.used == C::width) {
        std::memcpy(to, own, sizeof(own));
      } else {
        std::memcpy(to, own, sizeof(T) * columns.used);
      }
    }
  }
}

}  // namespace bcnet_fast
