// The layers of a network for inference: products with weights that are packed once, and the epilogue that follows
// while the results are still in the cache.
//
// In all functions, T is float or double, and a weight is of the same kind, or int8 where T is float: the layer then
// rounds each row of its inputs to 8 bits (gemm/int8_product.h). With a weight that uses Strassen's algorithm, rows 2 i
// and 2 i + 1 have errors relative to the larger of both, and share values that are not finite. x has `rows` rows.
// Results have the same bits for any number of threads, but not for all instruction sets. Requires: out overlaps no
// input.
#pragma once

#include <cstdint>

#include "gemm/matrix.h"
#include "gemm/packed_weight.h"
#include "include/anchor_sampling.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

// Products on row ranges sum up blocks of this many inputs, so that inputs can be computed that few at a time.
constexpr std::int64_t kRowRangeDepthBlock = 128;

// out = epilogue(x weight^T)
template <typename T>
void linear(Matrix<T> x, std::int64_t rows, const PackedWeight& weight, const Epilogue<T>& epilogue,
            InstructionSet instruction_set, int threads, MutableMatrix<T> out);

// out = epilogue(relu(x first^T) second^T). Requires: one group each.
template <typename T>
void feed_forward(Matrix<T> x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second,
                  const Epilogue<T>& epilogue, InstructionSet instruction_set, int threads, MutableMatrix<T> out);

// The end of an attention unit and the feed-forward network after it: out = LayerNorm(relu(y first^T) second^T + y)
// with y = LayerNorm(x attention^T + residual).
//
// The product with `first` is not computed. With m the mean and s the deviation of a row of y before its LayerNorm,
// y first^T = (x folded^T + residual first^T - m sums) / s.
template <typename T>
struct FoldedFeedForward {
  const PackedWeight& attention;  // float, one group, as all three
  const PackedWeight& folded;     // first attention
  const T* sums;                  // the sums of the rows of first
  const PackedWeight& second;
};
// first_of_residual: residual first^T, [rows, hidden columns].
template <typename T>
void folded_feed_forward(Matrix<T> x, std::int64_t rows, const FoldedFeedForward<T>& weights, Matrix<T> residual,
                         Matrix<T> first_of_residual, T eps, InstructionSet instruction_set, int threads,
                         MutableMatrix<T> out);

// A convolution over rows with three taps and zero padding: out = epilogue(sum over tap of x[row + tap - 1]
// weight[tap]^T). Channel c of row r is x[r * row_stride + c * channel_stride]. Requires: the inputs of a weight's
// group, not of int8, are ordered by tap, then channel.
template <typename T>
void convolution(const T* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Epilogue<T>& epilogue, InstructionSet instruction_set, int threads,
                 MutableMatrix<T> out);

// Ranges of rows of out, and for each group of a weight the range of rows of x that it takes for them. A range is
// groups + 2 numbers: the first source row of each group, the first target row, the number of rows.
struct RowRanges {
  const std::int32_t* numbers;
  std::int64_t count, groups;

  std::int64_t source(std::int64_t range, std::int64_t group) const { return numbers[range * (groups + 2) + group]; }
  std::int64_t target(std::int64_t range) const { return source(range, groups); }
  std::int64_t rows(std::int64_t range) const { return source(range, groups + 1); }
};

// A layer on some rows: out = epilogue(sum over groups of x[source row] weight[group]^T). The inputs of a group may
// reach into the rows after its source row: a map of cells [rows, columns] is convolved by three groups, each of which
// takes three neighbouring cells. Requires: no int8, an epilogue of bias and ReLU only, ranges with different target
// rows.
template <typename T>
void linear_row_ranges(Matrix<T> x, const RowRanges& ranges, const PackedWeight& weight, const Epilogue<T>& epilogue,
                       InstructionSet instruction_set, int threads, MutableMatrix<T> out);

// Anchor projection: epilogue(sum over bins n of (what an anchor samples of sequence sources[n] for bin n)
// weight[n]^T). A block of columns is projected for all bins into the cache and gathered from there.
template <typename T>
struct AnchorProjection {
  Matrix<T> x;  // [sequences * snippets, inputs]
  std::int64_t snippets;
  const std::int32_t* sources;  // [bins]
  const PackedWeight& weight;   // one group per bin, not of int8
  GroupPlan<T> plan;            // its rows are bin * snippets + snippet
  Epilogue<T> epilogue;         // bias, and a residual or ReLU
};
// out: [anchors, outputs of the weight]
template <typename T>
void project_anchors(const AnchorProjection<T>& projection, InstructionSet instruction_set, int threads,
                     MutableMatrix<T> out);

// A layer on projected anchors: `linear_row_ranges` with one group and x = project_anchors(projection). Only `columns`
// of the projection's columns exist at a time, in `projected`, and the layer's results on them are added up. Requires:
// `columns` is a multiple of kRowRangeDepthBlock, or all.
template <typename T>
void project_row_ranges(const AnchorProjection<T>& projection, MutableMatrix<T> projected, std::int64_t columns,
                        const RowRanges& ranges, const PackedWeight& weight, const Epilogue<T>& epilogue,
                        InstructionSet instruction_set, int threads, MutableMatrix<T> out);

}  // namespace bcnet_fast
