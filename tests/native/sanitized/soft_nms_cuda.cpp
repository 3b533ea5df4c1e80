// The CUDA kernel of Soft-NMS under emulation: it must pick what the CPU picks, in shared memory and in the workspace.
// In blocks of two warps, the fewest that can race.
#include "include/soft_nms_cuda.h"
#include "random_sets.h"

template <typename T>
void check(std::mt19937& random) {
#ifdef BCNET_EMULATE_WITH_THREADS  // which take turns a thousand times slower
  const std::vector<int> sizes{0, 33};
  const bool kinds[]{true};
#else
  const std::vector<int> sizes{0, 1, 33, 48};
  const bool kinds[]{false, true};
#endif
  for (const bool ties : kinds) {
    const Sets<T> sets = random_sets<T>(random, sizes, ties);
    const auto candidates = static_cast<std::int64_t>(sets.scores.size());
    for (const auto& options : all_options()) {
      const Picks<T> expected = native(sets, options, bcnet_fast::InstructionSet::baseline, 1);
      for (const std::size_t shared_limit : {std::size_t{2000}, bcnet_fast::soft_nms_shared_limit(0)}) {
        auto plan = bcnet_fast::plan_soft_nms<T>(candidates, sets.count(), 48, shared_limit);
        plan.threads = 64;
        std::vector<double> workspace(plan.workspace_bytes / sizeof(double));  // aligned to 16
        Picks<T> picks(sets);
        bcnet_fast::soft_nms_cuda(sets.inputs(), options, plan, 0, nullptr, workspace.data(), picks.outputs());
        require(picks == expected, shared_limit == 2000 ? "workspace" : "shared memory");
      }
    }
  }
}

int main() {
  std::mt19937 random(1);
  check<float>(random);
#ifndef BCNET_EMULATE_WITH_THREADS  // slow, and the type makes no difference to races
  check<double>(random);
#endif
}
