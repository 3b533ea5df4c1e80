// Rows are worked on in blocks of about 96, from the first product to the LayerNorm: a block's results are then in the
// cache when they are needed again, and every panel of weights, read from memory once for a block, serves several
// tiles.
#include "include/layers.h"

#include <algorithm>
#include <vector>

#include "cpu/layer_work.h"
#include "cpu/sampling_blocks.h"
#include "gemm/int8_product.h"
#include "gemm/panels.h"
#include "gemm/strassen.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

#define BCNET_KERNELS "cpu/layer_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kBlockRows = 96;

// Row ranges are worked on together until they have this many rows.
constexpr std::int64_t kRowsTogether = 64;

constexpr std::int64_t kTransposed = 16;  // channels that are transposed together: a cache line of float32

// The two products of a feed-forward network are computed for this many rows at a time: enough to read the weights of
// each only now and then, by all threads at once, and few enough for the hidden columns to stay in the shared cache.
constexpr std::int64_t kChunkRows = 640;
static_assert(kChunkRows % 2 == 0, "pairs of rows stay together");

thread_local Scratch number_scratch, product_scratch;
thread_local Scratch chunk_scratch;  // of the calling thread

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

// Bytes of workspace for the product of `rows` rows with a weight.
std::int64_t product_workspace(std::int64_t rows, const PackedWeight& weight) {
  if (weight.int8()) return int8_workspace(rows, weight);
  return weight.strassen() ? strassen_workspace(rows / 2) * static_cast<std::int64_t>(sizeof(float)) : 0;
}

// The instruction set for products with such a weight.
InstructionSet usable(InstructionSet set, const PackedWeight& weight) {
  const bool lacking = weight.int8() && set == InstructionSet::avx512 && !has_int8_instruction();
  return lacking ? InstructionSet::avx2 : set;
}

template <typename T>
void run_row_ranges(const RowRangeWork<T>& work, InstructionSet instruction_set, int threads) {
  std::vector<std::int64_t> blocks{0};  // of successive ranges
  std::int64_t rows = 0;
  for (std::int64_t range = 0; range < work.ranges.count; ++range) {
    rows += work.ranges.rows(range);
    if (rows < kRowsTogether && range + 1 < work.ranges.count) continue;
    blocks.push_back(range + 1);
    rows = 0;
  }
  const auto items = static_cast<std::int64_t>(blocks.size()) - 1;
  WorkQueue queue(items);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, items)), [&](int) {
    for (std::int64_t i; queue.next(i);) {
      BCNET_VERSION(instruction_set, linear_ranges<T>)(work, blocks[i], blocks[i + 1]);
    }
  });
}

template <typename T>
void run_projection(const ProjectionWork<T>& work, InstructionSet instruction_set, int threads) {
  const std::int64_t panels = (work.last - work.first + kPanel - 1) / kPanel;
  WorkQueue queue(panels);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, panels)), [&](int) {
    T* const packed = number_scratch.take<T>(packed_rows(work.projection.plan) * kPanel);
    BCNET_VERSION(instruction_set, project_panels<T>)(work, queue, packed);
  });
}

}  // namespace

template <typename T>
void linear(Matrix<T> x, std::int64_t rows, const PackedWeight& weight, const Epilogue<T>& epilogue,
            InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  instruction_set = usable(instruction_set, weight);
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    char* const workspace = product_scratch.take<char>(product_workspace(last - first, weight));
    BCNET_VERSION(instruction_set, linear_rows<T>)(x, weight, epilogue, first, last, workspace, out);
  });
}

template <typename T>
void feed_forward(Matrix<T> x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second,
                  const Epilogue<T>& epilogue, InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  const std::int64_t stride = scratch_stride(first.outputs());
  const MutableMatrix<T> hidden{chunk_scratch.take<T>(std::min(rows, kChunkRows) * stride), stride};
  Epilogue<T> first_epilogue, second_epilogue = epilogue;
  first_epilogue.relu = true;
  for (std::int64_t begin = 0; begin < rows; begin += kChunkRows) {
    const std::int64_t count = std::min(rows - begin, kChunkRows);
    linear(x.from_row(begin), count, first, first_epilogue, instruction_set, threads, hidden);
    second_epilogue.residual = epilogue.residual.from_row(begin);
    linear(hidden.view(), count, second, second_epilogue, instruction_set, threads, out.from_row(begin));
  }
}

template <typename T>
void folded_feed_forward(Matrix<T> x, std::int64_t rows, const FoldedFeedForward<T>& weights, Matrix<T> residual,
                         Matrix<T> first_of_residual, T eps, InstructionSet instruction_set, int threads,
                         MutableMatrix<T> out) {
  const std::int64_t stride = scratch_stride(weights.attention.outputs());
  const std::int64_t hidden_stride = scratch_stride(weights.folded.outputs());
  T* const scratch = chunk_scratch.take<T>(std::min(rows, kChunkRows) * (stride + hidden_stride));
  Epilogue<T> epilogue;
  epilogue.layer_norm = true;
  epilogue.eps = eps;
  const auto compute_rows = BCNET_VERSION(instruction_set, folded_rows<T>);
  for (std::int64_t begin = 0; begin < rows; begin += kChunkRows) {
    const std::int64_t count = std::min(rows - begin, kChunkRows);
    const MutableMatrix<T> y{scratch, stride}, hidden{scratch + count * stride, hidden_stride};
    for_row_blocks(count, threads, [&](std::int64_t first, std::int64_t last) {
      const std::int64_t size =
          std::max(product_workspace(last - first, weights.attention), product_workspace(last - first, weights.folded));
      char* const workspace = product_scratch.take<char>(size);
      compute_rows(x.from_row(begin), weights, residual.from_row(begin), first_of_residual.from_row(begin), eps, first,
                   last, workspace, y, hidden);
    });
    epilogue.residual = y.view();
    linear(hidden.view(), count, weights.second, epilogue, instruction_set, threads, out.from_row(begin));
  }
}

template <typename T>
void convolution(const T* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Epilogue<T>& epilogue, InstructionSet instruction_set, int threads,
                 MutableMatrix<T> out) {
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
  const Matrix<T> from{padded, stride};
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    BCNET_VERSION(instruction_set, convolution_rows<T>)(from, weight, epilogue, first, last, out);
  });
}

template <typename T>
void linear_row_ranges(Matrix<T> x, const RowRanges& ranges, const PackedWeight& weight, const Epilogue<T>& epilogue,
                       InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  run_row_ranges(RowRangeWork<T>{x, ranges, weight, 0, weight.inputs(), epilogue, out}, instruction_set, threads);
}

template <typename T>
void project_anchors(const AnchorProjection<T>& projection, InstructionSet instruction_set, int threads,
                     MutableMatrix<T> out) {
  run_projection(ProjectionWork<T>{projection, 0, projection.weight.outputs(), out}, instruction_set, threads);
}

template <typename T>
void project_row_ranges(const AnchorProjection<T>& projection, MutableMatrix<T> projected, std::int64_t columns,
                        const RowRanges& ranges, const PackedWeight& weight, const Epilogue<T>& epilogue,
                        InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  const std::int64_t all = projection.weight.outputs();
  for (std::int64_t first = 0; first < all; first += columns) {
    const std::int64_t last = std::min(all, first + columns);
    run_projection(ProjectionWork<T>{projection, first, last, projected}, instruction_set, threads);
    const Epilogue<T> now = last == all ? epilogue : Epilogue<T>{};
    run_row_ranges(RowRangeWork<T>{projected.view(), ranges, weight, first, last, now, out}, instruction_set, threads);
  }
}

#define BCNET_INSTANTIATE(T)                                                                                        \
  template void linear(Matrix<T>, std::int64_t, const PackedWeight&, const Epilogue<T>&, InstructionSet, int,       \
                       MutableMatrix<T>);                                                                           \
  template void feed_forward(Matrix<T>, std::int64_t, const PackedWeight&, const PackedWeight&, const Epilogue<T>&, \
                             InstructionSet, int, MutableMatrix<T>);                                                \
  template void folded_feed_forward(Matrix<T>, std::int64_t, const FoldedFeedForward<T>&, Matrix<T>, Matrix<T>, T,  \
                                    InstructionSet, int, MutableMatrix<T>);                                         \
  template void convolution(const T*, std::int64_t, std::int64_t, std::int64_t, const PackedWeight&,                \
                            const Epilogue<T>&, InstructionSet, int, MutableMatrix<T>);                             \
  template void linear_row_ranges(Matrix<T>, const RowRanges&, const PackedWeight&, const Epilogue<T>&,             \
                                  InstructionSet, int, MutableMatrix<T>);                                           \
  template void project_anchors(const AnchorProjection<T>&, InstructionSet, int, MutableMatrix<T>);                 \
  template void project_row_ranges(const AnchorProjection<T>&, MutableMatrix<T>, std::int64_t, const RowRanges&,    \
                                   const PackedWeight&, const Epilogue<T>&, InstructionSet, int, MutableMatrix<T>);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
