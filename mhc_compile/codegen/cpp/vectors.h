// Sixteen floats at a time where there is AVX-512, else eight, in the vector extensions of GCC and Clang: AVX, NEON or
// scalar code, as the machine has it.
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

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef float Eight __attribute__((vector_size(32)));
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

inline long padded(long n, long lanes = LANES) { return (n + lanes - 1) / lanes * lanes; }

template <class V = Vec>
INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
INLINE void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }

// The sum of the lanes, always in the same order.
inline float total(Eight v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

#ifdef __AVX512F__
inline Vec all(float x) { return (Vec)_mm512_set1_ps(x); }
inline Eight low(Vec v) { return (Eight)_mm512_castps512_ps256((__m512)v); }
inline Eight high(Vec v) { return (Eight)_mm512_extractf64x4_pd((__m512d)v, 1); }
inline Vec both(Eight low, Eight high) {
  return (Vec)_mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)low), (__m256d)high, 1);
}
inline float total(Vec v) { return total(low(v) + high(v)); }
#else
inline Vec all(float x) { return Vec{x, x, x, x, x, x, x, x}; }
inline Eight low(Vec v) { return v; }
#endif

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// e^x, by a polynomial in double precision, rounded once.
inline Eight exponential(Eight x) {
  Eight at = x < -110.0f ? Eight{} - 110.0f : x;
  at = at > 90.0f ? Eight{} + 90.0f : at;
  const Doubles wide = __builtin_convertvector(at, Doubles), shift = Doubles{} + 6755399441055744.0;  // 1.5 * 2^52
  const Doubles turns = wide * 1.4426950408889634 + shift;  // rounds to an integer, in the low bits
  const Doubles rest = wide - (turns - shift) * 0.6931471805599453;
  Doubles p = Doubles{} + 1.0 / 362880;
  constexpr double factors[] = {1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  for (const double factor : factors) p = p * rest + factor;
  p = p * (Doubles)(((Longs)turns + 1023) << 52);
  return x == x ? __builtin_convertvector(p, Eight) : x;
}

#ifdef __AVX512F__
inline Vec exponential(Vec x) { return both(exponential(low(x)), exponential(high(x))); }
#endif

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
#if defined(__AVX512F__)
  return (Vec)((Bits)_mm512_cvtepu16_epi32((__m256i)h) << 16);
#elif defined(__AVX2__)
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
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)rounded);
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_packus_epi32((__m256i)rounded, (__m256i)rounded);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(pairs, 0x08));
#else
  return __builtin_convertvector(rounded, Halves);
#endif
}

// -- rows in memory and what they are to compute with ------------------------------------------------------------------

inline Vec read_whole(const float* p) { return load(p); }
inline Vec read_whole(const BFloat16* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return wide(h);
}

// What is written is returned: rounded to the dtype.
inline Vec write_whole(float* p, Vec v) {
  store(p, v);
  return v;
}
inline Vec write_whole(BFloat16* p, Vec v) {
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
inline Vec read_some(const S* p, Whole) { return read_whole(p); }
template <class S>
inline Vec read_some(const S* p, long count) {
  S few[LANES] = {};
  std::memcpy(few, p, count * sizeof(S));
  return read_whole(few);
}

template <class S>
inline Vec write_some(S* p, Vec v, Whole) { return write_whole(p, v); }
template <class S>
inline Vec write_some(S* p, Vec v, long count) {
  S few[LANES];
  v = write_whole(few, v);
  std::memcpy(p, few, count * sizeof(S));
  return v;
}

// n numbers as floats, zeros behind them up to whole vectors.
template <class S>
inline void widen(float* out, const S* in, long n) {
  over_vectors(n, [&](long c, auto left) { store(out + c, read_some(in + c, left)); });
}

}  // namespace mhc
