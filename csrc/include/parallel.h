// A minimal parallel loop, on the threads of the OpenMP runtime that PyTorch has brought into the process: they are awake
// already, and a second set of threads would compete with them for the processor, since OpenMP's wait by spinning. The
// runtime is looked up by name when first needed, so that the extension links to none; without one, threads are started.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#endif

namespace bcnet_fast {

// The entry of GCC's OpenMP runtime, which LLVM's and Intel's have too: calls function(data) in up to `threads` threads.
using OpenMPParallel = void (*)(void (*function)(void*), void* data, unsigned threads, unsigned flags);

inline OpenMPParallel openmp_parallel() {
#if defined(__linux__)
  static const auto found = reinterpret_cast<OpenMPParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#else
  return nullptr;
#endif
}

// Calls body(0), ..., body(threads - 1), each in a thread of its own; the calling thread runs one of them. Fewer calls
// are made where fewer threads can be had, so body fetches its work from a WorkQueue. What a body throws is thrown
// again once all have returned; of several, the first.
template <typename Body>
void run_in_threads(int threads, const Body& body) {
  if (threads <= 1) return body(0);
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  // No thread of a runtime may end by an exception.
  const auto guarded = [&](int thread) {
    try {
      body(thread);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  if (const OpenMPParallel parallel = openmp_parallel()) {
    struct Team {
      decltype(guarded)& body;
      std::atomic<int> joined{0};
    } team{guarded};
    const auto join = [](void* data) {
      Team& team = *static_cast<Team*>(data);
      team.body(team.joined.fetch_add(1, std::memory_order_relaxed));
    };
    parallel(join, &team, static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) {
      try {
        others.emplace_back([&guarded, i] { guarded(i); });
      } catch (const std::exception&) {
        break;  // The machine allows no more threads: those that run finish the work.
      }
    }
    guarded(0);
    for (std::thread& other : others) other.join();
  }
  if (failure) std::rethrow_exception(failure);
}

// Hands out 0, 1, ..., count - 1, each to one thread.
class WorkQueue {
 public:
  explicit WorkQueue(std::int64_t count) : count_(count) {}
  bool next(std::int64_t& item) {
    item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_;
  }

 private:
  const std::int64_t count_;
  std::atomic<std::int64_t> next_{0};
};

}  // namespace bcnet_fast
