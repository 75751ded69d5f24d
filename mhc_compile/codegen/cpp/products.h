// The three products with phi, tile by tile in registers. Each sum runs over its terms in one order, whatever is beside it.
#pragma once

#include "vectors.h"

namespace mhc {

#if defined(__AVX512VL__) || defined(__aarch64__)
constexpr int TILE = 8;  // rows of a tile: with three vectors of each they fill 32 registers
#else
constexpr int TILE = 4;  // 16 registers
#endif
constexpr int ACROSS = 3;  // vectors of a row of a tile

// out[row][:] += sum_k x[row][k] table[k][:], for the R rows of one tile
template <int R, int G>
inline void times_tile(float* out, long out_stride, const float* x, long x_stride, const float* table,
                       long table_stride, long terms) {
  Vec sums[R][G];
  for (int t = 0; t < R; ++t)
    for (int g = 0; g < G; ++g) sums[t][g] = load(out + t * out_stride + g * LANES);
  for (long k = 0; k < terms; ++k) {
    Vec row[G];
    for (int g = 0; g < G; ++g) row[g] = load(table + k * table_stride + g * LANES);
    for (int t = 0; t < R; ++t) {
      const Vec factor = all(x[t * x_stride + k]);
      for (int g = 0; g < G; ++g) sums[t][g] = sums[t][g] + factor * row[g];
    }
  }
  for (int t = 0; t < R; ++t)
    for (int g = 0; g < G; ++g) store(out + t * out_stride + g * LANES, sums[t][g]);
}

template <int R>
inline void times_rows(float* out, long out_stride, const float* x, long x_stride, const float* table,
                       long table_stride, long terms, long width) {
  long at = 0;
  for (; at + ACROSS * LANES <= width; at += ACROSS * LANES)
    times_tile<R, ACROSS>(out + at, out_stride, x, x_stride, table + at, table_stride, terms);
  if (width - at == 2 * LANES) times_tile<R, 2>(out + at, out_stride, x, x_stride, table + at, table_stride, terms);
  if (width - at == LANES) times_tile<R, 1>(out + at, out_stride, x, x_stride, table + at, table_stride, terms);
}

// out [rows, width] += x [rows, terms] table [terms, width]; there is room for a multiple of TILE rows, and the width is
// one of LANES
inline void times(float* out, long out_stride, const float* x, long x_stride, const float* table, long table_stride,
                  long rows, long terms, long width) {
  for (long t = 0; t < rows; t += TILE) {
    float* to = out + t * out_stride;
    const float* from = x + t * x_stride;
    if (rows - t == 1) times_rows<1>(to, out_stride, from, x_stride, table, table_stride, terms, width);
    else times_rows<TILE>(to, out_stride, from, x_stride, table, table_stride, terms, width);
  }
}

// out[k][:] += sum_row x[row][k] d[row][:], for R columns k of x
template <int R, int G>
inline void outer_tile(float* out, long width, const float* x, long x_stride, const float* d, long rows) {
  Vec sums[R][G];
  for (int k = 0; k < R; ++k)
    for (int g = 0; g < G; ++g) sums[k][g] = load(out + k * width + g * LANES);
  for (long t = 0; t < rows; ++t) {
    Vec row[G];
    for (int g = 0; g < G; ++g) row[g] = load(d + t * width + g * LANES);
    for (int k = 0; k < R; ++k) {
      const Vec factor = all(x[t * x_stride + k]);
      for (int g = 0; g < G; ++g) sums[k][g] = sums[k][g] + factor * row[g];
    }
  }
  for (int k = 0; k < R; ++k)
    for (int g = 0; g < G; ++g) store(out + k * width + g * LANES, sums[k][g]);
}

template <int R>
inline void outer_rows(float* out, long width, const float* x, long x_stride, const float* d, long rows) {
  long at = 0;
  for (; at + ACROSS * LANES <= width; at += ACROSS * LANES)
    outer_tile<R, ACROSS>(out + at, width, x, x_stride, d + at, rows);
  if (width - at == 2 * LANES) outer_tile<R, 2>(out + at, width, x, x_stride, d + at, rows);
  if (width - at == LANES) outer_tile<R, 1>(out + at, width, x, x_stride, d + at, rows);
}

// out [columns, width] += x^T d, for x [rows, columns] and d [rows, width]
inline void outer(float* out, long width, const float* x, long x_stride, const float* d, long rows, long columns) {
  long k = 0;
  for (; k + TILE <= columns; k += TILE) outer_rows<TILE>(out + k * width, width, x + k, x_stride, d, rows);
  for (; k < columns; ++k) outer_rows<1>(out + k * width, width, x + k, x_stride, d, rows);
}

}  // namespace mhc
