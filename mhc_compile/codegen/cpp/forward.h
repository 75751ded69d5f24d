// One pass over blocks of tokens: write, project, make the maps, read and normalise while streams are in the caches.
#pragma once

#include <algorithm>

#include "products.h"
#include "rows.h"

namespace mhc {

constexpr int BLOCK = 16;  // tokens; a multiple of TILE and of LANES

// phi [nC, m] with its rows padded to whole vectors; phi itself where they are.
struct Table {
  long width;
  std::vector<float> copy;
  const float* rows;

  Table(const Site& site, long channels) : width(padded(logits(site))), rows(site.phi) {
    const long m = logits(site);
    if (m == width) return;
    copy.resize(N * channels * width);
    for (long k = 0; k < N * channels; ++k) std::copy(site.phi + k * m, site.phi + (k + 1) * m, &copy[k * width]);
    rows = copy.data();
  }
};

// Streams of a block of tokens, features [at, at + count), as floats [BLOCK][N][CHUNK]; new ones go to memory as well.
inline void block_of_streams(const Call& call, long first, int tokens, long at, long count, float* out,
                             float* squares) {
  const long channels = call.channels;
  for (int t = 0; t < tokens; ++t) {
    const InScratch streams{out + t * N * CHUNK, CHUNK};
    const long token = first + t;
    Vec sum = {};
    const auto keep = [&](int i, long c, Vec v) {
      streams(i, c, count - c < LANES ? v = inside(v, count - c) : v);
      sum = sum + v * v;
    };
    with_old(streams, call.streams, token, channels, at, count, [&](const auto& old) {
      if (!call.written) {
        for (long c = 0; c < count; c += LANES)
          for (int i = 0; i < N; ++i) keep(i, c, old(i, c));
      } else {
        S* made[N];
        for (int i = 0; i < N; ++i) made[i] = row(call.made, token * N + i, channels) + at;
        write<true>(*call.written, token, channels, at, count, old, [&](int i, long c, Vec v) {
          write_some(made[i] + c, v, count - c);
          keep(i, c, v);
        });
      }
    });
    squares[t] += total(sum);
  }
}

struct ForwardScratch {
  std::vector<float> streams, projected, u;
  float squares[BLOCK];

  ForwardScratch(long width, long channels)
      : streams(BLOCK * N * CHUNK), projected(BLOCK * width), u(padded(channels)) {}
};

inline void read_block(const Call& call, long first, int tokens, ForwardScratch& s) {
  for (int t = 0; t < tokens; ++t) {
    const long token = first + t;
    const InMemory streams(call.made ? call.made : call.streams.x, !call.made && call.streams.equal, token,
                           call.channels, 0, call.channels);
    read(s.u.data(), streams, call.arrival.pre + token * N, call.channels);
    norm(call, token, s.u.data(), row(call.arrival.u, token, call.channels));
  }
}

inline void arrive_block(const Call& call, const Table& phi, long first, int tokens, ForwardScratch& s) {
  std::fill(s.projected.begin(), s.projected.end(), 0.0f);
  std::fill(s.squares, s.squares + BLOCK, 0.0f);
  for (long at = 0; at < call.channels; at += CHUNK) {
    const long count = std::min(CHUNK, call.channels - at);
    block_of_streams(call, first, tokens, at, count, s.streams.data(), s.squares);
    for (int i = 0; i < N; ++i)
      times(s.projected.data(), phi.width, {s.streams.data() + i * CHUNK, N * CHUNK, 1},
            phi.rows + (i * call.channels + at) * phi.width, phi.width, tokens, count, phi.width);
  }
  for (int t = 0; t < tokens; t += LANES)
    maps(call, first + t, std::min(LANES, tokens - t), s.projected.data() + t * phi.width, phi.width, s.squares + t);
  if (call.arrival.u) read_block(call, first, tokens, s);
}

// Run a function of (first token, number of tokens) over blocks.
template <class F>
void over_blocks(long tokens, Parallel parallel, const F& function) {
  struct Work {
    long tokens;
    const F* function;
  } work{tokens, &function};
  parallel((tokens + BLOCK - 1) / BLOCK, [](void* context, long begin, long end) {
    const Work& w = *(const Work*)context;
    (*w.function)(begin * BLOCK, std::min(end * BLOCK, w.tokens));
  }, &work);
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
    with_old({streams, CHUNK}, call.streams, token, call.channels, at, count, [&](const auto& old) {
      write<false>(*call.written, token, call.channels, at, count, old, [&](int i, long c, Vec v) {
        sum = i ? sum + v : v;
        if (i == N - 1) write_some(out + c, sum / float(N), count - c);
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
    for (int i = 0; i < N; ++i)
      for (long c = 0; c < count; c += LANES)
        write_some(row(call.made, token * N + i, call.channels) + at + c, streams(i, c), count - c);
  });
}

}  // namespace mhc
