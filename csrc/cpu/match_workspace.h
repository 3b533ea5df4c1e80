// The boundaries of a window, which the kernels of cpu/match_proposals.cpp fill and read.
#pragma once

#include <cstdint>
#include <vector>

namespace bcnet_fast {

template <typename T>
struct MatchWorkspace {
  std::vector<T> padded;                   // probabilities
  std::vector<std::int32_t> starts, ends;  // snippets that can be a boundary
  std::vector<double> end_probabilities;
};

}  // namespace bcnet_fast
