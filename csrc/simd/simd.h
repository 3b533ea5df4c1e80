// SIMD in three pieces: function multiversioning, short vectors as a type, and an exponential.
//
// A kernel is a BCNET_INLINE template over the bytes in a vector register. BCNET_VERSIONS instantiates it in a small
// function per instruction set, marked with its BCNET_TARGET, and picks one of them at run time. With as many
// bytes as one element has, a "vector" is a plain number: what compilers other than GCC and Clang get, and CUDA code.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
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

#if defined(__GNUC__) && defined(__x86_64__)
#define BCNET_X86 1
#define BCNET_TARGET_AVX2 __attribute__((target("avx2,fma,bmi,bmi2")))
#define BCNET_TARGET_AVX512 __attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")))
#endif

// Instructions by name, where what GCC makes of plain code is longer. Clang makes better code, and takes no vector that is
// larger than what a function without a target has.
#if defined(BCNET_X86) && !defined(__clang__) && !defined(__CUDACC__)
#define BCNET_BY_NAME 1
#endif

// Hides from the compiler how a vector was made.
#ifdef BCNET_BY_NAME
#define BCNET_OPAQUE(vector) asm("" : "+x"(vector))
#else
#define BCNET_OPAQUE(vector) (void)(vector)
#endif

namespace bcnet_fast {

enum class InstructionSet { baseline, avx2, avx512 };

// The one whose vectors have so many bytes.
template <int bytes>
constexpr InstructionSet kSetOf = bytes == 64   ? InstructionSet::avx512
                                  : bytes == 32 ? InstructionSet::avx2
                                                : InstructionSet::baseline;

// Those that this processor has and this compiler could use, best first.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> usable;
#ifdef BCNET_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
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

// Vector<T, bytes>: `bytes` bytes of elements T. Arithmetic and comparisons work element by element; the result of a
// comparison selects in `mask ? a : b`.
template <typename T, int bytes>
struct VectorType {
  static_assert(bytes == sizeof(T), "vectors need GCC or Clang");
  using type = T;
};

#if defined(__GNUC__)
constexpr int kBaselineBytes = 16;
#define BCNET_VECTOR(T, bytes)                       \
  template <>                                        \
  struct VectorType<T, bytes> {                      \
    typedef T type __attribute__((vector_size(bytes))); \
  };
#define BCNET_VECTORS(T) BCNET_VECTOR(T, 16) BCNET_VECTOR(T, 32) BCNET_VECTOR(T, 64)
BCNET_VECTORS(float)
BCNET_VECTORS(double)
BCNET_VECTORS(std::int32_t)
BCNET_VECTORS(std::int64_t)
BCNET_VECTORS(std::uint32_t)
BCNET_VECTORS(std::uint64_t)
#undef BCNET_VECTORS
#undef BCNET_VECTOR
#else
constexpr int kBaselineBytes = 0;  // one element
#endif

template <typename T, int bytes>
using Vector = typename VectorType<T, (bytes > static_cast<int>(sizeof(T)) ? bytes : static_cast<int>(sizeof(T)))>::type;

template <typename To, typename From>
BCNET_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename V, typename T>
BCNET_INLINE V load(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename V, typename T>
BCNET_INLINE void store(T* to, V vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

// A number in all elements of a vector. By name on x86, because GCC 12 builds a vector of equal elements one by one in a
// function with a target; from a constant, the sum with zeros does.
template <typename V, typename T>
BCNET_INLINE V splat(T value) {
#ifdef BCNET_BY_NAME
  if constexpr (sizeof(V) >= 32) {
    if (!__builtin_constant_p(value)) {
      const Vector<T, 16> first{value};
      V vector;
      if constexpr (sizeof(T) == 4) {
        asm("vpbroadcastd %1, %0" : "=v"(vector) : "v"(first));
      } else {
        asm("vpbroadcastq %1, %0" : "=v"(vector) : "v"(first));
      }
      return vector;
    }
  }
#endif
  return V{} + value;
}

// A number in all elements of a vector, straight from memory.
template <typename T, int bytes>
BCNET_INLINE Vector<T, bytes> broadcast(const T* from) {
#ifdef BCNET_BY_NAME
  if constexpr (bytes >= 32) {
    Vector<T, bytes> vector;
    if constexpr (sizeof(T) == 4) {
      asm("vbroadcastss %1, %0" : "=v"(vector) : "m"(*from));
    } else {
      asm("vbroadcastsd %1, %0" : "=v"(vector) : "m"(*from));
    }
    return vector;
  }
#endif
  return splat<Vector<T, bytes>>(*from);
}

// a > b ? a : b and a < b ? a : b, so b where one is NaN. Compilers make two instructions of that for floating point,
// which is why they are named for x86; not for 16 bytes, of which a function may have to use another encoding.
template <typename V>
BCNET_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}
template <typename V>
BCNET_INLINE V minimum(V a, V b) {
  return a < b ? a : b;
}
#ifdef BCNET_BY_NAME
#define BCNET_EXTREME(name, T, bytes, code)                                    \
  template <>                                                                  \
  BCNET_INLINE Vector<T, bytes> name(Vector<T, bytes> a, Vector<T, bytes> b) { \
    Vector<T, bytes> result;                                                   \
    asm(code : "=v"(result) : "v"(a), "vm"(b));                                \
    return result;                                                             \
  }
#define BCNET_EXTREMES(T, letter)                             \
  BCNET_EXTREME(maximum, T, 32, "vmaxp" letter " %2, %1, %0") \
  BCNET_EXTREME(minimum, T, 32, "vminp" letter " %2, %1, %0") \
  BCNET_EXTREME(maximum, T, 64, "vmaxp" letter " %2, %1, %0") \
  BCNET_EXTREME(minimum, T, 64, "vminp" letter " %2, %1, %0")
BCNET_EXTREMES(float, "s")
BCNET_EXTREMES(double, "d")
#undef BCNET_EXTREMES
#undef BCNET_EXTREME
#endif

struct Plus {
  template <typename V>
  static BCNET_INLINE V of(V a, V b) {
    return a + b;
  }
};

struct Maximum {
  template <typename V>
  static BCNET_INLINE V of(V a, V b) {
    return maximum(a, b);
  }
};

// The elements of a vector as one: the upper half is taken with the lower, until one is left.
template <typename Operation, typename T, typename V>
BCNET_INLINE T reduced(V vector) {
  if constexpr (sizeof(V) > 16) {
    using Half = Vector<T, sizeof(V) / 2>;
    Half halves[2];
    std::memcpy(halves, &vector, sizeof(vector));
    return reduced<Operation, T>(Operation::of(halves[0], halves[1]));
  } else {
    if constexpr (sizeof(V) == 16) {
      using Pair = Vector<std::uint64_t, sizeof(V)>;
      const Pair pair = bit_cast<Pair>(vector);
      vector = Operation::of(vector, bit_cast<V>(Pair{pair[1], pair[0]}));
      if constexpr (sizeof(T) == 4) vector = Operation::of(vector, bit_cast<V>(bit_cast<Pair>(vector) >> 32));
    }
    T first;
    std::memcpy(&first, &vector, sizeof(first));
    return first;
  }
}

template <typename T, typename V>
BCNET_INLINE T sum_of(V vector) {
  return reduced<Plus, T>(vector);
}

// The largest element. With NaN among them it may be any.
template <typename T, typename V>
BCNET_INLINE T largest(V vector) {
  return reduced<Maximum, T>(vector);
}

// Bit i: the sign of element i, which is set for a negative number.
template <typename T, typename V>
BCNET_INLINE std::uint32_t signs_of(V vector) {
#ifdef BCNET_BY_NAME
  if constexpr (sizeof(V) == 64 && sizeof(T) == 4) {
    std::uint16_t mask;
    asm("vpmovd2m %1, %0" : "=Yk"(mask) : "v"(vector));
    return mask;
  } else if constexpr (sizeof(V) == 64) {
    std::uint16_t mask;
    asm("vpmovq2m %1, %0" : "=Yk"(mask) : "v"(vector));
    return mask;
  } else if constexpr (sizeof(V) == 32 && sizeof(T) == 4) {
    std::uint32_t signs;
    asm("vmovmskps %1, %0" : "=r"(signs) : "x"(vector));
    return signs;
  } else if constexpr (sizeof(V) == 32) {
    std::uint32_t signs;
    asm("vmovmskpd %1, %0" : "=r"(signs) : "x"(vector));
    return signs;
  }
#endif
  constexpr int lanes = sizeof(V) / sizeof(T);
  std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> elements[lanes];
  std::memcpy(elements, &vector, sizeof(vector));
  std::uint32_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= (elements[i] < 0 ? 1u : 0u) << i;
  return bits;
}

// The lowest bit that is set, of a number other than 0.
BCNET_INLINE int lowest_bit(std::uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_ctz(bits);
#else
  int lowest = 0;
  while (!(bits >> lowest & 1)) ++lowest;
  return lowest;
#endif
}

BCNET_INLINE int bit_count(std::uint32_t bits) {
#if defined(__GNUC__)
  return __builtin_popcount(bits);
#else
  int count = 0;
  for (; bits; bits &= bits - 1) ++count;
  return count;
#endif
}

// For every number of 8 bits, which of them are set, in order, and how many.
struct SetBits {
  std::uint8_t places[256][8] = {};
  std::uint8_t count[256] = {};

  constexpr SetBits() {
    for (int bits = 0; bits < 256; ++bits) {
      for (int i = 0; i < 8; ++i) {
        if (bits >> i & 1) places[bits][count[bits]++] = static_cast<std::uint8_t>(i);
      }
    }
  }
};

// Writes first + i to `to` for every element i of a vector whose sign is set, in order; returns how many. As many numbers as
// the vector has elements, and at least 8, are written in any case.
template <typename T, typename V>
BCNET_INLINE std::int32_t append_negative(V vector, std::int32_t first, std::int32_t* to) {
  static constexpr SetBits set;
  const std::uint32_t signs = signs_of<T>(vector);
#ifdef BCNET_BY_NAME
  if constexpr (sizeof(V) == 64) {
    alignas(64) static constexpr std::int32_t ascending[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    using Indices = Vector<std::int32_t, 256 / sizeof(T)>;
    Indices indices = load<Indices>(ascending) + first;
    asm("vpcompressd %0, %0 %{%1%}%{z%}" : "+v"(indices) : "Yk"(static_cast<std::uint16_t>(signs)));
    store(to, indices);
    return bit_count(signs);
  }
#endif
  std::int32_t count = 0;
  for (int part = 0; part < static_cast<int>(sizeof(V) / sizeof(T)); part += 8) {
    const std::uint32_t bits = signs >> part & 255;
    for (int i = 0; i < 8; ++i) to[count + i] = first + part + set.places[bits][i];
    count += set.count[bits];
  }
  return count;
}

// c0 + c1 x + c2 x^2 + ..., an even number of terms, as (c0 + c1 x) + x^2 ((c2 + c3 x) + x^2 (...)): about half as long a
// chain of dependent operations as Horner's rule.
template <typename V, typename T>
BCNET_INLINE V polynomial(V x, V, T c0, T c1) {
  return c0 + x * c1;
}
template <typename V, typename T, typename... Rest>
BCNET_INLINE V polynomial(V x, V x2, T c0, T c1, Rest... rest) {
  return (c0 + x * c1) + x2 * polynomial(x, x2, rest...);
}

// exp(x) for x <= 0, as a fixed sequence of additions and multiplications: at most 1.03 ulp off, and the same bits on every
// machine, if the compiler does not contract them to FMA. Results may be denormal or 0.
//
// exp(x) = 2^n exp(r), with n the integer nearest to x / ln 2 and exp(r) by its Taylor series. Adding `round`, 1.5 times
// the weight of the hidden bit, leaves n in the low bits; the high part of ln 2 has few bits, so that its product with n
// is exact. 2^n is made as 2^(n + lift) 2^-lift, because 2^n itself may be too small for a normal number.
template <typename V>
BCNET_INLINE V exp_nonpositive(V x, float) {
  using Bits = Vector<std::uint32_t, sizeof(V)>;
  constexpr float lowest = -104.0f;  // exp() of it rounds to 0
  constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, round = 12582912.0f;
  constexpr std::uint32_t bias = 127, lift = 64;
  constexpr float lower = 5.42101086e-20f;
  x = maximum(x, splat<V>(lowest));
  const V shifted = x * log2e + round;
  const V n = shifted - round;
  const V r = (x - n * ln2_high) - n * ln2_low;
  const V r2 = r * r;
  const V tail = polynomial(r, r2, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040);
  const V power = bit_cast<V>((bit_cast<Bits>(shifted) << 23) + ((bias + lift) << 23));
  return (1.0f + (r + r2 * tail)) * power * lower;
}

template <typename V>
BCNET_INLINE V exp_nonpositive(V x, double) {
  using Bits = Vector<std::uint64_t, sizeof(V)>;
  constexpr double lowest = -746.0;
  constexpr double log2e = 1.4426950408889634, ln2_high = 0.69314718036912382, ln2_low = 1.9082149292705877e-10;
  constexpr double round = 6755399441055744.0;
  constexpr std::uint64_t bias = 1023, lift = 128;
  constexpr double lower = 2.938735877055719e-39;
  x = maximum(x, splat<V>(lowest));
  const V shifted = x * log2e + round;
  const V n = shifted - round;
  const V r = (x - n * ln2_high) - n * ln2_low;
  const V r2 = r * r;
  const V tail = polynomial(r, r2, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                            1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0);
  const V power = bit_cast<V>((bit_cast<Bits>(shifted) << 52) + ((bias + lift) << 52));
  return (1.0 + (r + r2 * tail)) * power * lower;
}

// 2^y for y from -125 (double: -1021) to 0, up to 2 ulp off; NaN of NaN. With n the integer nearest to y, 2^(y - n) is a
// polynomial of least error, for double a Taylor series, and 2^n is made of its bits: a product, in which any NaN stays one.
template <typename V>
BCNET_INLINE V exp2_nonpositive(V y, float) {
  using Bits = Vector<std::uint32_t, sizeof(V)>;
  constexpr float round = 12582912.0f;  // as above
  const V shifted = y + round;
  const V f = y - (shifted - round);
  const V power = polynomial(f, f * f, 1.00000007f, 0.693146944f, 0.240221202f, 0.0555071309f, 0.00967554096f, 0.00132764725f);
  return power * bit_cast<V>((bit_cast<Bits>(shifted) << 23) + (std::uint32_t{127} << 23));
}

template <typename V>
BCNET_INLINE V exp2_nonpositive(V y, double) {
  using Bits = Vector<std::uint64_t, sizeof(V)>;
  constexpr double round = 6755399441055744.0;
  const V shifted = y + round;
  const V f = y - (shifted - round);
  const V power = polynomial(f, f * f, 1.0, 0.6931471805599453, 0.2402265069591007, 0.05550410866482158, 0.009618129107628477,
                             0.0013333558146428443, 0.00015403530393381608, 1.5252733804059839e-05, 1.3215486790144307e-06,
                             1.0178086009239699e-07, 7.054911620801123e-09, 4.44553827187081e-10, 2.5678435993488202e-11,
                             1.3691488853904128e-12);
  return power * bit_cast<V>((bit_cast<Bits>(shifted) << 52) + (std::uint64_t{1023} << 52));
}

// Defines name_for(set, ...), which calls the template name<bytes>(...) for the vectors of an instruction set, and
// name_with<bytes>(...) for use in such templates: a call of that function, where name<bytes>(...) would be a copy.
#ifdef BCNET_X86
#define BCNET_VERSIONS(name)                                                      \
  template <typename... A>                                                        \
  BCNET_TARGET_AVX512 auto name##_avx512(A&&... arguments) {                      \
    return name<64>(arguments...);                                                \
  }                                                                               \
  template <typename... A>                                                        \
  BCNET_TARGET_AVX2 auto name##_avx2(A&&... arguments) {                          \
    return name<32>(arguments...);                                                \
  }                                                                               \
  template <typename... A>                                                        \
  auto name##_for(InstructionSet set, A&&... arguments) {                         \
    if (set == InstructionSet::avx512) return name##_avx512(arguments...);        \
    if (set == InstructionSet::avx2) return name##_avx2(arguments...);            \
    return name<kBaselineBytes>(arguments...);                                    \
  }                                                                               \
  template <int bytes, typename... A>                                             \
  auto name##_with(A&&... arguments) {                                            \
    if constexpr (bytes == 64) return name##_avx512(arguments...);                \
    if constexpr (bytes == 32) return name##_avx2(arguments...);                  \
    if constexpr (bytes < 32) return name<bytes>(arguments...);                   \
  }
#else
#define BCNET_VERSIONS(name)                                                      \
  template <typename... A>                                                        \
  auto name##_for(InstructionSet, A&&... arguments) {                             \
    return name<kBaselineBytes>(arguments...);                                    \
  }                                                                               \
  template <int bytes, typename... A>                                             \
  auto name##_with(A&&... arguments) {                                            \
    return name<bytes>(arguments...);                                             \
  }
#endif

}  // namespace bcnet_fast
