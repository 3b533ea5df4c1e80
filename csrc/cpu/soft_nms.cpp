// Greedy Soft-NMS, exact, in four ideas:
//
// 1. A pick changes only candidates that overlap it. They lie in blocks (soft_nms_blocks.h), and a pick skips each block whose
//    range it does not meet.
// 2. Scores only fall, so that the highest score that a block had bounds those it has. A block that a pick meets waits until
//    its bound reaches the highest score that is known; then all the picks it waited for decay it in one visit. In a long
//    video that is one visit for four or five of them.
// 3. The decays of some visits are a list of pairs of block and pick, worked off without a branch, several pairs at a time,
//    because one alone is a long chain of dependent instructions.
// 4. Equal scores are told apart by their place in the working array of the plain algorithm, which swaps candidates. That
//    array is followed only when candidates are tied for a pick: each one knows after which pick it was dropped.
#include "include/soft_nms.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd/denormals.h"
#include "runtime/parallel.h"
#include "simd/simd.h"
#include "cpu/soft_nms_blocks.h"
#include "cpu/soft_nms_rules.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("schedule-insns")  // else GCC leaves the instructions of the pairs one after the other
#endif

namespace bcnet_fast {
namespace {

// With a flag as wide as a value, so that compilers vectorise it.
template <int bytes, typename T>
BCNET_INLINE bool only_usable(const T* segments, const T* scores, std::int64_t count) {
  std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= usable(segments[2 * i], segments[2 * i + 1], scores[i]) ? 0 : 1;
  return bad == 0;
}

BCNET_VERSIONS(only_usable)

// Bit l: whether number l of a line is at least `least`, which is positive.
template <int bytes, typename N>
BCNET_INLINE std::uint32_t at_least(const N* line, N least) {
  using I = Vector<N, bytes>;
  constexpr int lanes = kLine / sizeof(N);
  const I none{}, less = splat<I>(static_cast<N>(least - 1));
  std::uint32_t bits = 0;
  for (int l = 0; l < lanes; l += sizeof(I) / sizeof(N)) {
    // Negative numbers first become 0, lest the difference overflows.
    bits |= signs_of<N>(less - maximum(load<I>(line + l), none)) << l;
  }
  return bits;
}

// line[lane] = value. All of the vector is written, since it is read as a vector right after that, which would have to wait
// for a number alone to reach the cache.
template <int bytes, typename N>
BCNET_INLINE void set_lane(N* line, int lane, N value) {
  using I = Vector<N, bytes>;
  constexpr int step = sizeof(I) / sizeof(N);
  N ascending[step];
  for (int l = 0; l < step; ++l) ascending[l] = l;
  N* const vector = line + lane / step * step;
  I changed = load<I>(ascending) == splat<I>(static_cast<N>(lane % step)) ? splat<I>(value) : load<I>(vector);
  BCNET_OPAQUE(changed);  // else GCC would store the one number
  store(vector, changed);
}

// With a copy of the rules, which no store can change.
template <int bytes, Decay decay, typename T>
BCNET_INLINE void decay_pairs_by(Workspace<T>& ws, std::int32_t pairs, const Rules<T> rules) {
  using V = Vector<T, bytes>;
  using I = Vector<ScoreBits<T>, bytes>;
  constexpr int step = sizeof(V) / sizeof(T), parts = kLanes<T> / step;
  constexpr int at_once = parts < 4 ? 4 / parts : 1;
  Block<T>* blocks = ws.blocks.data();
  const Pick<T>* log = ws.log.data();
  std::int32_t* pair_block = ws.pair_block.data();
  std::int32_t* pair_pick = ws.pair_pick.data();
  for (; pairs % at_once; ++pairs) {
    pair_block[pairs] = 0;
    pair_pick[pairs] = ws.nothing();
  }
  for (std::int32_t i = 0; i < pairs; i += at_once) {
    V factor[at_once][parts];
    for (int k = 0; k < at_once; ++k) {
      const Block<T>& block = blocks[pair_block[i + k]];
      const Picked<T>& pick = log[pair_pick[i + k]];
      for (int p = 0; p < parts; ++p) {
        factor[k][p] = decay_factor<decay>(load<V>(block.start + p * step), load<V>(block.end + p * step),
                                           load<V>(block.area + p * step), pick, rules);
      }
    }
    for (int k = 0; k < at_once; ++k) {
      Block<T>& block = blocks[pair_block[i + k]];
      const I mark = broadcast<ScoreBits<T>, bytes>(&log[pair_pick[i + k]].mark);
      for (int p = 0; p < parts; ++p) {
        const I before = load<I>(block.score + p * step);
        const V decayed = bit_cast<V>(before) * factor[k][p];
        store(block.score + p * step, decayed >= rules.lowest_score ? bit_cast<I>(decayed) : minimum(before, mark));
      }
    }
  }
}

// Multiplies the scores of the blocks by their decay, pair after pair, and drops what falls too low.
template <int bytes, typename T>
BCNET_INLINE void decay_pairs(Workspace<T>& ws, std::int32_t pairs, const Rules<T>& rules) {
  switch (rules.decay) {
    case Decay::gaussian: return decay_pairs_by<bytes, Decay::gaussian>(ws, pairs, rules);
    case Decay::linear: return decay_pairs_by<bytes, Decay::linear>(ws, pairs, rules);
    case Decay::hard: return decay_pairs_by<bytes, Decay::hard>(ws, pairs, rules);
  }
}

BCNET_VERSIONS(decay_pairs)

// Decays the blocks on the list by all picks that they have waited for. Returns the highest score among them.
template <int bytes, typename T>
BCNET_INLINE ScoreBits<T> visit(Workspace<T>& ws, std::int32_t listed, const Rules<T>& rules) {
  using V = Vector<T, bytes>;
  constexpr int step = sizeof(V) / sizeof(T);
  std::int32_t pairs = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t b = ws.list[i], log = ws.log_of(b / kLanes<T>), logged = ws.logged[log];
    const Entry<T> entry(ws.groups, b);
    const V low = splat<V>(entry.low), high = splat<V>(entry.high);
    for (std::int32_t k = log * kMostLogged<T> + ws.seen[b]; k < log * kMostLogged<T> + logged; k += step) {
      if (pairs > kMostPairs - kLanes<T>) {
        decay_pairs_with<bytes>(ws, pairs, rules);
        pairs = 0;
      }
      const V gap = maximum(low, load<V>(ws.log_start.data() + k)) - minimum(high, load<V>(ws.log_end.data() + k));
      std::fill_n(ws.pair_block.data() + pairs, kLanes<T>, b);
      pairs += append_negative<T>(gap, k, ws.pair_pick.data() + pairs);
    }
    ws.seen[b] = logged;
    ws.visited[b] = ws.picks;
  }
  decay_pairs_with<bytes>(ws, pairs, rules);
  ScoreBits<T> highest = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t b = ws.list[i];
    Entry<T> entry(ws.groups, b);
    entry.known = entry.bound = highest_of<bytes>(ws.blocks[b]);
    highest = std::max(highest, entry.known);
  }
  for (std::int32_t i = 0; ws.large() && i < listed; ++i) {
    const std::int32_t b = ws.list[i], left = count_in_play<bytes>(ws.blocks[b]), group = b / kLanes<T>;
    ws.all_left += left - ws.left[b];
    ws.left[b] = left;
    if (i + 1 == listed || ws.list[i + 1] / kLanes<T> != group) sum_up<bytes>(ws, group);
  }
  return highest;
}

BCNET_VERSIONS(visit)

// Puts on the list all blocks that wait for decays and may have a score of at least `least`, which is positive.
template <int bytes, typename T>
BCNET_INLINE std::int32_t list_waiting(Workspace<T>& ws, ScoreBits<T> least) {
  using I = Vector<ScoreBits<T>, bytes>;
  const I less = splat<I>(least - 1);
  std::int32_t listed = 0;
  for (std::int32_t g = 0; g < ws.used_groups; ++g) {
    if (ws.large() && Entry<T>(ws.regions, g).bound < least) continue;
    const Summary<T>& group = ws.groups[g];
    for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) {
      const I waiting = load<I>(group.bound + l) - load<I>(group.known + l);
      listed += append_negative<T>(less - waiting, g * kLanes<T> + l, ws.list.data() + listed);
    }
  }
  return listed;
}

// Notes the candidates of the blocks visited after the first `visited` picks that were dropped, if `place` does not say that
// they have left the array already.
template <typename T>
void note_fallen(Workspace<T>& ws, std::int32_t visited) {
  for (std::int32_t b = 0; b < ws.used; ++b) {
    if (visited > 0 && ws.visited[b] <= visited) continue;
    const Block<T>& block = ws.blocks[b];
    for (int l = 0; l < kLanes<T>; ++l) {
      const ScoreBits<T> mark = block.score[l];
      if (mark <= kGone<T> || mark >= kGone<T> + 1 + ws.picks) continue;  // picked, empty, in play; too low from the start
      const std::int32_t candidate = block.candidate[l];
      if (ws.followed >= 0 && ws.place[candidate] < 0) continue;
      const auto pick = static_cast<std::uint64_t>(ws.first_pick + (mark - (kGone<T> + 1)));
      ws.fallen[ws.fallen_count++] = pick << 32 | static_cast<std::uint32_t>(candidate);
    }
  }
}

// Takes candidates out of the working array, whose places are given in ascending order: these are scanned upward, the last
// candidate of the array is put in the place of a dropped one, and that place is looked at again.
template <typename T>
void remove_from_array(Workspace<T>& ws, const std::int32_t* places, std::int32_t count) {
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t place = places[i];
    while (place < ws.remaining && ws.place[ws.array[place]] < 0) ws.array[place] = ws.array[--ws.remaining];
    if (place < ws.remaining) ws.place[ws.array[place]] = place;
  }
}

// Brings the working array up to the latest pick; all blocks have been visited. `picked` are the picks of the set.
template <typename T>
void follow(Workspace<T>& ws, std::int32_t count, const std::int64_t* picked, std::int64_t index_offset) {
  if (ws.followed < 0) {
    note_fallen(ws, 0);
    ws.followed = 0;
    ws.remaining = count;
    for (std::int32_t c = 0; c < count; ++c) ws.place[c] = ws.array[c] = c;
  } else {
    note_fallen(ws, ws.followed - ws.first_pick);
  }
  std::sort(ws.fallen.data(), ws.fallen.data() + ws.fallen_count);
  std::int32_t* const places = ws.order.data();
  std::int32_t next = 0;
  for (; ws.followed < ws.first_pick + ws.picks; ++ws.followed) {
    const auto candidate = static_cast<std::int32_t>(picked[ws.followed] - index_offset);
    const std::int32_t place = ws.place[candidate], displaced = ws.array[ws.followed];
    ws.array[place] = displaced;
    ws.place[displaced] = place;
    std::int32_t leaving = 0;
    for (; next < ws.fallen_count && static_cast<std::int32_t>(ws.fallen[next] >> 32) == ws.followed; ++next) {
      std::int32_t& left = ws.place[static_cast<std::uint32_t>(ws.fallen[next])];
      places[leaving++] = left;
      left = -1;
    }
    std::sort(places, places + leaving);
    remove_from_array(ws, places, leaving);
  }
  ws.fallen_count = 0;
}

// The slot of the highest score, which is known; -1 when several candidates have it.
template <int bytes, typename T>
BCNET_INLINE std::int32_t only_slot_of(Workspace<T>& ws, ScoreBits<T> top) {
  std::int32_t listed = ws.used_groups;
  if (ws.large()) {
    listed = 0;
    for (std::int32_t r = 0; r < ws.used_regions; ++r) {
      for (std::uint32_t found = at_least<bytes>(ws.regions[r].known, top); found; found &= found - 1) {
        ws.group_list[listed++] = r * kLanes<T> + lowest_bit(found);
      }
    }
  }
  std::uint32_t blocks = 0;
  std::int32_t group = 0, groups = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t g = ws.large() ? ws.group_list[i] : i;
    const std::uint32_t found = at_least<bytes>(ws.groups[g].known, top);
    const std::int32_t any = found != 0;
    blocks |= found;
    group |= g & -any;  // what it is if there are several does not matter
    groups += any;
  }
  if (groups > 1) return -1;
  const std::int32_t b = group * kLanes<T> + lowest_bit(blocks);
  const std::uint32_t lanes = at_least<bytes>(ws.blocks[b].score, top);
  const auto several = [](std::uint32_t bits) { return bits & (bits - 1); };
  return several(blocks) | several(lanes) ? -1 : b * kLanes<T> + lowest_bit(lanes);
}

// Of the slots with the highest score that with the lowest place in the working array.
template <typename T>
std::int32_t first_slot_of(Workspace<T>& ws, ScoreBits<T> top) {
  std::int32_t first = -1, lowest = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t b = 0; b < ws.used; ++b) {
    if (Entry<T>(ws.groups, b).known != top) continue;
    const Block<T>& block = ws.blocks[b];
    for (int l = 0; l < kLanes<T>; ++l) {
      if (block.score[l] != top || ws.place[block.candidate[l]] >= lowest) continue;
      first = b * kLanes<T> + l;
      lowest = ws.place[block.candidate[l]];
    }
  }
  return first;
}

template <typename T>
struct Highest {
  ScoreBits<T> known, bound;  // the bound is that of the blocks that wait
};

// Lists the groups that a pick may meet. Takes the others into account for what is highest.
template <int bytes, typename T>
BCNET_INLINE std::int32_t list_met(Workspace<T>& ws, const Picked<T>& pick, Vector<ScoreBits<T>, bytes>& highest_known,
                                   Vector<ScoreBits<T>, bytes>& highest_bound) {
  using V = Vector<T, bytes>;
  using I = Vector<ScoreBits<T>, bytes>;
  const V start = splat<V>(pick.start), end = splat<V>(pick.end);
  const I none{};
  std::int32_t listed = 0;
  for (std::int32_t r = 0; r < ws.used_regions; ++r) {
    const Summary<T>& region = ws.regions[r];
    for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) {
      const V gap = maximum(start, load<V>(region.low + l)) - minimum(end, load<V>(region.high + l));
      listed += append_negative<T>(gap, r * kLanes<T> + l, ws.group_list.data() + listed);
      highest_known = maximum(highest_known, bit_cast<I>(gap) < none ? none : load<I>(region.known + l));
      highest_bound = maximum(highest_bound, bit_cast<I>(gap) < none ? none : load<I>(region.bound + l));
    }
  }
  return listed;
}

// Lets the blocks wait that a pick meets, which is logged.
template <int bytes, typename T>
BCNET_INLINE Highest<T> let_wait(Workspace<T>& ws, const Pick<T>& pick) {
  using V = Vector<T, bytes>;
  using I = Vector<ScoreBits<T>, bytes>;
  const V start = splat<V>(pick.start), end = splat<V>(pick.end);
  const I none{};
  I highest_known{}, highest_bound{};
  const bool large = ws.large();
  const std::int32_t met = large ? list_met<bytes>(ws, pick, highest_known, highest_bound) : ws.used_groups;
  for (std::int32_t i = 0; i < met; ++i) {
    Summary<T>& group = ws.groups[large ? ws.group_list[i] : i];
    for (int l = 0; l < kLanes<T>; l += sizeof(I) / sizeof(T)) {
      const V gap = maximum(start, load<V>(group.low + l)) - minimum(end, load<V>(group.high + l));
      const I known = bit_cast<I>(gap) < none ? none : load<I>(group.known + l);
      store(group.known + l, known);
      highest_known = maximum(highest_known, known);
      highest_bound = maximum(highest_bound, load<I>(group.bound + l) - known);
    }
  }
  for (std::int32_t i = 0; i < (large ? met : 1); ++i) {
    const std::int32_t log = large ? ws.group_list[i] : 0;
    const std::int32_t entry = log * kMostLogged<T> + ws.logged[log]++;
    ws.log_start[entry] = pick.start;
    ws.log_end[entry] = pick.end;
    ws.log[entry] = pick;
    ws.full |= large && ws.logged[log] == kMostLogged<T> - kLanes<T>;
    if (large) sum_up<bytes>(ws, log);
  }
  return {largest<ScoreBits<T>>(highest_known), largest<ScoreBits<T>>(highest_bound)};
}

template <typename T>
Highest<T> highest_of_all(Workspace<T>& ws) {
  Highest<T> highest{};
  for (std::int32_t b = 0; b < ws.used; ++b) highest.known = std::max(highest.known, Entry<T>(ws.groups, b).known);
  return highest;
}

// Soft-NMS of one set; returns the number of picks.
template <int bytes, typename T>
BCNET_INLINE std::int32_t solve(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules,
                                Workspace<T>& ws, std::int64_t index_offset, std::int64_t* indices, T* picked_scores) {
  if (count == 0) return 0;
  build_layout<bytes>(segments, scores, count, rules, ws);
  Highest<T> highest = highest_of_all(ws);
  std::int32_t picks = 0;
  for (; picks < rules.max_picks; ++picks) {
    if (highest.bound > 0 && highest.bound >= highest.known) {
      // Blocks just below would be visited for one of the next picks: together it takes less time.
      const auto least = bit_cast<ScoreBits<T>>(bit_cast<T>(highest.known) * T(0.9));
      const std::int32_t listed = list_waiting<bytes>(ws, std::max<ScoreBits<T>>(1, least));
      highest.known = std::max(highest.known, visit_with<bytes>(ws, listed, rules));
    }
    if (highest.known == 0) break;
    std::int32_t slot = only_slot_of<bytes>(ws, highest.known);
    if (slot < 0) {
      visit_with<bytes>(ws, list_waiting<bytes>(ws, ScoreBits<T>{1}), rules);
      follow(ws, count, indices, index_offset);
      slot = first_slot_of(ws, highest.known);
    }
    const std::int32_t b = slot / kLanes<T>;
    const int lane = slot % kLanes<T>;
    Block<T>& block = ws.blocks[b];
    const T start = block.start[lane], end = block.end[lane];
    indices[picks] = index_offset + block.candidate[lane];
    picked_scores[picks] = bit_cast<T>(block.score[lane]);

    set_lane<bytes>(block.score, lane, kGone<T>);
    Summary<T>& group = ws.groups[b / kLanes<T>];
    set_lane<bytes>(group.bound, b % kLanes<T>, highest_of<bytes>(block));
    set_lane<bytes>(group.known, b % kLanes<T>, ScoreBits<T>{0});
    if (ws.large() && !(end > start)) sum_up<bytes>(ws, b / kLanes<T>);  // The pick does not meet its own block.
    const Pick<T> pick{rules.picked(start, end), kGone<T> + 1 + ws.picks};
    ++ws.picks;
    highest = let_wait<bytes>(ws, pick);

    if (ws.large()) {
      --ws.left[b];
      --ws.all_left;
      // Worth its time once half of the slots are out of play.
      if (ws.full || 2 * ws.all_left < std::int64_t{ws.used} * kLanes<T>) {
        visit_with<bytes>(ws, list_waiting<bytes>(ws, ScoreBits<T>{1}), rules);
        if (ws.followed < 0) {
          note_fallen(ws, 0);
        } else {
          follow(ws, count, indices, index_offset);
        }
        compact_layout<bytes>(ws);
        highest = highest_of_all(ws);
      }
    }
  }
  return picks;
}

BCNET_VERSIONS(solve)

}  // namespace

template <typename T>
bool all_usable(const T* segments, const T* scores, std::int64_t count, InstructionSet instruction_set) {
  return only_usable_for(instruction_set, segments, scores, count);
}

template <typename T>
void soft_nms(const T* segments, const T* scores, const std::int64_t* offsets, std::int64_t sets,
              const SoftNmsOptions& options, InstructionSet instruction_set, int threads, std::int64_t* indices,
              T* picked_scores, std::int64_t* counts) {
  std::int64_t most = 0;
  for (std::int64_t v = 0; v < sets; ++v) most = std::max(most, offsets[v + 1] - offsets[v]);
  // A thread costs some tens of microseconds to start, about what it takes to work through this many candidates.
  constexpr std::int64_t worth_a_thread = 512;
  const std::int64_t useful = std::min(sets, offsets[sets] / worth_a_thread);
  threads = static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(threads, useful)));

  const KeepDenormals keep;  // the lowest score may be one, and so may what two segments share
  const Rules<T> rules(options);
  std::vector<Workspace<T>> workspaces;
  workspaces.reserve(threads);
  for (int t = 0; t < threads; ++t) workspaces.emplace_back(most);
  WorkQueue queue(sets);
  run_in_threads(threads, [&](int thread) {
    const KeepDenormals keep_here;
    for (std::int64_t v; queue.next(v);) {
      const std::int64_t first = offsets[v];
      counts[v] = solve_for(instruction_set, segments + 2 * first, scores + first,
                            static_cast<std::int32_t>(offsets[v + 1] - first), rules, workspaces[thread], first,
                            indices + first, picked_scores + first);
    }
  });
}

template bool all_usable(const float*, const float*, std::int64_t, InstructionSet);
template bool all_usable(const double*, const double*, std::int64_t, InstructionSet);
template void soft_nms(const float*, const float*, const std::int64_t*, std::int64_t, const SoftNmsOptions&,
                       InstructionSet, int, std::int64_t*, float*, std::int64_t*);
template void soft_nms(const double*, const double*, const std::int64_t*, std::int64_t, const SoftNmsOptions&,
                       InstructionSet, int, std::int64_t*, double*, std::int64_t*);

}  // namespace bcnet_fast
