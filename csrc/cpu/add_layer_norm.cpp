// A row is read from memory once: what later steps need of it stays in the row of the output, in the cache. Meanwhile
// the next row is prefetched, because those steps would leave the memory idle.
//
// Sums are made as kBlock<T> sums side by side, column i in sum i % kBlock<T>, which are then added in pairs. The order
// of additions, and every bit of the result, therefore does not depend on how many columns a vector holds.
#include "include/add_layer_norm.h"

#include <algorithm>
#include <cmath>

#include "runtime/memory.h"
#include "runtime/parallel.h"

#define BCNET_KERNELS "cpu/layer_norm_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

// The number of threads that have enough work to be worth waking.
int useful_threads(std::int64_t rows, std::int64_t columns, int threads) {
  constexpr std::int64_t worth_a_thread = 32768;  // elements, as in PyTorch
  const std::int64_t useful = std::min(rows, rows * columns / worth_a_thread);
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));
}

// Calls body(first, end) for portions that together have every row once.
template <typename Body>
void in_portions(std::int64_t rows, std::int64_t columns, int threads, const Body& body) {
  constexpr std::int64_t portion = 4096;  // elements that a thread fetches at a time
  const std::int64_t step = std::max<std::int64_t>(1, portion / columns);
  threads = useful_threads(rows, columns, threads);
  WorkShares shares((rows + step - 1) / step, threads);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t item; shares.next(thread, item);) {
      body(item * step, std::min(rows, (item + 1) * step));
    }
  });
}

}  // namespace

template <typename T>
void add_layer_norm(const T* x, const T* residual, std::int64_t rows, std::int64_t columns, double eps,
                    InstructionSet instruction_set, int threads, T* out, T* rstd) {
  const auto normalize = BCNET_VERSION(instruction_set, forward<T>);
  in_portions(rows, columns, threads, [&](std::int64_t first, std::int64_t end) {
    normalize(x, residual, first, end, rows, columns, static_cast<T>(eps), out, rstd);
  });
}

template <typename T>
void add_layer_norm_backward(const T* grad, const T* out, const T* rstd, std::int64_t rows, std::int64_t columns,
                             InstructionSet instruction_set, int threads, T* grad_input) {
  const auto differentiate = BCNET_VERSION(instruction_set, backward_row<T>);
  in_portions(rows, columns, threads, [&](std::int64_t first, std::int64_t end) {
    for (std::int64_t r = first; r < end; ++r) {
      differentiate(grad + r * columns, out + r * columns, rstd[r], columns, grad_input + r * columns);
    }
  });
}

template void add_layer_norm(const float*, const float*, std::int64_t, std::int64_t, double, InstructionSet, int,
                             float*, float*);
template void add_layer_norm(const double*, const double*, std::int64_t, std::int64_t, double, InstructionSet, int,
                             double*, double*);
template void add_layer_norm_backward(const float*, const float*, const float*, std::int64_t, std::int64_t,
                                      InstructionSet, int, float*);
template void add_layer_norm_backward(const double*, const double*, const double*, std::int64_t, std::int64_t,
                                      InstructionSet, int, double*);

}  // namespace bcnet_fast
