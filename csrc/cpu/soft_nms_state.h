// The state of a set in Soft-NMS on the CPU: its candidates lie in blocks of one cache line per field, whose neighbours
// in memory are neighbours in time and length.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <type_traits>

#include "cpu/soft_nms_rules.h"
#include "runtime/memory.h"
#include "simd/vector.h"

namespace bcnet_fast {

template <typename T>
constexpr int kLanes = kLine / static_cast<int>(sizeof(T));

// A score in play is positive, and positive floats are ordered like their bits taken as integers. A slot that is empty
// or picked has the negative number kOutOfPlay, and one that was dropped after pick k has kOutOfPlay + 1 + k: as
// floats, these are ordinary numbers. So a drop is a minimum, and the first one lasts.
template <typename T>
using ScoreBits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <typename T>
constexpr ScoreBits<T> kOutOfPlay = std::numeric_limits<ScoreBits<T>>::min() / 4 * 3;

template <typename T>
struct alignas(kLine) Block {
  T start[kLanes<T>];
  T end[kLanes<T>];
  T area[kLanes<T>];
  ScoreBits<T> score[kLanes<T>];
  std::int32_t candidate[kLanes<T>];  // index into the set
};

// Uninitialized memory, unlike that of a std::vector.
template <typename T>
class Buffer {
 public:
  explicit Buffer(std::int64_t size) : elements_(new T[static_cast<std::size_t>(size)]) {}
  T& operator[](std::int64_t i) { return elements_[i]; }
  T* data() { return elements_.get(); }

 private:
  std::unique_ptr<T[]> elements_;
};

// Summary of one group (kLanes blocks), or of one region (kLanes groups).
template <typename T>
struct alignas(kLine) Summary {
  T low[kLanes<T>];               // smallest start
  T high[kLanes<T>];              // largest end
  ScoreBits<T> known[kLanes<T>];  // highest score among blocks without pending decays; 0: none
  ScoreBits<T> bound[kLanes<T>];  // upper bound of a block's scores; of a group, of its pending blocks'
};

// The entry of block or group i.
template <typename T>
struct Entry {
  T &low, &high;
  ScoreBits<T>&known, &bound;

  Entry(Buffer<Summary<T>>& summaries, std::int32_t i) : Entry(summaries[i / kLanes<T>], i % kLanes<T>) {}

 private:
  Entry(Summary<T>& summary, int lane)
      : low(summary.low[lane]), high(summary.high[lane]), known(summary.known[lane]), bound(summary.bound[lane]) {}
};

template <typename T>
struct Pick : Picked<T> {
  ScoreBits<T> mark;  // the score of the candidates that it drops
};

// Picks that the log of a group has room for. Its last line stays empty, because a vector is read behind the last pick.
template <typename T>
constexpr std::int32_t kMaxLogged = 2 * kLanes<T> * kLanes<T>;

constexpr std::int32_t kMaxPairs = 1024;  // pairs of block and pick on the list at once

// The state of one set of at most `capacity` candidates; all memory is allocated at once. Aligned, so that two threads
// do not write to one cache line.
template <typename T>
struct alignas(kLine) SetState {
  explicit SetState(std::int64_t capacity)
      : max_blocks(capacity / kLanes<T> + 1),
        max_groups(max_blocks / kLanes<T> + 1),
        blocks(max_blocks),
        groups(max_groups),
        regions(max_groups / kLanes<T> + 1),
        applied(max_blocks),
        visited(max_blocks),
        in_play(max_blocks),
        list(max_blocks + kLanes<T>),
        group_list(max_groups + kLanes<T>),
        logged(max_groups),
        log_start(max_groups * kMaxLogged<T> + kLanes<T>),
        log_end(max_groups * kMaxLogged<T> + kLanes<T>),
        log(max_groups * kMaxLogged<T> + 1),
        pair_block(kMaxPairs),
        pair_pick(kMaxPairs),
        position(capacity),
        array(capacity),
        dropped(capacity + 1),
        order(capacity),
        part(2 * capacity),
        strip(capacity),
        starts(capacity + 2) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    log[nothing()] = {{infinity, -infinity, T(0), T(0)}, std::numeric_limits<ScoreBits<T>>::max()};
  }

  // A large set first looks for the groups that matter; in a small one this would take longer.
  bool large() const { return used_groups > kLanes<T>; }
  std::int32_t log_of(std::int32_t group) const { return large() ? group : 0; }
  std::int32_t nothing() const { return static_cast<std::int32_t>(max_groups) * kMaxLogged<T>; }  // in `log`

  const std::int64_t max_blocks, max_groups;
  Buffer<Block<T>> blocks;
  Buffer<Summary<T>> groups, regions;  // regions only in a large set
  std::int32_t used = 0, used_groups = 0, used_regions = 0;
  Buffer<std::int32_t> applied;           // per block: picks of its log that have decayed it
  Buffer<std::int32_t> visited;           // per block: number of picks at its last visit
  Buffer<std::int32_t> in_play;           // per block of a large set: candidates in play at its last visit
  std::int64_t total_in_play = 0;         // their sum
  Buffer<std::int32_t> list, group_list;  // workspace: of blocks, of groups

  // The picks since the candidates were laid out, numbered from `first_pick` on.
  std::int32_t picks = 0, first_pick = 0;
  // Every group of a large set logs the picks that overlap it. A small set has one log of all picks.
  Buffer<std::int32_t> logged;   // per log: its picks
  bool full = false;             // whether any log is full
  Buffer<T> log_start, log_end;  // log after log
  Buffer<Pick<T>> log;
  Buffer<std::int32_t> pair_block, pair_pick;  // the latter in `log`

  // The working array of the plain algorithm after `replayed` picks, -1 before it was needed. Its first elements are
  // the picks, and it ends at `remaining`.
  std::int32_t replayed = -1, remaining = 0;
  Buffer<std::int32_t> position;  // of each candidate in it; -1: dropped
  Buffer<std::int32_t> array;     // of candidates
  Buffer<std::uint64_t> dropped;  // pick << 32 | candidate, dropped and still in the array
  std::int32_t dropped_count = 0;

  Buffer<std::int32_t> order, part, strip, starts;  // workspace: of candidates
};

}  // namespace bcnet_fast
