#include "layers.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "attention.h"
#include "byte_tiles.h"
#include "common.h"

namespace bcnet_fast {
namespace {

// Rows of a larger array are fine: only neighbours in a row have to lie together.
using Rows = py::array_t<float, 0>;
using MaybeRows = std::optional<Rows>;
using MaybeFloats = std::optional<Array<float>>;

void check_rows(const char* op, const char* argument, const Rows& array, std::int64_t rows, std::int64_t columns) {
  const auto wanted = [&] {
    return "rows of float32, [" + std::to_string(rows) + ", " + std::to_string(columns) + "]";
  };
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns) refuse(op, argument, shape_of(array), wanted());
  const bool together = columns <= 1 || array.strides(1) == sizeof(float);
  const bool apart = rows <= 1 || (array.strides(0) > 0 && array.strides(0) % sizeof(float) == 0);
  if (!together || !apart) refuse(op, argument, "strided", wanted());
}

std::int64_t row_stride(const Rows& array) { return array.strides(0) / static_cast<std::int64_t>(sizeof(float)); }

Matrix matrix_of(const char* op, const char* argument, const Rows& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  return {array.data(), row_stride(array)};
}

Output output_of(const char* op, const char* argument, Rows& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  return {array.mutable_data(), row_stride(array)};
}

std::int64_t columns_of(const PackedWeight& weight) { return weight.groups() * weight.outputs(); }

Finish finish_of(const char* op, std::int64_t rows, std::int64_t columns, const MaybeFloats& bias, bool relu,
                 const MaybeRows& added, const MaybeRows& added_too, std::optional<double> eps) {
  Finish finish;
  if (bias) {
    if (bias->size() != columns) refuse(op, "bias", shape_of(*bias), "[" + std::to_string(columns) + "]");
    finish.bias = bias->data();
  }
  finish.relu = relu;
  if (added) finish.added[0] = matrix_of(op, "added", *added, rows, columns);
  if (added_too) finish.added[1] = matrix_of(op, "added_too", *added_too, rows, columns);
  finish.norm = eps.has_value();
  finish.eps = static_cast<float>(eps.value_or(0.0));
  return finish;
}

PackedWeight pack(const Array<float>& weight, std::int64_t groups, bool int8) {
  constexpr const char* op = "PackedWeight";
  if (weight.ndim() != 2 || weight.size() == 0 || groups < 1 || weight.shape(0) % groups) {
    refuse(op, "weight", shape_of(weight), "[groups * outputs, inputs], not empty");
  }
  const float* const data = weight.data();
  if (!std::all_of(data, data + weight.size(), [](float w) { return std::isfinite(w); })) {
    refuse(op, "weight", "not finite", "finite numbers");
  }
  const py::gil_scoped_release release;
  return PackedWeight(data, groups, weight.shape(0) / groups, weight.shape(1), int8);
}

void linear_of(const Rows& x, const PackedWeight& weight, Rows& out, const MaybeFloats& bias, bool relu, const MaybeRows& added,
               const MaybeRows& added_too, std::optional<double> eps, int threads, const std::string& instruction_set) {
  constexpr const char* op = "linear";
  if (x.ndim() != 2) refuse(op, "x", shape_of(x), "[rows, inputs]");
  const std::int64_t rows = x.shape(0), columns = columns_of(weight);
  const Matrix from = matrix_of(op, "x", x, rows, weight.groups() * weight.inputs());
  const Output to = output_of(op, "out", out, rows, columns);
  const Finish finish = finish_of(op, rows, columns, bias, relu, added, added_too, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  linear(from, rows, weight, finish, chosen, threads, to);
}

void feed_forward_of(const Rows& x, const PackedWeight& first, const PackedWeight& second, Rows& out, const MaybeRows& added,
                     std::optional<double> eps, int threads, const std::string& instruction_set) {
  constexpr const char* op = "feed_forward";
  if (x.ndim() != 2) refuse(op, "x", shape_of(x), "[rows, inputs]");
  if (first.groups() != 1 || second.groups() != 1 || first.outputs() != second.inputs() || first.int8() != second.int8()) {
    refuse(op, "second", "unlike", "a weight that takes what the first makes, of one group and kind");
  }
  const std::int64_t rows = x.shape(0);
  const Matrix from = matrix_of(op, "x", x, rows, first.inputs());
  const Output to = output_of(op, "out", out, rows, second.outputs());
  const Finish finish = finish_of(op, rows, second.outputs(), std::nullopt, false, added, std::nullopt, eps);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  feed_forward(from, rows, first, second, finish, chosen, threads, to);
}

void convolution_of(const Rows& x, const PackedWeight& weight, Rows& out, const MaybeFloats& bias, bool relu,
                    const MaybeRows& added, int threads, const std::string& instruction_set) {
  constexpr const char* op = "convolution";
  constexpr auto size = static_cast<std::int64_t>(sizeof(float));
  if (weight.inputs() % 3) refuse(op, "weight", "of other inputs", "three taps of each channel");
  const std::int64_t channels = weight.groups() * weight.inputs() / 3, columns = columns_of(weight);
  if (x.ndim() != 2 || x.shape(1) != channels || x.strides(0) % size || x.strides(1) % size) {
    refuse(op, "x", shape_of(x), "[rows, " + std::to_string(channels) + "] of float32");
  }
  const std::int64_t rows = x.shape(0);
  const Output to = output_of(op, "out", out, rows, columns);
  const Finish finish = finish_of(op, rows, columns, bias, relu, added, std::nullopt, std::nullopt);
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const float* const from = x.data();
  const std::int64_t row = x.strides(0) / size, channel = x.strides(1) / size;
  const py::gil_scoped_release release;
  convolution(from, row, channel, rows, weight, finish, chosen, threads, to);
}

void attention_of(const Rows& query, const Rows& key, const std::vector<Rows>& values, std::vector<Rows>& outputs,
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
  const AttentionSizes sizes{heads, query.shape(0), key.shape(0), width / heads, value_width / heads,
                             static_cast<float>(scale)};
  const Matrix of_query = matrix_of(op, "query", query, sizes.queries, width);
  const Matrix of_key = matrix_of(op, "key", key, sizes.keys, width);
  Matrix of_values[2];
  Output of_outputs[2];
  for (std::size_t s = 0; s < streams; ++s) {
    of_values[s] = matrix_of(op, "values", values[s], sizes.keys, value_width);
    of_outputs[s] = output_of(op, "outputs", outputs[s], sizes.queries, value_width);
  }
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  attention(of_query, of_key, of_values, static_cast<int>(streams), sizes, chosen, threads, of_outputs);
}

}  // namespace

void define_layers(py::module_& module) {
  const auto array = [](const char* name) { return py::arg(name).noconvert(); };
  const auto maybe = [](const char* name) { return py::arg_v(py::arg(name).noconvert().none(true), py::none()); };
  const auto eps = py::arg("eps") = py::none();
  py::class_<PackedWeight>(module, "PackedWeight", "The weights of a linear layer, laid out for its product.")
      .def(py::init(&pack), array("weight"), py::arg("groups") = 1, py::arg("int8") = false)
      .def_property_readonly("groups", &PackedWeight::groups)
      .def_property_readonly("outputs", &PackedWeight::outputs, "of a group")
      .def_property_readonly("inputs", &PackedWeight::inputs, "of a group")
      .def_property_readonly("int8", &PackedWeight::int8)
      .def_property_readonly("nbytes", &PackedWeight::bytes);
  module.attr("BYTE_PRODUCTS") = has_byte_products();
  module.def("linear", &linear_of, array("x"), py::arg("weight"), array("out"), maybe("bias"), py::arg("relu") = false,
             maybe("added"), maybe("added_too"), eps, py::arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x weight^T + bias) + added + added_too); LayerNorm where eps is given.");
  module.def("feed_forward", &feed_forward_of, array("x"), py::arg("first"), py::arg("second"), array("out"), maybe("added"),
             eps, py::arg("threads"), instruction_set_argument(),
             "out = LayerNorm(ReLU(x first^T) second^T + added); LayerNorm where eps is given.");
  module.def("convolution", &convolution_of, array("x"), py::arg("weight"), array("out"), maybe("bias"),
             py::arg("relu") = false, maybe("added"), py::arg("threads"), instruction_set_argument(),
             "Three taps over the rows of x, with zeros around: out = ReLU(... + bias) + added.");
  module.def("attention", &attention_of, array("query"), array("key"), py::arg("values"), py::arg("outputs"),
             py::arg("heads"), py::arg("scale"), py::arg("threads"), instruction_set_argument(),
             "outputs[i] = softmax(query key^T scale) values[i], head by head.");
}

}  // namespace bcnet_fast
