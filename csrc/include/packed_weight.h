// The weights of a layer as its product reads them.
#pragma once

#include <cstdint>
#include <memory>

namespace bcnet_fast {

// The weights of a linear layer, or of `groups` of them side by side: group g takes the inputs from g * inputs on, and
// makes the outputs from g * outputs on. Columns lie together in panels of 32 (tiles.h), one depth after the other.
class PackedWeight {
 public:
  enum class Kind { float32, float64, int8 };

  // weight is [groups * outputs, inputs], contiguous and finite. int8, for float32 and at most kMostBytes inputs,
  // rounds the weights of each output to 8 bits of one scale.
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

}  // namespace bcnet_fast
