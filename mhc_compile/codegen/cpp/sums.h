// Slices of tokens, each with sums of its own, and what these sums are together.
#pragma once

#include "backward.h"

namespace mhc {

// phi [nC, m] as [m, n padded C], rows apart, for products along the features.
inline Floats turn(const Site& site, long channels) {
  const long m = logits(site), stride = padded(channels), apart_by = apart(N * stride);
  Floats turned(m * apart_by);
  for (long k = 0; k < m; ++k)
    for (int i = 0; i < N; ++i) {
      float* row = turned.data() + k * apart_by + i * stride;
      for (long c = 0; c < stride; ++c) row[c] = c < channels ? site.phi[(i * channels + c) * m + k] : 0;
    }
  return turned;
}

inline void add_up(float* out, const std::vector<Sums>& all, float* Sums::* which, long count) {
  for (long c = 0; out && c < count; ++c) {
    out[c] = (all[0].*which)[c];
    for (size_t i = 1; i < all.size(); ++i) out[c] += (all[i].*which)[c];
  }
}

constexpr long STRIP = 64;  // features at a time

// The gradient of phi [nC, m], of sums [m, n padded C], rows apart.
inline void add_up_phi(const Call& call, const std::vector<Sums>& all, Parallel parallel) {
  const long channels = call.channels, stride = padded(channels), m = logits(call.site);
  const long strips = (channels + STRIP - 1) / STRIP;
  const auto add_up_strip = [&](long i, long at, long count) {
    float* out = call.gradients.phi + (i * channels + at) * m;
    for (long k = 0; k < m; ++k) {
      float sums[STRIP];
      const long place = k * apart(N * stride) + i * stride + at;
      std::copy(all[0].phi + place, all[0].phi + place + count, sums);
      for (size_t each = 1; each < all.size(); ++each)
        for (long c = 0; c < count; ++c) sums[c] += all[each].phi[place + c];
      for (long c = 0; c < count; ++c) out[c * m + k] = sums[c];
    }
  };
  in_parallel(parallel, N * strips, [&](long begin, long end) {
    for (long strip = begin; strip < end; ++strip) {
      const long at = strip % strips * STRIP;
      add_up_strip(strip / strips, at, std::min(STRIP, channels - at));
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
