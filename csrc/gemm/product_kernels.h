// Products of a block of rows with a packed weight, and the epilogue that follows while the results are still in the
// cache. Included once per instruction set.
#include "gemm/tile_kernels.h"

// Rows times the panels of a weight of T.
template <typename T>
struct PanelProduct {
  Matrix<T> a;
  const T* panels;
  std::int64_t depth;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const T* const b = panels + column / kPanel * kPanel * depth + column % kPanel;
    multiply_tile(count, a.row(first), a.stride, b, kPanel, depth, kDepthBlock, relu, to, stride);
  }
};

template <typename T>
struct RowMoments {
  T mean, inverse_deviation;
};

// sum over i of f(i) for `count` elements. F::add_to(sum, i) adds the values at i, a vector or a number, to a sum: four
// sums at a time, so that none waits for the one before it.
template <typename T, typename F>
BCNET_INLINE T sum_over(std::int64_t count, const F& f) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>;
  V sum0{}, sum1{}, sum2{}, sum3{};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 = f.add_to(sum0, i);
    sum1 = f.add_to(sum1, i + lanes);
    sum2 = f.add_to(sum2, i + 2 * lanes);
    sum3 = f.add_to(sum3, i + 3 * lanes);
  }
  for (; i + lanes <= count; i += lanes) sum0 = f.add_to(sum0, i);
  T sum = sum_of<T>((sum0 + sum1) + (sum2 + sum3));
  for (; i < count; ++i) sum = f.add_to(sum, i);
  return sum;
}

// The values of a row, after those of the residual are added to it in memory, unless it is null.
template <typename T>
struct WithResidual {
  T* row;
  const T* residual;

  template <typename V>
  BCNET_INLINE V add_to(V sum, std::int64_t i) const {
    V value = load<V>(row + i);
    if (residual) {
      value += load<V>(residual + i);
      store(row + i, value);
    }
    return sum + value;
  }
};

template <typename T>
struct SquaredDistance {
  const T* row;
  T mean;

  template <typename V>
  BCNET_INLINE V add_to(V sum, std::int64_t i) const {
    const V centred = load<V>(row + i) - mean;
    return multiply_add(centred, centred, sum);
  }
};

// LayerNorm of row + residual, in place; residual may be null.
template <typename T>
BCNET_INLINE RowMoments<T> normalize_row(T* row, const T* residual, std::int64_t columns, T eps) {
  const T share = T(1) / static_cast<T>(columns);
  const T mean = sum_over<T>(columns, WithResidual<T>{row, residual}) * share;
  const T squares = sum_over<T>(columns, SquaredDistance<T>{row, mean});
  const T inverse_deviation = 1 / std::sqrt(multiply_add(squares, share, eps));
  for (std::int64_t i = 0; i < columns; ++i) row[i] = (row[i] - mean) * inverse_deviation;
  return {mean, inverse_deviation};
}

// The epilogue of rows first to last of the whole result. A product without a bias has done the ReLU itself.
template <typename T>
BCNET_INLINE void apply_epilogue(const Epilogue<T>& epilogue, std::int64_t columns, std::int64_t first,
                                 std::int64_t last, MutableMatrix<T> out) {
  for (std::int64_t r = first; r < last; ++r) {
    T* const row = out.row(r);
    if (epilogue.bias) {
      for (std::int64_t i = 0; i < columns; ++i) {
        const T value = row[i] + epilogue.bias[i];
        row[i] = epilogue.relu && value < 0 ? 0 : value;
      }
    }
    const T* const residual = epilogue.residual.data ? epilogue.residual.row(r) : nullptr;
    if (epilogue.layer_norm) {
      normalize_row(row, residual, columns, epilogue.eps);
    } else if (residual) {
      for (std::int64_t i = 0; i < columns; ++i) row[i] += residual[i];
    }
  }
}

// The product of a block of rows with one group of a weight, then ReLU if `relu`.
template <typename T>
BCNET_INLINE void multiply(Matrix<T> a, std::int64_t rows, const PackedWeight& weight, std::int64_t group, bool relu,
                           char* workspace, MutableMatrix<T> out) {
  if (weight.int8()) {
    if constexpr (sizeof(T) == sizeof(float)) multiply_int8(kSet, a, rows, weight, group, relu, workspace, out);
    return;
  }
  const T* const panels = weight.template panels<T>(group);
  const std::int64_t depth = weight.inputs();
  const auto multiply_plainly = [&](std::int64_t first, std::int64_t last, std::int64_t column) {
    if (first == last || column == weight.outputs()) return;
    const PanelProduct<T> product{{a.row(first), a.stride}, panels + column * depth, depth, relu};
    multiply_tiles(product, last - first, weight.outputs() - column, out.row(first) + column, out.stride);
  };
  const std::int64_t pairs = rows / 2, panel_pairs = weight.outputs() / (2 * kPanel);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (weight.strassen() && panel_pairs > 0) {
      multiply_strassen(kSet, a, pairs, panels, depth, panel_pairs, relu, reinterpret_cast<float*>(workspace), out);
      multiply_plainly(0, 2 * pairs, 2 * kPanel * panel_pairs);  // the columns without a partner
      return multiply_plainly(2 * pairs, rows, 0);               // the row without one
    }
  }
  multiply_plainly(0, rows, 0);
}
