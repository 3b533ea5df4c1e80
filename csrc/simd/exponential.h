// Exponentials of vectors, or of plain numbers. Included once per instruction set, after simd/operations.h.

// Whether a polynomial rounds c + x p once per step (multiply_add) or twice.
enum class Rounding { each_operation, fused };

template <Rounding rounding, typename V>
BCNET_INLINE V step(V x, V factor, V constant) {
  if constexpr (rounding == Rounding::fused) return multiply_add(x, factor, constant);
  return constant + x * factor;
}

// c0 + c1 x + c2 x^2 + ..., an even number of terms, as (c0 + c1 x) + x^2 ((c2 + c3 x) + x^2 (...)): about half as long
// a chain of dependent operations as Horner's rule.
template <Rounding rounding, typename V, typename T>
BCNET_INLINE V polynomial(V x, V, T c0, T c1) {
  return step<rounding>(x, splat<V>(c1), splat<V>(c0));
}
template <Rounding rounding, typename V, typename T, typename... Rest>
BCNET_INLINE V polynomial(V x, V x2, T c0, T c1, Rest... rest) {
  return step<rounding>(x2, polynomial<rounding>(x, x2, rest...), step<rounding>(x, splat<V>(c1), splat<V>(c0)));
}

// exp(x) for x <= 0, as a fixed sequence of additions and multiplications: at most 1.03 ulp off, and the same bits on
// every machine. Results may be denormal or 0.
//
// exp(x) = 2^n exp(r), with n the integer nearest to x / ln 2 and exp(r) by its Taylor series. Adding `round`, 1.5
// times the weight of the hidden bit, leaves n in the low bits; the high part of ln 2 has few bits, so that its product
// with n is exact. 2^n is made as 2^(n + lift) 2^-lift, because 2^n itself may be too small for a normal number.
template <typename V>
BCNET_INLINE V exp_nonpositive(V x, float) {
  using Bits = Vector<std::uint32_t, sizeof(V)>;
  constexpr float lowest = -104.0f;  // its exponential rounds to 0
  constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, round = 12582912.0f;
  constexpr std::uint32_t bias = 127, lift = 64;
  constexpr float lower = 5.42101086e-20f;
  x = maximum(x, splat<V>(lowest));
  const V shifted = x * log2e + round;
  const V n = shifted - round;
  const V r = (x - n * ln2_high) - n * ln2_low;
  const V r2 = r * r;
  const V tail =
      polynomial<Rounding::each_operation>(r, r2, 1.0f / 2, 1.0f / 6, 1.0f / 24, 1.0f / 120, 1.0f / 720, 1.0f / 5040);
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
  const V tail = polynomial<Rounding::each_operation>(r, r2, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720,
                                                      1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800,
                                                      1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0);
  const V power = bit_cast<V>((bit_cast<Bits>(shifted) << 52) + ((bias + lift) << 52));
  return (1.0 + (r + r2 * tail)) * power * lower;
}

// 2^y for y from -125 (double: -1021) to 0, at most 2 ulp off; NaN of NaN. With n the integer nearest to y, 2^(y - n)
// is a minimax polynomial, for double a Taylor series, and 2^n comes from its bits: a product, in which any NaN stays
// one.
template <typename V>
BCNET_INLINE V exp2_nonpositive(V y, float) {
  using Bits = Vector<std::uint32_t, sizeof(V)>;
  constexpr float round = 12582912.0f;  // as above
  const V shifted = y + round;
  const V f = y - (shifted - round);
  const V power = polynomial<Rounding::fused>(f, f * f, 1.00000007f, 0.693146944f, 0.240221202f, 0.0555071309f,
                                              0.00967554096f, 0.00132764725f);
  return power * bit_cast<V>((bit_cast<Bits>(shifted) << 23) + (std::uint32_t{127} << 23));
}

template <typename V>
BCNET_INLINE V exp2_nonpositive(V y, double) {
  using Bits = Vector<std::uint64_t, sizeof(V)>;
  constexpr double round = 6755399441055744.0;
  const V shifted = y + round;
  const V f = y - (shifted - round);
  const V power = polynomial<Rounding::fused>(f, f * f, 1.0, 0.6931471805599453, 0.2402265069591007,
                                              0.05550410866482158, 0.009618129107628477, 0.0013333558146428443,
                                              0.00015403530393381608, 1.5252733804059839e-05, 1.3215486790144307e-06,
                                              1.0178086009239699e-07, 7.054911620801123e-09, 4.44553827187081e-10,
                                              2.5678435993488202e-11, 1.3691488853904128e-12);
  return power * bit_cast<V>((bit_cast<Bits>(shifted) << 52) + (std::uint64_t{1023} << 52));
}
