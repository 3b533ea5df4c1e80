// The instruction sets that code is compiled for, and the choice among them at run time.
//
// A kernel lives in a header without an include guard. simd/for_each_instruction_set.h includes it once per instruction
// set, in a namespace of that name: bcnet_fast::baseline, ::avx2, ::avx512. BCNET_VERSION picks a function of one of
// them.
#pragma once

#include <vector>

#if defined(__CUDACC__)
#define BCNET_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define BCNET_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define BCNET_INLINE __forceinline
#else
#define BCNET_INLINE inline
#endif

// For code that is called from several places of a kernel and is too long to be copied into each.
#if defined(__GNUC__)
#define BCNET_NOINLINE __attribute__((noinline))
#else
#define BCNET_NOINLINE
#endif

#if defined(__GNUC__) && defined(__x86_64__) && !defined(__CUDACC__)
#define BCNET_X86 1
#endif

namespace bcnet_fast {

enum class InstructionSet { baseline, avx2, avx512 };

// Those that this processor has and this compiler could use, best first.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> usable;
#ifdef BCNET_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) usable.push_back(InstructionSet::avx512);
  if (avx2) usable.push_back(InstructionSet::avx2);
#endif
  usable.push_back(InstructionSet::baseline);
  return usable;
}

inline const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

// BCNET_VERSION(set, function<T>)(arguments...): calls the function of that instruction set's namespace.
#ifdef BCNET_X86
#define BCNET_VERSION(set, ...)                                        \
  ((set) == ::bcnet_fast::InstructionSet::avx512 ? avx512::__VA_ARGS__ \
   : (set) == ::bcnet_fast::InstructionSet::avx2 ? avx2::__VA_ARGS__   \
                                                 : baseline::__VA_ARGS__)
#else
#define BCNET_VERSION(set, ...) (&baseline::__VA_ARGS__)
#endif

}  // namespace bcnet_fast
