// Tiles (tiles.h) of 8 bit integers: unsigned numbers of the left matrix, four at a time, times signed ones of the right.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "gemm/tiles.h"

namespace bcnet_fast {

// Of a product's inputs, so that sums fit in 32 bits.
constexpr std::int64_t kMostBytes = std::numeric_limits<std::int32_t>::max() / (255 * 127);

// Whether one instruction makes four products and adds them up (AVX-512 VNNI), and can be named (simd.h). Tiles of 64 bytes
// need it, the others have plain code, which is slower than float.
inline bool has_byte_products() {
#ifdef BCNET_BY_NAME
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// Of the columns of a tile: what a step of their weights is worth, and the sum of their weights in steps.
struct ByteColumns {
  const float* scales;
  const std::int32_t* sums;
};

// sum + the products of four unsigned bytes a with each four signed bytes of b.
template <int bytes>
BCNET_INLINE Vector<std::int32_t, bytes> add_byte_products(Vector<std::int32_t, bytes> sum, const std::uint8_t* a,
                                                           const std::int8_t* b) {
  using V = Vector<std::int32_t, bytes>;
  constexpr int lanes = static_cast<int>(sizeof(V) / 4);
  std::int32_t products[lanes];
  for (int i = 0; i < lanes; ++i) {
    products[i] = a[0] * b[4 * i] + a[1] * b[4 * i + 1] + a[2] * b[4 * i + 2] + a[3] * b[4 * i + 3];
  }
  return sum + load<V>(products);
}

#ifdef BCNET_BY_NAME
// Four bytes in all elements. As an instruction, since GCC 12 would have it that loads of bytes change the accumulators.
BCNET_INLINE Vector<std::int32_t, 64> broadcast_bytes(const std::uint8_t* from) {
  struct Four { std::uint8_t bytes[4]; };
  Vector<std::int32_t, 64> vector;
  asm("vpbroadcastd %1, %0" : "=v"(vector) : "m"(*reinterpret_cast<const Four*>(from)));
  return vector;
}

// In place of an intrinsic, which only functions with its target attribute may call.
BCNET_INLINE Vector<std::int32_t, 64> dot_bytes(Vector<std::int32_t, 64> sum, Vector<std::int32_t, 64> a,
                                                Vector<std::int32_t, 64> b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
#endif

template <int bytes, int rows>
struct ByteAccumulators {
  using I = Vector<std::int32_t, bytes>;
  using V = Vector<float, bytes>;
  static constexpr int lanes = Tiles<float, bytes>::lanes;
  I low{}, high{};
  ByteAccumulators<bytes, rows - 1> rest;

  BCNET_INLINE void step(const std::uint8_t* a, std::int64_t a_stride, const std::int8_t* b) {
#ifdef BCNET_BY_NAME
    if constexpr (bytes >= 64) {
      const I four = broadcast_bytes(a);
      low = dot_bytes(low, four, load<I>(b));
      high = dot_bytes(high, four, load<I>(b + 4 * lanes));
    } else
#endif
    {
      low = add_byte_products<bytes>(low, a, b);
      high = add_byte_products<bytes>(high, a, b + 4 * lanes);
    }
    rest.step(a + a_stride, a_stride, b);
  }

  // (sum - zero * sum of the weights) * both scales, as float.
  BCNET_INLINE void store(const float* scales, const std::int32_t* zeros, const ByteColumns& columns, bool relu, float* out,
                          std::int64_t out_stride) const {
    for (int half = 0; half < 2; ++half) {
      const I sums = (half ? high : low) - *zeros * load<I>(columns.sums + half * lanes);
      const V value = __builtin_convertvector(sums, V) * (*scales * load<V>(columns.scales + half * lanes));
      bcnet_fast::store(out + half * lanes, relu ? (value < V{} ? V{} : value) : value);
    }
    rest.store(scales + 1, zeros + 1, columns, relu, out + out_stride, out_stride);
  }
};

template <int bytes>
struct ByteAccumulators<bytes, 0> {
  BCNET_INLINE void step(const std::uint8_t*, std::int64_t, const std::int8_t*) {}
  BCNET_INLINE void store(const float*, const std::int32_t*, const ByteColumns&, bool, float*, std::int64_t) const {}
};

// out[r, c] = the product of the numbers that a[r, :] and b[:, c] stand for; `fours` steps of four bytes each.
template <int bytes, int most_rows = kTileRows<bytes>>
BCNET_INLINE void byte_tile(int rows, const std::uint8_t* a, std::int64_t a_stride, const std::int8_t* b,
                            std::int64_t fours, const float* scales, const std::int32_t* zeros, const ByteColumns& columns,
                            bool relu, float* out, std::int64_t out_stride) {
  if constexpr (most_rows > 1) {
    if (rows < most_rows) {
      return byte_tile<bytes, most_rows - 1>(rows, a, a_stride, b, fours, scales, zeros, columns, relu, out, out_stride);
    }
  }
  ByteAccumulators<bytes, most_rows> tile;
  for (std::int64_t k = 0; k < fours; ++k) tile.step(a + 4 * k, a_stride, b + k * 4 * kPanel);
  tile.store(scales, zeros, columns, relu, out, out_stride);
}

}  // namespace bcnet_fast
