// expf of the C library, of vectors. Included once per instruction set, after simd/exponential.h.

// One after the other.
template <typename V>
BCNET_NOINLINE V library_exp_of_lanes(V x, V known, std::uint32_t lanes) {
  constexpr int width = sizeof(V) / sizeof(float);
  float arguments[width], results[width];
  store(arguments, x);
  store(results, known);
  for (; lanes; lanes &= lanes - 1) results[lowest_bit(lanes)] = std::exp(arguments[lowest_bit(lanes)]);
  return load<V>(results);
}

// std::exp(x) for x <= 0, the bits of the C library.
//
// Before it is rounded to float, the result of the GNU library is off by at most 1.69 * 2^-34, about 1e-10, relative to
// exp(x) (documented as 0.502 ulp), and the polynomial below by 0.6e-10. So a result in double leaves no doubt about
// the library's, unless a number within `error` of it rounds to another float. Those few, less than one in a hundred,
// are left to the library. The coefficients interpolate exp at the Chebyshev nodes of +-(ln 2) / 2.
template <typename V>
BCNET_INLINE V library_exp_nonpositive(V x) {
#ifdef BCNET_HAS_AVX2
  using Half = Vector<float, sizeof(V) / 2>;
  using Wide = Vector<double, sizeof(V)>;
  using Bits = Vector<std::uint64_t, sizeof(V)>;
  constexpr double log2e = 1.4426950408889634, ln2 = 0.69314718055994531, round = 6755399441055744.0, error = 1.7e-10;
  const V clamped = maximum(x, splat<V>(-104.0f));  // its exponential rounds to 0
  Half halves[2], low[2], high[2];
  std::memcpy(halves, &clamped, sizeof(V));
  for (int h = 0; h < 2; ++h) {
    const Wide wide = __builtin_convertvector(halves[h], Wide);
    const Wide shifted = wide * log2e + round;
    const Wide r = multiply_add(shifted - round, splat<Wide>(-ln2), wide);
    const Wide power = bit_cast<Wide>((bit_cast<Bits>(shifted) << 52) + (std::uint64_t{1023} << 52));
    const Wide exact =
        power * polynomial<Rounding::fused>(r, r * r, 0.9999999999595618, 0.999999999995509, 0.5000000107729166,
                                            0.16666666786308587, 0.041666218319291945, 0.008333283538708528,
                                            0.0013948578326459795, 0.00019907569310848288);
    low[h] = __builtin_convertvector(exact * (1.0 - error), Half);
    high[h] = __builtin_convertvector(exact * (1.0 + error), Half);
  }
  const V lowest = load<V>(low), highest = load<V>(high);
  const std::uint32_t doubtful = signs_of<float>(lowest != highest);
  return doubtful ? library_exp_of_lanes(x, lowest, doubtful) : lowest;
#else
  constexpr int width = sizeof(V) / sizeof(float);
  return library_exp_of_lanes(x, x, (std::uint32_t{1} << width) - 1);
#endif
}
