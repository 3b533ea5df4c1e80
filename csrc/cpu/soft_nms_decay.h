// The decay of Soft-NMS, for vectors or plain numbers. Included once per instruction set, and by CUDA code.
#include "simd/exponential.h"

// The factors that a pick multiplies the scores of candidates by.
template <Decay decay, typename V, typename T>
BCNET_INLINE V decay_factor(V start, V end, V area, const Picked<T>& picked, const Rules<T>& rules) {
  const V zero{}, one = splat<V>(T(1));
  const V picked_start = splat<V>(picked.start), picked_end = splat<V>(picked.end);
  const V inter = minimum(end, picked_end) - maximum(start, picked_start);
  // Negative without overlap, NaN for 0 / 0: no threshold lets them through.
  const V tiou = inter / ((picked.area + area) - inter);
  if constexpr (decay == Decay::gaussian) {
    return tiou > picked.threshold ? exp_nonpositive(tiou * tiou * rules.exponent_scale, T()) : one;
  } else {
    return tiou >= picked.threshold ? (decay == Decay::linear ? one - tiou : zero) : one;
  }
}
