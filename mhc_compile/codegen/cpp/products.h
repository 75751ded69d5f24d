// The three products with phi, tile by tile in registers. Each sum runs over its terms in one order, whatever is beside it.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace mhc {

#ifdef __AVX512F__
typedef float Wide __attribute__((vector_size(64)));
inline Wide spread(float x) { return (Wide)_mm512_set1_ps(x); }
inline Vec low(Wide v) { return (Vec)_mm512_castps512_ps256((__m512)v); }
#else
typedef Vec Wide;
inline Wide spread(float x) { return all(x); }
inline Vec low(Wide v) { return v; }
#endif
constexpr int WIDE = sizeof(Wide) / sizeof(float);
constexpr int TILE = WIDE > LANES ? 8 : 4;  // rows of a tile: with three vectors of each they fill the registers
constexpr int ACROSS = WIDE > LANES ? 2 : 3;         // vectors of a row of a tile

template <class V>
INLINE void get(V& v, const float* from) { std::memcpy(&v, from, sizeof v); }
template <class V>
INLINE void put(float* to, V v) { std::memcpy(to, &v, sizeof v); }

// Numbers x[row][k], their steps along rows and along k.
struct Grid {
  const float* x;
  long along_rows, along_terms;

  float at(long row, long k) const { return x[row * along_rows + k * along_terms]; }
  Grid from(long row) const { return {x + row * along_rows, along_rows, along_terms}; }
};

// Memory that is needed soon: a line of it is fetched with every term of a product, which hides what fetching takes.
class Ahead {
 public:
  void add(const void* from, long bytes) {
    if (from && count_ < MOST) ranges_[count_++] = {(const char*)from, bytes};
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
  static constexpr int MOST = 4;
  struct Range {
    const char* from;
    long bytes;
  } ranges_[MOST];
  int count_ = 0, at_ = 0;
  long done_ = 0;
};

// out[row][:] += sum_k x[row][k] table[k][:], for the R rows of one tile that is `wides` wide vectors and `ends` others.
template <int R, int WIDES, int ENDS>
inline void times_tile(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       const char* ahead) {
  constexpr int END = WIDES * WIDE;
  Wide sums[R * WIDES + 1];
  Vec ends[R * ENDS + 1];
  each<R>([&](auto t) INLINED {
    each<WIDES>([&](auto g) INLINED { get(sums[t * WIDES + g], out + t * out_stride + g * WIDE); });
    each<ENDS>([&](auto g) INLINED { get(ends[t * ENDS + g], out + t * out_stride + END + g * LANES); });
  });
  const float* at = x.x;
  for (long k = 0; k < terms; ++k) {
    if (ahead) __builtin_prefetch(ahead + k * LINE, 0, 2);
    Wide row[WIDES + 1];
    Vec end[ENDS + 1];
    each<WIDES>([&](auto g) INLINED { get(row[g], table + k * table_stride + g * WIDE); });
    each<ENDS>([&](auto g) INLINED { get(end[g], table + k * table_stride + END + g * LANES); });
    each<R>([&](auto t) INLINED {
      const Wide factor = spread(at[t * x.along_rows]);
      each<WIDES>([&](auto g) INLINED { sums[t * WIDES + g] = sums[t * WIDES + g] + factor * row[g]; });
      each<ENDS>([&](auto g) INLINED { ends[t * ENDS + g] = ends[t * ENDS + g] + low(factor) * end[g]; });
    });
    at += x.along_terms;
  }
  each<R>([&](auto t) INLINED {
    each<WIDES>([&](auto g) INLINED { put(out + t * out_stride + g * WIDE, sums[t * WIDES + g]); });
    each<ENDS>([&](auto g) INLINED { put(out + t * out_stride + END + g * LANES, ends[t * ENDS + g]); });
  });
}

template <int R>
inline void times_rows(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       long width, Ahead& ahead) {
  long at = 0;
  const auto tile = [&](auto wides, auto ends) {
    times_tile<R, wides(), ends()>(out + at, out_stride, x, table + at, table_stride, terms, ahead.lines(terms));
    at += wides * WIDE + ends * LANES;
  };
  using std::integral_constant;
  while (width - at >= ACROSS * WIDE) tile(integral_constant<int, ACROSS>{}, integral_constant<int, 0>{});
  while (width - at >= WIDE + LANES) tile(integral_constant<int, 1>{}, integral_constant<int, 1>{});
  while (width - at >= WIDE) tile(integral_constant<int, 1>{}, integral_constant<int, 0>{});
  if (width - at) tile(integral_constant<int, 0>{}, integral_constant<int, 1>{});
}

// out [rows, width] += x [rows, terms] table [terms, width]; the width is a multiple of LANES
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
