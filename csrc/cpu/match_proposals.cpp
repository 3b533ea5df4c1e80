// The work of a window lies in its pairs. They are found by two walks over the lists of possible boundaries. Vector instructions
// do not pay for them, since a pair's reads are scattered; they find the boundaries.
#include "match_proposals.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace bcnet_fast {
namespace {

// Values are checked by integers without branches, so that compilers vectorise it: the exponent of infinity and of NaN is all
// ones, and of two differences one is negative where a value is outside of its range.
template <int bytes, typename T>
BCNET_INLINE bool only_finite(const T* values, std::int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const auto exponent = bit_cast<Bits>(std::numeric_limits<T>::infinity());
  Bits bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= (bit_cast<Bits>(values[i]) & exponent) == exponent ? Bits{-1} : Bits{0};
  return bad == 0;
}

template <int bytes, typename T>
BCNET_INLINE bool only_up_to(const T* values, std::int64_t count, T highest) {
  using Bits = std::make_unsigned_t<T>;
  Bits bad = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<Bits>(values[i]);
    bad |= value | (static_cast<Bits>(highest) - value);
  }
  return static_cast<T>(bad) >= 0;
}

BCNET_VERSIONS(only_finite)
BCNET_VERSIONS(only_up_to)

template <typename T>
struct Workspace {
  std::vector<T> padded;                          // probabilities
  std::vector<std::int32_t> starts, ends;         // snippets that can be a boundary
  std::vector<double> places, end_probabilities;  // of the ends
};

// Puts the snippets in [first, last) that can be a boundary into `found`: at least the threshold, or a strict local maximum.
template <int bytes, typename T>
BCNET_INLINE void find_boundaries(const T* probability, std::int64_t snippets, std::int64_t first, std::int64_t last,
                                  double threshold, std::vector<T>& padded, std::vector<std::int32_t>& found) {
  using V = Vector<T, bytes>;
  constexpr int step = sizeof(V) / sizeof(T), room = 16;  // what a vector, or `append_negative`, may go beyond the end
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

BCNET_VERSIONS(find_boundaries)

template <typename T>
void match_window(const MatchInputs<T>& in, const MatchOptions& options, const MatchOutputs& out, std::int64_t window,
                  InstructionSet instruction_set, Workspace<T>& workspace) {
  const T* start = in.start + window * in.snippets;
  const T* end = in.end + window * in.snippets;
  const T* classification = in.classification + window * in.anchor_count;
  const T* regression = in.regression + window * in.anchor_count;
  const T* background = in.background ? in.background + window * in.anchor_count : nullptr;
  double* segment = out.segments + 2 * window * out.rows;
  double* score = out.scores + window * out.rows;
  std::int32_t* boundary = out.boundaries + 2 * window * out.rows;

  const std::int64_t length = in.lengths ? in.lengths[window] : in.snippets;
  const std::int64_t clamped = options.clamp_boundaries;
  auto& [padded, starts, ends, places, end_probabilities] = workspace;
  const double threshold = options.boundary_threshold;
  const std::int64_t first_end = 0, last_end = std::min(length, in.snippets - clamped);
  find_boundaries_for(instruction_set, start, in.snippets, clamped, length, threshold, padded, starts);
  find_boundaries_for(instruction_set, end, in.snippets, first_end, last_end, threshold, padded, ends);
  if (clamped && !starts.empty() && starts[0] == 1) starts.insert(starts.begin(), 1);
  places.assign(ends.begin(), ends.end());
  end_probabilities.resize(ends.size());
  for (std::size_t i = 0; i < ends.size(); ++i) end_probabilities[i] = end[ends[i]];

  // Copies, which no store to the outputs can change.
  const double min_classification = options.min_classification, min_regression = options.min_regression;
  const double max_snippets = options.max_snippets;
  const double* const anchors = in.anchors;
  const std::int32_t* const table = in.table;
  std::size_t next = 0, last = 0;  // of the ends that go with a start
  for (const std::int32_t s : starts) {
    while (next < ends.size() && ends[next] <= s) ++next;
    while (last < ends.size() && ends[last] - s <= in.durations) ++last;
    const double place = s, start_probability = start[s];
    const std::int64_t row = s * in.durations - s - 1;
    for (std::size_t i = next; i < last; ++i) {
      const std::int64_t m = table[row + ends[i]];
      const double action = classification[m], overlap = regression[m];
      const bool refined = (action > min_classification) & (overlap > min_regression);
      const double weight = refined ? 0.5 : 1.0;
      const double early = (place + (refined ? anchors[2 * m] : 0.0)) * weight;
      const double late = (places[i] + (refined ? anchors[2 * m + 1] : 0.0)) * weight;
      const double foreground = background ? 1 - double(background[m]) : 1.0;
      const double confidence = start_probability * end_probabilities[i] * action * overlap * foreground;
      *score++ = late - early >= max_snippets ? 0.0 : confidence;
      *segment++ = early;
      *segment++ = late;
      *boundary++ = s;
      *boundary++ = ends[i];
    }
  }
  const std::int64_t count = score - (out.scores + window * out.rows), unused = out.rows - count;
  out.counts[window] = count;
  std::fill_n(segment, 2 * unused, 0.0);
  std::fill_n(score, unused, 0.0);
  std::fill_n(boundary, 2 * unused, 0);
}

}  // namespace

template <typename T>
bool all_finite(const T* values, std::int64_t count, InstructionSet instruction_set) {
  return only_finite_for(instruction_set, values, count);
}

template <typename T>
bool all_up_to(const T* values, std::int64_t count, T highest, InstructionSet instruction_set) {
  return only_up_to_for(instruction_set, values, count, highest);
}

template <typename T>
void match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, InstructionSet instruction_set, int threads,
                     const MatchOutputs& outputs) {
  // A thread costs some tens of microseconds to wake, about what it takes to fill this many rows.
  constexpr std::int64_t worth_a_thread = std::int64_t{1} << 15;
  const std::int64_t useful = std::min(inputs.windows, inputs.windows * outputs.rows / worth_a_thread);
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));
  std::vector<Workspace<T>> workspaces(threads);
  WorkQueue queue(inputs.windows);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t window; queue.next(window);) {
      match_window(inputs, options, outputs, window, instruction_set, workspaces[thread]);
    }
  });
}

template bool all_finite(const float*, std::int64_t, InstructionSet);
template bool all_finite(const double*, std::int64_t, InstructionSet);
template bool all_up_to(const std::int32_t*, std::int64_t, std::int32_t, InstructionSet);
template bool all_up_to(const std::int64_t*, std::int64_t, std::int64_t, InstructionSet);
template void match_proposals(const MatchInputs<float>&, const MatchOptions&, InstructionSet, int, const MatchOutputs&);
template void match_proposals(const MatchInputs<double>&, const MatchOptions&, InstructionSet, int, const MatchOutputs&);

}  // namespace bcnet_fast
