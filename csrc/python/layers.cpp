#include "include/layers.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "include/attention.h"
#include "gemm/byte_tiles.h"
#include "python/common.h"
#include "python/rows.h"

namespace bcnet_fast {
namespace {

std::int64_t columns_of(const PackedWeight& weight) { return weight.groups() * weight.outputs(); }

template <typename T>
GivenWeight<T> given_weight(const char* op, const Rows<T>& weight, std::int64_t groups) {
  const auto axes = weight.ndim();
  const bool apart = axes == 3 && groups == 1, together = axes == 2 && groups >= 1 && weight.shape(0) % groups == 0;
  if (weight.size() == 0 || !(apart || together)) {
    refuse(op, "weight", shape_of(weight), "[groups * outputs, inputs] or [groups, outputs, inputs], not empty");
  }
  for (py::ssize_t axis = 0; axis < axes; ++axis) {
    if (weight.strides(axis) % kSize<T>) refuse(op, "weight", "strided", "whole elements");
  }
  GivenWeight<T> given{weight.data(), groups, weight.shape(axes - 2), weight.shape(axes - 1),
                       0, weight.strides(axes - 2) / kSize<T>, weight.strides(axes - 1) / kSize<T>};
  if (apart) {
    given.groups = weight.shape(0);
    given.group_stride = weight.strides(0) / kSize<T>;
  } else {
    given.outputs /= groups;
    given.group_stride = given.outputs * given.output_stride;
  }
  return given;
}

template <typename T>
PackedWeight pack(const Rows<T>& weight, std::int64_t groups, bool int8, bool strassen, int threads) {
  constexpr const char* op = "PackedWeight";
  const GivenWeight<T> given = given_weight(op, weight, groups);
  if (int8 && sizeof(T) != 4) refuse(op, "weight", "float64", "float32 for int8");
  if (int8 && given.inputs > kMostBytes) {
    refuse(op, "weight", shape_of(weight), "at most " + std::to_string(kMostBytes) + " inputs for int8");
  }
  if (strassen && (int8 || sizeof(T) != 4 || given.inputs % 2)) {
    refuse(op, "weight", shape_of(weight), "float32 and an even number of inputs for strassen, and no int8");
  }
  auto packed = [&] {
    const py::gil_scoped_release release;
    return PackedWeight(given, int8, threads);
  }();
  if (strassen) packed.use_strassen();
  if (!packed.finite()) refuse(op, "weight", "not finite", "finite numbers");
  return packed;
}

// A weight of numbers, left empty for `pack_outputs` to fill.
PackedWeight unpacked(std::int64_t groups, std::int64_t outputs, std::int64_t inputs, bool float64) {
  constexpr std::int64_t most = std::int64_t{1} << 20;  // so that no product of them overflows
  for (const std::int64_t size : {groups, outputs, inputs}) {
    if (size < 1 || size > most) refuse("unpacked", "a size", std::to_string(size), "groups, outputs and inputs from 1 to 2^20");
  }
  return {float64 ? PackedWeight::Kind::float64 : PackedWeight::Kind::float32, groups, outputs, inputs};
}

template <typename T>
void pack_outputs(PackedWeight& packed, const Rows<T>& weight, std::int64_t first, int threads) {
  constexpr const char* op = "pack_outputs";
  const GivenWeight<T> given = given_weight(op, weight, weight.ndim() == 3 ? 1 : packed.groups());
  check_kind<T>(op, packed, false);
  const bool fits = given.groups == packed.groups() && given.inputs == packed.inputs();
  if (!fits || first < 0 || first > packed.outputs() - given.outputs) {
    refuse(op, "weight", shape_of(weight), "outputs that the packed one has, from `first` on");
  }
  const std::int64_t last = first + given.outputs;
  if (first % kPanel || (last % kPanel && last != packed.outputs())) {
    refuse(op, "first", std::to_string(first) + " to " + std::to_string(last), "multiples of " + std::to_string(kPanel));
  }
  {
    const py::gil_scoped_release release;
    packed.pack(given, first, threads);
  }
  if (!packed.finite()) refuse(op, "weight", "not finite", "finite numbers");
}

PackedWeight part_of(const PackedWeight& weight, std::int64_t first, std::int64_t last) {
  const bool whole = first % kPanel == 0 && (last % kPanel == 0 || last == weight.outputs());
  if (weight.groups() != 1 || !whole || first < 0 || first >= last || last > weight.outputs()) {
    refuse("part", "first or last", std::to_string(first) + ", " + std::to_string(last),
           "multiples of " + std::to_string(kPanel) + " among the outputs of one group");
  }
  return weight.part(first, last);
}

template <typename T>
void linear_of(const Rows<T>& x, const PackedWeight& weight, Rows<T>& out, const std::optional<Array<T>>& bias, bool relu, const MaybeRows<T>& added,
               std::optional<double> eps, int threads, const std::string& instruction_set) {
  constexpr const char* op = "linear";
  if (x.ndim() != 2) refuse(op, "x", shape_of(x), "[rows, inputs]");
  check_kind<T>(op, weight, true);
  const std::int64_t rows = x.shape(0), columns = columns_of(weight);
  const Matrix<T> from = matrix_of(op, "x", x, rows, weight.groups() * weight.inputs());
  const Output<T> to = output_of(op, "out", out, rows, columns);
  const Finish<T> finish = finish_of(op, rows, columns, bias, relu, added, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  linear(from, rows, weight, finish, chosen, threads, to);
}

template <typename T>
void feed_forward_of(const Rows<T>& x, const PackedWeight& first, const PackedWeight& second, Rows<T>& out, const MaybeRows<T>& added,
                     std::optional<double> eps, int threads, const std::string& instruction_set) {
  constexpr const char* op = "feed_forward";
  if (x.ndim() != 2) refuse(op, "x", shape_of(x), "[rows, inputs]");
  if (first.groups() != 1 || second.groups() != 1 || first.outputs() != second.inputs() || first.kind() != second.kind()) {
    refuse(op, "second", "unlike", "a weight that takes what the first makes, of one group and kind");
  }
  check_kind<T>(op, first, true);
  const std::int64_t rows = x.shape(0);
  const Matrix<T> from = matrix_of(op, "x", x, rows, first.inputs());
  const Output<T> to = output_of(op, "out", out, rows, second.outputs());
  const Finish<T> finish = finish_of<T>(op, rows, second.outputs(), std::nullopt, false, added, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  feed_forward(from, rows, first, second, finish, chosen, threads, to);
}

template <typename T>
void folded_feed_forward_of(const Rows<T>& x, const PackedWeight& attention, const PackedWeight& folded,
                            const Array<T>& sums, const PackedWeight& second, const Rows<T>& added,
                            const Rows<T>& first_of_added, Rows<T>& out, double eps, int threads,
                            const std::string& instruction_set) {
  constexpr const char* op = "folded_feed_forward";
  if (x.ndim() != 2) refuse(op, "x", shape_of(x), "[rows, inputs]");
  for (const PackedWeight* weight : {&attention, &folded, &second}) {
    check_kind<T>(op, *weight, false);
    if (weight->groups() != 1) refuse(op, "a weight", "of groups", "one group");
  }
  const std::int64_t rows = x.shape(0), columns = attention.outputs(), size = folded.outputs();
  if (folded.inputs() != attention.inputs() || second.inputs() != size || second.outputs() != columns) {
    refuse(op, "the weights", "of other sizes", "sizes that fit");
  }
  if (sums.size() != size) refuse(op, "sums", shape_of(sums), "[" + std::to_string(size) + "]");
  const Matrix<T> from = matrix_of(op, "x", x, rows, attention.inputs());
  const Matrix<T> other = matrix_of(op, "added", added, rows, columns);
  const Matrix<T> more = matrix_of(op, "first_of_added", first_of_added, rows, size);
  const Output<T> to = output_of(op, "out", out, rows, columns);
  const FoldedFeedForward<T> weights{attention, folded, sums.data(), second};
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  folded_feed_forward(from, rows, weights, other, more, static_cast<T>(eps), chosen, threads, to);
}

template <typename T>
void convolution_of(const Rows<T>& x, const PackedWeight& weight, Rows<T>& out, const std::optional<Array<T>>& bias, bool relu,
                    const MaybeRows<T>& added, int threads, const std::string& instruction_set) {
  constexpr const char* op = "convolution";
  check_kind<T>(op, weight, false);
  if (weight.inputs() % 3) refuse(op, "weight", "of other inputs", "three taps of each channel");
  const std::int64_t channels = weight.groups() * weight.inputs() / 3, columns = columns_of(weight);
  if (x.ndim() != 2 || x.shape(1) != channels || x.strides(0) % kSize<T> || x.strides(1) % kSize<T>) {
    refuse(op, "x", shape_of(x), "[rows, " + std::to_string(channels) + "], of whole elements");
  }
  const std::int64_t rows = x.shape(0);
  const Output<T> to = output_of(op, "out", out, rows, columns);
  const Finish<T> finish = finish_of(op, rows, columns, bias, relu, added, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const T* const from = x.data();
  const std::int64_t row = x.strides(0) / kSize<T>, channel = x.strides(1) / kSize<T>;
  const py::gil_scoped_release release;
  convolution(from, row, channel, rows, weight, finish, chosen, threads, to);
}

template <typename T>
void linear_runs_of(const Rows<T>& x, const Index& runs, const PackedWeight& weight, Rows<T>& out,
                    const std::optional<Array<T>>& bias, bool relu, int threads, const std::string& instruction_set) {
  constexpr const char* op = "linear_runs";
  if (x.ndim() != 2 || x.shape(0) == 0) refuse(op, "x", shape_of(x), "[rows, columns], not empty");
  check_kind<T>(op, weight, false);
  const Matrix<T> from = matrix_of(op, "x", x, x.shape(0), x.shape(1));
  const std::int64_t elements = (x.shape(0) - 1) * from.stride + x.shape(1);
  const Output<T> to = output_of(op, "out", out, out.ndim() == 2 ? out.shape(0) : 0, weight.outputs());
  const Runs checked = runs_of(op, runs, from, elements, weight.groups(), weight.inputs(), out.shape(0));
  const Finish<T> finish = finish_of<T>(op, out.shape(0), weight.outputs(), bias, relu, std::nullopt, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  linear_runs(from, checked, weight, finish, chosen, threads, to);
}

template <typename T>
void attention_of(const Rows<T>& query, const Rows<T>& key, const std::vector<Rows<T>>& values, std::vector<Rows<T>>& outputs,
                  std::int64_t heads, double scale, int threads, const std::string& instruction_set) {
  constexpr const char* op = "attention";
  if (query.ndim() != 2 || key.ndim() != 2) refuse(op, "query or key", "of another rank", "[T, heads * head_size]");
  const std::size_t streams = values.size();
  if (streams < 1 || streams > 2 || outputs.size() != streams) refuse(op, "values", "of another number", "one or two");
  const std::int64_t width = query.shape(1), value_width = values[0].ndim() == 2 ? values[0].shape(1) : 0;
  if (heads < 1 || width < 1 || value_width < 1 || width % heads || value_width % heads) {
    refuse(op, "heads", std::to_string(heads), "a number that divides the columns of query and values");
  }
  if (key.shape(0) < 1) refuse(op, "key", shape_of(key), "at least one row");
  if (!(scale > 0) || !std::isfinite(scale)) refuse(op, "scale", std::to_string(scale), "a finite number above 0");
  const AttentionSizes sizes{heads, query.shape(0), key.shape(0), width / heads, value_width / heads,
                             scale};
  // Heads lie side by side in a row.
  const auto rows_of = [&](const auto& matrix, std::int64_t size) {
    using Element = std::remove_pointer_t<decltype(matrix.data)>;
    return HeadRows<Element>{matrix.data, heads, 0, size, matrix.stride};
  };
  const auto of_query = rows_of(matrix_of(op, "query", query, sizes.queries, width), sizes.head_size);
  const auto of_key = rows_of(matrix_of(op, "key", key, sizes.keys, width), sizes.head_size);
  HeadRows<const T> of_values[2];
  HeadRows<T> of_outputs[2];
  for (std::size_t s = 0; s < streams; ++s) {
    of_values[s] = rows_of(matrix_of(op, "values", values[s], sizes.keys, value_width), sizes.value_size);
    of_outputs[s] = rows_of(output_of(op, "outputs", outputs[s], sizes.queries, value_width), sizes.value_size);
  }
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  attention<T>(of_query, of_key, of_values, static_cast<int>(streams), sizes, chosen, threads, of_outputs);
}

template <typename T>
void define(py::module_& module) {
  const auto maybe = [](const char* name) { return arg(name) = py::none(); };
  const auto eps = arg("eps") = py::none();
  module.def("linear", &linear_of<T>, arg("x"), arg("weight"), arg("out"), maybe("bias"), arg("relu") = false,
             maybe("added"), eps, arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x weight^T + bias) + added); LayerNorm where eps is given.");
  module.def("feed_forward", &feed_forward_of<T>, arg("x"), arg("first"), arg("second"), arg("out"), maybe("added"), eps,
             arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x first^T) second^T + added); LayerNorm where eps is given.");
  module.def("folded_feed_forward", &folded_feed_forward_of<T>, arg("x"), arg("attention"), arg("folded"), arg("sums"),
             arg("second"), arg("added"), arg("first_of_added"), arg("out"), arg("eps"), arg("threads"),
             instruction_set_argument(),
             "out = LayerNorm(ReLU(y first^T) second^T + y), y = LayerNorm(x attention^T + added), with first folded.");
  module.def("convolution", &convolution_of<T>, arg("x"), arg("weight"), arg("out"), maybe("bias"), arg("relu") = false,
             maybe("added"), arg("threads"), instruction_set_argument(),
             "Three taps over the rows of x, with zeros around: out = ReLU(... + bias) + added.");
  module.def("linear_runs", &linear_runs_of<T>, arg("x"), arg("runs"), arg("weight"), arg("out"), maybe("bias"),
             arg("relu") = false, arg("threads"), instruction_set_argument(),
             "For each of the runs [from of each group, to, rows], out rows = ReLU(sum over groups of x rows weight^T + bias).");
  module.def("attention", &attention_of<T>, arg("query"), arg("key"), arg("values"), arg("outputs"), arg("heads"),
             arg("scale"), arg("threads"), instruction_set_argument(),
             "outputs[i] = softmax(query key^T scale) values[i], head by head.");
}

}  // namespace

void define_layers(py::module_& module) {
  module.attr("PANEL") = kPanel;
  module.attr("RUN_PART") = kRunPart;
  module.attr("BYTE_PRODUCTS") = has_byte_products();
  py::class_<PackedWeight>(module, "PackedWeight", "The weights of a linear layer, laid out for its product.")
      .def(py::init(&pack<float>), arg("weight"), arg("groups") = 1, arg("int8") = false, arg("strassen") = false,
           arg("threads") = 1)
      .def(py::init(&pack<double>), arg("weight"), arg("groups") = 1, arg("int8") = false, arg("strassen") = false,
           arg("threads") = 1)
      .def_static("unpacked", &unpacked, arg("groups"), arg("outputs"), arg("inputs"), arg("float64") = false,
                  "Memory for `pack_outputs`, which has to fill all of it.")
      .def("pack_outputs", &pack_outputs<float>, arg("weight"), arg("first"), arg("threads") = 1,
           "Packs the outputs from `first` on.")
      .def("pack_outputs", &pack_outputs<double>, arg("weight"), arg("first"), arg("threads") = 1)
      .def("part", &part_of, arg("first"), arg("last"), "Some of the outputs, in the same memory.")
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
