// Rows are worked on in blocks of about 64, from the first product to the LayerNorm: a block's results are then in the
// cache when they are needed again, and every panel of weights, read from memory once for a block, serves several tiles.
//
// Products are fused with their sums (FMA) where the instruction set has it, so bits differ between instruction sets.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#elif defined(__clang__)
#pragma clang fp contract(fast)
#endif

#include "layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "byte_tiles.h"
#include "gather_columns.h"
#include "memory.h"
#include "parallel.h"
#include "scratch.h"
#include "tiles.h"

namespace bcnet_fast {
namespace {

constexpr std::int64_t kBlockRows = 64;

constexpr std::int64_t round_up(std::int64_t number, std::int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// Calls body(first, last) for blocks of rows of about one size, as many for each thread.
template <typename Body>
void for_row_blocks(std::int64_t rows, int threads, const Body& body) {
  const std::int64_t rounds = std::max<std::int64_t>(1, (rows + threads * kBlockRows - 1) / (threads * kBlockRows));
  const std::int64_t blocks = std::min(rows, rounds * threads);
  WorkQueue queue(blocks);
  run_in_threads(static_cast<int>(std::min<std::int64_t>(threads, blocks)), [&](int) {
    for (std::int64_t block; queue.next(block);) body(rows * block / blocks, rows * (block + 1) / blocks);
  });
}

// Writes a product to out, tile by tile: Product::tile computes one, of `count` rows from `first` on. Results go through a
// buffer where not all columns of a tile exist.
template <int bytes, typename Product>
BCNET_INLINE void multiply_tiles(const Product& product, std::int64_t rows, std::int64_t columns, float* out,
                                 std::int64_t out_stride) {
  constexpr int width = FloatTiles<bytes>::width, most_rows = kTileRows<bytes>;
  const std::int64_t tiles = (rows + most_rows - 1) / most_rows;  // of about one size
  for (std::int64_t column = 0; column < columns; column += width) {
    const std::int64_t used = std::min<std::int64_t>(width, columns - column);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t first = rows * t / tiles;
      const int count = static_cast<int>(rows * (t + 1) / tiles - first);
      float* const to = out + first * out_stride + column;
      if (used == width) {
        product.tile(column, first, count, to, out_stride);
      } else {
        float whole[most_rows * width];
        product.tile(column, first, count, whole, width);
        for (int r = 0; r < count; ++r) std::memcpy(to + r * out_stride, whole + r * width, sizeof(float) * used);
      }
    }
  }
}

template <int bytes>
struct FloatProduct {
  const float* a;
  std::int64_t a_stride;
  const float* panels;
  std::int64_t depth;
  bool relu;

  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, float* to, std::int64_t stride) const {
    const float* const b = panels + column / kPanel * kPanel * depth + column % kPanel;
    float_tile<bytes>(count, a + first * a_stride, a_stride, b, kPanel, depth, relu, to, stride);
  }
};

// A block of rows rounded to 8 bits: x = (q - zero) scale.
struct ByteRows {
  std::uint8_t* data;
  std::int64_t stride;
  float* scales;
  std::int32_t* zeros;
};

template <int bytes>
BCNET_INLINE void round_row(const float* x, std::int64_t count, std::uint8_t* out, std::int64_t padded, float& scale,
                            std::int32_t& zero) {
  using V = Vector<float, bytes>;
  constexpr int lanes = FloatTiles<bytes>::lanes;
  // From 0 on, so that a row that has no negative numbers, like one after ReLU, gets all 256 steps above 0.
  V lowest_of{}, highest_of{};
  const std::int64_t whole = count / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) {
    const V values = load<V>(x + i);
    lowest_of = values < lowest_of ? values : lowest_of;
    highest_of = values > highest_of ? values : highest_of;
  }
  float lowest = 0, highest = 0;
  const auto include = [&](float low, float high) {
    lowest = std::min(lowest, low);
    highest = std::max(highest, high);
  };
  float lows[lanes], highs[lanes];
  std::memcpy(lows, &lowest_of, sizeof(lows));
  std::memcpy(highs, &highest_of, sizeof(highs));
  for (int i = 0; i < lanes; ++i) include(lows[i], highs[i]);
  for (std::int64_t i = whole; i < count; ++i) include(x[i], x[i]);
  const float step = (highest - lowest) / 255;
  scale = step > 0 ? step : 1.0f;
  const float inverse = 1 / scale, begin = std::round(-lowest * inverse);
  zero = static_cast<std::int32_t>(begin);
  const float shift = begin + 0.5f;
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = x[i] * inverse + shift;
    out[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(value < 0 ? 0 : value > 255 ? 255 : value));
  }
  std::memset(out + count, 0, static_cast<std::size_t>(padded - count));
}

template <int bytes>
struct ByteProduct {
  ByteRows a;
  const std::int8_t* panels;
  std::int64_t depth;
  ByteColumns columns;
  bool relu;

  BCNET_INLINE void tile(std::int64_t column, std::int64_t first, int count, float* to, std::int64_t stride) const {
    const std::int8_t* const b = panels + column / kPanel * kPanel * depth + column % kPanel * 4;
    const ByteColumns of_tile{columns.scales + column, columns.sums + column};
    byte_tile<bytes>(count, a.data + first * a.stride, a.stride, b, depth / 4, a.scales + first, a.zeros + first, of_tile,
                     relu, to, stride);
  }
};

template <int bytes>
BCNET_INLINE float sum_of(Vector<float, bytes> vector) {
  constexpr int lanes = FloatTiles<bytes>::lanes;
  float elements[lanes];
  std::memcpy(elements, &vector, sizeof(vector));
  for (int half = lanes / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) elements[i] += elements[i + half];
  }
  return elements[0];
}

// LayerNorm of a row, in place.
template <int bytes>
BCNET_INLINE void norm_row(float* row, std::int64_t columns, float eps) {
  using V = Vector<float, bytes>;
  constexpr int lanes = FloatTiles<bytes>::lanes;
  const std::int64_t whole = columns / lanes * lanes;
  const float share = 1.0f / static_cast<float>(columns);
  V sums{};
  for (std::int64_t i = 0; i < whole; i += lanes) sums += load<V>(row + i);
  float sum = sum_of<bytes>(sums);
  for (std::int64_t i = whole; i < columns; ++i) sum += row[i];
  const float mean = sum * share;
  V squares{};
  for (std::int64_t i = 0; i < whole; i += lanes) {
    const V centred = load<V>(row + i) - mean;
    squares += centred * centred;
    store(row + i, centred);
  }
  float square = sum_of<bytes>(squares);
  for (std::int64_t i = whole; i < columns; ++i) {
    row[i] -= mean;
    square += row[i] * row[i];
  }
  const float scale = 1 / std::sqrt(square * share + eps);
  for (std::int64_t i = 0; i < columns; ++i) row[i] *= scale;
}

// What follows a product, but for its ReLU where there is no bias; on rows first to last of the whole result.
template <int bytes>
BCNET_INLINE void finish_rows(const Finish& finish, std::int64_t columns, std::int64_t first, std::int64_t last, Output out) {
  for (std::int64_t r = first; r < last; ++r) {
    float* const row = out.data + r * out.stride;
    if (finish.bias) {
      for (std::int64_t i = 0; i < columns; ++i) {
        const float value = row[i] + finish.bias[i];
        row[i] = finish.relu && value < 0 ? 0 : value;
      }
    }
    for (const Matrix& added : finish.added) {
      if (!added.data) continue;
      const float* const other = added.data + r * added.stride;
      for (std::int64_t i = 0; i < columns; ++i) row[i] += other[i];
    }
    if (finish.norm) norm_row<bytes>(row, columns, finish.eps);
  }
}

// The product of a block of rows with one group of a weight. `bytes_scratch` is for the rounded rows of int8.
template <int bytes>
BCNET_INLINE void multiply(const float* a, std::int64_t a_stride, std::int64_t rows, const PackedWeight& weight,
                           std::int64_t group, bool relu, char* byte_scratch, float* out, std::int64_t out_stride) {
  if (!weight.int8()) {
    const FloatProduct<bytes> product{a, a_stride, weight.floats(group), weight.inputs(), relu};
    return multiply_tiles<bytes>(product, rows, weight.outputs(), out, out_stride);
  }
  const std::int64_t padded = weight.padded_inputs(), stride = padded + 64;
  const ByteRows rounded{reinterpret_cast<std::uint8_t*>(byte_scratch), stride,
                         reinterpret_cast<float*>(byte_scratch + rows * stride),
                         reinterpret_cast<std::int32_t*>(byte_scratch + rows * (stride + 4))};
  for (std::int64_t r = 0; r < rows; ++r) {
    round_row<bytes>(a + r * a_stride, weight.inputs(), rounded.data + r * stride, padded, rounded.scales[r],
                     rounded.zeros[r]);
  }
  const ByteColumns columns{weight.scales(group), weight.sums(group)};
  const ByteProduct<bytes> product{rounded, weight.integers(group), padded, columns, relu};
  multiply_tiles<bytes>(product, rows, weight.outputs(), out, out_stride);
}

std::int64_t byte_scratch_size(std::int64_t rows, const PackedWeight& weight) {
  return weight.int8() ? rows * (weight.padded_inputs() + 64 + 8) : 0;
}

template <int bytes>
BCNET_INLINE void linear_rows(Matrix x, const PackedWeight& weight, const Finish& finish, std::int64_t first,
                              std::int64_t last, char* byte_scratch, Output out) {
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    multiply<bytes>(x.data + first * x.stride + g * weight.inputs(), x.stride, last - first, weight, g,
                    finish.relu && !finish.bias, byte_scratch, out.data + first * out.stride + g * weight.outputs(),
                    out.stride);
  }
  finish_rows<bytes>(finish, weight.groups() * weight.outputs(), first, last, out);
}

template <int bytes>
BCNET_INLINE void feed_forward_rows(Matrix x, const PackedWeight& one, const PackedWeight& two, const Finish& finish,
                                    std::int64_t first, std::int64_t last, float* hidden, char* byte_scratch, Output out) {
  const std::int64_t stride = scratch_stride(one.outputs());
  multiply<bytes>(x.data + first * x.stride, x.stride, last - first, one, 0, true, byte_scratch, hidden, stride);
  multiply<bytes>(hidden, stride, last - first, two, 0, false, byte_scratch, out.data + first * out.stride, out.stride);
  finish_rows<bytes>(finish, two.outputs(), first, last, out);
}

template <int bytes>
BCNET_INLINE void convolution_rows(const float* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                                   const PackedWeight& weight, const Finish& finish, std::int64_t first, std::int64_t last,
                                   float* unfolded, char* byte_scratch, Output out) {
  const std::int64_t channels = weight.inputs() / 3, stride = scratch_stride(weight.inputs());
  for (std::int64_t g = 0; g < weight.groups(); ++g) {
    for (std::int64_t tap = 0; tap < 3; ++tap) {
      const std::int64_t shift = tap - 1;
      float* const to = unfolded + tap * channels;
      for (std::int64_t r = first; r < last; ++r) {
        if (r + shift < 0 || r + shift >= rows) std::fill_n(to + (r - first) * stride, channels, 0.0f);
      }
      const std::int64_t begin = std::max(first, -shift), end = std::min(last, rows - shift);
      const float* const from = x + g * channels * channel_stride + shift * row_stride;
      if (channel_stride == 1) {
        for (std::int64_t r = begin; r < end; ++r) std::copy_n(from + r * row_stride, channels, to + (r - first) * stride);
      } else {
        for (std::int64_t c = 0; c < channels; ++c) {
          for (std::int64_t r = begin; r < end; ++r) {
            to[(r - first) * stride + c] = from[r * row_stride + c * channel_stride];
          }
        }
      }
    }
    multiply<bytes>(unfolded, stride, last - first, weight, g, finish.relu && !finish.bias, byte_scratch,
                    out.data + first * out.stride + g * weight.outputs(), out.stride);
  }
  finish_rows<bytes>(finish, weight.groups() * weight.outputs(), first, last, out);
}

struct AnchorWork {
  Matrix x;
  std::int64_t snippets;
  const PackedWeight& weight;
  const GroupPlan<float>& plan;
  Matrix added;
  Output out;
};

// Takes items: panels of columns.
template <int bytes>
BCNET_INLINE void project_panels(const AnchorWork& work, WorkQueue& queue, float* packed) {
  using C = Columns<bytes, float>;
  const std::int64_t bins = work.weight.groups(), columns = work.weight.outputs(), depth = work.weight.inputs();
  // What is read beyond the rows in use does not matter, but denormal numbers there would cost time.
  std::fill(packed + bins * work.snippets * kPanel, packed + packed_rows(work.plan) * kPanel, 0.0f);
  const float no_bias[C::width] = {};
  for (std::int64_t panel; queue.next(panel);) {
    const std::int64_t begin = panel * kPanel;
    for (std::int64_t n = 0; n < bins; ++n) {
      const FloatProduct<bytes> product{work.x.data, work.x.stride, work.weight.floats(n) + begin * depth, depth, false};
      multiply_tiles<bytes>(product, work.snippets, kPanel, packed + n * work.snippets * kPanel, kPanel);
    }
    const std::int64_t end = std::min(columns, begin + kPanel);
    for (std::int64_t column = begin; column < end; column += C::width) {
      const int used = static_cast<int>(std::min<std::int64_t>(C::width, end - column));
      const float* const added = work.added.data ? work.added.data + column : nullptr;
      const GatheredColumns<float> gathered{packed + (column - begin), no_bias, added, work.added.stride, false, used,
                                            work.out.data + column, work.out.stride};
      gather_columns<bytes, kPanel>(gathered, work.plan, 0, work.plan.groups);
    }
  }
}

BCNET_VERSIONS(project_panels)
BCNET_VERSIONS(linear_rows)
BCNET_VERSIONS(feed_forward_rows)
BCNET_VERSIONS(convolution_rows)

thread_local Scratch float_scratch, byte_scratch;

// The instruction set for layers with such a weight.
InstructionSet usable(InstructionSet set, const PackedWeight& weight) {
  const bool lacking = weight.int8() && set == InstructionSet::avx512 && !has_byte_products();
  return lacking ? InstructionSet::avx2 : set;
}

}  // namespace

void PackedWeight::Free::operator()(void* memory) const { ::operator delete[](memory, std::align_val_t{64}); }

std::int64_t PackedWeight::padded_outputs() const { return round_up(outputs_, kPanel); }
std::int64_t PackedWeight::padded_inputs() const { return round_up(inputs_, 4); }

PackedWeight::PackedWeight(const float* weight, std::int64_t groups, std::int64_t outputs, std::int64_t inputs, bool int8)
    : groups_(groups), outputs_(outputs), inputs_(inputs), int8_(int8) {
  stride_ = padded_outputs() * (int8 ? padded_inputs() : inputs);
  bytes_ = groups * stride_ * static_cast<std::int64_t>(int8 ? sizeof(std::int8_t) : sizeof(float));
  memory_.reset(static_cast<char*>(::operator new[](static_cast<std::size_t>(bytes_), std::align_val_t{64})));
  prefer_huge_pages(memory_.get(), static_cast<std::size_t>(bytes_));
  int8 ? pack_integers(weight) : pack_floats(weight);
}

void PackedWeight::pack_floats(const float* weight) {
  auto* to = reinterpret_cast<float*>(memory_.get());
  for (std::int64_t g = 0; g < groups_; ++g, weight += outputs_ * inputs_) {
    for (std::int64_t panel = 0; panel < outputs_; panel += kPanel, to += kPanel * inputs_) {
      for (std::int64_t c = 0; c < kPanel; ++c) {
        const float* const from = weight + (panel + c) * inputs_;
        const bool exists = panel + c < outputs_;
        for (std::int64_t k = 0; k < inputs_; ++k) to[k * kPanel + c] = exists ? from[k] : 0.0f;
      }
    }
  }
}

void PackedWeight::pack_integers(const float* weight) {
  const std::int64_t padded = padded_outputs();
  scales_.reset(new float[groups_ * padded]());
  sums_.reset(new std::int32_t[groups_ * padded]());
  std::memset(memory_.get(), 0, static_cast<std::size_t>(bytes_));
  for (std::int64_t row = 0; row < groups_ * outputs_; ++row, weight += inputs_) {
    const std::int64_t group = row / outputs_, output = row % outputs_;
    float largest = 0;
    for (std::int64_t k = 0; k < inputs_; ++k) largest = std::max(largest, std::abs(weight[k]));
    const float scale = largest > 0 ? largest / 127 : 1.0f;
    auto* const panel = reinterpret_cast<std::int8_t*>(memory_.get()) + group * stride_ +
                        output / kPanel * kPanel * padded_inputs() + output % kPanel * 4;
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < inputs_; ++k) {
      const auto value = static_cast<std::int32_t>(std::lround(weight[k] / scale));
      panel[k / 4 * 4 * kPanel + k % 4] = static_cast<std::int8_t>(value);
      sum += value;
    }
    scales_[group * padded + output] = scale;
    sums_[group * padded + output] = sum;
  }
}

void linear(Matrix x, std::int64_t rows, const PackedWeight& weight, const Finish& finish, InstructionSet instruction_set,
            int threads, Output out) {
  instruction_set = usable(instruction_set, weight);
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    char* const bytes = byte_scratch.take<char>(byte_scratch_size(last - first, weight));
    linear_rows_for(instruction_set, x, weight, finish, first, last, bytes, out);
  });
}

void feed_forward(Matrix x, std::int64_t rows, const PackedWeight& first, const PackedWeight& second, const Finish& finish,
                  InstructionSet instruction_set, int threads, Output out) {
  instruction_set = usable(instruction_set, first);
  for_row_blocks(rows, threads, [&](std::int64_t begin, std::int64_t end) {
    float* const hidden = float_scratch.take<float>((end - begin) * scratch_stride(first.outputs()));
    const std::int64_t needed = std::max(byte_scratch_size(end - begin, first), byte_scratch_size(end - begin, second));
    char* const bytes = byte_scratch.take<char>(needed);
    feed_forward_rows_for(instruction_set, x, first, second, finish, begin, end, hidden, bytes, out);
  });
}

void convolution(const float* x, std::int64_t row_stride, std::int64_t channel_stride, std::int64_t rows,
                 const PackedWeight& weight, const Finish& finish, InstructionSet instruction_set, int threads, Output out) {
  instruction_set = usable(instruction_set, weight);
  for_row_blocks(rows, threads, [&](std::int64_t first, std::int64_t last) {
    float* const unfolded = float_scratch.take<float>((last - first) * scratch_stride(weight.inputs()));
    char* const bytes = byte_scratch.take<char>(byte_scratch_size(last - first, weight));
    convolution_rows_for(instruction_set, x, row_stride, channel_stride, rows, weight, finish, first, last, unfolded, bytes,
                         out);
  });
}

void project_anchors(Matrix x, std::int64_t snippets, const PackedWeight& weight, const GroupPlan<float>& plan, Matrix added,
                     InstructionSet instruction_set, int threads, Output out) {
  const AnchorWork work{x, snippets, weight, plan, added, out};
  WorkQueue queue(weight.padded_outputs() / kPanel);
  run_in_threads(threads, [&](int) {
    float* const packed = float_scratch.take<float>(packed_rows(plan) * kPanel);
    project_panels_for(instruction_set, work, queue, packed);
  });
}

}  // namespace bcnet_fast
