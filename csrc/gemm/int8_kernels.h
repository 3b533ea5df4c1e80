// Tiles of 8 bit integers: unsigned numbers of the left matrix, four at a time, times signed ones of the right.
// Included once per instruction set; the namespace avx512 has VNNI here.
#include "gemm/tile_kernels.h"

// Per column of a tile: the size of a step of its weights, and the sum of its weights in steps.
struct Int8Columns {
  const float* scales;
  const std::int32_t* sums;
};

// Rows rounded to 8 bits: x = (q - zero point) scale. The scale of a row that is not finite is NaN.
struct Int8Rows {
  std::uint8_t* data;
  std::int64_t stride;
  float* scales;
  std::int32_t* zero_points;
};

// sum + the products of four unsigned bytes a with each four signed bytes of b.
BCNET_INLINE Vec<std::int32_t> add_byte_products(Vec<std::int32_t> sum, const std::uint8_t* a, const std::int8_t* b) {
#ifdef BCNET_HAS_AVX512
  std::int32_t four;
  std::memcpy(&four, a, sizeof(four));
  return bit_cast<Vec<std::int32_t>>(
      _mm512_dpbusd_epi32(bit_cast<__m512i>(sum), _mm512_set1_epi32(four), load<__m512i>(b)));
#else
  std::int32_t products[kWidth<std::int32_t>];
  for (int i = 0; i < kWidth<std::int32_t>; ++i) {
    products[i] = a[0] * b[4 * i] + a[1] * b[4 * i + 1] + a[2] * b[4 * i + 2] + a[3] * b[4 * i + 3];
  }
  return sum + load<Vec<std::int32_t>>(products);
#endif
}

BCNET_INLINE Vec<float> to_float(Vec<std::int32_t> integers) {
#if defined(__GNUC__)
  return __builtin_convertvector(integers, Vec<float>);
#else
  return static_cast<float>(integers);
#endif
}

template <int rows>
struct Int8Accumulators {
  using I = Vec<std::int32_t>;
  using V = Vec<float>;
  static constexpr int lanes = kWidth<float>;
  I low{}, high{};
  Int8Accumulators<rows - 1> rest;

  BCNET_INLINE void step(const std::uint8_t* a, std::int64_t a_stride, const std::int8_t* b) {
    low = add_byte_products(low, a, b);
    high = add_byte_products(high, a, b + 4 * lanes);
    rest.step(a + a_stride, a_stride, b);
  }

  // (sum - zero point * sum of the weights) * both scales, as float.
  BCNET_INLINE void write(const float* scales, const std::int32_t* zero_points, const Int8Columns& columns, bool relu,
                          float* out, std::int64_t out_stride) const {
    for (int half = 0; half < 2; ++half) {
      const I sums = (half ? high : low) - *zero_points * load<I>(columns.sums + half * lanes);
      const V value = to_float(sums) * (*scales * load<V>(columns.scales + half * lanes));
      store(out + half * lanes, relu_if(relu, value));
    }
    rest.write(scales + 1, zero_points + 1, columns, relu, out + out_stride, out_stride);
  }
};

template <>
struct Int8Accumulators<0> {
  BCNET_INLINE void step(const std::uint8_t*, std::int64_t, const std::int8_t*) {}
  BCNET_INLINE void write(const float*, const std::int32_t*, const Int8Columns&, bool, float*, std::int64_t) const {}
};

// out[r, c] = the product of the numbers that a[r, :] and b[:, c] stand for; `fours` steps of four bytes each.
template <int max_rows = kTileRows>
BCNET_INLINE void int8_tile(int rows, const std::uint8_t* a, std::int64_t a_stride, const std::int8_t* b,
                            std::int64_t fours, const float* scales, const std::int32_t* zero_points,
                            const Int8Columns& columns, bool relu, float* out, std::int64_t out_stride) {
  if constexpr (max_rows > 1) {
    if (rows < max_rows) {
      return int8_tile<max_rows - 1>(rows, a, a_stride, b, fours, scales, zero_points, columns, relu, out, out_stride);
    }
  }
  Int8Accumulators<max_rows> tile;
  for (std::int64_t k = 0; k < fours; ++k) tile.step(a + 4 * k, a_stride, b + k * 4 * kPanel);
  tile.write(scales, zero_points, columns, relu, out, out_stride);
}

struct Int8Product {
  Int8Rows a;
  const std::int8_t* panels;
  std::int64_t depth;
  Int8Columns columns;
  bool relu;

  BCNET_INLINE bool adds() const { return false; }
  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, float* to, std::int64_t stride) const {
    const std::int8_t* const b = panels + column / kPanel * kPanel * depth + column % kPanel * 4;
    const Int8Columns of_tile{columns.scales + column, columns.sums + column};
    int8_tile(count, a.data + first * a.stride, a.stride, b, depth / 4, a.scales + first, a.zero_points + first,
              of_tile, relu, to, stride);
  }
};

BCNET_INLINE void round_row(const float* x, std::int64_t count, std::uint8_t* out, std::int64_t padded, float& scale,
                            std::int32_t& zero_point) {
  using V = Vec<float>;
  constexpr int lanes = kWidth<float>;
  // The range begins at 0, so that a row without negative numbers, like one after ReLU, gets all 256 steps above 0.
  V lows{}, highs{}, faults{};  // faults are NaN where a value is not finite, else 0
  const std::int64_t whole = count / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    const V values = load<V>(x + i);
    lows = values < lows ? values : lows;
    highs = values > highs ? values : highs;
    faults += values * 0.0f;
  }
  float lowest = 0, highest = 0, fault = sum_of<float>(faults);
  const auto include = [&](float low, float high) {
    lowest = std::min(lowest, low);
    highest = std::max(highest, high);
  };
  float low_values[lanes], high_values[lanes];
  std::memcpy(low_values, &lows, sizeof(lows));
  std::memcpy(high_values, &highs, sizeof(highs));
  for (int i = 0; i < lanes; ++i) include(low_values[i], high_values[i]);
  for (std::int64_t i = whole; i < count; ++i) {
    include(x[i], x[i]);
    fault += x[i] * 0.0f;
  }
  const float step = (highest - lowest) / 255;
  if (!std::isfinite(step + fault)) {
    scale = std::numeric_limits<float>::quiet_NaN();
    zero_point = 0;
    std::memset(out, 0, static_cast<std::size_t>(padded));
    return;
  }
  // A smaller step has no finite inverse: the row counts as zeros.
  scale = step >= std::numeric_limits<float>::min() ? step : 1.0f;
  const float inverse = 1 / scale, begin = std::round(-lowest * inverse);
  zero_point = static_cast<std::int32_t>(begin);
  const float shift = begin + 0.5f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = multiply_add(x[i], inverse, shift);
    out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(value < 0 ? 0 : value > 255 ? 255 : value));
  }
  std::memset(out + count, 0, static_cast<std::size_t>(padded - count));
}

inline void multiply_int8_rows(Matrix<float> a, std::int64_t rows, const PackedWeight& weight, std::int64_t group,
                               bool relu, char* workspace, MutableMatrix<float> out) {
  const std::int64_t padded = weight.padded_inputs(), stride = padded + kInt8RowGap;
  const Int8Rows rounded{reinterpret_cast<std::uint8_t*>(workspace), stride,
                         reinterpret_cast<float*>(workspace + rows * stride),
                         reinterpret_cast<std::int32_t*>(workspace + rows * (stride + 4))};
  for (std::int64_t r = 0; r < rows; ++r) {
    round_row(a.row(r), weight.inputs(), rounded.data + r * stride, padded, rounded.scales[r], rounded.zero_points[r]);
  }
  const Int8Columns columns{weight.scales(group), weight.sums(group)};
  const Int8Product product{rounded, weight.panels<std::int8_t>(group), padded, columns, relu};
  multiply_tiles(product, rows, weight.outputs(), out.data, out.stride);
}
