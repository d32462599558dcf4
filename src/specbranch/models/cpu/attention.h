// Attention of float32 queries over the slots of a cache that each of them sees.
//
// A query's sums are over the slots that it sees, in their order, and over nothing else. So its
// output is bit-identical whatever queries are run with it, and however far the cache reaches.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "simd.h"

namespace specbranch {

constexpr int HEAD_STEP = 16;  // the size of a head is a multiple of it

// Of a tensor `[heads, rows, size]`, whose last dimension is contiguous.
struct Rows {
  const float* data;
  int64_t head, row;  // strides
  const float* at(int64_t h, int64_t r) const { return data + h * head + r * row; }
};

inline float sum(Floats vector) {
  for (int half = WIDTH / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) vector[lane] += vector[lane + half];
  return vector[0];
}

// e to the power of numbers between -87 and 0: 2^n times the Taylor series for what is left, which is
// below 0.35 and so exact to a rounding with 8 terms.
inline Floats exponential(Floats x) {
  const Ints n = __builtin_convertvector(x * all(1.44269504f) - all(0.5f), Ints);
  const Floats whole = to_floats(n);
  Floats left = multiply_add(whole, all(-0.693359375f), x);
  left = multiply_add(whole, all(2.12194440e-4f), left);
  Floats series = all(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    series = multiply_add(series, left, all(term));
  return series * (Floats)((n + 127) << 23);
}

// The sums of four vectors.
inline void store_sums(const Floats (&vectors)[4], float* to) {
#if defined(__AVX2__)
  __m256 folded[4];
  for (int at = 0; at < 4; ++at) {
#if defined(__AVX512F__)
    const __m512 whole = (__m512)vectors[at];
    folded[at] = _mm256_add_ps(_mm512_castps512_ps256(whole), _mm512_extractf32x8_ps(whole, 1));
#else
    folded[at] = (__m256)vectors[at];
#endif
  }
  const __m256 pairs = _mm256_hadd_ps(
      _mm256_hadd_ps(folded[0], folded[1]), _mm256_hadd_ps(folded[2], folded[3]));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  for (int at = 0; at < 4; ++at) to[at] = sum(vectors[at]);
#endif
}

// The scaled products of a query with the keys that it sees. They are computed by fours, and what is
// lacking at the end is another product of the last one.
inline void score(
    const float* query, const float* keys, int64_t stride, const std::vector<int64_t>& seen,
    int64_t size, float scale, std::vector<float>& scores) {
  const size_t count = seen.size();
  scores.resize((count + 3) / 4 * 4);
  for (size_t at = 0; at < count; at += 4) {
    const float* key[4];
    for (size_t next = 0; next < 4; ++next)
      key[next] = keys + seen[std::min(at + next, count - 1)] * stride;
    Floats found[4] = {};
    for (int64_t input = 0; input < size; input += WIDTH) {
      const Floats asked = load<Floats>(query + input);
      for (int next = 0; next < 4; ++next)
        found[next] = multiply_add(asked, load<Floats>(key[next] + input), found[next]);
    }
    store_sums(found, &scores[at]);
  }
  scores.resize(count);
  for (float& score : scores) score *= scale;
}

// Scores to weights, whose sum is given back.
inline float weigh(std::vector<float>& scores) {
  const size_t count = scores.size();
  scores.resize((count + WIDTH - 1) / WIDTH * WIDTH, scores.front());
  Floats most = load<Floats>(&scores[0]), total = all(0);
  for (size_t at = WIDTH; at < scores.size(); at += WIDTH) {
    const Floats next = load<Floats>(&scores[at]);
    most = next > most ? next : most;
  }
  float largest = most[0];
  for (int lane = 1; lane < WIDTH; ++lane) largest = std::max(largest, most[lane]);
  for (size_t at = 0; at < scores.size(); at += WIDTH) {
    Floats below = load<Floats>(&scores[at]) - all(largest);
    below = below < all(-87) ? all(-87) : below;
    Floats weights = exponential(below);
    for (size_t lane = count - std::min(at, count); lane < WIDTH; ++lane) weights[lane] = 0;
    store(&scores[at], weights);
    total += weights;
  }
  scores.resize(count);
  return sum(total);
}

// Weighted values, divided by `total`: `STEPS` vectors of them.
template <int STEPS>
void average(
    const std::vector<float>& weights, const std::vector<int64_t>& seen, const float* values,
    int64_t stride, float total, float* out) {
  Floats found[STEPS] = {};
  for (size_t at = 0; at < seen.size(); ++at) {
    const Floats weight = all(weights[at]);
    const float* value = values + seen[at] * stride;
#pragma GCC unroll 16
    for (int step = 0; step < STEPS; ++step)
      found[step] = multiply_add(load<Floats>(value + step * WIDTH), weight, found[step]);
  }
  for (int step = 0; step < STEPS; ++step) store(out + step * WIDTH, found[step] / all(total));
}

// out `[rows, heads, size]`. A head of keys and values serves `heads / cached_heads` of queries.
inline void attend(
    Rows queries, Rows keys, Rows values, const bool* mask, int64_t heads, int64_t cached_heads,
    int64_t rows, int64_t extent, int64_t size, float scale, float* out) {
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, 2 * extent * size));
  at::parallel_for(0, rows * heads, grain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> seen;
    std::vector<float> scores;
    int64_t last = -1;
    for (int64_t query = begin; query < end; ++query) {
      const int64_t row = query / heads, head = query % heads, cached = head / (heads / cached_heads);
      if (row != last) {
        seen.clear();
        for (int64_t slot = 0; slot < extent; ++slot)
          if (mask[row * extent + slot]) seen.push_back(slot);
        last = row;
      }
      float* found = out + query * size;
      if (seen.empty()) {
        std::fill_n(found, size, 0.0f);
        continue;
      }
      score(queries.at(head, row), keys.at(cached, 0), keys.row, seen, size, scale, scores);
      const float total = weigh(scores);
      const float* value = values.at(cached, 0);
      int64_t at = 0;
      for (; at + 4 * HEAD_STEP <= size; at += 4 * HEAD_STEP)
        average<4 * HEAD_STEP / WIDTH>(scores, seen, value + at, values.row, total, found + at);
      for (; at < size; at += HEAD_STEP)
        average<HEAD_STEP / WIDTH>(scores, seen, value + at, values.row, total, found + at);
    }
  });
}

}  // namespace specbranch
