// What the ops hand to the kernels: plain pointers, so that kernels need nothing of torch's.
#pragma once

namespace mhc {

enum Type { FLOAT = 0, BFLOAT16 = 1 };
enum Norm { NONE = 0, RMS = 1, RMS_CAST = 2, LAYER = 3 };

// A branch's output f [T, C], its tail (f + offset) multiplier scale, and the maps that it is written with.
struct Written {
  const void* f;
  Type type;
  const float *post, *res;       // [T, n], [T, n, n]
  const float *offset, *scale;   // [C] or null
  float multiplier;
};

// Streams [T, n, C], or one tensor [T, C] that all equal; or the head of a block and the writes since.
struct Streams {
  const void* x;
  bool equal;
  int writes;
  const Written* history;
};

struct Site {
  const float *phi, *alpha, *bias;  // [nC, m], [3], [m]
  bool mixes;                       // by Sinkhorn; else H_res is I
  int iters;
  float smooth;  // what DeepSeek-V4 adds to H_pre and in Sinkhorn's sums; else 0
  float eps;
  Norm norm;
  const float *weight, *shift;  // [C] or null
  float norm_eps;
};

// What a forward makes at a site, and a backward is given again.
struct Arrival {
  void* u;                                       // [T, C], null for the coefficients alone
  float *post, *res, *pre, *y, *r, *mean, *rstd;  // mean and rstd are null where the norm has none
};

struct Upstream {
  const void *x, *u;              // [T, n, C] and [T, C]; null for none
  const float *pre, *post, *res;  // pre of the coefficients alone
};

struct Gradients {
  void *x, *f;
  float *post, *res, *offset, *scale;
  float *phi, *alpha, *bias, *weight, *shift;
};

struct Call {
  long tokens, channels;
  Streams streams;
  const Written* written;  // null where nothing is written
  Site site;
  void* made;  // the new streams, or the readout
  Arrival arrival;
  Upstream upstream;
  Gradients gradients;
};

using Body = void (*)(void* context, long first, long last);
using Parallel = void (*)(long count, Body body, void* context);  // runs the body over parts of [0, count)

// The kernels of one number of streams and one dtype.
struct Kernels {
  int n;
  Type type;
  void (*arrive)(const Call&, Parallel);           // coefficients, enter, seam
  void (*arrive_backward)(const Call&, Parallel);
  void (*leave)(const Call&, Parallel);
  void (*leave_backward)(const Call&, Parallel);
  void (*replay)(const Call&, Parallel);
};

}  // namespace mhc
