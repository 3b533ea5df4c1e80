// Keys are transposed into panels and values copied into panels once per head; a block of rows of the map, complete, then
// fits the cache between its three passes: scores, softmax, and products with the values.
//
// Products are fused with their sums (FMA) where the instruction set has it, so bits differ between instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "parallel.h"
#include "scratch.h"
#include "tiles.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kMapElements = 64 * 1024;  // of a block of rows of the map: a quarter of a megabyte

// Where exp(x) would not be a normal number any more, it counts as 0: the sum is at least 1, and processors take several
// times as long for numbers that are not.
template <typename T>
constexpr T kLeastPower = sizeof(T) == sizeof(float) ? T(-87) : T(-708);

constexpr std::int64_t panels_of(std::int64_t columns) { return (columns + kPanel - 1) / kPanel; }

template <typename T>
struct AttentionWork {
  Matrix<T> query, key;
  Matrix<T> values[2];
  Output<T> outputs[2];
  int streams;
  AttentionSizes sizes;
  std::int64_t blocks;
  T* packed;  // of each head: panels of keys, then of the values of each stream

  std::int64_t key_elements() const { return panels_of(sizes.keys) * kPanel * sizes.head_size; }
  std::int64_t value_elements() const { return panels_of(sizes.value_size) * kPanel * sizes.keys; }
  std::int64_t head_elements() const { return key_elements() + streams * value_elements(); }
};

// What a panel has beyond the columns that exist is zero.
template <typename T>
void pack_head(const AttentionWork<T>& work, std::int64_t head) {
  const AttentionSizes& sizes = work.sizes;
  T* to = work.packed + head * work.head_elements();
  std::fill_n(to, work.head_elements(), T(0));
  for (std::int64_t t = 0; t < sizes.keys; ++t) {
    const T* const from = work.key.data + t * work.key.stride + head * sizes.head_size;
    T* const panel = to + t / kPanel * kPanel * sizes.head_size + t % kPanel;
    for (std::int64_t k = 0; k < sizes.head_size; ++k) panel[k * kPanel] = from[k];
  }
  to += work.key_elements();
  for (int s = 0; s < work.streams; ++s, to += work.value_elements()) {
    for (std::int64_t t = 0; t < sizes.keys; ++t) {
      const T* const from = work.values[s].data + t * work.values[s].stride + head * sizes.value_size;
      for (std::int64_t c = 0; c < sizes.value_size; c += kPanel) {
        const std::int64_t used = std::min<std::int64_t>(kPanel, sizes.value_size - c);
        std::copy_n(from + c, used, to + c * sizes.keys + t * kPanel);
      }
    }
  }
}

// exp((x - max) scale) of the first `count` elements; returns 1 / their sum. What follows up to a whole panel becomes 0.
template <int bytes, typename T>
BCNET_INLINE T softmax_row(T* row, std::int64_t count, T scale) {
  using V = Vector<T, bytes>;
  constexpr int lanes = Tiles<T, bytes>::lanes;
  const std::int64_t padded = panels_of(count) * kPanel;
  std::fill(row + count, row + padded, -std::numeric_limits<T>::infinity());
  V highest = load<V>(row);
  for (std::int64_t i = lanes; i < padded; i += lanes) {
    const V values = load<V>(row + i);
    highest = values > highest ? values : highest;
  }
  T elements[lanes];
  std::memcpy(elements, &highest, sizeof(highest));
  const T most = *std::max_element(elements, elements + lanes);
  V sums{};
  for (std::int64_t i = 0; i < padded; i += lanes) {
    const V power = (load<V>(row + i) - most) * scale;
    const V smallest = splat<V>(kLeastPower<T>);
    const V values = power < smallest ? V{} : exp_nonpositive(power < smallest ? smallest : power, T(0));
    sums += values;
    store(row + i, values);
  }
  std::memcpy(elements, &sums, sizeof(sums));
  T sum = 0;
  for (int i = 0; i < lanes; ++i) sum += elements[i];
  return 1 / sum;
}

// One block of rows of one head.
template <int bytes, typename T>
BCNET_INLINE void attend_rows(const AttentionWork<T>& work, std::int64_t head, std::int64_t first, std::int64_t last,
                              T* map) {
  constexpr int width = Tiles<T, bytes>::width, most_rows = kTileRows<bytes>;
  const AttentionSizes& sizes = work.sizes;
  const std::int64_t stride = scratch_stride(panels_of(sizes.keys) * kPanel);
  const std::int64_t rows = last - first, tiles = (rows + most_rows - 1) / most_rows;
  const T* const keys = work.packed + head * work.head_elements();
  const T* const query = work.query.data + first * work.query.stride + head * sizes.head_size;
  for (std::int64_t column = 0; column < sizes.keys; column += width) {
    const T* const b = keys + column / kPanel * kPanel * sizes.head_size + column % kPanel;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t r = rows * t / tiles;
      multiply_tile<bytes>(static_cast<int>(rows * (t + 1) / tiles - r), query + r * work.query.stride, work.query.stride, b,
                        kPanel, sizes.head_size, kPart, false, map + r * stride + column, stride);
    }
  }
  T* const weights = map + rows * stride;  // 1 / sum of each row
  for (std::int64_t r = 0; r < rows; ++r) weights[r] = softmax_row<bytes>(map + r * stride, sizes.keys, static_cast<T>(sizes.scale));

  for (int s = 0; s < work.streams; ++s) {
    const T* const values = keys + work.key_elements() + s * work.value_elements();
    for (std::int64_t column = 0; column < sizes.value_size; column += width) {
      const std::int64_t used = std::min<std::int64_t>(width, sizes.value_size - column);
      const T* const b = values + column / kPanel * kPanel * sizes.keys + column % kPanel;
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t r = rows * t / tiles;
        const int count = static_cast<int>(rows * (t + 1) / tiles - r);
        T results[most_rows * width];
        multiply_tile<bytes>(count, map + r * stride, stride, b, kPanel, sizes.keys, kPart, false, results, width);
        for (int i = 0; i < count; ++i) {
          const T weight = weights[r + i];
          T* const to = work.outputs[s].data + (first + r + i) * work.outputs[s].stride + head * sizes.value_size + column;
          for (std::int64_t c = 0; c < used; ++c) to[c] = results[i * width + c] * weight;
        }
      }
    }
  }
}

BCNET_VERSIONS(attend_rows)

thread_local Scratch packed_scratch, map_scratch;

}  // namespace

template <typename T>
void attention(Matrix<T> query, Matrix<T> key, const Matrix<T>* values, int streams, const AttentionSizes& sizes,
               InstructionSet instruction_set, int threads, const Output<T>* outputs) {
  AttentionWork<T> work{query, key, {}, {}, streams, sizes, 0, nullptr};
  std::copy_n(values, streams, work.values);
  std::copy_n(outputs, streams, work.outputs);
  const std::int64_t stride = scratch_stride(panels_of(sizes.keys) * kPanel);
  // Whole tiles of the largest kind where the map is not too wide.
  constexpr std::int64_t tile = kTileRows<64>;
  const std::int64_t wanted = std::max<std::int64_t>(1, kMapElements / (tile * stride)) * tile;
  work.blocks = (sizes.queries + wanted - 1) / wanted;
  work.packed = packed_scratch.take<T>(sizes.heads * work.head_elements());

  WorkQueue heads(sizes.heads);
  run_in_threads(threads, [&](int) {
    for (std::int64_t head; heads.next(head);) pack_head(work, head);
  });
  WorkQueue queue(sizes.heads * work.blocks);
  run_in_threads(threads, [&](int) {
    T* const map = map_scratch.take<T>(wanted * (stride + 1));
    for (std::int64_t item; queue.next(item);) {
      const std::int64_t head = item / work.blocks, block = item % work.blocks;
      const std::int64_t first = sizes.queries * block / work.blocks, last = sizes.queries * (block + 1) / work.blocks;
      attend_rows_for(instruction_set, work, head, first, last, map);
    }
  });
}

template void attention(Matrix<float>, Matrix<float>, const Matrix<float>*, int, const AttentionSizes&, InstructionSet, int,
                        const Output<float>*);
template void attention(Matrix<double>, Matrix<double>, const Matrix<double>*, int, const AttentionSizes&, InstructionSet, int,
                        const Output<double>*);

}  // namespace bcnet_fast
