// Hard NMS of one set. Included once per instruction set.

constexpr int kKeptVectors = 4;
constexpr std::int64_t kKeptStep = kKeptVectors * kWidth<float>;

// Whether the tIoU of a segment and any of the first `count` kept ones is `threshold` or more. The columns hold whole
// steps; where no segment is yet, the area is NaN, which makes every comparison false.
//
// Dividing takes longest, so a product rules out nearly all kept segments: `below` is so far under the threshold that
// rounding cannot matter, or 0 where the threshold is too small for that.
BCNET_INLINE bool suppressed(const float* kept_start, const float* kept_end, const float* kept_area, std::int64_t count,
                             float start, float end, float area, float threshold, float below) {
  using V = Vec<float>;
  using I = Vec<std::int32_t>;
  const V zero{}, starts = splat<V>(start), ends = splat<V>(end), areas = splat<V>(area);
  for (std::int64_t k = 0; k < count; k += kKeptStep) {
    V inter[kKeptVectors], together[kKeptVectors];
    I near{};
    for (int p = 0; p < kKeptVectors; ++p) {
      const std::int64_t at = k + p * kWidth<float>;
      inter[p] = maximum(minimum(ends, load<V>(kept_end + at)) - maximum(starts, load<V>(kept_start + at)), zero);
      together[p] = (load<V>(kept_area + at) + areas) - inter[p];
      near |= inter[p] >= splat<V>(below) * together[p] ? splat<I>(std::int32_t{-1}) : I{};
    }
    if (below > 0.0f && !signs_of<float>(near)) continue;
    I enough{};
    for (int p = 0; p < kKeptVectors; ++p) {
      enough |= inter[p] / together[p] >= splat<V>(threshold) ? splat<I>(std::int32_t{-1}) : I{};
    }
    if (signs_of<float>(enough)) return true;
  }
  return false;
}

// As nms_1d. columns: start, end and area of the kept segments, each with room for whole steps.
inline std::int64_t keep_segments(const float* segments, const std::int64_t* order, std::int64_t count, float threshold,
                                  float epsilon, float* const columns[3], std::int64_t* indices) {
  float *const kept_start = columns[0], *const kept_end = columns[1], *const kept_area = columns[2];
  // Below it, a product could be denormal and its rounding large.
  constexpr float least_product = 1e-20f;
  const float below = threshold > least_product ? threshold * (1.0f - 0x1p-20f) : 0.0f;
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const float start = segments[2 * order[i]], end = segments[2 * order[i] + 1], area = (end - start) + epsilon;
    if (suppressed(kept_start, kept_end, kept_area, found, start, end, area, threshold, below)) continue;
    if (found % kKeptStep == 0) std::fill_n(kept_area + found, kKeptStep, std::numeric_limits<float>::quiet_NaN());
    kept_start[found] = start;
    kept_end[found] = end;
    kept_area[found] = area;
    indices[found++] = order[i];
  }
  return found;
}
