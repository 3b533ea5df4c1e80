// Large blocks of memory, huge pages and prefetching.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "simd/instruction_set.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bcnet_fast {

constexpr std::int64_t kLine = 64;  // bytes of a cache line

// Asks for pages of 2 MiB for a large output. With pages of 4 KiB, the page faults on first use take longer than the
// work: the C library gets outputs above 32 MiB from the system anew for every call.
inline void prefer_huge_pages(void* memory, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{2} << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: errors do not matter
#else
  (void)memory, (void)bytes;
#endif
}

// Memory on pages of its own, which return to the system as a whole. Large blocks from the C library's heap would leave
// holes there, which the process keeps. Throws std::bad_alloc.
inline std::shared_ptr<char> own_pages(std::size_t bytes) {
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)  // it checks only memory from operator new
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

// Prefetches `bytes` bytes, existing or not; with locality 2, not into the first-level cache. Inlined by force, because
// GCC removes a call that it has not inlined early as one without effect.
template <int bytes, int locality = 3>
BCNET_INLINE void prefetch(const void* from) {
#if defined(__GNUC__)
  for (int line = 0; line < bytes; line += kLine)
    __builtin_prefetch(static_cast<const char*>(from) + line, 0, locality);
#else
  (void)from;
#endif
}

}  // namespace bcnet_fast
