// Matrices and weights in NumPy arrays, as the layers take them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "include/layers.h"
#include "python/common.h"

namespace bcnet_fast {

// Row-major with unit column stride, but possibly the rows of a larger array.
template <typename T>
using Rows = Array<T, 0>;
template <typename T>
using MaybeRows = std::optional<Rows<T>>;

using Index = Array<std::int32_t>;

template <typename T>
constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));

template <typename T>
void check_rows(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows, std::int64_t columns,
                const std::string& reason = "") {
  require_shape(op, argument, array, {rows, columns}, reason);
  if (rows == 0) return;
  const bool unit = columns <= 1 || array.strides(1) == kSize<T>;
  const bool ascending = rows <= 1 || (array.strides(0) > 0 && array.strides(0) % kSize<T> == 0);
  if (!unit || !ascending) refuse_strides(op, argument, array, "a unit column stride and a positive row stride");
}

// Elements from row to row. The stride of a single row is neither checked nor used.
template <typename T>
std::int64_t stride_of(const Rows<T>& array) {
  return array.shape(0) > 1 ? array.strides(0) / kSize<T> : array.shape(1);
}

template <typename T>
Matrix<T> matrix_of(const char* op, const char* argument, const Rows<T>& array, std::int64_t rows, std::int64_t columns,
                    const std::string& reason = "") {
  check_rows(op, argument, array, rows, columns, reason);
  return {array.data(), stride_of(array)};
}

template <typename T>
MutableMatrix<T> output_of(const char* op, const char* argument, Rows<T>& array, std::int64_t rows,
                           std::int64_t columns, const std::string& reason = "") {
  check_rows(op, argument, array, rows, columns, reason);
  if (!array.writeable()) refuse(op, argument, "read-only", "a writeable array");
  return {array.mutable_data(), stride_of(array)};
}

inline std::string name_of(PackedWeight::Kind kind) {
  switch (kind) {
    case PackedWeight::Kind::float64: return "float64";
    case PackedWeight::Kind::int8: return "int8";
    default: return "float32";
  }
}

inline std::string sizes_of(const PackedWeight& weight) {
  return std::to_string(weight.groups()) + (weight.groups() == 1 ? " group of " : " groups of ") +
         std::to_string(weight.outputs()) + " outputs and " + std::to_string(weight.inputs()) + " inputs";
}

// The reason for a shape that a weight decides.
inline std::string to_fit(const char* argument, const PackedWeight& weight) {
  return std::string(" to fit ") + argument + " (" + sizes_of(weight) + ")";
}

// Raises unless the ranges are of existing rows, in the order of those of out, and each row of out once. x has
// `elements` elements; a range reads `inputs` of them from the beginning of each of its rows on.
template <typename T>
RowRanges row_ranges_of(const char* op, const Index& array, Matrix<T> x, std::int64_t elements, std::int64_t groups,
                        std::int64_t inputs, std::int64_t out_rows) {
  if (array.ndim() != 2 || array.shape(1) != groups + 2) {
    refuse_shape(op, "runs", array, "[runs, " + std::to_string(groups + 2) + "]");
  }
  const RowRanges ranges{array.data(), array.shape(0), groups};
  std::int64_t next = 0;  // so that no two ranges write to one row
  for (std::int64_t range = 0; range < ranges.count; ++range) {
    const std::int64_t rows = ranges.rows(range), end = ranges.target(range) + rows;
    bool inside = rows > 0 && ranges.target(range) >= next && end <= out_rows;
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int64_t source = ranges.source(range, group);
      inside &= source >= 0 && (source + rows - 1) * x.stride + inputs <= elements;
    }
    if (!inside) {
      const std::int32_t* const row = array.data() + range * (groups + 2);
      refuse(op, "runs", list_of(std::vector<std::int32_t>(row, row + groups + 2)) + " in row " + std::to_string(range),
             "existing rows of x, and existing rows of out in ascending order, each once");
    }
    next = end;
  }
  return ranges;
}

// Raises unless a weight has the type of the argument `other`, or is int8 where that is allowed, for float32.
template <typename T>
void check_kind(const char* op, const char* argument, const PackedWeight& weight, bool allow_int8,
                const char* other = "x") {
  const auto same = sizeof(T) == 8 ? PackedWeight::Kind::float64 : PackedWeight::Kind::float32;
  if (weight.kind() == same || (allow_int8 && sizeof(T) == 4 && weight.int8())) return;
  refuse(op, argument, name_of(weight.kind()),
         name_of(same) + (allow_int8 && sizeof(T) == 4 ? " or int8" : "") + " to fit " + other);
}

template <typename T>
Epilogue<T> epilogue_of(const char* op, std::int64_t rows, std::int64_t columns, const std::optional<Array<T>>& bias,
                        bool relu, const MaybeRows<T>& residual, std::optional<double> eps) {
  Epilogue<T> epilogue;
  if (bias) {
    if (bias->size() != columns) refuse_shape(op, "bias", *bias, list_of(std::vector{columns}) + " to fit out");
    epilogue.bias = bias->data();
  }
  epilogue.relu = relu;
  if (residual) epilogue.residual = matrix_of(op, "added", *residual, rows, columns, " to fit out");
  epilogue.layer_norm = eps.has_value();
  epilogue.eps = static_cast<T>(eps.value_or(0.0));
  return epilogue;
}

}  // namespace bcnet_fast
