// Attention with one softmax map per head, which reweights one stream of values or two; and its gradients.
#pragma once

#include <cstdint>

#include "simd/simd.h"

namespace bcnet_fast {

// The rows of heads 0, 1, ... of every element of a batch, numbered through; neighbours in a row lie together.
template <typename T>
struct HeadRows {
  T* data = nullptr;
  std::int64_t heads = 1;       // of an element
  std::int64_t batch_step = 0;  // elements of T from one element of the batch to the next,
  std::int64_t head_step = 0;   // from head to head,
  std::int64_t stride = 0;      // from row to row

  T* of(std::int64_t head) const { return data + head / heads * batch_step + head % heads * head_step; }
};

struct AttentionSizes {
  std::int64_t heads, queries, keys, head_size, value_size;  // heads of all elements of the batch
  double scale;
};

// Arrays for both are of `streams` streams, 1 or 2. Maps are made a block of rows at a time. Same bits for any number of
// threads.

// outputs[s] = softmax(query key^T scale) values[s] of each head; of its logits log(sum(exp())) to lse [heads, queries], if it
// is not null.
template <typename T>
void attention(HeadRows<const T> query, HeadRows<const T> key, const HeadRows<const T>* values, int streams,
               const AttentionSizes& sizes, InstructionSet instruction_set, int threads, const HeadRows<T>* outputs,
               T* lse = nullptr);

// The gradients of query, key and values, of `grads` of the outputs.
template <typename T>
struct AttentionGradients {
  HeadRows<T> query, key, values[2];
};
template <typename T>
void attention_backward(const HeadRows<const T>* grads, HeadRows<const T> query, HeadRows<const T> key,
                        const HeadRows<const T>* values, int streams, const AttentionSizes& sizes,
                        InstructionSet instruction_set, int threads, const AttentionGradients<T>& gradients);

}  // namespace bcnet_fast
