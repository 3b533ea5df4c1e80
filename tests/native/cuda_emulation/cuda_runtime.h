// Stands in for CUDA's header of this name, so that g++ compiles the kernels of csrc/cuda as they are, to run on a CPU.
//
// The blocks of a launch run one after the other, with the threads of a block
// - as fibers that take turns at every barrier and warp function: quick; or
// - with BCNET_EMULATE_WITH_THREADS as real threads, for the thread sanitizer. A __syncthreads orders memory for it. A
//   warp function (shuffle, ballot, reduction) does not, because it does not on a GPU: threads that hand data to each
//   other through memory need a barrier between, or a race is reported.
//
// Here is what the kernels use, and no more: blocks and grids of one dimension, whole warps taking part in every warp
// function, and dynamic shared memory by the name of shared_memory, declared outside of functions. It is filled with
// garbage before each block, and what a launch has not asked for is out of bounds to the address sanitizer. A barrier
// that some threads never reach ends the program with a message.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#ifdef BCNET_EMULATE_WITH_THREADS
#include <thread>
#else
#include <ucontext.h>
#include <csetjmp>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, size)
#define ASAN_UNPOISON_MEMORY_REGION(from, size)
#endif

#define __global__
#define __host__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Decides between code paths of the kernels.
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#endif
#define CUDART_VERSION 13000

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_) : x(x_) {}
};

inline dim3 blockIdx(0), blockDim(1), gridDim(1);

namespace emulation {

constexpr unsigned kWarp = 32;
constexpr std::size_t kSharedLimit = 99 * 1024;

struct Barrier {
  std::atomic<unsigned> arrived{0}, generation{0};
};

struct Thread {
  dim3 index{0};
  unsigned calls = 0;  // of warp functions
#ifndef BCNET_EMULATE_WITH_THREADS
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf place;
  bool started = false;
#endif
};

struct Warp {
  Barrier barrier;
  std::atomic<std::uint32_t> values[2][kWarp];  // for even and odd calls
};

inline std::vector<Thread> threads;
inline std::vector<std::unique_ptr<Warp>> warps;
inline Barrier block_barrier;
inline std::function<void()> kernel_body;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

#ifdef BCNET_EMULATE_WITH_THREADS

inline thread_local Thread* current;
inline void yield() { std::this_thread::yield(); }
inline void progress() {}

inline void run_block() {
  std::vector<std::thread> running;
  for (Thread& thread : threads) {
    running.emplace_back([&thread] {
      current = &thread;
      kernel_body();
    });
  }
  for (std::thread& thread : running) thread.join();
}

#else

inline Thread* current;
inline unsigned finished, idle_turns;
inline jmp_buf caller;
inline void progress() { idle_turns = 0; }

[[noreturn]] inline void resume(Thread& thread) {
  current = &thread;
  if (!thread.started) {
    thread.started = true;
    setcontext(&thread.start);
  }
  _longjmp(thread.place, 1);
}

inline Thread& next_thread() {
  const unsigned next = current->index.x + 1;
  return threads[next == blockDim.x ? 0 : next];
}

inline void yield() {
  if (++idle_turns > 4 * blockDim.x) fail("a barrier or warp function is not reached by all threads");
  if (_setjmp(current->place) == 0) resume(next_thread());
}

inline void fiber() {
  kernel_body();
  progress();
  if (++finished == blockDim.x) _longjmp(caller, 1);
  while (true) yield();
}

inline void run_block() {
  constexpr std::size_t stack_bytes = 64 * 1024;
  finished = idle_turns = 0;
  for (Thread& thread : threads) {
    if (!thread.stack) thread.stack.reset(new char[stack_bytes]);
    ASAN_UNPOISON_MEMORY_REGION(thread.stack.get(), stack_bytes);
    getcontext(&thread.start);
    thread.start.uc_stack = {thread.stack.get(), 0, stack_bytes};
    thread.start.uc_link = nullptr;
    makecontext(&thread.start, fiber, 0);
  }
  if (_setjmp(caller) == 0) resume(threads[0]);
}

#endif

// Waits for `count` threads. The fences order memory in any case, but not in the eyes of the thread sanitizer, which
// does not know them: it sees an order where `orders_memory` alone.
inline void wait(Barrier& barrier, unsigned count, bool orders_memory) {
  const auto both = orders_memory ? std::memory_order_acq_rel : std::memory_order_relaxed;
  const auto release = orders_memory ? std::memory_order_release : std::memory_order_relaxed;
  const auto acquire = orders_memory ? std::memory_order_acquire : std::memory_order_relaxed;
  std::atomic_thread_fence(std::memory_order_acq_rel);
  const unsigned generation = barrier.generation.load(std::memory_order_relaxed);
  if (barrier.arrived.fetch_add(1, both) + 1 == count) {
    barrier.arrived.store(0, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acq_rel);
    barrier.generation.store(generation + 1, release);
    progress();
  } else {
    while (barrier.generation.load(acquire) == generation) yield();
  }
  std::atomic_thread_fence(std::memory_order_acq_rel);
}

// The values that all lanes of the calling thread's warp pass, visible to each of them.
inline const std::atomic<std::uint32_t>* exchange(unsigned mask, std::uint32_t value) {
  if (mask != 0xffffffffu) fail("a warp function without all lanes");
  Warp& warp = *warps[current->index.x / kWarp];
  auto* values = warp.values[current->calls++ % 2];
  values[current->index.x % kWarp].store(value, std::memory_order_relaxed);
  wait(warp.barrier, kWarp, false);
  return values;
}

}  // namespace emulation

#define threadIdx (emulation::current->index)

inline void __syncthreads() { emulation::wait(emulation::block_barrier, blockDim.x, true); }

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const auto* values = emulation::exchange(mask, predicate);
  unsigned result = 0;
  for (unsigned l = 0; l < emulation::kWarp; ++l) result |= values[l].load(std::memory_order_relaxed) << l;
  return result;
}

inline unsigned __shfl_xor_sync(unsigned mask, unsigned value, int lanes) {
  const auto* values = emulation::exchange(mask, value);
  return values[(threadIdx.x ^ static_cast<unsigned>(lanes)) % emulation::kWarp].load(std::memory_order_relaxed);
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  const auto* values = emulation::exchange(mask, value);
  unsigned result = 0;
  for (unsigned lane = 0; lane < emulation::kWarp; ++lane) {
    const unsigned other = values[lane].load(std::memory_order_relaxed);
    result = other > result ? other : result;
  }
  return result;
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const auto* values = emulation::exchange(mask, value);
  unsigned result = 0;
  for (unsigned lane = 0; lane < emulation::kWarp; ++lane) result += values[lane].load(std::memory_order_relaxed);
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __brev(unsigned bits) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (bits >> i & 1) << (31 - i);
  return reversed;
}

alignas(16) inline unsigned char shared_memory[emulation::kSharedLimit];

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
struct cudaFuncAttributes {};

inline const char* cudaGetErrorString(cudaError_t) { return "invalid argument"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  return bytes <= static_cast<int>(emulation::kSharedLimit) ? cudaSuccess : cudaErrorInvalidValue;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = static_cast<int>(emulation::kSharedLimit);
  return cudaSuccess;
}

template <typename Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes, cudaStream_t) {
  using namespace emulation;
  if (block.x == 0 || block.x > 1024 || block.x % kWarp != 0 || grid.x == 0 || shared_bytes > kSharedLimit) {
    return cudaErrorInvalidValue;
  }
  kernel_body = [&] { kernel(*static_cast<Argument*>(arguments[0])); };
  gridDim = grid;
  blockDim = block;
  ASAN_POISON_MEMORY_REGION(shared_memory + shared_bytes, kSharedLimit - shared_bytes);
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx = dim3(b);
    std::memset(shared_memory, 0xa5, shared_bytes);
    if (threads.size() != block.x) threads = std::vector<Thread>(block.x);
    warps.clear();
    for (unsigned w = 0; w < block.x / kWarp; ++w) warps.push_back(std::make_unique<Warp>());
    for (unsigned t = 0; t < block.x; ++t) {
      threads[t].index = dim3(t);
      threads[t].calls = 0;
#ifndef BCNET_EMULATE_WITH_THREADS
      threads[t].started = false;
#endif
    }
    run_block();
  }
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, kSharedLimit);
  return cudaSuccess;
}
