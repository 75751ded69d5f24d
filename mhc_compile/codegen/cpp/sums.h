// Slices of tokens, each with sums of its own, and what these sums are together.
#pragma once

#include "backward.h"

namespace mhc {

// phi [nC, m] as [m, n padded C], for products along the features.
inline std::vector<float> turn(const Site& site, long channels) {
  const long m = logits(site), stride = padded(channels);
  std::vector<float> turned(m * N * stride);
  for (int i = 0; i < N; ++i)
    for (long c = 0; c < channels; ++c)
      for (long k = 0; k < m; ++k)
        turned[(k * N + i) * stride + c] = site.phi[(i * channels + c) * m + k];
  return turned;
}

inline void add_up(float* out, const std::vector<Sums>& all, float* Sums::* which, long rows, long row, long stride) {
  if (!out) return;
  for (long k = 0; k < rows; ++k)
    for (long c = 0; c < row; ++c) {
      float sum = (all[0].*which)[k * stride + c];
      for (size_t i = 1; i < all.size(); ++i) sum += (all[i].*which)[k * stride + c];
      out[k * row + c] = sum;
    }
}

inline void finish(const Call& call, const std::vector<Sums>& all, long width) {
  const Gradients& g = call.gradients;
  const long channels = call.channels;
  add_up(g.phi, all, &Sums::phi, N * channels, logits(call.site), width);
  add_up(g.weight, all, &Sums::weight, 1, channels, 0);
  add_up(g.shift, all, &Sums::shift, 1, channels, 0);
  add_up(g.offset, all, &Sums::offset, 1, channels, 0);
  add_up(g.scale, all, &Sums::scale, 1, channels, 0);
  for (int k = 0; g.alpha && k < 3 + logits(call.site); ++k) {
    float sum = 0;
    for (const Sums& each : all) sum += total(k < 3 ? each.alpha[k] : each.bias[k - 3]);
    (k < 3 ? g.alpha[k] : g.bias[k - 3]) = sum;
  }
}

// Run a function of (first token, end, sums) over slices of the tokens, and add up what it sums.
template <class F>
void over_slices(const Call& call, long width, Parallel parallel, const F& function) {
  const long count = slices(call, width);
  std::vector<Sums> all;
  all.reserve(count);
  for (long i = 0; i < count; ++i) all.emplace_back(call, width);
  struct Work {
    long tokens, slices;
    Sums* sums;
    const F* function;
  } work{call.tokens, count, all.data(), &function};
  parallel(count, [](void* context, long begin, long end) {
    const Work& w = *(const Work*)context;
    for (long i = begin; i < end; ++i)
      (*w.function)(w.tokens * i / w.slices, w.tokens * (i + 1) / w.slices, w.sums[i]);
  }, &work);
  finish(call, all, width);
}

}  // namespace mhc
