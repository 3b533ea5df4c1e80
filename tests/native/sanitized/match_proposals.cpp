// Matching proposals: several threads and every instruction set must write what one thread of the plainest code writes,
// and nothing else.
#include "include/match_proposals.h"

#include <algorithm>
#include <limits>

#include "fingerprint.h"
#include "random_sets.h"
#include "random_values.h"

struct Outputs {
  std::int64_t rows;
  std::vector<double> segments, scores;
  std::vector<std::int32_t> boundaries;
  std::vector<std::int64_t> counts;

  // Filled with what is never written.
  Outputs(std::int64_t windows, std::int64_t rows)
      : rows(rows),
        segments(2 * windows * rows, -99),
        scores(windows * rows, -99),
        boundaries(2 * windows * rows, -99),
        counts(windows, -99) {}
  bool operator==(const Outputs& other) const {
    return segments == other.segments && scores == other.scores && boundaries == other.boundaries &&
           counts == other.counts;
  }
};

template <typename T>
void check(std::mt19937& random, std::int64_t windows, std::int64_t snippets, std::int64_t durations,
           std::int64_t anchor_count) {
  const auto start = random_values<T>(random, windows * snippets, 0),
             end = random_values<T>(random, windows * snippets, 0);
  const auto classification = random_values<T>(random, windows * anchor_count, 0);
  const auto regression = random_values<T>(random, windows * anchor_count, 0);
  const auto background = random_values<T>(random, windows * anchor_count, 0);
  const auto anchors = random_values<double>(random, 2 * anchor_count, 0, static_cast<double>(snippets));
  const auto table = random_integers<std::int32_t>(random, snippets * durations, anchor_count - 1);
  auto lengths = random_integers<std::int64_t>(random, windows, snippets);
  lengths.front() = 0;
  lengths.back() = snippets - 1;
  const std::int64_t longest = std::min(durations, snippets - 1);
  const std::int64_t rows = longest * (snippets - 1) - longest * (longest - 1) / 2;

  constexpr double unlimited = std::numeric_limits<double>::infinity();
  const bcnet_fast::MatchOptions usual{0.7, 0.5, 0.3, unlimited, false};
  const bcnet_fast::MatchOptions every{0, 0.5, 0.3, unlimited, false};
  const bcnet_fast::MatchOptions every_clamped{0, 0.5, 0.3, 5, true};
  for (const auto& options : {usual, every, every_clamped}) {
    for (const bool all_inputs : {false, true}) {
      const bcnet_fast::MatchInputs<T> inputs{windows,
                                              snippets,
                                              durations,
                                              anchor_count,
                                              start.data(),
                                              end.data(),
                                              classification.data(),
                                              regression.data(),
                                              all_inputs ? background.data() : nullptr,
                                              anchors.data(),
                                              table.data(),
                                              all_inputs ? lengths.data() : nullptr};
      const auto run = [&](bcnet_fast::InstructionSet instructions, int threads) {
        Outputs outputs(windows, rows);
        const bcnet_fast::MatchOutputs to{rows, outputs.segments.data(), outputs.scores.data(),
                                          outputs.boundaries.data(), outputs.counts.data()};
        require(bcnet_fast::match_proposals(inputs, options, instructions, threads, to), "refused");
        return outputs;
      };
      const Outputs expected = run(bcnet_fast::InstructionSet::baseline, 1);
      record(expected.segments);
      record(expected.scores);
      record(expected.boundaries);
      for (const auto instructions : bcnet_fast::instruction_sets()) {
        require(run(instructions, 4) == expected, bcnet_fast::name_of(instructions));
      }
      if (options.boundary_threshold == 0 && !options.clamp_boundaries && !all_inputs) {
        require(expected.counts == std::vector<std::int64_t>(windows, rows), "not all pairs");
      }
    }
  }
}

template <typename T>
void check_all(std::mt19937& random) {
  check<T>(random, 1, 1, 1, 1);
  check<T>(random, 3, 2, 1, 1);
  check<T>(random, 3, 3, 2, 5);
  check<T>(random, 2, 17, 30, 40);
  check<T>(random, 5, 33, 7, 100);
}

int main() {
  std::mt19937 random(1);
  check_all<float>(random);
  check_all<double>(random);
  check<float>(random, 27, 200, 200, 300);  // enough for four threads, to which the type makes no difference
}
