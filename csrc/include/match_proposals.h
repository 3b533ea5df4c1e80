// Boundary probabilities and anchor scores to scored proposals, for many windows (bcnet_fast.ops.match_proposals).
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// W windows of T snippets; P anchors; D durations. All arrays are contiguous; floating-point numbers have to be finite.
template <typename T>
struct MatchInputs {
  std::int64_t windows, snippets, durations, anchor_count;
  const T* start;               // [W, T]
  const T* end;                 // [W, T]
  const T* classification;      // [W, P]
  const T* regression;          // [W, P]
  const T* background;          // [W, P], or null
  const double* anchors;        // [P, 2]
  const std::int32_t* table;    // [T, D], from 0 to P - 1
  const std::int64_t* lengths;  // [W], from 0 to T, or null
};

struct MatchOptions {
  double boundary_threshold, min_classification, min_regression;
  double max_snippets;  // segments of this length and longer get the score 0; infinity: no limit
  bool clamp_boundaries;
};

struct MatchOutputs {
  std::int64_t rows;         // K, at least the number of pairs that a window can have
  double* segments;          // [W, K, 2]
  double* scores;            // [W, K]
  std::int32_t* boundaries;  // [W, K, 2]
  std::int64_t* counts;      // [W]
};

// Writes the pairs of window w to the first counts[w] of its rows, sorted by start, then end, and zeros to its other
// rows. All arithmetic is done in double. Returns false, with undefined outputs, if an input has an invalid value.
// Throws std::bad_alloc.
template <typename T>
bool match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, InstructionSet instruction_set,
                     int threads, const MatchOutputs& outputs);

}  // namespace bcnet_fast
