// Strassen's algorithm (Numerische Mathematik 13, 1969), applied once: both factors and the result are cut into
// quarters, and seven products of sums of quarters make what eight products of quarters would. Included once per
// instruction set.
//
// Rows 2 i and 2 i + 1 are a pair, so a row's result does not depend on the block of rows that it is in. The depth is
// worked on part by part, with its first and its second half as the two halves. Sums of quarters of the weight are made
// in registers as they are read, so they need no memory; those of the rows are made once and serve all columns.
#include "gemm/tile_kernels.h"

// Half of it is summed up in one go.
constexpr std::int64_t kStrassenPart = 2 * kDepthBlock;

// A quarter of the result: becomes, or with `adds` has added to it, sign * product; then ReLU if `relu`.
struct Quarter {
  float* data = nullptr;
  float sign = 0;
  bool adds = false, relu = false;
};

template <int rows>
BCNET_INLINE void add_tile(const Accumulators<float, rows>& tile, const Quarter& to, float* out,
                           std::int64_t out_stride) {
  if constexpr (rows > 0) {
    using V = Vec<float>;
    constexpr int lanes = kWidth<float>;
    V low = to.sign * tile.low, high = to.sign * tile.high;
    if (to.adds) {
      low += load<V>(out);
      high += load<V>(out + lanes);
    }
    store(out, relu_if(to.relu, low));
    store(out + lanes, relu_if(to.relu, high));
    add_tile(tile.rest, to, out + out_stride, out_stride);
  }
}

template <int max_rows, typename Sign>
BCNET_INLINE void quarter_product_rows(Sign, int rows, Matrix<float> a, const float* b, const float* c,
                                       std::int64_t depth, const char* next, Quarter one, Quarter other,
                                       std::int64_t out_stride) {
  if constexpr (max_rows > 1) {
    if (rows < max_rows) {
      return quarter_product_rows<max_rows - 1>(Sign{}, rows, a, b, c, depth, next, one, other, out_stride);
    }
  }
  constexpr int sign = Sign::value;
  using V = Vec<float>;
  constexpr int lanes = kWidth<float>;
  Accumulators<float, max_rows> tile;
  for (std::int64_t k = 0; k < depth; ++k) {
    V low = load<V>(b + k * kPanel), high = load<V>(b + k * kPanel + lanes);
    if constexpr (sign != 0) {
      const V more_low = load<V>(c + k * kPanel), more_high = load<V>(c + k * kPanel + lanes);
      low = sign > 0 ? low + more_low : low - more_low;
      high = sign > 0 ? high + more_high : high - more_high;
    }
    prefetch<kLine, 2>(next + k * kLine);
    tile.step(a.data + k, a.stride, low, high);
  }
  add_tile(tile, one, one.data, out_stride);
  if (other.data) add_tile(tile, other, other.data, out_stride);
}

// a (b + sign c) for a tile of `rows` rows, which goes to one quarter or two. Each step of the depth prefetches a cache
// line of what comes next: parts of panels are too short for the processor to foresee them.
template <typename Sign>
BCNET_NOINLINE void quarter_product(Sign, int rows, Matrix<float> a, const float* b, const float* c, std::int64_t depth,
                                    const char* next, Quarter one, Quarter other, std::int64_t out_stride) {
  quarter_product_rows<kTileRows>(Sign{}, rows, a, b, c, depth, next, one, other, out_stride);
}

// The sums of quarters of the rows that are stored, in this order.
enum StoredSum { kA11PlusA22, kA21PlusA22, kA11PlusA12, kA21MinusA11, kA12MinusA22 };

// The quarters of a part of the rows, and their sums: row r has those of pair r.
struct LeftQuarters {
  Matrix<float> a11, a22;
  float* sums;
  std::int64_t pairs, half;

  std::int64_t stride() const { return scratch_stride(half); }
  Matrix<float> sum(StoredSum number, std::int64_t first) const {
    return {sums + (number * pairs + first) * stride(), stride()};
  }
};

// The sums at one place of the depth, or at as many as V has elements. Each lies `next` elements after the one before.
template <typename V>
BCNET_INLINE void add_quarters_at(const float* a11, const float* a12, const float* a21, const float* a22, float* to,
                                  std::int64_t next) {
  const V v11 = load<V>(a11), v12 = load<V>(a12), v21 = load<V>(a21), v22 = load<V>(a22);
  store(to + kA11PlusA22 * next, v11 + v22);
  store(to + kA21PlusA22 * next, v21 + v22);
  store(to + kA11PlusA12 * next, v11 + v12);
  store(to + kA21MinusA11 * next, v21 - v11);
  store(to + kA12MinusA22 * next, v12 - v22);
}

inline void add_quarters(const LeftQuarters& left) {
  using V = Vec<float>;
  constexpr int lanes = kWidth<float>;
  const std::int64_t half = left.half, next = left.pairs * left.stride();
  for (std::int64_t r = 0; r < left.pairs; ++r) {
    const float *const a11 = left.a11.row(r), *const a12 = a11 + half;
    const float *const a22 = left.a22.row(r), *const a21 = a22 - half;
    float* const to = left.sums + r * left.stride();
    std::int64_t k = 0;
    for (; k + lanes <= half; k += lanes) add_quarters_at<V>(a11 + k, a12 + k, a21 + k, a22 + k, to + k, next);
    for (; k < half; ++k) add_quarters_at<float>(a11 + k, a12 + k, a21 + k, a22 + k, to + k, next);
  }
}

// A part of the weight in two panels, and where the next one lies, which is prefetched bit by bit.
struct RightPanels {
  const float *low, *high, *next_low, *next_high;

  // The piece of the next panels to prefetch while `remaining` products are still to be made: both panels are cut into
  // four pieces each, of a cache line for every step of half the depth.
  const char* next(std::int64_t remaining, std::int64_t half) const {
    const std::int64_t piece = std::max<std::int64_t>(8 - remaining, 0);
    return reinterpret_cast<const char*>(piece < 4 ? next_low : next_high) + piece % 4 * half * kLine;
  }
};

// The quarters of the result in a tile of pairs. The first and the last contribution to each differ from those between.
struct ResultQuarters {
  float *c11, *c12;
  std::int64_t stride;
  bool begun, relu;

  float* c21() const { return c11 + stride; }
  float* c22() const { return c12 + stride; }
  Quarter begin(float* quarter) const { return {quarter, 1, begun, false}; }
  Quarter plus(float* quarter) const { return {quarter, 1, true, false}; }
  Quarter minus(float* quarter) const { return {quarter, -1, true, false}; }
  Quarter end(float* quarter) const { return {quarter, 1, true, relu}; }
};

// The seven products for `count` pairs from `first` on, and two vectors of columns in both panels.
inline void strassen_tile(const LeftQuarters& left, std::int64_t first, int count, const RightPanels& right,
                          std::int64_t remaining, const ResultQuarters& c) {
  const std::int64_t half = left.half, stride = 2 * c.stride;
  const Matrix<float> a11{left.a11.row(first), left.a11.stride}, a22{left.a22.row(first), left.a22.stride};
  const float *const b11 = right.low, *const b21 = b11 + half * kPanel;
  const float *const b12 = right.high, *const b22 = b12 + half * kPanel;
  float *const c11 = c.c11, *const c12 = c.c12, *const c21 = c.c21(), *const c22 = c.c22();
  const auto rows = [&](StoredSum number) { return left.sum(number, first); };
  constexpr std::integral_constant<int, 1> sum{};
  constexpr std::integral_constant<int, 0> alone{};
  constexpr std::integral_constant<int, -1> difference{};
  const auto next = [&](int number) { return right.next(remaining - number, half); };
  quarter_product(sum, count, rows(kA11PlusA22), b11, b22, half, next(0), c.begin(c11), c.begin(c22), stride);
  quarter_product(alone, count, rows(kA21PlusA22), b11, b11, half, next(1), c.begin(c21), c.minus(c22), stride);
  quarter_product(difference, count, a11, b12, b22, half, next(2), c.begin(c12), c.plus(c22), stride);
  quarter_product(difference, count, a22, b21, b11, half, next(3), c.plus(c11), c.end(c21), stride);
  quarter_product(alone, count, rows(kA11PlusA12), b22, b22, half, next(4), c.minus(c11), c.end(c12), stride);
  quarter_product(sum, count, rows(kA21MinusA11), b11, b12, half, next(5), c.end(c22), Quarter{}, stride);
  quarter_product(sum, count, rows(kA12MinusA22), b21, b22, half, next(6), c.end(c11), Quarter{}, stride);
}

inline void multiply_pairs(Matrix<float> a, std::int64_t pairs, const float* panels, std::int64_t depth,
                           std::int64_t panel_pairs, bool relu, float* workspace, MutableMatrix<float> out) {
  constexpr std::int64_t width = kTileColumns<float>;
  const std::int64_t tiles = (pairs + kTileRows - 1) / kTileRows;  // of about one size
  const std::int64_t parts = (depth + kStrassenPart - 1) / kStrassenPart;
  for (std::int64_t part = 0; part < parts; ++part) {
    const std::int64_t begin = depth / 2 * part / parts * 2, end = depth / 2 * (part + 1) / parts * 2;
    const std::int64_t half = (end - begin) / 2;
    const LeftQuarters left{
        {a.data + begin, 2 * a.stride}, {a.data + a.stride + begin + half, 2 * a.stride}, workspace, pairs, half};
    add_quarters(left);
    for (std::int64_t panel = 0; panel < panel_pairs; ++panel) {
      const auto at = [&](std::int64_t index, std::int64_t k) { return panels + (index * depth + k) * kPanel; };
      const bool more = panel + 1 < panel_pairs;
      const std::int64_t next = more ? panel + 1 : 0, from = more ? begin : part + 1 < parts ? end : 0;
      const RightPanels right{at(panel, begin), at(panel + panel_pairs, begin), at(next, from),
                              at(next + panel_pairs, from)};
      for (std::int64_t column = 0; column < kPanel; column += width) {
        const RightPanels columns{right.low + column, right.high + column, right.next_low, right.next_high};
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
          const std::int64_t first = pairs * tile / tiles;
          const int count = static_cast<int>(pairs * (tile + 1) / tiles - first);
          float* const to = out.row(2 * first) + panel * kPanel + column;
          const ResultQuarters quarters{to, to + panel_pairs * kPanel, out.stride, part > 0, relu && part + 1 == parts};
          strassen_tile(left, first, count, columns, 7 * (tiles - tile), quarters);
        }
      }
    }
  }
}
