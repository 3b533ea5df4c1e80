// The baseline of bench/soft_nms.py: Soft-NMS as compiled code of public systems does it, one candidate after the other
// over the whole array, in place. Same semantics as bcnet_fast.ops.soft_nms for one set and a fixed threshold.
#include <cmath>
#include <cstdint>
#include <utility>

namespace {

template <typename T>
std::int64_t soft_nms_scalar(const T* segments, const T* scores, std::int64_t n, int method, T sigma, T threshold,
                             T min_score, T epsilon, T* start, T* end, T* score, T* area, std::int64_t* index) {
  for (std::int64_t i = 0; i < n; ++i) {
    start[i] = segments[2 * i];
    end[i] = segments[2 * i + 1];
    score[i] = scores[i];
    area[i] = end[i] - start[i] + epsilon;
    index[i] = i;
  }
  const auto dropped = [min_score](T value) { return value < min_score || !(value > T(0)); };
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t top = i;
    for (std::int64_t j = i + 1; j < n; ++j) {
      if (score[j] > score[top]) top = j;
    }
    if (dropped(score[top])) return i;
    std::swap(start[i], start[top]);
    std::swap(end[i], end[top]);
    std::swap(score[i], score[top]);
    std::swap(area[i], area[top]);
    std::swap(index[i], index[top]);
    for (std::int64_t j = i + 1; j < n;) {
      const T left = start[i] > start[j] ? start[i] : start[j];
      const T right = end[i] < end[j] ? end[i] : end[j];
      const T inter = right > left ? right - left : T(0);
      const T tiou = inter / (area[i] + area[j] - inter);
      if (method == 0) {
        score[j] *= std::exp(-(tiou * tiou) / sigma);
      } else if (inter > T(0) && tiou >= threshold) {
        score[j] *= method == 1 ? T(1) - tiou : T(0);
      }
      if (dropped(score[j])) {
        --n;
        start[j] = start[n];
        end[j] = end[n];
        score[j] = score[n];
        area[j] = area[n];
        index[j] = index[n];
      } else {
        ++j;
      }
    }
  }
  return n;
}

}  // namespace

extern "C" std::int64_t soft_nms_scalar_float(const float* segments, const float* scores, std::int64_t n, int method,
                                              float sigma, float threshold, float min_score, float epsilon,
                                              float* start, float* end, float* score, float* area,
                                              std::int64_t* index) {
  return soft_nms_scalar(segments, scores, n, method, sigma, threshold, min_score, epsilon, start, end, score, area,
                         index);
}

extern "C" std::int64_t soft_nms_scalar_double(const double* segments, const double* scores, std::int64_t n, int method,
                                               double sigma, double threshold, double min_score, double epsilon,
                                               double* start, double* end, double* score, double* area,
                                               std::int64_t* index) {
  return soft_nms_scalar(segments, scores, n, method, sigma, threshold, min_score, epsilon, start, end, score, area,
                         index);
}
