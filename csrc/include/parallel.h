// A minimal parallel loop. OpenMP is left out on purpose: PyTorch brings an OpenMP runtime of its own, and a second one
// in the same process would spin against it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace bcnet_fast {

// Calls body(0), ..., body(threads - 1), each in a thread of its own; the calling thread is thread 0. body fetches its
// work from a WorkQueue, so that all of it is done however many threads really start. body must not throw.
template <typename Body>
void run_in_threads(int threads, const Body& body) {
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(std::max(threads - 1, 0)));
  for (int i = 1; i < threads; ++i) {
    try {
      others.emplace_back([&body, i] { body(i); });
    } catch (const std::exception&) {
      break;  // The machine allows no more threads: those that run finish the work.
    }
  }
  body(0);
  for (std::thread& other : others) other.join();
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
