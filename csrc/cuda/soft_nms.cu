// Greedy Soft-NMS, exact: a block works on one set, and one barrier leads from each pick to the next.
//
// The candidates lie in the order of the working array of the plain algorithm, because equal scores are told apart by
// their place in it. Position p belongs to thread p % threads, so that 32 positions of a warp are one word of a bitmap.
// In every round:
//
// 1. each thread multiplies the scores of its candidates that overlap the latest pick, a ballot per 32 positions marks
//    those that have fallen too low, and each warp publishes its highest score, where it is, and how many it dropped;
// 2. after the barrier, every warp works out the next pick from what all have published, and what changes in the array:
//    its new end; which candidates behind that fill the holes before it (the holes in ascending order, by the survivors
//    from the last one down, which equals scanning upward and replacing each dropped candidate by the last one); and
//    the trade of the pick with the first candidate. Each thread moves candidates to the positions that are its own,
//    and goes on with its next round.
//
// No thread waits for these moves: threads write to their own positions before the new end, and read others' only where
// no thread writes any more, which is behind the new end and at the first position. The published records and the
// bitmap alternate between two buffers.
//
// Work per pick: a pass over the candidates still in play, with a division and an exponential for those that overlap,
// and seven to nine reductions in a warp. Memory per candidate: 16.25 bytes for float and 28.25 for double, in shared
// memory where the set fits, else in device memory.
#include "include/soft_nms_cuda.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cpu/soft_nms_rules.h"
#include "simd/vector.h"

extern __shared__ __align__(16) unsigned char shared_memory[];

namespace bcnet_fast {
namespace {

// The vectors of one element, which are plain numbers.
constexpr int kBytes = 0;
#include "simd/operations.h"
// After the operations that it uses:
#include "cpu/soft_nms_decay.h"

using std::uint32_t;

constexpr int kMaxThreads = 512;  // a power of two, as are all numbers of threads
constexpr uint32_t kWarp = 32;
constexpr uint32_t kMaxWarps = kMaxThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr uint32_t kUnusable = 0xffffffffu;  // more than any number of candidates

__device__ inline uint32_t lane() { return threadIdx.x % kWarp; }
__device__ inline uint32_t warp() { return threadIdx.x / kWarp; }
__device__ inline uint32_t warps() { return blockDim.x / kWarp; }

__device__ inline uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, value, distance);
    value = other > value ? other : value;
  }
  return value;
#endif
}

__device__ inline uint32_t warp_sum(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(kAllLanes, value);
#else
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
#endif
}

__device__ inline uint32_t warp_min(uint32_t value) { return ~warp_max(~value); }

__device__ inline std::uint64_t warp_max(std::uint64_t value) {
  const auto high = static_cast<uint32_t>(value >> 32);
  const uint32_t highest = warp_max(high);
  return static_cast<std::uint64_t>(highest) << 32 | warp_max(high == highest ? static_cast<uint32_t>(value) : 0u);
}

// A score in play is positive, and positive floats are ordered like their bits. 0: none in play.
template <typename T>
using ScoreBits = std::conditional_t<sizeof(T) == 4, uint32_t, std::uint64_t>;

template <typename T>
struct alignas(2 * sizeof(T)) Segment {
  T start, end;
};

// The highest score among some positions, and the lowest and the highest position that have it.
template <typename T>
struct Best {
  ScoreBits<T> score = 0;
  uint32_t lowest = 0xffffffffu, highest = 0;

  // Positions come in ascending order.
  __device__ void see(T candidate, uint32_t position) {
    const auto bits = bit_cast<ScoreBits<T>>(candidate);
    if (bits > score) lowest = position;
    if (bits >= score) {
      score = bits;
      highest = position;
    }
  }

  // The best of all threads of the warp.
  __device__ Best of_warp() const {
    Best best;
    best.score = warp_max(score);
    best.lowest = warp_min(score == best.score ? lowest : 0xffffffffu);
    best.highest = warp_max(score == best.score ? highest : 0u);
    return best;
  }
};

// Published by a warp: its best, how many it dropped, and the candidate at the lowest position of its best.
template <typename T>
struct Record {
  Best<T> best;
  uint32_t dropped;
  std::int32_t index;
  Segment<T> segment;
};

// The working array of a set, in memory for `capacity` candidates, from position `at` on; both are multiples of 32.
template <typename T>
struct Candidates {
  Segment<T>* segment;
  T* score;
  std::int32_t* index;  // into the set
  uint32_t* bitmaps;    // of dropped candidates: one for even numbers of picks, then one for odd
  std::int64_t words;   // of one bitmap

  __device__ Candidates(unsigned char* memory, std::int64_t capacity, std::int64_t at)
      : segment(reinterpret_cast<Segment<T>*>(memory) + at),
        score(reinterpret_cast<T*>(memory + 2 * sizeof(T) * capacity) + at),
        index(reinterpret_cast<std::int32_t*>(memory + 3 * sizeof(T) * capacity) + at),
        bitmaps(reinterpret_cast<uint32_t*>(memory + (3 * sizeof(T) + 4) * capacity) + at / kWarp),
        words(capacity / kWarp) {}

  static constexpr std::size_t bytes(std::int64_t capacity) { return capacity * (3 * sizeof(T) + 4) + capacity / 4; }

  __device__ uint32_t* bitmap(uint32_t picks) const { return bitmaps + picks % 2 * words; }

  __device__ void move(uint32_t from, uint32_t to) const {
    segment[to] = segment[from];
    score[to] = score[from];
    index[to] = index[from];
  }
};

// The first word of a bitmap, from that of `position` on, that belongs to this warp.
__device__ inline uint32_t own_word(uint32_t position) {
  const uint32_t word = position / kWarp;
  return word + ((warp() - word) & (warps() - 1));
}

// The bits of `word` that stand for positions from `position` on.
__device__ inline uint32_t bits_from(uint32_t word, uint32_t position) {
  if (position <= word * kWarp) return 0xffffffffu;
  return position < (word + 1) * kWarp ? 0xffffffffu << (position % kWarp) : 0u;
}

// The n-th lowest of the bits that are set, counted from 0.
__device__ inline uint32_t nth_bit(uint32_t bits, uint32_t n) {
  for (; n > 0; --n) bits &= bits - 1;
  return __ffs(static_cast<int>(bits)) - 1;
}

// The array when some candidates are dropped: positions from `first` to `end`, of which a bitmap marks the dropped. It
// has no marks before `first`. Holes are looked for before the new end, survivors behind it.
struct Dropping {
  const uint32_t* marks;
  uint32_t first, end;

  __device__ bool dropped(uint32_t position) const { return marks[position / kWarp] >> (position % kWarp) & 1; }

  // The n-th of the dropped positions, ascending.
  __device__ uint32_t nth_hole(uint32_t n) const {
    uint32_t word = first / kWarp;
    for (uint32_t here; (here = __popc(marks[word])) <= n; ++word) n -= here;
    return word * kWarp + nth_bit(marks[word], n);
  }

  // The n-th of the surviving positions from the end down.
  __device__ uint32_t nth_survivor(uint32_t n) const {
    uint32_t word = (end - 1) / kWarp;
    uint32_t alive = ~(marks[word] | bits_from(word, end));
    for (uint32_t here; (here = __popc(alive)) <= n; alive = ~marks[--word]) n -= here;
    return word * kWarp + (kWarp - 1) - nth_bit(__brev(alive), n);
  }

  __device__ uint32_t survivors_behind(uint32_t position) const {
    uint32_t count = 0;
    for (uint32_t word = position / kWarp; word * kWarp < end; ++word) {
      count += __popc(~(marks[word] | bits_from(word, end)) & bits_from(word, position + 1));
    }
    return count;
  }

  // Fills this warp's holes before `new_end`.
  template <typename T>
  __device__ void fill_holes(const Candidates<T>& set, uint32_t new_end) const {
    for (uint32_t word = own_word(first); word * kWarp < new_end; word += warps()) {
      const uint32_t holes = marks[word] & ~bits_from(word, new_end);
      if (holes == 0) continue;
      uint32_t before = 0;  // holes in the words before this one
      for (uint32_t other = first / kWarp + lane(); other < word; other += kWarp) before += __popc(marks[other]);
      before = warp_sum(before);
      if (holes >> lane() & 1) {
        const uint32_t rank = before + __popc(marks[word] & ((1u << lane()) - 1));
        set.move(nth_survivor(rank), word * kWarp + lane());
      }
    }
  }
};

template <typename T>
struct Batch {
  const T* segments;
  const T* scores;
  const std::int64_t* offsets;
  Rules<T> rules;
  std::int64_t shared_candidates;
  unsigned char* workspace;
  std::int64_t workspace_candidates;
  std::int64_t* indices;
  T* picked_scores;
  std::int64_t* counts;
};

// The number of candidates up to the last one in play; kUnusable if the set has an invalid one.
template <typename T>
__device__ uint32_t count_in_play(const T* segments, const T* scores, uint32_t count, const Rules<T>& rules,
                                  Record<T>* records) {
  uint32_t found = 0;
  for (uint32_t p = threadIdx.x; p < count; p += blockDim.x) {
    if (!usable(segments[2 * p], segments[2 * p + 1], scores[p])) found = kUnusable;
    if (scores[p] >= rules.lowest_score && found < p + 1) found = p + 1;
  }
  found = warp_max(found);
  // In the buffer that the first pick does not use.
  if (lane() == 0) records[kMaxWarps + warp()].dropped = found;
  __syncthreads();
  return warp_max(lane() < warps() ? records[kMaxWarps + lane()].dropped : 0u);
}

template <typename T>
__device__ __forceinline__ T decayed(T score, const Segment<T>& s, const Picked<T>& picked, const Rules<T>& rules) {
  const T area = rules.area(s.start, s.end);
  switch (rules.decay) {
    case Decay::gaussian: return score * decay_factor<Decay::gaussian>(s.start, s.end, area, picked, rules);
    case Decay::linear: return score * decay_factor<Decay::linear>(s.start, s.end, area, picked, rules);
    default: return score * decay_factor<Decay::hard>(s.start, s.end, area, picked, rules);
  }
}

// Soft-NMS of the set that begins at `begin`; returns the number of picks. Inlined, so that the compiler sees in which
// kind of memory the candidates lie.
template <typename T>
__device__ __forceinline__ uint32_t solve(const Batch<T>& batch, std::int64_t begin, uint32_t count,
                                          const Candidates<T>& set, Record<T>* records) {
  const Rules<T>& rules = batch.rules;
  const auto max_picks = static_cast<uint32_t>(rules.max_picks < count ? rules.max_picks : count);
  if (max_picks == 0) return 0;

  Best<T> own;
  for (uint32_t p = threadIdx.x; p < count; p += blockDim.x) {
    const T* segment = batch.segments + 2 * (begin + p);
    set.segment[p] = {segment[0], segment[1]};
    set.score[p] = rules.in_play(batch.scores[begin + p]);
    set.index[p] = static_cast<std::int32_t>(p);
    own.see(set.score[p], p);
  }

  uint32_t end = count, picks = 0, own_dropped = 0;
  while (true) {
    Record<T>* round = records + picks % 2 * kMaxWarps;
    const Best<T> best_of_warp = own.of_warp();
    // Written by the thread that the candidate belongs to, which sees it without waiting for others.
    if (best_of_warp.score == 0) {
      if (lane() == 0) round[warp()] = {best_of_warp, own_dropped, 0, {}};
    } else if (own.score == best_of_warp.score && own.lowest == best_of_warp.lowest) {
      round[warp()] = {best_of_warp, own_dropped, set.index[own.lowest], set.segment[own.lowest]};
    }
    __syncthreads();

    const bool has_record = lane() < warps();
    const Best<T> best = (has_record ? round[lane()].best : Best<T>()).of_warp();
    if (best.score == 0) return picks;
    const uint32_t dropped = warp_sum(has_record ? round[lane()].dropped : 0u);
    const uint32_t new_end = end - dropped;
    const Dropping dropping{set.bitmap(picks), picks, end};

    // The pick is the one of highest score whose position is the lowest once the holes are filled. Among the candidates
    // behind the new end, the last one fills the lowest hole.
    uint32_t place = best.lowest;
    bool fills_hole = false;
    if (best.highest >= new_end) {
      const uint32_t hole = dropping.nth_hole(dropping.survivors_behind(best.highest));
      fills_hole = hole < place;
      if (fills_hole) place = hole;
    }
    const Record<T>& published = round[place / kWarp & (warps() - 1)];
    const Segment<T> segment = fills_hole ? set.segment[best.highest] : published.segment;
    if (threadIdx.x == 0) {
      batch.indices[begin + picks] = begin + (fills_hole ? set.index[best.highest] : published.index);
      batch.picked_scores[begin + picks] = bit_cast<T>(best.score);
    }
    if (picks + 1 == max_picks) return max_picks;

    if (dropped > 0) dropping.fill_holes(set, new_end);
    if (place != picks && threadIdx.x == (place & (blockDim.x - 1))) {
      set.move(dropped > 0 && dropping.dropped(picks) ? dropping.nth_survivor(0) : picks, place);
    }
    ++picks;
    end = new_end;

    const Picked<T> picked = rules.picked(segment.start, segment.end);
    own = Best<T>();
    own_dropped = 0;
    for (uint32_t word = own_word(picks); word * kWarp < end; word += warps()) {
      const uint32_t p = word * kWarp + lane();
      bool falls = false;
      if (p >= picks && p < end) {
        T score = set.score[p];
        const Segment<T> s = set.segment[p];
        if (s.start < picked.end && s.end > picked.start) {
          score = rules.in_play(decayed(score, s, picked, rules));
          set.score[p] = score;
        }
        falls = score == T(0);
        own.see(score, p);
      }
      const uint32_t marks = __ballot_sync(kAllLanes, falls);
      if (lane() == 0) set.bitmap(picks)[word] = marks;
      own_dropped += __popc(marks);
    }
  }
}

// The 1 lets the compiler use the registers that it needs: by default it aims at more blocks, and spills.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads, 1) soft_nms_kernel(const Batch<T> batch) {
  auto* records = reinterpret_cast<Record<T>*>(shared_memory);
  unsigned char* shared_candidates = shared_memory + 2 * kMaxWarps * sizeof(Record<T>);
  const std::int64_t set = blockIdx.x, begin = batch.offsets[set], size = batch.offsets[set + 1] - begin;
  const auto count = count_in_play(batch.segments + 2 * begin, batch.scores + begin, static_cast<uint32_t>(size),
                                   batch.rules, records);
  std::int64_t picks;
  if (count == kUnusable) {
    picks = -1;
  } else if (count <= batch.shared_candidates) {
    picks = solve(batch, begin, count, Candidates<T>(shared_candidates, batch.shared_candidates, 0), records);
  } else {
    // A position of its own for each set: begin / 32 + set grows by at least size / 32, rounded up.
    const std::int64_t at = (begin / kWarp + set) * kWarp;
    picks = solve(batch, begin, count, Candidates<T>(batch.workspace, batch.workspace_candidates, at), records);
  }
  if (threadIdx.x == 0) batch.counts[set] = picks;
}

template <typename T>
constexpr std::size_t kRecordBytes = 2 * kMaxWarps * sizeof(Record<T>);

constexpr std::int64_t round_up(std::int64_t number) { return (number + kWarp - 1) / kWarp * kWarp; }

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("soft_nms: CUDA: ") + cudaGetErrorString(status));
}

// Makes a device the current one while it lives. PyTorch relies on the current device, so it is restored.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_));
    if (device != before_) check(cudaSetDevice(device));
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

std::int64_t workspace_candidates(std::int64_t candidates, std::int64_t sets) {
  return (candidates / kWarp + sets) * kWarp;
}

}  // namespace

template <typename T>
SoftNmsPlan plan_soft_nms(std::int64_t candidates, std::int64_t sets, std::int64_t largest, std::size_t shared_limit) {
  if (largest > kMaxCandidates) throw std::invalid_argument("soft_nms: a set has more than 2^29 candidates");
  // Some candidates for each thread: more threads would only wait at the barrier.
  constexpr std::int64_t candidates_per_thread = 4;
  SoftNmsPlan plan{};
  plan.threads = kWarp;
  while (plan.threads < kMaxThreads && plan.threads * candidates_per_thread < largest) plan.threads *= 2;
  if (shared_limit < kRecordBytes<T>) {
    throw std::invalid_argument("soft_nms: less shared memory than the " + std::to_string(kRecordBytes<T>) +
                                " bytes of a block without candidates");
  }
  const std::size_t room = shared_limit - kRecordBytes<T>;
  const auto fitting = static_cast<std::int64_t>(room / Candidates<T>::bytes(kWarp) * kWarp);
  plan.shared_candidates = std::min(round_up(largest), fitting);
  plan.shared_bytes = kRecordBytes<T> + Candidates<T>::bytes(plan.shared_candidates);
  if (largest > fitting) plan.workspace_bytes = Candidates<T>::bytes(workspace_candidates(candidates, sets));
  return plan;
}

std::size_t soft_nms_shared_limit(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, soft_nms_kernel<float>));
  int limit = 0;
  check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return static_cast<std::size_t>(limit);
}

template <typename T>
void soft_nms_cuda(const SoftNmsInputs<T>& inputs, const SoftNmsOptions& options, const SoftNmsPlan& plan, int device,
                   void* stream, void* workspace, const SoftNmsOutputs<T>& outputs) {
  if (inputs.sets == 0) return;
  const DeviceGuard guard(device);
  Batch<T> batch{inputs.segments,
                 inputs.scores,
                 inputs.offsets,
                 Rules<T>(options),
                 plan.shared_candidates,
                 static_cast<unsigned char*>(workspace),
                 workspace_candidates(inputs.candidates, inputs.sets),
                 outputs.indices,
                 outputs.scores,
                 outputs.counts};
  void* arguments[] = {&batch};
  check(cudaFuncSetAttribute(soft_nms_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(plan.shared_bytes)));
  check(cudaLaunchKernel(soft_nms_kernel<T>, dim3(static_cast<unsigned>(inputs.sets)), dim3(plan.threads), arguments,
                         plan.shared_bytes, static_cast<cudaStream_t>(stream)));
}

#define BCNET_INSTANTIATE(T)                                                                                         \
  template SoftNmsPlan plan_soft_nms<T>(std::int64_t, std::int64_t, std::int64_t, std::size_t);                      \
  template void soft_nms_cuda(const SoftNmsInputs<T>&, const SoftNmsOptions&, const SoftNmsPlan&, int, void*, void*, \
                              const SoftNmsOutputs<T>&);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
