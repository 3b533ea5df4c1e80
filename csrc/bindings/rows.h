// Matrices in NumPy arrays, as the layers take them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "layers.h"

namespace bcnet_fast {

// Rows of a larger array are fine: only neighbours in a row have to lie together.
template <typename T>
using Rows = py::array_t<T, 0>;
template <typename T>
using MaybeRows = std::optional<Rows<T>>;

using Index = py::array_t<std::int32_t, py::array::c_style>;

template <typename T>
constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));

template <typename T>
void check_rows(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows, std::int64_t columns) {
  const auto wanted = [&] { return "rows that lie together, [" + std::to_string(rows) + ", " + std::to_string(columns) + "]"; };
  if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != columns) refuse(op, argument, shape_of(array), wanted());
  if (rows == 0) return;
  const bool together = columns <= 1 || array.strides(1) == kSize<T>;
  const bool apart = rows <= 1 || (array.strides(0) > 0 && array.strides(0) % kSize<T> == 0);
  if (!together || !apart) refuse(op, argument, "strided", wanted());
}

template <typename T>
Matrix<T> matrix_of(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  return {array.data(), array.strides(0) / kSize<T>};
}

template <typename T>
Output<T> output_of(const char* op, const char* argument, Rows<T>& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  if (!array.writeable()) refuse(op, argument, "read-only", "an array to write to");
  return {array.mutable_data(), array.strides(0) / kSize<T>};
}

// Runs of rows that exist: those of out in order, and each once. x has so many elements, and what a run takes of it begins
// at its rows, shifted, and is `inputs` elements long.
template <typename T>
const Run* runs_of(const char* op, const Index& runs, const std::vector<std::int64_t>& shifts, Matrix<T> x,
                   std::int64_t elements, std::int64_t inputs, std::int64_t out_rows) {
  if (runs.ndim() != 2 || runs.shape(1) != 3) refuse(op, "runs", shape_of(runs), "[runs, 3]");
  const Run* const first = reinterpret_cast<const Run*>(runs.data());
  std::int64_t next = 0;  // so that no two runs write to one row
  for (py::ssize_t r = 0; r < runs.shape(0); ++r) {
    const Run run = first[r];
    bool inside = run.count > 0 && run.to >= next && run.to + std::int64_t{run.count} <= out_rows;
    for (const std::int64_t shift : shifts) {
      const std::int64_t begin = run.from + shift;
      inside &= begin >= 0 && (begin + run.count - 1) * x.stride + inputs <= elements;
    }
    if (!inside) refuse(op, "runs", "outside", "rows of x and out that exist, in the order of those of out, and each once");
    next = run.to + std::int64_t{run.count};
  }
  return first;
}

// int8 goes with float32, which it is made of.
template <typename T>
void check_kind(const char* op, const PackedWeight& weight, bool with_int8) {
  const auto wanted = sizeof(T) == 8 ? PackedWeight::Kind::float64 : PackedWeight::Kind::float32;
  const bool fits = weight.kind() == wanted || (with_int8 && sizeof(T) == 4 && weight.int8());
  if (!fits) refuse(op, "a weight", "of another kind", sizeof(T) == 8 ? "float64, as x is" : "float32, as x is");
}

template <typename T>
Finish<T> finish_of(const char* op, std::int64_t rows, std::int64_t columns, const std::optional<Array<T>>& bias, bool relu,
                    const MaybeRows<T>& added, std::optional<double> eps) {
  Finish<T> finish;
  if (bias) {
    if (bias->size() != columns) refuse(op, "bias", shape_of(*bias), "[" + std::to_string(columns) + "]");
    finish.bias = bias->data();
  }
  finish.relu = relu;
  if (added) finish.added = matrix_of(op, "added", *added, rows, columns);
  finish.norm = eps.has_value();
  finish.eps = static_cast<T>(eps.value_or(0.0));
  return finish;
}

}  // namespace bcnet_fast
