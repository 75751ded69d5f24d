// Eight floats at a time, in the vector extensions of GCC and Clang: AVX, NEON or scalar code, as the machine has it.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

// Lambdas too: what they capture then stays in registers, and is not read again behind every store.
#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))

namespace mhc {

constexpr int LANES = 8;
typedef float Vec __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));

constexpr long LINE = 64;  // bytes of a line of a cache

// How far apart rows of so many floats lie: an odd number of lines, or rows would share a few sets of the first cache.
constexpr long apart(long n) { return (n * 4 + LINE - 1) / LINE / 2 * 2 * (LINE / 4) + LINE / 4; }

// Room for numbers, at the start of a line and not yet written.
class Floats {
 public:
  explicit Floats(long n = 0) : to_(n ? (float*)::operator new(n * sizeof(float), std::align_val_t(LINE)) : nullptr) {}
  ~Floats() { ::operator delete(to_, std::align_val_t(LINE)); }
  Floats(Floats&& other) noexcept : to_(std::exchange(other.to_, nullptr)) {}
  Floats& operator=(Floats&& other) noexcept {
    std::swap(to_, other.to_);
    return *this;
  }

  float* data() const { return to_; }

 private:
  float* to_;
};

struct BFloat16 {
  uint16_t bits;
};

// Run a function of 0, 1, ... COUNT - 1, each known to the compiler, so that arrays that it indexes stay in registers.
template <class F, int... K>
INLINE void each_of(std::integer_sequence<int, K...>, const F& function) {
  (function(std::integral_constant<int, K>{}), ...);
}

template <int COUNT, class F>
INLINE void each(const F& function) {
  each_of(std::make_integer_sequence<int, COUNT>{}, function);
}

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

inline Vec wide(Halves h) {
#ifdef __AVX2__
  return (Vec)((Bits)_mm256_cvtepu16_epi32((__m128i)h) << 16);
#else
  return (Vec)(__builtin_convertvector(h, Bits) << 16);
#endif
}

// The nearest bf16, ties to even.
inline Halves narrow(Vec v) {
  const Bits bits = (Bits)v;
  Bits rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  rounded = v == v ? rounded : (Bits{} + 0x7FC0u);
#ifdef __AVX2__
  const __m256i pairs = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#else
  return __builtin_convertvector(rounded, Halves);
#endif
}

// -- rows in memory and what they are to compute with ------------------------------------------------------------------

inline Vec read8(const float* p) { return load(p); }
inline Vec read8(const BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return wide(h);
}

// What is written is returned: rounded to the dtype.
inline Vec write8(float* p, Vec v) {
  store(p, v);
  return v;
}
inline Vec write8(BFloat16* p, Vec v) {
  const Halves h = narrow(v);
  std::memcpy(p, &h, sizeof h);
  return wide(h);
}

inline Vec rounded(Vec v, const float*) { return v; }
inline Vec rounded(Vec v, const BFloat16*) { return wide(narrow(v)); }

// How many numbers of a vector there are: all of them, or as many as a long says.
struct Whole {};

// Run a function of (c, numbers from c on) over vectors of a row; only the last may lack some.
template <class F>
INLINE void over_vectors(long count, const F& function) {
  long c = 0;
  for (; c + LANES <= count; c += LANES) function(c, Whole{});
  if (c < count) function(c, count - c);
}

// What is missing is 0.
inline Vec inside(Vec v, Whole) { return v; }
inline Vec inside(Vec v, long count) {
  for (int i = count; i < LANES; ++i) v[i] = 0;
  return v;
}

template <class S>
inline Vec read_some(const S* p, Whole) { return read8(p); }
template <class S>
inline Vec read_some(const S* p, long count) {
  S few[LANES] = {};
  std::memcpy(few, p, count * sizeof(S));
  return read8(few);
}

template <class S>
inline Vec write_some(S* p, Vec v, Whole) { return write8(p, v); }
template <class S>
inline Vec write_some(S* p, Vec v, long count) {
  S few[LANES];
  v = write8(few, v);
  std::memcpy(p, few, count * sizeof(S));
  return v;
}

// n numbers as floats, zeros behind them up to whole vectors.
template <class S>
inline void widen(float* out, const S* in, long n) {
  over_vectors(n, [&](long c, auto left) { store(out + c, read_some(in + c, left)); });
}

}  // namespace mhc
