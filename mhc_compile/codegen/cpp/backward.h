// The gradients: new streams are made again a block of tokens at a time, and leave nothing behind in memory.
//
// Sums over tokens (phi, alpha, bias, the norm's weight, ...) are taken slice by slice, then slice after slice. How many
// slices there are follows from the sizes alone, so results do not depend on the number of threads.
#pragma once

#include "forward.h"

namespace mhc {

constexpr long SLICE = 128;              // tokens, at least
constexpr long MOST_SLICED = 16L << 20;  // floats, of all slices together
constexpr int MAPS = N + SQUARE;         // numbers of a token's H_post and H_res

// How phi lies, and its gradient while it is summed: [chunks, N, m, chunk], so that all of a chunk lies together.
struct ByChunks {
  long m, chunk, size;

  explicit ByChunks(const Call& call)
      : m(logits(call.site)), chunk(std::min(CHUNK, padded(call.channels))),
        size((call.channels + CHUNK - 1) / CHUNK * N * m * chunk) {}

  long place(long at, int i) const { return (at / CHUNK * N + i) * m * chunk; }  // of feature `at` of stream i
};

// Sums over the tokens of a slice; a pointer is null for what nobody asks for.
struct Sums {
  Floats held;
  float *phi, *weight, *shift, *offset, *scale;
  Vec alpha[3] = {}, bias[MOST] = {};

  void start(const Call& call) {
    const Gradients& g = call.gradients;
    const long c = padded(call.channels);
    const long sizes[] = {g.phi ? ByChunks(call).size : 0, g.weight ? c : 0, g.shift ? c : 0, g.offset ? c : 0,
                          g.scale ? c : 0};
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

// What a block of tokens needs: old streams [BLOCK][N][padded C] where they are replayed, du, the gradient of branches'
// inputs, and so on. New streams and their gradient g are made a chunk at a time, [BLOCK][N][CHUNK], TOKEN apart; maps
// are the gradients of H_post and H_res, a lane each.
struct BackwardScratch {
  long stride, token;  // padded C; from one token's old streams to the next
  Floats old, row, u, du, made, g, projected, dpre, shrink;
  std::vector<Vec> maps, history;

  BackwardScratch(const Call& call, long width)
      : stride(padded(call.channels)), token(apart(N * stride)), old(call.streams.writes ? BLOCK * token : 0),
        row(N * stride), u(stride), du(BLOCK * stride), made(BLOCK * TOKEN), g(BLOCK * TOKEN),
        projected(BLOCK * width), dpre(BLOCK * N), shrink(BLOCK), maps(BLOCK * MAPS),
        history(call.site.mixes ? 2 * call.site.iters * SQUARE : 0) {}

  InScratch replayed(int t, long at) const { return {old.data() + t * token + at, stride}; }
};

// Make a token's new streams again, features [at, at + count): `take(i, c, left, v)` gets them, rounded.
template <class Take>
INLINE void make_again(const Call& call, long first, int t, long at, long count, const BackwardScratch& s,
                       const Take& take) {
  with_replayed(s.replayed(t, at), call.streams, first + t, call.channels, at, [&](const auto& old) INLINED {
    if (!call.written)
      return over_vectors(count, [&](long c, auto left) INLINED {
        each<N>([&](auto i) INLINED { take(i, c, left, inside(old(i, c, left), left)); });
      });
    write(*call.written, first + t, call.channels, at, count, old, [&](auto i, long c, auto left, Vec v) INLINED {
      take(i, c, left, inside(rounded(v, (const S*)nullptr), left));
    });
  });
}

// Take the gradient of a token back through its branch's norm and read.
inline void unread(const Call& call, long first, int t, BackwardScratch& s, Sums& sums) {
  const long token = first + t, channels = call.channels;
  const InScratch made{s.row.data(), s.stride};
  float *du = s.du.data() + t * s.stride, *dpre = s.dpre.data() + t * N;
  if (call.streams.writes)
    streams_of(s.replayed(t, 0), call.streams, token, channels, 0, channels);
  if (!call.upstream.u) {
    std::copy(call.upstream.pre + token * N, call.upstream.pre + (token + 1) * N, dpre);
    std::fill(du, du + s.stride, 0.0f);
    return;
  }
  make_again(call, first, t, 0, channels, s,
             [&](auto i, long c, auto, Vec v) INLINED { store(made.streams + i * s.stride + c, v); });
  if (call.site.norm != NONE) read(s.u.data(), made, call.arrival.pre + token * N, channels);
  norm_backward(call, token, s.u.data(), du, sums.weight, sums.shift);
  for (int i = 0; i < N; ++i)
    dpre[i] = over_features(channels, [&](long c, auto left) INLINED { return made(i, c, left) * load(du + c); });
}

// A token's new streams [N][CHUNK], features [at, at + count), and what of their gradient does not come through phi.
inline void start_gradient(const Call& call, long first, int t, long at, long count, const BackwardScratch& s) {
  const long token = first + t;
  float *made = s.made.data() + t * TOKEN, *g = s.g.data() + t * TOKEN;
  const float shrink = s.shrink.data()[t], *du = s.du.data() + t * s.stride + at;
  float share[N] = {};
  if (call.upstream.u) std::copy(call.arrival.pre + token * N, call.arrival.pre + (token + 1) * N, share);
  const S* above[N] = {};
  for (int i = 0; i < N && call.upstream.x; ++i) above[i] = row(call.upstream.x, token * N + i, call.channels) + at;
  make_again(call, first, t, at, count, s, [&](auto i, long c, auto left, Vec v) INLINED {
    store(made + i * CHUNK + c, v);
    v = shrink * v + share[i] * load(du + c);
    store(g + i * CHUNK + c, above[i] ? v + read_some(above[i] + c, left) : v);
  });
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
template <class Old>
inline void unmix(const float* g, const Old& old, long count, Vec* dres) {
  constexpr int ROWS = N % 2 ? 1 : 2;
  for (int i = 0; i < N; i += ROWS) {
    Vec along[ROWS * N];
    std::copy(dres + i * N, dres + (i + ROWS) * N, along);
    over_vectors(count, [&](long c, auto left) INLINED {
      Vec up[ROWS];
      each<ROWS>([&](auto k) INLINED { up[k] = load(g + (i + k) * CHUNK + c); });
      each<N>([&](auto j) INLINED {
        const Vec from = old(j, c, left);
        each<ROWS>([&](auto k) INLINED { along[k * N + j] = along[k * N + j] + up[k] * from; });
      });
    });
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

// What the next block of tokens reads and writes, spread over the products of this one.
inline void next_block(Ahead& ahead, const Call& call, long first, int tokens) {
  const long next = first + tokens, wide = tokens * call.channels * sizeof(S), m = logits(call.site);
  const int rows = call.streams.equal && !call.streams.writes ? 1 : N;
  if (next + tokens <= call.tokens) {
    next_streams(ahead, call, next, tokens);
    if (call.upstream.u) ahead.add(row(call.upstream.u, next, call.channels), wide);
    if (call.upstream.x) ahead.add(row(call.upstream.x, next * N, call.channels), N * wide);
    ahead.add(row(call.gradients.x, next * rows, call.channels), rows * wide);
    if (call.written) ahead.add(row(call.gradients.f, next, call.channels), wide);
  }
  ahead.over(m, tokens, N * call.channels);
  ahead.over(tokens, m, N * call.channels);
}

// The gradients of a block of tokens, features [at, at + count).
inline void arrive_backward_chunk(const Call& call, const float* phi, long width, long first, int tokens, long at,
                                  long count, BackwardScratch& s, Sums& sums, Ahead& ahead) {
  const ByChunks table(call);
  const float* projected = s.projected.data();
  for (int t = 0; t < tokens; ++t) start_gradient(call, first, t, at, count, s);
  for (int i = 0; i < N; ++i)
    times(sums.phi + table.place(at, i), table.chunk, {projected, 1, width}, s.made.data() + i * CHUNK, TOKEN, table.m,
          tokens, padded(count), ahead);
  for (int i = 0; i < N; ++i)
    times(s.g.data() + i * CHUNK, TOKEN, {projected, width, 1}, phi + table.place(at, i), table.chunk, tokens, table.m,
          padded(count), ahead);
  for (int t = 0; t < tokens; ++t) {
    const float* g = s.g.data() + t * TOKEN;
    if (!call.written) {
      pass_on(call, first + t, g, at, count);
      continue;
    }
    unwrite(call, first + t, g, at, count, s.maps.data() + t * MAPS, sums);
    with_replayed(s.replayed(t, at), call.streams, first + t, call.channels, at,
                  [&](const auto& old) INLINED { unmix(g, old, count, s.maps.data() + t * MAPS + N); });
  }
}

inline void arrive_backward_block(const Call& call, const float* phi, long width, long first, int tokens,
                                  BackwardScratch& s, Sums& sums) {
  Ahead ahead;
  next_block(ahead, call, first, tokens);
  for (int t = 0; t < tokens; ++t) unread(call, first, t, s, sums);
  for (int t = 0; t < tokens; t += LANES)
    maps_backward(call, first + t, std::min(LANES, tokens - t), s.dpre.data() + t * N, s.projected.data() + t * width,
                  width, s.shrink.data() + t, sums.alpha, sums.bias, s.history);
  std::fill(s.maps.begin(), s.maps.end(), Vec{});
  for (long at = 0; at < call.channels; at += CHUNK)
    arrive_backward_chunk(call, phi, width, first, tokens, at, std::min(CHUNK, call.channels - at), s, sums, ahead);
  for (int t = 0; t < tokens && call.written; ++t)
    keep_maps(call, first + t, s.maps.data() + t * MAPS, s.maps.data() + t * MAPS + N);
}

}  // namespace mhc
