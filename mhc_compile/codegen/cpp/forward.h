// One pass over blocks of tokens: write, project, make the maps, read and normalise while streams are in the caches.
#pragma once

#include <algorithm>

#include "products.h"
#include "rows.h"

namespace mhc {

constexpr int BLOCK = 16;  // tokens; a multiple of TILE and of LANES

// phi [nC, m] with its rows padded to eights; phi itself where they are.
struct Table {
  long width;
  Floats copy;
  const float* rows;

  Table(const Site& site, long channels) : width(padded(logits(site), 8)), rows(site.phi) {
    const long m = logits(site);
    if (m == width) return;
    copy = Floats(N * channels * width);
    for (long k = 0; k < N * channels; ++k) {
      float* row = copy.data() + k * width;
      std::fill(std::copy(site.phi + k * m, site.phi + (k + 1) * m, row), row + width, 0.0f);
    }
    rows = copy.data();
  }
};

// The streams of tokens that come next, and what is written to them.
inline void next_streams(Ahead& ahead, const Call& call, long first, int tokens) {
  const long rows = call.streams.equal ? 1 : N;
  ahead.add(row(call.streams.x, first * rows, call.channels), rows * tokens * call.channels * sizeof(S));
  if (!call.written) return;
  const long token = call.channels * (call.written->type == FLOAT ? sizeof(float) : sizeof(BFloat16));
  ahead.add((const char*)call.written->f + first * token, tokens * token);
}

// Streams of a block of tokens, features [at, at + count), as floats [BLOCK][N][CHUNK], TOKEN apart; new ones go to
// memory as well.
inline void block_of_streams(const Call& call, long first, int tokens, long at, long count, float* out,
                             float* squares) {
  const long channels = call.channels;
  for (int t = 0; t < tokens; ++t) {
    const InScratch streams{out + t * TOKEN, CHUNK};
    const long token = first + t;
    Vec sums[N] = {};
    const auto keep = [&](int i, long c, auto left, Vec v) INLINED {
      store(streams.streams + i * CHUNK + c, v = inside(v, left));
      sums[i] = sums[i] + v * v;
    };
    with_old(streams, call.streams, token, channels, at, count, [&](const auto& old) INLINED {
      if (!call.written) {
        over_vectors(count, [&](long c, auto left) INLINED {
          each<N>([&](auto i) INLINED { keep(i, c, left, old(i, c, left)); });
        });
      } else {
        S* made[N];
        for (int i = 0; i < N; ++i) made[i] = row(call.made, token * N + i, channels) + at;
        write(*call.written, token, channels, at, count, old, [&](auto i, long c, auto left, Vec v) INLINED {
          keep(i, c, left, write_some(made[i] + c, v, left));
        });
      }
    });
    for (int i = 1; i < N; ++i) sums[0] = sums[0] + sums[i];
    squares[t] += total(sums[0]);
  }
}

struct ForwardScratch {
  Floats streams, projected, u;
  float squares[BLOCK];

  ForwardScratch(long width, long channels)
      : streams(BLOCK * TOKEN), projected(BLOCK * width), u(padded(channels)) {}
};

inline void read_block(const Call& call, long first, int tokens, ForwardScratch& s) {
  for (int t = 0; t < tokens; ++t) {
    const long token = first + t;
    const InMemory streams(call.made ? call.made : call.streams.x, !call.made && call.streams.equal, token,
                           call.channels, 0);
    read(s.u.data(), streams, call.arrival.pre + token * N, call.channels);
    norm(call, token, s.u.data(), row(call.arrival.u, token, call.channels));
  }
}

inline void arrive_block(const Call& call, const Table& phi, long first, int tokens, ForwardScratch& s) {
  std::fill(s.projected.data(), s.projected.data() + BLOCK * phi.width, 0.0f);
  std::fill(s.squares, s.squares + BLOCK, 0.0f);
  Ahead ahead;
  next_streams(ahead, call, first + tokens, tokens);
  if (call.made) ahead.add(row(call.made, (first + tokens) * N, call.channels), tokens * N * call.channels * sizeof(S));
  ahead.over(tokens, N * call.channels, phi.width);
  for (long at = 0; at < call.channels; at += CHUNK) {
    const long count = std::min(CHUNK, call.channels - at);
    block_of_streams(call, first, tokens, at, count, s.streams.data(), s.squares);
    for (int i = 0; i < N; ++i)
      times(s.projected.data(), phi.width, {s.streams.data() + i * CHUNK, TOKEN, 1},
            phi.rows + (i * call.channels + at) * phi.width, phi.width, tokens, count, phi.width, ahead);
  }
  for (int t = 0; t < tokens; t += LANES)
    maps(call, first + t, std::min(LANES, tokens - t), s.projected.data() + t * phi.width, phi.width, s.squares + t);
  if (call.arrival.u) read_block(call, first, tokens, s);
}

// Run a function of (begin, end) over parts of [0, count).
template <class F>
void in_parallel(Parallel parallel, long count, const F& function) {
  const auto body = [](void* context, long begin, long end) { (*static_cast<const F*>(context))(begin, end); };
  parallel(count, body, const_cast<F*>(&function));
}

// Run a function of (first token, end) over blocks.
template <class F>
void over_blocks(long tokens, Parallel parallel, const F& function) {
  in_parallel(parallel, (tokens + BLOCK - 1) / BLOCK,
              [&](long begin, long end) { function(begin * BLOCK, std::min(end * BLOCK, tokens)); });
}

inline void arrive(const Call& call, Parallel parallel) {
  const Table phi(call.site, call.channels);
  over_blocks(call.tokens, parallel, [&](long begin, long end) {
    ForwardScratch scratch(phi.width, call.channels);
    for (long first = begin; first < end; first += BLOCK)
      arrive_block(call, phi, first, int(std::min<long>(BLOCK, end - first)), scratch);
  });
}

// Run a function of (token, at, count) over chunks of every token's features.
template <class F>
void over_chunks(const Call& call, Parallel parallel, const F& function) {
  over_blocks(call.tokens, parallel, [&](long begin, long end) {
    for (long token = begin; token < end; ++token)
      for (long at = 0; at < call.channels; at += CHUNK) function(token, at, std::min(CHUNK, call.channels - at));
  });
}

// The mean of the new streams, which are not rounded before it.
inline void leave(const Call& call, Parallel parallel) {
  over_chunks(call, parallel, [&](long token, long at, long count) {
    float streams[N * CHUNK];
    S* out = row(call.made, token, call.channels) + at;
    Vec sum = {};
    with_old({streams, CHUNK}, call.streams, token, call.channels, at, count, [&](const auto& old) INLINED {
      write(*call.written, token, call.channels, at, count, old, [&](auto i, long c, auto left, Vec v) INLINED {
        sum = i ? sum + v : v;
        if (i == N - 1) write_some(out + c, sum / float(N), left);
      });
    });
  });
}

// The streams that a block's writes make of its head.
inline void replay(const Call& call, Parallel parallel) {
  over_chunks(call, parallel, [&](long token, long at, long count) {
    float made[N * CHUNK];
    const InScratch streams{made, CHUNK};
    streams_of(streams, call.streams, token, call.channels, at, count);
    for (int i = 0; i < N; ++i) {
      S* out = row(call.made, token * N + i, call.channels) + at;
      over_vectors(count, [&](long c, auto left) INLINED { write_some(out + c, streams(i, c, left), left); });
    }
  });
}

}  // namespace mhc
