// The loops of anchor sampling over anchors, bins and taps. Included once per instruction set.
#include "cpu/gather_kernels.h"

// Copies `used` columns of each of `rows` rows, `stride` apart, to rows of C::width, whose other columns stay as they
// are.
template <typename C, typename T>
BCNET_INLINE void pack(const T* from, std::int64_t rows, std::int64_t stride, int used, T* to) {
  if (used == C::width) {
    for (std::int64_t row = 0; row < rows; ++row)
      std::memcpy(to + row * C::width, from + row * stride, sizeof(T) * C::width);
  } else {
    for (std::int64_t row = 0; row < rows; ++row)
      std::memcpy(to + row * C::width, from + row * stride, sizeof(T) * used);
  }
}

// Takes items until there are none: a part of the groups, for one block of columns of one element of the batch.
template <typename T>
void gather_items(const GatherWork<T>& work, WorkShares& shares, int thread, T* packed) {
  using C = Columns<T>;
  const GroupPlan<T>& plan = work.plan;
  const std::int64_t blocks = (work.outputs + C::width - 1) / C::width;
  // Values beyond the columns and rows in use are read but do not matter; denormal numbers there would cost time.
  std::fill_n(packed, packed_rows(plan) * C::width, T(0));
  std::int64_t packed_block = -1;
  int used = 0;
  T bias[C::width] = {};
  for (std::int64_t item; shares.next(thread, item);) {
    const std::int64_t block = item / work.parts, part = item % work.parts;
    const std::int64_t b = block / blocks, column = block % blocks * C::width;
    if (block != packed_block) {
      packed_block = block;
      used = static_cast<int>(std::min<std::int64_t>(C::width, work.outputs - column));
      pack<C>(work.projected + b * plan.rows * work.outputs + column, plan.rows, work.outputs, used, packed);
      std::copy_n(work.bias + column, used, bias);
    }
    T* const out = work.out + b * plan.anchors * work.outputs + column;
    const std::int64_t last = plan.groups * (part + 1) / work.parts;
    const GatheredColumns<T> columns{packed, bias, nullptr, 0, work.relu, used, out, work.outputs};
    gather_columns<C::width>(columns, plan, plan.groups * part / work.parts, last);
  }
}

// Takes items until there are none: one block of columns of one element of the batch.
template <typename T>
void scatter_items(const ScatterWork<T>& work, WorkQueue& queue, T* packed) {
  using C = Columns<T>;
  using V = typename C::V;
  const GroupPlan<T>& plan = work.plan;
  const std::int64_t blocks = (work.outputs + C::width - 1) / C::width;
  for (std::int64_t item; queue.next(item);) {
    const std::int64_t b = item / blocks, column = item % blocks * C::width;
    const int used = static_cast<int>(std::min<std::int64_t>(C::width, work.outputs - column));
    const T* const grad = work.grad + b * plan.anchors * work.outputs + column;
    std::fill_n(packed, packed_rows(plan) * C::width, T(0));
    for (std::int64_t g = 0; g < plan.groups; ++g) {
      const std::int32_t* const anchors = plan.order + g * kGroup;
      const std::int32_t* const lists = plan.offsets + g * (kGroup + 1);
      const std::int64_t step = plan.step[g] * C::width;
      V grads[kGroup][C::vectors] = {};
      for (int r = 0; r < kGroup && anchors[r] >= 0; ++r) {
        std::memcpy(grads[r], grad + anchors[r] * work.outputs, sizeof(T) * used);
      }
      for (std::int32_t i = lists[0]; i < lists[1]; ++i) {
        T* const row = packed + plan.tap_rows[i] * std::int64_t{C::width};
        const V weight = splat<V>(plan.tap_weights[i]);
        for (int r = 0; r < kGroup; ++r) {
          for (int v = 0; v < C::vectors; ++v) {
            T* const to = row + r * step + v * C::lanes;
            store(to, multiply_add(weight, grads[r][v], load<V>(to)));
          }
        }
      }
      for (int r = 0; r < kGroup; ++r) {
        for (std::int32_t i = lists[r + 1]; i < lists[r + 2]; ++i) {
          T* const row = packed + plan.tap_rows[i] * std::int64_t{C::width};
          const V weight = splat<V>(plan.tap_weights[i]);
          for (int v = 0; v < C::vectors; ++v) {
            store(row + v * C::lanes, multiply_add(weight, grads[r][v], load<V>(row + v * C::lanes)));
          }
        }
      }
    }
    T* const out = work.out + b * plan.rows * work.outputs + column;
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      std::memcpy(out + row * work.outputs, packed + row * C::width, sizeof(T) * used);
    }
  }
}

// `vectors` vectors of channels of the sum of one bin. With `taps` known to the compiler there is no loop over them.
template <int vectors, typename V, typename T>
BCNET_INLINE void sample_bin(const T* row, std::int64_t channels, const T* weights, std::int32_t taps, T* out) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T));
  V sums[vectors] = {};
  for (std::int32_t k = 0; k < taps; ++k) {
    const V w = splat<V>(weights[k]);
    for (int v = 0; v < vectors; ++v) sums[v] = multiply_add(w, load<V>(row + k * channels + v * lanes), sums[v]);
  }
  for (int v = 0; v < vectors; ++v) store(out + v * lanes, sums[v]);
}

// `vectors` vectors of channels of all bins of the anchors [begin, end); rows and out point to the first of these
// channels.
//
// The loops work on copies of the plan's fields: the compiler has to assume that a store changes what a reference
// refers to, and would read it again for every bin.
template <int vectors, typename V, typename T>
BCNET_INLINE void sample_channels(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources,
                                  std::int64_t channels, std::int64_t begin, std::int64_t end, T* out) {
  const std::int64_t bins = plan.bins, source_stride = plan.length * channels;
  const T* const all_weights = plan.weights;
  const std::int32_t* first = plan.first + begin * bins;
  const std::int32_t* offsets = plan.offsets + begin * bins;
  for (std::int64_t p = begin; p < end; ++p) {
    for (std::int64_t n = 0; n < bins; ++n, ++first, ++offsets, out += channels) {
      const T* const row = rows + sources[n] * source_stride + *first * channels;
      const T* const weights = all_weights + offsets[0];
      const std::int32_t taps = offsets[1] - offsets[0];
      switch (taps) {
        case 1: sample_bin<vectors, V>(row, channels, weights, 1, out); break;
        case 2: sample_bin<vectors, V>(row, channels, weights, 2, out); break;
        case 3: sample_bin<vectors, V>(row, channels, weights, 3, out); break;
        default: sample_bin<vectors, V>(row, channels, weights, taps, out);
      }
    }
  }
}

// Takes items until there are none: some anchors of one element of the batch.
template <typename T>
void sample_items(const SampleWork<T>& work, WorkShares& shares, int thread) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>, vectors = 4;
  const BinPlan<T>& plan = work.plan;
  const std::int64_t channels = work.channels, items = (plan.anchors + kAnchorsInItem - 1) / kAnchorsInItem;
  for (std::int64_t item; shares.next(thread, item);) {
    const std::int64_t b = item / items, begin = item % items * kAnchorsInItem;
    const std::int64_t end = std::min(plan.anchors, begin + kAnchorsInItem);
    const T* const rows = work.input + b * work.source_count * plan.length * channels;
    T* const out = work.out + (b * plan.anchors + begin) * plan.bins * channels;
    std::int64_t c = 0;
    for (; c + vectors * lanes <= channels; c += vectors * lanes) {
      sample_channels<vectors, V>(rows + c, plan, work.sources, channels, begin, end, out + c);
    }
    for (; c + lanes <= channels; c += lanes) {
      sample_channels<1, V>(rows + c, plan, work.sources, channels, begin, end, out + c);
    }
    for (; c < channels; ++c) sample_channels<1, T>(rows + c, plan, work.sources, channels, begin, end, out + c);
  }
}

// Takes items until there are none: some channels of one element of the batch, whose gradient no other thread writes.
template <typename T>
void sample_backward_items(const SampleWork<T>& work, WorkQueue& queue) {
  using V = Vec<T>;
  constexpr int lanes = kWidth<T>;
  const BinPlan<T>& plan = work.plan;
  const std::int64_t channels = work.channels, items = (channels + kChannelsInItem - 1) / kChannelsInItem;
  for (std::int64_t item; queue.next(item);) {
    const std::int64_t b = item / items, begin = item % items * kChannelsInItem;
    const std::int64_t end = std::min(channels, begin + kChannelsInItem);
    T* const rows = work.out + b * work.source_count * plan.length * channels;
    for (std::int64_t row = 0; row < work.source_count * plan.length; ++row) {
      std::fill(rows + row * channels + begin, rows + row * channels + end, T(0));
    }
    for (std::int64_t cell = 0, n = 0; cell < plan.anchors * plan.bins; ++cell, n = n + 1 < plan.bins ? n + 1 : 0) {
      const T* const grad = work.input + (b * plan.anchors * plan.bins + cell) * channels;
      T* row = rows + (work.sources[n] * plan.length + plan.first[cell]) * channels;
      for (std::int32_t i = plan.offsets[cell]; i < plan.offsets[cell + 1]; ++i, row += channels) {
        const V w = splat<V>(plan.weights[i]);
        std::int64_t c = begin;
        for (; c + lanes <= end; c += lanes) store(row + c, multiply_add(w, load<V>(grad + c), load<V>(row + c)));
        for (; c < end; ++c) row[c] = multiply_add(plan.weights[i], grad[c], row[c]);
      }
    }
  }
}

// Without branches, and with a flag as wide as an index, so that compilers vectorise it.
inline bool cells_exist(const std::int32_t* first, const std::int32_t* offsets, std::int64_t cells,
                        std::int32_t length) {
  std::int32_t bad = 0;
  for (std::int64_t i = 0; i < cells; ++i) {
    // Unsigned, because differences of numbers that are checked only here may overflow.
    const auto taps = static_cast<std::uint32_t>(offsets[i + 1]) - static_cast<std::uint32_t>(offsets[i]);
    const auto room = static_cast<std::uint32_t>(length) - static_cast<std::uint32_t>(first[i]);
    const bool good = (offsets[i + 1] >= offsets[i]) & (first[i] >= 0) & (first[i] <= length) & (taps <= room);
    bad |= good ? 0 : 1;
  }
  return bad == 0;
}

// Columns in a block.
template <typename T>
int block_columns() {
  return Columns<T>::width;
}
