// Logits to H_pre, H_post and H_res and back (arXiv 2512.24880, Eq. 7-9 and 16-19), a lane per token.
#pragma once

#include <cmath>
#include <vector>

#include "call.h"
#include "vectors.h"

namespace mhc {

constexpr int SQUARE = N * N;
constexpr int MOST = 2 * N + SQUARE;  // logits of a token

inline int logits(const Site& site) { return 2 * N + (site.mixes ? SQUARE : 0); }

// After so many iterations what has underflowed is made again: see `lasting` in mhc_compile/ops/reference.py.
inline int lasting() { return N > 2 ? 1 + int(88 / (2 * std::log(double(N - 1)))) : 1 << 30; }

inline Vec logarithm(Vec v) {
  for (int i = 0; i < LANES; ++i) v[i] = std::log(v[i]);
  return v;
}

// Let the N entries of a row or column, `stride` apart, sum to 1; return their sum, of entries times weights where there
// are some. What is divided is rounded as in the reference; a product with the inverse is faster.
inline Vec normalise(Vec* m, int stride, const Vec* weights, bool divides, float more = 0.0f) {
  Vec sum = weights ? m[0] * weights[0] : m[0];
  for (int i = 1; i < N; ++i) sum = sum + (weights ? m[i * stride] * weights[i] : m[i * stride]);
  if (more) sum = sum + more;
  const Vec inverse = 1.0f / sum;
  for (int i = 0; i < N; ++i) m[i * stride] = divides ? m[i * stride] / sum : m[i * stride] * inverse;
  return sum;
}

// Sinkhorn-Knopp from exp(m), in place; `history` takes the matrix behind each half of an iteration, if it is there.
//
// The maximum of each column is subtracted, which the first normalisation cancels, then that of each row, for which the
// weights of the first sums make up: so no row or column underflows. The first iterations round as the reference does:
// a site's start is exact in it (mhc_compile/model/start_values.py), and sums of 1 keep what is exact.
inline void sinkhorn(Vec* m, int iters, Vec* history) {
  const int lasts = lasting();
  const bool remakes = iters > lasts;
  Vec z[SQUARE], weight[N], by_row[N] = {}, by_column[N] = {};
  for (int j = 0; j < N; ++j) {
    Vec most = m[j];
    for (int i = 1; i < N; ++i) most = larger(m[i * N + j], most);
    for (int i = 0; i < N; ++i) m[i * N + j] = m[i * N + j] - most;
  }
  for (int i = 0; i < N; ++i) {
    Vec most = m[i * N];
    for (int j = 1; j < N; ++j) most = larger(m[i * N + j], most);
    weight[i] = exponential(most);
    for (int j = 0; j < N; ++j) m[i * N + j] = exponential(z[i * N + j] = m[i * N + j] - most);
  }
  for (int done = 0; done < iters; ++done) {
    if (done && done % lasts == 0)
      for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) m[i * N + j] = exponential(z[i * N + j] - by_row[i] - by_column[j]);
    const bool divides = done % lasts < 2;
    for (int j = 0; j < N; ++j) {
      const Vec sum = normalise(m + j, N, done ? nullptr : weight, divides);
      if (remakes) by_column[j] = by_column[j] + logarithm(sum);
    }
    if (history)
      for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) *history++ = done ? m[i * N + j] : m[i * N + j] * weight[i];
    for (int i = 0; i < N; ++i) {
      const Vec sum = normalise(m + i * N, 1, nullptr, divides);
      if (remakes) by_row[i] = by_row[i] + logarithm(sum);
    }
    if (history)
      for (int k = 0; k < SQUARE; ++k) *history++ = m[k];
  }
}

// The same as DeepSeek-V4 does it: columns by a softmax, then `smooth` is added to it and to every sum. So nothing
// vanishes, and nothing has to be made again.
inline void smooth_sinkhorn(Vec* m, int iters, float smooth, Vec* history) {
  for (int j = 0; j < N; ++j) {
    Vec most = m[j];
    for (int i = 1; i < N; ++i) most = larger(m[i * N + j], most);
    for (int i = 0; i < N; ++i) m[i * N + j] = exponential(m[i * N + j] - most);
  }
  for (int half = 0; half < 2 * iters; ++half) {
    const int stride = half % 2 ? 1 : N, next = half % 2 ? N : 1;
    for (int k = 0; k < N; ++k) normalise(m + k * next, stride, nullptr, true, half ? smooth : 0.0f);
    if (history)
      for (int k = 0; k < SQUARE; ++k) *history++ = m[k];
    if (!half)
      for (int k = 0; k < SQUARE; ++k) m[k] = m[k] + smooth;
  }
}

inline void project(const Site& site, Vec* m, Vec* history) {
  if (site.smooth)
    smooth_sinkhorn(m, site.iters, site.smooth, history);
  else
    sinkhorn(m, site.iters, history);
}

// The gradient of the logits for that of the matrix, in place. Of logarithms, a normalisation's gradient is that of
// what it made, less the matrix times the sums of it: nothing is divided by what may have underflowed.
inline void sinkhorn_backward(Vec* g, int iters, float smooth, const Vec* history) {
  const Vec* made = history + (2 * iters - 1) * SQUARE;
  for (int k = 0; k < SQUARE; ++k) g[k] = g[k] * made[k];
  for (int done = 0; done < iters; ++done) {
    for (int i = 0; i < N; ++i) {
      Vec sum = g[i * N];
      for (int j = 1; j < N; ++j) sum = sum + g[i * N + j];
      for (int j = 0; j < N; ++j) g[i * N + j] = g[i * N + j] - made[i * N + j] * sum;
    }
    made -= SQUARE;
    if (smooth && done == iters - 1)  // of the softmax, to which it was added
      for (int k = 0; k < SQUARE; ++k) g[k] = g[k] * made[k] / (made[k] + smooth);
    for (int j = 0; j < N; ++j) {
      Vec sum = g[j];
      for (int i = 1; i < N; ++i) sum = sum + g[i * N + j];
      for (int i = 0; i < N; ++i) g[i * N + j] = g[i * N + j] - made[i * N + j] * sum;
    }
    made -= SQUARE;
  }
}

// One column of lanes of a table of rows, and back; tokens that are not there are zeros.
inline Vec gather(const float* rows, long stride, int count) {
  Vec v = {};
  for (int t = 0; t < count; ++t) v[t] = rows[t * stride];
  return v;
}

inline void scatter(float* rows, long stride, int count, Vec v) {
  for (int t = 0; t < count; ++t) rows[t * stride] = v[t];
}

// Which alpha a logit has.
inline int gate(int k) { return k < N ? 0 : k < 2 * N ? 1 : 2; }

inline Vec logit(const Site& site, int k, Vec y) { return y * site.alpha[gate(k)] + site.bias[k]; }

// Turn the projections of up to LANES tokens into their maps.
//   projected: [LANES, width] sums x phi; squares: the sums of squares of each token's streams; first: of the tokens
inline void maps(const Call& call, long first, int count, const float* projected, long width, const float* squares) {
  const Site& site = call.site;
  const Arrival& to = call.arrival;
  const int m = logits(site);
  Vec r = gather(squares, 1, count) / float(N * call.channels) + site.eps;
  for (int t = 0; t < LANES; ++t) r[t] = 1.0f / std::sqrt(r[t]);
  scatter(to.r + first, 1, count, r);
  Vec z[MOST];
  for (int k = 0; k < m; ++k) {
    Vec y = gather(projected + k, width, count) * r;
    y = r == 0.0f ? Vec{} : y;  // where the squares overflow
    scatter(to.y + first * m + k, m, count, y);
    z[k] = logit(site, k, y);
  }
  for (int i = 0; i < N; ++i) {
    scatter(to.pre + first * N + i, N, count, site.smooth ? sigmoid(z[i]) + site.smooth : sigmoid(z[i]));
    scatter(to.post + first * N + i, N, count, 2.0f * sigmoid(z[N + i]));
  }
  if (site.mixes) project(site, z + 2 * N, nullptr);
  for (int k = 0; k < SQUARE; ++k)
    scatter(to.res + first * SQUARE + k, SQUARE, count, site.mixes ? z[2 * N + k] : all(k % (N + 1) == 0));
}

// The gradients of the maps become those of the projections.
//   dpre: [8, N]; dprojected: [LANES, width] gradient of x phi; shrink: what multiplies x in its own gradient;
//   dalpha, dbias: sums, a lane per token
inline void maps_backward(const Call& call, long first, int count, const float* dpre, float* dprojected, long width,
                          float* shrink, Vec* dalpha, Vec* dbias, std::vector<Vec>& history) {
  const Site& site = call.site;
  const int m = logits(site);
  Vec y[MOST], d[MOST];
  for (int k = 0; k < m; ++k) y[k] = gather(call.arrival.y + first * m + k, m, count);
  for (int i = 0; i < 2 * N; ++i) {
    const Vec s = sigmoid(logit(site, i, y[i]));
    const Vec g = i < N ? gather(dpre + i, N, count)
                        : 2.0f * gather(call.upstream.post + first * N + i - N, N, count);
    d[i] = s * (1.0f - s) * g;
  }
  if (site.mixes) {
    Vec z[SQUARE];
    for (int k = 0; k < SQUARE; ++k) {
      z[k] = logit(site, 2 * N + k, y[2 * N + k]);
      d[2 * N + k] = gather(call.upstream.res + first * SQUARE + k, SQUARE, count);
    }
    project(site, z, history.data());
    sinkhorn_backward(d + 2 * N, site.iters, site.smooth, history.data());
  }
  const Vec r = gather(call.arrival.r + first, 1, count);
  Vec along = {};
  for (int k = 0; k < m; ++k) {
    dbias[k] = dbias[k] + d[k];
    dalpha[gate(k)] = dalpha[gate(k)] + d[k] * y[k];
    const Vec dy = d[k] * site.alpha[gate(k)];
    along = along + dy * y[k];
    scatter(dprojected + k, width, LANES, dy * r);
  }
  scatter(shrink, 1, LANES, along * r * r / -float(N * call.channels));
}

}  // namespace mhc
