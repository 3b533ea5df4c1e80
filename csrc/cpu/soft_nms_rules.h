// The scalar arithmetic of Soft-NMS, which all implementations share to the bit: options in the type of the data, areas
// and thresholds. soft_nms_decay.h has the decay.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "include/soft_nms.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

// Whether a candidate is valid: finite, of non-negative length, which is NaN or infinite where a start or an end is. x
// - x is 0 only for finite x. Without branches, so that compilers vectorise loops over it.
template <typename T>
BCNET_INLINE bool usable(T start, T end, T score) {
  const T length = end - start;
  return (length >= T(0)) & (length - length == T(0)) & (score - score == T(0));
}

// The values of a picked candidate that the decay of the others depends on.
template <typename T>
struct Picked {
  T start, end, area, threshold;
};

template <typename T>
struct Rules {
  Decay decay;
  T sigma;
  T inverse_sigma;  // 1 / sigma where multiplying by it rounds as dividing by sigma does: powers of two; else 0
  T exponent_scale, threshold_low, threshold_slope, threshold_floor, lowest_score, epsilon;
  std::int64_t max_picks;

  explicit Rules(const SoftNmsOptions& o)
      : decay(o.decay),
        sigma(static_cast<T>(o.sigma)),
        inverse_sigma(exact_inverse(sigma)),
        exponent_scale(T(-1) / static_cast<T>(o.sigma)),
        threshold_low(static_cast<T>(o.threshold_low)),
        threshold_slope(static_cast<T>(o.threshold_high) - static_cast<T>(o.threshold_low)),
        // No decay without overlap: the threshold is compared by > for gaussian, by >= for the others.
        threshold_floor(o.decay == Decay::gaussian ? T(0) : std::numeric_limits<T>::denorm_min()),
        // One comparison for both rules: not below min_score, and positive.
        lowest_score(std::max(static_cast<T>(o.min_score), std::numeric_limits<T>::denorm_min())),
        epsilon(static_cast<T>(o.epsilon)),
        max_picks(o.max_picks < 0 ? std::numeric_limits<std::int64_t>::max() : o.max_picks) {}

  static T exact_inverse(T sigma) {
    int exponent;
    return std::frexp(sigma, &exponent) == T(0.5) && std::isnormal(T(1) / sigma) ? T(1) / sigma : T(0);
  }

  // The score of a candidate in play, 0 for one that is too low.
  BCNET_INLINE T in_play(T score) const { return score >= lowest_score ? score : T(0); }

  BCNET_INLINE T area(T start, T end) const { return (end - start) + epsilon; }

  BCNET_INLINE Picked<T> picked(T start, T end) const {
    const T length = decay == Decay::library_gaussian ? area(start, end) : end - start;
    const T threshold = threshold_low + threshold_slope * length;
    return {start, end, area(start, end), threshold > threshold_floor ? threshold : threshold_floor};
  }
};

}  // namespace bcnet_fast
