// Anchor sampling and gathering: the bits of an instruction set must not depend on the number of threads. Instruction
// sets differ, some by FMA, so each must agree with the plainest to 1000 epsilon: sums have some hundred terms below 1
// at most.
#include "include/anchor_sampling.h"

#include <cmath>
#include <limits>

#include "fingerprint.h"
#include "random_plans.h"
#include "random_sets.h"
#include "random_values.h"

// A plan with one number changed must be told from a good one, wherever that number is.
template <typename T>
void check_existence(std::mt19937& random) {
  constexpr std::int32_t least = std::numeric_limits<std::int32_t>::min(),
                         most = std::numeric_limits<std::int32_t>::max();
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
    bcnet_fast::sample(rows.data(), plans.bins, plans.sources.data(), source_count, batch, columns, instructions,
                       threads, results[0].data());
    bcnet_fast::sample_backward(grad_sampled.data(), plans.bins, plans.sources.data(), source_count, batch, columns,
                                instructions, threads, results[1].data());
    bcnet_fast::gather(projected.data(), plans.groups, bias.data(), relu, batch, columns, instructions, threads,
                       results[2].data());
    bcnet_fast::gather_backward(grad_gathered.data(), plans.groups, batch, columns, instructions, threads,
                                results[3].data());
    return results;
  };
  const Results plainest = run(bcnet_fast::InstructionSet::baseline, 1);
  record(plainest);
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
