// How Soft-NMS lays out the candidates of a set. Included once per instruction set.

// The highest score of a block, 0 when none is in play.
template <typename T>
BCNET_INLINE ScoreBits<T> highest_of(const Block<T>& block) {
  using I = Vec<ScoreBits<T>>;
  I highest{};
  for (int l = 0; l < kLanes<T>; l += kWidth<T>) highest = maximum(highest, load<I>(block.score + l));
  return largest<ScoreBits<T>>(highest);
}

// Updates the entry of a group, but for its range.
template <typename T>
BCNET_INLINE void summarize_group(SetState<T>& state, std::int32_t group) {
  using I = Vec<ScoreBits<T>>;
  I known{}, bound{};
  for (int l = 0; l < kLanes<T>; l += kWidth<T>) {
    const I known_here = load<I>(state.groups[group].known + l);
    known = maximum(known, known_here);
    bound = maximum(bound, load<I>(state.groups[group].bound + l) - known_here);
  }
  Entry<T> entry(state.regions, group);
  entry.known = largest<ScoreBits<T>>(known);
  entry.bound = largest<ScoreBits<T>>(bound);
}

// The number of candidates of a block that are in play.
template <typename T>
BCNET_INLINE std::int32_t count_in_play(const Block<T>& block) {
  using I = Vec<ScoreBits<T>>;
  std::int32_t gone = 0;
  for (int l = 0; l < kLanes<T>; l += kWidth<T>) gone += bit_count(signs_of<T>(load<I>(block.score + l)));
  return kLanes<T> - gone;
}

// Orders candidates so that each block covers a small range of starts and of ends: cuts them by start into strips of
// about half of sqrt(blocks) blocks, and sorts each strip by end. The order affects only speed, so starts and ends are
// sorted by the part of their range that they lie in. Outliers make that coarse.
template <typename T>
BCNET_INLINE void sort_by_position(const T* segments, std::int32_t count, SetState<T>& state) {
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
  std::int32_t* const part = state.part.data();
  for (std::int64_t c = 0; c < count; ++c) {
    for (int side = 0; side < 2; ++side) {
      const T at = (segments[2 * c + side] - low[side]) * scale[side];
      part[2 * c + side] = static_cast<std::int32_t>(at < last ? at : last);  // NaN if the range is 0 or infinite
    }
  }

  std::int32_t* const starts = state.starts.data();
  std::int32_t* const ends = starts + parts;
  std::int32_t* const by_end = state.array.data();
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
    state.strip[c] = --starts[part[2 * c]] >> strip_bits;
    by_end[--ends[part[2 * c + 1]]] = static_cast<std::int32_t>(c);
  }
  for (std::int32_t s = 0; s <= count >> strip_bits; ++s) starts[s] = s << strip_bits;
  for (std::int32_t c = 0; c < count; ++c) state.order[starts[state.strip[by_end[c]]]++] = by_end[c];
}

// Derives the rest of the state from start, end, score and candidate in the first `count` slots.
template <typename T>
BCNET_INLINE void complete_layout(SetState<T>& state, std::int32_t count) {
  using V = Vec<T>;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr int lanes = kLanes<T>, step = kWidth<T>;
  state.used = (count + lanes - 1) / lanes;
  state.used_groups = (state.used + lanes - 1) / lanes;
  state.used_regions = (state.used_groups + lanes - 1) / lanes;
  for (std::int32_t slot = count; slot < state.used * lanes; ++slot) {
    Block<T>& block = state.blocks[slot / lanes];
    block.start[slot % lanes] = infinity;
    block.end[slot % lanes] = -infinity;
    block.area[slot % lanes] = T(0);
    block.score[slot % lanes] = kOutOfPlay<T>;
  }
  for (std::int32_t b = 0; b < state.used; ++b) {
    Block<T>& block = state.blocks[b];
    V low = splat<V>(infinity), high = splat<V>(-infinity);
    for (int l = 0; l < lanes; l += step) {
      const V start = load<V>(block.start + l), end = load<V>(block.end + l);
      low = minimum(low, start);
      high = maximum(high, end);
    }
    Entry<T> entry(state.groups, b);
    entry.low = -largest<T>(-low);
    entry.high = largest<T>(high);
    entry.known = entry.bound = highest_of(block);
    state.applied[b] = state.visited[b] = 0;
    state.in_play[b] = count_in_play(block);
  }
  const auto leave_empty = [](Entry<T> entry) {
    entry.low = infinity;
    entry.high = -infinity;
    entry.known = entry.bound = 0;
  };
  for (std::int32_t b = state.used; b < state.used_groups * lanes; ++b) leave_empty({state.groups, b});
  std::int64_t logged = count;
  if (state.large()) {
    for (std::int32_t g = 0; g < state.used_groups; ++g) {
      Entry<T> entry(state.regions, g);
      const Summary<T>& group = state.groups[g];
      entry.low = *std::min_element(group.low, group.low + lanes);
      entry.high = *std::max_element(group.high, group.high + lanes);
      summarize_group(state, g);
    }
    for (std::int32_t g = state.used_groups; g < state.used_regions * lanes; ++g) leave_empty({state.regions, g});
    state.total_in_play = 0;
    for (std::int32_t b = 0; b < state.used; ++b) state.total_in_play += state.in_play[b];
    logged = std::int64_t{state.used_groups} * kMaxLogged<T>;
  }
  state.full = false;
  std::fill_n(state.logged.data(), state.used_groups, 0);
  std::fill_n(state.log_start.data(), logged + lanes, infinity);
  std::fill_n(state.log_end.data(), logged + lanes, -infinity);
  state.first_pick += state.picks;
  state.picks = 0;
}

template <typename T>
BCNET_INLINE void build_layout(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules,
                               SetState<T>& state) {
  sort_by_position(segments, count, state);
  for (std::int32_t slot = 0; slot < count; ++slot) {
    Block<T>& block = state.blocks[slot / kLanes<T>];
    const int l = slot % kLanes<T>;
    const std::int64_t candidate = state.order[slot];
    const T score = scores[candidate], start = segments[2 * candidate], end = segments[2 * candidate + 1];
    block.start[l] = start;
    block.end[l] = end;
    block.area[l] = rules.area(start, end);
    // Candidates too low from the start leave with the first that become so.
    block.score[l] = score >= rules.lowest_score ? bit_cast<ScoreBits<T>>(score) : kOutOfPlay<T> + 1;
    block.candidate[l] = static_cast<std::int32_t>(candidate);
  }
  state.picks = state.first_pick = 0;
  complete_layout(state, count);
  state.replayed = -1;
  state.dropped_count = 0;
}

// Moves the candidates still in play together, in their order.
template <typename T>
BCNET_INLINE void compact_layout(SetState<T>& state) {
  std::int32_t to = 0;
  for (std::int32_t from = 0; from < state.used * kLanes<T>; ++from) {
    // Always copied, and overwritten by the next one if not in play: cheaper than an unpredictable branch.
    const Block<T>& old = state.blocks[from / kLanes<T>];
    Block<T>& block = state.blocks[to / kLanes<T>];
    const int l = from % kLanes<T>, k = to % kLanes<T>;
    const ScoreBits<T> score = old.score[l];
    block.start[k] = old.start[l];
    block.end[k] = old.end[l];
    block.area[k] = old.area[l];
    block.score[k] = score;
    block.candidate[k] = old.candidate[l];
    to += score > 0 ? 1 : 0;
  }
  complete_layout(state, to);
}
