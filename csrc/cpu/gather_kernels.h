// The gathering of a block of columns by the groups of a plan: the innermost loops of anchor projection. Included once
// per instruction set.

// A block of columns: two vectors where there are 32 registers for the sums of eight anchors, else one.
template <typename T>
struct Columns {
  static constexpr int vectors = kBytes >= 64 ? 2 : 1;
  using V = Vec<T>;
  static constexpr int lanes = kWidth<T>;
  static constexpr int width = vectors * lanes;
};

// For the groups from `first` to `last`. Packed rows are `stride` elements apart.
template <int stride, typename T>
BCNET_INLINE void gather_columns(const GatheredColumns<T>& columns, const GroupPlan<T>& plan, std::int64_t first,
                                 std::int64_t last) {
  using C = Columns<T>;
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
        for (int v = 0; v < C::vectors; ++v) {
          sums[r][v] = multiply_add(weight, load<V>(row + r * step + v * C::lanes), sums[r][v]);
        }
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
        for (int v = 0; v < C::vectors; ++v) own[v] = multiply_add(weight, load<V>(row + v * C::lanes), own[v]);
      }
      if (columns.residual) {
        const T* const from = columns.residual + anchors[r] * columns.residual_stride;
        V residual[C::vectors] = {};
        if (columns.used == C::width) {
          std::memcpy(residual, from, sizeof(residual));  // a size that the compiler knows
        } else {
          std::memcpy(residual, from, sizeof(T) * columns.used);
        }
        for (int v = 0; v < C::vectors; ++v) own[v] += residual[v];
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
