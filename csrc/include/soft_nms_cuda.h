// Soft-NMS on a CUDA device, all sets in one launch. Semantics, arguments and bits are those of soft_nms.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "include/soft_nms.h"

namespace bcnet_fast {

// How a batch is launched, from sizes alone: nothing that lies on the device is looked at.
struct SoftNmsPlan {
  int threads;                    // of a block, which works on one set
  std::int64_t shared_candidates;  // sets of more candidates in play lie in the workspace
  std::size_t shared_bytes;       // of a block
  std::size_t workspace_bytes;    // of device memory, aligned to 16; 0 when every set fits into shared memory
};

// For `candidates` in `sets` sets of at most `largest` (a bound will do), with elements T and at most `shared_limit`
// bytes of shared memory in a block (soft_nms_shared_limit, or less).
template <typename T>
SoftNmsPlan plan_soft_nms(std::int64_t candidates, std::int64_t sets, std::int64_t largest, std::size_t shared_limit);

// The bytes of shared memory that a block on `device` can have. Throws std::runtime_error without such a device, or
// when nothing in this build runs on it, as does the function below when CUDA reports an error.
std::size_t soft_nms_shared_limit(int device);

// Every pointer is of memory on `device`, with the shapes of soft_nms in soft_nms.h; `stream` is a cudaStream_t of it.
// Returns without waiting for the result and takes no memory, so that it can be captured in a CUDA graph.
//
// The caller has checked that offsets are in order, and planned for the largest set. Values are checked by the kernel:
// a set with one that is not finite, or of negative length, gets the count -1 and no picks.
//
// A set may be padded at its end with scores below min_score, or of 0: they are read once and then left out.
template <typename T>
void soft_nms_cuda(const T* segments, const T* scores, const std::int64_t* offsets, std::int64_t candidates,
                   std::int64_t sets, const SoftNmsOptions& options, const SoftNmsPlan& plan, int device, void* stream,
                   void* workspace, std::int64_t* indices, T* picked_scores, std::int64_t* counts);

}  // namespace bcnet_fast
