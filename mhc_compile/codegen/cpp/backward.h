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

// Sums over the tokens of a slice; a pointer is null for what nobody asks for. That of phi is [m, n padded C], rows
// apart.
struct Sums {
  Floats held;
  float *phi, *weight, *shift, *offset, *scale;
  Vec alpha[3] = {}, bias[MOST] = {};

  void start(const Call& call) {
    const Gradients& g = call.gradients;
    const long c = padded(call.channels);
    const long sizes[] = {g.phi ? logits(call.site) * apart(N * c) : 0, g.weight ? c : 0, g.shift ? c : 0,
                          g.offset ? c : 0, g.scale ? c : 0};
    const long all = sizes[0] + sizes[1] + sizes[2] + sizes[3] + sizes[4];
    held = Floats(all);
    std::fill(held.data(), held.data() + all, 0.0f);
    float* at = held.data();
    float** to[] = {&phi, &weight, &shift, &offset, &scale};
    for (int k = 0; k < 5; ++k) {
      *to[k] = sizes[k] ? at : nullptr;
      at += sizes[k];
    }
  }
};

inline long slices(const Call& call) {
  const long most = std::max(1L, MOST_SLICED / (N * call.channels * (call.gradients.phi ? logits(call.site) : 0) + 1));
  return std::max(1L, std::min({call.tokens / SLICE, 64L, most}));
}

// What a block of tokens needs: old and new streams [BLOCK][N][padded C], tokens apart, du, the gradient of the streams,
// and so on.
struct BackwardScratch {
  long stride, token;  // padded C; from one token's streams to the next
  int block;    // tokens at a time
  Floats old, made, du, u, g, projected;
  std::vector<Vec> history;
  float dpre[BLOCK * N], shrink[BLOCK];

  BackwardScratch(const Call& call, long width)
      : stride(padded(call.channels)), token(apart(N * stride)), block(KEPT / (N * stride) >= BLOCK ? BLOCK : LANES),
        old(block * token), made(call.written ? block * token : 0), du(block * stride), u(stride),
        g(TILE * TOKEN), projected(block * width),
        history(call.site.mixes ? 2 * call.site.iters * SQUARE : 0) {}

  float* streams(const Call& call, int t) { return (call.written ? made : old).data() + t * token; }
};

// Make the streams of a block again, and take the gradient back through norm and read.
inline void remake(const Call& call, long first, int tokens, BackwardScratch& s, Sums& sums) {
  for (int t = 0; t < tokens; ++t) {
    const long token = first + t, channels = call.channels;
    const InScratch old{s.old.data() + t * s.token, s.stride}, made{s.streams(call, t), s.stride};
    streams_of(old, call.streams, token, channels, 0, channels);
    if (call.written) write(*call.written, token, channels, 0, channels, old, made);
    float *du = s.du.data() + t * s.stride, *dpre = s.dpre + t * N;
    if (!call.upstream.u) {
      std::copy(call.upstream.pre + token * N, call.upstream.pre + (token + 1) * N, dpre);
      std::fill(du, du + s.stride, 0.0f);
      continue;
    }
    if (call.site.norm != NONE) read(s.u.data(), made, call.arrival.pre + token * N, channels);
    norm_backward(call, token, s.u.data(), du, sums.weight, sums.shift);
    for (int i = 0; i < N; ++i)
      dpre[i] = over_features(channels, [&](long c, auto left) INLINED { return made(i, c, left) * load(du + c); });
  }
}

// The whole gradient of a tile's streams, features [at, at + count), as [TILE][N][CHUNK], TOKEN apart.
inline void streams_gradient(const Call& call, const float* turned, long first, int t0, int tokens, long at, long count,
                             long width, BackwardScratch& s, Ahead& next) {
  const int m = logits(call.site);
  for (int t = t0; t < std::min(t0 + TILE, tokens); ++t) {
    const float *pre = call.arrival.pre + (first + t) * N, *du = s.du.data() + t * s.stride + at;
    const float shrink = s.shrink[t];
    for (int i = 0; i < N; ++i) {
      const float* made = s.streams(call, t) + i * s.stride + at;
      const float share = call.upstream.u ? pre[i] : 0;
      float* g = s.g.data() + (t - t0) * TOKEN + i * CHUNK;
      const auto own = [&](long c) { return shrink * load(made + c) + share * load(du + c); };
      if (!call.upstream.x) {
        for (long c = 0; c < count; c += LANES) store(g + c, own(c));
        continue;
      }
      const S* above = row(call.upstream.x, (first + t) * N + i, call.channels) + at;
      over_vectors(count, [&](long c, auto left) INLINED { store(g + c, own(c) + read_some(above + c, left)); });
    }
  }
  for (int i = 0; i < N; ++i)
    times(s.g.data() + i * CHUNK, TOKEN, {s.projected.data() + t0 * width, width, 1}, turned + i * s.stride + at,
          s.token, std::min(TILE, tokens - t0), m, padded(count), next);
}

// What a token's writing passes on of the gradient g [N][CHUNK] of its new streams, features [at, at + count).
inline void unwrite(const Call& call, long token, const float* g, long at, long count, Vec* dpost, Sums& sums) {
  const Written& w = *call.written;
  float res[SQUARE], post[N];
  std::copy(w.res + token * SQUARE, w.res + (token + 1) * SQUARE, res);
  std::copy(w.post + token * N, w.post + (token + 1) * N, post);
  const bool one = call.streams.equal && !call.streams.writes;
  const long place = token * call.channels + at;
  S* dx[N];
  for (int j = 0; j < N; ++j) dx[j] = row(call.gradients.x, one ? token : token * N + j, call.channels) + at;
  Vec along[N];
  std::copy(dpost, dpost + N, along);
  by_branch(w, [&](auto bare) INLINED {
    over_vectors(count, [&](long c, auto left) INLINED {
      Vec up[N], untouched, df = {};
      each<N>([&](auto i) INLINED { up[i] = load(g + i * CHUNK + c); });
      const Vec f = branch<bare()>(w, token, call.channels, at + c, left, &untouched);
      each<N>([&](auto i) INLINED {
        df = df + post[i] * up[i];
        along[i] = along[i] + up[i] * f;
      });
      if (!bare) {
        df = df * w.multiplier;
        if (w.scale) {
          store(sums.scale + at + c, load(sums.scale + at + c) + df * untouched);
          df = df * read_some(w.scale + at + c, left);
        }
        if (w.offset) store(sums.offset + at + c, load(sums.offset + at + c) + df);
      }
      if (bare || w.type == TYPE) write_some((S*)call.gradients.f + place + c, df, left);
      else if (w.type == FLOAT) write_some((float*)call.gradients.f + place + c, df, left);
      else write_some((BFloat16*)call.gradients.f + place + c, df, left);
      Vec sum = {};
      each<N>([&](auto j) INLINED {
        Vec v = res[j] * up[0];
        each<N - 1>([&](auto i) INLINED { v = v + res[(i + 1) * N + j] * up[i + 1]; });
        sum = one ? sum + v : v;
        if (!one || j == N - 1) write_some(dx[j] + c, sum, left);
      });
    });
  });
  std::copy(along, along + N, dpost);
}

// The gradient of a token's H_res, a lane each: of new streams g [N][CHUNK] for the old ones.
inline void unmix(const float* g, const float* old, long stride, long count, Vec* dres) {
  constexpr int ROWS = N % 2 ? 1 : 2;
  for (int i = 0; i < N; i += ROWS) {
    Vec along[ROWS * N];
    std::copy(dres + i * N, dres + (i + ROWS) * N, along);
    for (long c = 0; c < count; c += LANES) {
      Vec up[ROWS];
      each<ROWS>([&](auto k) INLINED { up[k] = load(g + (i + k) * CHUNK + c); });
      each<N>([&](auto j) INLINED {
        const Vec from = load(old + j * stride + c);
        each<ROWS>([&](auto k) INLINED { along[k * N + j] = along[k * N + j] + up[k] * from; });
      });
    }
    std::copy(along, along + ROWS * N, dres + i * N);
  }
}

// The gradient of streams that nothing was written to.
inline void pass_on(const Call& call, long token, const float* g, long at, long count) {
  S* dx[N];
  for (int i = 0; i < N; ++i)
    dx[i] = row(call.gradients.x, call.streams.equal ? token : token * N + i, call.channels) + at;
  over_vectors(count, [&](long c, auto left) INLINED {
    Vec sum = {};
    each<N>([&](auto i) INLINED {
      const Vec up = load(g + i * CHUNK + c);
      sum = call.streams.equal ? sum + up : up;
      if (!call.streams.equal || i == N - 1) write_some(dx[i] + c, sum, left);
    });
  });
}

inline void keep_maps(const Call& call, long token, const Vec* dpost, const Vec* dres) {
  for (int i = 0; i < N; ++i) call.gradients.post[token * N + i] = total(dpost[i]);
  for (int k = 0; k < SQUARE; ++k) call.gradients.res[token * SQUARE + k] = total(dres[k]);
}

inline void arrive_backward_block(const Call& call, const float* turned, long width, long first, int tokens,
                                  BackwardScratch& s, Sums& sums) {
  remake(call, first, tokens, s, sums);
  Ahead ahead, next;
  const long place = first * N, bytes = tokens * N * call.channels * sizeof(S);
  if (call.upstream.x) ahead.add(row(call.upstream.x, place, call.channels), bytes);
  ahead.add(row(call.gradients.x, place, call.channels), bytes);
  next_streams(next, call, first + tokens, tokens);
  if (call.upstream.u)
    next.add(row(call.upstream.u, first + tokens, call.channels), tokens * call.channels * sizeof(S));
  for (int t = 0; t < tokens; t += LANES)
    maps_backward(call, first + t, std::min(LANES, tokens - t), s.dpre + t * N, s.projected.data() + t * width, width,
                  s.shrink + t, sums.alpha, sums.bias, s.history);
  for (long at = 0; at < N * s.stride; at += CHUNK)
    times(sums.phi + at, s.token, {s.projected.data(), 1, width}, s.streams(call, 0) + at, s.token,
          logits(call.site), tokens, std::min(CHUNK, N * s.stride - at), ahead);
  for (int t0 = 0; t0 < tokens; t0 += TILE) {
    Vec dpost[TILE][N] = {}, dres[TILE][SQUARE] = {};
    const int end = std::min(t0 + TILE, tokens);
    for (long at = 0; at < call.channels; at += CHUNK) {
      const long count = std::min(CHUNK, call.channels - at);
      streams_gradient(call, turned, first, t0, tokens, at, count, width, s, next);
      for (int t = t0; t < end; ++t) {
        const float* g = s.g.data() + (t - t0) * TOKEN;
        if (!call.written) pass_on(call, first + t, g, at, count);
        if (call.written) unwrite(call, first + t, g, at, count, dpost[t - t0], sums);
        if (call.written) unmix(g, s.old.data() + t * s.token + at, s.stride, count, dres[t - t0]);
      }
    }
    for (int t = t0; t < end && call.written; ++t) keep_maps(call, first + t, dpost[t - t0], dres[t - t0]);
  }
}

}  // namespace mhc
