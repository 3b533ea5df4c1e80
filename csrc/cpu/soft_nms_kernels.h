// Greedy Soft-NMS of one set. Included once per instruction set.
#include "cpu/soft_nms_decay.h"
#include "cpu/soft_nms_layout_kernels.h"
#include "simd/library_exponential.h"

// With a flag as wide as a value, so that compilers vectorise the loop.
template <typename T>
bool only_usable(const T* segments, const T* scores, std::int64_t count) {
  std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> bad = 0;
  for (std::int64_t i = 0; i < count; ++i) bad |= usable(segments[2 * i], segments[2 * i + 1], scores[i]) ? 0 : 1;
  return bad == 0;
}

// Bit l tells whether number l of a line is at least `least`. Requires: least > 0.
template <typename N>
BCNET_INLINE std::uint32_t at_least(const N* line, N least) {
  using I = Vec<N>;
  constexpr int lanes = kLine / sizeof(N);
  const I none{}, less = splat<I>(static_cast<N>(least - 1));
  std::uint32_t bits = 0;
  for (int l = 0; l < lanes; l += sizeof(I) / sizeof(N)) {
    // Negative numbers first become 0, so that the difference does not overflow.
    bits |= signs_of<N>(less - maximum(load<I>(line + l), none)) << l;
  }
  return bits;
}

// line[lane] = value. Writes the whole vector: it is read as a vector right after that, and a load cannot be served
// from a smaller store in flight.
template <typename N>
BCNET_INLINE void set_lane(N* line, int lane, N value) {
  using I = Vec<N>;
  constexpr int step = sizeof(I) / sizeof(N);
  N ascending[step];
  for (int l = 0; l < step; ++l) ascending[l] = l;
  N* const vector = line + lane / step * step;
  I changed = load<I>(ascending) == splat<I>(static_cast<N>(lane % step)) ? splat<I>(value) : load<I>(vector);
  store(vector, changed);
}

// The factors of Decay::library_gaussian, see decay_factor.
template <typename V>
BCNET_INLINE V library_decay_factor(V start, V end, V area, const Picked<float>& picked, const Rules<float>& rules) {
  using I = Vector<std::int32_t, sizeof(V)>;
  const V inter = minimum(end, splat<V>(picked.end)) - maximum(start, splat<V>(picked.start));
  const V tiou = inter / ((picked.area + area) - inter);
  // exp(-0) is 1.
  const V counted = tiou >= picked.threshold ? tiou : V{}, square = -(counted * counted);
  if (!signs_of<float>(square < 0.0f ? splat<I>(std::int32_t{-1}) : I{})) return splat<V>(1.0f);
  return library_exp_nonpositive(rules.inverse_sigma != 0 ? square * rules.inverse_sigma : square / rules.sigma);
}

// Takes a copy of the rules, which the compiler need not read again after each store.
template <Decay decay, typename T>
BCNET_INLINE void decay_pairs_by(SetState<T>& state, std::int32_t pairs, const Rules<T> rules) {
  using V = Vec<T>;
  using I = Vec<ScoreBits<T>>;
  constexpr int step = kWidth<T>, parts = kLanes<T> / step;
  constexpr int at_once = parts < 4 ? 4 / parts : 1;
  Block<T>* blocks = state.blocks.data();
  const Pick<T>* log = state.log.data();
  std::int32_t* pair_block = state.pair_block.data();
  std::int32_t* pair_pick = state.pair_pick.data();
  for (; pairs % at_once; ++pairs) {
    pair_block[pairs] = 0;
    pair_pick[pairs] = state.nothing();
  }
  for (std::int32_t i = 0; i < pairs; i += at_once) {
    V factor[at_once][parts];
    for (int k = 0; k < at_once; ++k) {
      const Block<T>& block = blocks[pair_block[i + k]];
      const Picked<T>& pick = log[pair_pick[i + k]];
      for (int p = 0; p < parts; ++p) {
        const V start = load<V>(block.start + p * step), end = load<V>(block.end + p * step);
        const V area = load<V>(block.area + p * step);
        if constexpr (decay == Decay::library_gaussian) {
          factor[k][p] = library_decay_factor(start, end, area, pick, rules);
        } else {
          factor[k][p] = decay_factor<decay>(start, end, area, pick, rules);
        }
      }
    }
    for (int k = 0; k < at_once; ++k) {
      Block<T>& block = blocks[pair_block[i + k]];
      const I mark = splat<I>(log[pair_pick[i + k]].mark);
      for (int p = 0; p < parts; ++p) {
        const I before = load<I>(block.score + p * step);
        const V decayed = bit_cast<V>(before) * factor[k][p];
        store(block.score + p * step, decayed >= rules.lowest_score ? bit_cast<I>(decayed) : minimum(before, mark));
      }
    }
  }
}

// Multiplies the scores of the blocks by their decay, pair after pair, and drops what falls too low.
template <typename T>
BCNET_NOINLINE void decay_pairs(SetState<T>& state, std::int32_t pairs, const Rules<T>& rules) {
  switch (rules.decay) {
    case Decay::gaussian: return decay_pairs_by<Decay::gaussian>(state, pairs, rules);
    case Decay::linear: return decay_pairs_by<Decay::linear>(state, pairs, rules);
    case Decay::hard: return decay_pairs_by<Decay::hard>(state, pairs, rules);
    case Decay::library_gaussian:
      if constexpr (std::is_same_v<T, float>) decay_pairs_by<Decay::library_gaussian>(state, pairs, rules);
  }
}

// Decays the blocks on the list by all their pending picks. Returns the highest score among them.
template <typename T>
BCNET_NOINLINE ScoreBits<T> visit(SetState<T>& state, std::int32_t listed, const Rules<T>& rules) {
  using V = Vec<T>;
  constexpr int step = kWidth<T>;
  std::int32_t pairs = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t b = state.list[i], log = state.log_of(b / kLanes<T>), logged = state.logged[log];
    const Entry<T> entry(state.groups, b);
    const V low = splat<V>(entry.low), high = splat<V>(entry.high);
    for (std::int32_t k = log * kMaxLogged<T> + state.applied[b]; k < log * kMaxLogged<T> + logged; k += step) {
      if (pairs > kMaxPairs - kLanes<T>) {
        decay_pairs(state, pairs, rules);
        pairs = 0;
      }
      const V gap =
          maximum(low, load<V>(state.log_start.data() + k)) - minimum(high, load<V>(state.log_end.data() + k));
      std::fill_n(state.pair_block.data() + pairs, kLanes<T>, b);
      pairs += append_negative<T>(gap, k, state.pair_pick.data() + pairs);
    }
    state.applied[b] = logged;
    state.visited[b] = state.picks;
  }
  decay_pairs(state, pairs, rules);
  ScoreBits<T> highest = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t b = state.list[i];
    Entry<T> entry(state.groups, b);
    entry.known = entry.bound = highest_of(state.blocks[b]);
    highest = std::max(highest, entry.known);
  }
  for (std::int32_t i = 0; state.large() && i < listed; ++i) {
    const std::int32_t b = state.list[i], left = count_in_play(state.blocks[b]), group = b / kLanes<T>;
    state.total_in_play += left - state.in_play[b];
    state.in_play[b] = left;
    if (i + 1 == listed || state.list[i + 1] / kLanes<T> != group) summarize_group(state, group);
  }
  return highest;
}

// Lists all blocks with pending decays that may have a score of at least `least`. Requires: least > 0.
template <typename T>
BCNET_INLINE std::int32_t list_pending(SetState<T>& state, ScoreBits<T> least) {
  using I = Vec<ScoreBits<T>>;
  const I less = splat<I>(least - 1);
  std::int32_t listed = 0;
  for (std::int32_t g = 0; g < state.used_groups; ++g) {
    if (state.large() && Entry<T>(state.regions, g).bound < least) continue;
    const Summary<T>& group = state.groups[g];
    for (int l = 0; l < kLanes<T>; l += kWidth<T>) {
      const I pending = load<I>(group.bound + l) - load<I>(group.known + l);
      listed += append_negative<T>(less - pending, g * kLanes<T> + l, state.list.data() + listed);
    }
  }
  return listed;
}

// The slot with the score `top`, the highest; -1 when several candidates have it.
template <typename T>
BCNET_INLINE std::int32_t unique_slot_of(SetState<T>& state, ScoreBits<T> top) {
  std::int32_t listed = state.used_groups;
  if (state.large()) {
    listed = 0;
    for (std::int32_t r = 0; r < state.used_regions; ++r) {
      for (std::uint32_t found = at_least(state.regions[r].known, top); found; found &= found - 1) {
        state.group_list[listed++] = r * kLanes<T> + lowest_bit(found);
      }
    }
  }
  std::uint32_t blocks = 0;
  std::int32_t group = 0, groups = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t g = state.large() ? state.group_list[i] : i;
    const std::uint32_t found = at_least(state.groups[g].known, top);
    const std::int32_t any = found != 0;
    blocks |= found;
    group |= g & -any;  // meaningless if there are several
    groups += any;
  }
  if (groups > 1) return -1;
  const std::int32_t b = group * kLanes<T> + lowest_bit(blocks);
  const std::uint32_t lanes = at_least(state.blocks[b].score, top);
  const auto several = [](std::uint32_t bits) { return bits & (bits - 1); };
  return several(blocks) | several(lanes) ? -1 : b * kLanes<T> + lowest_bit(lanes);
}

template <typename T>
struct Highest {
  ScoreBits<T> known, bound;  // of blocks without, and with pending decays
};

// Lists the groups that a pick may overlap. The others contribute to the highest scores at once.
template <typename T>
BCNET_INLINE std::int32_t list_overlapped(SetState<T>& state, const Picked<T>& pick, Vec<ScoreBits<T>>& highest_known,
                                          Vec<ScoreBits<T>>& highest_bound) {
  using V = Vec<T>;
  using I = Vec<ScoreBits<T>>;
  const V start = splat<V>(pick.start), end = splat<V>(pick.end);
  const I none{};
  std::int32_t listed = 0;
  for (std::int32_t r = 0; r < state.used_regions; ++r) {
    const Summary<T>& region = state.regions[r];
    for (int l = 0; l < kLanes<T>; l += kWidth<T>) {
      const V gap = maximum(start, load<V>(region.low + l)) - minimum(end, load<V>(region.high + l));
      listed += append_negative<T>(gap, r * kLanes<T> + l, state.group_list.data() + listed);
      highest_known = maximum(highest_known, bit_cast<I>(gap) < none ? none : load<I>(region.known + l));
      highest_bound = maximum(highest_bound, bit_cast<I>(gap) < none ? none : load<I>(region.bound + l));
    }
  }
  return listed;
}

// Logs a pick for the blocks that it overlaps, whose decay becomes pending.
template <typename T>
BCNET_INLINE Highest<T> defer_decays(SetState<T>& state, const Pick<T>& pick) {
  using V = Vec<T>;
  using I = Vec<ScoreBits<T>>;
  const V start = splat<V>(pick.start), end = splat<V>(pick.end);
  const I none{};
  I highest_known{}, highest_bound{};
  const bool large = state.large();
  const std::int32_t listed = large ? list_overlapped(state, pick, highest_known, highest_bound) : state.used_groups;
  for (std::int32_t i = 0; i < listed; ++i) {
    Summary<T>& group = state.groups[large ? state.group_list[i] : i];
    for (int l = 0; l < kLanes<T>; l += kWidth<T>) {
      const V gap = maximum(start, load<V>(group.low + l)) - minimum(end, load<V>(group.high + l));
      const I known = bit_cast<I>(gap) < none ? none : load<I>(group.known + l);
      store(group.known + l, known);
      highest_known = maximum(highest_known, known);
      highest_bound = maximum(highest_bound, load<I>(group.bound + l) - known);
    }
  }
  for (std::int32_t i = 0; i < (large ? listed : 1); ++i) {
    const std::int32_t log = large ? state.group_list[i] : 0;
    const std::int32_t entry = log * kMaxLogged<T> + state.logged[log]++;
    state.log_start[entry] = pick.start;
    state.log_end[entry] = pick.end;
    state.log[entry] = pick;
    state.full |= large && state.logged[log] == kMaxLogged<T> - kLanes<T>;
    if (large) summarize_group(state, log);
  }
  return {largest<ScoreBits<T>>(highest_known), largest<ScoreBits<T>>(highest_bound)};
}

template <typename T>
Highest<T> highest_known_score(SetState<T>& state) {
  Highest<T> highest{};
  for (std::int32_t b = 0; b < state.used; ++b)
    highest.known = std::max(highest.known, Entry<T>(state.groups, b).known);
  return highest;
}

// Soft-NMS of one set; returns the number of picks.
template <typename T>
std::int32_t solve(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules, SetState<T>& state,
                   std::int64_t index_offset, std::int64_t* indices, T* picked_scores) {
  if (count == 0) return 0;
  build_layout(segments, scores, count, rules, state);
  Highest<T> highest = highest_known_score(state);
  std::int32_t picks = 0;
  for (; picks < rules.max_picks; ++picks) {
    if (highest.bound > 0 && highest.bound >= highest.known) {
      // Blocks just below would be visited for one of the next picks: visiting them together takes less time.
      const auto least = bit_cast<ScoreBits<T>>(bit_cast<T>(highest.known) * T(0.9));
      const std::int32_t listed = list_pending(state, std::max<ScoreBits<T>>(1, least));
      highest.known = std::max(highest.known, visit(state, listed, rules));
    }
    if (highest.known == 0) break;
    std::int32_t slot = unique_slot_of(state, highest.known);
    if (slot < 0) {
      visit(state, list_pending(state, ScoreBits<T>{1}), rules);
      replay_picks(state, count, indices, index_offset);
      slot = first_tied_slot(state, highest.known);
    }
    const std::int32_t b = slot / kLanes<T>;
    const int lane = slot % kLanes<T>;
    Block<T>& block = state.blocks[b];
    const T start = block.start[lane], end = block.end[lane];
    indices[picks] = index_offset + block.candidate[lane];
    picked_scores[picks] = bit_cast<T>(block.score[lane]);

    set_lane(block.score, lane, kOutOfPlay<T>);
    Summary<T>& group = state.groups[b / kLanes<T>];
    set_lane(group.bound, b % kLanes<T>, highest_of(block));
    set_lane(group.known, b % kLanes<T>, ScoreBits<T>{0});
    if (state.large() && !(end > start))
      summarize_group(state, b / kLanes<T>);  // The pick does not overlap its own block.
    const Pick<T> pick{rules.picked(start, end), kOutOfPlay<T> + 1 + state.picks};
    ++state.picks;
    highest = defer_decays(state, pick);

    if (state.large()) {
      --state.in_play[b];
      --state.total_in_play;
      // Pays once half of the slots are out of play.
      if (state.full || 2 * state.total_in_play < std::int64_t{state.used} * kLanes<T>) {
        visit(state, list_pending(state, ScoreBits<T>{1}), rules);
        if (state.replayed < 0) {
          collect_dropped(state, 0);
        } else {
          replay_picks(state, count, indices, index_offset);
        }
        compact_layout(state);
        highest = highest_known_score(state);
      }
    }
  }
  return picks;
}
