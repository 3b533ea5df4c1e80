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
  // weight is [groups * outputs, inputs], contiguous and finite. int8 rounds each output's weights to 8 bits of one scale.
  PackedWeight(const float* weight, std::int64_t groups, std::int64_t outputs, std::int64_t inputs, bool int8);

  std::int64_t groups() const { return groups_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  bool int8() const { return int8_; }
  std::int64_t bytes() const { return bytes_; }

  const float* floats(std::int64_t group) const { return reinterpret_cast<const float*>(memory_.get()) + group * stride_; }
  const std::int8_t* integers(std::int64_t group) const {
    return reinterpret_cast<const std::int8_t*>(memory_.get()) + group * stride_;
  }
  // Of int8 alone, per output, filled up to whole panels: what one step is worth, and the sum of its weights in steps.
  const float* scales(std::int64_t group) const { return scales_.get() + group * padded_outputs(); }
  const std::int32_t* sums(std::int64_t group) const { return sums_.get() + group * padded_outputs(); }

  std::int64_t padded_outputs() const;
  std::int64_t padded_inputs() const;  // of int8, which takes four at a time

 private:
  struct Free {
    void operator()(void* memory) const;
  };
  void pack_floats(const float* weight);
  void pack_integers(const float* weight);

  std::int64_t groups_, outputs_, inputs_;
  bool int8_;
  std::int64_t stride_, bytes_;  // elements from group to group; all memory
  std::unique_ptr<char[], Free> memory_;
  std::unique_ptr<float[]> scales_;
  std::unique_ptr<std::int32_t[]> sums_;
};

// A matrix of which neighbours in a row lie together. Null where there is none.
struct Matrix {
  const float* data = nullptr;
  std::int64_t stride = 0;  // elements from row to row
};

// What is done to a row of results: + bias, ReLU, + added (row by row), LayerNorm without scale and shift.
struct Finish {
  const float* bias = nullptr;
  bool relu = false;
  Matrix added[2];
  bool norm = false;
  float eps = 1e-5f;
};

struct Output {
  float* data;
  std::int64_t stride;
};

// In all of these, x has `rows` rows, out may be x or what is added only if both have the same stride, and the result has
// the same bits for any number of threads. An int8 weight makes the layer round each row of its inputs to 8 bits, with a
// scale and a zero of its own; sums are exact.

// finish(x weight^T)
void linear(Matrix x, std::int64_t rows, const PackedWeight& weight, const Finish& finish, InstructionSet instruction_set,
            int threads, Output out);

// finish(relu(x first^T) second^T); one group each.
void feed_forward(Matrix x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second, const Finish& finish,
                  InstructionSet instruction_set, int threads, Output out);

// A convolution over rows with three taps and zeros around, finish(sum over tap of x[row + tap - 1] weight[tap]^T). The
// inputs of a weight's group are ordered by tap, then channel. Channel c of row r is x[r * row_stride + c * channel_stride].
void convolution(const float* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Finish& finish, InstructionSet instruction_set, int threads, Output out);

// Anchor projection: added + sum over bin n of (what anchor p samples of x for bin n) weight[n]^T. x has one row per snippet,
// the weight one group per bin, of float32; the plan's rows are bin * snippets + snippet. A block of columns is projected
// for all bins into the cache and gathered from there.
void project_anchors(Matrix x, std::int64_t snippets, const PackedWeight& weight, const GroupPlan<float>& plan, Matrix added,
                     InstructionSet instruction_set, int threads, Output out);

}  // namespace bcnet_fast
