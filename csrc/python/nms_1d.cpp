#include "include/nms_1d.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>

#include "python/common.h"

namespace bcnet_fast {
namespace {

std::int64_t rows_of(const char* op, const Array<float>& segments) {
  if (segments.ndim() != 2 || segments.shape(1) != 2) refuse_shape(op, "segments", segments, "[n, 2]");
  return segments.shape(0);
}

py::object order_of_distinct_scores(const Array<float>& scores) {
  if (scores.ndim() != 1) refuse_shape("nms_1d", "scores", scores, "[n]");
  Array<std::int64_t> order(scores.shape(0));
  if (order_of_distinct(scores.data(), scores.shape(0), order.mutable_data())) return order;
  return py::none();
}

Array<std::int64_t> nms(const Array<float>& segments, const Array<std::int64_t>& order, float iou_threshold,
                        const std::string& instruction_set) {
  constexpr const char* op = "nms_1d";
  const std::int64_t n = rows_of(op, segments);
  require_shape(op, "order", order, {n}, " to fit segments");
  const std::int64_t* const indices = order.data();
  if (!std::all_of(indices, indices + n, [n](std::int64_t index) { return index >= 0 && index < n; })) {
    refuse(op, "order", "out of range", "rows of segments");
  }
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const std::unique_ptr<std::int64_t[]> kept(new std::int64_t[n]);
  std::int64_t count = 0;
  {
    const py::gil_scoped_release release;
    count = nms_1d(segments.data(), indices, n, iou_threshold, chosen, kept.get());
  }
  Array<std::int64_t> result(count);
  std::copy_n(kept.get(), count, result.mutable_data());
  return result;
}

// The fields of SoftNms1dOptions. One value, because names of six arguments take long beside a small set.
using Options = std::tuple<int, float, float, float, float, float>;

Array<std::int64_t> soft_nms(const Array<float>& segments, const Array<float>& scores, Array<float>& picks,
                             const Options& fields, const std::string& instruction_set) {
  constexpr const char* op = "soft_nms_1d";
  const std::int64_t n = rows_of(op, segments);
  require_shape(op, "scores", scores, {n}, " to fit segments");
  if (picks.ndim() != 2 || picks.shape(0) < n || picks.shape(1) != 3) {
    refuse_shape(op, "picks", picks, "[n, 3] to fit segments, or more rows");
  }
  const auto [method, iou_threshold, sigma, min_score, t1, t2] = fields;
  if (method < 0 || method > 3) refuse(op, "method", std::to_string(method), "0, 1, 2 or 3");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const SoftNms1dOptions options{static_cast<SoftNms1dMethod>(method), iou_threshold, sigma, min_score, t1, t2};
  const std::unique_ptr<std::int64_t[]> indices(new std::int64_t[n]);
  const std::unique_ptr<float[]> picked_scores(new float[n]);
  std::int64_t count = 0;
  {
    const py::gil_scoped_release release;
    count = soft_nms_1d(segments.data(), scores.data(), n, options, chosen, indices.get(), picked_scores.get());
  }
  Array<std::int64_t> result(count);
  std::copy_n(indices.get(), count, result.mutable_data());
  float* to = picks.mutable_data();
  for (std::int64_t i = 0; i < count; ++i) {
    to = std::copy_n(segments.data() + 2 * indices[i], 2, to);
    *to++ = picked_scores[i];
  }
  return result;
}

}  // namespace

void define_nms_1d(py::module_& module) {
  module.def("order_of_distinct", &order_of_distinct_scores, arg("scores"),
             "Return the indices int64 [n] of the scores, highest first, or None where two are equal or one is NaN.");
  module.def("nms_1d", &nms, arg("segments"), arg("order"), arg("iou_threshold"), instruction_set_argument(),
             "Return the indices int64 [k] of the segments that hard NMS keeps; `order` lists them best first.");
  module.def("soft_nms_1d", &soft_nms, arg("segments"), arg("scores"), arg("picks"), arg("options"),
             instruction_set_argument(),
             "Return the indices int64 [k] of the picks, and write their start, end and score to the first k rows of "
             "`picks`. Options: method, iou_threshold, sigma, min_score, t1, t2. Method 0 is hard, 1 linear, 2 "
             "gaussian, 3 gaussian from the tIoU t1 + t2 * area.");
}

}  // namespace bcnet_fast
