#include "gemm/packed_weight.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "gemm/panels.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"

namespace bcnet_fast {
namespace {

// Without an early exit, so that compilers vectorise it.
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

PackedWeight::PackedWeight(Kind kind, std::int64_t groups, std::int64_t outputs, std::int64_t inputs)
    : kind_(kind), groups_(groups), outputs_(outputs), inputs_(inputs) {
  stride_ = padded_outputs() * (int8() ? padded_inputs() : inputs_);
  bytes_ = groups_ * stride_ * (int8() ? 1 : kind == Kind::float64 ? 8 : 4);
  panels_ = own_pages(static_cast<std::size_t>(bytes_));
  if (!int8()) return;
  std::memset(panels_.get(), 0, static_cast<std::size_t>(bytes_));
  const std::int64_t columns = groups_ * padded_outputs();
  scales_.reset(new float[columns](), std::default_delete<float[]>());
  sums_.reset(new std::int32_t[columns](), std::default_delete<std::int32_t[]>());
}

template <typename T>
PackedWeight::PackedWeight(const WeightView<T>& weight, bool int8, int threads)
    : PackedWeight(int8                          ? Kind::int8
                   : sizeof(T) == sizeof(double) ? Kind::float64
                                                 : Kind::float32,
                   weight.groups, weight.outputs, weight.inputs) {
  pack(weight, 0, threads);
}

template <typename T>
void PackedWeight::pack(const WeightView<T>& weight, std::int64_t first, int threads) {
  finite_ &= int8() ? pack_integers(weight, first, threads) : pack_numbers(weight, first, threads);
}

template PackedWeight::PackedWeight(const WeightView<float>&, bool, int);
template PackedWeight::PackedWeight(const WeightView<double>&, bool, int);
template void PackedWeight::pack(const WeightView<float>&, std::int64_t, int);
template void PackedWeight::pack(const WeightView<double>&, std::int64_t, int);

PackedWeight PackedWeight::slice(std::int64_t first, std::int64_t last) const {
  PackedWeight result = *this;
  result.outputs_ = last - first;
  result.bytes_ = bytes_ / padded_outputs() * result.padded_outputs();
  // The pointers share ownership of all the memory, and point to their part of it.
  result.panels_ = std::shared_ptr<char>(panels_, panels_.get() + bytes_ / padded_outputs() * first);
  if (int8()) {
    result.scales_ = std::shared_ptr<float>(scales_, scales_.get() + first);
    result.sums_ = std::shared_ptr<std::int32_t>(sums_, sums_.get() + first);
  }
  return result;
}

template <typename T>
bool PackedWeight::pack_numbers(const WeightView<T>& weight, std::int64_t first, int threads) {
  T* const panels = reinterpret_cast<T*>(panels_.get()) + first * inputs_;
  // The same panel of all groups in turn: where groups lie side by side in memory, they are then read from the cache.
  WorkQueue queue((weight.outputs + kPanel - 1) / kPanel * groups_);
  std::atomic<bool> finite{true};
  run_in_threads(threads, [&](int) {
    for (std::int64_t item; queue.next(item);) {
      const std::int64_t group = item % groups_, output = item / groups_ * kPanel;
      const std::int64_t used = std::min<std::int64_t>(kPanel, weight.outputs - output);
      const T* const from = weight.data + group * weight.group_stride + output * weight.output_stride;
      T* const to = panels + group * stride_ + output * inputs_;
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
bool PackedWeight::pack_integers(const WeightView<T>& weight, std::int64_t first, int threads) {
  auto* const panels = reinterpret_cast<std::int8_t*>(panels_.get());
  WorkQueue queue(groups_ * weight.outputs);
  std::atomic<bool> finite{true};
  run_in_threads(threads, [&](int) {
    for (std::int64_t row; queue.next(row);) {
      const std::int64_t group = row / weight.outputs, source = row % weight.outputs, output = first + source;
      const T* const from = weight.data + group * weight.group_stride + source * weight.output_stride;
      const auto value_at = [&](std::int64_t k) { return from[k * weight.input_stride]; };
      T largest = 0;
      T fault = 0;  // NaN if a value is not finite
      for (std::int64_t k = 0; k < inputs_; ++k) {
        largest = std::max(largest, std::abs(value_at(k)));
        fault += value_at(k) * 0;
      }
      if (fault != 0) {
        finite = false;
        continue;
      }
      // As for rows, a smaller step has no finite inverse.
      const T scale = largest / 127 >= std::numeric_limits<T>::min() ? largest / 127 : T(1);
      std::int8_t* const to =
          panels + group * stride_ + output / kPanel * kPanel * padded_inputs() + output % kPanel * 4;
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < inputs_; ++k) {
        const auto value = static_cast<std::int32_t>(std::lround(value_at(k) / scale));
        to[k / 4 * 4 * kPanel + k % 4] = static_cast<std::int8_t>(value);
        sum += value;
      }
      scales_.get()[group * padded_outputs() + output] = static_cast<float>(scale);
      sums_.get()[group * padded_outputs() + output] = sum;
    }
  });
  return finite;
}

}  // namespace bcnet_fast
