// Soft-NMS on the CPU: every instruction set and several threads must pick what one thread of the plainest code picks.
#include "fingerprint.h"
#include "random_sets.h"

template <typename T>
void check(std::mt19937& random) {
  std::vector<int> sizes{0, 1, 2, 15, 16, 17, 33, 200, 0, 700, 5000};
  for (int i = 0; i < 30; ++i) sizes.push_back(static_cast<int>(random() % 70));
  for (const bool ties : {false, true}) {
    const Sets<T> sets = random_sets<T>(random, sizes, ties);
    for (const auto& options : all_options()) {
      const Picks<T> expected = native(sets, options, bcnet_fast::InstructionSet::baseline, 1);
      record(expected.indices);
      record(expected.scores);
      record(expected.counts);
      for (const auto instructions : bcnet_fast::instruction_sets()) {
        require(native(sets, options, instructions, 4) == expected, bcnet_fast::name_of(instructions));
      }
    }
  }
}

int main() {
  std::mt19937 random(1);
  check<float>(random);
  check<double>(random);
}
