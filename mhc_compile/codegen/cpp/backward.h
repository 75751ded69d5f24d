// The gradients: new streams are made again a block of tokens at a time, and leave nothing behind in memory.
//
// Sums over tokens (phi, alpha, bias, the norm's weight, ...) are taken slice by slice, then slice after slice. How many
// slices there are follows from the sizes alone, so results do not depend on the number of threads.
#pragma once

#include "forward.h"

namespace mhc {

constexpr long SLICE = 128;                 // tokens, at least
constexpr long MOST_SLICED = 16L << 20;     // floats, of all slices together
constexpr long KEPT = 64L << 10;            // floats of a block's streams, that they stay in the second cache

// Sums over the tokens of a slice; a pointer is null for what nobody asks for.
struct Sums {
  std::vector<float> held;
  float *phi, *weight, *shift, *offset, *scale;
  Vec alpha[3] = {}, bias[MOST] = {};

  Sums(const Call& call, long width) {
    const Gradients& g = call.gradients;
    const long c = padded(call.channels);
    const long sizes[] = {g.phi ? N * call.channels * width : 0, g.weight ? c : 0, g.shift ? c : 0,
                          g.offset ? c : 0, g.scale ? c : 0};
    held.resize(sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4]);
    float* at = held.data();
    float** to[] = {&phi, &weight, &shift, &offset, &scale};
    for (int k = 0; k < 5; ++k) {
      *to[k] = sizes[k] ? at : nullptr;
      at += sizes[k];
    }
  }
};

inline long slices(const Call& call, long width) {
  const long most = std::max(1L, MOST_SLICED / (N * call.channels * width + 1));
  return std::max(1L, std::min({call.tokens / SLICE, 64L, most}));
}

// What a block of tokens needs: old and new streams [BLOCK][N][padded C], du, the gradient of the streams, and so on.
struct BackwardScratch {
  long stride;  // padded C
  int block;    // tokens at a time
  std::vector<float> old, made, du, u, g, projected;
  std::vector<Vec> history;
  float dpre[BLOCK * N], shrink[BLOCK];

  BackwardScratch(const Call& call, long width)
      : stride(padded(call.channels)), block(KEPT / (N * stride) >= BLOCK ? BLOCK : LANES),
        old(block * N * stride), made(call.written ? block * N * stride : 0), du(block * stride), u(stride),
        g(TILE * N * CHUNK), projected(block * width),
        history(call.site.mixes ? 2 * call.site.iters * SQUARE : 0) {}

  float* streams(const Call& call, int t) { return (call.written ? made : old).data() + t * N * stride; }
};

// Make the streams of a block again, and take the gradient back through norm and read.
inline void remake(const Call& call, long first, int tokens, BackwardScratch& s, Sums& sums) {
  for (int t = 0; t < tokens; ++t) {
    const long token = first + t, channels = call.channels;
    const InScratch old{s.old.data() + t * N * s.stride, s.stride}, made{s.streams(call, t), s.stride};
    streams_of(old, call.streams, token, channels, 0, channels);
    if (call.written) write<true>(*call.written, token, channels, 0, channels, old, made);
    float *du = s.du.data() + t * s.stride, *dpre = s.dpre + t * N;
    if (!call.upstream.u) {
      std::copy(call.upstream.pre + token * N, call.upstream.pre + (token + 1) * N, dpre);
      continue;
    }
    if (call.site.norm != NONE) read(s.u.data(), made, call.arrival.pre + token * N, channels);
    norm_backward(call, token, s.u.data(), du, sums.weight, sums.shift);
    for (int i = 0; i < N; ++i)
      dpre[i] = over_features(channels, [&](long c) { return made(i, c) * load(du + c); });
  }
}

// The whole gradient of a tile's streams, features [at, at + count), as [TILE][N][CHUNK].
inline void streams_gradient(const Call& call, const float* turned, long first, int t0, int tokens, long at, long count,
                             long width, BackwardScratch& s) {
  const int m = logits(call.site);
  for (int t = t0; t < std::min(t0 + TILE, tokens); ++t) {
    const float* pre = call.arrival.pre + (first + t) * N;
    for (int i = 0; i < N; ++i) {
      const float* made = s.streams(call, t) + i * s.stride + at;
      float* g = s.g.data() + ((t - t0) * N + i) * CHUNK;
      const S* above = call.upstream.x ? row(call.upstream.x, (first + t) * N + i, call.channels) + at : nullptr;
      if (above)  // the next chunk, which the hardware does not expect
        for (long c = 0; c < count; c += 64 / long(sizeof(S))) __builtin_prefetch(above + count + c);
      for (long c = 0; c < count; c += LANES) {
        Vec v = s.shrink[t] * load(made + c);
        if (call.upstream.u) v = v + pre[i] * load(s.du.data() + t * s.stride + at + c);
        if (above) v = v + read_some(above + c, count - c);
        store(g + c, v);
      }
    }
  }
  for (int i = 0; i < N; ++i)
    times(s.g.data() + i * CHUNK, N * CHUNK, {s.projected.data() + t0 * width, width, 1}, turned + i * s.stride + at,
          N * s.stride, std::min(TILE, tokens - t0), m, padded(count));
}

// What a token's writing passes on of the gradient g [N][CHUNK] of its new streams, features [at, at + count).
inline void unwrite(const Call& call, long token, const float* g, long at, long count, Vec* dpost, Sums& sums) {
  const Written& w = *call.written;
  const float *res = w.res + token * SQUARE, *post = w.post + token * N;
  const bool one = call.streams.equal && !call.streams.writes;
  const long place = token * call.channels + at;
  S* dx[N];
  for (int j = 0; j < N; ++j) dx[j] = row(call.gradients.x, one ? token : token * N + j, call.channels) + at;
  Vec along[N];
  std::copy(dpost, dpost + N, along);
  for (long c = 0; c < count; c += LANES) {
    const long left = count - c;
    Vec up[N], bare, df = {};
    for (int i = 0; i < N; ++i) up[i] = load(g + i * CHUNK + c);
    const Vec f = branch(w, token, call.channels, at + c, left, &bare);
    for (int i = 0; i < N; ++i) {
      df = df + post[i] * up[i];
      along[i] = along[i] + up[i] * f;
    }
    df = df * w.multiplier;
    if (w.scale) {
      store(sums.scale + at + c, load(sums.scale + at + c) + df * bare);
      df = df * read_some(w.scale + at + c, left);
    }
    if (w.offset) store(sums.offset + at + c, load(sums.offset + at + c) + df);
    if (w.type == FLOAT) write_some((float*)call.gradients.f + place + c, df, left);
    else write_some((BFloat16*)call.gradients.f + place + c, df, left);
    Vec sum = {};
    for (int j = 0; j < N; ++j) {
      Vec v = res[j] * up[0];
      for (int i = 1; i < N; ++i) v = v + res[i * N + j] * up[i];
      sum = one ? sum + v : v;
      if (!one || j == N - 1) write_some(dx[j] + c, sum, left);
    }
  }
  std::copy(along, along + N, dpost);
}

// The gradient of a token's H_res, a lane each: of new streams g [N][CHUNK] for the old ones.
inline void unmix(const float* g, const float* old, long stride, long count, Vec* dres) {
  for (int i = 0; i < N; ++i) {
    Vec along[N];
    std::copy(dres + i * N, dres + (i + 1) * N, along);
    for (long c = 0; c < count; c += LANES) {
      const Vec up = load(g + i * CHUNK + c);
      for (int j = 0; j < N; ++j) along[j] = along[j] + up * load(old + j * stride + c);
    }
    std::copy(along, along + N, dres + i * N);
  }
}

// The gradient of streams that nothing was written to.
inline void pass_on(const Call& call, long token, const float* g, long at, long count) {
  for (long c = 0; c < count; c += LANES) {
    Vec sum = {};
    for (int i = 0; i < N; ++i) {
      const Vec up = load(g + i * CHUNK + c);
      sum = sum + up;
      if (!call.streams.equal) write_some(row(call.gradients.x, token * N + i, call.channels) + at + c, up, count - c);
    }
    if (call.streams.equal) write_some(row(call.gradients.x, token, call.channels) + at + c, sum, count - c);
  }
}

inline void keep_maps(const Call& call, long token, const Vec* dpost, const Vec* dres) {
  for (int i = 0; i < N; ++i) call.gradients.post[token * N + i] = total(dpost[i]);
  for (int k = 0; k < SQUARE; ++k) call.gradients.res[token * SQUARE + k] = total(dres[k]);
}

inline void arrive_backward_block(const Call& call, const float* turned, long width, long first, int tokens,
                                  BackwardScratch& s, Sums& sums) {
  remake(call, first, tokens, s, sums);
  std::fill(s.projected.begin(), s.projected.end(), 0.0f);
  for (int t = 0; t < tokens; t += LANES)
    maps_backward(call, first + t, std::min(LANES, tokens - t), s.dpre + t * N, s.projected.data() + t * width, width,
                  s.shrink + t, sums.alpha, sums.bias, s.history);
  for (int i = 0; i < N; ++i)
    times(sums.phi + i * call.channels * width, width, {s.streams(call, 0) + i * s.stride, 1, N * s.stride},
          s.projected.data(), width, call.channels, tokens, width);
  for (int t0 = 0; t0 < tokens; t0 += TILE) {
    Vec dpost[TILE][N] = {}, dres[TILE][SQUARE] = {};
    const int end = std::min(t0 + TILE, tokens);
    for (long at = 0; at < call.channels; at += CHUNK) {
      const long count = std::min(CHUNK, call.channels - at);
      streams_gradient(call, turned, first, t0, tokens, at, count, width, s);
      for (int t = t0; t < end; ++t) {
        const float* g = s.g.data() + (t - t0) * N * CHUNK;
        if (!call.written) pass_on(call, first + t, g, at, count);
        if (call.written) unwrite(call, first + t, g, at, count, dpost[t - t0], sums);
        if (call.written) unmix(g, s.old.data() + t * N * s.stride + at, s.stride, count, dres[t - t0]);
      }
    }
    for (int t = t0; t < end && call.written; ++t) keep_maps(call, first + t, dpost[t - t0], dres[t - t0]);
  }
}

}  // namespace mhc
