#include "packed_weight.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "memory.h"
#include "parallel.h"
#include "tiles.h"

namespace bcnet_fast {
namespace {

// Without an exit, so by vectors.
template <typename T>
bool all_finite(const T* numbers, std::int64_t count) {
  bool finite = true;
  for (std::int64_t i = 0; i < count; ++i) finite &= numbers[i] - numbers[i] == 0;
  return finite;
}

constexpr std::int64_t round_up(std::int64_t number, std::int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

}  // namespace

std::int64_t PackedWeight::padded_outputs() const { return round_up(outputs_, kPanel); }
std::int64_t PackedWeight::padded_inputs() const { return round_up(inputs_, 4); }

template <typename T>
PackedWeight::PackedWeight(const GivenWeight<T>& weight, bool int8, int threads)
    : kind_(int8 ? Kind::int8 : sizeof(T) == sizeof(double) ? Kind::float64 : Kind::float32),
      groups_(weight.groups), outputs_(weight.outputs), inputs_(weight.inputs) {
  stride_ = padded_outputs() * (int8 ? padded_inputs() : inputs_);
  bytes_ = groups_ * stride_ * static_cast<std::int64_t>(int8 ? sizeof(std::int8_t) : sizeof(T));
  panels_ = own_pages(static_cast<std::size_t>(bytes_));
  void* const memory = const_cast<char*>(panels_.get());
  if (!int8) {
    finite_ = pack_numbers(weight, threads, static_cast<T*>(memory));
    return;
  }
  const std::int64_t columns = groups_ * padded_outputs();
  auto* const scales = new float[columns]();
  scales_.reset(scales, std::default_delete<const float[]>());
  auto* const sums = new std::int32_t[columns]();
  sums_.reset(sums, std::default_delete<const std::int32_t[]>());
  finite_ = pack_integers(weight, threads, static_cast<std::int8_t*>(memory), scales, sums);
}

template PackedWeight::PackedWeight(const GivenWeight<float>&, bool, int);
template PackedWeight::PackedWeight(const GivenWeight<double>&, bool, int);

PackedWeight PackedWeight::part(std::int64_t first, std::int64_t last) const {
  PackedWeight result = *this;
  result.outputs_ = last - first;
  result.bytes_ = bytes_ / padded_outputs() * result.padded_outputs();
  // The pointers own all of the memory and point to their part of it.
  result.panels_ = std::shared_ptr<const char>(panels_, panels_.get() + bytes_ / padded_outputs() * first);
  if (int8()) {
    result.scales_ = std::shared_ptr<const float>(scales_, scales_.get() + first);
    result.sums_ = std::shared_ptr<const std::int32_t>(sums_, sums_.get() + first);
  }
  return result;
}

template <typename T>
bool PackedWeight::pack_numbers(const GivenWeight<T>& weight, int threads, T* panels) const {
  // The same panel of all groups in a row: where groups lie side by side in memory, they are read from the cache.
  WorkQueue queue(padded_outputs() / kPanel * groups_);
  std::atomic<bool> finite{true};
  run_in_threads(threads, [&](int) {
    for (std::int64_t item; queue.next(item);) {
      const std::int64_t group = item % groups_, first = item / groups_ * kPanel;
      const std::int64_t used = std::min<std::int64_t>(kPanel, outputs_ - first);
      const T* const from = weight.data + group * weight.group_stride + first * weight.output_stride;
      T* const to = panels + group * stride_ + first * inputs_;
      for (std::int64_t k = 0; k < inputs_; ++k) {
        for (std::int64_t c = 0; c < kPanel; ++c) {
          to[k * kPanel + c] = c < used ? from[c * weight.output_stride + k * weight.input_stride] : T(0);
        }
      }
      if (!all_finite(to, inputs_ * kPanel)) finite = false;
    }
  });
  return finite;
}

template <typename T>
bool PackedWeight::pack_integers(const GivenWeight<T>& given, int threads, std::int8_t* panels, float* scales,
                                 std::int32_t* sums) const {
  std::memset(panels, 0, static_cast<std::size_t>(bytes_));
  WorkQueue queue(groups_ * outputs_);
  std::atomic<bool> finite{true};
  run_in_threads(threads, [&](int) {
    for (std::int64_t row; queue.next(row);) {
      const std::int64_t group = row / outputs_, output = row % outputs_;
      const T* const from = given.data + group * given.group_stride + output * given.output_stride;
      const auto weight = [&](std::int64_t k) { return from[k * given.input_stride]; };
      T largest = 0;
      T fault = 0;  // or NaN
      for (std::int64_t k = 0; k < inputs_; ++k) {
        largest = std::max(largest, std::abs(weight(k)));
        fault += weight(k) * 0;
      }
      if (fault != 0) {
        finite = false;
        continue;
      }
      // As for rows, a smaller step has no inverse.
      const T scale = largest / 127 >= std::numeric_limits<T>::min() ? largest / 127 : T(1);
      std::int8_t* const to =
          panels + group * stride_ + output / kPanel * kPanel * padded_inputs() + output % kPanel * 4;
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < inputs_; ++k) {
        const auto value = static_cast<std::int32_t>(std::lround(weight(k) / scale));
        to[k / 4 * 4 * kPanel + k % 4] = static_cast<std::int8_t>(value);
        sum += value;
      }
      scales[group * padded_outputs() + output] = static_cast<float>(scale);
      sums[group * padded_outputs() + output] = sum;
    }
  });
  return finite;
}

}  // namespace bcnet_fast
