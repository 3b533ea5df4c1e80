// Views of row-major matrices, and what is done to the rows of a product.
#pragma once

#include <cstdint>

namespace bcnet_fast {

// Row-major view with unit column stride; null `data` means absent.
template <typename T>
struct Matrix {
  const T* data = nullptr;
  std::int64_t stride = 0;  // elements from row to row

  const T* row(std::int64_t index) const { return data + index * stride; }
  // The rows from `index` on; absent if the matrix is.
  Matrix from_row(std::int64_t index) const { return data ? Matrix{row(index), stride} : Matrix{}; }
};

template <typename T>
struct MutableMatrix {
  T* data = nullptr;
  std::int64_t stride = 0;

  T* row(std::int64_t index) const { return data + index * stride; }
  MutableMatrix from_row(std::int64_t index) const { return {row(index), stride}; }
  Matrix<T> view() const { return {data, stride}; }
};

// The operations that follow a product, in this order: + bias, ReLU, + residual, LayerNorm without scale and shift.
template <typename T>
struct Epilogue {
  const T* bias = nullptr;  // [columns], or null
  bool relu = false;
  Matrix<T> residual;  // [rows, columns], or absent
  bool layer_norm = false;
  T eps = 0;  // of LayerNorm
};

}  // namespace bcnet_fast
