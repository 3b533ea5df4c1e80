// The layers on a block of rows, on some row ranges, or on some panels of columns. Included once per instruction set.
#include "cpu/gather_kernels.h"
#include "gemm/product_kernels.h"

template <typename T>
void linear_rows(Matrix<T> x, const PackedWeight& weight, const Epilogue<T>& epilogue, std::int64_t first,
                 std::int64_t last, char* workspace, MutableMatrix<T> out) {
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    const Matrix<T> inputs{x.row(first) + g * weight.inputs(), x.stride};
    const MutableMatrix<T> outputs{out.row(first) + g * weight.outputs(), out.stride};
    multiply(inputs, last - first, weight, g, epilogue.relu && !epilogue.bias, workspace, outputs);
  }
  apply_epilogue(epilogue, weight.groups() * weight.outputs(), first, last, out);
}

// y and the hidden columns of some rows; see FoldedFeedForward.
template <typename T>
void folded_rows(Matrix<T> x, const FoldedFeedForward<T>& weights, Matrix<T> residual, Matrix<T> first_of_residual,
                 T eps, std::int64_t first, std::int64_t last, char* workspace, MutableMatrix<T> y,
                 MutableMatrix<T> hidden) {
  const std::int64_t rows = last - first, columns = weights.attention.outputs(), size = weights.folded.outputs();
  const Matrix<T> from = x.from_row(first);
  multiply(from, rows, weights.attention, 0, false, workspace, y.from_row(first));
  multiply(from, rows, weights.folded, 0, false, workspace, hidden.from_row(first));
  for (std::int64_t r = first; r < last; ++r) {
    const RowMoments<T> moments = normalize_row(y.row(r), residual.row(r), columns, eps);
    T* const to = hidden.row(r);
    const T* const more = first_of_residual.row(r);
    for (std::int64_t i = 0; i < size; ++i) {
      const T value = multiply_add(-moments.mean, weights.sums[i], to[i] + more[i]) * moments.inverse_deviation;
      to[i] = value < 0 ? 0 : value;
    }
  }
}

// The product of one group of a convolution: x has rows of zeros around, and its columns are those of the group.
template <typename T>
struct ConvolutionProduct {
  Matrix<T> x;
  const T* panels;
  std::int64_t channels;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const T* const b = panels + column / kPanel * kPanel * 3 * channels + column % kPanel;
    for (std::int64_t tap = 0; tap < 3; ++tap) {
      multiply_tile(count, x.row(first + tap), x.stride, b + tap * channels * kPanel, kPanel, channels,
                    kConvolutionDepthBlock<T>, relu && tap == 2, to, stride, tap > 0);
    }
  }
};

template <typename T>
void convolution_rows(Matrix<T> x, const PackedWeight& weight, const Epilogue<T>& epilogue, std::int64_t first,
                      std::int64_t last, MutableMatrix<T> out) {
  const std::int64_t channels = weight.inputs() / 3;
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    const Matrix<T> from{x.row(first) + g * channels, x.stride};
    const ConvolutionProduct<T> product{from, weight.template panels<T>(g), channels, epilogue.relu && !epilogue.bias};
    multiply_tiles(product, last - first, weight.outputs(), out.row(first) + g * weight.outputs(), out.stride);
  }
  apply_epilogue(epilogue, weight.groups() * weight.outputs(), first, last, out);
}

// The product of one row range, for which each group takes other rows.
template <typename T>
struct RowRangeProduct {
  const RowRangeWork<T>& work;
  std::int64_t range, panel;

  BCNET_INLINE bool adds() const { return work.first > 0; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const std::int64_t depth = work.weight.inputs(), groups = work.weight.groups();
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* const b = work.weight.template panels<T>(g) + (panel * depth + work.first) * kPanel + column;
      const T* const from = work.x.row(work.ranges.source(range, g) + first);
      const bool relu = work.epilogue.relu && !work.epilogue.bias && g + 1 == groups;
      multiply_tile(count, from, work.x.stride, b, kPanel, work.last - work.first, kRowRangeDepthBlock, relu, to,
                    stride, g > 0 || adds());
    }
  }
};

// Some row ranges together, so that each panel of the weight is read once for all of them.
template <typename T>
void linear_ranges(const RowRangeWork<T>& work, std::int64_t first, std::int64_t last) {
  const std::int64_t columns = work.weight.outputs();
  const RowRanges& ranges = work.ranges;
  for (std::int64_t column = 0; column < columns; column += kPanel) {
    const std::int64_t used = std::min<std::int64_t>(kPanel, columns - column);
    for (std::int64_t range = first; range < last; ++range) {
      const RowRangeProduct<T> product{work, range, column / kPanel};
      multiply_tiles(product, ranges.rows(range), used, work.out.row(ranges.target(range)) + column, work.out.stride);
    }
  }
  for (std::int64_t range = first; range < last; ++range) {
    const std::int64_t begin = ranges.target(range);
    apply_epilogue(work.epilogue, columns, begin, begin + ranges.rows(range), work.out);
  }
}

// After this many rows of a product, a part of the weights that come next is prefetched.
constexpr std::int64_t kRowsAhead = 24;

// Takes panels of columns from the queue until it is empty.
template <typename T>
void project_panels(const ProjectionWork<T>& work, WorkQueue& queue, T* packed) {
  using C = Columns<T>;
  const AnchorProjection<T>& of = work.projection;
  const std::int64_t bins = of.weight.groups(), depth = of.weight.inputs();
  // Values beyond the rows in use are read but do not matter; denormal numbers there would cost time.
  std::fill(packed + bins * of.snippets * kPanel, packed + packed_rows(of.plan) * kPanel, T(0));
  for (std::int64_t panel; queue.next(panel);) {
    const std::int64_t begin = work.first + panel * kPanel;
    for (std::int64_t n = 0; n < bins; ++n) {
      const Matrix<T> x = of.x.from_row(of.sources[n] * of.snippets);
      const T* const weight = of.weight.template panels<T>(n) + begin * depth;
      const T* const next = n + 1 < bins ? of.weight.template panels<T>(n + 1) + begin * depth : nullptr;
      for (std::int64_t row = 0; row < of.snippets; row += kRowsAhead) {
        const std::int64_t rows = std::min(kRowsAhead, of.snippets - row);
        // These rows' share of the next bin's weights, which lie elsewhere in memory.
        const std::int64_t first = depth * row / of.snippets, last = depth * (row + rows) / of.snippets;
        for (std::int64_t k = first; next && k < last; ++k) prefetch<kPanel * sizeof(T), 2>(next + k * kPanel);
        const PanelProduct<T> product{x.from_row(row), weight, depth, false};
        multiply_tiles(product, rows, kPanel, packed + (n * of.snippets + row) * kPanel, kPanel);
      }
    }
    const std::int64_t end = std::min(work.last, begin + kPanel);
    for (std::int64_t column = begin; column < end; column += C::width) {
      const int used = static_cast<int>(std::min<std::int64_t>(C::width, end - column));
      const Matrix<T>& residual = of.epilogue.residual;
      T bias[C::width] = {};
      if (of.epilogue.bias) std::copy_n(of.epilogue.bias + column, used, bias);
      const GatheredColumns<T> gathered{packed + (column - begin),
                                        bias,
                                        residual.data ? residual.data + column : nullptr,
                                        residual.stride,
                                        of.epilogue.relu,
                                        used,
                                        work.out.data + (column - work.first),
                                        work.out.stride};
      gather_columns<kPanel>(gathered, of.plan, 0, of.plan.groups);
    }
  }
}
