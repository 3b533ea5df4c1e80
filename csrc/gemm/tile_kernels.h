// Small products whose results stay in registers: what all matrix products are made of. Included once per instruction
// set.
//
// A tile is a few rows times two vectors of columns. Each step of the depth loads two vectors of the right matrix once
// and one number of the left matrix per row: on AVX-512, 14 loads for 24 multiply-adds, which keep both units busy. The
// accumulators are members of a recursive struct and not an array: GCC 12 keeps arrays in memory.

// Columns of a tile.
template <typename T>
constexpr int kTileColumns = 2 * kWidth<T>;
static_assert(kPanel % kTileColumns<float> == 0);

// Rows in a tile: as many as leave registers for two vectors and a number.
constexpr int kTileRows = kBytes >= 64 ? kMaxTileRows : kBytes >= 32 ? 6 : 4;

template <typename V>
BCNET_INLINE V relu_if(bool relu, V value) {
  return relu ? (value < V{} ? V{} : value) : value;
}

template <typename T, int rows>
struct Accumulators {
  using V = Vec<T>;
  V low{}, high{};
  Accumulators<T, rows - 1> rest;

  BCNET_INLINE void step(const T* a, std::int64_t a_stride, V b_low, V b_high) {
    const V number = splat<V>(*a);
    low = multiply_add(number, b_low, low);
    high = multiply_add(number, b_high, high);
    rest.step(a + a_stride, a_stride, b_low, b_high);
  }

  BCNET_INLINE void add(const T* out, std::int64_t out_stride) {
    low += load<V>(out);
    high += load<V>(out + kWidth<T>);
    rest.add(out + out_stride, out_stride);
  }

  BCNET_INLINE void write(T* out, std::int64_t out_stride, bool relu) const {
    store(out, relu_if(relu, low));
    store(out + kWidth<T>, relu_if(relu, high));
    rest.write(out + out_stride, out_stride, relu);
  }
};

template <typename T>
struct Accumulators<T, 0> {
  using V = Vec<T>;
  BCNET_INLINE void step(const T*, std::int64_t, V, V) {}
  BCNET_INLINE void add(const T*, std::int64_t) {}
  BCNET_INLINE void write(T*, std::int64_t, bool) const {}
};

// out[r, c] = sum over k of a[r, k] b[k, c], then ReLU if `relu`, for `rows` <= kTileRows and kTileColumns columns.
// With `add`, the sum is added to what is in out. Elements of a row of a are a_step apart.
template <typename T, int max_rows = kTileRows>
BCNET_INLINE void multiply_tile(int rows, const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride,
                                std::int64_t depth, std::int64_t depth_block, bool relu, T* out,
                                std::int64_t out_stride, bool add = false, std::int64_t a_step = 1) {
  if constexpr (max_rows > 1) {
    if (rows < max_rows) {
      return multiply_tile<T, max_rows - 1>(rows, a, a_stride, b, b_stride, depth, depth_block, relu, out, out_stride,
                                            add, a_step);
    }
  }
  using V = Vec<T>;
  for (std::int64_t begin = 0; begin < depth; begin += depth_block) {
    const std::int64_t end = begin + depth_block < depth ? begin + depth_block : depth;
    Accumulators<T, max_rows> tile;
    for (std::int64_t k = begin; k < end; ++k) {
      tile.step(a + k * a_step, a_stride, load<V>(b), load<V>(b + kWidth<T>));
      b += b_stride;
    }
    if (begin || add) tile.add(out, out_stride);
    tile.write(out, out_stride, relu && end == depth);
  }
}

// Writes a product to out tile by tile. Product::tile(column, first, count, to, stride) computes a tile of `count` rows
// from `first` on; Product::adds says whether it adds to what is in `to`. A tile of which not all columns exist goes
// through a buffer.
template <typename T, typename Product>
BCNET_NOINLINE void multiply_tiles(const Product& product, std::int64_t rows, std::int64_t columns, T* out,
                                   std::int64_t out_stride) {
  constexpr int width = kTileColumns<T>;
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;  // of about one size
  for (std::int64_t column = 0; column < columns; column += width) {
    const std::int64_t used = std::min<std::int64_t>(width, columns - column);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = rows * t / tiles;
      const int count = static_cast<int>(rows * (t + 1) / tiles - first);
      T* const to = out + first * out_stride + column;
      T buffer[kTileRows * width];
      const bool whole = used == width;
      for (int r = 0; r < count && !whole && product.adds(); ++r) {
        std::memcpy(buffer + r * width, to + r * out_stride, sizeof(T) * used);
      }
      product.tile(column, first, count, whole ? to : buffer, whole ? out_stride : width);
      for (int r = 0; r < count && !whole; ++r) std::memcpy(to + r * out_stride, buffer + r * width, sizeof(T) * used);
    }
  }
}
