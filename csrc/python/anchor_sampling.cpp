#include "include/anchor_sampling.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

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

// The groups of a plan of `rows` rows, checked once, so that kernels stay inside their arrays. Keeps the arrays and
// makes them read-only.
template <typename T>
class PackedPlan {
 public:
  PackedPlan(Index order, Index step, Index offsets, Index tap_rows, Array<T> tap_weights, std::int64_t rows)
      : order_(std::move(order)),
        step_(std::move(step)),
        offsets_(std::move(offsets)),
        tap_rows_(std::move(tap_rows)),
        tap_weights_(std::move(tap_weights)) {
    check_shapes();
    view_ = {0,
             rows,
             order_.shape(0),
             0,
             order_.data(),
             step_.data(),
             offsets_.data(),
             tap_rows_.data(),
             tap_weights_.data()};
    check_values();
    for (py::array* array :
         {static_cast<py::array*>(&order_), static_cast<py::array*>(&step_), static_cast<py::array*>(&offsets_),
          static_cast<py::array*>(&tap_rows_), static_cast<py::array*>(&tap_weights_)}) {
      array->attr("setflags")(arg("write") = false);
    }
  }

  std::int64_t anchors() const { return view_.anchors; }
  std::int64_t rows() const { return view_.rows; }

  // The plan, if it is one for outputs of `anchors` anchors and inputs of `rows` rows.
  const GroupPlan<T>& fitting(const char* op, std::int64_t anchors, std::int64_t rows) const {
    if (anchors != view_.anchors || rows != view_.rows)
      refuse(op, "plan", sizes(view_.anchors, view_.rows), sizes(anchors, rows));
    return view_;
  }

 private:
  static constexpr const char* kOp = "pack_plan";
  static constexpr int kLists = kGroup + 1;

  static std::string sizes(std::int64_t anchors, std::int64_t rows) {
    return std::to_string(anchors) + " anchors of " + std::to_string(rows) + " rows";
  }

  void check_shapes() const {
    if (order_.ndim() != 2 || order_.shape(1) != kGroup) refuse_shape(kOp, "order", order_, "[groups, 8]");
    const std::int64_t groups = order_.shape(0);
    require_shape(kOp, "step", step_, {groups}, " to fit order");
    require_shape(kOp, "offsets", offsets_, {groups * kLists + 1}, " to fit order (9 groups + 1)");
    if (tap_rows_.ndim() != 1) refuse_shape(kOp, "tap_rows", tap_rows_, "[taps]");
    require_shape(kOp, "tap_weights", tap_weights_, {tap_rows_.size()}, " to fit tap_rows");
  }

  // Also counts the anchors and finds the widest step. An anchor that comes twice leaves an output unwritten, and harms
  // no memory.
  void check_values() {
    const std::int64_t lists = view_.groups * kLists, taps = tap_rows_.size();
    bool inside = view_.offsets[0] == 0 && view_.offsets[lists] == taps;
    for (std::int64_t i = 0; i < lists; ++i) inside &= view_.offsets[i] <= view_.offsets[i + 1];
    for (std::int64_t i = 0; i < taps; ++i) inside &= (view_.tap_rows[i] >= 0) & (view_.tap_rows[i] < view_.rows);
    std::int32_t last = -1;
    for (std::int64_t g = 0; g < view_.groups; ++g) {
      const std::int32_t* members = view_.order + g * kGroup;
      int count = 0;
      for (int r = 0; r < kGroup; ++r) {
        inside &= (members[r] >= 0 || r > 0) & (members[r] < 0 || count == r);
        count += members[r] >= 0;
        last = std::max(last, members[r]);
      }
      inside &= view_.step[g] >= 0;
      view_.widest_step = std::max<std::int64_t>(view_.widest_step, view_.step[g]);
      view_.anchors += count;
    }
    if (!inside || last >= view_.anchors) {
      refuse(kOp, "plan", "inconsistent", "each anchor once, and tap_rows below " + std::to_string(view_.rows));
    }
  }

  Index order_, step_, offsets_, tap_rows_;
  Array<T> tap_weights_;
  GroupPlan<T> view_;
};

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
void gather(const Array<T>& projected, const PackedPlan<T>& packed, const Array<T>& bias, Array<T>& out, bool relu,
            Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "gather";
  if (projected.ndim() != 4) refuse_shape(op, "projected", projected, "[B, N, T, O]");
  if (out.ndim() != 3) refuse_shape(op, "out", out, "[B, P, O]");
  const std::int64_t batch = projected.shape(0), outputs = projected.shape(3);
  const GroupPlan<T>& plan = packed.fitting(op, out.shape(1), projected.shape(1) * projected.shape(2));
  require_shape(op, "bias", bias, {outputs});
  require_shape(op, "out", out, {batch, plan.anchors, outputs});
  T* const to = out.mutable_data();
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  bcnet_fast::gather(projected.data(), plan, bias.data(), relu, batch, outputs, chosen, threads, to);
}

template <typename T>
void gather_backward(const Array<T>& grad, const PackedPlan<T>& packed, Array<T>& out, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "gather_backward";
  if (out.ndim() != 4) refuse_shape(op, "out", out, "[B, N, T, O]");
  if (grad.ndim() != 3) refuse_shape(op, "grad", grad, "[B, P, O]");
  const std::int64_t batch = out.shape(0), outputs = out.shape(3);
  const GroupPlan<T>& plan = packed.fitting(op, grad.shape(1), out.shape(1) * out.shape(2));
  require_shape(op, "grad", grad, {batch, plan.anchors, outputs});
  T* const to = out.mutable_data();
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  bcnet_fast::gather_backward(grad.data(), plan, batch, outputs, chosen, threads, to);
}

template <typename T>
AnchorProjection<T> projection_of(const char* op, const Rows<T>& x, const Index& sources, const PackedWeight& weight,
                                  const PackedPlan<T>& plan, std::int64_t anchors, const std::optional<Array<T>>& bias,
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
          plan.fitting(op, anchors, weight.groups() * snippets),
          epilogue_of(op, anchors, weight.outputs(), bias, relu, added, std::nullopt)};
}

template <typename T>
void project_anchors_of(const Rows<T>& x, const Index& sources, const PackedWeight& weight, const PackedPlan<T>& plan,
                        Rows<T>& out, const std::optional<Array<T>>& bias, bool relu, const MaybeRows<T>& added,
                        Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "project_anchors";
  if (out.ndim() != 2) refuse_shape(op, "out", out, "[P, O]");
  if (relu && added) refuse(op, "added", "an array", "none, because relu is true");
  const AnchorProjection<T> projection = projection_of(op, x, sources, weight, plan, out.shape(0), bias, relu, added);
  const MutableMatrix<T> to = output_of(op, "out", out, out.shape(0), weight.outputs(), to_fit("weight", weight));
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  project_anchors(projection, chosen, threads, to);
}

template <typename T>
void project_runs_of(const Rows<T>& x, const Index& sources, const PackedWeight& weight, const PackedPlan<T>& plan,
                     Rows<T>& projected, const Index& runs, const PackedWeight& layer, Rows<T>& out,
                     const std::optional<Array<T>>& bias, const std::optional<Array<T>>& layer_bias, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "project_runs";
  if (projected.ndim() != 2) refuse_shape(op, "projected", projected, "[P, columns]");
  if (out.ndim() != 2) refuse_shape(op, "out", out, "[rows, outputs of layer]");
  const std::int64_t anchors = projected.shape(0), columns = projected.shape(1);
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
  module.def("gather", &gather<T>, arg("projected"), arg("plan"), arg("bias"), arg("out"), arg("relu"), arg("threads"),
             instruction_set_argument(), "Write relu(sum over the bins of their samples + bias) to out [B, P, O].");
  module.def("gather_backward", &gather_backward<T>, arg("grad"), arg("plan"), arg("out"), arg("threads"),
             instruction_set_argument(), "Write the gradient of `projected` to out [B, N, T, O].");
  const auto maybe = [](const char* name) { return arg(name) = py::none(); };
  module.def(
      "project_anchors", &project_anchors_of<T>, arg("x"), arg("sources"), arg("weight"), arg("plan"), arg("out"),
      kw_only(), maybe("bias"), arg("relu") = false, maybe("added"), arg("threads"), instruction_set_argument(),
      "Write the sum over bins n of (the samples of bin n from its sequence) weight[n]^T, + bias, + added or ReLU, to "
      "out [P, O].");
  module.def("project_runs", &project_runs_of<T>, arg("x"), arg("sources"), arg("weight"), arg("plan"),
             arg("projected"), arg("runs"), arg("layer"), arg("out"), kw_only(), maybe("bias"), maybe("layer_bias"),
             arg("threads"), instruction_set_argument(),
             "For each of the runs [source, target, rows], write ReLU(anchors layer^T + layer_bias) to rows of out, "
             "where anchors are the results of project_anchors with ReLU, computed as many columns at a time as "
             "`projected` has.");
}

// Classes come first, so that the functions know their names.
template <typename T>
void define_plan(py::module_& module, const char* name) {
  py::class_<PackedPlan<T>>(module, name, "A sampling plan, in groups of anchors that share their taps.")
      .def_property_readonly("anchors", &PackedPlan<T>::anchors, "Number of anchors.")
      .def_property_readonly("rows", &PackedPlan<T>::rows, "Rows that the taps read from: bins times snippets.");
  module.def(
      "pack_plan",
      [](Index order, Index step, Index offsets, Index tap_rows, Array<T> tap_weights, std::int64_t rows) {
        return PackedPlan<T>(std::move(order), std::move(step), std::move(offsets), std::move(tap_rows),
                             std::move(tap_weights), rows);
      },
      arg("order"), arg("step"), arg("offsets"), arg("tap_rows"), arg("tap_weights"), arg("rows"),
      "Check the groups of bcnet_fast.ops.anchor_groups and keep them; they become read-only.");
}

}  // namespace

void define_anchor_sampling(py::module_& module) {
  define_plan<float>(module, "PackedPlan32");
  define_plan<double>(module, "PackedPlan64");
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
