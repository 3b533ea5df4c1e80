// How Soft-NMS on the CPU lays out the candidates of a set: in blocks of one cache line per field, whose neighbours in memory
// are neighbours in time and length; and the state of a set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "runtime/memory.h"
#include "simd/simd.h"
#include "cpu/soft_nms_rules.h"

namespace bcnet_fast {

template <typename T>
constexpr int kLanes = kLine / static_cast<int>(sizeof(T));

// A score in play is positive, and positive floats are ordered like their bits taken as integers. A slot that is empty or
// picked has the negative number kGone, and one that was dropped after pick k has kGone + 1 + k: numbers that as floats are
// ordinary ones. So a drop is a minimum, and the first one lasts.
template <typename T>
using ScoreBits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <typename T>
constexpr ScoreBits<T> kGone = std::numeric_limits<ScoreBits<T>>::min() / 4 * 3;

template <typename T>
struct alignas(kLine) Block {
  T start[kLanes<T>];
  T end[kLanes<T>];
  T area[kLanes<T>];
  ScoreBits<T> score[kLanes<T>];
  std::int32_t candidate[kLanes<T>];  // index into the set
};

// Memory that is not set to anything, unlike that of a std::vector.
template <typename T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size) : elements_(new T[static_cast<std::size_t>(size)]) {}
  T& operator[](std::int64_t i) { return elements_[i]; }
  T* data() { return elements_.get(); }

 private:
  std::unique_ptr<T[]> elements_;
};

// What is known of as many blocks as a block has candidates, which are a group; or of as many groups, which are a region.
template <typename T>
struct alignas(kLine) Summary {
  T low[kLanes<T>];               // smallest start
  T high[kLanes<T>];              // largest end
  ScoreBits<T> known[kLanes<T>];  // the highest score in blocks that do not wait for decays; 0: there is none
  ScoreBits<T> bound[kLanes<T>];  // of a block: no score is higher; of a group: no score in blocks that wait is
};

// The entry of block or group i.
template <typename T>
struct Entry {
  T &low, &high;
  ScoreBits<T> &known, &bound;

  Entry(Buffer<Summary<T>>& summaries, std::int32_t i)
      : Entry(summaries[i / kLanes<T>], i % kLanes<T>) {}

 private:
  Entry(Summary<T>& summary, int lane)
      : low(summary.low[lane]), high(summary.high[lane]), known(summary.known[lane]), bound(summary.bound[lane]) {}
};

template <typename T>
struct Pick : Picked<T> {
  ScoreBits<T> mark;  // of the candidates that it drops
};

// Room for the picks that a group has met. The last line of it stays empty, since a vector is read behind the last one.
template <typename T>
constexpr std::int32_t kMostLogged = 2 * kLanes<T> * kLanes<T>;

constexpr std::int32_t kMostPairs = 1024;  // of block and pick, on the list at once

// The state of one set. All memory is taken at once, for sets of up to `most` candidates. Aligned, so that two threads do
// not write to one cache line.
template <typename T>
struct alignas(kLine) Workspace {
  explicit Workspace(std::int64_t most)
      : most_blocks(most / kLanes<T> + 1),
        most_groups(most_blocks / kLanes<T> + 1),
        blocks(most_blocks),
        groups(most_groups),
        regions(most_groups / kLanes<T> + 1),
        seen(most_blocks),
        visited(most_blocks),
        left(most_blocks),
        list(most_blocks + kLanes<T>),
        group_list(most_groups + kLanes<T>),
        logged(most_groups),
        log_start(most_groups * kMostLogged<T> + kLanes<T>),
        log_end(most_groups * kMostLogged<T> + kLanes<T>),
        log(most_groups * kMostLogged<T> + 1),
        pair_block(kMostPairs),
        pair_pick(kMostPairs),
        place(most),
        array(most),
        fallen(most + 1),
        order(most),
        part(2 * most),
        strip(most),
        starts(most + 2) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    log[nothing()] = {{infinity, -infinity, T(0), T(0)}, std::numeric_limits<ScoreBits<T>>::max()};
  }

  // In a large set, those groups are looked for first that have to be looked at; in a small one this would take longer.
  bool large() const { return used_groups > kLanes<T>; }
  std::int32_t log_of(std::int32_t group) const { return large() ? group : 0; }
  std::int32_t nothing() const { return static_cast<std::int32_t>(most_groups) * kMostLogged<T>; }  // in `log`

  const std::int64_t most_blocks, most_groups;
  Buffer<Block<T>> blocks;
  Buffer<Summary<T>> groups, regions;  // regions in a large set alone
  std::int32_t used = 0, used_groups = 0, used_regions = 0;
  Buffer<std::int32_t> seen;              // per block: picks of its log that have decayed it
  Buffer<std::int32_t> visited;           // per block: after how many picks
  Buffer<std::int32_t> left;              // per block, in a large set: candidates in play when it was visited
  std::int64_t all_left = 0;              // their sum
  Buffer<std::int32_t> list, group_list;  // of blocks and of groups: scratch

  // The picks since the candidates were laid out, which are numbered from `first_pick` on.
  std::int32_t picks = 0, first_pick = 0;
  // Every group of a large set logs those that it meets. In a small set there is one log of all picks.
  Buffer<std::int32_t> logged;   // per log: how many
  bool full = false;             // whether one of the logs is
  Buffer<T> log_start, log_end;  // log after log
  Buffer<Pick<T>> log;
  Buffer<std::int32_t> pair_block, pair_pick;  // the latter in `log`

  // The working array of the plain algorithm as it was after `followed` picks, -1 before it was needed. Its first places
  // hold the picks, and it ends at `remaining`.
  std::int32_t followed = -1, remaining = 0;
  Buffer<std::int32_t> place;    // of each candidate; -1: dropped
  Buffer<std::int32_t> array;    // of candidates
  Buffer<std::uint64_t> fallen;  // pick << 32 | candidate of what was dropped and is still in the array
  std::int32_t fallen_count = 0;

  Buffer<std::int32_t> order, part, strip, starts;  // of candidates: scratch
};

// The highest score of a block, 0 when none is in play.
template <int bytes, typename T>
BCNET_INLINE ScoreBits<T> highest_of(const Block<T>& block) {
  using I = Vector<ScoreBits<T>, bytes>;
  I highest{};
  for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) highest = maximum(highest, load<I>(block.score + l));
  return largest<ScoreBits<T>>(highest);
}

// Works out the entry of a group, but for its range.
template <int bytes, typename T>
BCNET_INLINE void sum_up(Workspace<T>& ws, std::int32_t group) {
  using I = Vector<ScoreBits<T>, bytes>;
  I known{}, bound{};
  for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) {
    const I known_here = load<I>(ws.groups[group].known + l);
    known = maximum(known, known_here);
    bound = maximum(bound, load<I>(ws.groups[group].bound + l) - known_here);
  }
  Entry<T> entry(ws.regions, group);
  entry.known = largest<ScoreBits<T>>(known);
  entry.bound = largest<ScoreBits<T>>(bound);
}

// The number of candidates of a block that are in play.
template <int bytes, typename T>
BCNET_INLINE std::int32_t count_in_play(const Block<T>& block) {
  using I = Vector<ScoreBits<T>, bytes>;
  std::int32_t gone = 0;
  for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) gone += bit_count(signs_of<T>(load<I>(block.score + l)));
  return kLanes<T> - gone;
}

// Puts candidates in an order in which each block covers a small range of starts and of ends: cuts them by start into strips
// of about half of sqrt(blocks) blocks, and sorts each strip by end. The order decides about speed alone, so it is enough to
// know in which of many equal parts of their range starts and ends lie. Values far from all others spoil that.
template <typename T>
BCNET_INLINE void order_in_space(const T* segments, std::int32_t count, Workspace<T>& ws) {
  constexpr int wide = 16;  // starts and ends alternate
  T low[wide], high[wide];
  for (int l = 0; l < wide; ++l) low[l] = high[l] = segments[l % 2];
  std::int64_t i = 0;
  for (; i + wide <= 2 * std::int64_t{count}; i += wide) {
    for (int l = 0; l < wide; ++l) {
      const T value = segments[i + l];
      low[l] = value < low[l] ? value : low[l];
      high[l] = value > high[l] ? value : high[l];
    }
  }
  for (; i < 2 * std::int64_t{count}; ++i) {
    low[i % 2] = std::min(low[i % 2], segments[i]);
    high[i % 2] = std::max(high[i % 2], segments[i]);
  }
  for (int l = 2; l < wide; ++l) {
    low[l % 2] = std::min(low[l % 2], low[l]);
    high[l % 2] = std::max(high[l % 2], high[l]);
  }

  std::int32_t parts = 1;
  while (4 * parts < count) parts *= 2;
  int strip_bits = 0;  // of the number of candidates in a strip
  while (1 << strip_bits < kLanes<T>) ++strip_bits;
  while (std::int64_t{4} << 2 * strip_bits < std::int64_t{kLanes<T>} * count) ++strip_bits;
  const T last = static_cast<T>(parts - 1), scale[2] = {last / (high[0] - low[0]), last / (high[1] - low[1])};
  std::int32_t* const part = ws.part.data();
  for (std::int64_t c = 0; c < count; ++c) {
    for (int side = 0; side < 2; ++side) {
      const T at = (segments[2 * c + side] - low[side]) * scale[side];
      part[2 * c + side] = static_cast<std::int32_t>(at < last ? at : last);  // NaN if the range is 0 or infinite
    }
  }

  std::int32_t* const starts = ws.starts.data();
  std::int32_t* const ends = starts + parts;
  std::int32_t* const by_end = ws.array.data();
  std::fill_n(starts, 2 * parts, 0);
  for (std::int64_t c = 0; c < count; ++c) {
    ++starts[part[2 * c]];
    ++ends[part[2 * c + 1]];
  }
  for (std::int32_t p = 1; p < parts; ++p) {
    starts[p] += starts[p - 1];
    ends[p] += ends[p - 1];
  }
  for (std::int64_t c = count; c-- > 0;) {
    ws.strip[c] = --starts[part[2 * c]] >> strip_bits;
    by_end[--ends[part[2 * c + 1]]] = static_cast<std::int32_t>(c);
  }
  for (std::int32_t s = 0; s <= count >> strip_bits; ++s) starts[s] = s << strip_bits;
  for (std::int32_t c = 0; c < count; ++c) ws.order[starts[ws.strip[by_end[c]]]++] = by_end[c];
}

// Works out all that follows from start, end, score and candidate in the first `count` slots.
template <int bytes, typename T>
BCNET_INLINE void close_layout(Workspace<T>& ws, std::int32_t count) {
  using V = Vector<T, bytes>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr int lanes = kLanes<T>, step = sizeof(V) / sizeof(T);
  ws.used = (count + lanes - 1) / lanes;
  ws.used_groups = (ws.used + lanes - 1) / lanes;
  ws.used_regions = (ws.used_groups + lanes - 1) / lanes;
  for (std::int32_t slot = count; slot < ws.used * lanes; ++slot) {
    Block<T>& block = ws.blocks[slot / lanes];
    block.start[slot % lanes] = infinity;
    block.end[slot % lanes] = -infinity;
    block.area[slot % lanes] = T(0);
    block.score[slot % lanes] = kGone<T>;
  }
  for (std::int32_t b = 0; b < ws.used; ++b) {
    Block<T>& block = ws.blocks[b];
    V low = splat<V>(infinity), high = splat<V>(-infinity);
    for (int l = 0; l < lanes; l += step) {
      const V start = load<V>(block.start + l), end = load<V>(block.end + l);
      low = minimum(low, start);
      high = maximum(high, end);
    }
    Entry<T> entry(ws.groups, b);
    entry.low = -largest<T>(-low);
    entry.high = largest<T>(high);
    entry.known = entry.bound = highest_of<bytes>(block);
    ws.seen[b] = ws.visited[b] = 0;
    ws.left[b] = count_in_play<bytes>(block);
  }
  const auto leave_empty = [](Entry<T> entry) {
    entry.low = infinity;
    entry.high = -infinity;
    entry.known = entry.bound = 0;
  };
  for (std::int32_t b = ws.used; b < ws.used_groups * lanes; ++b) leave_empty({ws.groups, b});
  std::int64_t logged = count;
  if (ws.large()) {
    for (std::int32_t g = 0; g < ws.used_groups; ++g) {
      Entry<T> entry(ws.regions, g);
      const Summary<T>& group = ws.groups[g];
      entry.low = *std::min_element(group.low, group.low + lanes);
      entry.high = *std::max_element(group.high, group.high + lanes);
      sum_up<bytes>(ws, g);
    }
    for (std::int32_t g = ws.used_groups; g < ws.used_regions * lanes; ++g) leave_empty({ws.regions, g});
    ws.all_left = 0;
    for (std::int32_t b = 0; b < ws.used; ++b) ws.all_left += ws.left[b];
    logged = std::int64_t{ws.used_groups} * kMostLogged<T>;
  }
  ws.full = false;
  std::fill_n(ws.logged.data(), ws.used_groups, 0);
  std::fill_n(ws.log_start.data(), logged + lanes, infinity);
  std::fill_n(ws.log_end.data(), logged + lanes, -infinity);
  ws.first_pick += ws.picks;
  ws.picks = 0;
}

template <int bytes, typename T>
BCNET_INLINE void build_layout(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules,
                               Workspace<T>& ws) {
  order_in_space(segments, count, ws);
  for (std::int32_t slot = 0; slot < count; ++slot) {
    Block<T>& block = ws.blocks[slot / kLanes<T>];
    const int l = slot % kLanes<T>;
    const std::int64_t candidate = ws.order[slot];
    const T score = scores[candidate], start = segments[2 * candidate], end = segments[2 * candidate + 1];
    block.start[l] = start;
    block.end[l] = end;
    block.area[l] = rules.area(start, end);
    // Those that are too low from the start leave with the first that become so.
    block.score[l] = score >= rules.lowest_score ? bit_cast<ScoreBits<T>>(score) : kGone<T> + 1;
    block.candidate[l] = static_cast<std::int32_t>(candidate);
  }
  ws.picks = ws.first_pick = 0;
  close_layout<bytes>(ws, count);
  ws.followed = -1;
  ws.fallen_count = 0;
}

// Moves the candidates still in play together, in the order they lie in.
template <int bytes, typename T>
BCNET_INLINE void compact_layout(Workspace<T>& ws) {
  std::int32_t to = 0;
  for (std::int32_t from = 0; from < ws.used * kLanes<T>; ++from) {
    // Copied in any case, and overwritten by the next one if not in play: cheaper than a branch that is hard to predict.
    const Block<T>& old = ws.blocks[from / kLanes<T>];
    Block<T>& block = ws.blocks[to / kLanes<T>];
    const int l = from % kLanes<T>, k = to % kLanes<T>;
    const ScoreBits<T> score = old.score[l];
    block.start[k] = old.start[l];
    block.end[k] = old.end[l];
    block.area[k] = old.area[l];
    block.score[k] = score;
    block.candidate[k] = old.candidate[l];
    to += score > 0 ? 1 : 0;
  }
  close_layout<bytes>(ws, to);
}

}  // namespace bcnet_fast
