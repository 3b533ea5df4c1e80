// The arguments of the attention kernels, and the packing of keys and values in panels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gemm/panels.h"
#include "include/attention.h"
#include "runtime/scratch.h"

namespace bcnet_fast {

constexpr double kLog2E = 1.4426950408889634;

// Lower powers of 2 count as this one: the sum of a row is at least 1, of which this is far less than a rounding error,
// and products with it are still normal numbers. Denormal ones take processors several times as long.
template <typename T>
constexpr T kLowestPower = sizeof(T) == sizeof(float) ? T(-100) : T(-900);

constexpr std::int64_t padded(std::int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// Keys are packed with the sign of the scale, so that the largest product is the largest logit.
template <typename T>
T sign_of(const AttentionSizes& sizes) {
  return sizes.scale < 0 ? T(-1) : T(1);
}

// Elements from row to row of the map.
constexpr std::int64_t map_stride(const AttentionSizes& sizes) { return scratch_stride(padded(sizes.keys)); }

template <typename T>
struct AttentionWork {
  HeadRows<const T> query, key, values[2];
  int streams;
  AttentionSizes sizes;
  HeadRows<T> outputs[2];
  T* lse;
};

template <typename T>
struct BackwardWork {
  HeadRows<const T> grads[2], query, key, values[2];
  int streams;
  AttentionSizes sizes;
  AttentionGradients<T> gradients;
};

// Packs sign * from [rows, columns], transposed: panels of rows, one column after the other, zero beyond the last row.
template <typename T>
void pack_transposed(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t columns, T sign, T* to) {
  std::fill_n(to, padded(rows) * columns, T(0));
  for (std::int64_t r = 0; r < rows; ++r) {
    T* const panel = to + r / kPanel * kPanel * columns + r % kPanel;
    for (std::int64_t c = 0; c < columns; ++c) panel[c * kPanel] = sign * from[r * stride + c];
  }
}

// Packs from [rows, columns] in panels of columns, one row after the other, zero beyond the last column.
template <typename T>
void pack_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t columns, T* to) {
  for (std::int64_t c = 0; c < columns; c += kPanel, to += rows * kPanel) {
    const std::int64_t used = std::min<std::int64_t>(kPanel, columns - c);
    for (std::int64_t r = 0; r < rows; ++r) {
      std::copy_n(from + r * stride + c, used, to + r * kPanel);
      std::fill_n(to + r * kPanel + used, kPanel - used, T(0));
    }
  }
}

template <typename T>
void copy_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, T* to,
               std::int64_t to_stride) {
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(from + r * from_stride, columns, to + r * to_stride);
}

template <typename T>
struct RowSum {
  T highest, weight;  // the largest element; 1 / the sum of the powers
};

// Elements of workspace that the gradients of one head need, part by part.
struct BackwardWorkspace {
  std::int64_t keys, transposed_values, key_rows, map, block, grads, sums;

  BackwardWorkspace(const AttentionSizes& sizes, std::int64_t rows)
      : keys(padded(sizes.keys) * sizes.head_size),
        transposed_values(padded(sizes.keys) * sizes.value_size),
        key_rows(padded(sizes.head_size) * sizes.keys),
        map(rows * map_stride(sizes)),
        block(rows * std::max(padded(sizes.head_size), padded(sizes.value_size))),
        grads(sizes.keys * std::max(padded(sizes.head_size), padded(sizes.value_size))),
        sums(2 * rows) {}
  std::int64_t all() const { return keys + 2 * transposed_values + key_rows + 2 * map + block + 3 * grads + sums; }
};

}  // namespace bcnet_fast
