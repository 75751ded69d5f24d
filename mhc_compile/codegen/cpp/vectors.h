// Eight floats at a time, in the vector extensions of GCC and Clang: AVX, NEON or scalar code, as the machine has it.
#pragma once

#include <cstdint>
#include <cstring>

namespace mhc {

constexpr int LANES = 8;
typedef float Vec __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));

struct BFloat16 {
  uint16_t bits;
};

inline long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

inline Vec all(float x) { return Vec{x, x, x, x, x, x, x, x}; }

// The sum of the lanes, always in the same order.
inline float total(Vec v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// e^x, by a polynomial in double precision, rounded once.
inline Vec exponential(Vec x) {
  const Vec low = all(-110.0f), high = all(90.0f);
  Vec at = x < low ? low : x;
  at = at > high ? high : at;
  const Doubles wide = __builtin_convertvector(at, Doubles), shift = Doubles{} + 6755399441055744.0;  // 1.5 * 2^52
  const Doubles turns = wide * 1.4426950408889634 + shift;  // rounds to an integer, in the low bits
  const Doubles rest = wide - (turns - shift) * 0.6931471805599453;
  Doubles p = Doubles{} + 1.0 / 362880;
  constexpr double factors[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  for (const double factor : factors) p = p * rest + factor;
  p = p * (Doubles)(((Longs)turns + 1023) << 52);
  return x == x ? __builtin_convertvector(p, Vec) : x;
}

// A sum and what its additions rounded away.
struct Sum {
  Vec high = {}, low = {};

  void add(Vec v) {
    const Vec sum = high + v, back = sum - high;
    low = low + ((high - (sum - back)) + (v - back));
    high = sum;
  }

  // v divided by the sum, rounded once.
  Vec divide(Vec v) const {
    const Vec near = v / high;
    return near + (v - near * high - near * low) / high;
  }
};

// Exact where it can be: reads of equal streams are these streams, to the bit, when a site starts.
inline Vec sigmoid(Vec z) {
  Sum sum;
  sum.add(all(1.0f));
  sum.add(exponential(-z));
  const Vec found = sum.divide(all(1.0f));
  return sum.high > 1e38f ? Vec{} : found;
}

inline Vec wide(Halves h) { return (Vec)(__builtin_convertvector(h, Bits) << 16); }

// The nearest bf16, ties to even.
inline Halves narrow(Vec v) {
  const Bits bits = (Bits)v;
  Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  rounded = v == v ? rounded : (Bits{} + 0x7FC0u);
  return __builtin_convertvector(rounded, Halves);
}

// -- rows in memory and what they are to compute with ------------------------------------------------------------------

inline Vec rounded(Vec v, const float*) { return v; }
inline Vec rounded(Vec v, const BFloat16*) { return wide(narrow(v)); }

inline Vec read8(const float* p) { return load(p); }
inline Vec read8(const BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return wide(h);
}
inline void write8(float* p, Vec v) { store(p, v); }
inline void write8(BFloat16* p, Vec v) {
  const Halves h = narrow(v);
  std::memcpy(p, &h, sizeof h);
}

// Up to eight numbers; what is missing is 0.
template <class S>
inline Vec read_some(const S* p, long count) {
  if (count >= LANES) return read8(p);
  S few[LANES] = {};
  std::memcpy(few, p, count * sizeof(S));
  return read8(few);
}

template <class S>
inline void write_some(S* p, Vec v, long count) {
  if (count >= LANES) return write8(p, v);
  S few[LANES];
  write8(few, v);
  std::memcpy(p, few, count * sizeof(S));
}

// n numbers as floats, zeros behind them up to whole vectors.
template <class S>
inline void widen(float* out, const S* in, long n) {
  for (long c = 0; c < n; c += LANES) store(out + c, read_some(in + c, n - c));
}

}  // namespace mhc
