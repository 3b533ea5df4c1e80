// The arguments of the kernels of cpu/second_stage.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "gemm/matrix.h"
#include "gemm/panels.h"

namespace bcnet_fast {

constexpr std::int64_t kSegmentPadding = 8;  // so that the last vector of segments can be read whole

// Segments, column by column, with kSegmentPadding more that are never selected.
struct Segments {
  std::vector<double> start, end, length, centre;
  std::int64_t count;
};

// Levels of a table of maxima: of one row, of two, of four, ...
inline std::int64_t table_levels(std::int64_t longest) {
  std::int64_t levels = 1;
  while (longest >> levels) ++levels;
  return levels;
}

// Columns of rows that are multiplied while they are in the cache.
constexpr std::int64_t kDotColumns = 256;

// Two nodes, of which the first has the smaller number.
struct Pair {
  std::int32_t first, second;
};

}  // namespace bcnet_fast
