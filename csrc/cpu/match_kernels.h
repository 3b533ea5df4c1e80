// The pairs of start and end of one window, and their scores. Included once per instruction set.

// Values are checked as integers and without branches, so that compilers vectorise the loops: the exponent of infinity
// and of NaN is all ones, and for a value outside its range one of two differences is negative.
template <typename T>
BCNET_INLINE bool only_finite(const T* values, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const auto exponent = bit_cast<Bits>(std::numeric_limits<T>::infinity());
  Bits bad = 0;
  for (std::int64_t i = 0; i < count; ++i)
    bad |= (bit_cast<Bits>(values[i]) & exponent) == exponent ? Bits{-1} : Bits{0};
  return bad == 0;
}

template <typename T>
BCNET_INLINE bool only_up_to(const T* values, std::int64_t count, T highest) {
  using Bits = std::make_unsigned_t<T>;
  Bits bad = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<Bits>(values[i]);
    bad |= value | (static_cast<Bits>(highest) - value);
  }
  return static_cast<T>(bad) >= 0;
}

// Whether the values that all windows share are valid.
template <typename T>
bool good_anchors(const MatchInputs<T>& in) {
  return only_finite(in.anchors, 2 * in.anchor_count) &&
         only_up_to(in.table, in.snippets * in.durations, static_cast<std::int32_t>(in.anchor_count - 1));
}

template <typename T>
BCNET_INLINE bool good_window(const MatchInputs<T>& in, std::int64_t window) {
  const std::int64_t to_snippets = window * in.snippets, to_anchors = window * in.anchor_count;
  return only_finite(in.start + to_snippets, in.snippets) && only_finite(in.end + to_snippets, in.snippets) &&
         only_finite(in.classification + to_anchors, in.anchor_count) &&
         only_finite(in.regression + to_anchors, in.anchor_count) &&
         (!in.background || only_finite(in.background + to_anchors, in.anchor_count)) &&
         (!in.lengths || only_up_to(in.lengths + window, 1, in.snippets));
}

// Collects the snippets in [first, last) that can be a boundary: at least the threshold, or a strict local maximum.
template <typename T>
BCNET_INLINE void find_boundaries(const T* probability, std::int64_t snippets, std::int64_t first, std::int64_t last,
                                  double threshold, std::vector<T>& padded, std::vector<std::int32_t>& found) {
  using V = Vec<T>;
  constexpr int step = kWidth<T>, room = 16;  // elements beyond the end that a vector, or `append_negative`, may touch
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  padded.assign(snippets + 2 + room, lowest);
  std::copy_n(probability, snippets, padded.data() + 1);
  T least = static_cast<T>(threshold);
  if (static_cast<double>(least) < threshold) least = std::nextafter(least, -lowest);
  const V wanted = splat<V>(least), yes = splat<V>(T(-1)), no = splat<V>(T(1));
  found.resize(snippets + room);
  std::int32_t count = 0;
  for (std::int64_t t = first; t < last; t += step) {
    const T* const here = padded.data() + 1 + t;
    const V value = load<V>(here), neighbour = maximum(load<V>(here - 1), load<V>(here + 1));
    const V sure = value >= wanted ? yes : no, peak = value > neighbour ? yes : no;
    count += append_negative<T>(minimum(sure, peak), static_cast<std::int32_t>(t), found.data() + count);
  }
  while (count > 0 && found[count - 1] >= last) --count;
  found.resize(count);
}

#if defined(__GNUC__)
// Each element as a double, by intrinsics, because GCC 12 converts in halves.
template <typename V, typename N>
BCNET_INLINE V widened(N narrow) {
#ifdef BCNET_HAS_AVX2
  if constexpr (std::is_same_v<N, Vector<float, 16>>) return bit_cast<V>(_mm256_cvtps_pd(narrow));
  if constexpr (std::is_same_v<N, Vector<std::int32_t, 16>>) {
    return bit_cast<V>(_mm256_cvtepi32_pd(bit_cast<__m128i>(narrow)));
  }
#endif
  return __builtin_convertvector(narrow, V);
}

// Four values from anywhere, as doubles.
template <typename V, typename T>
BCNET_INLINE V four_of(const T* values, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
  return widened<V>(Vector<T, 4 * sizeof(T)>{values[a], values[b], values[c], values[d]});
}

// Stores a0, b0, a1, b1, a2, b2, a3, b3.
template <typename T, typename V>
BCNET_INLINE void store_pairs(T* to, V a, V b) {
#if defined(__clang__)
  store(to, __builtin_shufflevector(a, b, 0, 4, 1, 5));
  store(to + 4, __builtin_shufflevector(a, b, 2, 6, 3, 7));
#else
  using Order = Vector<std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>, sizeof(V)>;
  store(to, __builtin_shuffle(a, b, Order{0, 4, 1, 5}));
  store(to + 4, __builtin_shuffle(a, b, Order{2, 6, 3, 7}));
#endif
}
#endif

// Writes the pairs of a window, from its boundaries, to its first rows; returns how many they are.
template <typename T>
BCNET_INLINE std::int64_t match_pairs(const MatchInputs<T>& in, const MatchOptions& options, const MatchOutputs& out,
                                      std::int64_t window, const MatchWorkspace<T>& workspace) {
  // Copies, which the compiler need not read again after each store.
  const T* const classification = in.classification + window * in.anchor_count;
  const T* const regression = in.regression + window * in.anchor_count;
  const T* const background = in.background ? in.background + window * in.anchor_count : nullptr;
  const double* const anchors = in.anchors;
  const double min_classification = options.min_classification, min_regression = options.min_regression;
  const double max_snippets = options.max_snippets;
  double* const segments = out.segments + 2 * window * out.rows;
  double* const scores = out.scores + window * out.rows;
  std::int32_t* const boundaries = out.boundaries + 2 * window * out.rows;
  const std::int32_t* const ends = workspace.ends.data();
  const double* const end_probabilities = workspace.end_probabilities.data();
  const auto end_count = static_cast<std::int64_t>(workspace.ends.size());

  std::int64_t next = 0, last = 0;  // the ends that go with a start
  std::int64_t count = 0;
  for (const std::int32_t s : workspace.starts) {
    while (next < end_count && ends[next] <= s) ++next;
    while (last < end_count && ends[last] - s <= in.durations) ++last;
    const std::int32_t* const row = in.table + s * (in.durations - 1);  // the anchor of end e is at e - 1
    const double place = s, start_probability = in.start[window * in.snippets + s];
    count -= next;  // the pair with end i has row count + i
    std::int64_t i = next;
#if defined(__GNUC__)
    if constexpr (kBytes >= 32) {
      using V = Vector<double, 32>;
      using Places = Vector<std::int32_t, 16>;
      const V one = splat<V>(1.0), half = splat<V>(0.5), zero{};
      // The last four may overlap those before.
      for (; i < last && last - next >= 4; i += 4) {
        const std::int64_t first = std::min(i, last - 4), to = count + first;
        const std::int32_t* const at = ends + first;
        const std::int64_t a = row[at[0] - 1], b = row[at[1] - 1], c = row[at[2] - 1], d = row[at[3] - 1];
        const V action = four_of<V>(classification, a, b, c, d), overlap = four_of<V>(regression, a, b, c, d);
        V confidence = splat<V>(start_probability) * load<V>(end_probabilities + first) * action * overlap;
        if (background) confidence *= one - four_of<V>(background, a, b, c, d);
        const Places places = load<Places>(at);
        V early = splat<V>(place), late = widened<V>(places);
        const V acts = action > splat<V>(min_classification) ? half : one;
        const V weight = overlap > splat<V>(min_regression) ? acts : one;
        if (signs_of<double>(weight - one)) {
          early = weight < one ? (early + four_of<V>(anchors, 2 * a, 2 * b, 2 * c, 2 * d)) * half : early;
          late = weight < one ? (late + four_of<V>(anchors + 1, 2 * a, 2 * b, 2 * c, 2 * d)) * half : late;
        }
        store(scores + to, late - early >= splat<V>(max_snippets) ? zero : confidence);
        store_pairs(segments + 2 * to, early, late);
        store_pairs(boundaries + 2 * to, splat<Places>(s), places);
      }
    }
#endif
    for (; i < last; ++i) {
      const std::int64_t m = row[ends[i] - 1], to = count + i;
      const double action = classification[m], overlap = regression[m];
      const bool refined = (action > min_classification) & (overlap > min_regression);
      const double weight = refined ? 0.5 : 1.0;
      const double early = (place + (refined ? anchors[2 * m] : 0.0)) * weight;
      const double late = (ends[i] + (refined ? anchors[2 * m + 1] : 0.0)) * weight;
      const double foreground = background ? 1 - double(background[m]) : 1.0;
      const double confidence = start_probability * end_probabilities[i] * action * overlap * foreground;
      scores[to] = late - early >= max_snippets ? 0.0 : confidence;
      segments[2 * to] = early;
      segments[2 * to + 1] = late;
      boundaries[2 * to] = s;
      boundaries[2 * to + 1] = ends[i];
    }
    count += last;
  }
  return count;
}

// Writes the rows of a window. False if it has an invalid value.
template <typename T>
bool match_window(const MatchInputs<T>& in, const MatchOptions& options, const MatchOutputs& out, std::int64_t window,
                  MatchWorkspace<T>& workspace) {
  if (!good_window(in, window)) return false;
  const T* const start = in.start + window * in.snippets;
  const T* const end = in.end + window * in.snippets;
  const std::int64_t length = in.lengths ? in.lengths[window] : in.snippets;
  const std::int64_t clamped = options.clamp_boundaries;
  auto& [padded, starts, ends, end_probabilities] = workspace;
  const double threshold = options.boundary_threshold;
  find_boundaries(start, in.snippets, clamped, length, threshold, padded, starts);
  find_boundaries(end, in.snippets, 0, std::min(length, in.snippets - clamped), threshold, padded, ends);
  if (clamped && !starts.empty() && starts[0] == 1) starts.insert(starts.begin(), 1);
  end_probabilities.resize(ends.size());
  for (std::size_t i = 0; i < ends.size(); ++i) end_probabilities[i] = end[ends[i]];

  const std::int64_t count = match_pairs(in, options, out, window, workspace);
  const std::int64_t unused = out.rows - count, row = window * out.rows + count;
  out.counts[window] = count;
  std::fill_n(out.segments + 2 * row, 2 * unused, 0.0);
  std::fill_n(out.scores + row, unused, 0.0);
  std::fill_n(out.boundaries + 2 * row, 2 * unused, 0);
  return true;
}
