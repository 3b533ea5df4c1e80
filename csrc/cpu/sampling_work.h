// The arguments of the kernels of cpu/anchor_sampling.cpp.
#pragma once

#include <cstdint>

#include "include/anchor_sampling.h"

namespace bcnet_fast {

template <typename T>
struct GatherWork {
  const T* projected;
  const GroupPlan<T>& plan;
  const T* bias;
  bool relu;
  std::int64_t batch, outputs;
  T* out;
  std::int64_t parts;  // that the groups are cut into
};

template <typename T>
struct ScatterWork {
  const T* grad;
  const GroupPlan<T>& plan;
  std::int64_t batch, outputs;
  T* out;
};

template <typename T>
struct SampleWork {
  const T* input;  // the rows; for the backward, the gradient of what was sampled
  const BinPlan<T>& plan;
  const std::int32_t* sources;
  std::int64_t source_count, batch, channels;
  T* out;
};

constexpr std::int64_t kAnchorsInItem = 4;
constexpr std::int64_t kChannelsInItem = 32;

}  // namespace bcnet_fast
