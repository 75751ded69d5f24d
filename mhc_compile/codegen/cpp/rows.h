// A token's streams: what writes make of them, what a branch reads, and the norm that the branch begins with.
#pragma once

#include "maps.h"

namespace mhc {

constexpr long CHUNK = 256;  // features at a time: what a block of tokens needs of them stays in the second cache
constexpr long PART = 128;   // features of a part of a sum
constexpr long TOKEN = apart(N * CHUNK);  // from one token's chunk [N][CHUNK] to the next

inline const S* row(const void* tensor, long number, long channels) { return (const S*)tensor + number * channels; }
inline S* row(void* tensor, long number, long channels) { return (S*)tensor + number * channels; }

// Whether nothing is done to a branch's output, in the streams' dtype, before it is written.
inline bool is_bare(const Written& w) { return w.type == TYPE && !w.offset && !w.scale && w.multiplier == 1; }

// Run a function of whether the branch's output is bare, which the compiler then knows.
template <class F>
INLINE void by_branch(const Written& w, const F& function) {
  if (is_bare(w)) function(std::true_type{});
  else function(std::false_type{});
}

// A token's branch output with its tail, from feature `at`; `untouched` is without multiplier and scale.
template <bool BARE, class Left>
inline Vec branch(const Written& w, long token, long channels, long at, Left left, Vec* untouched = nullptr) {
  const long place = token * channels + at;
  if (BARE) return read_some((const S*)w.f + place, left);
  Vec f = w.type == FLOAT ? read_some((const float*)w.f + place, left) : read_some((const BFloat16*)w.f + place, left);
  if (w.offset) f = f + read_some(w.offset + at, left);
  if (untouched) *untouched = f;
  f = f * w.multiplier;
  return w.scale ? f * read_some(w.scale + at, left) : f;
}

// What a token's streams become, features [at, at + count): `old(j, c, left)` are those of stream j, and
// `take(i, c, left, v)` gets the new ones of stream i, not yet rounded; c counts from `at`.
template <class Old, class Take>
INLINE void write(const Written& w, long token, long channels, long at, long count, const Old& old, const Take& take) {
  float res[SQUARE], post[N];  // copies, which no store can change
  std::copy(w.res + token * SQUARE, w.res + (token + 1) * SQUARE, res);
  std::copy(w.post + token * N, w.post + (token + 1) * N, post);
  by_branch(w, [&](auto bare) INLINED {
    over_vectors(count, [&](long c, auto left) INLINED {
      Vec from[N];
      each<N>([&](auto j) INLINED { from[j] = old(j, c, left); });
      const Vec f = branch<bare()>(w, token, channels, at + c, left);
      each<N>([&](auto i) INLINED {
        Vec made = res[i * N] * from[0];
        each<N - 1>([&](auto j) INLINED { made = made + res[i * N + j + 1] * from[j + 1]; });
        take(i, c, left, made + post[i] * f);
      });
    });
  });
}

// A token's streams where they lie in memory, as `old` of `write`.
struct InMemory {
  const S* rows[N];

  InMemory(const void* x, bool equal, long token, long channels, long at) {
    for (int j = 0; j < N; ++j) rows[j] = row(x, equal ? token : token * N + j, channels) + at;
  }

  template <class Left>
  Vec operator()(int j, long c, Left left) const { return read_some(rows[j] + c, left); }
};

// The same as floats [N][stride], zeros beyond the features.
struct InScratch {
  float* streams;
  long stride;

  template <class Left>
  Vec operator()(int j, long c, Left) const { return load(streams + j * stride + c); }
  template <class Left>
  void operator()(int i, long c, Left left, Vec v) const {
    store(streams + i * stride + c, inside(rounded(v, (const S*)nullptr), left));
  }
};

// Streams of a token as floats; those of a block are replayed from its head.
inline void streams_of(const InScratch& to, const Streams& from, long token, long channels, long at, long count) {
  const InMemory head(from.x, from.equal, token, channels, at);
  each<N>([&](auto j) INLINED {
    over_vectors(count, [&](long c, auto left) INLINED { to(j, c, left, head(j, c, left)); });
  });
  for (int k = 0; k < from.writes; ++k) write(from.history[k], token, channels, at, count, to, to);
}

// Run a function of a token's old streams, from feature `at`; those of a block have been replayed.
template <class F>
INLINE void with_replayed(const InScratch& replayed, const Streams& from, long token, long channels, long at,
                          const F& function) {
  if (from.writes) return function(replayed);
  function(InMemory(from.x, from.equal, token, channels, at));
}

// The same; those of a block are replayed now.
template <class F>
INLINE void with_old(const InScratch& scratch, const Streams& from, long token, long channels, long at, long count,
                     const F& function) {
  if (from.writes) streams_of(scratch, from, token, channels, at, count);
  with_replayed(scratch, from, token, channels, at, function);
}

// A branch's input: the read of a token's streams, rounded as it is where no norm follows.
template <class Old>
inline void read(float* out, const Old& streams, const float* pre, long count) {
  over_vectors(count, [&](long c, auto left) INLINED {
    Vec u = pre[0] * streams(0, c, left);
    each<N - 1>([&](auto i) INLINED { u = u + pre[i + 1] * streams(i + 1, c, left); });
    store(out + c, rounded(u, (const S*)nullptr));
  });
}

// Sums over C of terms (c, left) in an order of their own: lane by lane, PART features at a time.
template <class F>
inline float over_features(long channels, const F& term) {
  Vec sum = {};
  for (long at = 0; at < channels; at += PART) {
    Vec part = {};
    over_vectors(std::min(PART, channels - at),
                 [&](long c, auto left) INLINED { part = part + inside(term(at + c, left), left); });
    sum = sum + part;
  }
  return total(sum);
}

// The branch's norm of its input [padded C] into `out`; the statistics of the token are kept.
inline void norm(const Call& call, long token, const float* u, S* out) {
  const Site& site = call.site;
  const long channels = call.channels;
  float mean = 0;
  if (site.norm == NONE)
    return over_vectors(channels, [&](long c, auto left) INLINED { write_some(out + c, load(u + c), left); });
  if (site.norm == LAYER) {
    mean = over_features(channels, [&](long c, auto) INLINED { return load(u + c); }) / channels;
    call.arrival.mean[token] = mean;
  }
  const float squares = over_features(channels, [&](long c, auto) INLINED {
    const Vec centred = load(u + c) - mean;
    return centred * centred;
  });
  const float rstd = 1.0f / std::sqrt(squares / channels + site.norm_eps);
  call.arrival.rstd[token] = rstd;
  over_vectors(channels, [&](long c, auto left) INLINED {
    Vec v = (load(u + c) - mean) * rstd;
    if (site.norm == RMS_CAST) v = rounded(v, (const S*)nullptr);
    if (site.weight) v = v * read_some(site.weight + c, left);
    if (site.shift) v = v + read_some(site.shift + c, left);
    write_some(out + c, v, left);
  });
}

// The gradient of the branch's input for that of its norm, [padded C]; weight and shift gather sums over tokens.
inline void norm_backward(const Call& call, long token, const float* u, float* du, float* dweight, float* dshift) {
  const Site& site = call.site;
  const long channels = call.channels;
  const S* g = row(call.upstream.u, token, channels);
  if (site.norm == NONE) return widen(du, g, channels);
  const float mean = site.norm == LAYER ? call.arrival.mean[token] : 0, rstd = call.arrival.rstd[token];
  const auto hat = [&](long c) { return (load(u + c) - mean) * rstd; };
  const auto dhat = [&](long c, auto left) INLINED {
    const Vec v = read_some(g + c, left);
    return site.weight ? v * read_some(site.weight + c, left) : v;
  };
  const auto product = [&](long c, auto left) INLINED { return dhat(c, left) * hat(c); };
  const float along = over_features(channels, product) / channels;
  const float level = site.norm == LAYER ? over_features(channels, dhat) / channels : 0;
  over_vectors(channels, [&](long c, auto left) INLINED {
    const Vec h = hat(c), up = read_some(g + c, left);
    store(du + c, inside((dhat(c, left) - h * along - level) * rstd, left));
    const Vec seen = site.norm == RMS_CAST ? rounded(h, (const S*)nullptr) : h;
    if (dweight) store(dweight + c, load(dweight + c) + up * seen);
    if (dshift) store(dshift + c, load(dshift + c) + up);
  });
}

}  // namespace mhc
