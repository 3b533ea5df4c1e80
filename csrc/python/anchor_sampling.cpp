#include "include/anchor_sampling.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "gemm/panels.h"
#include "python/common.h"
#include "python/rows.h"

namespace bcnet_fast {
namespace {

// The plan, after checks that keep all reads and writes inside the arrays.
template <typename T>
BinPlan<T> plan_of(const char* op, const Index& first, const Index& offsets, const Array<T>& weights,
                   std::int64_t length, InstructionSet instruction_set) {
  if (first.ndim() != 2) refuse_shape(op, "first", first, "[P, N]");
  require_shape(op, "offsets", offsets, {first.size() + 1}, " to fit first (P N + 1)");
  if (weights.ndim() != 1) refuse_shape(op, "weights", weights, "[taps]");
  const BinPlan<T> plan{first.shape(0), first.shape(1), length,        weights.shape(0),
                        first.data(),   offsets.data(), weights.data()};
  if (!plan_exists(plan, instruction_set))
    refuse(op, "plan", "out of range", "snippets below " + std::to_string(length) + " and existing weights");
  return plan;
}

// The groups of a plan for outputs of `anchors` anchors, after checks of the same kind.
template <typename T>
GroupPlan<T> plan_of(const char* op, const Index& order, const Index& step, const Index& offsets, const Index& tap_rows,
                     const Array<T>& tap_weights, std::int64_t anchors, std::int64_t rows) {
  constexpr int lists = kGroup + 1;
  if (order.ndim() != 2 || order.shape(1) != kGroup) refuse_shape(op, "order", order, "[groups, 8]");
  const std::int64_t groups = order.shape(0), taps = tap_rows.size();
  require_shape(op, "step", step, {groups}, " to fit order");
  if (offsets.size() != groups * lists + 1) refuse_shape(op, "offsets", offsets, "[9 groups + 1] to fit order");
  if (tap_weights.size() != taps) refuse_shape(op, "tap_weights", tap_weights, "the shape of tap_rows");

  std::int32_t widest = 0;
  std::int64_t found = 0;
  bool inside = offsets.data()[0] == 0 && offsets.data()[groups * lists] == taps;
  for (std::int64_t g = 0; g < groups; ++g) widest = std::max(widest, step.data()[g]);
  for (std::int64_t i = 0; i < groups * lists; ++i) inside &= offsets.data()[i] <= offsets.data()[i + 1];
  for (std::int64_t i = 0; i < taps; ++i) inside &= (tap_rows.data()[i] >= 0) & (tap_rows.data()[i] < rows);
  for (std::int64_t g = 0; g < groups && inside; ++g) {
    const std::int32_t* members = order.data() + g * kGroup;
    int count = 0;
    for (int r = 0; r < kGroup; ++r) {
      inside &= (members[r] < anchors) & (members[r] >= 0 || r > 0) & (members[r] < 0 || count == r);
      count += members[r] >= 0;
    }
    inside &= step.data()[g] >= 0;
    found += count;
  }
  // Only their number is checked: an anchor that comes twice leaves an output unwritten, and harms no memory.
  if (!inside || found != anchors) {
    refuse(op, "the plan", "inconsistent",
           "each of " + std::to_string(anchors) + " anchors once, and tap_rows below " + std::to_string(rows));
  }
  return {anchors,           rows, groups, widest, order.data(), step.data(), offsets.data(), tap_rows.data(),
          tap_weights.data()};
}

void check_sources(const char* op, const Index& sources, std::int64_t bins, std::int64_t count) {
  require_shape(op, "sources", sources, {bins}, " to fit the bins");
  for (std::int64_t n = 0; n < bins; ++n) {
    if (sources.data()[n] < 0 || sources.data()[n] >= count) {
      refuse(op, "sources", std::to_string(sources.data()[n]) + " for bin " + std::to_string(n),
             "a sequence from 0 to " + std::to_string(count - 1));
    }
  }
}

template <typename T>
void sample(const Array<T>& rows, const Index& first, const Index& offsets, const Array<T>& weights,
            const Index& sources, Array<T>& out, Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "sample";
  if (rows.ndim() != 4) refuse_shape(op, "rows", rows, "[B, G, T, C]");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const BinPlan<T> plan = plan_of(op, first, offsets, weights, rows.shape(2), chosen);
  check_sources(op, sources, plan.bins, rows.shape(1));
  require_shape(op, "out", out, {rows.shape(0), plan.anchors, plan.bins, rows.shape(3)});
  T* const to = out.mutable_data();
  const py::gil_scoped_release release;
  bcnet_fast::sample(rows.data(), plan, sources.data(), rows.shape(1), rows.shape(0), rows.shape(3), chosen, threads,
                     to);
}

template <typename T>
void sample_backward(const Array<T>& grad, const Index& first, const Index& offsets, const Array<T>& weights,
                     const Index& sources, Array<T>& out, Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "sample_backward";
  if (out.ndim() != 4) refuse_shape(op, "out", out, "[B, G, T, C]");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const BinPlan<T> plan = plan_of(op, first, offsets, weights, out.shape(2), chosen);
  check_sources(op, sources, plan.bins, out.shape(1));
  require_shape(op, "grad", grad, {out.shape(0), plan.anchors, plan.bins, out.shape(3)});
  T* const to = out.mutable_data();
  const py::gil_scoped_release release;
  bcnet_fast::sample_backward(grad.data(), plan, sources.data(), out.shape(1), out.shape(0), out.shape(3), chosen,
                              threads, to);
}

template <typename T>
void gather(const Array<T>& projected, const Index& order, const Index& step, const Index& offsets,
            const Index& tap_rows, const Array<T>& tap_weights, const Array<T>& bias, Array<T>& out, bool relu,
            Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "gather";
  if (projected.ndim() != 4) refuse_shape(op, "projected", projected, "[B, N, T, O]");
  if (out.ndim() != 3) refuse_shape(op, "out", out, "[B, P, O]");
  const std::int64_t batch = projected.shape(0), outputs = projected.shape(3);
  const GroupPlan<T> plan =
      plan_of(op, order, step, offsets, tap_rows, tap_weights, out.shape(1), projected.shape(1) * projected.shape(2));
  require_shape(op, "bias", bias, {outputs});
  require_shape(op, "out", out, {batch, plan.anchors, outputs});
  T* const to = out.mutable_data();
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  bcnet_fast::gather(projected.data(), plan, bias.data(), relu, batch, outputs, chosen, threads, to);
}

template <typename T>
void gather_backward(const Array<T>& grad, const Index& order, const Index& step, const Index& offsets,
                     const Index& tap_rows, const Array<T>& tap_weights, Array<T>& out, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "gather_backward";
  if (out.ndim() != 4) refuse_shape(op, "out", out, "[B, N, T, O]");
  if (grad.ndim() != 3) refuse_shape(op, "grad", grad, "[B, P, O]");
  const std::int64_t batch = out.shape(0), outputs = out.shape(3);
  const GroupPlan<T> plan =
      plan_of(op, order, step, offsets, tap_rows, tap_weights, grad.shape(1), out.shape(1) * out.shape(2));
  require_shape(op, "grad", grad, {batch, plan.anchors, outputs});
  T* const to = out.mutable_data();
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  bcnet_fast::gather_backward(grad.data(), plan, batch, outputs, chosen, threads, to);
}

// The arrays of a projection's plan.
template <typename T>
struct PlanArrays {
  const Index &order, &step, &offsets, &tap_rows;
  const Array<T>& tap_weights;
};

template <typename T>
AnchorProjection<T> projection_of(const char* op, const Rows<T>& x, const Index& sources, const PackedWeight& weight,
                                  const PlanArrays<T>& plan, std::int64_t anchors, const std::optional<Array<T>>& bias,
                                  bool relu, const MaybeRows<T>& added) {
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[sequences * T, inputs of weight]");
  check_kind<T>(op, "weight", weight, false);
  std::int64_t sequences = 1;
  for (py::ssize_t n = 0; n < sources.size(); ++n) sequences = std::max<std::int64_t>(sequences, sources.data()[n] + 1);
  check_sources(op, sources, weight.groups(), sequences);
  if (x.shape(0) % sequences)
    refuse_shape(op, "x", x, "equally many rows of " + std::to_string(sequences) + " sequences");
  const std::int64_t snippets = x.shape(0) / sequences;
  const Matrix<T> from = matrix_of(op, "x", x, x.shape(0), weight.inputs(), to_fit("weight", weight));
  return {from,
          snippets,
          sources.data(),
          weight,
          plan_of(op, plan.order, plan.step, plan.offsets, plan.tap_rows, plan.tap_weights, anchors,
                  weight.groups() * snippets),
          epilogue_of(op, anchors, weight.outputs(), bias, relu, added, std::nullopt)};
}

template <typename T>
void project_anchors_of(const Rows<T>& x, const Index& sources, const PackedWeight& weight, const Index& order,
                        const Index& step, const Index& offsets, const Index& tap_rows, const Array<T>& tap_weights,
                        Rows<T>& out, const std::optional<Array<T>>& bias, bool relu, const MaybeRows<T>& added,
                        Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "project_anchors";
  if (out.ndim() != 2) refuse_shape(op, "out", out, "[P, O]");
  if (relu && added) refuse(op, "added", "an array", "none, because relu is true");
  const PlanArrays<T> plan{order, step, offsets, tap_rows, tap_weights};
  const AnchorProjection<T> projection = projection_of(op, x, sources, weight, plan, out.shape(0), bias, relu, added);
  const MutableMatrix<T> to = output_of(op, "out", out, out.shape(0), weight.outputs(), to_fit("weight", weight));
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  project_anchors(projection, chosen, threads, to);
}

template <typename T>
void project_runs_of(const Rows<T>& x, const Index& sources, const PackedWeight& weight, const Index& order,
                     const Index& step, const Index& offsets, const Index& tap_rows, const Array<T>& tap_weights,
                     Rows<T>& projected, const Index& runs, const PackedWeight& layer, Rows<T>& out,
                     const std::optional<Array<T>>& bias, const std::optional<Array<T>>& layer_bias, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "project_runs";
  if (projected.ndim() != 2) refuse_shape(op, "projected", projected, "[P, columns]");
  if (out.ndim() != 2) refuse_shape(op, "out", out, "[rows, outputs of layer]");
  const std::int64_t anchors = projected.shape(0), columns = projected.shape(1);
  const PlanArrays<T> plan{order, step, offsets, tap_rows, tap_weights};
  const AnchorProjection<T> projection =
      projection_of<T>(op, x, sources, weight, plan, anchors, bias, true, std::nullopt);
  check_kind<T>(op, "layer", layer, false);
  if (layer.groups() != 1 || layer.inputs() != weight.outputs()) {
    refuse(op, "layer", sizes_of(layer), "1 group with " + std::to_string(weight.outputs()) + " inputs to fit weight");
  }
  if (columns < 1 || columns > weight.outputs() || (columns < weight.outputs() && columns % kRowRangeDepthBlock)) {
    refuse_shape(op, "projected", projected,
                 "[P, " + std::to_string(weight.outputs()) + "], or columns in a multiple of " +
                     std::to_string(kRowRangeDepthBlock));
  }
  const MutableMatrix<T> between = output_of(op, "projected", projected, anchors, columns);
  const MutableMatrix<T> to = output_of(op, "out", out, out.shape(0), layer.outputs(), to_fit("layer", layer));
  const Matrix<T> rows{between.data, between.stride};
  const RowRanges checked =
      row_ranges_of(op, runs, rows, (anchors - 1) * rows.stride + columns, 1, columns, out.shape(0));
  const Epilogue<T> epilogue =
      epilogue_of<T>(op, out.shape(0), layer.outputs(), layer_bias, true, std::nullopt, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  project_row_ranges(projection, between, columns, checked, layer, epilogue, chosen, threads, to);
}

template <typename T>
void define(py::module_& module) {
  module.def("sample", &sample<T>, arg("rows"), arg("first"), arg("offsets"), arg("weights"), arg("sources"),
             arg("out"), arg("threads"), instruction_set_argument(),
             "Writes what every bin of every anchor samples to out [B, P, N, C].");
  module.def("sample_backward", &sample_backward<T>, arg("grad"), arg("first"), arg("offsets"), arg("weights"),
             arg("sources"), arg("out"), arg("threads"), instruction_set_argument(),
             "Write the gradient of the rows to out [B, G, T, C].");
  module.def("gather", &gather<T>, arg("projected"), arg("order"), arg("step"), arg("offsets"), arg("tap_rows"),
             arg("tap_weights"), arg("bias"), arg("out"), arg("relu"), arg("threads"), instruction_set_argument(),
             "Write relu(sum over the bins of their samples + bias) to out [B, P, O].");
  module.def("gather_backward", &gather_backward<T>, arg("grad"), arg("order"), arg("step"), arg("offsets"),
             arg("tap_rows"), arg("tap_weights"), arg("out"), arg("threads"), instruction_set_argument(),
             "Write the gradient of `projected` to out [B, N, T, O].");
  const auto maybe = [](const char* name) { return arg(name) = py::none(); };
  module.def(
      "project_anchors", &project_anchors_of<T>, arg("x"), arg("sources"), arg("weight"), arg("order"), arg("step"),
      arg("offsets"), arg("tap_rows"), arg("tap_weights"), arg("out"), maybe("bias"), arg("relu") = false,
      maybe("added"), arg("threads"), instruction_set_argument(),
      "Write the sum over bins n of (the samples of bin n from its sequence) weight[n]^T, + bias, + added or ReLU, to "
      "out [P, O].");
  module.def("project_runs", &project_runs_of<T>, arg("x"), arg("sources"), arg("weight"), arg("order"), arg("step"),
             arg("offsets"), arg("tap_rows"), arg("tap_weights"), arg("projected"), arg("runs"), arg("layer"),
             arg("out"), maybe("bias"), maybe("layer_bias"), arg("threads"), instruction_set_argument(),
             "For each of the runs [source, target, rows], write ReLU(anchors layer^T + layer_bias) to rows of out, "
             "where anchors "
             "are the results of project_anchors with ReLU, computed as many columns at a time as `projected` has.");
}

}  // namespace

void define_anchor_sampling(py::module_& module) {
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
