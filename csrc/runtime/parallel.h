// A minimal parallel loop, on the threads of the OpenMP runtime that PyTorch has loaded: they are awake already, and a
// second set of threads would compete with them for the processor, because OpenMP threads wait by spinning. The runtime
// is looked up by name on first use, so that the extension links to none. Without a runtime, or in a forked process
// (where it would wait forever for the threads of the parent), threads are started for each loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif

namespace bcnet_fast {

// Two functions of GCC's OpenMP runtime, which LLVM's and Intel's have too: one calls function(data) in up to `threads`
// threads, the other returns the number of the calling thread.
struct OpenMP {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_number)() = nullptr;

  static const OpenMP& found() {
    static const OpenMP runtime = [] {
      OpenMP looked_up;
#if defined(__linux__)
      looked_up.parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
      looked_up.thread_number = reinterpret_cast<decltype(thread_number)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
#endif
      return looked_up;
    }();
    return runtime;
  }
};

#if defined(__linux__)
inline const pid_t loaded_in = getpid();
#endif

// Whether this process was forked from the one that loaded the extension.
inline bool forked() {
#if defined(__linux__)
  return getpid() != loaded_in;
#else
  return false;
#endif
}

// Calls body(0), ..., body(threads - 1), each in a thread of its own; the calling thread runs body(0), and with OpenMP
// a number means the same thread in every call. May get fewer threads and make fewer calls, so body takes its work from
// a WorkQueue or from WorkShares. Rethrows the first exception of a body once all have returned.
template <typename Body>
void run_in_threads(int threads, const Body& body) {
  if (threads <= 1) return body(0);
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  // An exception must not leave a thread of the OpenMP runtime.
  const auto guarded = [&](int thread) {
    try {
      body(thread);
    } catch (...) {
      if (!failed.exchange(true)) failure = std::current_exception();
    }
  };
  const OpenMP& openmp = OpenMP::found();
  if (openmp.parallel && openmp.thread_number && !forked()) {
    using Guarded = decltype(guarded);
    const auto join = [](void* data) { (*static_cast<Guarded*>(data))(OpenMP::found().thread_number()); };
    openmp.parallel(join, const_cast<void*>(static_cast<const void*>(&guarded)), static_cast<unsigned>(threads), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(static_cast<std::size_t>(threads - 1));
    for (int i = 1; i < threads; ++i) {
      try {
        others.emplace_back([&guarded, i] { guarded(i); });
      } catch (const std::exception&) {
        break;  // The system allows no more threads: the running ones finish the work.
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

// Hands out 0, 1, ..., count - 1, each to one thread: first a share of its own, in order, then the rest of others'
// shares. For work that moves much memory: successive calls find their data in the same core's cache, and memory that
// moves from core to core is written at half the rate.
class WorkShares {
 public:
  WorkShares(std::int64_t count, int threads) : threads_(std::max(1, threads)), shares_(new Share[threads_]) {
    for (int t = 0; t < threads_; ++t) {
      shares_[t].next = count * t / threads_;
      shares_[t].end = count * (t + 1) / threads_;
    }
  }
  bool next(int thread, std::int64_t& item) {
    for (int i = 0; i < threads_; ++i) {
      Share& share = shares_[(thread + i) % threads_];
      item = share.next.fetch_add(1, std::memory_order_relaxed);
      if (item < share.end) return true;
    }
    return false;
  }

 private:
  struct alignas(64) Share {  // a cache line each
    std::atomic<std::int64_t> next;
    std::int64_t end;
  };
  const int threads_;
  const std::unique_ptr<Share[]> shares_;
};

}  // namespace bcnet_fast
