// A row is read from memory once: what later passes over it need is kept in the row of the output, in the cache. While
// they go over it, the next row is fetched into the cache: they would leave the memory idle.
//
// Sums are made as kBlock<T> sums side by side, column i into sum i % kBlock<T>, which are then added in pairs. So the
// order of additions, and with it every bit of the result, does not depend on how many columns a vector holds.
#include "include/add_layer_norm.h"

#include <algorithm>
#include <cmath>

#include "runtime/memory.h"
#include "runtime/parallel.h"
#include "simd/simd.h"

namespace bcnet_fast {
namespace {

constexpr int kBlockBytes = 128;  // two of the largest vectors, whose additions overlap in time

template <typename T>
constexpr int kBlock = kBlockBytes / static_cast<int>(sizeof(T));

template <int bytes, typename T>
struct Sums {
  using V = Vector<T, bytes>;
  static constexpr int lanes = sizeof(V) / sizeof(T);
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

// The forward of a row in three passes. Between them, z = x + residual lies in `out`: whole blocks of it, and the rest in a
// block of its own.
//
// The mean is taken in two steps, of z less its first element, and of z less the first mean: neither an offset common
// to a row nor an outlier costs digits, and a row of equal elements gives zeros.
template <int bytes, typename T>
struct ForwardRow {
  using S = Sums<bytes, T>;
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
      std::fill(last + left, last + kBlock<T>, first);  // which adds nothing
      for (int k = 0; k < S::vectors; ++k) sum.sums[k] += load<V>(last + k * S::lanes) - first;
    }
    centre = first + sum.total() * (T(1) / static_cast<T>(columns));
  }

  // Fetches what lies from `next` and `next_residual` on, unless null, into the cache.
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
    mean = rest.total() * share;  // no more than rounding left of it, so that its square is safe to subtract
    scale = T(1) / std::sqrt(squares.total() * share - mean * mean + eps);
  }

  BCNET_INLINE void write(std::int64_t columns) const {
    const std::int64_t whole = columns / kBlock<T> * kBlock<T>;
    for (std::int64_t i = 0; i < whole; i += S::lanes) store(out + i, ((load<V>(out + i) - centre) - mean) * scale);
    for (std::int64_t i = whole; i < columns; ++i) out[i] = ((last[i - whole] - centre) - mean) * scale;
  }
};

// Rows in [first, end) of `rows`. What a pass needs of the one before is ready only after a chain of additions, or a square
// root. So of short rows the next is added before one is written; two long ones would not stay in the cache.
template <int bytes, typename T>
BCNET_INLINE void forward(const T* x, const T* residual, std::int64_t first, std::int64_t end, std::int64_t rows,
                          std::int64_t columns, T eps, T* out, T* rstd) {
  constexpr std::int64_t longest = 4096 / static_cast<std::int64_t>(sizeof(T));
  const bool overlap = columns <= longest;
  ForwardRow<bytes, T> both[2];
  const auto add = [&](std::int64_t r) {
    if (r < end) both[r & 1].add(x + r * columns, residual + r * columns, columns, out + r * columns);
  };
  add(first);
  for (std::int64_t r = first; r < end; ++r) {
    ForwardRow<bytes, T>& row = both[r & 1];
    const std::int64_t ahead = r + (overlap ? 2 : 1), at = ahead * columns;
    row.measure(columns, eps, ahead < rows ? x + at : nullptr, ahead < rows ? residual + at : nullptr);
    rstd[r] = row.scale;
    if (overlap) add(r + 1);
    row.write(columns);
    if (!overlap) add(r + 1);
  }
}

template <int bytes, typename T>
BCNET_INLINE void backward_row(const T* grad, const T* out, T scale, std::int64_t columns, T* grad_input) {
  using S = Sums<bytes, T>;
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

BCNET_VERSIONS(forward)
BCNET_VERSIONS(backward_row)

// As many threads as have enough to do to be worth waking.
int useful_threads(std::int64_t rows, std::int64_t columns, int threads) {
  constexpr std::int64_t worth_a_thread = 32768;  // elements, as PyTorch has it
  const std::int64_t most = std::min(rows, rows * columns / worth_a_thread);
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, most)));
}

// Calls body(first, end) for portions that have every row once.
template <typename Body>
void in_portions(std::int64_t rows, std::int64_t columns, int threads, const Body& body) {
  constexpr std::int64_t portion = 4096;  // elements that a thread fetches at a time
  const std::int64_t step = std::max<std::int64_t>(1, portion / columns);
  threads = useful_threads(rows, columns, threads);
  WorkShares shares((rows + step - 1) / step, threads);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t item; shares.next(thread, item);) {
      body(item * step, std::min(rows, (item + 1) * step));
    }
  });
}

}  // namespace

template <typename T>
void add_layer_norm(const T* x, const T* residual, std::int64_t rows, std::int64_t columns, double eps,
                    InstructionSet instruction_set, int threads, T* out, T* rstd) {
  in_portions(rows, columns, threads, [&](std::int64_t first, std::int64_t end) {
    forward_for(instruction_set, x, residual, first, end, rows, columns, static_cast<T>(eps), out, rstd);
  });
}

template <typename T>
void add_layer_norm_backward(const T* grad, const T* out, const T* rstd, std::int64_t rows, std::int64_t columns,
                             InstructionSet instruction_set, int threads, T* grad_input) {
  in_portions(rows, columns, threads, [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t r = first; r < end; ++r) {
      backward_row_for(instruction_set, grad + r * columns, out + r * columns, rstd[r], columns, grad_input + r * columns);
    }
  });
}

template void add_layer_norm(const float*, const float*, std::int64_t, std::int64_t, double, InstructionSet, int,
                             float*, float*);
template void add_layer_norm(const double*, const double*, std::int64_t, std::int64_t, double, InstructionSet, int,
                             double*, double*);
template void add_layer_norm_backward(const float*, const float*, const float*, std::int64_t, std::int64_t,
                                      InstructionSet, int, float*);
template void add_layer_norm_backward(const double*, const double*, const double*, std::int64_t, std::int64_t,
                                      InstructionSet, int, double*);

}  // namespace bcnet_fast
