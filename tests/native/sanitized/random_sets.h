// Random input for the programs in this folder, and how they report a difference.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "include/soft_nms.h"

template <typename T>
struct Sets {
  std::vector<T> segments, scores;
  std::vector<std::int64_t> offsets{0};

  std::int64_t count() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
  bcnet_fast::SoftNmsInputs<T> inputs() const {
    return {offsets.back(), count(), segments.data(), scores.data(), offsets.data()};
  }
};

// Sets of these sizes. With `ties` nearly everything is tied: scores, starts, ends, lengths of zero.
template <typename T>
Sets<T> random_sets(std::mt19937& random, const std::vector<int>& sizes, bool ties) {
  std::uniform_real_distribution<double> unit(0, 1);
  std::uniform_int_distribution<int> small(0, 9);
  Sets<T> sets;
  for (int size : sizes) {
    for (int i = 0; i < size; ++i) {
      const double start = ties ? small(random) : 40 * unit(random);
      const double length = ties ? small(random) % 4 : 12 * unit(random);
      sets.segments.push_back(static_cast<T>(start));
      sets.segments.push_back(static_cast<T>(start + length));
      sets.scores.push_back(static_cast<T>(ties ? small(random) / 8.0 : unit(random)));
    }
    sets.offsets.push_back(sets.offsets.back() + size);
  }
  // Spare room would hide reads beyond the end.
  sets.segments.shrink_to_fit();
  sets.scores.shrink_to_fit();
  sets.offsets.shrink_to_fit();
  return sets;
}

inline std::vector<bcnet_fast::SoftNmsOptions> all_options() {
  using bcnet_fast::Decay;
  return {{Decay::gaussian, 0.5, 0.0, 0.0, 0.05, -1, 0.0},
          {Decay::gaussian, 0.1, 0.1, 0.3, 0.3, 20, 0.5},
          {Decay::linear, 0.5, 0.2, -0.1, 0.1, -1, 1e-6},
          {Decay::hard, 0.5, 0.4, 0.4, 0.0, 7, 0.0}};
}

template <typename T>
struct Picks {
  std::vector<std::int64_t> indices, counts;
  std::vector<T> scores;

  explicit Picks(const Sets<T>& sets) : indices(sets.scores.size()), counts(sets.count()), scores(sets.scores.size()) {}
  bcnet_fast::SoftNmsOutputs<T> outputs() { return {indices.data(), scores.data(), counts.data()}; }
  bool operator==(const Picks& other) const {
    return indices == other.indices && counts == other.counts && scores == other.scores;
  }
};

template <typename T>
Picks<T> native(const Sets<T>& sets, const bcnet_fast::SoftNmsOptions& options, bcnet_fast::InstructionSet instructions,
                int threads) {
  Picks<T> picks(sets);
  bcnet_fast::soft_nms(sets.inputs(), options, instructions, threads, picks.outputs());
  return picks;
}

inline void require(bool same, const char* what) {
  if (same) return;
  std::fprintf(stderr, "difference: %s\n", what);
  std::exit(1);
}
