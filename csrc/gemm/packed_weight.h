// The weights of a layer as its product reads them.
#pragma once

#include <cstdint>
#include <memory>

namespace bcnet_fast {

// Where the weights of a layer lie before they are packed: those of output o of group g for input i are at
// data[g * group_stride + o * output_stride + i * input_stride].
template <typename T>
struct GivenWeight {
  const T* data;
  std::int64_t groups, outputs, inputs;  // outputs and inputs of a group
  std::int64_t group_stride, output_stride, input_stride;
};

// The weights of a linear layer, or of `groups` of them side by side: group g takes the inputs from g * inputs on, and
// makes the outputs from g * outputs on. Columns lie together in panels of 32 (tiles.h), one depth after the other.
class PackedWeight {
 public:
  enum class Kind { float32, float64, int8 };

  // int8 is for float32 and at most kMostBytes inputs: the weights of each output are rounded to 8 bits of one scale.
  template <typename T>
  PackedWeight(const GivenWeight<T>& weight, bool int8, int threads);

  // A weight that is left empty, for `pack` to fill, which takes some outputs of each group: those from `first` on, whole
  // panels but for the last one.
  PackedWeight(Kind kind, std::int64_t groups, std::int64_t outputs, std::int64_t inputs);
  template <typename T>
  void pack(const GivenWeight<T>& weight, std::int64_t first, int threads);

  // The outputs from `first` to `last` as a weight of its own, which shares the memory; one group, whole panels.
  PackedWeight part(std::int64_t first, std::int64_t last) const;

  // That `linear` and the feed-forward networks multiply with it by Strassen's algorithm. It is of float32, and has an even
  // number of inputs.
  void use_strassen() { strassen_ = true; }

  Kind kind() const { return kind_; }
  bool strassen() const { return strassen_; }
  bool int8() const { return kind_ == Kind::int8; }
  bool finite() const { return finite_; }  // whether all that was packed is; else it is of no use
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
  bool pack_numbers(const GivenWeight<T>& weight, std::int64_t first, int threads);
  template <typename T>
  bool pack_integers(const GivenWeight<T>& weight, std::int64_t first, int threads);

  Kind kind_;
  bool finite_ = true, strassen_ = false;
  std::int64_t groups_, outputs_, inputs_;
  std::int64_t stride_, bytes_;  // elements from group to group; all memory
  std::shared_ptr<char> panels_;
  std::shared_ptr<float> scales_;
  std::shared_ptr<std::int32_t> sums_;
};

}  // namespace bcnet_fast
