// A thread works on blocks of rows of one head after another: it lays the head's keys and values out in panels, and then makes
// its blocks of the map, complete, which fit the cache between their passes. A head that several threads work on is laid out
// by each, so that none has to wait. The gradients of keys and values are sums over all rows, so there a thread takes whole
// heads; it makes each block of the map again.
//
// Products are fused with their sums (FMA) where the instruction set has it, so bits differ between instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "include/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/parallel.h"
#include "runtime/scratch.h"
#include "gemm/tiles.h"

namespace bcnet_fast {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr std::int64_t kMapElements = 64 * 1024;  // of a block of rows of the map: a quarter of a megabyte

// Lower powers of 2 count as this one: their sum is at least 1, of which it is far less than a rounding error, and products
// with it are normal numbers still. Denormal ones take processors several times as long.
template <typename T>
constexpr T kLeastPower = sizeof(T) == sizeof(float) ? T(-100) : T(-900);

constexpr std::int64_t padded(std::int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

// Keys are packed with the sign of the scale, so that the largest product is the largest logit.
template <typename T>
T sign_of(const AttentionSizes& sizes) {
  return sizes.scale < 0 ? T(-1) : T(1);
}

// Rows of the map lie this far apart.
constexpr std::int64_t map_stride(const AttentionSizes& sizes) { return scratch_stride(padded(sizes.keys)); }

// The rows of a block of the map: whole tiles of the largest kind where it is not too wide.
std::int64_t block_rows(const AttentionSizes& sizes) {
  constexpr std::int64_t tile = kTileRows<64>;
  return std::max<std::int64_t>(1, kMapElements / (tile * map_stride(sizes))) * tile;
}

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

// [rows, columns] times a sign, transposed: panels of rows, one column after the other. What a panel has beyond the last row
// is zero.
template <typename T>
void pack_transposed(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t columns, T sign, T* to) {
  std::fill_n(to, padded(rows) * columns, T(0));
  for (std::int64_t r = 0; r < rows; ++r) {
    T* const panel = to + r / kPanel * kPanel * columns + r % kPanel;
    for (std::int64_t c = 0; c < columns; ++c) panel[c * kPanel] = sign * from[r * stride + c];
  }
}

// [rows, columns] in panels of columns, one row after the other. What a panel has beyond the last column is zero.
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
void copy_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t columns, T* to, std::int64_t to_stride) {
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(from + r * from_stride, columns, to + r * to_stride);
}

// out = a b of `rows` rows, where b is in panels and out has padded columns. Element (r, k) of a is a[r * a_stride + k * a_step].
template <int bytes, typename T>
BCNET_INLINE void multiply_panels(const T* a, std::int64_t a_stride, std::int64_t a_step, std::int64_t rows, const T* b,
                                  std::int64_t depth, std::int64_t columns, bool add, T* out, std::int64_t out_stride) {
  constexpr int width = Tiles<T, bytes>::width, most_rows = kTileRows<bytes>;
  const std::int64_t tiles = (rows + most_rows - 1) / most_rows;  // of about one size
  for (std::int64_t column = 0; column < columns; column += width) {
    const T* const panel = b + column / kPanel * kPanel * depth + column % kPanel;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t r = rows * t / tiles;
      multiply_tile<bytes>(static_cast<int>(rows * (t + 1) / tiles - r), a + r * a_stride, a_stride, panel, kPanel, depth, kPart,
                           false, out + r * out_stride + column, out_stride, add, a_step);
    }
  }
}

BCNET_VERSIONS(multiply_panels)

template <typename T>
struct RowSum {
  T most, weight;  // the largest element; 1 / the sum of powers
};

// 2^((x - most) scale) of the first `count` elements. What follows up to a whole panel is lost.
template <int bytes, typename T>
BCNET_INLINE RowSum<T> softmax_row(T* row, std::int64_t count, T scale) {
  using V = Vector<T, bytes>;
  constexpr int lanes = Tiles<T, bytes>::lanes;
  const std::int64_t end = padded(count);
  std::fill(row + count, row + end, -std::numeric_limits<T>::infinity());
  V highest = load<V>(row), higher = highest;  // two, so that neither waits for the one before it
  for (std::int64_t i = 0; i < end; i += 2 * lanes) {
    const V values = load<V>(row + i), others = load<V>(row + i + lanes);
    highest = values > highest ? values : highest;
    higher = others > higher ? others : higher;
  }
  const T most = largest<T>(highest > higher ? highest : higher);
  V sums{};
  for (std::int64_t i = 0; i < end; i += lanes) {
    const V power = (load<V>(row + i) - most) * scale, least = splat<V>(kLeastPower<T>);
    const V values = exp2_nonpositive(power < least ? least : power, T(0));  // NaN stays
    sums += values;
    store(row + i, values);
  }
  return {most, 1 / sum_of<T>(sums)};
}

// The map of some rows of a head, whose keys are packed, but for a factor of each row, the weight in `sums`.
template <int bytes, typename T>
BCNET_INLINE void make_map(const T* query, std::int64_t query_stride, const T* keys, const AttentionSizes& sizes,
                           std::int64_t rows, T* map, RowSum<T>* sums) {
  const std::int64_t stride = map_stride(sizes);
  multiply_panels_with<bytes>(query, query_stride, std::int64_t{1}, rows, keys, sizes.head_size, padded(sizes.keys), false, map,
                              stride);
  // Not 0: what fills up the last panel is -infinity, and -infinity times 0 is NaN.
  const T scale = std::max(static_cast<T>(std::abs(sizes.scale) * kLog2E), std::numeric_limits<T>::min());
  for (std::int64_t r = 0; r < rows; ++r) sums[r] = softmax_row<bytes>(map + r * stride, sizes.keys, scale);
}

// One block of rows of one head. `packed` are its keys, then the values of each stream.
template <int bytes, typename T>
BCNET_INLINE void attend_rows(const AttentionWork<T>& work, std::int64_t head, const T* packed, std::int64_t first,
                              std::int64_t last, T* map, RowSum<T>* sums) {
  constexpr int width = Tiles<T, bytes>::width, most_rows = kTileRows<bytes>;
  const AttentionSizes& sizes = work.sizes;
  const std::int64_t stride = map_stride(sizes), rows = last - first, tiles = (rows + most_rows - 1) / most_rows;
  make_map<bytes>(work.query.of(head) + first * work.query.stride, work.query.stride, packed, sizes, rows, map, sums);
  if (work.lse) {
    for (std::int64_t r = 0; r < rows; ++r) {
      work.lse[head * sizes.queries + first + r] = sums[r].most * static_cast<T>(std::abs(sizes.scale)) - std::log(sums[r].weight);
    }
  }
  const T* values = packed + padded(sizes.keys) * sizes.head_size;
  for (int s = 0; s < work.streams; ++s, values += padded(sizes.value_size) * sizes.keys) {
    T* const out = work.outputs[s].of(head) + first * work.outputs[s].stride;
    for (std::int64_t column = 0; column < sizes.value_size; column += width) {
      const std::int64_t used = std::min<std::int64_t>(width, sizes.value_size - column);
      const T* const b = values + column / kPanel * kPanel * sizes.keys + column % kPanel;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t r = rows * t / tiles;
        const int count = static_cast<int>(rows * (t + 1) / tiles - r);
        T results[most_rows * width];
        multiply_tile<bytes>(count, map + r * stride, stride, b, kPanel, sizes.keys, kPart, false, results, width);
        for (int i = 0; i < count; ++i) {
          const T weight = sums[r + i].weight;
          T* const to = out + (r + i) * work.outputs[s].stride + column;
          for (std::int64_t c = 0; c < used; ++c) to[c] = results[i * width + c] * weight;
        }
      }
    }
  }
}

// The gradient of a row's logits, of that of its map; the map's row is multiplied by its weight.
template <int bytes, typename T>
BCNET_INLINE void logit_gradients(T* map, T* grad, std::int64_t count, T weight, T scale) {
  using V = Vector<T, bytes>;
  constexpr int lanes = Tiles<T, bytes>::lanes;
  const std::int64_t end = padded(count);
  std::fill(map + count, map + end, T(0));
  V sums{};
  for (std::int64_t i = 0; i < end; i += lanes) {
    const V share = load<V>(map + i) * weight;
    sums += share * load<V>(grad + i);
    store(map + i, share);
  }
  const T delta = sum_of<T>(sums);
  for (std::int64_t i = 0; i < end; i += lanes) {
    store(grad + i, load<V>(map + i) * (load<V>(grad + i) - delta) * scale);
  }
}

// Elements of the memory that the gradients of one head take.
struct BackwardScratch {
  std::int64_t keys, transposed_values, key_rows, map, block, grads, sums;

  BackwardScratch(const AttentionSizes& sizes, std::int64_t rows)
      : keys(padded(sizes.keys) * sizes.head_size),
        transposed_values(padded(sizes.keys) * sizes.value_size),
        key_rows(padded(sizes.head_size) * sizes.keys),
        map(rows * map_stride(sizes)),
        block(rows * std::max(padded(sizes.head_size), padded(sizes.value_size))),
        grads(sizes.keys * std::max(padded(sizes.head_size), padded(sizes.value_size))),
        sums(2 * rows) {}
  std::int64_t all() const { return keys + 2 * transposed_values + key_rows + 2 * map + block + 3 * grads + sums; }
};

// All gradients of one head.
template <int bytes, typename T>
BCNET_INLINE void attend_backward(const BackwardWork<T>& work, std::int64_t head, std::int64_t block, T* scratch) {
  const AttentionSizes& sizes = work.sizes;
  const BackwardScratch parts(sizes, block);
  const auto take = [&](std::int64_t size) {
    T* const taken = scratch;
    scratch += size;
    return taken;
  };
  const std::int64_t stride = map_stride(sizes), head_size = padded(sizes.head_size), value_size = padded(sizes.value_size);
  T* const keys = take(parts.keys);
  T* const key_rows = take(parts.key_rows);
  pack_transposed(work.key.of(head), work.key.stride, sizes.keys, sizes.head_size, sign_of<T>(sizes), keys);
  pack_rows(work.key.of(head), work.key.stride, sizes.keys, sizes.head_size, key_rows);
  T* values[2];
  T* of_values[2];
  for (int s = 0; s < work.streams; ++s) {
    values[s] = take(parts.transposed_values);
    of_values[s] = take(parts.grads);
    pack_transposed(work.values[s].of(head), work.values[s].stride, sizes.keys, sizes.value_size, T(1), values[s]);
  }
  T* const of_key = take(parts.grads);
  T* const map = take(parts.map);
  T* const grad = take(parts.map);
  T* const rows_of_block = take(parts.block);
  RowSum<T>* const sums = reinterpret_cast<RowSum<T>*>(take(parts.sums));

  for (std::int64_t first = 0; first < sizes.queries; first += block) {
    const std::int64_t rows = std::min(block, sizes.queries - first);
    const bool add = first > 0;
    const T* const query = work.query.of(head) + first * work.query.stride;
    make_map<bytes>(query, work.query.stride, keys, sizes, rows, map, sums);
    for (int s = 0; s < work.streams; ++s) {
      const T* const given = work.grads[s].of(head) + first * work.grads[s].stride;
      multiply_panels_with<bytes>(given, work.grads[s].stride, std::int64_t{1}, rows, values[s], sizes.value_size,
                                  padded(sizes.keys), s > 0, grad, stride);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      logit_gradients<bytes>(map + r * stride, grad + r * stride, sizes.keys, sums[r].weight, static_cast<T>(sizes.scale));
    }
    for (int s = 0; s < work.streams; ++s) {
      pack_rows(work.grads[s].of(head) + first * work.grads[s].stride, work.grads[s].stride, rows, sizes.value_size, rows_of_block);
      multiply_panels_with<bytes>(map, std::int64_t{1}, stride, sizes.keys, rows_of_block, rows, value_size, add, of_values[s],
                                  value_size);
    }
    pack_rows(query, work.query.stride, rows, sizes.head_size, rows_of_block);
    multiply_panels_with<bytes>(grad, std::int64_t{1}, stride, sizes.keys, rows_of_block, rows, head_size, add, of_key, head_size);
    multiply_panels_with<bytes>(grad, stride, std::int64_t{1}, rows, key_rows, sizes.keys, head_size, false, rows_of_block,
                                head_size);
    copy_rows(rows_of_block, head_size, rows, sizes.head_size, work.gradients.query.of(head) + first * work.gradients.query.stride,
              work.gradients.query.stride);
  }
  copy_rows(of_key, head_size, sizes.keys, sizes.head_size, work.gradients.key.of(head), work.gradients.key.stride);
  for (int s = 0; s < work.streams; ++s) {
    const HeadRows<T>& to = work.gradients.values[s];
    copy_rows(of_values[s], value_size, sizes.keys, sizes.value_size, to.of(head), to.stride);
  }
}

BCNET_VERSIONS(attend_rows)
BCNET_VERSIONS(attend_backward)

thread_local Scratch packed_scratch, map_scratch;

}  // namespace

template <typename T>
void attention(HeadRows<const T> query, HeadRows<const T> key, const HeadRows<const T>* values, int streams,
               const AttentionSizes& sizes, InstructionSet instruction_set, int threads, const HeadRows<T>* outputs, T* lse) {
  AttentionWork<T> work{query, key, {}, streams, sizes, {}, lse};
  std::copy_n(values, streams, work.values);
  std::copy_n(outputs, streams, work.outputs);
  const std::int64_t most = block_rows(sizes), blocks = (sizes.queries + most - 1) / most;
  threads = static_cast<int>(std::min<std::int64_t>(threads, sizes.heads * blocks));
  WorkShares shares(sizes.heads * blocks, threads);
  run_in_threads(threads, [&](int thread) {
    const std::int64_t of_keys = padded(sizes.keys) * sizes.head_size, of_values = padded(sizes.value_size) * sizes.keys;
    T* const packed = packed_scratch.take<T>(of_keys + streams * of_values);
    T* const map = map_scratch.take<T>(most * (map_stride(sizes) + 2));
    RowSum<T>* const sums = reinterpret_cast<RowSum<T>*>(map + most * map_stride(sizes));
    std::int64_t packed_head = -1;
    for (std::int64_t item; shares.next(thread, item);) {
      const std::int64_t head = item / blocks, block = item % blocks;
      if (head != packed_head) {
        pack_transposed(key.of(head), key.stride, sizes.keys, sizes.head_size, sign_of<T>(sizes), packed);
        for (int s = 0; s < streams; ++s) {
          pack_rows(values[s].of(head), values[s].stride, sizes.keys, sizes.value_size, packed + of_keys + s * of_values);
        }
        packed_head = head;
      }
      const std::int64_t first = sizes.queries * block / blocks, last = sizes.queries * (block + 1) / blocks;
      attend_rows_for(instruction_set, work, head, packed, first, last, map, sums);
    }
  });
}

template <typename T>
void attention_backward(const HeadRows<const T>* grads, HeadRows<const T> query, HeadRows<const T> key,
                        const HeadRows<const T>* values, int streams, const AttentionSizes& sizes,
                        InstructionSet instruction_set, int threads, const AttentionGradients<T>& gradients) {
  BackwardWork<T> work{{}, query, key, {}, streams, sizes, gradients};
  std::copy_n(grads, streams, work.grads);
  std::copy_n(values, streams, work.values);
  const std::int64_t block = block_rows(sizes);
  WorkQueue heads(sizes.heads);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, sizes.heads)), [&](int) {
    T* const scratch = packed_scratch.take<T>(BackwardScratch(sizes, block).all());
    for (std::int64_t head; heads.next(head);) attend_backward_for(instruction_set, work, head, block, scratch);
  });
}

#define BCNET_INSTANTIATE(T)                                                                                              \
  template void attention(HeadRows<const T>, HeadRows<const T>, const HeadRows<const T>*, int, const AttentionSizes&,      \
                          InstructionSet, int, const HeadRows<T>*, T*);                                                    \
  template void attention_backward(const HeadRows<const T>*, HeadRows<const T>, HeadRows<const T>, const HeadRows<const T>*, \
                                   int, const AttentionSizes&, InstructionSet, int, const AttentionGradients<T>&);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
