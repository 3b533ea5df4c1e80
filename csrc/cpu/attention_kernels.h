// Attention on a block of rows of a head, and its gradients. Included once per instruction set.
#include "gemm/tile_kernels.h"
#include "simd/exponential.h"

// out = a b for `rows` rows, where b is in panels and out has padded columns. Element (r, k) of a is
// a[r * a_stride + k * a_step].
template <typename T>
BCNET_NOINLINE void multiply_panels(const T* a, std::int64_t a_stride, std::int64_t a_step, std::int64_t rows,
                                    const T* b, std::int64_t depth, std::int64_t columns, bool add, T* out,
                                    std::int64_t out_stride) {
  constexpr int width = kTileColumns<T>, max_rows = kTileRows;
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows;  // of about one size
  for (std::int64_t column = 0; column < columns; column += width) {
    const T* const panel = b + column / kPanel * kPanel * depth + column % kPanel;
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t r = rows * t / tiles;
      multiply_tile(static_cast<int>(rows * (t + 1) / tiles - r), a + r * a_stride, a_stride, panel, kPanel, depth,
                    kDepthBlock, false, out + r * out_stride + column, out_stride, add, a_step);
    }
  }
}

// Replaces the first `count` elements x by 2^((x - highest) scale). Overwrites the rest of the last panel.
template <typename T>
BCNET_INLINE RowSum<T> softmax_row(T* row, std::int64_t count, T scale) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>;
  const std::int64_t end = padded(count);
  std::fill(row + count, row + end, -std::numeric_limits<T>::infinity());
  V highest0 = load<V>(row), highest1 = highest0;  // two, so that neither waits for the one before it
  for (std::int64_t i = 0; i < end; i += 2 * lanes) {
    const V values0 = load<V>(row + i), values1 = load<V>(row + i + lanes);
    highest0 = values0 > highest0 ? values0 : highest0;
    highest1 = values1 > highest1 ? values1 : highest1;
  }
  const T highest = largest<T>(highest0 > highest1 ? highest0 : highest1);
  V sums{};
  for (std::int64_t i = 0; i < end; i += lanes) {
    const V power = (load<V>(row + i) - highest) * scale, lowest = splat<V>(kLowestPower<T>);
    const V values = exp2_nonpositive(power < lowest ? lowest : power, T(0));  // NaN stays
    sums += values;
    store(row + i, values);
  }
  return {highest, 1 / sum_of<T>(sums)};
}

// The map of some rows of a head, whose keys are packed, without the factor of each row, which is the weight in `sums`.
template <typename T>
BCNET_INLINE void compute_map(const T* query, std::int64_t query_stride, const T* keys, const AttentionSizes& sizes,
                              std::int64_t rows, T* map, RowSum<T>* sums) {
  const std::int64_t stride = map_stride(sizes);
  multiply_panels(query, query_stride, std::int64_t{1}, rows, keys, sizes.head_size, padded(sizes.keys), false, map,
                  stride);
  // Not 0: the last panel is filled up with -infinity, and -infinity times 0 is NaN.
  const T scale = std::max(static_cast<T>(std::abs(sizes.scale) * kLog2E), std::numeric_limits<T>::min());
  for (std::int64_t r = 0; r < rows; ++r) sums[r] = softmax_row(map + r * stride, sizes.keys, scale);
}

// One block of rows of one head. packed: its keys, then the values of each stream.
template <typename T>
void attend_rows(const AttentionWork<T>& work, std::int64_t head, const T* packed, std::int64_t first,
                 std::int64_t last, T* map, RowSum<T>* sums) {
  constexpr int width = kTileColumns<T>, max_rows = kTileRows;
  const AttentionSizes& sizes = work.sizes;
  const std::int64_t stride = map_stride(sizes), rows = last - first, tiles = (rows + max_rows - 1) / max_rows;
  compute_map(work.query.of(head) + first * work.query.stride, work.query.stride, packed, sizes, rows, map, sums);
  if (work.lse) {
    for (std::int64_t r = 0; r < rows; ++r) {
      work.lse[head * sizes.queries + first + r] =
          multiply_add(sums[r].highest, static_cast<T>(std::abs(sizes.scale)), -std::log(sums[r].weight));
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
        T results[max_rows * width];
        multiply_tile(count, map + r * stride, stride, b, kPanel, sizes.keys, kDepthBlock, false, results, width);
        for (int i = 0; i < count; ++i) {
          const T weight = sums[r + i].weight;
          T* const to = out + (r + i) * work.outputs[s].stride + column;
          for (std::int64_t c = 0; c < used; ++c) to[c] = results[i * width + c] * weight;
        }
      }
    }
  }
}

// Turns the gradient of a row of the map into that of its logits, and multiplies the row by its weight.
template <typename T>
BCNET_INLINE void logit_gradients(T* map, T* grad, std::int64_t count, T weight, T scale) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>;
  const std::int64_t end = padded(count);
  std::fill(map + count, map + end, T(0));
  V sums{};
  for (std::int64_t i = 0; i < end; i += lanes) {
    const V share = load<V>(map + i) * weight;
    sums = multiply_add(share, load<V>(grad + i), sums);
    store(map + i, share);
  }
  const T delta = sum_of<T>(sums);
  for (std::int64_t i = 0; i < end; i += lanes) {
    store(grad + i, load<V>(map + i) * (load<V>(grad + i) - delta) * scale);
  }
}

// All gradients of one head, `block` rows of the map at a time.
template <typename T>
void attend_backward(const BackwardWork<T>& work, std::int64_t head, std::int64_t block, T* workspace) {
  const AttentionSizes& sizes = work.sizes;
  const BackwardWorkspace parts(sizes, block);
  const auto take = [&](std::int64_t size) {
    T* const taken = workspace;
    workspace += size;
    return taken;
  };
  const std::int64_t stride = map_stride(sizes), head_size = padded(sizes.head_size),
                     value_size = padded(sizes.value_size);
  T* const keys = take(parts.keys);
  T* const key_rows = take(parts.key_rows);
  pack_transposed(work.key.of(head), work.key.stride, sizes.keys, sizes.head_size, sign_of<T>(sizes), keys);
  pack_rows(work.key.of(head), work.key.stride, sizes.keys, sizes.head_size, key_rows);
  T* values[2];
  T* value_grads[2];
  for (int s = 0; s < work.streams; ++s) {
    values[s] = take(parts.transposed_values);
    value_grads[s] = take(parts.grads);
    pack_transposed(work.values[s].of(head), work.values[s].stride, sizes.keys, sizes.value_size, T(1), values[s]);
  }
  T* const key_grads = take(parts.grads);
  T* const map = take(parts.map);
  T* const grad = take(parts.map);
  T* const rows_of_block = take(parts.block);
  RowSum<T>* const sums = reinterpret_cast<RowSum<T>*>(take(parts.sums));

  for (std::int64_t first = 0; first < sizes.queries; first += block) {
    const std::int64_t rows = std::min(block, sizes.queries - first);
    const bool add = first > 0;
    const T* const query = work.query.of(head) + first * work.query.stride;
    compute_map(query, work.query.stride, keys, sizes, rows, map, sums);
    for (int s = 0; s < work.streams; ++s) {
      const T* const out_grads = work.grads[s].of(head) + first * work.grads[s].stride;
      multiply_panels(out_grads, work.grads[s].stride, std::int64_t{1}, rows, values[s], sizes.value_size,
                      padded(sizes.keys), s > 0, grad, stride);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      logit_gradients(map + r * stride, grad + r * stride, sizes.keys, sums[r].weight, static_cast<T>(sizes.scale));
    }
    for (int s = 0; s < work.streams; ++s) {
      pack_rows(work.grads[s].of(head) + first * work.grads[s].stride, work.grads[s].stride, rows, sizes.value_size,
                rows_of_block);
      multiply_panels(map, std::int64_t{1}, stride, sizes.keys, rows_of_block, rows, value_size, add, value_grads[s],
                      value_size);
    }
    pack_rows(query, work.query.stride, rows, sizes.head_size, rows_of_block);
    multiply_panels(grad, std::int64_t{1}, stride, sizes.keys, rows_of_block, rows, head_size, add, key_grads,
                    head_size);
    multiply_panels(grad, stride, std::int64_t{1}, rows, key_rows, sizes.keys, head_size, false, rows_of_block,
                    head_size);
    copy_rows(rows_of_block, head_size, rows, sizes.head_size,
              work.gradients.query.of(head) + first * work.gradients.query.stride, work.gradients.query.stride);
  }
  copy_rows(key_grads, head_size, sizes.keys, sizes.head_size, work.gradients.key.of(head), work.gradients.key.stride);
  for (int s = 0; s < work.streams; ++s) {
    const HeadRows<T>& to = work.gradients.values[s];
    copy_rows(value_grads[s], value_size, sizes.keys, sizes.value_size, to.of(head), to.stride);
  }
}
