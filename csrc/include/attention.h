// Attention for inference: one softmax map per head, which reweights one stream of values or two.
#pragma once

#include <cstdint>

#include "layers.h"
#include "simd.h"

namespace bcnet_fast {

// Rows of head h begin at column h * head_size of query and key, and h * value_size of values and outputs.
struct AttentionSizes {
  std::int64_t heads, queries, keys, head_size, value_size;
  double scale;
};

// outputs[i] = softmax(query key^T scale) values[i] of each head; `streams` is 1 or 2. The maps are made a block of rows at a
// time. Same bits for any number of threads.
template <typename T>
void attention(Matrix<T> query, Matrix<T> key, const Matrix<T>* values, int streams, const AttentionSizes& sizes,
               InstructionSet instruction_set, int threads, const Output<T>* outputs);

}  // namespace bcnet_fast
