// The work of a window lies in its pairs. They are found by two walks over the lists of possible boundaries, and each is
// computed without a branch that depends on a score. Vector instructions did not pay: a pair's reads are scattered.
#include "match_proposals.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "parallel.h"

namespace bcnet_fast {
namespace {

// Written without branches, and with a flag as wide as a value, so that compilers vectorise it.
template <int bytes, typename T>
BCNET_INLINE bool values_within(const T* values, std::int64_t count, T lowest, T highest) {
  using Flag = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  Flag bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= ((values[i] >= lowest) & (values[i] <= highest)) ? Flag{0} : Flag{1};
  return bad == 0;
}

BCNET_VERSIONS(values_within)

struct Workspace {
  std::vector<std::int32_t> starts, ends;         // snippets that can be a boundary
  std::vector<double> places, end_probabilities;  // of the ends
};

// Puts the snippets in [first, last) that can be a boundary into `found`: at least the threshold, or a strict local maximum.
template <typename T>
void find_boundaries(const T* probability, std::int64_t snippets, std::int64_t first, std::int64_t last, double threshold,
                     std::vector<std::int32_t>& found) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  found.resize(snippets);
  std::int64_t count = 0;
  for (std::int64_t t = first; t < last; ++t) {
    const T before = t > 0 ? probability[t - 1] : lowest;
    const T after = t + 1 < snippets ? probability[t + 1] : lowest;
    found[count] = static_cast<std::int32_t>(t);
    count += (double(probability[t]) >= threshold) | ((probability[t] > before) & (probability[t] > after));
  }
  found.resize(count);
}

template <typename T>
void match_window(const MatchInputs<T>& in, const MatchOptions& options, const MatchOutputs& out, std::int64_t window,
                  Workspace& workspace) {
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
  auto& [starts, ends, places, end_probabilities] = workspace;
  find_boundaries(start, in.snippets, clamped, length, options.boundary_threshold, starts);
  find_boundaries(end, in.snippets, 0, std::min(length, in.snippets - clamped), options.boundary_threshold, ends);
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
bool all_within(const T* values, std::int64_t count, T lowest, T highest, InstructionSet instruction_set) {
  return values_within_for(instruction_set, values, count, lowest, highest);
}

template <typename T>
void match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, int threads, const MatchOutputs& outputs) {
  // A thread costs some tens of microseconds to wake, about what it takes to fill this many rows.
  constexpr std::int64_t worth_a_thread = std::int64_t{1} << 15;
  const std::int64_t useful = std::min(inputs.windows, inputs.windows * outputs.rows / worth_a_thread);
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));
  std::vector<Workspace> workspaces(threads);
  for (Workspace& workspace : workspaces) {
    workspace.starts.reserve(inputs.snippets + 1);  // one may appear twice
    workspace.ends.reserve(inputs.snippets);
  }
  WorkQueue queue(inputs.windows);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t window; queue.next(window);) match_window(inputs, options, outputs, window, workspaces[thread]);
  });
}

template bool all_within(const float*, std::int64_t, float, float, InstructionSet);
template bool all_within(const double*, std::int64_t, double, double, InstructionSet);
template bool all_within(const std::int32_t*, std::int64_t, std::int32_t, std::int32_t, InstructionSet);
template bool all_within(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, InstructionSet);
template void match_proposals(const MatchInputs<float>&, const MatchOptions&, int, const MatchOutputs&);
template void match_proposals(const MatchInputs<double>&, const MatchOptions&, int, const MatchOutputs&);

}  // namespace bcnet_fast
