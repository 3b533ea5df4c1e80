// Weighted sums of snippets by a sparse plan (bcnet_fast/sampling.py). T is float or double.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

constexpr int kGroup = 8;  // anchors worked on at the same time; GROUP in bcnet_fast/sampling.py

// Bin n of anchor p reads the snippets from first[p * bins + n] on, with the weights from offsets[p * bins + n] up to
// offsets[p * bins + n + 1].
template <typename T>
struct BinPlan {
  std::int64_t anchors, bins, length, taps;  // as many weights as taps
  const std::int32_t* first;
  const std::int32_t* offsets;
  const T* weights;
};

// Group g is the anchors order[8 g] to order[8 g + 7], of which -1 are none. Its taps are in nine lists, where list l is
// tap_rows and tap_weights from offsets[l] up to offsets[l + 1]: in list 9 g those common to all, where each anchor reads
// step[g] rows after the one before it; in list 9 g + 1 + i those of its i-th anchor alone.
template <typename T>
struct GroupPlan {
  std::int64_t anchors, rows, groups, widest_step;
  const std::int32_t* order;
  const std::int32_t* step;
  const std::int32_t* offsets;
  const std::int32_t* tap_rows;
  const T* tap_weights;
};

// Whether all that the bins read exists: snippets and weights. The functions below take that for granted.
template <typename T>
bool plan_exists(const BinPlan<T>& plan, InstructionSet instruction_set);

// rows [batch, sources, length, channels] -> out [batch, anchors, bins, channels]; bin n reads the rows of sources[n].
template <typename T>
void sample(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
            std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out);

// The gradient of `rows`, of grad [batch, anchors, bins, channels].
template <typename T>
void sample_backward(const T* grad, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
                     std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out);

// projected [batch, rows, outputs] -> out [batch, anchors, outputs], the sums of all taps, + bias, ReLU.
template <typename T>
void gather(const T* projected, const GroupPlan<T>& plan, const T* bias, bool relu, std::int64_t batch,
            std::int64_t outputs, InstructionSet instruction_set, int threads, T* out);

// The gradient of `projected`, of grad [batch, anchors, outputs].
template <typename T>
void gather_backward(const T* grad, const GroupPlan<T>& plan, std::int64_t batch, std::int64_t outputs,
                     InstructionSet instruction_set, int threads, T* out);

// In all four, each output has one writer and a fixed order of sums: the same bits for any number of threads.

}  // namespace bcnet_fast
