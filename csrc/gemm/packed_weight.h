// The weights of a layer as its product reads them.
#pragma once

#include <cstdint>
#include <memory>

namespace bcnet_fast {

// View of a layer's weights before they are packed: that of output o of group g for input i is
// data[g * group_stride + o * output_stride + i * input_stride].
template <typename T>
struct WeightView {
  const T* data;
  std::int64_t groups, outputs, inputs;  // outputs and inputs of a group
  std::int64_t group_stride, output_stride, input_stride;
};

// The weights of a linear layer, or of `groups` of them side by side: group g takes the inputs from g * inputs on, and
// makes the outputs from g * outputs on. Columns lie together in panels of 32 (panels.h), one depth after the other.
class PackedWeight {
 public:
  enum class Kind { float32, float64, int8 };

  // Packs a weight; with `int8`, rounds the weights of each output to 8 bits of one scale.
  // Requires: for int8, T float and at most kMaxInt8Inputs inputs.
  template <typename T>
  PackedWeight(const WeightView<T>& weight, bool int8, int threads);

  // A weight without values, for `pack` to fill with some outputs of each group at a time.
  PackedWeight(Kind kind, std::int64_t groups, std::int64_t outputs, std::int64_t inputs);

  // Packs a weight as the outputs from `first` on. Requires: whole panels, but for the last one.
  template <typename T>
  void pack(const WeightView<T>& weight, std::int64_t first, int threads);

  // The outputs from `first` to `last` as a weight of its own. Requires: one group, whole panels. Aliases: the panels.
  PackedWeight slice(std::int64_t first, std::int64_t last) const;

  // Makes `linear` and the feed-forward networks multiply by Strassen's algorithm.
  // Requires: float32, an even number of inputs.
  void use_strassen() { strassen_ = true; }

  Kind kind() const { return kind_; }
  bool strassen() const { return strassen_; }
  bool int8() const { return kind_ == Kind::int8; }
  bool finite() const { return finite_; }  // whether all packed values are; else products with it are not defined
  std::int64_t groups() const { return groups_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t outputs() const { return outputs_; }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t padded_outputs() const;
  std::int64_t padded_inputs() const;  // of int8, which takes four at a time

  // The panels of a group. Requires: T as `kind` says.
  template <typename T>
  const T* panels(std::int64_t group) const {
    return reinterpret_cast<const T*>(panels_.get()) + group * stride_;
  }

  // Only for int8, per output, padded to whole panels: the size of a step, and the sum of the weights in steps.
  const float* scales(std::int64_t group) const { return scales_.get() + group * padded_outputs(); }
  const std::int32_t* sums(std::int64_t group) const { return sums_.get() + group * padded_outputs(); }

 private:
  template <typename T>
  bool pack_numbers(const WeightView<T>& weight, std::int64_t first, int threads);
  template <typename T>
  bool pack_integers(const WeightView<T>& weight, std::int64_t first, int threads);

  Kind kind_;
  bool finite_ = true, strassen_ = false;
  std::int64_t groups_, outputs_, inputs_;
  std::int64_t stride_, bytes_;  // elements from group to group; bytes of all panels
  std::shared_ptr<char> panels_;
  std::shared_ptr<float> scales_;
  std::shared_ptr<std::int32_t> sums_;
};

}  // namespace bcnet_fast
