// The arguments of the kernels of cpu/layers.cpp.
#pragma once

#include <cstdint>

#include "include/layers.h"

namespace bcnet_fast {

// Convolutions come first, so their rounding errors spread through the network, and they are little work: float32 sums
// use shorter blocks.
template <typename T>
constexpr std::int64_t kConvolutionDepthBlock = sizeof(T) == sizeof(float) ? 32 : 256;

template <typename T>
struct RowRangeWork {
  Matrix<T> x;
  const RowRanges& ranges;
  const PackedWeight& weight;
  std::int64_t first, last;  // the inputs of the weight that x has
  Epilogue<T> epilogue;
  MutableMatrix<T> out;
};

// Columns `first` to `last` of a projection, which are all that out has.
template <typename T>
struct ProjectionWork {
  const AnchorProjection<T>& projection;
  std::int64_t first, last;
  MutableMatrix<T> out;
};

}  // namespace bcnet_fast
