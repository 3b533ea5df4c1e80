// A summary of a program's results that it prints at its end, to compare processors.
#pragma once

#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

struct Fingerprint {
  std::uint64_t hash = 14695981039346656037u;  // of all bits
  double magnitude = 0;                        // sum of all absolute values

  ~Fingerprint() { std::printf("%016" PRIx64 " %.9e\n", hash, magnitude); }
};
inline Fingerprint fingerprint;

// Leaves out what is not finite: processors differ in the sign of NaN.
template <typename T>
void record(const std::vector<T>& values) {
  for (const T value : values) {
    const auto number = static_cast<double>(value);
    if (!std::isfinite(number)) continue;
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    fingerprint.hash = (fingerprint.hash ^ bits) * 1099511628211u;
    fingerprint.magnitude += std::abs(number);
  }
}

template <typename T>
void record(const std::vector<std::vector<T>>& arrays) {
  for (const auto& values : arrays) record(values);
}
