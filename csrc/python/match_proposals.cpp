#include "include/match_proposals.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>

#include "python/common.h"

namespace bcnet_fast {
namespace {

constexpr const char* kOp = "match_proposals";

template <typename T>
using MaybeArray = std::optional<Array<T>>;

template <typename T>
void match_proposals(const Array<T>& start, const Array<T>& end, const Array<T>& classification,
                     const Array<T>& regression, const MaybeArray<T>& background, const Array<double>& anchors,
                     const Array<std::int32_t>& table, const MaybeArray<std::int64_t>& lengths,
                     double boundary_threshold, double min_classification, double min_regression,
                     std::optional<double> max_snippets, bool clamp_boundaries, Threads threads,
                     Array<double>& segments, Array<double>& scores, Array<std::int32_t>& boundaries,
                     Array<std::int64_t>& counts, const std::string& instruction_set) {
  if (start.ndim() != 2) refuse_shape(kOp, "start", start, "[W, T]");
  if (table.ndim() != 2) refuse_shape(kOp, "table", table, "[T, D]");
  if (anchors.ndim() != 2) refuse_shape(kOp, "anchors", anchors, "[P, 2]");
  const std::int64_t windows = start.shape(0), snippets = start.shape(1), durations = table.shape(1);
  const std::int64_t anchor_count = anchors.shape(0), longest = std::min(durations, snippets - 1);
  const std::int64_t rows = longest * (snippets - 1) - longest * (longest - 1) / 2;
  require_shape(kOp, "end", end, {windows, snippets});
  require_shape(kOp, "classification", classification, {windows, anchor_count});
  require_shape(kOp, "regression", regression, {windows, anchor_count});
  require_shape(kOp, "anchors", anchors, {anchor_count, 2});
  require_shape(kOp, "table", table, {snippets, durations});
  require_shape(kOp, "segments", segments, {windows, rows, 2});
  require_shape(kOp, "scores", scores, {windows, rows});
  require_shape(kOp, "boundaries", boundaries, {windows, rows, 2});
  require_shape(kOp, "counts", counts, {windows});
  if (background) require_shape(kOp, "background", *background, {windows, anchor_count});
  if (lengths) require_shape(kOp, "lengths", *lengths, {windows});

  const InstructionSet chosen = instruction_set_named(kOp, instruction_set);
  const MatchInputs<T> inputs{windows,
                              snippets,
                              durations,
                              anchor_count,
                              start.data(),
                              end.data(),
                              classification.data(),
                              regression.data(),
                              background ? background->data() : nullptr,
                              anchors.data(),
                              table.data(),
                              lengths ? lengths->data() : nullptr};
  const MatchOptions options{boundary_threshold, min_classification, min_regression,
                             max_snippets.value_or(std::numeric_limits<double>::infinity()), clamp_boundaries};
  const MatchOutputs outputs{rows, segments.mutable_data(), scores.mutable_data(), boundaries.mutable_data(),
                             counts.mutable_data()};
  const auto match = [&] {
    const py::gil_scoped_release release;
    return bcnet_fast::match_proposals(inputs, options, chosen, threads, outputs);
  };
  if (!match()) refuse(kOp, "a value", "out of range", "finite numbers, and indices and lengths in range");
}

template <typename T>
void define(py::module_& module) {
  module.def(
      kOp, &match_proposals<T>, arg("start"), arg("end"), arg("classification"), arg("regression"), arg("background"),
      arg("anchors"), arg("table"), arg("lengths"), kw_only(), arg("boundary_threshold"), arg("min_classification"),
      arg("min_regression"), arg("max_snippets"), arg("clamp_boundaries"), arg("threads"), arg("segments"),
      arg("scores"), arg("boundaries"), arg("counts"), instruction_set_argument(),
      "Write the proposals of each window to its first rows of segments, scores and boundaries, zeros to the other "
      "rows, and their number to counts.");
}

}  // namespace

void define_match_proposals(py::module_& module) {
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
