// The work of a window lies in its pairs. Two walks over the lists of possible boundaries find them, and four at a time
// are computed where vectors are large enough. Their scattered reads are then the limit, so the anchors, which only
// refinement needs, are read only for vectors with a pair to refine.
#include "include/match_proposals.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cpu/match_workspace.h"
#include "runtime/parallel.h"

#define BCNET_KERNELS "cpu/match_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {

template <typename T>
bool match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, InstructionSet instruction_set,
                     int threads, const MatchOutputs& outputs) {
  // Waking a thread costs some tens of microseconds, about the time to fill this many rows.
  constexpr std::int64_t worth_a_thread = std::int64_t{1} << 15;
  const std::int64_t useful = std::min(inputs.windows, inputs.windows * outputs.rows / worth_a_thread);
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));
  if (!BCNET_VERSION(instruction_set, good_anchors<T>)(inputs)) return false;
  std::vector<MatchWorkspace<T>> workspaces(threads);
  WorkShares shares(inputs.windows, threads);
  std::atomic<bool> good{true};
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t window; shares.next(thread, window);) {
      if (!BCNET_VERSION(instruction_set, match_window<T>)(inputs, options, outputs, window, workspaces[thread])) {
        good = false;
      }
    }
  });
  return good;
}

template bool match_proposals(const MatchInputs<float>&, const MatchOptions&, InstructionSet, int, const MatchOutputs&);
template bool match_proposals(const MatchInputs<double>&, const MatchOptions&, InstructionSet, int,
                              const MatchOutputs&);

}  // namespace bcnet_fast
