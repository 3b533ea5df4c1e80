// Matrices in NumPy arrays, as the layers take them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "python/common.h"
#include "include/layers.h"

namespace bcnet_fast {

// Rows of a larger array are fine: only neighbours in a row have to lie together.
template <typename T>
using Rows = Array<T, 0>;
template <typename T>
using MaybeRows = std::optional<Rows<T>>;

using Index = Array<std::int32_t>;

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

// From row to row; what is given as that of a single row was not checked.
template <typename T>
std::int64_t stride_of(const Rows<T>& array) {
  return array.shape(0) > 1 ? array.strides(0) / kSize<T> : array.shape(1);
}

template <typename T>
Matrix<T> matrix_of(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  return {array.data(), stride_of(array)};
}

template <typename T>
Output<T> output_of(const char* op, const char* argument, Rows<T>& array, std::int64_t rows, std::int64_t columns) {
  check_rows(op, argument, array, rows, columns);
  if (!array.writeable()) refuse(op, argument, "read-only", "an array to write to");
  return {array.mutable_data(), stride_of(array)};
}

// Runs of rows that exist: those of out in order, and each once. x has so many elements, and what a row takes of it begins
// there and is as long as the weight's inputs.
template <typename T>
Runs runs_of(const char* op, const Index& array, Matrix<T> x, std::int64_t elements, std::int64_t groups, std::int64_t inputs,
             std::int64_t out_rows) {
  if (array.ndim() != 2 || array.shape(1) != groups + 2) {
    refuse(op, "runs", shape_of(array), "[runs, " + std::to_string(groups + 2) + "]");
  }
  const Runs runs{array.data(), array.shape(0), groups};
  std::int64_t next = 0;  // so that no two runs write to one row
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const std::int64_t rows = runs.rows(run), end = runs.to(run) + rows;
    bool inside = rows > 0 && runs.to(run) >= next && end <= out_rows;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t from = runs.from(run, group);
      inside &= from >= 0 && (from + rows - 1) * x.stride + inputs <= elements;
    }
    if (!inside) refuse(op, "runs", "outside", "rows of x and out that exist, in the order of those of out, and each once");
    next = end;
  }
  return runs;
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
