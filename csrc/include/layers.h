// The layers of a network for inference: products with weights that are packed once, and what follows them while the
// results are still in the cache.
#pragma once

#include <cstdint>
#include <memory>

#include "anchor_sampling.h"
#include "simd.h"

namespace bcnet_fast {

// The weights of a linear layer, or of `groups` of them side by side: group g takes the inputs from g * inputs on, and
// makes the outputs from g * outputs on. Columns lie together in panels of 32 (tiles.h), one depth after the other.
class PackedWeight {
 public:
  enum class Kind { float32, float64, int8 };

  // weight is [groups * outputs, inputs], contiguous and finite. int8, for float32 alone, rounds the weights of each output to
  // 8 bits of one scale.
  template <typename T>
  PackedWeight(const T* weight, std::int64_t groups, std::int64_t outputs, std::int64_t inputs, bool int8, int threads);

  // The outputs from `first` to `last` as a weight of its own, which shares the memory; one group, whole panels.
  PackedWeight part(std::int64_t first, std::int64_t last) const;

  Kind kind() const { return kind_; }
  bool int8() const { return kind_ == Kind::int8; }
  std::int64_t groups() const { return groups_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t padded_outputs() const;
  std::int64_t padded_inputs() const;  // of int8, which takes four at a time

  // The panels of a group, of the type that the kind says.
  template <typename T>
  const T* panels(std::int64_t group) const {
    return reinterpret_cast<const T*>(panels_.get()) + group * stride_;
  }
  // Of int8 alone, per output, filled up to whole panels: what one step is worth, and the sum of its weights in steps.
  const float* scales(std::int64_t group) const { return scales_.get() + group * padded_outputs(); }
  const std::int32_t* sums(std::int64_t group) const { return sums_.get() + group * padded_outputs(); }

 private:
  template <typename T>
  void pack_numbers(const T* weight, int threads, T* panels) const;
  template <typename T>
  void pack_integers(const T* weight, int threads, std::int8_t* panels, float* scales, std::int32_t* sums) const;

  Kind kind_;
  std::int64_t groups_, outputs_, inputs_;
  std::int64_t stride_, bytes_;  // elements from group to group; all memory
  std::shared_ptr<const char> panels_;
  std::shared_ptr<const float> scales_;
  std::shared_ptr<const std::int32_t> sums_;
};

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
// row of its inputs to 8 bits, with a scale and a zero of its own, and its sums are exact. x has `rows` rows, out overlaps
// nothing, and the result has the same bits for any number of threads.

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
// inputs of a weight's group are ordered by tap, then channel. Channel c of row r is x[r * row_stride + c * channel_stride].
template <typename T>
void convolution(const T* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Finish<T>& finish, InstructionSet instruction_set, int threads, Output<T> out);

// Anchor projection: added + sum over bin n of (what anchor p samples of x for bin n) weight[n]^T. x has one row per snippet,
// the weight one group per bin, not of int8; the plan's rows are bin * snippets + snippet. A block of columns is projected
// for all bins into the cache and gathered from there.
template <typename T>
void project_anchors(Matrix<T> x, std::int64_t snippets, const PackedWeight& weight, const GroupPlan<T>& plan, Matrix<T> added,
                     InstructionSet instruction_set, int threads, Output<T> out);

}  // namespace bcnet_fast
