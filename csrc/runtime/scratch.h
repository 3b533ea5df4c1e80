// Memory that a thread keeps from call to call, so that inference allocates nothing once it is warm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "runtime/memory.h"

namespace bcnet_fast {

constexpr std::int64_t kLineFloats = 16;  // in a cache line

// Elements from row to row of a scratch matrix: whole cache lines, and not a power of two, at which the rows of a tile
// would evict each other from the cache.
constexpr std::int64_t scratch_stride(std::int64_t columns) {
  const std::int64_t lines = (columns + kLineFloats - 1) / kLineFloats;
  return (lines | 1) * kLineFloats;
}

// Grows to the largest request and keeps that memory, on pages of its own. Throws std::bad_alloc.
class Scratch {
 public:
  template <typename T>
  T* take(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;  // if the next line throws
      memory_ = own_pages(bytes);
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  std::shared_ptr<char> memory_;
  std::size_t size_ = 0;
};

}  // namespace bcnet_fast
