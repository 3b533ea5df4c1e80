// Boundary probabilities and anchor scores to scored proposals, for many windows.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

// W windows of T snippets; P anchors; D durations. Everything is contiguous; floating-point numbers are to be finite.
template <typename T>
struct MatchInputs {
  std::int64_t windows, snippets, durations, anchor_count;
  const T* start;              // [W, T]
  const T* end;                // [W, T]
  const T* classification;     // [W, P]
  const T* regression;         // [W, P]
  const T* background;         // [W, P], or null
  const double* anchors;       // [P, 2]
  const std::int32_t* table;   // [T, D], numbers from 0 to P - 1
  const std::int64_t* lengths; // [W], from 0 to T, or null
};

struct MatchOptions {
  double boundary_threshold, min_classification, min_regression;
  double max_snippets;  // segments of this length and longer get the score 0; infinity: no limit
  bool clamp_boundaries;
};

struct MatchOutputs {
  std::int64_t rows;         // K, at least the pairs that a window can have
  double* segments;          // [W, K, 2]
  double* scores;            // [W, K]
  std::int32_t* boundaries;  // [W, K, 2]
  std::int64_t* counts;      // [W]
};

// The pairs of window w are written to the first counts[w] of its rows, sorted by start, then end; the other rows become
// zeros. bcnet_fast/ops/match_proposals.py has the definition. All arithmetic is in double.
// False, and outputs of any values, where an input has a value that it must not have. Throws std::bad_alloc when memory runs
// out.
template <typename T>
bool match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, InstructionSet instruction_set, int threads,
                     const MatchOutputs& outputs);

}  // namespace bcnet_fast
