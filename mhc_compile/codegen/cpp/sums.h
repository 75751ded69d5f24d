// Slices of tokens, each with sums of its own, and what these sums are together.
#pragma once

#include "backward.h"

namespace mhc {

// phi [nC, m] by chunks, for products along the features.
inline Floats turn(const Call& call) {
  const ByChunks table(call);
  Floats turned(table.size);
  for (long at = 0; at < call.channels; at += CHUNK)
    for (int i = 0; i < N; ++i)
      for (long k = 0; k < table.m; ++k) {
        float* row = turned.data() + table.place(at, i) + k * table.chunk;
        for (long c = 0; c < table.chunk; ++c)
          row[c] = at + c < call.channels ? call.site.phi[(i * call.channels + at + c) * table.m + k] : 0;
      }
  return turned;
}

inline void add_up(float* out, const std::vector<Sums>& all, float* Sums::* which, long count) {
  for (long c = 0; out && c < count; ++c) {
    out[c] = (all[0].*which)[c];
    for (size_t i = 1; i < all.size(); ++i) out[c] += (all[i].*which)[c];
  }
}

// The gradient of phi [nC, m], of sums by chunks.
inline void add_up_phi(const Call& call, const std::vector<Sums>& all, Parallel parallel) {
  const ByChunks table(call);
  const long channels = call.channels, m = table.m;
  const auto add_up_chunk = [&](int i, long at, long count) {
    float* out = call.gradients.phi + (i * channels + at) * m;
    for (long k = 0; k < m; ++k) {
      float sums[CHUNK];
      const long place = table.place(at, i) + k * table.chunk;
      std::copy(all[0].phi + place, all[0].phi + place + count, sums);
      for (size_t each = 1; each < all.size(); ++each)
        for (long c = 0; c < count; ++c) sums[c] += all[each].phi[place + c];
      for (long c = 0; c < count; ++c) out[c * m + k] = sums[c];
    }
  };
  in_parallel(parallel, (channels + CHUNK - 1) / CHUNK * N, [&](long begin, long end) {
    for (long part = begin; part < end; ++part) {
      const long at = part / N * CHUNK;
      add_up_chunk(int(part % N), at, std::min(CHUNK, channels - at));
    }
  });
}

inline void finish(const Call& call, const std::vector<Sums>& all, Parallel parallel) {
  const Gradients& g = call.gradients;
  if (g.phi) add_up_phi(call, all, parallel);
  add_up(g.weight, all, &Sums::weight, call.channels);
  add_up(g.shift, all, &Sums::shift, call.channels);
  add_up(g.offset, all, &Sums::offset, call.channels);
  add_up(g.scale, all, &Sums::scale, call.channels);
  for (int k = 0; g.alpha && k < 3 + logits(call.site); ++k) {
    float sum = 0;
    for (const Sums& each : all) sum += total(k < 3 ? each.alpha[k] : each.bias[k - 3]);
    (k < 3 ? g.alpha[k] : g.bias[k - 3]) = sum;
  }
}

// Run a function of (first token, end, sums) over slices of the tokens, and add up what it sums.
template <class F>
void over_slices(const Call& call, Parallel parallel, const F& function) {
  const long count = slices(call);
  std::vector<Sums> all(count);
  in_parallel(parallel, count, [&](long begin, long end) {
    for (long i = begin; i < end; ++i) {
      all[i].start(call);
      function(call.tokens * i / count, call.tokens * (i + 1) / count, all[i]);
    }
  });
  finish(call, all, parallel);
}

}  // namespace mhc
