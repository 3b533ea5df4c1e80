// The layers of a network for inference: products with weights that are packed once, and what follows them while the
// results are still in the cache.
#pragma once

#include <cstdint>

#include "include/anchor_sampling.h"
#include "gemm/packed_weight.h"
#include "simd/simd.h"

namespace bcnet_fast {

// A matrix of which neighbours in a row lie together. Null where there is none.
template <typename T>
struct Matrix {
  const T* data = nullptr;
  std::int64_t stride = 0;  // elements from row to row
};

template <typename T>
struct Output {
  T* data;
  std::int64_t stride;
};

// The products on runs of rows sum up parts of so many inputs, so that they can be made of that few at a time.
constexpr std::int64_t kRunPart = 128;

// What is done to a row of results: + bias, ReLU, + added (row by row), LayerNorm without scale and shift.
template <typename T>
struct Finish {
  const T* bias = nullptr;
  bool relu = false;
  Matrix<T> added;
  bool norm = false;
  T eps = 0;
};

// In all of these, T is float or double, and a weight is of the same kind, or int8 where T is float: then the layer rounds each
// row of its inputs to 8 bits, with a scale and a zero of its own, and its sums are exact; a row that is not finite
// becomes NaN. Where a weight is multiplied with by Strassen's algorithm, rows 2 i and 2 i + 1 have errors relative to the
// larger of both, and share what is not finite. x has `rows` rows, out overlaps nothing, and the result has the same bits for any number of threads.

// finish(x weight^T)
template <typename T>
void linear(Matrix<T> x, std::int64_t rows, const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set,
            int threads, Output<T> out);

// finish(relu(x first^T) second^T); one group each.
template <typename T>
void feed_forward(Matrix<T> x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second, const Finish<T>& finish,
                  InstructionSet instruction_set, int threads, Output<T> out);

// The end of an attention unit and the feed-forward after it, finish(relu(y first^T) second^T + y) with
// y = LayerNorm(x attention^T + added). LayerNorm is folded into the product with `first`, which is not made: with m the mean
// and s the deviation of y before LayerNorm, y first^T = (x folded^T + first_of_added - m sums) / s, where `folded` is
// first attention, `first_of_added` is added first^T, and `sums` is first 1. One group each, not of int8.
template <typename T>
struct FoldedFeedForward {
  const PackedWeight& attention;
  const PackedWeight& folded;
  const T* sums;
  const PackedWeight& second;
};
template <typename T>
void folded_feed_forward(Matrix<T> x, std::int64_t rows, const FoldedFeedForward<T>& weights, Matrix<T> added, Matrix<T> first_of_added,
                         T eps, InstructionSet instruction_set, int threads, Output<T> out);

// A convolution over rows with three taps and zeros around, finish(sum over tap of x[row + tap - 1] weight[tap]^T). The
// inputs of a weight's group, not of int8, are ordered by tap, then channel. Channel c of row r is
// x[r * row_stride + c * channel_stride].
template <typename T>
void convolution(const T* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set, int threads, Output<T> out);

// Rows of out that follow each other, and for each group of a weight the rows of x that they are made of, which do so as
// well. Of each run: where each group's rows begin, where those of out begin, how many they are.
struct Runs {
  const std::int32_t* numbers;
  std::int64_t count, groups;

  std::int64_t from(std::int64_t run, std::int64_t group) const { return numbers[run * (groups + 2) + group]; }
  std::int64_t to(std::int64_t run) const { return from(run, groups); }
  std::int64_t rows(std::int64_t run) const { return from(run, groups + 1); }
};

// A layer on some rows: finish(sum over groups of a row of x weight[group]^T), where what a group takes may reach into the
// rows after it. So a map of cells [rows, columns] is convolved by three groups, each for three cells side by side. Not of
// int8; finish may have a bias and ReLU. Runs write to different rows.
template <typename T>
void linear_runs(Matrix<T> x, const Runs& runs, const PackedWeight& weight, const Finish<T>& finish,
                 InstructionSet instruction_set, int threads, Output<T> out);

// Anchor projection: finish(sum over bin n of (what anchor p samples of sequence sources[n] for bin n) weight[n]^T). x has
// `snippets` rows of each sequence, the weight one group per bin, not of int8; the plan's rows are bin * snippets + snippet.
// finish may have a bias, and `added` or ReLU. A block of columns is projected for all bins into the cache and gathered from
// there.
template <typename T>
struct AnchorProjection {
  Matrix<T> x;
  std::int64_t snippets;
  const std::int32_t* sources;
  const PackedWeight& weight;
  GroupPlan<T> plan;
  Finish<T> finish;
};
template <typename T>
void project_anchors(const AnchorProjection<T>& projection, InstructionSet instruction_set, int threads, Output<T> out);

// A layer on projected anchors, as linear_runs has it, with one group: only `columns` of the projection's columns are made at
// a time, into `projected`, and what the layer makes of them is added up. They are a multiple of kRunPart, or all.
template <typename T>
void project_runs(const AnchorProjection<T>& projection, Output<T> projected, std::int64_t columns, const Runs& runs,
                  const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set, int threads,
                  Output<T> out);

}  // namespace bcnet_fast
