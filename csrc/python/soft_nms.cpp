#include "include/soft_nms.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "python/common.h"

namespace bcnet_fast {
namespace {

template <typename T>
py::tuple soft_nms(const Array<T>& segments, const Array<T>& scores, const Array<std::int64_t>& offsets, int method,
                   double sigma, double threshold_low, double threshold_high, double min_score,
                   std::int64_t max_proposals, double length_epsilon, Threads threads,
                   const std::string& instruction_set) {
  constexpr const char* op = "soft_nms";
  constexpr std::int64_t limit = kMaxCandidates;
  if (segments.ndim() != 2 || segments.shape(1) != 2) refuse_shape(op, "segments", segments, "[n, 2]");
  const std::int64_t n = segments.shape(0);
  require_shape(op, "scores", scores, {n}, " to fit segments");
  if (offsets.ndim() != 1 || offsets.shape(0) < 1) refuse_shape(op, "offsets", offsets, "[sets + 1]");
  const std::int64_t sets = offsets.shape(0) - 1;
  const std::int64_t* bounds = offsets.data();
  bool ordered = bounds[0] == 0 && bounds[sets] == n;
  for (std::int64_t v = 0; v < sets; ++v) ordered &= bounds[v] <= bounds[v + 1] && bounds[v + 1] - bounds[v] <= limit;
  if (!ordered)
    refuse(op, "offsets", "out of order", "ascending numbers from 0 to n, in sets of at most 2^29 candidates");
  if (method < 0 || method > 2) refuse(op, "method", std::to_string(method), "0, 1 or 2");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  if (!all_usable(segments.data(), scores.data(), n, chosen)) {
    refuse(op, "segments or scores", "not finite or of negative length", "finite numbers with end >= start");
  }
  const SoftNmsOptions options{
      static_cast<Decay>(method), sigma, threshold_low, threshold_high, min_score, max_proposals, length_epsilon};
  const std::unique_ptr<std::int64_t[]> indices(new std::int64_t[n]);
  const std::unique_ptr<T[]> picked_scores(new T[n]);
  const std::unique_ptr<std::int64_t[]> counts(new std::int64_t[sets]);
  std::int64_t total = 0;
  {
    const py::gil_scoped_release release;
    bcnet_fast::soft_nms<T>({n, sets, segments.data(), scores.data(), bounds}, options, chosen, threads,
                            {indices.get(), picked_scores.get(), counts.get()});
    for (std::int64_t v = 0; v < sets; ++v) total += counts[v];
  }
  Array<T> segments_out(std::vector<py::ssize_t>{total, 2});
  Array<T> scores_out(total);
  Array<std::int64_t> indices_out(total);
  T* segment_to = segments_out.mutable_data();
  T* score_to = scores_out.mutable_data();
  std::int64_t* index_to = indices_out.mutable_data();
  for (std::int64_t v = 0; v < sets; ++v) {
    for (std::int64_t i = bounds[v]; i < bounds[v] + counts[v]; ++i) {
      segment_to = std::copy_n(segments.data() + 2 * indices[i], 2, segment_to);
    }
    score_to = std::copy_n(picked_scores.get() + bounds[v], counts[v], score_to);
    index_to = std::copy_n(indices.get() + bounds[v], counts[v], index_to);
  }
  return py::make_tuple(segments_out, scores_out, indices_out);
}

template <typename T>
void define(py::module_& module) {
  module.def(
      "soft_nms", &soft_nms<T>, arg("segments"), arg("scores"), arg("offsets"), kw_only(), arg("method"), arg("sigma"),
      arg("threshold_low"), arg("threshold_high"), arg("min_score"), arg("max_proposals"), arg("length_epsilon"),
      arg("threads"), instruction_set_argument(),
      "Return segments [k, 2], scores [k] and indices int64 [k] of the picks, set after set. Method 0 is gaussian, "
      "1 linear, 2 hard.");
}

}  // namespace

void define_soft_nms(py::module_& module) {
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
