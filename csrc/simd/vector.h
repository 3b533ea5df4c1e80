// Short vectors as a type, the same for all instruction sets.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// `bytes` bytes of elements T. Arithmetic and comparisons work element by element; the result of a comparison selects
// in `mask ? a : b`. With the bytes of one element, or with a compiler other than GCC and Clang, a vector is a plain
// number.
template <typename T, int bytes>
struct VectorType {
  static_assert(bytes == sizeof(T), "vectors need GCC or Clang");
  using type = T;
};

#if defined(__GNUC__)
constexpr int kBaselineBytes = 16;
#define BCNET_VECTOR(T, bytes)                          \
  template <>                                           \
  struct VectorType<T, bytes> {                         \
    typedef T type __attribute__((vector_size(bytes))); \
  };
#define BCNET_VECTORS(T) BCNET_VECTOR(T, 16) BCNET_VECTOR(T, 32) BCNET_VECTOR(T, 64)
BCNET_VECTORS(float)
BCNET_VECTORS(double)
BCNET_VECTORS(std::int32_t)
BCNET_VECTORS(std::int64_t)
BCNET_VECTORS(std::uint32_t)
BCNET_VECTORS(std::uint64_t)
#undef BCNET_VECTORS
#undef BCNET_VECTOR
#else
constexpr int kBaselineBytes = 0;
#endif

template <typename T, int bytes>
using Vector =
    typename VectorType<T, (bytes > static_cast<int>(sizeof(T)) ? bytes : static_cast<int>(sizeof(T)))>::type;

// The lowest bit that is set, of a number other than 0.
BCNET_INLINE int lowest_bit(std::uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  int lowest = 0;
  while (!(bits >> lowest & 1)) ++lowest;
  return lowest;
#endif
}

// The positions of the set bits of every 8 bit number, in ascending order, and how many there are.
struct SetBits {
  std::uint8_t positions[256][8] = {};
  std::uint8_t count[256] = {};

  constexpr SetBits() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int i = 0; i < 8; ++i) {
        if (bits >> i & 1) positions[bits][count[bits]++] = static_cast<std::uint8_t>(i);
      }
    }
  }
};
inline constexpr SetBits kSetBits;

}  // namespace bcnet_fast
