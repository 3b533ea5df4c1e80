// One-dimensional Soft-NMS over many independent sets. The semantics are those of bcnet_fast.ops.soft_nms.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

enum class Decay : int { gaussian = 0, linear = 1, hard = 2 };

struct SoftNmsOptions {
  Decay decay;
  double sigma;           // gaussian: factor exp(tIoU^2 * (-1 / sigma))
  double threshold_low;   // tIoU threshold = low + (high - low) * length of the selected segment
  double threshold_high;
  double min_score;       // candidates below it are dropped, as are those that are not positive
  std::int64_t max_picks; // per set; negative: no limit
  double epsilon;         // added to each length in the tIoU
};

constexpr std::int64_t kMostCandidates = std::int64_t{1} << 29;  // in one set

// Whether all segments [n, 2] and scores [n] may be given to `soft_nms`.
template <typename T>
bool all_usable(const T* segments, const T* scores, std::int64_t count, InstructionSet instruction_set);

// segments [n, 2] start and end, scores [n], all finite, with end >= start; offsets [sets + 1], from 0 up to n, not
// decreasing: set v is the candidates offsets[v] .. offsets[v + 1] - 1. T is float or double, and all arithmetic is done
// in T: the result has the same bits for every instruction set and number of threads.
//
// Writes the picks of set v in the order they are taken, beginning at offsets[v]: indices[] (into the whole input) and
// picked_scores[]; counts[v] says how many. The rest of these arrays, which have the length n, is left as it was.
// Throws std::bad_alloc when memory runs out.
template <typename T>
void soft_nms(const T* segments, const T* scores, const std::int64_t* offsets, std::int64_t sets,
              const SoftNmsOptions& options, InstructionSet instruction_set, int threads, std::int64_t* indices,
              T* picked_scores, std::int64_t* counts);

}  // namespace bcnet_fast
