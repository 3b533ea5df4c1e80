// Rows are worked on in blocks of about 96, from the first product to the LayerNorm: a block's results are then in the
// cache when they are needed again, and every panel of weights, read from memory once for a block, serves several tiles.
//
// Products are fused with their sums (FMA) where the instruction set has it, so bits differ between instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "include/layers.h"

#include <algorithm>
#include <vector>

#include "gemm/block_products.h"
#include "cpu/gather_columns.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"
#include "gemm/tiles.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kBlockRows = 96;

// Runs are worked on together until they have so many rows.
constexpr std::int64_t kRunRows = 64;

// Convolutions come first, so all that follows repeats their errors, and they are little work: in float32 their sums are made
// in shorter parts.
template <typename T>
constexpr std::int64_t kConvolutionPart = sizeof(T) == sizeof(float) ? 32 : kPart;

constexpr std::int64_t kTransposed = 16;  // channels that are transposed together: a cache line of float32

// After so many rows of a product, a part of the weights that come next is fetched.
constexpr std::int64_t kRowsAhead = 24;

// Calls body(first, last) for blocks of rows of about one size, as many for each thread. `first` is even.
template <typename Body>
void for_row_blocks(std::int64_t rows, int threads, const Body& body) {
  threads = std::max(threads, 1);
  const std::int64_t rounds = std::max<std::int64_t>(1, (rows + threads * kBlockRows - 1) / (threads * kBlockRows));
  const std::int64_t pairs = (rows + 1) / 2, blocks = std::min(pairs, rounds * threads);
  WorkQueue queue(blocks);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, blocks)), [&](int) {
    for (std::int64_t block; queue.next(block);) {
      body(pairs * block / blocks * 2, std::min(rows, pairs * (block + 1) / blocks * 2));
    }
  });
}

template <int bytes, typename T>
BCNET_INLINE void linear_rows(Matrix<T> x, const PackedWeight& weight, const Finish<T>& finish, std::int64_t first,
                              std::int64_t last, char* scratch, Output<T> out) {
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    multiply<bytes>(x.data + first * x.stride + g * weight.inputs(), x.stride, last - first, weight, g,
                    finish.relu && !finish.bias, scratch, out.data + first * out.stride + g * weight.outputs(),
                    out.stride);
  }
  finish_rows<bytes>(finish, weight.groups() * weight.outputs(), first, last, out);
}

// y and the hidden columns of some rows.
template <int bytes, typename T>
BCNET_INLINE void folded_rows(Matrix<T> x, const FoldedFeedForward<T>& weights, Matrix<T> added, Matrix<T> first_of_added, T eps,
                              std::int64_t first, std::int64_t last, char* scratch, Output<T> y, Output<T> hidden) {
  const std::int64_t rows = last - first, columns = weights.attention.outputs(), size = weights.folded.outputs();
  const T* const from = x.data + first * x.stride;
  multiply<bytes>(from, x.stride, rows, weights.attention, 0, false, scratch, y.data + first * y.stride, y.stride);
  multiply<bytes>(from, x.stride, rows, weights.folded, 0, false, scratch, hidden.data + first * hidden.stride, hidden.stride);
  for (std::int64_t r = first; r < last; ++r) {
    T* const row = y.data + r * y.stride;
    const RowMoments<T> moments = norm_row<bytes>(row, added.data + r * added.stride, columns, eps);
    T* const to = hidden.data + r * hidden.stride;
    const T* const more = first_of_added.data + r * first_of_added.stride;
    for (std::int64_t i = 0; i < size; ++i) {
      const T value = (to[i] + more[i] - moments.mean * weights.sums[i]) * moments.scale;
      to[i] = value < 0 ? 0 : value;
    }
  }
}

// The product of one group of a convolution: x has rows of zeros around, and its columns are those of the group.
template <typename T, int bytes>
struct ConvolutionProduct {
  Matrix<T> x;
  const T* panels;
  std::int64_t channels;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const T* const b = panels + column / kPanel * kPanel * 3 * channels + column % kPanel;
    for (std::int64_t tap = 0; tap < 3; ++tap) {
      multiply_tile<bytes>(count, x.data + (first + tap) * x.stride, x.stride, b + tap * channels * kPanel, kPanel, channels,
                           kConvolutionPart<T>, relu && tap == 2, to, stride, tap > 0);
    }
  }
};

template <int bytes, typename T>
BCNET_INLINE void convolution_rows(Matrix<T> x, const PackedWeight& weight, const Finish<T>& finish, std::int64_t first,
                                   std::int64_t last, Output<T> out) {
  const std::int64_t channels = weight.inputs() / 3;
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    const Matrix<T> from{x.data + first * x.stride + g * channels, x.stride};
    const ConvolutionProduct<T, bytes> product{from, weight.template panels<T>(g), channels, finish.relu && !finish.bias};
    multiply_tiles_with<bytes>(product, last - first, weight.outputs(), out.data + first * out.stride + g * weight.outputs(),
                               out.stride);
  }
  finish_rows<bytes>(finish, weight.groups() * weight.outputs(), first, last, out);
}

template <typename T>
struct RunWork {
  Matrix<T> x;
  const Runs& runs;
  const PackedWeight& weight;
  std::int64_t first, last;  // the inputs that x has
  Finish<T> finish;
  Output<T> out;
};

// The product of one run, of which each group takes other rows.
template <typename T, int bytes>
struct RunProduct {
  const RunWork<T>& work;
  std::int64_t run, panel;

  BCNET_INLINE bool adds() const { return work.first > 0; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const std::int64_t depth = work.weight.inputs(), groups = work.weight.groups();
    for (std::int64_t g = 0; g < groups; ++g) {
      const T* const b = work.weight.template panels<T>(g) + (panel * depth + work.first) * kPanel + column;
      const T* const from = work.x.data + (work.runs.from(run, g) + first) * work.x.stride;
      const bool relu = work.finish.relu && !work.finish.bias && g + 1 == groups;
      multiply_tile<bytes>(count, from, work.x.stride, b, kPanel, work.last - work.first, kRunPart, relu, to, stride,
                           g > 0 || adds());
    }
  }
};

// The runs that are worked on together, so that each panel of the weight is read once for all of them.
template <int bytes, typename T>
BCNET_INLINE void linear_of_runs(const RunWork<T>& work, std::int64_t first, std::int64_t last) {
  const std::int64_t columns = work.weight.outputs();
  const Runs& runs = work.runs;
  for (std::int64_t column = 0; column < columns; column += kPanel) {
    const std::int64_t used = std::min<std::int64_t>(kPanel, columns - column);
    for (std::int64_t run = first; run < last; ++run) {
      const RunProduct<T, bytes> product{work, run, column / kPanel};
      T* const to = work.out.data + runs.to(run) * work.out.stride + column;
      multiply_tiles_with<bytes>(product, runs.rows(run), used, to, work.out.stride);
    }
  }
  for (std::int64_t run = first; run < last; ++run) {
    finish_rows<bytes>(work.finish, columns, runs.to(run), runs.to(run) + runs.rows(run), work.out);
  }
}

// Columns `first` to `last` of a projection, which are all that out has.
template <typename T>
struct AnchorWork {
  const AnchorProjection<T>& projection;
  std::int64_t first, last;
  Output<T> out;
};

// Takes items: panels of columns.
template <int bytes, typename T>
BCNET_INLINE void project_panels(const AnchorWork<T>& work, WorkQueue& queue, T* packed) {
  using C = Columns<bytes, T>;
  const AnchorProjection<T>& of = work.projection;
  const std::int64_t bins = of.weight.groups(), depth = of.weight.inputs();
  // What is read beyond the rows in use does not matter, but denormal numbers there would cost time.
  std::fill(packed + bins * of.snippets * kPanel, packed + packed_rows(of.plan) * kPanel, T(0));
  for (std::int64_t panel; queue.next(panel);) {
    const std::int64_t begin = work.first + panel * kPanel;
    for (std::int64_t n = 0; n < bins; ++n) {
      const T* const x = of.x.data + of.sources[n] * of.snippets * of.x.stride;
      const T* const weight = of.weight.template panels<T>(n) + begin * depth;
      const T* const next = n + 1 < bins ? of.weight.template panels<T>(n + 1) + begin * depth : nullptr;
      for (std::int64_t row = 0; row < of.snippets; row += kRowsAhead) {
        const std::int64_t rows = std::min(kRowsAhead, of.snippets - row);
        // Of the next bin's weights, which lie elsewhere in memory, the share that these rows have of all.
        const std::int64_t first = depth * row / of.snippets, last = depth * (row + rows) / of.snippets;
        for (std::int64_t k = first; next && k < last; ++k) prefetch<kPanel * sizeof(T), 2>(next + k * kPanel);
        const Product<T, bytes> product{x + row * of.x.stride, of.x.stride, weight, depth, false};
        multiply_tiles_with<bytes>(product, rows, kPanel, packed + (n * of.snippets + row) * kPanel, kPanel);
      }
    }
    const std::int64_t end = std::min(work.last, begin + kPanel);
    for (std::int64_t column = begin; column < end; column += C::width) {
      const int used = static_cast<int>(std::min<std::int64_t>(C::width, end - column));
      const Matrix<T>& more = of.finish.added;
      T bias[C::width] = {};
      if (of.finish.bias) std::copy_n(of.finish.bias + column, used, bias);
      const GatheredColumns<T> gathered{packed + (column - begin), bias, more.data ? more.data + column : nullptr, more.stride,
                                        of.finish.relu, used, work.out.data + (column - work.first), work.out.stride};
      gather_columns<bytes, kPanel>(gathered, of.plan, 0, of.plan.groups);
    }
  }
}

BCNET_VERSIONS(project_panels)
BCNET_VERSIONS(linear_of_runs)
BCNET_VERSIONS(linear_rows)
BCNET_VERSIONS(folded_rows)
BCNET_VERSIONS(convolution_rows)

thread_local Scratch number_scratch, multiply_scratch;
thread_local Scratch chunk_scratch;  // of the thread that calls

// The two products of a feed-forward network are made for so many rows at a time: enough to read the weights of each only
// now and then, all threads the same ones, and few enough for the hidden columns to stay in the cache of all.
constexpr std::int64_t kChunkRows = 640;
static_assert(kChunkRows % 2 == 0, "pairs of rows stay together");

template <typename T>
Matrix<T> from_row(Matrix<T> matrix, std::int64_t row) {
  return matrix.data ? Matrix<T>{matrix.data + row * matrix.stride, matrix.stride} : matrix;
}

// The instruction set for layers with such a weight.
InstructionSet usable(InstructionSet set, const PackedWeight& weight) {
  const bool lacking = weight.int8() && set == InstructionSet::avx512 && !has_byte_products();
  return lacking ? InstructionSet::avx2 : set;
}

template <typename T>
void run_runs(const RunWork<T>& work, InstructionSet instruction_set, int threads) {
  std::vector<std::int64_t> blocks{0};  // of runs that follow each other
  std::int64_t rows = 0;
  for (std::int64_t run = 0; run < work.runs.count; ++run) {
    rows += work.runs.rows(run);
    if (rows < kRunRows && run + 1 < work.runs.count) continue;
    blocks.push_back(run + 1);
    rows = 0;
  }
  const auto items = static_cast<std::int64_t>(blocks.size()) - 1;
  WorkQueue queue(items);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, items)), [&](int) {
    for (std::int64_t i; queue.next(i);) linear_of_runs_for(instruction_set, work, blocks[i], blocks[i + 1]);
  });
}

template <typename T>
void run_projection(const AnchorWork<T>& work, InstructionSet instruction_set, int threads) {
  const std::int64_t panels = (work.last - work.first + kPanel - 1) / kPanel;
  WorkQueue queue(panels);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, panels)), [&](int) {
    T* const packed = number_scratch.take<T>(packed_rows(work.projection.plan) * kPanel);
    project_panels_for(instruction_set, work, queue, packed);
  });
}

}  // namespace

template <typename T>
void linear(Matrix<T> x, std::int64_t rows, const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set,
            int threads, Output<T> out) {
  instruction_set = usable(instruction_set, weight);
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    char* const scratch = multiply_scratch.take<char>(product_scratch(last - first, weight));
    linear_rows_for(instruction_set, x, weight, finish, first, last, scratch, out);
  });
}

template <typename T>
void feed_forward(Matrix<T> x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second, const Finish<T>& finish,
                  InstructionSet instruction_set, int threads, Output<T> out) {
  const std::int64_t stride = scratch_stride(first.outputs());
  T* const hidden = chunk_scratch.take<T>(std::min(rows, kChunkRows) * stride);
  Finish<T> of_first, of_second = finish;
  of_first.relu = true;
  for (std::int64_t begin = 0; begin < rows; begin += kChunkRows) {
    const std::int64_t count = std::min(rows - begin, kChunkRows);
    linear(from_row(x, begin), count, first, of_first, instruction_set, threads, Output<T>{hidden, stride});
    of_second.added = from_row(finish.added, begin);
    linear(Matrix<T>{hidden, stride}, count, second, of_second, instruction_set, threads,
           Output<T>{out.data + begin * out.stride, out.stride});
  }
}

template <typename T>
void folded_feed_forward(Matrix<T> x, std::int64_t rows, const FoldedFeedForward<T>& weights, Matrix<T> added,
                         Matrix<T> first_of_added, T eps, InstructionSet instruction_set, int threads, Output<T> out) {
  const std::int64_t stride = scratch_stride(weights.attention.outputs());
  const std::int64_t hidden_stride = scratch_stride(weights.folded.outputs());
  T* const scratch = chunk_scratch.take<T>(std::min(rows, kChunkRows) * (stride + hidden_stride));
  Finish<T> finish;
  finish.norm = true;
  finish.eps = eps;
  for (std::int64_t begin = 0; begin < rows; begin += kChunkRows) {
    const std::int64_t count = std::min(rows - begin, kChunkRows);
    const Output<T> y{scratch, stride}, hidden{scratch + count * stride, hidden_stride};
    for_row_blocks(count, threads, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t size = std::max(product_scratch(last - first, weights.attention), product_scratch(last - first, weights.folded));
      char* const of_products = multiply_scratch.take<char>(size);
      folded_rows_for(instruction_set, from_row(x, begin), weights, from_row(added, begin), from_row(first_of_added, begin),
                      eps, first, last, of_products, y, hidden);
    });
    finish.added = {y.data, y.stride};
    linear(Matrix<T>{hidden.data, hidden.stride}, count, weights.second, finish, instruction_set, threads,
           Output<T>{out.data + begin * out.stride, out.stride});
  }
}

template <typename T>
void convolution(const T* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set, int threads, Output<T> out) {
  const std::int64_t channels = weight.groups() * weight.inputs() / 3, stride = scratch_stride(channels);
  T* const padded = chunk_scratch.take<T>((rows + 2) * stride);
  std::fill_n(padded, channels, T(0));
  std::fill_n(padded + (rows + 1) * stride, channels, T(0));
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t begin = 0; begin < channels; begin += kTransposed) {
      const std::int64_t end = std::min(channels, begin + kTransposed);
      for (std::int64_t r = first; r < last; ++r) {
        T* const to = padded + (r + 1) * stride;
        for (std::int64_t c = begin; c < end; ++c) to[c] = x[r * row_stride + c * channel_stride];
      }
    }
  });
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    convolution_rows_for(instruction_set, Matrix<T>{padded, stride}, weight, finish, first, last, out);
  });
}

template <typename T>
void linear_runs(Matrix<T> x, const Runs& runs, const PackedWeight& weight, const Finish<T>& finish,
                 InstructionSet instruction_set, int threads, Output<T> out) {
  run_runs(RunWork<T>{x, runs, weight, 0, weight.inputs(), finish, out}, instruction_set, threads);
}

template <typename T>
void project_anchors(const AnchorProjection<T>& projection, InstructionSet instruction_set, int threads, Output<T> out) {
  run_projection(AnchorWork<T>{projection, 0, projection.weight.outputs(), out}, instruction_set, threads);
}

template <typename T>
void project_runs(const AnchorProjection<T>& projection, Output<T> projected, std::int64_t columns, const Runs& runs,
                  const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set, int threads,
                  Output<T> out) {
  const std::int64_t all = projection.weight.outputs();
  for (std::int64_t first = 0; first < all; first += columns) {
    const std::int64_t last = std::min(all, first + columns);
    run_projection(AnchorWork<T>{projection, first, last, projected}, instruction_set, threads);
    const Matrix<T> x{projected.data, projected.stride};
    const RunWork<T> work{x, runs, weight, first, last, last == all ? finish : Finish<T>{}, out};
    run_runs(work, instruction_set, threads);
  }
}

#define BCNET_INSTANTIATE(T)                                                                                               \
  template void linear(Matrix<T>, std::int64_t, const PackedWeight&, const Finish<T>&, InstructionSet, int, Output<T>);      \
  template void feed_forward(Matrix<T>, std::int64_t, const PackedWeight&, const PackedWeight&, const Finish<T>&,            \
                             InstructionSet, int, Output<T>);                                                                \
  template void folded_feed_forward(Matrix<T>, std::int64_t, const FoldedFeedForward<T>&, Matrix<T>, Matrix<T>, T,           \
                                    InstructionSet, int, Output<T>);                                                         \
  template void convolution(const T*, std::int64_t, std::int64_t, std::int64_t, const PackedWeight&, const Finish<T>&,       \
                            InstructionSet, int, Output<T>);                                                                 \
  template void linear_runs(Matrix<T>, const Runs&, const PackedWeight&, const Finish<T>&, InstructionSet, int, Output<T>);  \
  template void project_anchors(const AnchorProjection<T>&, InstructionSet, int, Output<T>);                                  \
  template void project_runs(const AnchorProjection<T>&, Output<T>, std::int64_t, const Runs&, const PackedWeight&,           \
                             const Finish<T>&, InstructionSet, int, Output<T>);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
