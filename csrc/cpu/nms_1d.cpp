#include "include/nms_1d.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/soft_nms_set.h"
#include "include/soft_nms.h"
#include "simd/denormals.h"

#define BCNET_KERNELS "cpu/nms_1d_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

constexpr float kEpsilon = 1e-6f;

// A candidate of the plain algorithm, which reorders them in place.
struct Candidate {
  float start, end, area, score;
  std::int64_t index;
};

float decay_of(const Candidate& candidate, const Candidate& pick, const SoftNms1dOptions& options) {
  const float left = pick.start < candidate.start ? candidate.start : pick.start;
  const float right = candidate.end < pick.end ? candidate.end : pick.end;
  const float inter = right - left > 0.0f ? right - left : 0.0f;
  const float tiou = inter / ((pick.area + candidate.area) - inter);
  switch (options.method) {
    case SoftNms1dMethod::hard: return tiou >= options.iou_threshold ? 0.0f : 1.0f;
    case SoftNms1dMethod::linear: return tiou >= options.iou_threshold ? 1.0f - tiou : 1.0f;
    case SoftNms1dMethod::gaussian_from_threshold:
      if (!(tiou >= options.t1 + options.t2 * pick.area)) return 1.0f;
      [[fallthrough]];
    default: return std::exp(-(tiou * tiou) / options.sigma);
  }
}

// The plain algorithm, for any input.
std::int64_t soft_nms_in_place(const float* segments, const float* scores, std::int64_t count,
                               const SoftNms1dOptions& options, std::int64_t* indices, float* picked_scores) {
  std::vector<Candidate> candidates(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const float start = segments[2 * i], end = segments[2 * i + 1];
    candidates[i] = {start, end, (end - start) + kEpsilon, scores[i], i};
  }
  std::int64_t remaining = count;
  for (std::int64_t i = 0; i < remaining; ++i) {
    std::int64_t top = i;
    for (std::int64_t j = i + 1; j < remaining; ++j) {
      if (candidates[top].score < candidates[j].score) top = j;
    }
    std::swap(candidates[i], candidates[top]);
    const Candidate pick = candidates[i];
    indices[i] = pick.index;
    picked_scores[i] = pick.score;
    for (std::int64_t j = i + 1; j < remaining;) {
      candidates[j].score *= decay_of(candidates[j], pick, options);
      if (candidates[j].score < options.min_score) {
        candidates[j] = candidates[--remaining];
      } else {
        ++j;
      }
    }
  }
  return remaining;
}

bool finite(float value) { return value - value == 0.0f; }

// Whether no length, nor a sum of two of them, can overflow.
bool moderate(const float* segments, std::int64_t count) {
  return std::all_of(segments, segments + 2 * count, [](float time) { return std::fabs(time) < 1e37f; });
}

// Whether the blocks of soft_nms.cpp give the results of the plain algorithm: every number is finite, no length is
// negative, a score that falls to 0 is dropped, and only overlap makes scores fall.
bool regular(const float* segments, const float* scores, std::int64_t count, const SoftNms1dOptions& options,
             InstructionSet instruction_set) {
  bool usable = count <= kMaxCandidates && options.min_score > 0.0f && finite(options.min_score);
  switch (options.method) {
    case SoftNms1dMethod::hard: usable &= options.iou_threshold > 0.0f; break;
    case SoftNms1dMethod::linear: usable &= !std::isnan(options.iou_threshold); break;
    case SoftNms1dMethod::gaussian_from_threshold: usable &= finite(options.t1) && finite(options.t2); [[fallthrough]];
    case SoftNms1dMethod::gaussian: usable &= options.sigma > 0.0f && finite(options.sigma);
  }
  return usable && all_usable(segments, scores, count, instruction_set) && moderate(segments, count);
}

Rules<float> rules_of(const SoftNms1dOptions& options) {
  Rules<float> rules(SoftNmsOptions{Decay::library_gaussian, options.sigma, 0.0, 0.0, options.min_score, -1, kEpsilon});
  switch (options.method) {
    case SoftNms1dMethod::hard: rules.decay = Decay::hard; break;
    case SoftNms1dMethod::linear: rules.decay = Decay::linear; break;
    default: break;
  }
  if (rules.decay != Decay::library_gaussian) {
    rules.threshold_low = options.iou_threshold;
  } else if (options.method == SoftNms1dMethod::gaussian_from_threshold) {
    rules.threshold_low = options.t1;
    rules.threshold_slope = options.t2;
  }
  return rules;
}

// A number that is lower for a higher score; the same for 0 and -0.
std::uint32_t descending_key(float score) {
  const float number = score + 0.0f;
  std::uint32_t bits;
  std::memcpy(&bits, &number, sizeof(bits));
  return bits >> 31 ? bits : ~bits & 0x7fffffffu;
}

}  // namespace

bool order_of_distinct(const float* scores, std::int64_t count, std::int64_t* order) {
  if (count >= std::int64_t{1} << 32) return false;
  // Keys in the upper halves, indices in the lower ones; sorted by one byte of the keys after the other.
  std::vector<std::uint64_t> entries(static_cast<std::size_t>(count)), sorted(entries.size());
  constexpr int bytes = 4;
  std::array<std::array<std::uint32_t, 256>, bytes> places{};
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::isnan(scores[i])) return false;
    const std::uint32_t key = descending_key(scores[i]);
    entries[i] = std::uint64_t{key} << 32 | static_cast<std::uint32_t>(i);
    for (int b = 0; b < bytes; ++b) ++places[b][key >> 8 * b & 255];
  }
  for (int b = 0; b < bytes; ++b) {
    std::uint32_t before = 0;
    for (std::uint32_t& place : places[b]) before += std::exchange(place, before);
    for (const std::uint64_t entry : entries) sorted[places[b][entry >> (32 + 8 * b) & 255]++] = entry;
    std::swap(entries, sorted);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    if (i > 0 && entries[i] >> 32 == entries[i - 1] >> 32) return false;
    order[i] = static_cast<std::uint32_t>(entries[i]);
  }
  return true;
}

std::int64_t nms_1d(const float* segments, const std::int64_t* order, std::int64_t count, float iou_threshold,
                    InstructionSet instruction_set, std::int64_t* kept) {
  constexpr std::int64_t longest_step = 64;  // of any instruction set
  const auto size = static_cast<std::size_t>((count + longest_step - 1) / longest_step * longest_step);
  std::vector<float> start(size), end(size), area(size);
  float* const columns[] = {start.data(), end.data(), area.data()};
  return BCNET_VERSION(instruction_set, keep_segments)(segments, order, count, iou_threshold, kEpsilon, columns, kept);
}

std::int64_t soft_nms_1d(const float* segments, const float* scores, std::int64_t count,
                         const SoftNms1dOptions& options, InstructionSet instruction_set, std::int64_t* indices,
                         float* picked_scores) {
  if (count == 0) return 0;
  if (!regular(segments, scores, count, options, instruction_set)) {
    return soft_nms_in_place(segments, scores, count, options, indices, picked_scores);
  }
  const float* const best = std::max_element(scores, scores + count);
  if (*best < options.min_score) {
    // The first pick need not reach min_score, and every other candidate is dropped after it.
    indices[0] = best - scores;
    picked_scores[0] = *best;
    return 1;
  }
  if (options.method == SoftNms1dMethod::hard && order_of_distinct(scores, count, indices)) {
    // Scores fall to 0 or not at all.
    const std::vector<std::int64_t> order(indices, indices + count);
    std::int64_t kept = nms_1d(segments, order.data(), count, options.iou_threshold, instruction_set, indices);
    while (scores[indices[kept - 1]] < options.min_score) --kept;
    for (std::int64_t i = 0; i < kept; ++i) picked_scores[i] = scores[indices[i]];
    return kept;
  }
  return soft_nms_of_set(segments, scores, static_cast<std::int32_t>(count), rules_of(options), instruction_set,
                         indices, picked_scores);
}

}  // namespace bcnet_fast
