// How the right matrix of a product is laid out, and how long sums are.
#pragma once

#include <cstdint>

namespace bcnet_fast {

constexpr int kPanel = 32;  // columns of a packed matrix that lie together: two of the largest vectors

// Sums are made in blocks of this many products, which are then added up: rounding errors grow with the length of a
// sum.
constexpr std::int64_t kDepthBlock = 256;

constexpr int kMaxTileRows = 12;  // rows of a product that are computed together, with the largest vectors

}  // namespace bcnet_fast
