// The baseline of bench/compat.py: hard NMS and Soft-NMS one segment after the other, in place, as the nms_1d_cpu of
// ActionFormer and OpenTAD computes them. Times are float32, lengths have 1e-6 added.
#include <cmath>
#include <cstdint>
#include <utility>

namespace {

constexpr float kEpsilon = 1e-6f;

float tiou(float start_a, float end_a, float area_a, float start_b, float end_b, float area_b) {
  const float left = start_a < start_b ? start_b : start_a;
  const float right = end_b < end_a ? end_b : end_a;
  const float inter = right - left > 0.0f ? right - left : 0.0f;
  return inter / (area_a + area_b - inter);
}

}  // namespace

// order: indices, best score first. columns: room for start, end and area [n] each. keep: [n], receives 1 for the
// positions of `order` that are kept.
extern "C" void nms_1d_scalar(const float* segments, const std::int64_t* order, std::int64_t n, float threshold,
                              float* start, float* end, float* area, std::uint8_t* keep) {
  for (std::int64_t i = 0; i < n; ++i) {
    start[i] = segments[2 * i];
    end[i] = segments[2 * i + 1];
    area[i] = end[i] - start[i] + kEpsilon;
    keep[i] = 1;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    if (!keep[i]) continue;
    const std::int64_t a = order[i];
    const float start_a = start[a], end_a = end[a], area_a = area[a];
    for (std::int64_t j = i + 1; j < n; ++j) {
      if (!keep[j]) continue;
      const std::int64_t b = order[j];
      if (tiou(start_a, end_a, area_a, start[b], end[b], area[b]) >= threshold) keep[j] = 0;
    }
  }
}

// start, end, area, score, index: room for [n] each; the first k of index are the picks. picks: [n, 3], receives start,
// end and score. Returns k.
extern "C" std::int64_t soft_nms_1d_scalar(const float* segments, const float* scores, std::int64_t n, float threshold,
                                           float sigma, float min_score, int method, float t1, float t2, float* start,
                                           float* end, float* area, float* score, std::int64_t* index, float* picks) {
  for (std::int64_t i = 0; i < n; ++i) {
    start[i] = segments[2 * i];
    end[i] = segments[2 * i + 1];
    area[i] = end[i] - start[i] + kEpsilon;
    score[i] = scores[i];
    index[i] = i;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t top = i;
    for (std::int64_t j = i + 1; j < n; ++j) {
      if (score[top] < score[j]) top = j;
    }
    std::swap(start[i], start[top]);
    std::swap(end[i], end[top]);
    std::swap(area[i], area[top]);
    std::swap(score[i], score[top]);
    std::swap(index[i], index[top]);
    const float start_i = picks[3 * i] = start[i], end_i = picks[3 * i + 1] = end[i], area_i = area[i];
    picks[3 * i + 2] = score[i];
    for (std::int64_t j = i + 1; j < n;) {
      const float overlap = tiou(start_i, end_i, area_i, start[j], end[j], area[j]);
      if (method < 2) {
        if (overlap >= threshold) score[j] *= method == 0 ? 0.0f : 1.0f - overlap;
      } else if (method == 2 || overlap >= t1 + t2 * area_i) {
        score[j] *= std::exp(-(overlap * overlap) / sigma);
      }
      if (score[j] < min_score) {
        --n;
        start[j] = start[n];
        end[j] = end[n];
        area[j] = area[n];
        score[j] = score[n];
        index[j] = index[n];
      } else {
        ++j;
      }
    }
  }
  return n;
}
