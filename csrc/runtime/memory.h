// Large pieces of memory, and hints: pages that are written for the first time, cache lines that will be read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "simd/simd.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bcnet_fast {

constexpr std::int64_t kLine = 64;  // bytes of a cache line

// Asks for pages of 2 MiB where a large output begins to be written: with the usual 4 KiB, the interruptions on their first
// use take longer than the work itself. The C library takes outputs above 32 MiB from the system anew for every call.
inline void prefer_huge_pages(void* memory, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a wish: no error matters
#else
  (void)memory, (void)bytes;
#endif
}

// Memory from the system, on a page of its own, which goes back to it as a whole: large pieces that live long would leave
// holes among those of the C library, which the process then keeps. Throws std::bad_alloc.
inline std::shared_ptr<char> own_pages(std::size_t bytes) {
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)  // which sees what is beyond memory from operator new
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  prefer_huge_pages(memory, bytes);
  const auto release = [bytes](char* pages) { munmap(pages, bytes); };
#else
  constexpr std::align_val_t line{64};
  void* const memory = ::operator new(bytes, line);
  const auto release = [](char* pages) { ::operator delete(pages, line); };
#endif
  return {static_cast<char*>(memory), release};
}

// Begins to fetch `bytes` bytes into the cache, whether they exist or not; with locality 2 not into its first level. A call of
// it that GCC has not inlined early on counts as one without effect, and is left out.
template <int bytes, int locality = 3>
BCNET_INLINE void prefetch(const void* from) {
#if defined(__GNUC__)
  for (int line = 0; line < bytes; line += kLine) __builtin_prefetch(static_cast<const char*>(from) + line, 0, locality);
#else
  (void)from;
#endif
}

}  // namespace bcnet_fast
