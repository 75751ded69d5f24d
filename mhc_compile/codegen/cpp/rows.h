// A token's streams: what writes make of them, what a branch reads, and the norm that the branch begins with.
#pragma once

#include "maps.h"

namespace mhc {

constexpr long CHUNK = 128;  // features at a time: the streams of a block of tokens stay in the first cache

inline const S* row(const void* tensor, long number, long channels) { return (const S*)tensor + number * channels; }
inline S* row(void* tensor, long number, long channels) { return (S*)tensor + number * channels; }

// Features [at, at + count) of a token's branch output with its tail; `bare` is without multiplier and scale.
inline Vec branch(const Written& w, long token, long channels, long at, long left, Vec* bare = nullptr) {
  const long place = token * channels + at;
  Vec f = w.type == FLOAT ? read_some((const float*)w.f + place, left) : read_some((const BFloat16*)w.f + place, left);
  if (w.offset) f = f + read_some(w.offset + at, left);
  if (bare) *bare = f;
  f = f * w.multiplier;
  return w.scale ? f * read_some(w.scale + at, left) : f;
}

// What a token's streams become, features [at, at + count): `old(j, c)` are those of stream j, `take(i, c, v)` gets the
// new ones of stream i, c counted from `at`.
template <bool ROUNDS, class Old, class Take>
inline void write(const Written& w, long token, long channels, long at, long count, const Old& old, const Take& take) {
  const float *res = w.res + token * SQUARE, *post = w.post + token * N;
  for (long c = 0; c < count; c += LANES) {
    Vec from[N];
    for (int j = 0; j < N; ++j) from[j] = old(j, c);
    const Vec f = branch(w, token, channels, at + c, count - c);
    for (int i = 0; i < N; ++i) {
      Vec made = res[i * N] * from[0];
      for (int j = 1; j < N; ++j) made = made + res[i * N + j] * from[j];
      made = made + post[i] * f;
      take(i, c, ROUNDS ? rounded(made, (const S*)nullptr) : made);
    }
  }
}

// A token's streams where they lie in memory, as `old` of `write`.
struct InMemory {
  const S* rows[N];
  long count;

  InMemory(const void* x, bool equal, long token, long channels, long at, long count) : count(count) {
    for (int j = 0; j < N; ++j) {
      rows[j] = row(x, equal ? token : token * N + j, channels) + at;
      // the rows of the next chunk, which the hardware does not expect
      for (long c = 0; c < count; c += 64 / long(sizeof(S))) __builtin_prefetch(rows[j] + count + c);
    }
  }

  Vec operator()(int j, long c) const { return read_some(rows[j] + c, count - c); }
};

// The same as floats [N][stride].
struct InScratch {
  float* streams;
  long stride;

  Vec operator()(int j, long c) const { return load(streams + j * stride + c); }
  void operator()(int i, long c, Vec v) const { store(streams + i * stride + c, v); }
};

// Streams of a token as floats; those of a block are replayed from its head.
inline void streams_of(const InScratch& to, const Streams& from, long token, long channels, long at, long count) {
  const InMemory head(from.x, from.equal, token, channels, at, count);
  for (int j = 0; j < N; ++j)
    for (long c = 0; c < count; c += LANES) to(j, c, head(j, c));
  for (int k = 0; k < from.writes; ++k) write<true>(from.history[k], token, channels, at, count, to, to);
}

// Run a function of a token's old streams, wherever these are.
template <class F>
inline void with_old(const InScratch& scratch, const Streams& from, long token, long channels, long at, long count,
                     const F& function) {
  if (!from.writes) return function(InMemory(from.x, from.equal, token, channels, at, count));
  streams_of(scratch, from, token, channels, at, count);
  function(scratch);
}

// A branch's input: the read of a token's streams, rounded as it is where no norm follows.
template <class Old>
inline void read(float* out, const Old& streams, const float* pre, long count) {
  for (long c = 0; c < count; c += LANES) {
    Vec u = pre[0] * streams(0, c);
    for (int i = 1; i < N; ++i) u = u + pre[i] * streams(i, c);
    store(out + c, rounded(u, (const S*)nullptr));
  }
}

// Sums over C in an order of their own: eight lanes, CHUNK features at a time. Beyond C rows hold zeros.
template <class F>
inline float over_features(long channels, F term) {
  Vec sum = {};
  for (long at = 0; at < channels; at += CHUNK) {
    Vec part = {};
    for (long c = at; c < channels && c < at + CHUNK; c += LANES) part = part + term(c);
    sum = sum + part;
  }
  return total(sum);
}

// Like `over_features` of a deviation from the mean, which is not zero beyond C.
inline Vec inside(Vec v, long left) {
  for (int i = left; i < LANES; ++i) v[i] = 0;
  return v;
}

// The branch's norm of its input [padded C] into `out`; the statistics of the token are kept.
inline void norm(const Call& call, long token, const float* u, S* out) {
  const Site& site = call.site;
  const long channels = call.channels;
  float mean = 0;
  if (site.norm == NONE) {
    for (long c = 0; c < channels; c += LANES) write_some(out + c, load(u + c), channels - c);
    return;
  }
  if (site.norm == LAYER) {
    mean = over_features(channels, [&](long c) { return load(u + c); }) / channels;
    call.arrival.mean[token] = mean;
  }
  const float squares = over_features(channels, [&](long c) {
    const Vec centred = load(u + c) - mean;
    return channels - c < LANES ? inside(centred * centred, channels - c) : centred * centred;
  });
  const float rstd = 1.0f / std::sqrt(squares / channels + site.norm_eps);
  call.arrival.rstd[token] = rstd;
  for (long c = 0; c < channels; c += LANES) {
    const long left = channels - c;
    Vec v = (load(u + c) - mean) * rstd;
    if (site.norm == RMS_CAST) v = rounded(v, (const S*)nullptr);
    if (site.weight) v = v * read_some(site.weight + c, left);
    if (site.shift) v = v + read_some(site.shift + c, left);
    write_some(out + c, v, left);
  }
}

// The gradient of the branch's input for that of its norm, [padded C]; weight and shift gather sums over tokens.
inline void norm_backward(const Call& call, long token, const float* u, float* du, float* dweight, float* dshift) {
  const Site& site = call.site;
  const long channels = call.channels;
  const S* g = row(call.upstream.u, token, channels);
  if (site.norm == NONE) return widen(du, g, channels);
  const float mean = site.norm == LAYER ? call.arrival.mean[token] : 0, rstd = call.arrival.rstd[token];
  const auto hat = [&](long c) { return (load(u + c) - mean) * rstd; };
  const auto dhat = [&](long c) {
    const Vec v = read_some(g + c, channels - c);
    return site.weight ? v * read_some(site.weight + c, channels - c) : v;
  };
  const float along = over_features(channels, [&](long c) { return dhat(c) * hat(c); }) / channels;
  const float level = site.norm == LAYER ? over_features(channels, dhat) / channels : 0;
  for (long c = 0; c < channels; c += LANES) {
    const Vec h = hat(c), up = read_some(g + c, channels - c);
    store(du + c, (dhat(c) - h * along - level) * rstd);
    const Vec seen = site.norm == RMS_CAST ? rounded(h, (const S*)nullptr) : h;
    if (dweight) store(dweight + c, load(dweight + c) + up * seen);
    if (dshift) store(dshift + c, load(dshift + c) + up);
  }
}

}  // namespace mhc
