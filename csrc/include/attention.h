// Attention with one softmax map per head, which weights one stream of values or two, and its gradients. T is float or
// double. Results have the same bits for any number of threads, but not for all instruction sets.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"

namespace bcnet_fast {

// The heads of all elements of a batch, numbered through: each a row-major matrix with unit column stride.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  std::int64_t heads = 1;         // heads of an element
  std::int64_t batch_stride = 0;  // elements of T from one element of the batch to the next
  std::int64_t head_stride = 0;   // from head to head
  std::int64_t stride = 0;        // from row to row

  T* of(std::int64_t head) const { return data + head / heads * batch_stride + head % heads * head_stride; }
};

struct AttentionSizes {
  std::int64_t heads;  // of all elements of the batch
  std::int64_t queries, keys, head_size, value_size;
  double scale;
};

// outputs[s] = softmax(query key^T scale) values[s] of each head. The map exists a block of rows at a time.
// values, outputs: one for each of `streams` streams, 1 or 2.
// lse: [heads, queries], gets log(sum(exp(logits))) of each row; or null.
template <typename T>
void attention(HeadRows<const T> query, HeadRows<const T> key, const HeadRows<const T>* values, int streams,
               const AttentionSizes& sizes, InstructionSet instruction_set, int threads, const HeadRows<T>* outputs,
               T* lse = nullptr);

template <typename T>
struct AttentionGradients {
  HeadRows<T> query, key, values[2];
};
// gradients = those of query, key and values, from `grads`, those of the outputs.
template <typename T>
void attention_backward(const HeadRows<const T>* grads, HeadRows<const T> query, HeadRows<const T> key,
                        const HeadRows<const T>* values, int streams, const AttentionSizes& sizes,
                        InstructionSet instruction_set, int threads, const AttentionGradients<T>& gradients);

}  // namespace bcnet_fast
