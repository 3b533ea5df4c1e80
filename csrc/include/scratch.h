// Memory of a thread that is kept from call to call, so that inference allocates nothing once it is warm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace bcnet_fast {

constexpr std::int64_t kLineFloats = 16;  // in a cache line

// Rows of a scratch matrix lie this far apart: in whole cache lines, and not a power of two, at which the rows of a tile
// would throw each other out of the cache.
constexpr std::int64_t scratch_stride(std::int64_t columns) {
  const std::int64_t lines = (columns + kLineFloats - 1) / kLineFloats;
  return (lines | 1) * kLineFloats;
}

// Grows to what was asked for and keeps it. Throws std::bad_alloc.
class Scratch {
 public:
  template <typename T>
  T* take(std::int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T) + 64;
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(new char[bytes]);
      size_ = bytes;
    }
    const auto address = (reinterpret_cast<std::uintptr_t>(memory_.get()) + 63) / 64 * 64;
    return reinterpret_cast<T*>(address);
  }

 private:
  std::unique_ptr<char[]> memory_;
  std::size_t size_ = 0;
};

}  // namespace bcnet_fast
