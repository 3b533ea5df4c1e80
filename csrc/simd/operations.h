// Operations on the vectors of one instruction set: kBytes bytes, or shorter ones. Included once per instruction set,
// by simd/for_each_instruction_set.h; CUDA code includes it for plain numbers.

template <typename T>
using Vec = Vector<T, kBytes>;

// Elements of T in a vector.
template <typename T>
constexpr int kWidth = static_cast<int>(sizeof(Vec<T>) / sizeof(T));

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

// A number in all elements. Named instructions, because GCC 12 builds a generic vector of equal numbers one by one.
template <typename V, typename T>
BCNET_INLINE V splat(T value) {
#ifdef BCNET_HAS_AVX512
  if constexpr (std::is_same_v<V, Vector<float, 64>>) return bit_cast<V>(_mm512_set1_ps(value));
  if constexpr (std::is_same_v<V, Vector<double, 64>>) return bit_cast<V>(_mm512_set1_pd(value));
  if constexpr (std::is_same_v<V, Vector<std::int32_t, 64>>) return bit_cast<V>(_mm512_set1_epi32(value));
  if constexpr (std::is_same_v<V, Vector<std::int64_t, 64>>) return bit_cast<V>(_mm512_set1_epi64(value));
#endif
#ifdef BCNET_HAS_AVX2
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return bit_cast<V>(_mm256_set1_ps(value));
  if constexpr (std::is_same_v<V, Vector<double, 32>>) return bit_cast<V>(_mm256_set1_pd(value));
  if constexpr (std::is_same_v<V, Vector<std::int32_t, 32>>) return bit_cast<V>(_mm256_set1_epi32(value));
  if constexpr (std::is_same_v<V, Vector<std::int64_t, 32>>) return bit_cast<V>(_mm256_set1_epi64x(value));
#endif
  return V{} + value;
}

// a b + c of vectors or numbers: rounded once where the instruction set has such an instruction, else twice. Everything
// else is rounded operation by operation, so that bits do not depend on what a compiler chooses to fuse.
template <typename V>
BCNET_INLINE V multiply_add(V a, V b, V c) {
#if defined(BCNET_HAS_AVX2)
  if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, c);
  if constexpr (std::is_same_v<V, double>) return __builtin_fma(a, b, c);
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return bit_cast<V>(_mm256_fmadd_ps(a, b, c));
  if constexpr (std::is_same_v<V, Vector<double, 32>>) return bit_cast<V>(_mm256_fmadd_pd(a, b, c));
#if defined(BCNET_HAS_AVX512)
  if constexpr (std::is_same_v<V, Vector<float, 64>>) return bit_cast<V>(_mm512_fmadd_ps(a, b, c));
  if constexpr (std::is_same_v<V, Vector<double, 64>>) return bit_cast<V>(_mm512_fmadd_pd(a, b, c));
#endif
#elif defined(__aarch64__) && defined(__GNUC__)
  if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, c);
  if constexpr (std::is_same_v<V, double>) return __builtin_fma(a, b, c);
  if constexpr (std::is_same_v<V, Vector<float, 16>>) return bit_cast<V>(vfmaq_f32(c, a, b));
  if constexpr (std::is_same_v<V, Vector<double, 16>>) return bit_cast<V>(vfmaq_f64(c, a, b));
#endif
  return a * b + c;
}

// a > b ? a : b and a < b ? a : b, so b where one is NaN. Compilers make two instructions of that for floating point.
template <typename V>
BCNET_INLINE V maximum(V a, V b) {
#ifdef BCNET_HAS_AVX2
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return bit_cast<V>(_mm256_max_ps(a, b));
  if constexpr (std::is_same_v<V, Vector<double, 32>>) return bit_cast<V>(_mm256_max_pd(a, b));
#endif
#ifdef BCNET_HAS_AVX512
  if constexpr (std::is_same_v<V, Vector<float, 64>>) return bit_cast<V>(_mm512_max_ps(a, b));
  if constexpr (std::is_same_v<V, Vector<double, 64>>) return bit_cast<V>(_mm512_max_pd(a, b));
#endif
  return a > b ? a : b;
}

template <typename V>
BCNET_INLINE V minimum(V a, V b) {
#ifdef BCNET_HAS_AVX2
  if constexpr (std::is_same_v<V, Vector<float, 32>>) return bit_cast<V>(_mm256_min_ps(a, b));
  if constexpr (std::is_same_v<V, Vector<double, 32>>) return bit_cast<V>(_mm256_min_pd(a, b));
#endif
#ifdef BCNET_HAS_AVX512
  if constexpr (std::is_same_v<V, Vector<float, 64>>) return bit_cast<V>(_mm512_min_ps(a, b));
  if constexpr (std::is_same_v<V, Vector<double, 64>>) return bit_cast<V>(_mm512_min_pd(a, b));
#endif
  return a < b ? a : b;
}

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

// Reduces a vector to one element: combines its upper half with the lower one until one element is left.
template <typename Operation, typename T, typename V>
BCNET_INLINE T reduce(V vector) {
  if constexpr (sizeof(V) > 16) {
    using Half = Vector<T, sizeof(V) / 2>;
    Half halves[2];
    std::memcpy(halves, &vector, sizeof(vector));
    return reduce<Operation, T>(Operation::of(halves[0], halves[1]));
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
  return reduce<Plus, T>(vector);
}

// The largest element; any of them if one is NaN.
template <typename T, typename V>
BCNET_INLINE T largest(V vector) {
  return reduce<Maximum, T>(vector);
}

// Bit i is the sign bit of element i.
template <typename T, typename V>
BCNET_INLINE std::uint32_t signs_of(V vector) {
#ifdef BCNET_HAS_AVX512
  if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return _mm512_movepi32_mask(bit_cast<__m512i>(vector));
  if constexpr (sizeof(V) == 64 && sizeof(T) == 8) return _mm512_movepi64_mask(bit_cast<__m512i>(vector));
#endif
#ifdef BCNET_HAS_AVX2
  if constexpr (sizeof(V) == 32 && sizeof(T) == 4) return _mm256_movemask_ps(bit_cast<__m256>(vector));
  if constexpr (sizeof(V) == 32 && sizeof(T) == 8) return _mm256_movemask_pd(bit_cast<__m256d>(vector));
#endif
  constexpr int lanes = sizeof(V) / sizeof(T);
  std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> elements[lanes];
  std::memcpy(elements, &vector, sizeof(vector));
  std::uint32_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= (elements[i] < 0 ? 1u : 0u) << i;
  return bits;
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

// Writes first + i to `to` for every element i whose sign bit is set, in ascending order; returns how many. Always
// writes as many numbers as the vector has elements, and at least 8.
template <typename T, typename V>
BCNET_INLINE std::int32_t append_negative(V vector, std::int32_t first, std::int32_t* to) {
  const std::uint32_t signs = signs_of<T>(vector);
#ifdef BCNET_HAS_AVX512
  if constexpr (sizeof(V) == 64) {
    alignas(64) static constexpr std::int32_t ascending[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    using Indices = Vector<std::int32_t, 256 / sizeof(T)>;
    const Indices indices = load<Indices>(ascending) + first;
    if constexpr (sizeof(T) == 4) {
      store(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(signs), bit_cast<__m512i>(indices)));
    } else {
      store(to, _mm256_maskz_compress_epi32(static_cast<__mmask8>(signs), bit_cast<__m256i>(indices)));
    }
    return bit_count(signs);
  }
#endif
  std::int32_t count = 0;
  for (int part = 0; part < static_cast<int>(sizeof(V) / sizeof(T)); part += 8) {
    const std::uint32_t bits = signs >> part & 255;
    for (int i = 0; i < 8; ++i) to[count + i] = first + part + kSetBits.positions[bits][i];
    count += kSetBits.count[bits];
  }
  return count;
}
