// The three products with phi, tile by tile in registers. Each sum runs over its terms in one order, whatever is beside it.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace mhc {

#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int TILE = 8;  // rows of a tile: with three vectors of each they fill 32 registers
#else
constexpr int TILE = 4;  // 16 registers
#endif
constexpr int ACROSS = 3;  // vectors of a row of a tile

// Numbers x[row][k], their steps along rows and along k.
struct Grid {
  const float* x;
  long along_rows, along_terms;

  float at(long row, long k) const { return x[row * along_rows + k * along_terms]; }
  Grid from(long row) const { return {x + row * along_rows, along_rows, along_terms}; }
};

// out[row][:] += sum_k x[row][k] table[k][:], for the R rows of one tile
template <int R, int G>
inline void times_tile(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms) {
  Vec sums[R][G];
  for (int t = 0; t < R; ++t)
    for (int g = 0; g < G; ++g) sums[t][g] = load(out + t * out_stride + g * LANES);
  for (long k = 0; k < terms; ++k) {
    Vec row[G];
    for (int g = 0; g < G; ++g) row[g] = load(table + k * table_stride + g * LANES);
    for (int t = 0; t < R; ++t) {
      const Vec factor = all(x.at(t, k));
      for (int g = 0; g < G; ++g) sums[t][g] = sums[t][g] + factor * row[g];
    }
  }
  for (int t = 0; t < R; ++t)
    for (int g = 0; g < G; ++g) store(out + t * out_stride + g * LANES, sums[t][g]);
}

template <int R>
inline void times_rows(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       long width) {
  long at = 0;
  for (; at + ACROSS * LANES <= width; at += ACROSS * LANES)
    times_tile<R, ACROSS>(out + at, out_stride, x, table + at, table_stride, terms);
  if (width - at == 2 * LANES) times_tile<R, 2>(out + at, out_stride, x, table + at, table_stride, terms);
  if (width - at == LANES) times_tile<R, 1>(out + at, out_stride, x, table + at, table_stride, terms);
}

// out [rows, width] += x [rows, terms] table [terms, width]; the width is a multiple of LANES
inline void times(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long rows,
                  long terms, long width) {
  long t = 0;
  const auto by = [&](auto count) {
    constexpr int R = decltype(count)::value;
    for (; t + R <= rows; t += R)
      times_rows<R>(out + t * out_stride, out_stride, x.from(t), table, table_stride, terms, width);
  };
  by(std::integral_constant<int, TILE>{});
  by(std::integral_constant<int, TILE / 2>{});
  by(std::integral_constant<int, 1>{});
}

}  // namespace mhc
