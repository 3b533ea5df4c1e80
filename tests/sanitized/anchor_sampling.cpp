// Anchor sampling and gathering: the bits of an instruction set must not depend on the number of threads. Instruction sets
// differ, some by FMA, so each must agree with the plainest to 1000 epsilon: sums have some hundred terms below 1 at most.
#include "anchor_sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "random_sets.h"
#include "random_values.h"

template <typename T>
struct Plans {
  std::vector<std::int32_t> sources, first, offsets{0}, order, step, lists{0}, tap_rows;
  std::vector<T> weights, tap_weights;
  bcnet_fast::BinPlan<T> bins;
  bcnet_fast::GroupPlan<T> groups;
};

// Some bins and lists are empty, others reach up to the last row; groups have 1 to 8 anchors and steps of 0 to 3 rows.
template <typename T>
Plans<T> random_plans(std::mt19937& random, std::int32_t anchors, std::int32_t bins, std::int32_t source_count,
                      std::int32_t length) {
  const auto upto = [&](std::int64_t last) { return static_cast<std::int32_t>(random() % (last + 1)); };
  Plans<T> plans;
  plans.sources = random_integers<std::int32_t>(random, bins, source_count - 1);
  for (int cell = 0; cell < anchors * bins; ++cell) {
    const std::int32_t taps = upto(length), last = length - taps;
    plans.first.push_back(upto(3) ? upto(last) : last);
    plans.offsets.push_back(plans.offsets.back() + taps);
  }

  const std::int32_t rows = bins * length;
  std::vector<std::int32_t> left(anchors);
  std::iota(left.begin(), left.end(), 0);
  std::shuffle(left.begin(), left.end(), random);
  while (!left.empty()) {
    const int members = std::min(static_cast<int>(left.size()), upto(1) ? bcnet_fast::kGroup : 1 + upto(7));
    plans.step.push_back(upto(std::min(3, (rows - 1) / (bcnet_fast::kGroup - 1))));
    for (int list = 0; list <= bcnet_fast::kGroup; ++list) {
      const std::int32_t last = list ? rows - 1 : rows - 1 - (members - 1) * plans.step.back();
      const std::int32_t taps = (list <= members && upto(3)) ? upto(20) : 0;
      for (int i = 0; i < taps; ++i) plans.tap_rows.push_back(i ? upto(last) : last);
      plans.lists.push_back(static_cast<std::int32_t>(plans.tap_rows.size()));
    }
    for (int i = 0; i < bcnet_fast::kGroup; ++i) {
      plans.order.push_back(i < members ? left.back() : -1);
      if (i < members) left.pop_back();
    }
  }

  plans.weights = random_values<T>(random, plans.offsets.back());
  plans.tap_weights = random_values<T>(random, plans.lists.back());
  for (auto* grown : {&plans.first, &plans.offsets, &plans.order, &plans.step, &plans.lists, &plans.tap_rows}) {
    grown->shrink_to_fit();
  }
  const std::int32_t widest = *std::max_element(plans.step.begin(), plans.step.end());
  const auto groups = static_cast<std::int64_t>(plans.step.size());
  const auto taps = static_cast<std::int64_t>(plans.weights.size());
  plans.bins = {anchors, bins, length, taps, plans.first.data(), plans.offsets.data(), plans.weights.data()};
  plans.groups = {anchors, rows, groups, widest, plans.order.data(), plans.step.data(), plans.lists.data(),
                  plans.tap_rows.data(), plans.tap_weights.data()};
  return plans;
}

// A plan with one number changed must be told from a good one, wherever that number is.
template <typename T>
void check_existence(std::mt19937& random) {
  constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min(), most = std::numeric_limits<std::int32_t>::max();
  Plans<T> plans = random_plans<T>(random, 37, 3, 1, 25);
  for (const auto instructions : bcnet_fast::instruction_sets()) {
    const auto exists = [&] { return bcnet_fast::plan_exists(plans.bins, instructions); };
    require(exists(), "a good plan");
    for (auto* numbers : {&plans.first, &plans.offsets}) {
      for (std::int32_t& number : *numbers) {
        const std::int32_t good = number;
        for (const std::int32_t bad : {-1, least, most}) {
          number = bad;
          require(!exists(), "a bad plan");
        }
        number = good;
      }
    }
    --plans.bins.taps;
    require(!exists(), "too few weights");
    ++plans.bins.taps;
  }
}

template <typename T>
void check(std::mt19937& random, std::int64_t batch, std::int32_t anchors, std::int32_t bins, std::int32_t source_count,
           std::int32_t length, std::int64_t columns) {
  const Plans<T> plans = random_plans<T>(random, anchors, bins, source_count, length);
  const auto rows = random_values<T>(random, batch * source_count * length * columns);
  const auto grad_sampled = random_values<T>(random, batch * anchors * bins * columns);
  const auto projected = random_values<T>(random, batch * bins * length * columns);
  const auto grad_gathered = random_values<T>(random, batch * anchors * columns);
  const auto bias = random_values<T>(random, columns);
  const bool relu = random() % 2;
  using Results = std::vector<std::vector<T>>;
  const auto run = [&](bcnet_fast::InstructionSet instructions, int threads) {
    Results results;
    for (const auto* like : {&grad_sampled, &rows, &grad_gathered, &projected}) {
      results.emplace_back(like->size(), std::numeric_limits<T>::quiet_NaN());  // unwritten, it equals nothing
    }
    bcnet_fast::sample(rows.data(), plans.bins, plans.sources.data(), source_count, batch, columns, instructions, threads,
                       results[0].data());
    bcnet_fast::sample_backward(grad_sampled.data(), plans.bins, plans.sources.data(), source_count, batch, columns,
                                instructions, threads, results[1].data());
    bcnet_fast::gather(projected.data(), plans.groups, bias.data(), relu, batch, columns, instructions, threads,
                       results[2].data());
    bcnet_fast::gather_backward(grad_gathered.data(), plans.groups, batch, columns, instructions, threads,
                                results[3].data());
    return results;
  };
  const Results plainest = run(bcnet_fast::InstructionSet::baseline, 1);
  for (const auto instructions : bcnet_fast::instruction_sets()) {
    const Results expected = run(instructions, 1);
    require(run(instructions, 4) == expected, bcnet_fast::name_of(instructions));
    for (std::size_t k = 0; k < expected.size(); ++k) {
      for (std::size_t i = 0; i < expected[k].size(); ++i) {
        const T tolerance = 1000 * std::numeric_limits<T>::epsilon();
        require(std::abs(expected[k][i] - plainest[k][i]) <= tolerance, bcnet_fast::name_of(instructions));
      }
    }
  }
}

template <typename T>
void check_all(std::mt19937& random) {
  check_existence<T>(random);
  check<T>(random, 1, 1, 1, 1, 1, 1);
  check<T>(random, 2, 3, 2, 2, 1, 5);
  for (const int columns : {1, 7, 8, 9, 16, 31, 32, 33, 64, 67}) check<T>(random, 3, 37, 3, 2, 25, columns);
  check<T>(random, 2, 90, 5, 1, 9, 130);
}

int main() {
  std::mt19937 random(1);
  check_all<float>(random);
  check_all<double>(random);
}
