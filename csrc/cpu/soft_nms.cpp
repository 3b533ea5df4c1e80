// Greedy Soft-NMS, exact, in four ideas:
//
// 1. A pick changes only candidates that overlap it. They lie in blocks (soft_nms_state.h), and a pick skips each block
//    whose range it does not overlap.
// 2. Scores only fall, so the last known highest score of a block is an upper bound. A block that a pick overlaps waits
//    until its bound reaches the highest score that is known; then all pending picks decay it in one visit. In a long
//    video that is one visit for four or five of them.
// 3. The decays of some visits are a list of pairs of block and pick, processed without a branch, several pairs at a
//    time, because one alone is a long chain of dependent instructions.
// 4. Ties are broken by the position in the working array of the plain algorithm (soft_nms_ties.h).
#include "include/soft_nms.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/soft_nms_rules.h"
#include "cpu/soft_nms_set.h"
#include "cpu/soft_nms_state.h"
#include "cpu/soft_nms_ties.h"
#include "runtime/parallel.h"
#include "simd/denormals.h"

// Without it, GCC does not interleave the instructions of the pairs, and every case takes longer.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("schedule-insns")
#endif

#define BCNET_KERNELS "cpu/soft_nms_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {

template <typename T>
bool all_usable(const T* segments, const T* scores, std::int64_t count, InstructionSet instruction_set) {
  return BCNET_VERSION(instruction_set, only_usable<T>)(segments, scores, count);
}

template <typename T>
void soft_nms(const SoftNmsInputs<T>& inputs, const SoftNmsOptions& options, InstructionSet instruction_set,
              int threads, const SoftNmsOutputs<T>& outputs) {
  const std::int64_t* const offsets = inputs.offsets;
  std::int64_t most = 0;
  for (std::int64_t v = 0; v < inputs.sets; ++v) most = std::max(most, offsets[v + 1] - offsets[v]);
  // Starting a thread costs some tens of microseconds, about the time to process this many candidates.
  constexpr std::int64_t worth_a_thread = 512;
  const std::int64_t useful = std::min(inputs.sets, inputs.candidates / worth_a_thread);
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));

  const KeepDenormals keep;  // the lowest score may be one, and so may an overlap
  const Rules<T> rules(options);
  std::vector<SetState<T>> states;
  states.reserve(threads);
  for (int t = 0; t < threads; ++t) states.emplace_back(most);
  WorkQueue queue(inputs.sets);
  run_in_threads(threads, [&](int thread) {
    const KeepDenormals keep_here;
    for (std::int64_t v; queue.next(v);) {
      const std::int64_t first = offsets[v];
      const auto count = static_cast<std::int32_t>(offsets[v + 1] - first);
      outputs.counts[v] = BCNET_VERSION(instruction_set, solve<T>)(inputs.segments + 2 * first, inputs.scores + first,
                                                                   count, rules, states[thread], first,
                                                                   outputs.indices + first, outputs.scores + first);
    }
  });
}

std::int64_t soft_nms_of_set(const float* segments, const float* scores, std::int32_t count, const Rules<float>& rules,
                             InstructionSet instruction_set, std::int64_t* indices, float* picked_scores) {
  const KeepDenormals keep;  // as above
  SetState<float> state(count);
  return BCNET_VERSION(instruction_set, solve<float>)(segments, scores, count, rules, state, 0, indices, picked_scores);
}

template bool all_usable(const float*, const float*, std::int64_t, InstructionSet);
template bool all_usable(const double*, const double*, std::int64_t, InstructionSet);
template void soft_nms(const SoftNmsInputs<float>&, const SoftNmsOptions&, InstructionSet, int,
                       const SoftNmsOutputs<float>&);
template void soft_nms(const SoftNmsInputs<double>&, const SoftNmsOptions&, InstructionSet, int,
                       const SoftNmsOutputs<double>&);

}  // namespace bcnet_fast
