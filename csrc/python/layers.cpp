#include "include/layers.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "gemm/int8_product.h"
#include "gemm/panels.h"
#include "include/attention.h"
#include "python/common.h"
#include "python/rows.h"

namespace bcnet_fast {
namespace {

std::int64_t columns_of(const PackedWeight& weight) { return weight.groups() * weight.outputs(); }

template <typename T>
WeightView<T> weight_view(const char* op, const Rows<T>& weight, std::int64_t groups) {
  const auto axes = weight.ndim();
  const bool separate = axes == 3 && groups == 1, stacked = axes == 2 && groups >= 1 && weight.shape(0) % groups == 0;
  if (weight.size() == 0 || !(separate || stacked)) {
    refuse_shape(op, "weight", weight,
                 "[groups * outputs, inputs] with groups = " + std::to_string(groups) +
                     ", or [groups, outputs, inputs], not empty");
  }
  for (py::ssize_t axis = 0; axis < axes; ++axis) {
    if (weight.strides(axis) % kSize<T>) {
      refuse_strides(op, "weight", weight, "multiples of " + std::to_string(kSize<T>));
    }
  }
  WeightView<T> view{weight.data(),
                     groups,
                     weight.shape(axes - 2),
                     weight.shape(axes - 1),
                     0,
                     weight.strides(axes - 2) / kSize<T>,
                     weight.strides(axes - 1) / kSize<T>};
  if (separate) {
    view.groups = weight.shape(0);
    view.group_stride = weight.strides(0) / kSize<T>;
  } else {
    view.outputs /= groups;
    view.group_stride = view.outputs * view.output_stride;
  }
  return view;
}

template <typename T>
PackedWeight pack(const Rows<T>& weight, std::int64_t groups, bool int8, bool strassen, Threads threads) {
  constexpr const char* op = "PackedWeight";
  const WeightView<T> view = weight_view(op, weight, groups);
  if (int8 && sizeof(T) != 4) refuse(op, "weight", "float64", "float32 for int8");
  if (int8 && view.inputs > kMaxInt8Inputs) {
    refuse_shape(op, "weight", weight, "at most " + std::to_string(kMaxInt8Inputs) + " inputs for int8");
  }
  if (strassen && (int8 || sizeof(T) != 4 || view.inputs % 2)) {
    refuse_shape(op, "weight", weight, "float32 and an even number of inputs for strassen, without int8");
  }
  auto packed = [&] {
    const py::gil_scoped_release release;
    return PackedWeight(view, int8, threads);
  }();
  if (strassen) packed.use_strassen();
  if (!packed.finite()) refuse(op, "weight", "not finite", "finite numbers");
  return packed;
}

// A weight without values, for `pack_outputs` to fill.
PackedWeight unpacked(std::int64_t groups, std::int64_t outputs, std::int64_t inputs, bool float64) {
  constexpr std::int64_t limit = std::int64_t{1} << 20;  // so that no product of sizes overflows
  const std::pair<const char*, std::int64_t> sizes[]{{"groups", groups}, {"outputs", outputs}, {"inputs", inputs}};
  for (const auto& [argument, size] : sizes) {
    if (size < 1 || size > limit) refuse("unpacked", argument, std::to_string(size), "a number from 1 to 2^20");
  }
  return {float64 ? PackedWeight::Kind::float64 : PackedWeight::Kind::float32, groups, outputs, inputs};
}

template <typename T>
void pack_outputs(PackedWeight& packed, const Rows<T>& weight, std::int64_t first, Threads threads) {
  constexpr const char* op = "pack_outputs";
  const WeightView<T> view = weight_view(op, weight, weight.ndim() == 3 ? 1 : packed.groups());
  check_kind<T>(op, "the packed weight", packed, false, "weight");
  const bool fits = view.groups == packed.groups() && view.inputs == packed.inputs();
  if (!fits || first < 0 || first > packed.outputs() - view.outputs) {
    refuse_shape(op, "weight", weight,
                 "outputs " + std::to_string(first) + " on of the packed weight (" + sizes_of(packed) + ")");
  }
  const std::int64_t last = first + view.outputs;
  if (first % kPanel || (last % kPanel && last != packed.outputs())) {
    refuse(op, "first", std::to_string(first) + " for outputs up to " + std::to_string(last),
           "both to be multiples of " + std::to_string(kPanel));
  }
  {
    const py::gil_scoped_release release;
    packed.pack(view, first, threads);
  }
  if (!packed.finite()) refuse(op, "weight", "not finite", "finite numbers");
}

PackedWeight part_of(const PackedWeight& weight, std::int64_t first, std::int64_t last) {
  const bool whole = first % kPanel == 0 && (last % kPanel == 0 || last == weight.outputs());
  if (weight.groups() != 1 || !whole || first < 0 || first >= last || last > weight.outputs()) {
    refuse("part", "[first, last]", list_of(std::vector{first, last}),
           "multiples of " + std::to_string(kPanel) + " within 1 group of outputs, but the weight has " +
               sizes_of(weight));
  }
  return weight.slice(first, last);
}

template <typename T>
void linear_of(const Rows<T>& x, const PackedWeight& weight, Rows<T>& out, const std::optional<Array<T>>& bias,
               bool relu, const MaybeRows<T>& added, std::optional<double> eps, Threads threads,
               const std::string& instruction_set) {
  constexpr const char* op = "linear";
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[rows, inputs]");
  check_kind<T>(op, "weight", weight, true);
  const std::int64_t rows = x.shape(0), columns = columns_of(weight);
  const Matrix<T> from = matrix_of(op, "x", x, rows, weight.groups() * weight.inputs(), to_fit("weight", weight));
  const MutableMatrix<T> to = output_of(op, "out", out, rows, columns, to_fit("weight", weight));
  const Epilogue<T> epilogue = epilogue_of(op, rows, columns, bias, relu, added, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  linear(from, rows, weight, epilogue, chosen, threads, to);
}

template <typename T>
void feed_forward_of(const Rows<T>& x, const PackedWeight& first, const PackedWeight& second, Rows<T>& out,
                     const MaybeRows<T>& added, std::optional<double> eps, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "feed_forward";
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[rows, inputs]");
  check_kind<T>(op, "first", first, true);
  if (first.groups() != 1) refuse(op, "first", sizes_of(first), "1 group");
  if (second.kind() != first.kind())
    refuse(op, "second", name_of(second.kind()), name_of(first.kind()) + " to fit first");
  if (second.groups() != 1 || second.inputs() != first.outputs()) {
    refuse(op, "second", sizes_of(second), "1 group with " + std::to_string(first.outputs()) + " inputs to fit first");
  }
  const std::int64_t rows = x.shape(0);
  const Matrix<T> from = matrix_of(op, "x", x, rows, first.inputs(), to_fit("first", first));
  const MutableMatrix<T> to = output_of(op, "out", out, rows, second.outputs(), to_fit("second", second));
  const Epilogue<T> epilogue = epilogue_of<T>(op, rows, second.outputs(), std::nullopt, false, added, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  feed_forward(from, rows, first, second, epilogue, chosen, threads, to);
}

template <typename T>
void folded_feed_forward_of(const Rows<T>& x, const PackedWeight& attention, const PackedWeight& folded,
                            const Array<T>& sums, const PackedWeight& second, const Rows<T>& added,
                            const Rows<T>& first_of_added, Rows<T>& out, double eps, Threads threads,
                            const std::string& instruction_set) {
  constexpr const char* op = "folded_feed_forward";
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[rows, inputs]");
  const std::pair<const char*, const PackedWeight*> all[]{
      {"attention", &attention}, {"folded", &folded}, {"second", &second}};
  for (const auto& [argument, weight] : all) {
    check_kind<T>(op, argument, *weight, false);
    if (weight->groups() != 1) refuse(op, argument, sizes_of(*weight), "1 group");
  }
  const std::int64_t rows = x.shape(0), columns = attention.outputs(), size = folded.outputs();
  if (folded.inputs() != attention.inputs()) {
    refuse(op, "folded", sizes_of(folded), std::to_string(attention.inputs()) + " inputs to fit attention");
  }
  if (second.inputs() != size || second.outputs() != columns) {
    refuse(op, "second", sizes_of(second),
           std::to_string(columns) + " outputs to fit attention and " + std::to_string(size) + " inputs to fit folded");
  }
  if (sums.size() != size) refuse_shape(op, "sums", sums, list_of(std::vector{size}) + to_fit("folded", folded));
  const Matrix<T> from = matrix_of(op, "x", x, rows, attention.inputs(), to_fit("attention", attention));
  const Matrix<T> residual = matrix_of(op, "added", added, rows, columns, to_fit("attention", attention));
  const Matrix<T> more = matrix_of(op, "first_of_added", first_of_added, rows, size, to_fit("folded", folded));
  const MutableMatrix<T> to = output_of(op, "out", out, rows, columns, to_fit("attention", attention));
  const FoldedFeedForward<T> weights{attention, folded, sums.data(), second};
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  folded_feed_forward(from, rows, weights, residual, more, static_cast<T>(eps), chosen, threads, to);
}

template <typename T>
void convolution_of(const Rows<T>& x, const PackedWeight& weight, Rows<T>& out, const std::optional<Array<T>>& bias,
                    bool relu, const MaybeRows<T>& added, Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "convolution";
  check_kind<T>(op, "weight", weight, false);
  if (weight.inputs() % 3) refuse(op, "weight", sizes_of(weight), "inputs in a multiple of 3, one per tap");
  const std::int64_t channels = weight.groups() * weight.inputs() / 3, columns = columns_of(weight);
  if (x.ndim() != 2 || x.shape(1) != channels) {
    refuse_shape(op, "x", x, "[rows, " + std::to_string(channels) + "]" + to_fit("weight", weight));
  }
  if (x.strides(0) % kSize<T> || x.strides(1) % kSize<T>) {
    refuse_strides(op, "x", x, "multiples of " + std::to_string(kSize<T>));
  }
  const std::int64_t rows = x.shape(0);
  const MutableMatrix<T> to = output_of(op, "out", out, rows, columns, to_fit("weight", weight));
  const Epilogue<T> epilogue = epilogue_of(op, rows, columns, bias, relu, added, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const T* const from = x.data();
  const std::int64_t row = x.strides(0) / kSize<T>, channel = x.strides(1) / kSize<T>;
  const py::gil_scoped_release release;
  convolution(from, row, channel, rows, weight, epilogue, chosen, threads, to);
}

template <typename T>
void linear_runs_of(const Rows<T>& x, const Index& runs, const PackedWeight& weight, Rows<T>& out,
                    const std::optional<Array<T>>& bias, bool relu, Threads threads,
                    const std::string& instruction_set) {
  constexpr const char* op = "linear_runs";
  if (x.ndim() != 2 || x.shape(0) == 0) refuse_shape(op, "x", x, "[rows, columns], not empty");
  check_kind<T>(op, "weight", weight, false);
  const Matrix<T> from = matrix_of(op, "x", x, x.shape(0), x.shape(1));
  const std::int64_t elements = (x.shape(0) - 1) * from.stride + x.shape(1);
  const MutableMatrix<T> to =
      output_of(op, "out", out, out.ndim() == 2 ? out.shape(0) : 0, weight.outputs(), to_fit("weight", weight));
  const RowRanges checked = row_ranges_of(op, runs, from, elements, weight.groups(), weight.inputs(), out.shape(0));
  const Epilogue<T> epilogue =
      epilogue_of<T>(op, out.shape(0), weight.outputs(), bias, relu, std::nullopt, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  linear_row_ranges(from, checked, weight, epilogue, chosen, threads, to);
}

template <typename T>
void attention_of(const Rows<T>& query, const Rows<T>& key, const std::vector<Rows<T>>& values,
                  std::vector<Rows<T>>& outputs, std::int64_t heads, double scale, Threads threads,
                  const std::string& instruction_set) {
  constexpr const char* op = "attention";
  if (query.ndim() != 2) refuse_shape(op, "query", query, "[Tq, heads * head_size]");
  if (key.ndim() != 2) refuse_shape(op, "key", key, "[Tk, heads * head_size]");
  const std::size_t streams = values.size();
  if (streams < 1 || streams > 2) refuse(op, "values", "a list of " + std::to_string(streams), "1 or 2 arrays");
  if (outputs.size() != streams) {
    refuse(op, "outputs", "a list of " + std::to_string(outputs.size()),
           std::to_string(streams) + " arrays to fit values");
  }
  const std::int64_t width = query.shape(1), value_width = values[0].ndim() == 2 ? values[0].shape(1) : 0;
  if (heads < 1 || width < 1 || value_width < 1 || width % heads || value_width % heads) {
    refuse(op, "heads", std::to_string(heads),
           "a divisor of the columns of query (" + std::to_string(width) + ") and values (" +
               std::to_string(value_width) + ")");
  }
  if (key.shape(0) < 1) refuse_shape(op, "key", key, "at least one row");
  if (!(scale > 0) || !std::isfinite(scale)) refuse(op, "scale", std::to_string(scale), "a finite number above 0");
  const AttentionSizes sizes{heads, query.shape(0), key.shape(0), width / heads, value_width / heads, scale};
  // Heads lie side by side in a row.
  const auto rows_of = [&](const auto& matrix, std::int64_t size) {
    using Element = std::remove_pointer_t<decltype(matrix.data)>;
    return HeadRows<Element>{matrix.data, heads, 0, size, matrix.stride};
  };
  const auto queries = rows_of(matrix_of(op, "query", query, sizes.queries, width), sizes.head_size);
  const auto keys = rows_of(matrix_of(op, "key", key, sizes.keys, width), sizes.head_size);
  HeadRows<const T> value_heads[2];
  HeadRows<T> output_heads[2];
  for (std::size_t s = 0; s < streams; ++s) {
    value_heads[s] = rows_of(matrix_of(op, "values", values[s], sizes.keys, value_width), sizes.value_size);
    output_heads[s] = rows_of(output_of(op, "outputs", outputs[s], sizes.queries, value_width), sizes.value_size);
  }
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  attention<T>(queries, keys, value_heads, static_cast<int>(streams), sizes, chosen, threads, output_heads);
}

template <typename T>
void define(py::module_& module) {
  const auto maybe = [](const char* name) { return arg(name) = py::none(); };
  const auto eps = arg("eps") = py::none();
  module.def("linear", &linear_of<T>, arg("x"), arg("weight"), arg("out"), kw_only(), maybe("bias"),
             arg("relu") = false, maybe("added"), eps, arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x weight^T + bias) + added); LayerNorm where eps is given.");
  module.def("feed_forward", &feed_forward_of<T>, arg("x"), arg("first"), arg("second"), arg("out"), kw_only(),
             maybe("added"), eps, arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x first^T) second^T + added); LayerNorm where eps is given.");
  module.def("folded_feed_forward", &folded_feed_forward_of<T>, arg("x"), arg("attention"), arg("folded"), arg("sums"),
             arg("second"), arg("added"), arg("first_of_added"), arg("out"), kw_only(), arg("eps"), arg("threads"),
             instruction_set_argument(),
             "out = LayerNorm(ReLU(y first^T) second^T + y), y = LayerNorm(x attention^T + added), with first folded.");
  module.def("convolution", &convolution_of<T>, arg("x"), arg("weight"), arg("out"), kw_only(), maybe("bias"),
             arg("relu") = false, maybe("added"), arg("threads"), instruction_set_argument(),
             "Three taps over the rows of x, with zeros around: out = ReLU(... + bias) + added.");
  module.def("linear_runs", &linear_runs_of<T>, arg("x"), arg("runs"), arg("weight"), arg("out"), kw_only(),
             maybe("bias"), arg("relu") = false, arg("threads"), instruction_set_argument(),
             "For each of the runs [from of each group, to, rows], out rows = ReLU(sum over groups of x rows weight^T "
             "+ bias).");
  module.def("attention", &attention_of<T>, arg("query"), arg("key"), arg("values"), arg("outputs"), kw_only(),
             arg("heads"), arg("scale"), arg("threads"), instruction_set_argument(),
             "outputs[i] = softmax(query key^T scale) values[i], head by head.");
}

}  // namespace

void define_layers(py::module_& module) {
  module.attr("PANEL") = kPanel;
  module.attr("RUN_PART") = kRowRangeDepthBlock;
  module.attr("BYTE_PRODUCTS") = has_int8_instruction();
  py::class_<PackedWeight>(module, "PackedWeight", "The weights of a linear layer, packed for its product.")
      .def(py::init(&pack<float>), arg("weight"), arg("groups") = 1, arg("int8") = false, arg("strassen") = false,
           arg("threads") = 1)
      .def(py::init(&pack<double>), arg("weight"), arg("groups") = 1, arg("int8") = false, arg("strassen") = false,
           arg("threads") = 1)
      .def_static("unpacked", &unpacked, arg("groups"), arg("outputs"), arg("inputs"), arg("float64") = false,
                  "Allocate a weight without values; `pack_outputs` has to fill all of it.")
      .def("pack_outputs", &pack_outputs<float>, arg("weight"), arg("first"), arg("threads") = 1,
           "Pack the outputs from `first` on.")
      .def("pack_outputs", &pack_outputs<double>, arg("weight"), arg("first"), arg("threads") = 1)
      .def("part", &part_of, arg("first"), arg("last"), "The outputs from `first` to `last`, in the same memory.")
      .def_property_readonly("groups", &PackedWeight::groups)
      .def_property_readonly("outputs", &PackedWeight::outputs, "of a group")
      .def_property_readonly("inputs", &PackedWeight::inputs, "of a group")
      .def_property_readonly("int8", &PackedWeight::int8)
      .def_property_readonly("strassen", &PackedWeight::strassen)
      .def_property_readonly("nbytes", &PackedWeight::bytes);
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
