// An op's arguments, in the order of mhc_compile/ops/signatures, as the plain pointers that kernels take.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/empty.h>
#include <c10/util/SmallVector.h>

#include <deque>
#include <string>

#include "call.h"

namespace mhc {

using at::Tensor;
using Maybe = std::optional<Tensor>;
using Sizes = c10::SmallVector<int64_t, 5>;  // on the stack

// Reads the arguments of a call one after the other.
class Reader {
 public:
  Reader(const c10::OperatorHandle& op, const torch::jit::Stack& stack)
      : next_(stack.end() - op.schema().arguments().size()) {}

  Tensor tensor() { return (next_++)->toTensor(); }
  Maybe maybe() { return (next_++)->toOptional<Tensor>(); }
  int64_t integer() { return (next_++)->toInt(); }
  double number() { return (next_++)->toDouble(); }
  bool truth() { return (next_++)->toBool(); }
  const std::string& text() { return (next_++)->toStringRef(); }
  std::vector<Tensor> tensors() { return (next_++)->toTensorVector(); }
  std::vector<double> numbers() { return (next_++)->toDoubleVector(); }
  std::vector<Maybe> maybes() {
    std::vector<Maybe> found;
    for (const c10::IValue& each : (next_++)->toListRef()) found.push_back(each.toOptional<Tensor>());
    return found;
  }

 private:
  torch::jit::Stack::const_iterator next_;
};

// What a kernel reads of a token.
enum class Part { NUMBER, PER_STREAM, MATRIX, LOGITS, FEATURES, STREAMS };

// Claims that a tensor holds such a part for every token.
struct Claim {
  Tensor of;
  Part part;
};

// A call for a kernel, and the tensors that its pointers are of. What no kernel is there for makes it unfit: then the
// op's meaning runs, and says what is wrong where something is.
struct Given {
  Call call{};
  bool fit = true;
  Tensor x, f;
  Maybe offset, scale, phi, alpha, bias, weight, shift, mean, rstd;
  int64_t n = 0;
  Written written{};
  std::vector<Written> history;
  std::vector<float> whole_bias;  // base + delta
  std::deque<Tensor> held;
  std::vector<Claim> claims;
  std::vector<at::ScalarType> alike;  // dtypes that are those of the streams

  Given() = default;
  Given(const Given&) = delete;  // `call` points into it

  const void* data(const Tensor& t) {
    fit = fit && t.device().is_cpu() && t.layout() == at::kStrided && !t.is_conj() && !t.is_neg();
    if (!fit) return nullptr;
    held.push_back(t.contiguous());
    return held.back().const_data_ptr();
  }

  const float* floats(const Tensor& t) {
    fit = fit && t.scalar_type() == at::kFloat;
    return static_cast<const float*>(data(t));
  }

  const float* floats(const Tensor& t, Part part) {
    claims.push_back({t, part});
    return floats(t);
  }

  float* kept(const Tensor& t, Part part) { return const_cast<float*>(floats(t, part)); }

  const void* upstream(const Tensor& t, Part part) {  // of the dtype of the streams
    claims.push_back({t, part});
    alike.push_back(t.scalar_type());
    return data(t);
  }

  const float* vector(const Maybe& t) {  // [C], of any floating dtype
    if (!t) return nullptr;
    fit = fit && t->numel() == call.channels;
    fit = fit && t->is_floating_point() && t->scalar_type() != at::kDouble;
    return fit ? floats(t->to(at::kFloat)) : nullptr;
  }

  Type type(const Tensor& t) {
    fit = fit && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16);
    return t.scalar_type() == at::kBFloat16 ? BFLOAT16 : FLOAT;
  }

  void streams(const Tensor& t) {
    x = t;
    type(t);
    call.channels = t.dim() ? t.size(-1) : 0;
    fit = fit && call.channels > 0;
    call.streams.x = data(t);
  }

  Written write(const Tensor& f, const Tensor& post, const Tensor& res, const Maybe& offset, const Maybe& scale,
                double multiplier) {
    const Type kind = type(f);
    claims.push_back({f, Part::FEATURES});
    return {data(f), kind, floats(post, Part::PER_STREAM), floats(res, Part::MATRIX), vector(offset), vector(scale),
            float(multiplier)};
  }

  void read_written(Reader& in) {
    f = in.tensor();
    const Tensor post = in.tensor(), res = in.tensor();
    offset = in.maybe();
    scale = in.maybe();
    written = write(f, post, res, offset, scale, in.number());
    call.written = &written;
  }

  void site(const Tensor& phi_, const Tensor& alpha_, const Tensor& bias_) {
    phi = phi_, alpha = alpha_, bias = bias_;
    call.site.phi = floats(phi_);
    call.site.alpha = floats(alpha_);
    call.site.bias = floats(bias_);
  }

  void read_site(Reader& in, bool norm) {
    const Tensor phi = in.tensor(), alpha = in.tensor(), delta = in.tensor(), base = in.tensor();
    site(phi, alpha, delta);
    const float* start = floats(base);
    fit = fit && base.numel() == delta.numel();
    if (fit) whole_bias.assign(start, start + base.numel());  // at::add takes a tenth of a token's call
    for (size_t k = 0; k < whole_bias.size(); ++k) whole_bias[k] += call.site.bias[k];
    call.site.bias = whole_bias.data();
    if (norm) read_weights(in);
  }

  void read_saved_site(Reader& in, bool norm) {
    const Tensor phi = in.tensor(), alpha = in.tensor();
    site(phi, alpha, in.tensor());
    if (norm) read_weights(in);
    if (norm) call.arrival.pre = kept(in.tensor(), Part::PER_STREAM);
    call.arrival.y = kept(in.tensor(), Part::LOGITS);
    call.arrival.r = kept(in.tensor(), Part::NUMBER);
    if (norm) mean = in.tensor(), rstd = in.tensor();
  }

  void read_weights(Reader& in) {
    weight = in.maybe();
    shift = in.maybe();
    call.site.weight = vector(weight);
    call.site.shift = vector(shift);
  }

  void read_maps(Reader& in) {
    n = in.integer();
    const std::string& connection = in.text();
    fit = fit && (connection == "mhc" || connection == "deepseek-v4");
    call.site.smooth = connection == "mhc" ? 0.0f : 1e-6f;  // SMOOTH of mhc_compile/ops/projections.py
    const std::string& projection = in.text();
    fit = fit && (projection == "sinkhorn" || projection == "identity");
    call.site.mixes = projection == "sinkhorn";
    call.site.iters = int(in.integer());
    call.site.eps = float(in.number());
    fit = in.truth() && fit;
  }

  void read_options(Reader& in) {
    read_maps(in);
    const std::string& norm = in.text();
    call.site.norm = norm == "rms" ? RMS : norm == "rms_cast" ? RMS_CAST : norm == "layer" ? LAYER : NONE;
    if (mean && call.site.norm == LAYER) call.arrival.mean = kept(*mean, Part::NUMBER);
    if (rstd && call.site.norm != NONE) call.arrival.rstd = kept(*rstd, Part::NUMBER);
    call.site.norm_eps = float(in.number());
    call.streams.equal = in.truth();
  }

  void read_history(Reader& in) {
    const auto fs = in.tensors(), posts = in.tensors(), ress = in.tensors();
    const auto offsets = in.maybes(), scales = in.maybes();
    const auto multipliers = in.numbers();
    const bool equal = in.truth();
    if (!f.defined() && !fs.empty()) f = fs[0];
    for (const size_t size : {posts.size(), ress.size(), offsets.size(), scales.size(), multipliers.size()})
      fit = fit && size == fs.size();
    for (size_t i = 0; fit && i < fs.size(); ++i)
      history.push_back(write(fs[i], posts[i], ress[i], offsets[i], scales[i], multipliers[i]));
    call.streams.writes = int(history.size());
    call.streams.history = history.data();
    if (!history.empty()) call.streams.equal = equal;
  }

  // Sizes of the token axes, also of a head that all streams equal.
  Sizes tokens() const {
    const Tensor& like = f.defined() ? f : x;
    const int features = f.defined() || call.streams.equal ? 1 : 2;
    return {like.sizes().begin(), like.sizes().end() - std::min<int64_t>(features, like.dim())};
  }

  void upstream_maps(const Tensor& post, const Tensor& res) {
    call.upstream.post = floats(post, Part::PER_STREAM);
    call.upstream.res = floats(res, Part::MATRIX);
  }

  Sizes sizes(Part part) const {
    switch (part) {
      case Part::NUMBER: return {1};
      case Part::PER_STREAM: return {n};
      case Part::MATRIX: return {n, n};
      case Part::LOGITS: return {logits()};
      case Part::FEATURES: return {call.channels};
      default: return {n, call.channels};
    }
  }

  int64_t logits() const { return 2 * n + (call.site.mixes ? n * n : 0); }

  // Whether every tensor holds what a kernel reads there.
  bool holds() {
    claims.push_back({x, call.streams.equal ? Part::FEATURES : Part::STREAMS});
    const Sizes each = tokens();
    for (const Claim& claim : claims) {
      Sizes wanted = each;
      for (const int64_t size : sizes(claim.part)) wanted.push_back(size);
      if (claim.of.sizes() != at::IntArrayRef(wanted)) return false;
    }
    if (phi && phi->sizes() != at::IntArrayRef{n * call.channels, logits()}) return false;
    if (phi && (alpha->numel() != 3 || bias->numel() != logits())) return false;
    for (const at::ScalarType type : alike)
      if (type != x.scalar_type()) return false;
    return true;
  }

  // -- new tensors, and where kernels write them --------------------------------------------------------------------------

  static Tensor make(Sizes sizes, std::initializer_list<int64_t> more, const at::TensorOptions& options) {
    sizes.insert(sizes.end(), more);
    return at::empty(sizes, options);
  }

  Tensor sums(const Maybe& like, float*& to) {
    Tensor made = like ? at::empty(like->sizes(), at::kFloat) : at::empty({0}, at::kFloat);
    to = like ? made.mutable_data_ptr<float>() : nullptr;
    return made;
  }
};

}  // namespace mhc
