// Three ideas make gathering by a sparse plan fast:
//
// 1. Columns are processed a few vectors at a time, and their values are first packed together. They stay in the L2
//    cache, where columns of a wide matrix, one page apart, would evict each other.
// 2. Anchors of one length read alike but for a shift. Eight of them go together: a weight is loaded once for all, and
//    their sums stay in registers over all bins, as far as they read alike.
// 3. The taps lie in plain lists, in the order of use, so that the loops over them are long. Loops over bins would end
//    after a few steps, which the processor cannot predict.
#include "include/anchor_sampling.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "cpu/sampling_blocks.h"
#include "cpu/sampling_work.h"
#include "runtime/memory.h"
#include "runtime/parallel.h"

#define BCNET_KERNELS "cpu/sampling_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

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
  const int width = BCNET_VERSION(instruction_set, block_columns<T>)();
  const std::int64_t blocks = batch * ((outputs + width - 1) / width);
  if (blocks == 0) return;
  // Enough items for all threads to end together, and no more: a thread packs every block that it takes items of.
  const std::int64_t parts = (4 * threads + blocks - 1) / blocks;
  prefer_huge_pages(out, sizeof(T) * batch * plan.anchors * outputs);
  const GatherWork<T> work{projected, plan, bias, relu, batch, outputs, out, parts};
  const Packed<T> packed(threads, packed_rows(plan), width);
  WorkShares shares(blocks * parts, threads);
  run_in_threads(threads, [&](int thread) {
    T* columns = packed.of(thread);
    BCNET_VERSION(instruction_set, gather_items<T>)(work, shares, thread, columns);
  });
}

template <typename T>
void gather_backward(const T* grad, const GroupPlan<T>& plan, std::int64_t batch, std::int64_t outputs,
                     InstructionSet instruction_set, int threads, T* out) {
  const int width = BCNET_VERSION(instruction_set, block_columns<T>)();
  const std::int64_t blocks = batch * ((outputs + width - 1) / width);
  const ScatterWork<T> work{grad, plan, batch, outputs, out};
  const Packed<T> packed(threads, packed_rows(plan), width);
  WorkQueue queue(blocks);
  run_in_threads(threads, [&](int thread) {
    T* columns = packed.of(thread);
    BCNET_VERSION(instruction_set, scatter_items<T>)(work, queue, columns);
  });
}

template <typename T>
bool plan_exists(const BinPlan<T>& plan, InstructionSet instruction_set) {
  const std::int64_t cells = plan.anchors * plan.bins;
  const auto length =
      static_cast<std::int32_t>(std::min<std::int64_t>(plan.length, std::numeric_limits<std::int32_t>::max()));
  return plan.offsets[0] >= 0 && plan.offsets[cells] <= plan.taps &&
         BCNET_VERSION(instruction_set, cells_exist)(plan.first, plan.offsets, cells, length);
}

template <typename T>
void sample(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
            std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out) {
  prefer_huge_pages(out, sizeof(T) * batch * plan.anchors * plan.bins * channels);
  const SampleWork<T> work{rows, plan, sources, source_count, batch, channels, out};
  WorkShares shares(batch * ((plan.anchors + kAnchorsInItem - 1) / kAnchorsInItem), threads);
  run_in_threads(threads, [&](int thread) { BCNET_VERSION(instruction_set, sample_items<T>)(work, shares, thread); });
}

template <typename T>
void sample_backward(const T* grad, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
                     std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out) {
  const SampleWork<T> work{grad, plan, sources, source_count, batch, channels, out};
  WorkQueue queue(batch * ((channels + kChannelsInItem - 1) / kChannelsInItem));
  run_in_threads(threads, [&](int) { BCNET_VERSION(instruction_set, sample_backward_items<T>)(work, queue); });
}

#define BCNET_INSTANTIATE(T)                                                                                           \
  template void gather(const T*, const GroupPlan<T>&, const T*, bool, std::int64_t, std::int64_t, InstructionSet, int, \
                       T*);                                                                                            \
  template void gather_backward(const T*, const GroupPlan<T>&, std::int64_t, std::int64_t, InstructionSet, int, T*);   \
  template bool plan_exists(const BinPlan<T>&, InstructionSet);                                                        \
  template void sample(const T*, const BinPlan<T>&, const std::int32_t*, std::int64_t, std::int64_t, std::int64_t,     \
                       InstructionSet, int, T*);                                                                       \
  template void sample_backward(const T*, const BinPlan<T>&, const std::int32_t*, std::int64_t, std::int64_t,          \
                                std::int64_t, InstructionSet, int, T*);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
