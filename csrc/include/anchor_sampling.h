// Weighted sums of snippets by a sparse sampling plan (bcnet_fast.ops.anchor_sampling). T is float or double. Every
// output has one writer and a fixed order of sums: the same bits for any number of threads, but not for all instruction
// sets.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

constexpr int kGroup = 8;  // anchors that are computed together; GROUP of the sampling plan in Python

// Bin n of anchor p reads the snippets from first[p * bins + n] on, with the weights from offsets[p * bins + n] up to
// offsets[p * bins + n + 1].
template <typename T>
struct BinPlan {
  std::int64_t anchors, bins, length, taps;  // snippets of a sequence; weights
  const std::int32_t* first;                 // [anchors * bins]
  const std::int32_t* offsets;               // [anchors * bins + 1]
  const T* weights;                          // [taps]
};

// Group g is the anchors order[8 g] to order[8 g + 7]; -1 stands for none. Its taps are in nine lists: list l is
// tap_rows and tap_weights from offsets[l] up to offsets[l + 1]. List 9 g has the taps that all its anchors share,
// where each anchor reads step[g] rows after the one before it; list 9 g + 1 + i has the taps of its i-th anchor alone.
template <typename T>
struct GroupPlan {
  std::int64_t anchors, rows, groups, widest_step;
  const std::int32_t* order;     // [8 groups]
  const std::int32_t* step;      // [groups]
  const std::int32_t* offsets;   // [9 groups + 1]
  const std::int32_t* tap_rows;  // [taps]
  const T* tap_weights;          // [taps]
};

// Whether all snippets and weights that the bins read exist, which the functions below require.
template <typename T>
bool plan_exists(const BinPlan<T>& plan, InstructionSet instruction_set);

// out[b, p, n] = the weighted sum of the rows that bin n of anchor p reads of sequence sources[n].
// rows: [batch, source_count, length, channels]. out: [batch, anchors, bins, channels].
template <typename T>
void sample(const T* rows, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
            std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out);

// out = the gradient of `rows`, from grad [batch, anchors, bins, channels].
template <typename T>
void sample_backward(const T* grad, const BinPlan<T>& plan, const std::int32_t* sources, std::int64_t source_count,
                     std::int64_t batch, std::int64_t channels, InstructionSet instruction_set, int threads, T* out);

// out[b, p] = the sum of all taps of anchor p, + bias, then ReLU if `relu`.
// projected: [batch, rows, outputs]. out: [batch, anchors, outputs].
template <typename T>
void gather(const T* projected, const GroupPlan<T>& plan, const T* bias, bool relu, std::int64_t batch,
            std::int64_t outputs, InstructionSet instruction_set, int threads, T* out);

// out = the gradient of `projected`, from grad [batch, anchors, outputs].
template <typename T>
void gather_backward(const T* grad, const GroupPlan<T>& plan, std::int64_t batch, std::int64_t outputs,
                     InstructionSet instruction_set, int threads, T* out);

}  // namespace bcnet_fast
