// The kernels of one number of streams and one dtype, which the line in front of this text defines.
#include "sums.h"

namespace mhc {

// Every new stream has a share of the readout's gradient.
inline void leave_backward_token(const Call& call, long token, Sums& sums) {
  float old[N * CHUNK], g[N * CHUNK];
  Vec dpost[N] = {}, dres[SQUARE] = {};
  for (long at = 0; at < call.channels; at += CHUNK) {
    const long count = std::min(CHUNK, call.channels - at);
    streams_of({old, CHUNK}, call.streams, token, call.channels, at, count);
    const S* above = row(call.upstream.x, token, call.channels) + at;
    over_vectors(count, [&](long c, auto left) {
      const Vec share = read_some(above + c, left) / float(N);
      each<N>([&](auto i) { store(g + i * CHUNK + c, share); });
    });
    unwrite(call, token, g, at, count, dpost, sums);
    unmix(g, InScratch{old, CHUNK}, count, dres);
  }
  keep_maps(call, token, dpost, dres);
}

inline void leave_backward(const Call& call, Parallel parallel) {
  over_slices(call, parallel, [&](long begin, long end, Sums& sums) {
    for (long token = begin; token < end; ++token) leave_backward_token(call, token, sums);
  });
}

inline void arrive_backward(const Call& call, Parallel parallel) {
  const long width = padded(logits(call.site), 8);
  const Floats turned = turn(call);
  over_slices(call, parallel, [&](long begin, long end, Sums& sums) {
    BackwardScratch scratch(call, width);
    for (long first = begin; first < end; first += BLOCK)
      arrive_backward_block(call, turned.data(), width, first, int(std::min<long>(BLOCK, end - first)), scratch, sums);
  });
}

const Kernels kernels{N, TYPE, arrive, arrive_backward, leave, leave_backward, replay};

}  // namespace mhc

extern "C" const mhc::Kernels* mhc_kernels() { return &mhc::kernels; }
