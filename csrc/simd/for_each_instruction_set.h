// Includes simd/operations.h and the header that BCNET_KERNELS names once per instruction set: in the namespace
// bcnet_fast::<set>, compiled for that set. Include the headers that a kernel needs before this one.
//
// Code compiled for a set can use the intrinsics of that set, and need not be inlined into its caller by force.
// BCNET_AVX512_EXTRA lists further features of the namespace avx512, for example ",avx512vnni".

#ifndef BCNET_AVX512_EXTRA
#define BCNET_AVX512_EXTRA ""
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd/vector.h"

#if defined(BCNET_X86)
#if defined(__clang__)
#include <immintrin.h>
#else
// GCC 12 warns of its own header, which leaves masked-out elements undefined (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
#elif defined(__aarch64__) && defined(__GNUC__)
#include <arm_neon.h>
#endif

#define BCNET_AVX2_FEATURES "avx2,fma,bmi,bmi2,popcnt"
#define BCNET_AVX512_FEATURES "avx2,fma,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl" BCNET_AVX512_EXTRA

#define BCNET_TEXT_OF(...) #__VA_ARGS__
#if defined(__clang__)
#define BCNET_BEGIN_TARGET(features) \
  _Pragma(BCNET_TEXT_OF(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define BCNET_END_TARGET _Pragma("clang attribute pop")
#else
#define BCNET_BEGIN_TARGET(features) _Pragma("GCC push_options") _Pragma(BCNET_TEXT_OF(GCC target(features)))
#define BCNET_END_TARGET _Pragma("GCC pop_options")
#endif

namespace bcnet_fast::baseline {
namespace {
constexpr InstructionSet kSet = InstructionSet::baseline;
constexpr int kBytes = kBaselineBytes;
#include "simd/operations.h"
#include BCNET_KERNELS
}  // namespace
}  // namespace bcnet_fast::baseline

#ifdef BCNET_X86

#define BCNET_HAS_AVX2 1
BCNET_BEGIN_TARGET(BCNET_AVX2_FEATURES)
namespace bcnet_fast::avx2 {
namespace {
constexpr InstructionSet kSet = InstructionSet::avx2;
constexpr int kBytes = 32;
#include "simd/operations.h"
#include BCNET_KERNELS
}  // namespace
}  // namespace bcnet_fast::avx2
BCNET_END_TARGET

#define BCNET_HAS_AVX512 1
BCNET_BEGIN_TARGET(BCNET_AVX512_FEATURES)
namespace bcnet_fast::avx512 {
namespace {
constexpr InstructionSet kSet = InstructionSet::avx512;
constexpr int kBytes = 64;
#include "simd/operations.h"
#include BCNET_KERNELS
}  // namespace
}  // namespace bcnet_fast::avx512
BCNET_END_TARGET
#undef BCNET_HAS_AVX512
#undef BCNET_HAS_AVX2

#endif

#undef BCNET_TEXT_OF
#undef BCNET_KERNELS
#undef BCNET_AVX512_EXTRA
