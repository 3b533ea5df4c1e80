// Greedy Soft-NMS, exact, in three ideas:
//
// 1. A pick changes only candidates that overlap it. Candidates are laid out so that neighbours in memory are neighbours
//    in time and length, in blocks of one cache line per field; a pick skips each block whose range it does not meet.
// 2. A block is decayed by vector instructions without branches, all its blocks before the results are looked at.
// 3. Each block keeps its highest score: choosing the next pick is a look at the blocks, not at the candidates.
//
// Equal scores are told apart by their place in the working array of the plain algorithm. That array is not kept, but
// its swaps are followed: `where` maps a position in it to a slot here, and `position` is the inverse.
#include "soft_nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "soft_nms_rules.h"

namespace bcnet_fast {
namespace {

constexpr int kLine = 64;  // bytes in a cache line

template <typename T>
constexpr int kLanes = kLine / static_cast<int>(sizeof(T));

// A score in play is positive, and positive floats are ordered like their bits taken as integers, whose maximum
// compilers vectorise. A score of 0 marks a slot that is empty, picked or dropped.
template <typename T>
using ScoreBits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;

template <typename T>
struct alignas(kLine) Block {
  T start[kLanes<T>];
  T end[kLanes<T>];
  T area[kLanes<T>];
  T score[kLanes<T>];
  std::int32_t position[kLanes<T>];   // in the working array; -1: none any more
  std::int32_t candidate[kLanes<T>];  // index into the set
};

constexpr std::int32_t kScan = 16;  // the arrays with an entry per block are filled up to a multiple of this

constexpr std::int32_t padded(std::int32_t blocks) { return (blocks + kScan - 1) / kScan * kScan; }

// The state of one set. All memory is taken at once, for sets of up to `most` candidates. Aligned, so that two threads
// do not write to one cache line.
template <typename T>
struct alignas(kLine) Workspace {
  explicit Workspace(std::int32_t most)
      : blocks(most / kLanes<T> + 1),
        low(padded(most / kLanes<T> + 1)),
        high(low.size()),
        best(low.size()),
        flags(low.size()),
        list(low.size() + 1),
        where(most),
        dropped(most + kLanes<T>),
        keys(most),
        keys_scratch(most) {}

  std::vector<Block<T>> blocks;
  std::int32_t used = 0;              // blocks in use
  std::vector<T> low, high;           // per block: smallest start, largest end
  std::vector<ScoreBits<T>> best;     // per block: highest score
  std::vector<std::uint8_t> flags;    // per block: scratch
  std::vector<std::int32_t> list;     // of blocks: scratch
  std::vector<std::int32_t> where;    // working array: position -> slot, which is block * lanes + lane
  std::vector<std::int32_t> dropped;  // positions of the candidates that the latest pick dropped, and how many they are
  std::int32_t dropped_count = 0;
  std::vector<std::uint64_t> keys, keys_scratch;
};

template <typename T>
BCNET_INLINE std::int32_t& position_of(Workspace<T>& ws, std::int32_t slot) {
  return ws.blocks[slot / kLanes<T>].position[slot % kLanes<T>];
}

template <typename T>
BCNET_INLINE ScoreBits<T> best_of(const Block<T>& block) {
  ScoreBits<T> best = 0;
  for (int l = 0; l < kLanes<T>; ++l) {
    const auto bits = bit_cast<ScoreBits<T>>(block.score[l]);
    best = bits > best ? bits : best;
  }
  return best;
}

// Sorts keys by their bits 32 to 47, keeping the order of equal ones.
inline void sort_by_high_half(std::uint64_t* keys, std::uint64_t* scratch, std::int32_t count) {
  for (int shift : {32, 40}) {
    std::int32_t first[257] = {};
    for (std::int32_t i = 0; i < count; ++i) ++first[((keys[i] >> shift) & 255) + 1];
    for (int digit = 0; digit < 255; ++digit) first[digit + 1] += first[digit];
    for (std::int32_t i = 0; i < count; ++i) scratch[first[(keys[i] >> shift) & 255]++] = keys[i];
    std::swap(keys, scratch);  // Two passes: the sorted keys end where they began.
  }
}

// The upper 16 bits of a non-negative float without its sign: in order, with a relative precision of 1/256.
template <typename T>
BCNET_INLINE std::uint64_t coarse_key(T distance, std::int32_t index) {
  const auto bits = bit_cast<std::uint32_t>(static_cast<float>(distance));
  return (static_cast<std::uint64_t>(bits >> 15) << 32) | static_cast<std::uint32_t>(index);
}

// Orders the candidates so that each block covers a small range of starts and of ends: cuts them by start into strips
// of about sqrt(blocks) blocks, and sorts each strip by end. The order decides about speed alone, so coarse keys do.
template <typename T>
void order_in_space(const T* segments, std::int32_t count, Workspace<T>& ws) {
  T origin = segments[0];
  for (std::int32_t i = 1; i < count; ++i) origin = std::min(origin, segments[2 * i]);
  for (std::int32_t i = 0; i < count; ++i) ws.keys[i] = coarse_key(segments[2 * i] - origin, i);
  sort_by_high_half(ws.keys.data(), ws.keys_scratch.data(), count);

  const double blocks = static_cast<double>(count) / kLanes<T>;
  const auto strip = static_cast<std::int32_t>(std::ceil(std::sqrt(blocks))) * kLanes<T>;
  for (std::int32_t begin = 0; begin < count; begin += strip) {
    const std::int32_t end = std::min(count, begin + strip);
    T strip_origin = segments[2 * static_cast<std::uint32_t>(ws.keys[begin])];
    for (std::int32_t i = begin; i < end; ++i) {
      strip_origin = std::min(strip_origin, segments[2 * static_cast<std::uint32_t>(ws.keys[i])]);
    }
    for (std::int32_t i = begin; i < end; ++i) {
      const auto index = static_cast<std::int32_t>(ws.keys[i]);
      ws.keys[i] = coarse_key(segments[2 * index + 1] - strip_origin, index);
    }
    sort_by_high_half(ws.keys.data() + begin, ws.keys_scratch.data(), end - begin);
  }
}

// Empties the slots from `count` on in the last block, and works out range and highest score of every block.
template <typename T>
BCNET_INLINE void close_layout(Workspace<T>& ws, std::int32_t count) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr int lanes = kLanes<T>;
  ws.used = (count + lanes - 1) / lanes;
  for (std::int32_t slot = count; slot < ws.used * lanes; ++slot) {
    Block<T>& block = ws.blocks[slot / lanes];
    block.start[slot % lanes] = infinity;
    block.end[slot % lanes] = -infinity;
    block.area[slot % lanes] = T(1);
    block.score[slot % lanes] = T(0);
    block.position[slot % lanes] = -1;
  }
  for (std::int32_t b = 0; b < ws.used; ++b) {
    const Block<T>& block = ws.blocks[b];
    T low = infinity, high = -infinity;
    for (int l = 0; l < lanes; ++l) {
      low = block.start[l] < low ? block.start[l] : low;
      high = block.end[l] > high ? block.end[l] : high;
    }
    ws.low[b] = low;
    ws.high[b] = high;
    ws.best[b] = best_of(block);
  }
  for (std::int32_t b = ws.used; b < padded(ws.used); ++b) {
    ws.low[b] = infinity;
    ws.high[b] = -infinity;
    ws.best[b] = 0;
  }
}

template <typename T>
BCNET_INLINE void build_layout(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules,
                               Workspace<T>& ws) {
  constexpr int lanes = kLanes<T>;
  order_in_space(segments, count, ws);
  for (std::int32_t slot = 0; slot < count; ++slot) {
    const auto index = static_cast<std::int32_t>(ws.keys[slot]);
    Block<T>& block = ws.blocks[slot / lanes];
    const int lane = slot % lanes;
    block.start[lane] = segments[2 * index];
    block.end[lane] = segments[2 * index + 1];
    block.area[lane] = rules.area(segments[2 * index], segments[2 * index + 1]);
    block.score[lane] = rules.in_play(scores[index]);
    block.position[lane] = index;
    block.candidate[lane] = index;
    ws.where[index] = slot;
  }
  close_layout(ws, count);
}

// Moves the candidates still in play together, in the order they lie in.
template <typename T>
BCNET_INLINE void compact_layout(Workspace<T>& ws) {
  constexpr int lanes = kLanes<T>;
  std::int32_t to = 0;
  for (std::int32_t from = 0; from < ws.used * lanes; ++from) {
    // Copied in any case, and overwritten by the next one if not in play: cheaper than a branch that is hard to predict.
    const Block<T>& old = ws.blocks[from / lanes];
    Block<T>& block = ws.blocks[to / lanes];
    const int l = from % lanes, k = to % lanes;
    const T score = old.score[l];
    block.start[k] = old.start[l];
    block.end[k] = old.end[l];
    block.area[k] = old.area[l];
    block.score[k] = score;
    block.position[k] = old.position[l];
    block.candidate[k] = old.candidate[l];
    to += score > T(0) ? 1 : 0;
  }
  for (std::int32_t slot = 0; slot < to; ++slot) ws.where[position_of(ws, slot)] = slot;
  close_layout(ws, to);
}

// Writes the b with flags[b] set to list, ascending; returns how many. Blocks flagged together lie together.
template <typename T>
BCNET_INLINE std::int32_t list_flagged(Workspace<T>& ws) {
  const std::uint8_t* flags = ws.flags.data();
  std::int32_t* list = ws.list.data();
  std::int32_t listed = 0;
  for (std::int32_t first = 0; first < padded(ws.used); first += 8) {
    std::uint64_t eight;
    std::memcpy(&eight, flags + first, sizeof(eight));
    if (eight == 0) continue;
    for (std::int32_t b = first; b < first + 8; ++b) {
      list[listed] = b;
      listed += flags[b];
    }
  }
  return listed;
}

// The slot of the highest score, of equal ones that with the lowest position; -1 when no candidate is in play.
template <typename T>
BCNET_INLINE std::int32_t highest_slot(Workspace<T>& ws) {
  const std::int32_t scanned = padded(ws.used);
  const ScoreBits<T>* best = ws.best.data();
  std::uint8_t* flags = ws.flags.data();
  ScoreBits<T> highest = 0;
  for (std::int32_t b = 0; b < scanned; ++b) highest = best[b] > highest ? best[b] : highest;
  if (highest == 0) return -1;
  for (std::int32_t b = 0; b < scanned; ++b) flags[b] = best[b] == highest;
  std::int32_t position = std::numeric_limits<std::int32_t>::max();
  const std::int32_t listed = list_flagged(ws);
  for (std::int32_t i = 0; i < listed; ++i) {
    const Block<T>& block = ws.blocks[ws.list[i]];
    for (int l = 0; l < kLanes<T>; ++l) {
      if (bit_cast<ScoreBits<T>>(block.score[l]) == highest) position = std::min(position, block.position[l]);
    }
  }
  return ws.where[position];
}

template <typename T>
struct Decayed {
  ScoreBits<T> best;  // the block's highest score
  bool fallen;        // a score has become 0
};

// Multiplies the block's scores by their decay, and sets those that fall below the lowest score to 0.
template <int bytes, Decay decay, typename T>
BCNET_INLINE Decayed<T> decay_block(Block<T>& block, const Picked<T>& picked, const Rules<T>& rules) {
  using V = Vector<T, bytes>;
  using I = Vector<ScoreBits<T>, bytes>;
  const V zero{};
  I best{}, fallen{};
  for (int l = 0; l < kLanes<T>; l += static_cast<int>(sizeof(V) / sizeof(T))) {
    const V factor = decay_factor<decay>(load<V>(block.start + l), load<V>(block.end + l), load<V>(block.area + l), picked,
                                         rules);
    const V before = load<V>(block.score + l);
    const V decayed = before * factor;
    const V after = decayed >= rules.lowest_score ? decayed : zero;
    store(block.score + l, after);
    const I before_bits = bit_cast<I>(before), after_bits = bit_cast<I>(after), none{};
    best = after_bits > best ? after_bits : best;
    fallen |= after_bits == none ? before_bits : none;
  }
  return {largest<ScoreBits<T>>(best), any_bit(fallen)};
}

// Notes the positions of a block's candidates that are not in play any more, and takes them from them.
template <typename T>
BCNET_INLINE void note_dropped(Workspace<T>& ws, std::int32_t b) {
  Block<T>& block = ws.blocks[b];
  std::int32_t* dropped = ws.dropped.data();
  std::int32_t count = ws.dropped_count;
  for (int l = 0; l < kLanes<T>; ++l) {
    const std::int32_t position = block.position[l];
    const bool gone = (position >= 0) & (block.score[l] == T(0));
    dropped[count] = position;
    count += gone ? 1 : 0;
    block.position[l] = gone ? -1 : position;
  }
  ws.dropped_count = count;
}

template <int bytes, Decay decay, typename T>
BCNET_INLINE void decay_all(Workspace<T>& ws, const Picked<T>& picked, const Rules<T>& rules) {
  const std::int32_t scanned = padded(ws.used);
  const T* low = ws.low.data();
  const T* high = ws.high.data();
  std::uint8_t* flags = ws.flags.data();
  for (std::int32_t b = 0; b < scanned; ++b) flags[b] = (low[b] < picked.end) & (high[b] > picked.start);
  const std::int32_t listed = list_flagged(ws);
  // First all the arithmetic, which then runs ahead from block to block; the branches on its results come after it.
  std::int32_t* list = ws.list.data();
  Block<T>* blocks = ws.blocks.data();
  ScoreBits<T>* best = ws.best.data();
  std::int32_t fallen = 0;
  for (std::int32_t i = 0; i < listed; ++i) {
    const std::int32_t b = list[i];
    const Decayed<T> result = decay_block<bytes, decay>(blocks[b], picked, rules);
    best[b] = result.best;
    list[fallen] = b;
    fallen += result.fallen;
  }
  for (std::int32_t i = 0; i < fallen; ++i) note_dropped(ws, list[i]);
}

// Takes the dropped candidates out of the working array, which ends at `remaining`: its positions are scanned upward,
// the last candidate is put in the place of a dropped one, and that place is looked at again. Returns the new end.
template <typename T>
BCNET_INLINE std::int32_t remove_dropped(Workspace<T>& ws, std::int32_t remaining) {
  const auto first = ws.dropped.begin(), end = first + ws.dropped_count;
  std::sort(first, end);
  for (auto dropped = first; dropped != end; ++dropped) {
    const std::int32_t position = *dropped;
    while (position < remaining && position_of(ws, ws.where[position]) < 0) ws.where[position] = ws.where[--remaining];
    if (position < remaining) position_of(ws, ws.where[position]) = position;
  }
  ws.dropped_count = 0;
  return remaining;
}

// Soft-NMS of one set; returns the number of picks.
template <int bytes, typename T>
BCNET_INLINE std::int32_t solve(const T* segments, const T* scores, std::int32_t count, const Rules<T>& rules,
                                Workspace<T>& ws, std::int64_t index_offset, std::int64_t* indices, T* picked_scores) {
  if (count == 0) return 0;
  constexpr int lanes = kLanes<T>;
  build_layout(segments, scores, count, rules, ws);
  std::int32_t remaining = count;  // end of the working array; its first `picks` places hold the picks
  std::int32_t picks = 0;
  while (picks < rules.max_picks) {
    const std::int32_t slot = highest_slot(ws);
    if (slot < 0) break;
    Block<T>& block = ws.blocks[slot / lanes];
    const int lane = slot % lanes;
    indices[picks] = index_offset + block.candidate[lane];
    picked_scores[picks] = block.score[lane];
    const Picked<T> picked = rules.picked(block.start[lane], block.end[lane]);

    const std::int32_t displaced = ws.where[picks];
    ws.where[block.position[lane]] = displaced;
    position_of(ws, displaced) = block.position[lane];
    block.position[lane] = -1;
    block.score[lane] = T(0);
    ws.best[slot / lanes] = best_of(block);
    ++picks;

    if (picks == 1) {  // Candidates that are too low from the start leave together with the first that become so.
      for (std::int32_t b = 0; b < ws.used; ++b) note_dropped(ws, b);
    }
    switch (rules.decay) {
      case Decay::gaussian: decay_all<bytes, Decay::gaussian>(ws, picked, rules); break;
      case Decay::linear: decay_all<bytes, Decay::linear>(ws, picked, rules); break;
      case Decay::hard: decay_all<bytes, Decay::hard>(ws, picked, rules); break;
    }
    if (ws.dropped_count) remaining = remove_dropped(ws, remaining);
    // Worth its time once a quarter of the slots is out of play.
    if (4 * (remaining - picks) < 3 * (ws.used - 1) * lanes) compact_layout(ws);
  }
  return picks;
}

BCNET_VERSIONS(solve)

}  // namespace

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

  const Rules<T> rules(options);
  std::vector<Workspace<T>> workspaces;
  workspaces.reserve(threads);
  for (int t = 0; t < threads; ++t) workspaces.emplace_back(static_cast<std::int32_t>(most));
  WorkQueue queue(sets);
  run_in_threads(threads, [&](int thread) {
    for (std::int64_t v; queue.next(v);) {
      const std::int64_t first = offsets[v];
      counts[v] = solve_for(instruction_set, segments + 2 * first, scores + first,
                            static_cast<std::int32_t>(offsets[v + 1] - first), rules, workspaces[thread], first,
                            indices + first, picked_scores + first);
    }
  });
}

template void soft_nms(const float*, const float*, const std::int64_t*, std::int64_t, const SoftNmsOptions&,
                       InstructionSet, int, std::int64_t*, float*, std::int64_t*);
template void soft_nms(const double*, const double*, const std::int64_t*, std::int64_t, const SoftNmsOptions&,
                       InstructionSet, int, std::int64_t*, double*, std::int64_t*);

}  // namespace bcnet_fast
