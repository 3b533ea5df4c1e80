// Random arrays for the programs in this folder, of exactly the size that is used, so that reading beyond it is seen.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

template <typename T>
std::vector<T> random_values(std::mt19937& random, std::int64_t size, double low = -1, double high = 1) {
  std::uniform_real_distribution<double> between(low, high);
  std::vector<T> values(static_cast<std::size_t>(size));
  for (T& value : values) value = static_cast<T>(between(random));
  return values;
}

// From 0 to `last`.
template <typename T>
std::vector<T> random_integers(std::mt19937& random, std::int64_t size, std::int64_t last) {
  std::uniform_int_distribution<std::int64_t> between(0, last);
  std::vector<T> values(static_cast<std::size_t>(size));
  for (T& value : values) value = static_cast<T>(between(random));
  return values;
}
