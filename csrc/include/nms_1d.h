// Hard NMS and Soft-NMS with the results of nms_1d_cpu, the extension of ActionFormer and OpenTAD, to the last bit
// (bcnet_fast.compat.nms_1d_cpu).
//
// The extension's arithmetic, all in float: area = (end - start) + 1e-6; tIoU = inter / ((area + area) - inter), where
// inter is 0 without overlap; the Gaussian is expf(-(tIoU * tIoU) / sigma) of the C library. Any float is allowed, NaN
// and segments of negative length too.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// Writes the indices of the scores to order [count], highest first, and returns true; or returns false where two scores
// are equal or one is NaN. Throws std::bad_alloc.
bool order_of_distinct(const float* scores, std::int64_t count, std::int64_t* order);

// Hard NMS: keeps a segment unless its tIoU with one kept before it is iou_threshold or more.
//
// segments: [count, 2] start and end. order: [count], indices of the segments, best score first.
// kept: [count]; receives the indices of those kept, in their order. Returns how many. Throws std::bad_alloc.
std::int64_t nms_1d(const float* segments, const std::int64_t* order, std::int64_t count, float iou_threshold,
                    InstructionSet instruction_set, std::int64_t* kept);

enum class SoftNms1dMethod : int { hard = 0, linear = 1, gaussian = 2, gaussian_from_threshold = 3 };

struct SoftNms1dOptions {
  SoftNms1dMethod method;
  float iou_threshold;  // hard, linear: tIoU from which a score decays
  float sigma;          // of the Gaussian
  float min_score;      // a candidate that a pick leaves below it is dropped
  float t1, t2;         // gaussian_from_threshold: a score decays from the tIoU t1 + t2 * area of the pick
};

// Soft-NMS: picks the best candidate and multiplies the scores of the others by their decay, until none is left.
//
// segments: [count, 2]. scores: [count].
// indices, picked_scores: [count]; receive the picks in their order, with the scores that they have when picked.
// Returns how many. Throws std::bad_alloc.
std::int64_t soft_nms_1d(const float* segments, const float* scores, std::int64_t count,
                         const SoftNms1dOptions& options, InstructionSet instruction_set, std::int64_t* indices,
                         float* picked_scores);

}  // namespace bcnet_fast
