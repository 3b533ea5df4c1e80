// How Soft-NMS on the CPU breaks ties: by position in the working array of the plain algorithm, which swaps candidates.
// The array is replayed only when candidates are tied for a pick: each one knows after which pick it was dropped.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "cpu/soft_nms_state.h"

namespace bcnet_fast {

// Collects the dropped candidates of the blocks visited after the first `visited` picks, except those that have left
// the array already.
template <typename T>
void collect_dropped(SetState<T>& state, std::int32_t visited) {
  for (std::int32_t b = 0; b < state.used; ++b) {
    if (visited > 0 && state.visited[b] <= visited) continue;
    const Block<T>& block = state.blocks[b];
    for (int l = 0; l < kLanes<T>; ++l) {
      const ScoreBits<T> mark = block.score[l];
      // Picked, empty or in play; too low from the start.
      if (mark <= kOutOfPlay<T> || mark >= kOutOfPlay<T> + 1 + state.picks) continue;
      const std::int32_t candidate = block.candidate[l];
      if (state.replayed >= 0 && state.position[candidate] < 0) continue;
      const auto pick = static_cast<std::uint64_t>(state.first_pick + (mark - (kOutOfPlay<T> + 1)));
      state.dropped[state.dropped_count++] = pick << 32 | static_cast<std::uint32_t>(candidate);
    }
  }
}

// Removes the candidates at some positions, in ascending order, from the working array: as the plain algorithm does,
// moves the last candidate of the array to the position of a dropped one, and looks at that position again.
template <typename T>
void remove_from_array(SetState<T>& state, const std::int32_t* positions, std::int32_t count) {
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t position = positions[i];
    while (position < state.remaining && state.position[state.array[position]] < 0) {
      state.array[position] = state.array[--state.remaining];
    }
    if (position < state.remaining) state.position[state.array[position]] = position;
  }
}

// Replays the picks of the set that the working array has not seen. Requires: no block has pending decays.
template <typename T>
void replay_picks(SetState<T>& state, std::int32_t count, const std::int64_t* picked, std::int64_t index_offset) {
  if (state.replayed < 0) {
    collect_dropped(state, 0);
    state.replayed = 0;
    state.remaining = count;
    for (std::int32_t c = 0; c < count; ++c) state.position[c] = state.array[c] = c;
  } else {
    collect_dropped(state, state.replayed - state.first_pick);
  }
  std::sort(state.dropped.data(), state.dropped.data() + state.dropped_count);
  std::int32_t* const positions = state.order.data();
  std::int32_t next = 0;
  for (; state.replayed < state.first_pick + state.picks; ++state.replayed) {
    const auto candidate = static_cast<std::int32_t>(picked[state.replayed] - index_offset);
    const std::int32_t position = state.position[candidate], displaced = state.array[state.replayed];
    state.array[position] = displaced;
    state.position[displaced] = position;
    std::int32_t leaving = 0;
    for (; next < state.dropped_count && static_cast<std::int32_t>(state.dropped[next] >> 32) == state.replayed;
         ++next) {
      std::int32_t& left = state.position[static_cast<std::uint32_t>(state.dropped[next])];
      positions[leaving++] = left;
      left = -1;
    }
    std::sort(positions, positions + leaving);
    remove_from_array(state, positions, leaving);
  }
  state.dropped_count = 0;
}

// The slot with the score `top` whose candidate has the lowest position in the working array.
template <typename T>
std::int32_t first_tied_slot(SetState<T>& state, ScoreBits<T> top) {
  std::int32_t first = -1, lowest = std::numeric_limits<std::int32_t>::max();
  for (std::int32_t b = 0; b < state.used; ++b) {
    if (Entry<T>(state.groups, b).known != top) continue;
    const Block<T>& block = state.blocks[b];
    for (int l = 0; l < kLanes<T>; ++l) {
      if (block.score[l] != top || state.position[block.candidate[l]] >= lowest) continue;
      first = b * kLanes<T> + l;
      lowest = state.position[block.candidate[l]];
    }
  }
  return first;
}

}  // namespace bcnet_fast
