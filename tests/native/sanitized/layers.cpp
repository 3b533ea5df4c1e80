// The layers of inference: the bits of an instruction set must not depend on the number of threads. What they compute
// is tested in test_native_layers.py.
#include "include/layers.h"

#include <limits>
#include <type_traits>
#include <utility>

#include "fingerprint.h"
#include "include/attention.h"
#include "random_plans.h"
#include "random_sets.h"
#include "random_values.h"

using bcnet_fast::InstructionSet, bcnet_fast::Matrix, bcnet_fast::MutableMatrix, bcnet_fast::PackedWeight;

template <typename T>
using Results = std::vector<std::vector<T>>;

// run(set, threads) with outputs that hold NaN before, which equals nothing.
template <typename Run>
void compare(const Run& run) {
  record(run(InstructionSet::baseline, 1));
  for (const InstructionSet set : bcnet_fast::instruction_sets()) {
    require(run(set, 4) == run(set, 1), bcnet_fast::name_of(set));
  }
}

template <typename T>
std::vector<T> unwritten(std::int64_t size) {
  return std::vector<T>(static_cast<std::size_t>(size), std::numeric_limits<T>::quiet_NaN());
}

// Uses Strassen's algorithm where that is possible.
template <typename T>
PackedWeight random_weight(std::mt19937& random, std::int64_t groups, std::int64_t outputs, std::int64_t inputs,
                           bool int8 = false) {
  const auto values = random_values<T>(random, groups * outputs * inputs);
  const bcnet_fast::WeightView<T> given{values.data(), groups, outputs, inputs, outputs * inputs, inputs, 1};
  PackedWeight weight(given, int8, 3);
  if (!int8 && sizeof(T) == sizeof(float) && inputs % 2 == 0) weight.use_strassen();
  return weight;
}

// Two groups of a linear layer, and a feed-forward; of int8 too.
template <typename T>
void check_products(std::mt19937& random, std::int64_t rows, std::int64_t inputs, std::int64_t outputs, bool int8) {
  const auto x = random_values<T>(random, rows * 2 * inputs), added = random_values<T>(random, rows * 2 * outputs);
  const auto bias = random_values<T>(random, 2 * outputs);
  const PackedWeight weight = random_weight<T>(random, 2, outputs, inputs, int8);
  const PackedWeight first = random_weight<T>(random, 1, outputs, 2 * inputs, int8);
  const PackedWeight second = random_weight<T>(random, 1, 2 * inputs, outputs, int8);
  compare([&](InstructionSet set, int threads) {
    Results<T> results(2, unwritten<T>(rows * 2 * outputs));
    results.push_back(unwritten<T>(rows * 2 * inputs));
    const Matrix<T> from{x.data(), 2 * inputs};
    bcnet_fast::Epilogue<T> epilogue;
    epilogue.relu = true;
    linear(from, rows, weight, epilogue, set, threads, MutableMatrix<T>{results[0].data(), 2 * outputs});
    epilogue = {bias.data(), true, {added.data(), 2 * outputs}, true, T(1e-5)};
    linear(from, rows, weight, epilogue, set, threads, MutableMatrix<T>{results[1].data(), 2 * outputs});
    epilogue = {nullptr, false, from, true, T(1e-5)};
    feed_forward(from, rows, first, second, epilogue, set, threads, MutableMatrix<T>{results[2].data(), 2 * inputs});
    return results;
  });
}

template <typename T>
void check_folded(std::mt19937& random, std::int64_t rows, std::int64_t columns, std::int64_t hidden) {
  const auto x = random_values<T>(random, rows * columns), added = random_values<T>(random, rows * columns);
  const auto more = random_values<T>(random, rows * hidden), sums = random_values<T>(random, hidden);
  const PackedWeight attention = random_weight<T>(random, 1, columns, columns);
  const PackedWeight folded = random_weight<T>(random, 1, hidden, columns);
  const PackedWeight second = random_weight<T>(random, 1, columns, hidden);
  compare([&](InstructionSet set, int threads) {
    Results<T> results{unwritten<T>(rows * columns)};
    const bcnet_fast::FoldedFeedForward<T> weights{attention, folded, sums.data(), second};
    folded_feed_forward(Matrix<T>{x.data(), columns}, rows, weights, Matrix<T>{added.data(), columns},
                        Matrix<T>{more.data(), hidden}, T(1e-5), set, threads,
                        MutableMatrix<T>{results[0].data(), columns});
    return results;
  });
}

// Both layouts of x: adjacent channels, and adjacent time steps.
template <typename T>
void check_convolution(std::mt19937& random, std::int64_t rows, std::int64_t channels, std::int64_t outputs) {
  const auto x = random_values<T>(random, rows * 2 * channels);
  const PackedWeight weight = random_weight<T>(random, 2, outputs, 3 * channels);
  bcnet_fast::Epilogue<T> epilogue;
  epilogue.relu = true;
  compare([&](InstructionSet set, int threads) {
    Results<T> results(2, unwritten<T>(rows * 2 * outputs));
    convolution(x.data(), 2 * channels, 1, rows, weight, epilogue, set, threads,
                MutableMatrix<T>{results[0].data(), 2 * outputs});
    convolution(x.data(), 1, rows, rows, weight, epilogue, set, threads,
                MutableMatrix<T>{results[1].data(), 2 * outputs});
    return results;
  });
}

// Heads side by side in the rows of two elements of a batch; attention, and its gradients where there are queries.
template <typename T>
void check_attention(std::mt19937& random, bcnet_fast::AttentionSizes sizes) {
  const std::int64_t heads = sizes.heads, width = heads * sizes.head_size, value_width = heads * sizes.value_size;
  sizes.heads *= 2;
  const auto heads_of = [&](auto* data, std::int64_t rows, std::int64_t size) {
    return bcnet_fast::HeadRows<std::remove_pointer_t<decltype(data)>>{data, heads, rows * heads * size, size,
                                                                       heads * size};
  };
  const auto query = random_values<T>(random, 2 * sizes.queries * width),
             key = random_values<T>(random, 2 * sizes.keys * width);
  Results<T> given, grads;
  bcnet_fast::HeadRows<const T> values[2], of_outputs[2];
  for (int s = 0; s < 2; ++s) {
    given.push_back(random_values<T>(random, 2 * sizes.keys * value_width));
    grads.push_back(random_values<T>(random, 2 * sizes.queries * value_width));
    values[s] = heads_of(std::as_const(given[s]).data(), sizes.keys, sizes.value_size);
    of_outputs[s] = heads_of(std::as_const(grads[s]).data(), sizes.queries, sizes.value_size);
  }
  const auto queries = heads_of(query.data(), sizes.queries, sizes.head_size);
  const auto keys = heads_of(key.data(), sizes.keys, sizes.head_size);
  compare([&](InstructionSet set, int threads) {
    Results<T> results(2, unwritten<T>(2 * sizes.queries * value_width));
    results.push_back(unwritten<T>(sizes.heads * sizes.queries));
    const bcnet_fast::HeadRows<T> to[]{heads_of(results[0].data(), sizes.queries, sizes.value_size),
                                       heads_of(results[1].data(), sizes.queries, sizes.value_size)};
    bcnet_fast::attention<T>(queries, keys, values, 2, sizes, set, threads, to, results[2].data());
    if (sizes.queries == 0) return results;
    results.push_back(unwritten<T>(2 * sizes.queries * width));
    results.push_back(unwritten<T>(2 * sizes.keys * width));
    for (int s = 0; s < 2; ++s) results.push_back(unwritten<T>(2 * sizes.keys * value_width));
    const bcnet_fast::AttentionGradients<T> gradients{heads_of(results[3].data(), sizes.queries, sizes.head_size),
                                                      heads_of(results[4].data(), sizes.keys, sizes.head_size),
                                                      {heads_of(results[5].data(), sizes.keys, sizes.value_size),
                                                       heads_of(results[6].data(), sizes.keys, sizes.value_size)}};
    bcnet_fast::attention_backward<T>(of_outputs, queries, keys, values, 2, sizes, set, threads, gradients);
    return results;
  });
}

template <typename T>
void check_projection(std::mt19937& random, std::int32_t anchors, std::int32_t bins, std::int32_t length,
                      std::int64_t inputs, std::int64_t outputs) {
  const Plans<T> plans = random_plans<T>(random, anchors, bins, 1, length);
  const auto x = random_values<T>(random, length * inputs), added = random_values<T>(random, anchors * outputs);
  const PackedWeight weight = random_weight<T>(random, bins, outputs, inputs);
  const std::vector<std::int32_t> sources(static_cast<std::size_t>(bins));
  compare([&](InstructionSet set, int threads) {
    Results<T> results(2, unwritten<T>(anchors * outputs));
    for (const bool adds : {false, true}) {
      bcnet_fast::AnchorProjection<T> projection{{x.data(), inputs}, length, sources.data(), weight, plans.groups, {}};
      projection.epilogue.residual = {adds ? added.data() : nullptr, outputs};
      project_anchors(projection, set, threads, MutableMatrix<T>{results[adds].data(), outputs});
    }
    return results;
  });
}

// Some columns at a time.
template <typename T>
void check_projected_runs(std::mt19937& random, std::int64_t columns, std::int64_t outputs) {
  const Plans<T> plans = random_plans<T>(random, 30, 2, 1, 9);
  const auto x = random_values<T>(random, 9 * 5), bias = random_values<T>(random, outputs);
  const PackedWeight weight = random_weight<T>(random, 2, columns, 5),
                     layer = random_weight<T>(random, 1, outputs, columns);
  const std::vector<std::int32_t> sources(2);
  const std::vector<std::int32_t> runs{3, 0, 1, 0, 1, 30};
  compare([&](InstructionSet set, int threads) {
    Results<T> results{unwritten<T>(31 * outputs), unwritten<T>(30 * 256)};
    const bcnet_fast::AnchorProjection<T> projection{{x.data(), 5}, 9, sources.data(), weight, plans.groups, {}};
    bcnet_fast::Epilogue<T> epilogue;
    epilogue.bias = bias.data();
    project_row_ranges(projection, MutableMatrix<T>{results[1].data(), 256}, 256,
                       bcnet_fast::RowRanges{runs.data(), 2, 1}, layer, epilogue, set, threads,
                       MutableMatrix<T>{results[0].data(), outputs});
    return results;
  });
}

template <typename T>
void check_runs(std::mt19937& random, std::int64_t columns, std::int64_t outputs) {
  const std::vector<std::int32_t> runs{0, 5, 0, 1, 0, 28, 1, 70, 89, 94, 80, 3, 6, 11, 90, 64};
  const auto x = random_values<T>(random, 100 * columns), bias = random_values<T>(random, outputs);
  const PackedWeight weight = random_weight<T>(random, 2, outputs, 3 * columns);
  compare([&](InstructionSet set, int threads) {
    Results<T> results{std::vector<T>(static_cast<std::size_t>(154 * outputs))};
    bcnet_fast::Epilogue<T> epilogue;
    epilogue.bias = bias.data();
    linear_row_ranges(Matrix<T>{x.data(), columns}, bcnet_fast::RowRanges{runs.data(), 4, 2}, weight, epilogue, set,
                      threads, MutableMatrix<T>{results[0].data(), outputs});
    return results;
  });
}

template <typename T>
void check_all(std::mt19937& random) {
  // Rows for no thread, one and four; of one block and of several.
  for (const int rows : {0, 1, 3, 29, 300}) {
    for (const bool int8 : {false, true}) {
      if (int8 && sizeof(T) > sizeof(float)) continue;
      check_products<T>(random, rows, 1, 1, int8);
      check_products<T>(random, rows, 7, 33, int8);
      check_products<T>(random, rows, 18, 31, int8);
    }
    check_folded<T>(random, rows, 1, 1);
    check_folded<T>(random, rows, 13, 34);
    check_convolution<T>(random, rows, 1, 1);
    check_convolution<T>(random, rows, 5, 33);
  }
  check_products<T>(random, 5, 259, 3, false);  // sums in two parts
  // Strassen's algorithm: pairs of panels, columns and a row without a partner; several blocks; a depth in two
  // parts.
  check_products<T>(random, 101, 18, 67, false);
  check_products<T>(random, 2, 258, 64, false);
  check_folded<T>(random, 27, 66, 64);
  check_attention<T>(random, {1, 0, 1, 1, 1, 1.0});
  check_attention<T>(random, {1, 1, 1, 1, 1, 1.0});
  check_attention<T>(random, {2, 1350, 3, 2, 1, 0.5});  // the most rows in a block
  check_attention<T>(random, {3, 33, 31, 5, 7, 0.5});
  check_attention<T>(random, {2, 9, 65, 33, 35, -0.5});
  check_projection<T>(random, 1, 1, 1, 1, 1);
  check_projection<T>(random, 37, 3, 25, 7, 31);
  check_projection<T>(random, 20, 2, 9, 5, 100);
  check_projected_runs<T>(random, 2 * 256 + 33, 35);
  check_runs<T>(random, 1, 1);
  check_runs<T>(random, 7, 100);
}

int main() {
  std::mt19937 random(1);
  check_all<float>(random);
  check_all<double>(random);
}
