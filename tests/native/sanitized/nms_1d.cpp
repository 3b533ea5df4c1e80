// Hard NMS and Soft-NMS of nms_1d.h: every instruction set must pick what the plainest code picks.
#include "include/nms_1d.h"

#include <numeric>

#include "fingerprint.h"
#include "random_sets.h"

using bcnet_fast::SoftNms1dMethod;

namespace {

struct Found {
  std::vector<std::int64_t> kept, indices;
  std::vector<float> scores;

  bool operator==(const Found& other) const {
    return kept == other.kept && indices == other.indices && scores == other.scores;
  }
};

Found find(const std::vector<float>& segments, const std::vector<float>& scores,
           const bcnet_fast::SoftNms1dOptions& options, bcnet_fast::InstructionSet instructions) {
  const auto count = static_cast<std::int64_t>(scores.size());
  std::vector<std::int64_t> order(scores.size());
  if (!bcnet_fast::order_of_distinct(scores.data(), count, order.data())) {
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return scores[a] > scores[b]; });
  }
  Found found{order, order, scores};
  found.kept.resize(
      bcnet_fast::nms_1d(segments.data(), order.data(), count, options.iou_threshold, instructions, found.kept.data()));
  const auto picks = bcnet_fast::soft_nms_1d(segments.data(), scores.data(), count, options, instructions,
                                             found.indices.data(), found.scores.data());
  found.indices.resize(picks);
  found.scores.resize(picks);
  return found;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  const bcnet_fast::SoftNms1dOptions all[] = {
      {SoftNms1dMethod::hard, 0.4f, 0.5f, 0.05f, 0.0f, 0.0f},
      {SoftNms1dMethod::linear, 0.1f, 0.5f, 0.05f, 0.0f, 0.0f},
      {SoftNms1dMethod::gaussian, 0.0f, 0.5f, 0.001f, 0.0f, 0.0f},
      {SoftNms1dMethod::gaussian, -1.0f, 0.002f, 0.001f, 0.0f, 0.0f},
      {SoftNms1dMethod::gaussian_from_threshold, 0.5f, 0.7f, 0.0f, 0.2f, 0.01f}};
  for (const int size : {0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 200, 700}) {
    for (const bool ties : {false, true}) {
      Sets<float> sets = random_sets<float>(random, {size}, ties);
      for (const bool turned : {false, true}) {
        if (turned && size > 1) std::swap(sets.segments[0], sets.segments[1]);  // a negative length
        for (const auto& options : all) {
          const Found expected = find(sets.segments, sets.scores, options, bcnet_fast::InstructionSet::baseline);
          record(expected.kept);
          record(expected.indices);
          record(expected.scores);
          for (const auto instructions : bcnet_fast::instruction_sets()) {
            require(find(sets.segments, sets.scores, options, instructions) == expected,
                    bcnet_fast::name_of(instructions));
          }
        }
      }
    }
  }
}
