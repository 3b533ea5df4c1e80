// Soft-NMS of one set by rules that SoftNmsOptions cannot state (soft_nms.cpp).
#pragma once

#include <cstdint>

#include "cpu/soft_nms_rules.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

// Writes the picks in their order to indices and picked_scores, and returns their number. Throws std::bad_alloc.
// Requires: all_usable; count <= kMaxCandidates.
std::int64_t soft_nms_of_set(const float* segments, const float* scores, std::int32_t count, const Rules<float>& rules,
                             InstructionSet instruction_set, std::int64_t* indices, float* picked_scores);

}  // namespace bcnet_fast
