// Products of a block of rows with a packed weight, in numbers or rounded to 8 bits, and what follows them while the results
// are still in the cache.
//
// For files that fuse products with their sums, see layers.cpp: bits depend on it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "gemm/byte_tiles.h"
#include "include/layers.h"
#include "gemm/packed_weight.h"
#include "gemm/strassen.h"
#include "gemm/tiles.h"

namespace bcnet_fast {

// Writes a product to out, tile by tile: P::tile computes one, of `count` rows from `first` on, or adds it to what is there.
// Results go through a buffer where not all columns of a tile exist.
template <int bytes, typename T, typename P>
BCNET_INLINE void multiply_tiles(const P& product, std::int64_t rows, std::int64_t columns, T* out,
                                 std::int64_t out_stride) {
  constexpr int width = Tiles<T, bytes>::width, most_rows = kTileRows<bytes>;
  const std::int64_t tiles = (rows + most_rows - 1) / most_rows;  // of about one size
  for (std::int64_t column = 0; column < columns; column += width) {
    const std::int64_t used = std::min<std::int64_t>(width, columns - column);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = rows * t / tiles;
      const int count = static_cast<int>(rows * (t + 1) / tiles - first);
      T* const to = out + first * out_stride + column;
      T buffer[most_rows * width];
      const bool whole = used == width;
      for (int r = 0; r < count && !whole && product.adds(); ++r) {
        std::memcpy(buffer + r * width, to + r * out_stride, sizeof(T) * used);
      }
      product.tile(column, first, count, whole ? to : buffer, whole ? out_stride : width);
      for (int r = 0; r < count && !whole; ++r) std::memcpy(to + r * out_stride, buffer + r * width, sizeof(T) * used);
    }
  }
}

BCNET_VERSIONS(multiply_tiles)

template <typename T, int bytes>
struct Product {
  const T* a;
  std::int64_t a_stride;
  const T* panels;
  std::int64_t depth;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, T* to, std::int64_t stride) const {
    const T* const b = panels + column / kPanel * kPanel * depth + column % kPanel;
    multiply_tile<bytes>(count, a + first * a_stride, a_stride, b, kPanel, depth, kPart, relu, to, stride);
  }
};

// A block of rows rounded to 8 bits: x = (q - zero) scale. The scale of a row that is not finite is NaN.
struct ByteRows {
  std::uint8_t* data;
  std::int64_t stride;
  float* scales;
  std::int32_t* zeros;
};

template <int bytes>
BCNET_INLINE void round_row(const float* x, std::int64_t count, std::uint8_t* out, std::int64_t padded, float& scale,
                            std::int32_t& zero) {
  using V = Vector<float, bytes>;
  constexpr int lanes = Tiles<float, bytes>::lanes;
  // From 0 on, so that a row that has no negative numbers, like one after ReLU, gets all 256 steps above 0.
  V lowest_of{}, highest_of{}, faults{};  // faults are NaN, or else 0
  const std::int64_t whole = count / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    const V values = load<V>(x + i);
    lowest_of = values < lowest_of ? values : lowest_of;
    highest_of = values > highest_of ? values : highest_of;
    faults += values * 0.0f;
  }
  float lowest = 0, highest = 0, fault = sum_of<float>(faults);
  const auto include = [&](float low, float high) {
    lowest = std::min(lowest, low);
    highest = std::max(highest, high);
  };
  float lows[lanes], highs[lanes];
  std::memcpy(lows, &lowest_of, sizeof(lows));
  std::memcpy(highs, &highest_of, sizeof(highs));
  for (int i = 0; i < lanes; ++i) include(lows[i], highs[i]);
  for (std::int64_t i = whole; i < count; ++i) {
    include(x[i], x[i]);
    fault += x[i] * 0.0f;
  }
  const float step = (highest - lowest) / 255;
  if (!std::isfinite(step + fault)) {
    scale = std::numeric_limits<float>::quiet_NaN();
    zero = 0;
    std::memset(out, 0, static_cast<std::size_t>(padded));
    return;
  }
  // A smaller step has no inverse: the row counts as zeros.
  scale = step >= std::numeric_limits<float>::min() ? step : 1.0f;
  const float inverse = 1 / scale, begin = std::round(-lowest * inverse);
  zero = static_cast<std::int32_t>(begin);
  const float shift = begin + 0.5f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = x[i] * inverse + shift;
    out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(value < 0 ? 0 : value > 255 ? 255 : value));
  }
  std::memset(out + count, 0, static_cast<std::size_t>(padded - count));
}

template <int bytes>
struct ByteProduct {
  ByteRows a;
  const std::int8_t* panels;
  std::int64_t depth;
  ByteColumns columns;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, float* to, std::int64_t stride) const {
    const std::int8_t* const b = panels + column / kPanel * kPanel * depth + column % kPanel * 4;
    const ByteColumns of_tile{columns.scales + column, columns.sums + column};
    byte_tile<bytes>(count, a.data + first * a.stride, a.stride, b, depth / 4, a.scales + first, a.zeros + first, of_tile,
                     relu, to, stride);
  }
};

template <typename T>
struct RowMoments {
  T mean, scale;  // scale is 1 / deviation
};

// sum over i of f(i) for `count` numbers, where f makes a vector or a number: four sums at a time, so that none waits for the
// one before it.
template <typename T, int bytes, typename F>
BCNET_INLINE T sum_over(std::int64_t count, const F& f) {
  using V = Vector<T, bytes>;
  constexpr int lanes = Tiles<T, bytes>::lanes;
  V sum0{}, sum1{}, sum2{}, sum3{};
  std::int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    sum0 += f.template at<V>(i);
    sum1 += f.template at<V>(i + lanes);
    sum2 += f.template at<V>(i + 2 * lanes);
    sum3 += f.template at<V>(i + 3 * lanes);
  }
  for (; i + lanes <= count; i += lanes) sum0 += f.template at<V>(i);
  T sum = sum_of<T>((sum0 + sum1) + (sum2 + sum3));
  for (; i < count; ++i) sum += f.template at<T>(i);
  return sum;
}

// The numbers of a row, to which those of another one are added if there is one.
template <typename T>
struct AddedNumbers {
  T* row;
  const T* other;

  template <typename V>
  BCNET_INLINE V at(std::int64_t i) const {
    V value = load<V>(row + i);
    if (!other) return value;
    value += load<V>(other + i);
    store(row + i, value);
    return value;
  }
};

template <typename T>
struct Squares {
  const T* row;
  T mean;

  template <typename V>
  BCNET_INLINE V at(std::int64_t i) const {
    const V centred = load<V>(row + i) - mean;
    return centred * centred;
  }
};

// LayerNorm of row + other, in place; other may be null.
template <int bytes, typename T>
BCNET_INLINE RowMoments<T> norm_row(T* row, const T* other, std::int64_t columns, T eps) {
  const T share = T(1) / static_cast<T>(columns);
  const T mean = sum_over<T, bytes>(columns, AddedNumbers<T>{row, other}) * share;
  const T square = sum_over<T, bytes>(columns, Squares<T>{row, mean});
  const T scale = 1 / std::sqrt(square * share + eps);
  for (std::int64_t i = 0; i < columns; ++i) row[i] = (row[i] - mean) * scale;
  return {mean, scale};
}

// What follows a product, but for its ReLU where there is no bias; on rows first to last of the whole result.
template <int bytes, typename T>
BCNET_INLINE void finish_rows(const Finish<T>& finish, std::int64_t columns, std::int64_t first, std::int64_t last, Output<T> out) {
  for (std::int64_t r = first; r < last; ++r) {
    T* const row = out.data + r * out.stride;
    if (finish.bias) {
      for (std::int64_t i = 0; i < columns; ++i) {
        const T value = row[i] + finish.bias[i];
        row[i] = finish.relu && value < 0 ? 0 : value;
      }
    }
    const T* const other = finish.added.data ? finish.added.data + r * finish.added.stride : nullptr;
    if (finish.norm) {
      norm_row<bytes>(row, other, columns, finish.eps);
    } else if (other) {
      for (std::int64_t i = 0; i < columns; ++i) row[i] += other[i];
    }
  }
}

// The product of a block of rows with one group of an int8 weight.
template <int bytes>
BCNET_INLINE void multiply_bytes(const float* a, std::int64_t a_stride, std::int64_t rows, const PackedWeight& weight,
                                 std::int64_t group, bool relu, char* byte_scratch, float* out, std::int64_t out_stride) {
  const std::int64_t padded = weight.padded_inputs(), stride = padded + 64;
  const ByteRows rounded{reinterpret_cast<std::uint8_t*>(byte_scratch), stride,
                         reinterpret_cast<float*>(byte_scratch + rows * stride),
                         reinterpret_cast<std::int32_t*>(byte_scratch + rows * (stride + 4))};
  for (std::int64_t r = 0; r < rows; ++r) {
    round_row<bytes>(a + r * a_stride, weight.inputs(), rounded.data + r * stride, padded, rounded.scales[r],
                     rounded.zeros[r]);
  }
  const ByteColumns columns{weight.scales(group), weight.sums(group)};
  const ByteProduct<bytes> product{rounded, weight.panels<std::int8_t>(group), padded, columns, relu};
  multiply_tiles_with<bytes>(product, rows, weight.outputs(), out, out_stride);
}

// Elements of scratch, of one byte, that the product of a block of rows with a weight takes.
inline std::int64_t product_scratch(std::int64_t rows, const PackedWeight& weight) {
  if (weight.int8()) return rows * (weight.padded_inputs() + 64 + 8);
  return weight.strassen() ? strassen_scratch(rows / 2) * static_cast<std::int64_t>(sizeof(float)) : 0;
}

// The product of a block of rows with one group of a weight.
template <int bytes, typename T>
BCNET_INLINE void multiply(const T* a, std::int64_t a_stride, std::int64_t rows, const PackedWeight& weight,
                           std::int64_t group, bool relu, char* scratch, T* out, std::int64_t out_stride) {
  if (weight.int8()) {
    if constexpr (sizeof(T) == sizeof(float)) {
      multiply_bytes<bytes>(a, a_stride, rows, weight, group, relu, scratch, out, out_stride);
    }
    return;
  }
  const T* const panels = weight.template panels<T>(group);
  const std::int64_t depth = weight.inputs();
  const auto multiply_plainly = [&](std::int64_t first, std::int64_t last, std::int64_t column) {
    if (first == last || column == weight.outputs()) return;
    const Product<T, bytes> product{a + first * a_stride, a_stride, panels + column * depth, depth, relu};
    multiply_tiles_with<bytes>(product, last - first, weight.outputs() - column, out + first * out_stride + column, out_stride);
  };
  const std::int64_t pairs = rows / 2, panel_pairs = weight.outputs() / (2 * kPanel);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (weight.strassen() && panel_pairs > 0) {
      multiply_strassen(kSetOf<bytes>, Matrix<float>{a, a_stride}, pairs, panels, depth, panel_pairs, relu,
                        reinterpret_cast<float*>(scratch), out, out_stride);
      multiply_plainly(0, 2 * pairs, 2 * kPanel * panel_pairs);  // the columns without a partner
      return multiply_plainly(2 * pairs, rows, 0);               // the row without one
    }
  }
  multiply_plainly(0, rows, 0);
}

}  // namespace bcnet_fast
