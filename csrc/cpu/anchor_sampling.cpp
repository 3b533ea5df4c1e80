// Gathering by a sparse plan. What makes it fast:
//
// 1. Columns are worked on a few vectors at a time, and the values that these columns need are first packed together: they
//    then stay in the L2 cache, where columns of a wide matrix, one page apart, would throw each other out.
// 2. Anchors of one length read alike but for a shift. Eight of them go together: a weight is loaded once for all, and
//    their sums stay in registers over all bins, as far as they read alike.
// 3. What is to be added lies in plain lists, one after the other in the order of use: the loops over them are long, where
//    bins would end them, unforeseeably, after a few steps.
//
// Products are fused with their sums (FMA) where the instruction set has it, so bits differ between instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "include/anchor_sampling.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "cpu/gather_columns.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"

namespace bcnet_fast {
namespace {

// Copies `used` columns of each of `rows` rows, `stride` apart, to rows of C::width. Further columns there stay as they are.
template <typename C, typename T>
BCNET_INLINE void pack(const T* from, std::int64_t rows, std::int64_t stride, int used, T* to) {
  if (used == C::width) {
    for (std::int64_t row = 0; row < rows; ++row) std::memcpy(to + row * C::width, from + row * stride, sizeof(T) * C::width);
  } else {
    for (std::int64_t row = 0; row < rows; ++row) std::memcpy(to + row * C::width, from + row * stride, sizeof(T) * used);
  }
}

template <typename T>
struct GatherWork {
  const T* projected;
  const GroupPlan<T>& plan;
  const T* bias;
  bool relu;
  std::int64_t batch, outputs;
  T* out;
  std::int64_t parts;  // the groups are cut into so many
};

// Takes items: a part of the groups, for one block of columns of one element of the batch.
template <int bytes, typename T>
BCNET_INLINE void gather_items(const GatherWork<T>& work, WorkShares& shares, int thread, T* packed) {
  using C = Columns<bytes, T>;
  const GroupPlan<T>& plan = work.plan;
  const std::int64_t blocks = (work.outputs + C::width - 1) / C::width;
  // What is read beyond the columns and rows in use does not matter, but denormal numbers there would cost time.
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
    gather_columns<bytes, C::width>(columns, plan, plan.groups * part / work.parts, last);
  }
}

template <typename T>
struct ScatterWork {
  const T* grad;
  const GroupPlan<T>& plan;
  std::int64_t batch, outputs;
  T* out;
};

// Takes items: one block of columns of one element of the batch.
template <int bytes, typename T>
BCNET_INLINE void scatter_items(const ScatterWork<T>& work, WorkQueue& queue, T* packed) {
  using C = Columns<bytes, T>;
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
      V given[kGroup][C::vectors] = {};
      for (int r = 0; r < kGroup && anchors[r] >= 0; ++r) {
        std::memcpy(given[r], grad + anchors[r] * work.outputs, sizeof(T) * used);
      }
      for (std::int32_t i = lists[0]; i < lists[1]; ++i) {
        T* const row = packed + plan.tap_rows[i] * std::int64_t{C::width};
        const V weight = splat<V>(plan.tap_weights[i]);
        for (int r = 0; r < kGroup; ++r) {
          for (int v = 0; v < C::vectors; ++v) {
            T* const to = row + r * step + v * C::lanes;
            store(to, load<V>(to) + weight * given[r][v]);
          }
        }
      }
      for (int r = 0; r < kGroup; ++r) {
        for (std::int32_t i = lists[r + 1]; i < lists[r + 2]; ++i) {
          T* const row = packed + plan.tap_rows[i] * std::int64_t{C::width};
          const V weight = splat<V>(plan.tap_weights[i]);
          for (int v = 0; v < C::vectors; ++v) {
            store(row + v * C::lanes, load<V>(row + v * C::lanes) + weight * given[r][v]);
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

template <typename T>
struct SampleWork {
  const T* given;  // the rows; for the backward, the gradient of what was sampled
  const BinPlan<T>& plan;
  const std::int32_t* sources;
  std::int64_t source_count, batch, channels;
  T* out;
};

constexpr std::int64_t kAnchorsInItem = 4;

// One bin: `vectors` vectors of channels of its sum. With `taps` known to the compiler there is no loop over them.
template <int vectors, typename V, typename T>
BCNET_INLINE void sample_bin(const T* row, std::int64_t channels, const T* weights, std::int32_t taps, T* out) {
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T));
  V sums[vectors] = {};
  for (std::int32_t k = 0; k < taps; ++k) {
    const V w = splat<V>(weights[k]);
    for (int v = 0; v < vectors; ++v) sums[v] += w * load<V>(row + k * channels + v * lanes);
  }
  for (int v = 0; v < vectors; ++v) store(out + v * lanes, sums[v]);
}

// `vectors` vectors of channels of all bins of the anchors [begin, end); rows and out point to the first of these channels.
//
// What the loops need is copied to variables of their own: a store could change what is read through a reference, for all
// that the compiler knows, and it would then be read anew for every bin.
template <int vectors, typename V, typename T>
BCNET_INLINE void sample_channels(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t channels,
                                  std::int64_t begin, std::int64_t end, T* out) {
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

// Takes items: some anchors of one element of the batch.
template <int bytes, typename T>
BCNET_INLINE void sample_items(const SampleWork<T>& work, WorkShares& shares, int thread) {
  using V = Vector<T, bytes>;
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T)), vectors = 4;
  const BinPlan<T>& plan = work.plan;
  const std::int64_t channels = work.channels, items = (plan.anchors + kAnchorsInItem - 1) / kAnchorsInItem;
  for (std::int64_t item; shares.next(thread, item);) {
    const std::int64_t b = item / items, begin = item % items * kAnchorsInItem;
    const std::int64_t end = std::min(plan.anchors, begin + kAnchorsInItem);
    const T* const rows = work.given + b * work.source_count * plan.length * channels;
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

constexpr std::int64_t kChannelsInItem = 32;

// Takes items: some channels of one element of the batch, whose gradient no other thread writes.
template <int bytes, typename T>
BCNET_INLINE void sample_backward_items(const SampleWork<T>& work, WorkQueue& queue) {
  using V = Vector<T, bytes>;
  constexpr int lanes = static_cast<int>(sizeof(V) / sizeof(T));
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
      const T* const grad = work.given + (b * plan.anchors * plan.bins + cell) * channels;
      T* row = rows + (work.sources[n] * plan.length + plan.first[cell]) * channels;
      for (std::int32_t i = plan.offsets[cell]; i < plan.offsets[cell + 1]; ++i, row += channels) {
        const V w = splat<V>(plan.weights[i]);
        std::int64_t c = begin;
        for (; c + lanes <= end; c += lanes) store(row + c, load<V>(row + c) + w * load<V>(grad + c));
        for (; c < end; ++c) row[c] += plan.weights[i] * grad[c];
      }
    }
  }
}

// Without branches, and with a flag as wide as an index, so that compilers vectorise it.
template <int bytes>
BCNET_INLINE bool cells_exist(const std::int32_t* first, const std::int32_t* offsets, std::int64_t cells,
                              std::int32_t length) {
  std::int32_t bad = 0;
  for (std::int64_t i = 0; i < cells; ++i) {
    // Unsigned, since differences of numbers that are checked only here may overflow.
    const auto taps = static_cast<std::uint32_t>(offsets[i + 1]) - static_cast<std::uint32_t>(offsets[i]);
    const auto room = static_cast<std::uint32_t>(length) - static_cast<std::uint32_t>(first[i]);
    const bool good = (offsets[i + 1] >= offsets[i]) & (first[i] >= 0) & (first[i] <= length) & (taps <= room);
    bad |= good ? 0 : 1;
  }
  return bad == 0;
}

BCNET_VERSIONS(cells_exist)
BCNET_VERSIONS(gather_items)
BCNET_VERSIONS(scatter_items)
BCNET_VERSIONS(sample_items)
BCNET_VERSIONS(sample_backward_items)

// Columns in a block.
template <typename T>
int width_for(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return Columns<64, T>::width;
    case InstructionSet::avx2: return Columns<32, T>::width;
    default: return Columns<kBaselineBytes, T>::width;
  }
}

// Memory for the packed columns of each thread.
template <typename T>
class Packed {
 public:
  Packed(int threads, std::int64_t rows, int width)
      : size_((rows * width * static_cast<std::int64_t>(sizeof(T)) + 2 * kLine - 1) / kLine * kLine),
        bytes_(new char[threads * size_ + kLine]) {}
  T* of(int thread) const {
    const auto begin = (reinterpret_cast<std::uintptr_t>(bytes_.get()) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<T*>(begin + thread * size_);
  }

 private:
  const std::int64_t size_;
  const std::unique_ptr<char[]> bytes_;
};

}  // namespace

template <typename T>
void gather(const T* projected, const GroupPlan<T>& plan, const T* bias, bool relu, std::int64_t batch,
            std::int64_t outputs, InstructionSet instruction_set, int threads, T* out) {
  const int width = width_for<T>(instruction_set);
  const std::int64_t blocks = batch * ((outputs + width - 1) / width);
  if (blocks == 0) return;
  // Enough items for all threads to end together; but every thread packs each block that it takes items of.
  const std::int64_t parts = (4 * threads + blocks - 1) / blocks;
  prefer_huge_pages(out, sizeof(T) * batch * plan.anchors * outputs);
  const GatherWork<T> work{projected, plan, bias, relu, batch, outputs, out, parts};
  const Packed<T> packed(threads, packed_rows(plan), width);
  WorkShares shares(blocks * parts, threads);
  run_in_threads(threads, [&](int thread) {
    T* columns = packed.of(thread);
    gather_items_for(instruction_set, work, shares, thread, columns);
  });
}

template <typename T>
void gather_backward(const T* grad, const GroupPlan<T>& plan, std::int64_t batch, std::int64_t outputs,
                     InstructionSet instruction_set, int threads, T* out) {
  const int width = width_for<T>(instruction_set);
  const std::int64_t blocks = batch * ((outputs + width - 1) / width);
  const ScatterWork<T> work{grad, plan, batch, outputs, out};
  const Packed<T> packed(threads, packed_rows(plan), width);
  WorkQueue queue(blocks);
  run_in_threads(threads, [&](int thread) {
    T* columns = packed.of(thread);
    scatter_items_for(instruction_set, work, queue, columns);
  });
}

template <typename T>
bool plan_exists(const BinPlan<T>& plan, InstructionSet instruction_set) {
  const std::int64_t cells = plan.anchors * plan.bins;
  const auto length = static_cast<std::int32_t>(std::min<std::int64_t>(plan.length, std::numeric_limits<std::int32_t>::max()));
  return plan.offsets[0] >= 0 && plan.offsets[cells] <= plan.taps &&
         cells_exist_for(instruction_set, plan.first, plan.offsets, cells, length);
}

template <typename T>
void sample(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
            std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out) {
  prefer_huge_pages(out, sizeof(T) * batch * plan.anchors * plan.bins * channels);
  const SampleWork<T> work{rows, plan, sources, source_count, batch, channels, out};
  WorkShares shares(batch * ((plan.anchors + kAnchorsInItem - 1) / kAnchorsInItem), threads);
  run_in_threads(threads, [&](int thread) { sample_items_for(instruction_set, work, shares, thread); });
}

template <typename T>
void sample_backward(const T* grad, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
                     std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out) {
  const SampleWork<T> work{grad, plan, sources, source_count, batch, channels, out};
  WorkQueue queue(batch * ((channels + kChannelsInItem - 1) / kChannelsInItem));
  run_in_threads(threads, [&](int) { sample_backward_items_for(instruction_set, work, queue); });
}

#define BCNET_INSTANTIATE(T)                                                                                            \
  template void gather(const T*, const GroupPlan<T>&, const T*, bool, std::int64_t, std::int64_t, InstructionSet,    \
                       int, T*);                                                                                        \
  template void gather_backward(const T*, const GroupPlan<T>&, std::int64_t, std::int64_t, InstructionSet, int, T*); \
  template bool plan_exists(const BinPlan<T>&, InstructionSet);                                                      \
  template void sample(const T*, const BinPlan<T>&, const std::int32_t*, std::int64_t, std::int64_t, std::int64_t, \
                       InstructionSet, int, T*);                                                                        \
  template void sample_backward(const T*, const BinPlan<T>&, const std::int32_t*, std::int64_t, std::int64_t,      \
                                std::int64_t, InstructionSet, int, T*);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
