// The innermost loops of the second stage. Included once per instruction set.
#include "gemm/product_kernels.h"

// IoU with a segment, and the distance to it where it does not overlap, else infinity; of all segments. The operations
// and their order are those of the definition, because equal values are told apart by their position.
inline void compare_segments(const Segments& all, std::int64_t own, double* iou, double* distance) {
  using V = Vec<double>;
  const V start = splat<V>(all.start[own]), end = splat<V>(all.end[own]), length = splat<V>(all.length[own]);
  const V centre = splat<V>(all.centre[own]), infinity = splat<V>(HUGE_VAL), zero{}, one = splat<V>(1.0);
  for (std::int64_t j = 0; j < all.count; j += kWidth<double>) {
    const V starts = load<V>(&all.start[j]), ends = load<V>(&all.end[j]);
    const V common = maximum(minimum(end, ends) - maximum(start, starts) + one, zero);
    const V ratio = common / (length + load<V>(&all.length[j]) - common);
    const V apart = centre - load<V>(&all.centre[j]);
    const V away = maximum(apart, zero - apart) / (maximum(end, ends) - minimum(start, starts) + one);
    store(iou + j, ratio);
    const V distinct = away > zero ? away : infinity;
    store(distance + j, ratio > zero ? infinity : distinct);
  }
}

// The larger of both, NaN if one is NaN.
template <typename V>
BCNET_INLINE V larger(V a, V b) {
  const V known = a == a ? b : a;
  return a > b ? a : known;
}

// Maxima over ranges of rows of `used` columns, up to kPanel. Bins are `bin_stride` elements apart in a row of out.
// table: levels * rows * kPanel elements.
template <typename T>
void panel_maxima(Matrix<T> x, std::int64_t rows, std::int64_t used, const RangeLists& ranges, std::int64_t levels,
                  T* table, MutableMatrix<T> out, std::int64_t bin_stride) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>;
  for (std::int64_t r = 0; r < rows; ++r) {
    T* const to = table + r * kPanel;
    if (used == kPanel) {
      std::memcpy(to, x.row(r), sizeof(T) * kPanel);
    } else {
      std::memcpy(to, x.row(r), sizeof(T) * used);
      std::fill(to + used, to + kPanel, T(0));
    }
  }
  for (std::int64_t level = 1; level < levels; ++level) {
    const std::int64_t half = std::int64_t{1} << (level - 1);
    const T* const from = table + (level - 1) * rows * kPanel;
    T* const to = table + level * rows * kPanel;
    for (std::int64_t i = 0; i < (rows - 2 * half + 1) * kPanel; i += lanes) {
      store(to + i, larger(load<V>(from + i), load<V>(from + i + half * kPanel)));
    }
  }
  for (std::int64_t i = 0; i < ranges.count * ranges.bins; ++i) {
    const std::int64_t first = ranges.numbers[2 * i], length = ranges.numbers[2 * i + 1] - first;
    T* const to = out.row(i / ranges.bins) + i % ranges.bins * bin_stride;
    T result[kPanel] = {};
    if (length > 0) {
      const std::int64_t level = table_levels(length) - 1;
      const T* const low = table + (level * rows + first) * kPanel;
      const T* const high = low + (length - (std::int64_t{1} << level)) * kPanel;
      for (int c = 0; c < kPanel; c += lanes) store(result + c, larger(load<V>(low + c), load<V>(high + c)));
    }
    if (used == kPanel) {
      std::memcpy(to, result, sizeof(result));
    } else {
      std::memcpy(to, result, sizeof(T) * used);
    }
  }
}

template <typename T>
struct Dot {
  const T *a, *b;

  template <typename V>
  BCNET_INLINE V add_to(V sum, std::int64_t i) const {
    return multiply_add(load<V>(a + i), load<V>(b + i), sum);
  }
};

// Products of rows over some columns: of each row with itself, then of pairs. packed: rows * kDotColumns elements.
template <typename T>
void multiply_rows(Matrix<T> x, std::int64_t rows, std::int64_t columns, const Pair* pairs, std::int64_t count,
                   T* packed, T* products) {
  for (std::int64_t r = 0; r < rows; ++r) {
    T* const to = packed + r * columns;
    std::memcpy(to, x.row(r), sizeof(T) * columns);
    products[r] = sum_over<T>(columns, Dot<T>{to, to});
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const T *const a = packed + pairs[i].first * columns, *const b = packed + pairs[i].second * columns;
    products[rows + i] = sum_over<T>(columns, Dot<T>{a, b});
  }
}

// Some columns of a weighted sum of rows: V is a vector or a number, and `vectors` of them lie side by side.
template <typename V, int vectors, typename T>
BCNET_INLINE void sum_rows(const WeightedRows<T>& sums, std::int64_t r, std::int64_t column, T* to) {
  constexpr int lanes = sizeof(V) / sizeof(T);
  V total[vectors] = {};
  for (std::int64_t g = 0; g < sums.groups; ++g) {
    const std::int64_t list = (r * sums.groups + g) * sums.taps;
    V inner[vectors] = {};
    for (int v = 0; v < vectors && sums.bias; ++v) inner[v] = load<V>(sums.bias + column + v * lanes);
    for (std::int64_t k = list; k < list + sums.taps; ++k) {
      const T* const from = sums.x.row(sums.rows[k]) + column;
      const V weight = splat<V>(sums.weights[k]);
      for (int v = 0; v < vectors; ++v) inner[v] = multiply_add(weight, load<V>(from + v * lanes), inner[v]);
    }
    const V outer = splat<V>(sums.outer.data ? sums.outer.row(r)[g] : T(1));
    for (int v = 0; v < vectors; ++v) total[v] = multiply_add(outer, relu_if(sums.relu, inner[v]), total[v]);
  }
  for (int v = 0; v < vectors; ++v) store(to + v * lanes, total[v]);
}

template <typename T>
void sum_weighted_rows(const WeightedRows<T>& sums, std::int64_t first, std::int64_t last, MutableMatrix<T> out) {
  constexpr int vectors = kBytes >= 64 ? 8 : 4;
  constexpr int lanes = kWidth<T>;
  for (std::int64_t r = first; r < last; ++r) {
    std::int64_t c = 0;
    for (; c + vectors * lanes <= sums.columns; c += vectors * lanes) {
      sum_rows<Vec<T>, vectors>(sums, r, c, out.row(r) + c);
    }
    for (; c + lanes <= sums.columns; c += lanes) sum_rows<Vec<T>, 1>(sums, r, c, out.row(r) + c);
    for (; c < sums.columns; ++c) sum_rows<T, 1>(sums, r, c, out.row(r) + c);
  }
}
