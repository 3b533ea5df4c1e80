// Small products whose results stay in registers: what all matrix products of the inference engine are made of.
//
// A tile is a few rows times two vectors of columns. Each step of the depth loads the two vectors of the right matrix once
// and one number of the left matrix per row, so that on AVX-512 24 multiply-adds go with 14 loads, and both units for them
// are always busy. The accumulators are members of a recursive struct and not an array: GCC 12 keeps arrays in memory.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bcnet_fast {

constexpr int kPanel = 32;  // columns of a packed matrix that lie together, two of the largest vectors

// Rows in a tile: as many as leave registers for the two vectors and a number.
template <int bytes>
constexpr int kTileRows = bytes >= 64 ? 12 : bytes >= 32 ? 6 : 4;

template <int bytes>
struct FloatTiles {
  using V = Vector<float, bytes>;
  static constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(float)), width = 2 * lanes;
  static_assert(kPanel % width == 0);
};

// A number in all elements of a vector, straight from memory (`splat` would add it to zeros first).
template <int bytes>
BCNET_INLINE Vector<float, bytes> broadcast(const float* from) {
#ifdef BCNET_X86
  if constexpr (bytes >= 32) {
    Vector<float, bytes> vector;
    asm("vbroadcastss %1, %0" : "=v"(vector) : "m"(*from));
    return vector;
  }
#endif
  return splat<Vector<float, bytes>>(*from);
}

template <int bytes, int rows>
struct FloatAccumulators {
  using V = Vector<float, bytes>;
  V low{}, high{};
  FloatAccumulators<bytes, rows - 1> rest;

  BCNET_INLINE void step(const float* a, std::int64_t a_stride, V b_low, V b_high) {
    const V number = broadcast<bytes>(a);
    low += number * b_low;
    high += number * b_high;
    rest.step(a + a_stride, a_stride, b_low, b_high);
  }

  BCNET_INLINE void store(float* out, std::int64_t out_stride, bool relu) const {
    bcnet_fast::store(out, relu ? (low < V{} ? V{} : low) : low);
    bcnet_fast::store(out + FloatTiles<bytes>::lanes, relu ? (high < V{} ? V{} : high) : high);
    rest.store(out + out_stride, out_stride, relu);
  }
};

template <int bytes>
struct FloatAccumulators<bytes, 0> {
  using V = Vector<float, bytes>;
  BCNET_INLINE void step(const float*, std::int64_t, V, V) {}
  BCNET_INLINE void store(float*, std::int64_t, bool) const {}
};

// out[r, c] = sum over k of a[r, k] b[k, c], then ReLU if asked for, for `rows` <= kTileRows rows and `width` columns.
template <int bytes, int most_rows = kTileRows<bytes>>
BCNET_INLINE void float_tile(int rows, const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride,
                             std::int64_t depth, bool relu, float* out, std::int64_t out_stride) {
  if constexpr (most_rows > 1) {
    if (rows < most_rows) {
      return float_tile<bytes, most_rows - 1>(rows, a, a_stride, b, b_stride, depth, relu, out, out_stride);
    }
  }
  using V = Vector<float, bytes>;
  FloatAccumulators<bytes, most_rows> tile;
  for (std::int64_t k = 0; k < depth; ++k) {
    tile.step(a + k, a_stride, load<V>(b), load<V>(b + FloatTiles<bytes>::lanes));
    b += b_stride;
  }
  tile.store(out, out_stride, relu);
}

}  // namespace bcnet_fast
