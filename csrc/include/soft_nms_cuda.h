// Soft-NMS on a CUDA device, all sets in one launch. Semantics, arguments and bits are those of soft_nms.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "include/soft_nms.h"

namespace bcnet_fast {

// How a batch is launched. It depends on sizes only, so that nothing on the device has to be read.
struct SoftNmsPlan {
  int threads;                     // of a block, which works on one set
  std::int64_t shared_candidates;  // sets with more candidates in play use the workspace
  std::size_t shared_bytes;        // of a block
  std::size_t workspace_bytes;     // of device memory, aligned to 16; 0 when every set fits into shared memory
};

// Plans `candidates` candidates in `sets` sets of at most `largest` each (a bound will do).
// shared_limit: bytes of shared memory that a block may use, at most soft_nms_shared_limit.
template <typename T>
SoftNmsPlan plan_soft_nms(std::int64_t candidates, std::int64_t sets, std::int64_t largest, std::size_t shared_limit);

// The bytes of shared memory that a block on `device` can have. Throws std::runtime_error if there is no such device,
// or if nothing in this build runs on it.
std::size_t soft_nms_shared_limit(int device);

// Starts Soft-NMS on `stream`, a cudaStream_t of `device`. Returns without waiting for the result and allocates no
// memory, so that it can be captured in a CUDA graph. Throws std::runtime_error when CUDA reports an error.
//
// Requires: pointers to memory on `device`, a workspace of plan.workspace_bytes, offsets in order, a plan for the
// largest set. The kernel checks the values: a set with one that is not finite, or of negative length, gets the count
// -1 and no picks.
//
// A set may be padded at its end with scores of 0 or below min_score: they are read once and then ignored.
template <typename T>
void soft_nms_cuda(const SoftNmsInputs<T>& inputs, const SoftNmsOptions& options, const SoftNmsPlan& plan, int device,
                   void* stream, void* workspace, const SoftNmsOutputs<T>& outputs);

}  // namespace bcnet_fast
