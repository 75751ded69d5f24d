// The three products with phi, tile by tile in registers. Each sum runs over its terms in one order, whatever is
// beside it.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace mhc {

constexpr int TILE = LANES > 8 ? 8 : 4;    // rows of a tile, and the vectors of a row: with what they are made of they
constexpr int ACROSS = LANES > 8 ? 2 : 3;  // stay in registers

template <class V>
INLINE void get(V& v, const float* from) { std::memcpy(&v, from, sizeof v); }
template <class V>
INLINE void put(float* to, V v) { std::memcpy(to, &v, sizeof v); }

// Numbers x[row][k], their steps along rows and along k.
struct Grid {
  const float* x;
  long along_rows, along_terms;

  Grid from(long row) const { return {x + row * along_rows, along_rows, along_terms}; }
};

// Memory that is needed soon: a line of it is fetched with every term of a product, which hides what fetching takes.
class Ahead {
 public:
  void add(const void* from, long bytes) {
    if (from && count_ < RANGES) ranges_[count_++] = {(const char*)from, bytes};
  }

  // Where the next so many lines begin; null if all are under way.
  const char* lines(long count) {
    for (; at_ < count_; ++at_, done_ = 0) {
      if (done_ >= ranges_[at_].bytes) continue;
      const char* from = ranges_[at_].from + done_;
      done_ += LINE * count;
      return from;
    }
    return nullptr;
  }

 private:
  static constexpr int RANGES = 4;
  struct Range {
    const char* from;
    long bytes;
  } ranges_[RANGES];
  int count_ = 0, at_ = 0;
  long done_ = 0;
};

// out[row][:] += sum_k x[row][k] table[k][:], for the R rows of one tile: so many vectors, and eights behind them.
template <int R, int VECS, int EIGHTS>
inline void times_tile(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       const char* ahead) {
  constexpr int END = VECS * LANES;
  Vec sums[R * VECS + 1];
  Eight ends[R * EIGHTS + 1];
  each<R>([&](auto t) INLINED {
    each<VECS>([&](auto g) INLINED { get(sums[t * VECS + g], out + t * out_stride + g * LANES); });
    each<EIGHTS>([&](auto g) INLINED { get(ends[t * EIGHTS + g], out + t * out_stride + END + g * 8); });
  });
  const float* at = x.x;
  for (long k = 0; k < terms; ++k) {
    if (ahead) __builtin_prefetch(ahead + k * LINE, 0, 2);
    Vec row[VECS + 1];
    Eight end[EIGHTS + 1];
    each<VECS>([&](auto g) INLINED { get(row[g], table + k * table_stride + g * LANES); });
    each<EIGHTS>([&](auto g) INLINED { get(end[g], table + k * table_stride + END + g * 8); });
    each<R>([&](auto t) INLINED {
      const Vec factor = all(at[t * x.along_rows]);
      each<VECS>([&](auto g) INLINED { sums[t * VECS + g] = sums[t * VECS + g] + factor * row[g]; });
      each<EIGHTS>([&](auto g) INLINED { ends[t * EIGHTS + g] = ends[t * EIGHTS + g] + low(factor) * end[g]; });
    });
    at += x.along_terms;
  }
  each<R>([&](auto t) INLINED {
    each<VECS>([&](auto g) INLINED { put(out + t * out_stride + g * LANES, sums[t * VECS + g]); });
    each<EIGHTS>([&](auto g) INLINED { put(out + t * out_stride + END + g * 8, ends[t * EIGHTS + g]); });
  });
}

template <int R>
inline void times_rows(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       long width, Ahead& ahead) {
  long at = 0;
  const auto tile = [&](auto vecs, auto eights) {
    times_tile<R, vecs(), eights()>(out + at, out_stride, x, table + at, table_stride, terms, ahead.lines(terms));
    at += vecs * LANES + eights * 8;
  };
  using std::integral_constant;
  while (width - at >= ACROSS * LANES) tile(integral_constant<int, ACROSS>{}, integral_constant<int, 0>{});
  while (width - at >= LANES + 8) tile(integral_constant<int, 1>{}, integral_constant<int, 1>{});
  while (width - at >= LANES) tile(integral_constant<int, 1>{}, integral_constant<int, 0>{});
  if (width - at) tile(integral_constant<int, 0>{}, integral_constant<int, 1>{});
}

// out [rows, width] += x [rows, terms] table [terms, width]; the width is a multiple of eight
inline void times(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long rows,
                  long terms, long width, Ahead& ahead) {
  long t = 0;
  const auto by = [&](auto count) {
    constexpr int R = decltype(count)::value;
    for (; t + R <= rows; t += R)
      times_rows<R>(out + t * out_stride, out_stride, x.from(t), table, table_stride, terms, width, ahead);
  };
  by(std::integral_constant<int, TILE>{});
  by(std::integral_constant<int, TILE / 2>{});
  by(std::integral_constant<int, 1>{});
}

}  // namespace mhc
