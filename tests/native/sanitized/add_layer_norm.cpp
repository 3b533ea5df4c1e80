// LayerNorm(x + residual): every instruction set and several threads must give the bits of one thread of the plainest
// code.
#include "include/add_layer_norm.h"

#include <limits>

#include "fingerprint.h"
#include "random_sets.h"
#include "random_values.h"

template <typename T>
struct Results {
  std::vector<T> out, rstd, grad_input;

  bool operator==(const Results& other) const {
    return out == other.out && rstd == other.rstd && grad_input == other.grad_input;
  }
};

template <typename T>
void check(std::mt19937& random, std::int64_t rows, std::int64_t columns) {
  const auto x = random_values<T>(random, rows * columns), residual = random_values<T>(random, rows * columns);
  const auto grad = random_values<T>(random, rows * columns);
  const auto run = [&](bcnet_fast::InstructionSet instructions, int threads) {
    const std::vector<T> unwritten(x.size(), std::numeric_limits<T>::quiet_NaN());  // equals nothing
    Results<T> results{unwritten, std::vector<T>(unwritten.begin(), unwritten.begin() + rows), unwritten};
    bcnet_fast::add_layer_norm(x.data(), residual.data(), rows, columns, 1e-5, instructions, threads,
                               results.out.data(), results.rstd.data());
    bcnet_fast::add_layer_norm_backward(grad.data(), results.out.data(), results.rstd.data(), rows, columns,
                                        instructions, threads, results.grad_input.data());
    return results;
  };
  const Results<T> expected = run(bcnet_fast::InstructionSet::baseline, 1);
  record(expected.out);
  record(expected.rstd);
  record(expected.grad_input);
  for (const auto instructions : bcnet_fast::instruction_sets()) {
    require(run(instructions, 4) == expected, bcnet_fast::name_of(instructions));
  }
}

template <typename T>
void check_all(std::mt19937& random) {
  for (const int columns : {1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100}) {
    for (const int rows : {0, 1, 7}) check<T>(random, rows, columns);
  }
  for (const int columns : {512, 513, 1024, 1025}) check<T>(random, 3, columns);
  check<T>(random, 1100, 257);  // enough for four threads
}

int main() {
  std::mt19937 random(1);
  check_all<float>(random);
  check_all<double>(random);
}
