// One-dimensional Soft-NMS over many independent sets (bcnet_fast.ops.soft_nms).
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// library_gaussian is for nms_1d.h alone: the factor is expf(-(tIoU * tIoU) / sigma) of the C library.
enum class Decay : int { gaussian = 0, linear = 1, hard = 2, library_gaussian = 3 };

struct SoftNmsOptions {
  Decay decay;
  double sigma;          // gaussian: factor exp(tIoU^2 * (-1 / sigma))
  double threshold_low;  // tIoU threshold = low + (high - low) * length of the picked segment
  double threshold_high;
  double min_score;        // candidates below it are dropped, as are those that are not positive
  std::int64_t max_picks;  // per set; negative: no limit
  double epsilon;          // added to each length in the tIoU
};

constexpr std::int64_t kMaxCandidates = std::int64_t{1} << 29;  // of a set

// Whether all segments [n, 2] and scores [n] are valid: finite, with end >= start.
template <typename T>
bool all_usable(const T* segments, const T* scores, std::int64_t count, InstructionSet instruction_set);

// n candidates in sets; set v is the candidates offsets[v] to offsets[v + 1] - 1.
template <typename T>
struct SoftNmsInputs {
  std::int64_t candidates, sets;
  const T* segments;            // [n, 2], start and end
  const T* scores;              // [n]
  const std::int64_t* offsets;  // [sets + 1], ascending from 0 to n
};

template <typename T>
struct SoftNmsOutputs {
  std::int64_t* indices;  // [n]
  T* scores;              // [n]
  std::int64_t* counts;   // [sets]
};

// Writes the picks of set v in their order, from offsets[v] on, to indices (into the whole input) and scores, and their
// number to counts[v]; nothing else is written. T is float or double; all arithmetic is done in T: the result has the
// same bits for every instruction set and number of threads. Requires: all_usable. Throws std::bad_alloc.
template <typename T>
void soft_nms(const SoftNmsInputs<T>& inputs, const SoftNmsOptions& options, InstructionSet instruction_set,
              int threads, const SoftNmsOutputs<T>& outputs);

}  // namespace bcnet_fast
