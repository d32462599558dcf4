// Products of float32 rows with a matrix in blocks: weight = scale × number + offset.
//
// A weight is made in a register from the bytes that it is stored in. Every output is summed in the
// order of the inputs, one after the other, whatever the number of rows and of threads: a row's
// product is bit-identical whatever rows are multiplied with it.
//
// The matrix is stored in groups of 16 outputs. A group holds its blocks in the order of the inputs;
// a block holds 16 scales, 16 offsets if there are any, 16 words of fifth bits if there are any, and
// the numbers: of 8 bits, 16 outputs for each input; of 4 bits, as in GGUF files, 4 words for each
// output, whose bytes hold the inputs n and n + 16.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace specbranch {

constexpr int LANES = 16;         // outputs of a group
constexpr int PADDED_GROUPS = 4;  // a matrix is padded to a multiple of so many
constexpr int PARTS = LANES / WIDTH;
constexpr int BUFFER = 4096;        // weights that are unpacked at a time: half of a level-1 cache
constexpr int64_t GRAIN = 1 << 15;  // products below which another thread is not worth waking

// Groups and rows whose sums fill the registers: for a few rows, and for more.
#if defined(__AVX512F__)
constexpr int FEW_GROUPS = 4, FEW_ROWS = 3, GROUPS = 2, ROWS = 6;
#elif defined(__AVX2__)
constexpr int FEW_GROUPS = 2, FEW_ROWS = 3, GROUPS = 1, ROWS = 6;
#else
constexpr int FEW_GROUPS = 1, FEW_ROWS = 1, GROUPS = 1, ROWS = 4;
#endif

template <int BITS_, bool OFFSET_, typename Scale_, int SIZE_>
struct Format {
  using Scale = Scale_;
  static constexpr int BITS = BITS_, SIZE = SIZE_;
  static constexpr bool OFFSET = OFFSET_;
  static constexpr int64_t OFFSETS = LANES * sizeof(Scale);
  static constexpr int64_t FIFTH = OFFSETS + (OFFSET ? LANES * sizeof(Scale) : 0);
  static constexpr int64_t NUMBERS = FIFTH + (BITS == 5 ? LANES * 4 : 0);
  static constexpr int64_t BYTES = NUMBERS + LANES * SIZE * (BITS == 8 ? 8 : 4) / 8;
};

// Scales, offsets and fifth bits of a block, for as many outputs as a vector has.
template <class F>
struct Block {
  const uint8_t* block;
  int lane;
  Floats scale, offset;
  Ints fifth;

  Block() = default;
  inline Block(const uint8_t* block, int lane) : block(block), lane(lane) {
    using Scale = typename F::Scale;
    scale = load_scales(reinterpret_cast<const Scale*>(block) + lane);
    if constexpr (F::OFFSET)
      offset = load_scales(reinterpret_cast<const Scale*>(block + F::OFFSETS) + lane);
    else if constexpr (F::BITS < 8)
      offset = scale * all(-(1 << (F::BITS - 1)));  // numbers are around 0
    if constexpr (F::BITS == 5) fifth = load<Ints>(block + F::FIFTH + 4 * lane);
  }

  // The weights of an input.
  inline Floats operator[](int input) const {
    if constexpr (F::BITS == 8) {
      return to_floats(load_int8(block + F::NUMBERS + LANES * input + lane)) * scale;
    } else {
      const int word = input % 16 / 4, shift = 8 * (input % 4) + 4 * (input / 16);
      Ints number = load<Ints>(block + F::NUMBERS + 4 * (LANES * word + lane));
      number = (number >> shift) & 15;
      if constexpr (F::BITS == 5)
        number |= (input < 4 ? fifth << (4 - input) : fifth >> (input - 4)) & 16;
      return multiply_add(to_floats(number), scale, offset);
    }
  }
};

// The product of one row with some groups.
template <class F, int COUNT>
void multiply_row(const uint8_t* groups, const float* x, int64_t inputs, float* sums) {
  constexpr int VECTORS = COUNT * PARTS;
  const int64_t blocks = inputs / F::SIZE, bytes = blocks * F::BYTES;
  Floats found[VECTORS] = {};
  for (int64_t at = 0; at < blocks; ++at, x += F::SIZE) {
    Block<F> block[VECTORS];
    for (int v = 0; v < VECTORS; ++v)
      block[v] = Block<F>(groups + v / PARTS * bytes + at * F::BYTES, v % PARTS * WIDTH);
#pragma GCC unroll 32
    for (int input = 0; input < F::SIZE; ++input)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        found[v] = multiply_add(block[v][input], all(x[input]), found[v]);
  }
  for (int v = 0; v < VECTORS; ++v) store(sums + v * WIDTH, found[v]);
}

// The weights of some groups for the inputs of a block, `[SIZE, COUNT * LANES]`.
template <class F, int COUNT>
void unpack(const uint8_t* groups, int64_t bytes, float* weights) {
  for (int v = 0; v < COUNT * PARTS; ++v) {
    const Block<F> block(groups + v / PARTS * bytes, v % PARTS * WIDTH);
#pragma GCC unroll 32
    for (int input = 0; input < F::SIZE; ++input)
      store(weights + input * COUNT * LANES + v * WIDTH, block[input]);
  }
}

// Add the products of `HEIGHT` rows with unpacked weights to `sums`, `[HEIGHT, COUNT * LANES]`.
template <int COUNT, int HEIGHT>
void add_products(const float* weights, const float* x, int64_t stride, int64_t inputs, float* sums) {
  constexpr int VECTORS = COUNT * PARTS;
  Floats found[HEIGHT][VECTORS];
#pragma GCC unroll 8
  for (int row = 0; row < HEIGHT; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      found[row][v] = load<Floats>(sums + (row * VECTORS + v) * WIDTH);
  for (int64_t input = 0; input < inputs; ++input) {
    Floats weight[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) weight[v] = load<Floats>(weights + (input * VECTORS + v) * WIDTH);
#pragma GCC unroll 8
    for (int row = 0; row < HEIGHT; ++row) {
      const Floats value = all(x[row * stride + input]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        found[row][v] = multiply_add(weight[v], value, found[row][v]);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < HEIGHT; ++row)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(sums + (row * VECTORS + v) * WIDTH, found[row][v]);
}

template <int COUNT, int MOST>
void add_products_of(
    int64_t rows, const float* weights, const float* x, int64_t stride, int64_t inputs, float* sums) {
  if constexpr (MOST > 0) {
    if (rows == MOST)
      add_products<COUNT, MOST>(weights, x, stride, inputs, sums);
    else
      add_products_of<COUNT, MOST - 1>(rows, weights, x, stride, inputs, sums);
  }
}

// The products of several rows with some groups. A weight is unpacked once for all rows.
template <class F, int COUNT, int MOST>
void multiply_rows(
    const uint8_t* groups, const float* x, int64_t rows, int64_t inputs, float* sums) {
  constexpr int64_t OUTPUTS = COUNT * LANES, CHUNK = BUFFER / OUTPUTS;
  alignas(64) float weights[BUFFER];
  const int64_t bytes = inputs / F::SIZE * F::BYTES, parts = (rows + MOST - 1) / MOST;
  std::fill_n(sums, rows * OUTPUTS, 0.0f);
  for (int64_t begin = 0; begin < inputs; begin += CHUNK) {
    const int64_t count = std::min(CHUNK, inputs - begin);
    for (int64_t at = 0; at < count; at += F::SIZE)
      unpack<F, COUNT>(
          groups + (begin + at) / F::SIZE * F::BYTES, bytes, weights + at * OUTPUTS);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = part * rows / parts, end = (part + 1) * rows / parts;
      add_products_of<COUNT, MOST>(
          end - first, weights, x + first * inputs + begin, inputs, count, sums + first * OUTPUTS);
    }
  }
}

// y `[rows, outputs]` = x `[rows, inputs]` times the matrix.
template <class F>
void multiply(
    const uint8_t* matrix, const float* x, int64_t rows, int64_t inputs, int64_t outputs, float* y) {
  const int64_t bytes = inputs / F::SIZE * F::BYTES;
  const int64_t count = rows <= FEW_ROWS ? FEW_GROUPS : GROUPS, width = count * LANES;
  const int64_t tiles = (outputs + width - 1) / width;
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, rows * inputs * width));
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(rows * width);
    for (int64_t tile = begin; tile < end; ++tile) {
      const uint8_t* groups = matrix + tile * count * bytes;
      if (rows == 1)
        multiply_row<F, FEW_GROUPS>(groups, x, inputs, sums.data());
      else if (rows <= FEW_ROWS)
        multiply_rows<F, FEW_GROUPS, FEW_ROWS>(groups, x, rows, inputs, sums.data());
      else
        multiply_rows<F, GROUPS, ROWS>(groups, x, rows, inputs, sums.data());
      const int64_t first = tile * width, valid = std::min(width, outputs - first);
      for (int64_t row = 0; row < rows; ++row)
        std::copy_n(sums.data() + row * width, valid, y + row * outputs + first);
    }
  });
}

// One row of the matrix, `[inputs]`.
template <class F>
void read_row(const uint8_t* matrix, int64_t row, int64_t inputs, float* weights) {
  const uint8_t* at = matrix + row / LANES * (inputs / F::SIZE * F::BYTES);
  const int lane = row % LANES;
  for (int64_t begin = 0; begin < inputs; begin += F::SIZE, at += F::BYTES) {
    const Block<F> block(at, lane / WIDTH * WIDTH);
#pragma GCC unroll 32
    for (int input = 0; input < F::SIZE; ++input)
      weights[begin + input] = block[input][lane % WIDTH];
  }
}

// Call with the format of a kind, as `KINDS` in blocks.py numbers them.
template <typename Function>
void with_format(int64_t kind, const Function& call) {
  using c10::Half;
  switch (kind) {
    case 0: return call(Format<4, false, Half, 32>());
    case 1: return call(Format<4, true, Half, 32>());
    case 2: return call(Format<5, false, Half, 32>());
    case 3: return call(Format<5, true, Half, 32>());
    case 4: return call(Format<8, false, Half, 32>());
    case 5: return call(Format<4, true, float, 32>());
    case 6: return call(Format<5, true, float, 32>());
    case 7: return call(Format<8, false, float, 16>());
    default: TORCH_CHECK(false, "no such kind of blocks: ", kind);
  }
}

}  // namespace specbranch
