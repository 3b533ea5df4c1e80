#include "match_proposals.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace bcnet_fast {
namespace {

// Appends the snippets in [first, last) that can be a boundary: at least the threshold, or a strict local maximum.
template <typename T>
void find_boundaries(const T* probability, std::int64_t snippets, std::int64_t first, std::int64_t last,
                     double threshold, std::vector<std::int32_t>& found) {
  constexpr double lowest = -std::numeric_limits<double>::infinity();
  for (std::int64_t t = first; t < last; ++t) {
    const double here = probability[t];
    const double before = t > 0 ? double(probability[t - 1]) : lowest;
    const double after = t + 1 < snippets ? double(probability[t + 1]) : lowest;
    if ((here >= threshold) | ((here > before) & (here > after))) found.push_back(static_cast<std::int32_t>(t));
  }
}

template <typename T>
class Matcher {
 public:
  Matcher(const MatchInputs<T>& inputs, const MatchOptions& options, const MatchOutputs& outputs)
      : in_(inputs), options_(options), out_(outputs) {
    starts_.reserve(inputs.snippets + 1);
    ends_.reserve(inputs.snippets);
  }

  void match(std::int64_t window) {
    const T* start = in_.start + window * in_.snippets;
    const T* end = in_.end + window * in_.snippets;
    const std::int64_t length = in_.lengths ? in_.lengths[window] : in_.snippets;
    const std::int64_t clamped = options_.clamp_boundaries;
    starts_.clear();
    ends_.clear();
    find_boundaries(start, in_.snippets, clamped, length, options_.boundary_threshold, starts_);
    find_boundaries(end, in_.snippets, 0, std::min(length, in_.snippets - clamped), options_.boundary_threshold, ends_);
    if (clamped && !starts_.empty() && starts_[0] == 1) starts_.insert(starts_.begin(), 1);

    std::int64_t row = window * out_.rows;
    auto next = ends_.begin();
    for (const std::int32_t s : starts_) {
      while (next != ends_.end() && *next <= s) ++next;
      for (auto e = next; e != ends_.end() && *e - s <= in_.durations; ++e, ++row) write(window, s, *e, start[s], end[*e], row);
    }
    out_.counts[window] = row - window * out_.rows;
  }

 private:
  BCNET_INLINE void write(std::int64_t window, std::int32_t s, std::int32_t e, double start, double end, std::int64_t row) {
    const std::int64_t anchor = in_.table[s * in_.durations + (e - s - 1)];
    const std::int64_t cell = window * in_.anchor_count + anchor;
    const double classification = in_.classification[cell], regression = in_.regression[cell];
    double first = s, last = e;
    if ((classification > options_.min_classification) & (regression > options_.min_regression)) {
      first = (first + in_.anchors[2 * anchor]) / 2;
      last = (last + in_.anchors[2 * anchor + 1]) / 2;
    }
    double score = start * end * classification * regression;
    if (in_.background) score *= 1 - double(in_.background[cell]);
    out_.segments[2 * row] = first;
    out_.segments[2 * row + 1] = last;
    out_.scores[row] = last - first >= options_.max_snippets ? 0.0 : score;
    out_.boundaries[2 * row] = s;
    out_.boundaries[2 * row + 1] = e;
  }

  const MatchInputs<T>& in_;
  const MatchOptions& options_;
  const MatchOutputs& out_;
  std::vector<std::int32_t> starts_, ends_;
};

}  // namespace

template <typename T>
void match_proposals(const MatchInputs<T>& inputs, const MatchOptions& options, int threads, const MatchOutputs& outputs) {
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, inputs.windows)));
  std::vector<Matcher<T>> matchers(threads, Matcher<T>(inputs, options, outputs));
  WorkQueue queue(inputs.windows);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t window; queue.next(window);) matchers[thread].match(window);
  });
}

template void match_proposals(const MatchInputs<float>&, const MatchOptions&, int, const MatchOutputs&);
template void match_proposals(const MatchInputs<double>&, const MatchOptions&, int, const MatchOutputs&);

}  // namespace bcnet_fast
