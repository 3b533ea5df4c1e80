// Operations of the second stage beside products: the graph of proposals, sums along its edges, and maxima.
//
// T is float or double. Results have the same bits for any number of threads, and, but for `edge_weights` and
// `weighted_rows`, for all instruction sets. Requires: out overlaps no input.
#pragma once

#include <cstdint>

#include "gemm/matrix.h"
#include "simd/instruction_set.h"

namespace bcnet_fast {

constexpr int kOverlapping = 8, kDistant = 2;  // candidate slots of both kinds
constexpr int kSlots = kOverlapping + kDistant;

// The candidate neighbours of every segment [start, end] in frames; bcnet_fast.geometry.proposal_graph.neighbour_slots
// defines them. segments: [count, 2], each a frame long or longer; slots: [count, kSlots].
void neighbour_slots(const double* segments, std::int64_t count, double min_iou, InstructionSet instruction_set,
                     int threads, std::int64_t* slots);

// Ranges of rows, `bins` for each of `count` items: range i is [numbers[2 i], numbers[2 i + 1]).
struct RangeLists {
  const std::int64_t* numbers;
  std::int64_t count, bins;
};

// Maxima of x, [rows, columns], over ranges of its rows, column by column: out row i has those of the bins of item i,
// side by side. NaN if a value is NaN, 0 for an empty range. Requires: numbers within 0 to rows.
template <typename T>
void range_maxima(Matrix<T> x, std::int64_t rows, std::int64_t columns, const RangeLists& ranges,
                  InstructionSet instruction_set, int threads, MutableMatrix<T> out);

// Features of proposals: [rows, parts * width], side by side.
template <typename T>
struct FeatureParts {
  Matrix<T> x;
  std::int64_t parts, width;
};

// Edges from one node to itself and to its children: `groups` lists of 1 + children nodes, the first of which is the
// node that the edges come from.
struct EdgeLists {
  const std::int64_t* nodes;
  std::int64_t groups, children;

  std::int64_t count() const { return groups * (1 + children); }
};

// Weights of edges, [groups, 1 + children]: the cosine between both ends, 1 / children of it for a child, 0 where it is
// negative or an end is zero. `whole` gets those of all parts of x together, and `of_part`, unless it is null, those of
// the part with the number `part`. Requires: nodes that are rows.
template <typename T>
void edge_weights(const FeatureParts<T>& features, std::int64_t rows, std::int64_t part, const EdgeLists& edges,
                  InstructionSet instruction_set, int threads, T* whole, T* of_part);

// Out row r = sum over g of outer[r, g] f(bias + sum over k of weights[r, g, k] x[rows[r, g, k]]), f being ReLU or
// nothing. Without `outer`, the sum over g is plain. Requires: rows of x that exist.
template <typename T>
struct WeightedRows {
  Matrix<T> x;
  std::int64_t columns;
  const std::int64_t* rows;
  const T* weights;
  std::int64_t count, groups, taps;
  Matrix<T> outer;  // [count, groups], or absent
  const T* bias;    // [columns], or null
  bool relu;
};
template <typename T>
void weighted_rows(const WeightedRows<T>& sums, InstructionSet instruction_set, int threads, MutableMatrix<T> out);

}  // namespace bcnet_fast
