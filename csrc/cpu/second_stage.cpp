// Every step reads its operands from the cache: maxima and products take some columns at a time, which are first packed
// together, and then serve all ranges or pairs.
#include "include/second_stage.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/second_stage_work.h"
#include "gemm/int8_product.h"
#include "gemm/packed_weight.h"
#include "gemm/strassen.h"
#include "runtime/parallel.h"
#include "runtime/scratch.h"

#define BCNET_KERNELS "cpu/second_stage_kernels.h"
#include "simd/for_each_instruction_set.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kRowsInItem = 32;  // of weighted sums, or segments, that a thread takes at a time

thread_local Scratch table_scratch;

// Calls body(first, last) for blocks of rows, each in one thread.
template <typename Body>
void in_blocks(std::int64_t rows, int threads, const Body& body) {
  WorkQueue queue((rows + kRowsInItem - 1) / kRowsInItem);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, (rows + kRowsInItem - 1) / kRowsInItem)), [&](int) {
    for (std::int64_t item; queue.next(item);) {
      body(item * kRowsInItem, std::min(rows, (item + 1) * kRowsInItem));
    }
  });
}

// Keeps the `most` first numbers in the order of insertion among equal keys, by ascending key.
template <int most>
struct Smallest {
  double keys[most];
  std::int64_t numbers[most];
  int count = 0;

  // The key that a further number has to be below.
  double limit(double otherwise) const { return count < most ? otherwise : keys[most - 1]; }
  void insert(double key, std::int64_t number) {
    int place = count < most ? count++ : most - 1;
    for (; place > 0 && keys[place - 1] > key; --place) {
      keys[place] = keys[place - 1];
      numbers[place] = numbers[place - 1];
    }
    keys[place] = key;
    numbers[place] = number;
  }
  // All numbers, repeated in turn; `own` if there is none.
  void write(std::int64_t own, std::int64_t* to) const {
    for (int i = 0; i < most; ++i) to[i] = count ? numbers[i % count] : own;
  }
};

// The pairs that edges connect, each once, and for each edge its pair; an edge to the node itself has the pair
// - 1 - node.
struct EdgePairs {
  std::vector<Pair> pairs;
  std::vector<std::int64_t> of_edge;

  EdgePairs(const EdgeLists& edges, std::int64_t nodes) : of_edge(static_cast<std::size_t>(edges.count())) {
    const std::int64_t taps = 1 + edges.children;
    // Edges by the smaller number of both ends: where those of a node begin, and then the edges themselves.
    std::vector<std::int64_t> begin(static_cast<std::size_t>(nodes + 2)), sorted(of_edge.size());
    const auto ends = [&](std::int64_t edge) {
      const std::int64_t one = edges.nodes[edge / taps * taps], other = edges.nodes[edge];
      return Pair{static_cast<std::int32_t>(std::min(one, other)), static_cast<std::int32_t>(std::max(one, other))};
    };
    for (std::int64_t edge = 0; edge < edges.count(); ++edge) ++begin[static_cast<std::size_t>(ends(edge).first) + 2];
    for (std::size_t node = 2; node < begin.size(); ++node) begin[node] += begin[node - 1];
    for (std::int64_t edge = 0; edge < edges.count(); ++edge) {
      sorted[static_cast<std::size_t>(begin[static_cast<std::size_t>(ends(edge).first) + 1]++)] = edge;
    }
    // The pair of each second end, with that of the first end that it was last seen with.
    std::vector<std::int64_t> pair(static_cast<std::size_t>(nodes)), seen_with(static_cast<std::size_t>(nodes), -1);
    for (const std::int64_t edge : sorted) {
      const Pair both = ends(edge);
      const auto second = static_cast<std::size_t>(both.second);
      if (both.first == both.second) {
        of_edge[static_cast<std::size_t>(edge)] = -1 - both.first;
        continue;
      }
      if (seen_with[second] != both.first) {
        seen_with[second] = both.first;
        pair[second] = static_cast<std::int64_t>(pairs.size());
        pairs.push_back(both);
      }
      of_edge[static_cast<std::size_t>(edge)] = pair[second];
    }
  }
};

}  // namespace

void neighbour_slots(const double* segments, std::int64_t count, double min_iou, InstructionSet instruction_set,
                     int threads, std::int64_t* slots) {
  const auto padded = static_cast<std::size_t>(count + kSegmentPadding);
  Segments all{std::vector<double>(padded), std::vector<double>(padded), std::vector<double>(padded),
               std::vector<double>(padded), count};
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double start = segments[2 * i], end = segments[2 * i + 1];
    all.start[at] = start;
    all.end[at] = end;
    all.length[at] = end - start + 1;
    all.centre[at] = (start + end) / 2;
  }
  const auto compare = BCNET_VERSION(instruction_set, compare_segments);
  in_blocks(count, threads, [&](std::int64_t first, std::int64_t last) {
    double* const iou = table_scratch.take<double>(2 * (count + kSegmentPadding));
    double* const distance = iou + count + kSegmentPadding;
    for (std::int64_t i = first; i < last; ++i) {
      compare(all, i, iou, distance);
      Smallest<kOverlapping> overlapping;
      Smallest<kDistant> distant;
      double least = min_iou, farthest = HUGE_VAL;
      for (std::int64_t j = 0; j < count; ++j) {
        if (iou[j] > least && j != i) {
          overlapping.insert(-iou[j], j);
          least = -overlapping.limit(-min_iou);
        }
      }
      for (std::int64_t j = 0; j < count; ++j) {
        if (distance[j] < farthest) {
          distant.insert(distance[j], j);
          farthest = distant.limit(HUGE_VAL);
        }
      }
      overlapping.write(i, slots + i * kSlots);
      distant.write(i, slots + i * kSlots + kOverlapping);
    }
  });
}

template <typename T>
void range_maxima(Matrix<T> x, std::int64_t rows, std::int64_t columns, const RangeLists& ranges,
                  InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  std::int64_t longest = 1;
  for (std::int64_t i = 0; i < ranges.count * ranges.bins; ++i) {
    longest = std::max(longest, ranges.numbers[2 * i + 1] - ranges.numbers[2 * i]);
  }
  const std::int64_t levels = table_levels(longest), panels = (columns + kPanel - 1) / kPanel;
  const auto maxima = BCNET_VERSION(instruction_set, panel_maxima<T>);
  WorkQueue queue(panels);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, panels)), [&](int) {
    T* const table = table_scratch.take<T>(levels * rows * kPanel);
    for (std::int64_t panel; queue.next(panel);) {
      const std::int64_t column = panel * kPanel;
      maxima({x.data + column, x.stride}, rows, std::min<std::int64_t>(kPanel, columns - column), ranges, levels, table,
             {out.data + column, out.stride}, columns);
    }
  });
}

template <typename T>
void edge_weights(const FeatureParts<T>& features, std::int64_t rows, std::int64_t part, const EdgeLists& edges,
                  InstructionSet instruction_set, int threads, T* whole, T* of_part) {
  const EdgePairs connected(edges, rows);
  const auto pairs = static_cast<std::int64_t>(connected.pairs.size()), products = rows + pairs;
  const std::int64_t blocks_of_part = (features.width + kDotColumns - 1) / kDotColumns;
  const std::int64_t blocks = features.parts * blocks_of_part;
  std::vector<T> partial(static_cast<std::size_t>(blocks * products));
  const auto multiply = BCNET_VERSION(instruction_set, multiply_rows<T>);
  WorkQueue queue(blocks);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, blocks)), [&](int) {
    T* const packed = table_scratch.take<T>(rows * kDotColumns);
    for (std::int64_t block; queue.next(block);) {
      const std::int64_t inside = block % blocks_of_part * kDotColumns;
      const std::int64_t column = block / blocks_of_part * features.width + inside;
      multiply({features.x.data + column, features.x.stride}, rows, std::min(kDotColumns, features.width - inside),
               connected.pairs.data(), pairs, packed, partial.data() + block * products);
    }
  });
  // Sums of the blocks from `first` to `last`, and from them the weights.
  std::vector<T> sums(static_cast<std::size_t>(products));
  const auto write_weights = [&](std::int64_t first, std::int64_t last, T* to) {
    std::fill(sums.begin(), sums.end(), T(0));
    for (std::int64_t block = first; block < last; ++block) {
      const T* const from = partial.data() + block * products;
      for (std::int64_t i = 0; i < products; ++i) sums[static_cast<std::size_t>(i)] += from[i];
    }
    // A zero feature is at a right angle to all others.
    const auto length = [&](std::int64_t node) {
      const T square = sums[static_cast<std::size_t>(node)];
      return square == 0 ? T(1) : std::sqrt(square);
    };
    const std::int64_t taps = 1 + edges.children;
    const T share = T(1) / static_cast<T>(edges.children);
    for (std::int64_t edge = 0; edge < edges.count(); ++edge) {
      const std::int64_t pair = connected.of_edge[static_cast<std::size_t>(edge)];
      const std::int64_t one = edges.nodes[edge / taps * taps], other = edges.nodes[edge];
      const T dot = sums[static_cast<std::size_t>(pair < 0 ? one : rows + pair)];
      const T cosine = dot / (length(one) * length(other));
      to[edge] = (cosine < 0 ? T(0) : cosine) * (edge % taps ? share : T(1));
    }
  };
  write_weights(0, blocks, whole);
  if (of_part) write_weights(part * blocks_of_part, (part + 1) * blocks_of_part, of_part);
}

template <typename T>
void weighted_rows(const WeightedRows<T>& sums, InstructionSet instruction_set, int threads, MutableMatrix<T> out) {
  const auto sum = BCNET_VERSION(instruction_set, sum_weighted_rows<T>);
  in_blocks(sums.count, threads, [&](std::int64_t first, std::int64_t last) { sum(sums, first, last, out); });
}

#define BCNET_INSTANTIATE(T)                                                                                       \
  template void range_maxima(Matrix<T>, std::int64_t, std::int64_t, const RangeLists&, InstructionSet, int,        \
                             MutableMatrix<T>);                                                                    \
  template void edge_weights(const FeatureParts<T>&, std::int64_t, std::int64_t, const EdgeLists&, InstructionSet, \
                             int, T*, T*);                                                                         \
  template void weighted_rows(const WeightedRows<T>&, InstructionSet, int, MutableMatrix<T>);
BCNET_INSTANTIATE(float)
BCNET_INSTANTIATE(double)

}  // namespace bcnet_fast
