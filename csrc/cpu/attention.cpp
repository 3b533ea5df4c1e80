// A thread works on blocks of rows of one head after another: it packs the head's keys and values in panels, then
// computes its blocks of the map, which are small enough to stay in the cache between their passes. A head that several
// threads work on is packed by each, so that none has to wait. The gradients of keys and values are sums over all rows,
// so there a thread takes whole heads; it computes each block of the map again.
#include "include/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/attention_work.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

#define BCNET_KERNELS "cpu/attention_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kMapElements = 64 * 1024;  // of a block of rows of the map: a quarter of a megabyte

// The rows of a block of the map: whole tiles of the largest kind where it is not too wide.
std::int64_t block_rows(const AttentionSizes& sizes) {
  return std::max<std::int64_t>(1, kMapElements / (kMaxTileRows * map_stride(sizes))) * kMaxTileRows;
}

thread_local Scratch packed_scratch, map_scratch;

}  // namespace

template <typename T>
void attention(HeadRows<const T> query, HeadRows<const T> key, const HeadRows<const T>* values, int streams,
               const AttentionSizes& sizes, InstructionSet instruction_set, int threads, const HeadRows<T>* outputs,
               T* lse) {
  AttentionWork<T> work{query, key, {}, streams, sizes, {}, lse};
  std::copy_n(values, streams, work.values);
  std::copy_n(outputs, streams, work.outputs);
  const std::int64_t rows = block_rows(sizes), blocks = (sizes.queries + rows - 1) / rows;
  threads = static_cast<int>(std::min<std::int64_t>(threads, sizes.heads * blocks));
  WorkShares shares(sizes.heads * blocks, threads);
  run_in_threads(threads, [&](int thread) {
    const std::int64_t key_size = padded(sizes.keys) * sizes.head_size;
    const std::int64_t value_size = padded(sizes.value_size) * sizes.keys;
    T* const packed = packed_scratch.take<T>(key_size + streams * value_size);
    T* const map = map_scratch.take<T>(rows * (map_stride(sizes) + 2));
    RowSum<T>* const sums = reinterpret_cast<RowSum<T>*>(map + rows * map_stride(sizes));
    std::int64_t packed_head = -1;
    for (std::int64_t item; shares.next(thread, item);) {
      const std::int64_t head = item / blocks, block = item % blocks;
      if (head != packed_head) {
        pack_transposed(key.of(head), key.stride, sizes.keys, sizes.head_size, sign_of<T>(sizes), packed);
        for (int s = 0; s < streams; ++s) {
          pack_rows(values[s].of(head), values[s].stride, sizes.keys, sizes.value_size,
                    packed + key_size + s * value_size);
        }
        packed_head = head;
      }
      const std::int64_t first = sizes.queries * block / blocks, last = sizes.queries * (block + 1) / blocks;
      BCNET_VERSION(instruction_set, attend_rows<T>)(work, head, packed, first, last, map, sums);
    }
  });
}

template <typename T>
void attention_backward(const HeadRows<const T>* grads, HeadRows<const T> query, HeadRows<const T> key,
                        const HeadRows<const T>* values, int streams, const AttentionSizes& sizes,
                        InstructionSet instruction_set, int threads, const AttentionGradients<T>& gradients) {
  BackwardWork<T> work{{}, query, key, {}, streams, sizes, gradients};
  std::copy_n(grads, streams, work.grads);
  std::copy_n(values, streams, work.values);
  const std::int64_t block = block_rows(sizes);
  WorkQueue heads(sizes.heads);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, sizes.heads)), [&](int) {
    T* const workspace = packed_scratch.take<T>(BackwardWorkspace(sizes, block).all());
    for (std::int64_t head; heads.next(head);) {
      BCNET_VERSION(instruction_set, attend_backward<T>)(work, head, block, workspace);
    }
  });
}

#define BCNET_INSTANTIATE(T)                                                                                          \
  template void attention(HeadRows<const T>, HeadRows<const T>, const HeadRows<const T>*, int, const AttentionSizes&, \
                          InstructionSet, int, const HeadRows<T>*, T*);                                               \
  template void attention_backward(const HeadRows<const T>*, HeadRows<const T>, HeadRows<const T>,                    \
                                   const HeadRows<const T>*, int, const AttentionSizes&, InstructionSet, int,         \
                                   const AttentionGradients<T>&);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
