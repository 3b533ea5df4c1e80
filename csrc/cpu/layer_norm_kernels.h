// LayerNorm of one row after another. Included once per instruction set.

constexpr int kBlockBytes = 128;  // two of the largest vectors, whose additions overlap in time

template <typename T>
constexpr int kBlock = kBlockBytes / static_cast<int>(sizeof(T));

// kBlock<T> sums side by side.
template <typename T>
struct Sums {
  using V = Vec<T>;
  static constexpr int lanes = kWidth<T>;
  static constexpr int vectors = kBlock<T> / lanes;

  V sums[vectors] = {};

  BCNET_INLINE T total() const {
    V left[vectors];
    for (int k = 0; k < vectors; ++k) left[k] = sums[k];
    for (int width = vectors / 2; width; width /= 2) {
      for (int k = 0; k < width; ++k) left[k] += left[k + width];
    }
    return sum_of<T>(left[0]);
  }
};

// The forward pass of a row, in three steps. Between them, whole blocks of z = x + residual lie in `out`, and the rest
// in a block of its own.
//
// The mean is taken in two steps, of z less its first element, and of z less the first mean: neither an offset common
// to a row nor an outlier costs digits, and a row of equal elements gives zeros.
template <typename T>
struct ForwardRow {
  using S = Sums<T>;
  using V = typename S::V;

  T *out, last[kBlock<T>];
  T centre, mean, scale;

  BCNET_INLINE void add(const T* x, const T* residual, std::int64_t columns, T* to) {
    out = to;
    const std::int64_t whole = columns / kBlock<T> * kBlock<T>, left = columns - whole;
    const T first = x[0] + residual[0];
    S sum;
    for (std::int64_t i = 0; i < whole; i += kBlock<T>) {
      for (int k = 0; k < S::vectors; ++k) {
        const std::int64_t at = i + k * S::lanes;
        const V z = load<V>(x + at) + load<V>(residual + at);
        store(out + at, z);
        sum.sums[k] += z - first;
      }
    }
    if (left) {
      for (std::int64_t i = 0; i < left; ++i) last[i] = x[whole + i] + residual[whole + i];
      std::fill(last + left, last + kBlock<T>, first);  // adds nothing
      for (int k = 0; k < S::vectors; ++k) sum.sums[k] += load<V>(last + k * S::lanes) - first;
    }
    centre = first + sum.total() * (T(1) / static_cast<T>(columns));
  }

  // Prefetches the row that begins at `next` and `next_residual`, unless they are null.
  BCNET_INLINE void measure(std::int64_t columns, T eps, const T* next, const T* next_residual) {
    const std::int64_t whole = columns / kBlock<T> * kBlock<T>, left = columns - whole;
    S rest, squares;
    const auto add_block = [&](const T* block) {
      for (int k = 0; k < S::vectors; ++k) {
        const V z = load<V>(block + k * S::lanes) - centre;
        rest.sums[k] += z;
        squares.sums[k] += z * z;
      }
    };
    for (std::int64_t i = 0; i < whole; i += kBlock<T>) {
      if (next) {
        prefetch<kBlockBytes>(next + i);
        prefetch<kBlockBytes>(next_residual + i);
      }
      add_block(out + i);
    }
    if (left) {
      std::fill(last + left, last + kBlock<T>, centre);
      add_block(last);
    }
    const T share = T(1) / static_cast<T>(columns);
    mean = rest.total() * share;  // of the size of a rounding error, so that its square is safe to subtract
    scale = T(1) / std::sqrt(squares.total() * share - mean * mean + eps);
  }

  BCNET_INLINE void write(std::int64_t columns) const {
    const std::int64_t whole = columns / kBlock<T> * kBlock<T>;
    for (std::int64_t i = 0; i < whole; i += S::lanes) store(out + i, ((load<V>(out + i) - centre) - mean) * scale);
    for (std::int64_t i = whole; i < columns; ++i) out[i] = ((last[i - whole] - centre) - mean) * scale;
  }
};

// Rows [first, end) of `rows`. A step waits for a chain of additions, or for the square root, of the step before it.
// Short rows therefore overlap: the next one is added before one is written. Two long ones would not stay in the cache.
template <typename T>
void forward(const T* x, const T* residual, std::int64_t first, std::int64_t end, std::int64_t rows,
             std::int64_t columns, T eps, T* out, T* rstd) {
  constexpr std::int64_t longest = 4096 / static_cast<std::int64_t>(sizeof(T));
  const bool overlap = columns <= longest;
  ForwardRow<T> both[2];
  const auto add = [&](std::int64_t r) {
    if (r < end) both[r & 1].add(x + r * columns, residual + r * columns, columns, out + r * columns);
  };
  add(first);
  for (std::int64_t r = first; r < end; ++r) {
    ForwardRow<T>& row = both[r & 1];
    const std::int64_t ahead = r + (overlap ? 2 : 1), at = ahead * columns;
    row.measure(columns, eps, ahead < rows ? x + at : nullptr, ahead < rows ? residual + at : nullptr);
    rstd[r] = row.scale;
    if (overlap) add(r + 1);
    row.write(columns);
    if (!overlap) add(r + 1);
  }
}

template <typename T>
void backward_row(const T* grad, const T* out, T scale, std::int64_t columns, T* grad_input) {
  using S = Sums<T>;
  using V = typename S::V;
  const std::int64_t whole = columns / kBlock<T> * kBlock<T>;
  const T share = T(1) / static_cast<T>(columns);
  S sum, products;
  const auto add_block = [&](const T* grad_block, const T* out_block) {
    for (int k = 0; k < S::vectors; ++k) {
      const V g = load<V>(grad_block + k * S::lanes);
      sum.sums[k] += g;
      products.sums[k] += g * load<V>(out_block + k * S::lanes);
    }
  };
  for (std::int64_t i = 0; i < whole; i += kBlock<T>) add_block(grad + i, out + i);
  if (whole < columns) {
    T last_grad[kBlock<T>] = {}, last_out[kBlock<T>] = {};
    std::copy(grad + whole, grad + columns, last_grad);
    std::copy(out + whole, out + columns, last_out);
    add_block(last_grad, last_out);
  }
  const T mean = sum.total() * share;
  const T slope = products.total() * share;
  for (std::int64_t i = 0; i < whole; i += S::lanes) {
    store(grad_input + i, ((load<V>(grad + i) - mean) - load<V>(out + i) * slope) * scale);
  }
  for (std::int64_t i = whole; i < columns; ++i) grad_input[i] = ((grad[i] - mean) - out[i] * slope) * scale;
}
