// Random sampling plans, in arrays of exactly the size that is used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "include/anchor_sampling.h"
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
  plans.groups = {anchors,
                  rows,
                  groups,
                  widest,
                  plans.order.data(),
                  plans.step.data(),
                  plans.lists.data(),
                  plans.tap_rows.data(),
                  plans.tap_weights.data()};
  return plans;
}
