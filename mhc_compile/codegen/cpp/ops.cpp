// The ops of mhc_compile as torch's dispatcher calls them on a CPU, without Python in between.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "arguments.h"

namespace mhc {

static const Kernels* known[2][64] = {};  // by dtype and number of streams

static void parallel(long count, Body body, void* context) {
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) { body(context, first, last); });
}

// The kernels for a call, null where there are none: then the op's meaning in Python runs, which is kept for every
// backend that has none of its own, such as this one.
static const Kernels* kernels_for(Given& given) {
  if (!given.fit || given.n < 1 || given.n >= 64) return nullptr;
  const Kernels* found = known[given.x.scalar_type() == at::kBFloat16 ? BFLOAT16 : FLOAT][given.n];
  given.call.tokens = c10::multiply_integers(given.tokens());
  return given.holds() ? found : nullptr;
}

static void meaning(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::VE), stack);
}

static void give(const c10::OperatorHandle& op, torch::jit::Stack* stack, std::vector<Tensor> made) {
  torch::jit::drop(*stack, op.schema().arguments().size());
  if (op.schema().returns()[0].type()->kind() == c10::TypeKind::TensorType) stack->emplace_back(made[0]);
  else stack->emplace_back(std::move(made));
}

static void append(std::vector<Tensor>& to, const std::vector<Tensor>& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// u, H_post, H_res, H_pre, y, r, mean, rstd; or without u and statistics H_pre, H_post, H_res, y, r
static std::vector<Tensor> arrive(Given& given, const Kernels* kernels, bool reads) {
  Call& call = given.call;
  const Sizes tokens = given.tokens();
  const int64_t n = given.n;
  const auto wide = at::TensorOptions(at::kFloat);
  const auto floats = [&](std::initializer_list<int64_t> sizes, float*& to) {
    Tensor made = Given::make(tokens, sizes, wide);
    to = made.mutable_data_ptr<float>();
    return made;
  };
  Arrival& to = call.arrival;
  std::vector<Tensor> post{floats({n}, to.post), floats({n, n}, to.res)}, pre{floats({n}, to.pre)},
      kept{floats({given.logits()}, to.y), floats({1}, to.r)};
  std::vector<Tensor> made;
  if (reads) {
    const Norm norm = call.site.norm;
    made.push_back(Given::make(tokens, {call.channels}, given.x.options()));
    to.u = made[0].mutable_data_ptr();
    kept.push_back(norm == LAYER ? floats({1}, to.mean) : at::empty({0}, wide));
    kept.push_back(norm != NONE ? floats({1}, to.rstd) : at::empty({0}, wide));
  }
  kernels->arrive(call, parallel);
  append(made, reads ? post : pre);
  append(made, reads ? pre : post);
  append(made, kept);
  return made;
}

static void coefficients(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.streams(in.tensor());
  given.read_site(in, false);
  given.read_maps(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  give(op, stack, arrive(given, kernels, false));
}

static void enter(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.streams(in.tensor());
  given.read_site(in, true);
  given.read_options(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  give(op, stack, arrive(given, kernels, true));
}

static void seam(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.streams(in.tensor());
  given.read_written(in);
  given.read_site(in, true);
  given.read_options(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  const Tensor streams = Given::make(given.tokens(), {given.n, given.call.channels}, given.x.options());
  given.call.made = streams.mutable_data_ptr();
  std::vector<Tensor> made{streams};
  append(made, arrive(given, kernels, true));
  give(op, stack, std::move(made));
}

static void leave(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.streams(in.tensor());
  given.read_written(in);
  given.n = in.integer();
  given.call.streams.equal = in.truth();
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  const Tensor made = Given::make(given.tokens(), {given.call.channels}, given.x.options());
  given.call.made = made.mutable_data_ptr();
  kernels->leave(given.call, parallel);
  give(op, stack, {made});
}

static void replay(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.streams(in.tensor());
  given.read_history(in);
  given.n = in.integer();
  const Kernels* kernels = given.history.empty() ? nullptr : kernels_for(given);
  if (!kernels) return meaning(op, stack);
  const Tensor made = Given::make(given.tokens(), {given.n, given.call.channels}, given.x.options());
  given.call.made = made.mutable_data_ptr();
  kernels->replay(given.call, parallel);
  give(op, stack, {made});
}

// -- gradients --------------------------------------------------------------------------------------------------------

static Tensor streams_gradient(Given& given) {
  const bool one = given.call.streams.equal && given.history.empty();
  Tensor made = one ? Given::make(given.tokens(), {given.call.channels}, given.x.options())
                    : Given::make(given.tokens(), {given.n, given.call.channels}, given.x.options());
  given.call.gradients.x = made.mutable_data_ptr();
  return made;
}

// x, f, H_post, H_res, and sums for offset and scale
static std::vector<Tensor> written_gradients(Given& given) {
  Gradients& to = given.call.gradients;
  const auto wide = at::TensorOptions(at::kFloat);
  std::vector<Tensor> made{streams_gradient(given), Given::make(given.tokens(), {given.call.channels}, given.f.options()),
                           Given::make(given.tokens(), {given.n}, wide),
                           Given::make(given.tokens(), {given.n, given.n}, wide)};
  to.f = made[1].mutable_data_ptr();
  to.post = made[2].mutable_data_ptr<float>();
  to.res = made[3].mutable_data_ptr<float>();
  append(made, {given.sums(given.offset, to.offset), given.sums(given.scale, to.scale)});
  return made;
}

// phi, alpha, bias, and sums for weight and shift
static std::vector<Tensor> site_gradients(Given& given) {
  Gradients& to = given.call.gradients;
  return {given.sums(given.phi, to.phi), given.sums(given.alpha, to.alpha), given.sums(given.bias, to.bias),
          given.sums(given.weight, to.weight), given.sums(given.shift, to.shift)};
}

// Give the last two of some gradients, once they are summed, the dtypes of what they are of.
static void narrow(std::vector<Tensor>& made, const Maybe& first, const Maybe& second) {
  auto last = made.end() - 2;
  if (first) last[0] = last[0].to(first->scalar_type());
  if (second) last[1] = last[1].to(second->scalar_type());
}

static void coefficients_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.call.upstream.pre = given.floats(in.tensor(), Part::PER_STREAM);
  const Tensor post = in.tensor(), res = in.tensor();
  given.upstream_maps(post, res);
  given.streams(in.tensor());
  given.read_saved_site(in, false);
  given.read_maps(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  std::vector<Tensor> made{streams_gradient(given)}, site = site_gradients(given);
  kernels->arrive_backward(given.call, parallel);
  append(made, {site[0], site[1], site[2]});
  give(op, stack, std::move(made));
}

static void enter_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.call.upstream.u = given.upstream(in.tensor(), Part::FEATURES);
  const Tensor post = in.tensor(), res = in.tensor();
  given.upstream_maps(post, res);
  given.streams(in.tensor());
  given.read_saved_site(in, true);
  given.read_options(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  std::vector<Tensor> made{streams_gradient(given)}, site = site_gradients(given);
  kernels->arrive_backward(given.call, parallel);
  narrow(site, given.weight, given.shift);
  append(made, site);
  give(op, stack, std::move(made));
}

static void seam_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.call.upstream.x = given.upstream(in.tensor(), Part::STREAMS);
  given.call.upstream.u = given.upstream(in.tensor(), Part::FEATURES);
  const Tensor post = in.tensor(), res = in.tensor();
  given.upstream_maps(post, res);
  given.streams(in.tensor());
  given.read_written(in);
  given.read_saved_site(in, true);
  given.read_options(in);
  given.read_history(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  auto made = written_gradients(given), site = site_gradients(given);
  kernels->arrive_backward(given.call, parallel);
  narrow(made, given.offset, given.scale);
  narrow(site, given.weight, given.shift);
  append(made, site);
  give(op, stack, std::move(made));
}

static void leave_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Reader in(op, *stack);
  Given given;
  given.call.upstream.x = given.upstream(in.tensor(), Part::FEATURES);
  given.streams(in.tensor());
  given.read_written(in);
  given.n = in.integer();
  given.call.streams.equal = in.truth();
  given.read_history(in);
  const Kernels* kernels = kernels_for(given);
  if (!kernels) return meaning(op, stack);
  auto made = written_gradients(given);
  kernels->leave_backward(given.call, parallel);
  narrow(made, given.offset, given.scale);
  give(op, stack, std::move(made));
}

static bool wants_gradient(const c10::IValue& value) {
  if (value.isTensor()) return value.toTensor().requires_grad();
  if (!value.isTensorList() && !value.isOptionalTensorList()) return false;
  for (const c10::IValue& each : value.toListRef())
    if (wants_gradient(each)) return true;
  return false;
}

// Torch's function for gradients of Python's ops is in Python and takes longer than a token: it is called where there
// are gradients, by the key that it still has.
static void differentiate(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  keys = keys & c10::after_autograd_keyset;
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  if (at::GradMode::is_enabled() && std::any_of(arguments.begin(), arguments.end(), wants_gradient))
    return op.redispatchBoxed(keys.add(c10::DispatchKey::AutogradOther), stack);
  at::AutoDispatchBelowAutograd below;
  op.redispatchBoxed(keys, stack);
}

}  // namespace mhc

extern "C" void mhc_add(const mhc::Kernels* kernels) { mhc::known[kernels->type][kernels->n] = kernels; }

#define MHC_OPS                                                                                                     \
  MHC_OP(coefficients) MHC_OP(enter) MHC_OP(seam) MHC_OP(leave) MHC_OP(replay)                                      \
  MHC_OP(coefficients_backward) MHC_OP(enter_backward) MHC_OP(seam_backward) MHC_OP(leave_backward)

#define MHC_OP(name) lib.impl(#name, torch::CppFunction::makeFromBoxedFunction<&mhc::name>());
TORCH_LIBRARY_IMPL(mhc, CPU, lib) { MHC_OPS }
#undef MHC_OP

#define MHC_OP(name) lib.impl(#name, torch::CppFunction::makeFromBoxedFunction<&mhc::differentiate>());
TORCH_LIBRARY_IMPL(mhc, AutogradCPU, lib) { MHC_OPS }
