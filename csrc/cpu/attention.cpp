// A thread works on blocks of rows of one head after another: it transposes the head's keys into panels and copies its values
// into panels, and then makes its blocks of the map, complete, which fit the cache between their three passes: scores,
// softmax, and products with the values. A head that several threads work on is packed by each, for which none has to wait.
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

constexpr double kLog2E = 1.4426950408889634;
constexpr std::int64_t kMapElements = 64 * 1024;  // of a block of rows of the map: a quarter of a megabyte

// Lower powers of 2 count as this one: their sum is at least 1, of which it is far less than a rounding error, and products
// with it are normal numbers still, for others of which processors take several times as long.
template <typename T>
constexpr T kLeastPower = sizeof(T) == sizeof(float) ? T(-100) : T(-900);

constexpr std::int64_t panels_of(std::int64_t columns) { return (columns + kPanel - 1) / kPanel; }

template <typename T>
struct AttentionWork {
  Matrix<T> query, key;
  Matrix<T> values[2];
  Output<T> outputs[2];
  int streams;
  AttentionSizes sizes;
  std::int64_t blocks;  // of a head

  std::int64_t key_elements() const { return panels_of(sizes.keys) * kPanel * sizes.head_size; }
  std::int64_t value_elements() const { return panels_of(sizes.value_size) * kPanel * sizes.keys; }
  // Of a packed head: panels of keys, then of the values of each stream.
  std::int64_t head_elements() const { return key_elements() + streams * value_elements(); }
};

// What a panel has beyond the columns that exist is zero.
template <typename T>
void pack_head(const AttentionWork<T>& work, std::int64_t head, T* to) {
  const AttentionSizes& sizes = work.sizes;
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

// 2^((x - max) scale) of the first `count` elements; returns 1 / their sum. What follows up to a whole panel is lost.
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
    const V power = (load<V>(row + i) - most) * scale, least = splat<V>(kLeastPower<T>);
    const V values = exp2_nonpositive(power < least ? least : power, T(0));  // NaN stays
    sums += values;
    store(row + i, values);
  }
  std::memcpy(elements, &sums, sizeof(sums));
  T sum = 0;
  for (int i = 0; i < lanes; ++i) sum += elements[i];
  return 1 / sum;
}

// One block of rows of one head, which is packed in `keys`.
template <int bytes, typename T>
BCNET_INLINE void attend_rows(const AttentionWork<T>& work, std::int64_t head, const T* keys, std::int64_t first,
                              std::int64_t last, T* map) {
  constexpr int width = Tiles<T, bytes>::width, most_rows = kTileRows<bytes>;
  const AttentionSizes& sizes = work.sizes;
  const std::int64_t stride = scratch_stride(panels_of(sizes.keys) * kPanel);
  const std::int64_t rows = last - first, tiles = (rows + most_rows - 1) / most_rows;
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
  const T scale = static_cast<T>(sizes.scale * kLog2E);
  for (std::int64_t r = 0; r < rows; ++r) weights[r] = softmax_row<bytes>(map + r * stride, sizes.keys, scale);

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
  AttentionWork<T> work{query, key, {}, {}, streams, sizes, 0};
  std::copy_n(values, streams, work.values);
  std::copy_n(outputs, streams, work.outputs);
  const std::int64_t stride = scratch_stride(panels_of(sizes.keys) * kPanel);
  // Whole tiles of the largest kind where the map is not too wide.
  constexpr std::int64_t tile = kTileRows<64>;
  const std::int64_t wanted = std::max<std::int64_t>(1, kMapElements / (tile * stride)) * tile;
  work.blocks = (sizes.queries + wanted - 1) / wanted;

  WorkShares shares(sizes.heads * work.blocks, threads);
  run_in_threads(threads, [&](int thread) {
    T* const packed = packed_scratch.take<T>(work.head_elements());
    T* const map = map_scratch.take<T>(wanted * (stride + 1));
    std::int64_t packed_head = -1;
    for (std::int64_t item; shares.next(thread, item);) {
      const std::int64_t head = item / work.blocks, block = item % work.blocks;
      if (head != packed_head) pack_head(work, head, packed);
      packed_head = head;
      const std::int64_t first = sizes.queries * block / work.blocks, last = sizes.queries * (block + 1) / work.blocks;
      attend_rows_for(instruction_set, work, head, packed, first, last, map);
    }
  });
}

template void attention(Matrix<float>, Matrix<float>, const Matrix<float>*, int, const AttentionSizes&, InstructionSet, int,
                        const Output<float>*);
template void attention(Matrix<double>, Matrix<double>, const Matrix<double>*, int, const AttentionSizes&, InstructionSet, int,
                        const Output<double>*);

}  // namespace bcnet_fast
