// Small products whose results stay in registers: what all matrix products of the inference engine are made of.
//
// A tile is a few rows times two vectors of columns. Each step of the depth loads the two vectors of the right matrix once
// and one number of the left matrix per row, so that on AVX-512 24 multiply-adds go with 14 loads, and both units for them
// are always busy. The accumulators are members of a recursive struct and not an array: GCC 12 keeps arrays in memory.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

constexpr int kPanel = 32;  // columns of a packed matrix that lie together, two of the largest vectors

// Sums are made in parts of so many products, which are then added up: rounding errors grow with the length of a sum.
constexpr std::int64_t kPart = 256;

// Rows in a tile: as many as leave registers for the two vectors and a number.
template <int bytes>
constexpr int kTileRows = bytes >= 64 ? 12 : bytes >= 32 ? 6 : 4;

template <typename T, int bytes>
struct Tiles {
  using V = Vector<T, bytes>;
  static constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T)), width = 2 * lanes;
  static_assert(kPanel % width == 0);
};

template <typename T, int bytes, int rows>
struct Accumulators {
  using V = Vector<T, bytes>;
  V low{}, high{};
  Accumulators<T, bytes, rows - 1> rest;

  BCNET_INLINE void step(const T* a, std::int64_t a_stride, V b_low, V b_high) {
    const V number = broadcast<T, bytes>(a);
    low += number * b_low;
    high += number * b_high;
    rest.step(a + a_stride, a_stride, b_low, b_high);
  }

  BCNET_INLINE void add(const T* out, std::int64_t out_stride) {
    low += load<V>(out);
    high += load<V>(out + Tiles<T, bytes>::lanes);
    rest.add(out + out_stride, out_stride);
  }

  BCNET_INLINE void store(T* out, std::int64_t out_stride, bool relu) const {
    bcnet_fast::store(out, relu ? (low < V{} ? V{} : low) : low);
    bcnet_fast::store(out + Tiles<T, bytes>::lanes, relu ? (high < V{} ? V{} : high) : high);
    rest.store(out + out_stride, out_stride, relu);
  }
};

template <typename T, int bytes>
struct Accumulators<T, bytes, 0> {
  using V = Vector<T, bytes>;
  BCNET_INLINE void step(const T*, std::int64_t, V, V) {}
  BCNET_INLINE void add(const T*, std::int64_t) {}
  BCNET_INLINE void store(T*, std::int64_t, bool) const {}
};

// out[r, c] = sum over k of a[r, k] b[k, c], then ReLU if asked for, for `rows` <= kTileRows rows and `width` columns.
// With `add`, the sum is added to what is in out. Elements of a row of a are a_step apart.
template <int bytes, typename T, int most_rows = kTileRows<bytes>>
BCNET_INLINE void multiply_tile(int rows, const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride,
                             std::int64_t depth, std::int64_t part, bool relu, T* out, std::int64_t out_stride,
                             bool add = false, std::int64_t a_step = 1) {
  if constexpr (most_rows > 1) {
    if (rows < most_rows) {
      return multiply_tile<bytes, T, most_rows - 1>(rows, a, a_stride, b, b_stride, depth, part, relu, out, out_stride, add,
                                                    a_step);
    }
  }
  using V = Vector<T, bytes>;
  for (std::int64_t begin = 0; begin < depth; begin += part) {
    const std::int64_t end = begin + part < depth ? begin + part : depth;
    Accumulators<T, bytes, most_rows> tile;
    for (std::int64_t k = begin; k < end; ++k) {
      tile.step(a + k * a_step, a_stride, load<V>(b), load<V>(b + Tiles<T, bytes>::lanes));
      b += b_stride;
    }
    if (begin || add) tile.add(out, out_stride);
    tile.store(out, out_stride, relu && end == depth);
  }
}

}  // namespace bcnet_fast
