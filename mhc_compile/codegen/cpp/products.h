// The three products with phi, tile by tile in registers. Each sum runs over its terms in one order, whatever is
// beside it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "vectors.h"

namespace mhc {

constexpr int TILE = LANES > 8 ? 8 : 4;    // rows of a tile, and the vectors of a row: with what they are made of they
constexpr int ACROSS = LANES > 8 ? 2 : 3;  // stay in registers

template <class V>
INLINE void increase(float* to, V by) { store(to, load<V>(to) + by); }

// Numbers x[row][k], their steps along rows and along k.
struct Grid {
  const float* x;
  long along_rows, along_terms;

  Grid from(long row) const { return {x + row * along_rows, along_rows, along_terms}; }
};

// Memory that is needed soon. A core waits for few lines at once, and a line from memory takes long: so they are fetched
// evenly while products are computed, or what these need of the caches would wait as well.
class Ahead {
 public:
  static constexpr long TERMS = 16;  // between fetches

  void add(const void* from, long bytes) {
    if (count_ == RANGES) return;
    ranges_[count_++] = {(const char*)from, (bytes + LINE - 1) / LINE};
    lines_ += ranges_[count_ - 1].lines;
  }

  // Spread all of it over a product of so many rows and terms, so wide; and over what was named before.
  void over(long rows, long terms, long width) {
    terms_ += (rows + TILE - 1) / TILE * terms * ((width + ACROSS * LANES - 1) / (ACROSS * LANES));
    rate_ = (lines_ * WHOLE + terms_ - 1) / terms_;
  }

  // Fetch what is due with so many terms of a tile.
  INLINE void fetch(long terms) {
    due_ += terms * rate_;
    long lines = due_ / WHOLE;
    due_ %= WHOLE;
    while (at_ < count_) {
      Range& range = ranges_[at_];
      const char* from = range.from;
      const long some = std::min(lines, range.lines);
      for (long k = 0; k < some; ++k) __builtin_prefetch(from + k * LINE);
      range = {from + some * LINE, range.lines - some};
      if (range.lines) return;
      lines -= some;
      ++at_;
    }
  }

 private:
  static constexpr int RANGES = 8;
  static constexpr long WHOLE = 1 << 12;  // of a line, in `rate_` and `due_`
  struct Range {
    const char* from;
    long lines;
  } ranges_[RANGES];
  int count_ = 0, at_ = 0;
  long lines_ = 0, terms_ = 0, rate_ = 0, due_ = 0;
};

// Keep a vector in a register: GCC would rather read it from memory again for each row, which takes longer than the row.
template <class V>
INLINE V held(V v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__AVX2__)
  asm("" : "+x"(v));
#endif
  return v;
}

// out[row][:] += sum_k x[row][k] table[k][:], for the R rows of one tile: so many vectors, and eights behind them.
template <int R, int VECS, int EIGHTS>
inline void times_tile(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       Ahead& ahead) {
  constexpr int END = VECS * LANES;
  Vec sums[R * VECS + 1];
  Eight ends[R * EIGHTS + 1];
  each<R * VECS>([&](auto g) INLINED { sums[g] = Vec{}; });
  each<R * EIGHTS>([&](auto g) INLINED { ends[g] = Eight{}; });
  const float* at = x.x;
  for (long from = 0; from < terms; from += Ahead::TERMS) {
    const long until = std::min(from + Ahead::TERMS, terms);
    ahead.fetch(until - from);
    for (long k = from; k < until; ++k) {
      Vec row[VECS + 1];
      Eight end[EIGHTS + 1];
      each<VECS>([&](auto g) INLINED { row[g] = held(load(table + g * LANES)); });
      each<EIGHTS>([&](auto g) INLINED { end[g] = held(load<Eight>(table + END + g * 8)); });
      each<R>([&](auto t) INLINED {
        const Vec factor = all(at[t * x.along_rows]);
        each<VECS>([&](auto g) INLINED { sums[t * VECS + g] = sums[t * VECS + g] + factor * row[g]; });
        each<EIGHTS>([&](auto g) INLINED { ends[t * EIGHTS + g] = ends[t * EIGHTS + g] + low(factor) * end[g]; });
      });
      at += x.along_terms;
      table += table_stride;
    }
  }
  each<R>([&](auto t) INLINED {
    float* to = out + t * out_stride;
    each<VECS>([&](auto g) INLINED { increase(to + g * LANES, sums[t * VECS + g]); });
    each<EIGHTS>([&](auto g) INLINED { increase(to + END + g * 8, ends[t * EIGHTS + g]); });
  });
}

template <int R>
inline void times_rows(float* out, long out_stride, const Grid& x, const float* table, long table_stride, long terms,
                       long width, Ahead& ahead) {
  long at = 0;
  const auto tile = [&](auto vecs, auto eights) {
    times_tile<R, vecs(), eights()>(out + at, out_stride, x, table + at, table_stride, terms, ahead);
    at += vecs * LANES + eights * 8;
  };
  using std::integral_constant;
  if constexpr (ACROSS > 2) {  // the last four vectors are two tiles of two, not one of three and one of one
    while (width - at >= ACROSS * LANES && width - at != (ACROSS + 1) * LANES)
      tile(integral_constant<int, ACROSS>{}, integral_constant<int, 0>{});
  }
  while (width - at >= 2 * LANES) tile(integral_constant<int, 2>{}, integral_constant<int, 0>{});
  if constexpr (LANES > 8) {
    while (width - at >= LANES + 8) tile(integral_constant<int, 1>{}, integral_constant<int, 1>{});
  }
  while (width - at >= LANES) tile(integral_constant<int, 1>{}, integral_constant<int, 0>{});
  if constexpr (LANES > 8) {
    if (width - at) tile(integral_constant<int, 0>{}, integral_constant<int, 1>{});
  }
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
