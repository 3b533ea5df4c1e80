#include "include/second_stage.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "python/common.h"
#include "python/rows.h"

namespace bcnet_fast {
namespace {

using Numbers = Array<std::int64_t>;

// Raises unless all numbers are from 0 to `limit` - 1.
void check_numbers(const char* op, const char* argument, const Numbers& numbers, std::int64_t limit) {
  const std::int64_t* const data = numbers.data();
  for (py::ssize_t i = 0; i < numbers.size(); ++i) {
    if (data[i] < 0 || data[i] >= limit) {
      refuse(op, argument, std::to_string(data[i]) + " in place " + std::to_string(i),
             "numbers from 0 to " + std::to_string(limit - 1));
    }
  }
}

void neighbour_slots_of(const Array<double>& segments, double min_iou, Numbers& slots, Threads threads,
                        const std::string& instruction_set) {
  constexpr const char* op = "neighbour_slots";
  if (segments.ndim() != 2 || segments.shape(1) != 2) refuse_shape(op, "segments", segments, "[N, 2]");
  require_shape(op, "slots", slots, {segments.shape(0), kSlots}, " to fit segments");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  std::int64_t* const to = slots.mutable_data();
  const py::gil_scoped_release release;
  neighbour_slots(segments.data(), segments.shape(0), min_iou, chosen, threads, to);
}

template <typename T>
void range_maxima_of(const Rows<T>& x, const Numbers& ranges, Rows<T>& out, Threads threads,
                     const std::string& instruction_set) {
  constexpr const char* op = "range_maxima";
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[rows, columns]");
  if (ranges.ndim() != 3 || ranges.shape(2) != 2) refuse_shape(op, "ranges", ranges, "[N, bins, 2]");
  check_numbers(op, "ranges", ranges, x.shape(0) + 1);
  const RangeLists lists{ranges.data(), ranges.shape(0), ranges.shape(1)};
  const Matrix<T> from = matrix_of(op, "x", x, x.shape(0), x.shape(1));
  const MutableMatrix<T> to = output_of(op, "out", out, lists.count, lists.bins * x.shape(1), " to fit x and ranges");
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  range_maxima(from, x.shape(0), x.shape(1), lists, chosen, threads, to);
}

template <typename T>
void edge_weights_of(const Rows<T>& x, std::int64_t parts, std::int64_t part, const Numbers& edges, Array<T>& whole,
                     std::optional<Array<T>>& of_part, Threads threads, const std::string& instruction_set) {
  constexpr const char* op = "edge_weights";
  if (x.ndim() != 2 || parts < 1 || x.shape(1) % parts) {
    refuse_shape(op, "x", x, "[rows, parts * width] with parts = " + std::to_string(parts));
  }
  if (part < 0 || part >= parts) refuse(op, "part", std::to_string(part), "a number below parts");
  if (x.shape(0) > std::int64_t{1} << 30) refuse_shape(op, "x", x, "at most 2^30 rows");
  if (edges.ndim() != 2 || edges.shape(1) < 2) {
    refuse_shape(op, "edges", edges, "[groups, 1 + children], children >= 1");
  }
  check_numbers(op, "edges", edges, x.shape(0));
  require_shape(op, "whole", whole, {edges.shape(0), edges.shape(1)}, " to fit edges");
  if (of_part) require_shape(op, "of_part", *of_part, {edges.shape(0), edges.shape(1)}, " to fit edges");
  const FeatureParts<T> features{matrix_of(op, "x", x, x.shape(0), x.shape(1)), parts, x.shape(1) / parts};
  const EdgeLists lists{edges.data(), edges.shape(0), edges.shape(1) - 1};
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  T* const to = whole.mutable_data();
  T* const part_to = of_part ? of_part->mutable_data() : nullptr;
  const py::gil_scoped_release release;
  edge_weights(features, x.shape(0), part, lists, chosen, threads, to, part_to);
}

template <typename T>
void weighted_rows_of(const Rows<T>& x, const Numbers& rows, const Array<T>& weights, Rows<T>& out,
                      const MaybeRows<T>& outer, const std::optional<Array<T>>& bias, bool relu, Threads threads,
                      const std::string& instruction_set) {
  constexpr const char* op = "weighted_rows";
  if (x.ndim() != 2) refuse_shape(op, "x", x, "[rows, columns]");
  if (rows.ndim() != 3) refuse_shape(op, "rows", rows, "[R, groups, taps]");
  const std::int64_t count = rows.shape(0), groups = rows.shape(1), columns = x.shape(1);
  require_shape(op, "weights", weights, {count, groups, rows.shape(2)}, " to fit rows");
  check_numbers(op, "rows", rows, x.shape(0));
  const Matrix<T> from = matrix_of(op, "x", x, x.shape(0), columns);
  const MutableMatrix<T> to = output_of(op, "out", out, count, columns, " to fit x and rows");
  Matrix<T> outer_weights;
  if (outer) outer_weights = matrix_of(op, "outer", *outer, count, groups, " to fit rows");
  if (bias && bias->size() != columns) refuse_shape(op, "bias", *bias, list_of(std::vector{columns}) + " to fit x");
  const WeightedRows<T> sums{from,
                             columns,
                             rows.data(),
                             weights.data(),
                             count,
                             groups,
                             rows.shape(2),
                             outer_weights,
                             bias ? bias->data() : nullptr,
                             relu};
  const InstructionSet chosen = instruction_set_named(op, instruction_set);
  const py::gil_scoped_release release;
  weighted_rows(sums, chosen, threads, to);
}

template <typename T>
void define(py::module_& module) {
  module.def("range_maxima", &range_maxima_of<T>, arg("x"), arg("ranges"), arg("out"), arg("threads"),
             instruction_set_argument(),
             "out[i] = maxima of x[ranges[i, b, 0]:ranges[i, b, 1]] by columns, for all b side by side; 0 if empty.");
  module.def("edge_weights", &edge_weights_of<T>, arg("x"), arg("parts"), arg("part"), arg("edges"), arg("whole"),
             arg("of_part") = py::none(), kw_only(), arg("threads"), instruction_set_argument(),
             "Positive cosines along edges [groups, 1 + children], of rows of x and of one of their parts.");
  module.def("weighted_rows", &weighted_rows_of<T>, arg("x"), arg("rows"), arg("weights"), arg("out"), kw_only(),
             arg("outer") = py::none(), arg("bias") = py::none(), arg("relu") = false, arg("threads"),
             instruction_set_argument(),
             "out[r] = sum over g of outer[r, g] ReLU(bias + sum over k of weights[r, g, k] x[rows[r, g, k]]).");
}

}  // namespace

void define_second_stage(py::module_& module) {
  module.def("neighbour_slots", &neighbour_slots_of, arg("segments"), arg("min_iou"), arg("slots"), arg("threads"),
             instruction_set_argument(), "Candidate neighbours of every segment [N, 2]: [N, 10].");
  define<float>(module);
  define<double>(module);
}

}  // namespace bcnet_fast
