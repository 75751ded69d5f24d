"""The equations once more, in fp64 and as directly as possible, and how functions are compared with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops import connections
from mhc_compile.ops.connections import Maps
from mhc_compile.ops.signatures import OPS, Coefficients, MapOptions, Parameters, flat, names

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensor | Sequence[Tensor]]

EPS = SMOOTH = 1e-6
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}

# what may be a tensor among the arguments of an op, and which of its results have gradients
TENSORS = frozenset("x f h_post h_res offset scale phi alpha delta base weight shift".split())
GIVE_GRADIENTS = {
    "coefficients": ("h_pre", "h_post", "h_res"),
    "enter": ("u", "h_post", "h_res"),
    "seam": ("x", "u", "h_post", "h_res"),
}
KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("deepseek-v4", "sinkhorn"), ("hc", "sinkhorn")]

# token axes: none, one, several, empty ones
TOKENS = [(), (1,), (3, 2), (0,), (2, 0, 3)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random numbers, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def spread_out(tensor: Tensor) -> Tensor:
    """The same values on strides that no op would choose: reversed axes, every second entry."""
    axes = list(range(tensor.dim()))[::-1]
    double = tensor.permute(axes).repeat_interleave(2, 0) if axes else tensor
    return double[::2].permute(axes) if axes else tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """A site with random (perturbed) parameters."""

    n: int
    c: int
    tokens: tuple[int, ...] = (3, 2)
    connection: str = "mhc"
    projection: str = "sinkhorn"
    dtype: torch.dtype = torch.float64
    iters: int = 20
    scale: float = 1.0
    kernels: bool = True  # where some are registered

    @property
    def maps(self) -> Maps:
        return Maps(self.n, self.projection, self.iters)

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def options_of_maps(self) -> MapOptions:
        return MapOptions(self.n, self.connection, self.projection, self.iters, EPS, self.kernels)

    def streams(self, seed: int = 1) -> Tensor:
        return normal(*self.tokens, self.n, self.c, seed=seed, dtype=self.dtype)

    def branch(self, seed: int = 2) -> Tensor:
        return normal(*self.tokens, self.c, seed=seed, dtype=self.dtype)

    def parameters(self) -> Tensors:
        """phi, alpha, the learned delta and the fixed base, all random."""
        kind = connections.get(self.connection)
        k, m = kind.phi_shape(self.maps, self.c)
        width = self.n * (self.n + 2) if self.connection == "hc" else m
        phi = self.scale * normal(k, m, seed=3, dtype=self.wide) / k**0.5
        alpha = 1 + 0.3 * normal(kind.gates(), seed=4, dtype=self.wide)
        return phi, alpha, normal(width, seed=5, dtype=self.wide), normal(width, seed=6, dtype=self.wide)

    def coefficients(self) -> Coefficients:
        """All that the op takes."""
        return Coefficients(self.streams(), Parameters(*self.parameters()), self.options_of_maps)

    def reference(self, x: Tensor, phi: Tensor, alpha: Tensor, delta: Tensor, base: Tensor) -> Tensors:
        """The coefficients by the equations; base is a buffer, so it gets no gradient."""
        maps = hc_maps if self.connection == "hc" else mhc_maps
        return maps(x, phi, alpha, delta + base.detach(), self)


def at(function: Function, *last: Any) -> Function:
    """The function with its last arguments given."""
    return lambda *tensors: function(*tensors, *last)


def by_op(op: str, n: int) -> Callable[..., Tensor]:
    """One of `expand`, `read`, `write` and `readout` as a function of its tensors."""
    return lambda *tensors: getattr(torch.ops.mhc, op)(*tensors, n=n)


def of_tensors(op: str, given: tuple[Any, ...]) -> Function:
    """An op as a function of its tensors in their order, to its results that have gradients.

    Other arguments are as given. All is such that Dynamo can trace it.
    """
    values, taken, results = flat(given), names(type(given)), OPS[op].results
    places = [i for i, name in enumerate(taken) if name in TENSORS]
    wanted = [] if results is Tensor else [i for i, name in enumerate(names(results)) if name in GIVE_GRADIENTS[op]]
    function = getattr(torch.ops.mhc, op)

    def run(*tensors: Tensor | None) -> Tensor | Tensors:
        filled = list(values)
        for i, tensor in zip(places, tensors, strict=True):
            filled[i] = tensor
        made = function(*filled)
        return tuple(made[i] for i in wanted) if wanted else made

    return run


def coefficients(case: Case) -> Function:
    """H_pre, H_post and H_res by the op."""
    return of_tensors("coefficients", case.coefficients())


def sinkhorn(z: Tensor, iters: int) -> Tensor:
    m = torch.exp(z)
    for _ in range(iters):
        m = torch.einsum("...ij,...j->...ij", m, 1 / torch.einsum("...ij->...j", m))
        m = torch.einsum("...ij,...i->...ij", m, 1 / torch.einsum("...ij->...i", m))
    return m


def smooth_sinkhorn(z: Tensor, iters: int) -> Tensor:
    """As transformers' DeepseekV4HyperConnection writes it, whose comb is H_res transposed."""
    comb = torch.softmax(z.transpose(-1, -2), -1) + SMOOTH
    comb = comb / (comb.sum(-2, keepdim=True) + SMOOTH)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + SMOOTH)
        comb = comb / (comb.sum(-2, keepdim=True) + SMOOTH)
    return comb.transpose(-1, -2)


def mhc_maps(x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, case: Case) -> Tensors:
    """Eq. 14-19 of arXiv 2512.24880."""
    n = case.n
    vector = x.reshape(*x.shape[:-2], n * case.c)
    normed = vector / torch.sqrt((vector**2).mean(-1, keepdim=True) + EPS)
    p = torch.einsum("...k,km->...m", normed, phi)
    pre = 1 / (1 + torch.exp(-(alpha[0] * p[..., :n] + bias[:n])))
    post = 2 / (1 + torch.exp(-(alpha[1] * p[..., n : 2 * n] + bias[n : 2 * n])))
    smooth = case.connection == "deepseek-v4"
    pre = pre + SMOOTH if smooth else pre
    if case.projection == "identity":
        return pre, post, torch.eye(n, dtype=x.dtype).expand(*x.shape[:-2], n, n)
    z = (alpha[2] * p[..., 2 * n :] + bias[2 * n :]).reshape(*x.shape[:-2], n, n)
    return pre, post, smooth_sinkhorn(z, case.iters) if smooth else sinkhorn(z, case.iters)


def hc_maps(x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, case: Case) -> Tensors:
    """Eq. 10-13 of arXiv 2409.19606, where A_r mixes by its transpose."""
    n = case.n
    normed = x / torch.sqrt((x**2).mean(-1, keepdim=True) + EPS)
    gates = torch.tanh(torch.einsum("...ic,cm->...im", normed, phi))
    pre = alpha[0] * gates[..., 0] + bias[:n]
    post = alpha[1] * gates[..., 1] + bias[n : 2 * n]
    res = torch.einsum("...ij->...ji", alpha[2] * gates[..., 2:]) + bias[2 * n :].reshape(n, n)
    return pre, post, res


def expand(x: Tensor, n: int) -> Tensor:
    return torch.einsum("...c,n->...nc", x, torch.ones(n, dtype=x.dtype))


def read(x: Tensor, h_pre: Tensor, n: int) -> Tensor:
    return torch.einsum("...n,...nc->...c", h_pre, x)


def write(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, n: int) -> Tensor:
    return torch.einsum("...ij,...jc->...ic", h_res, x) + torch.einsum("...i,...c->...ic", h_post, f)


def readout(x: Tensor, n: int) -> Tensor:
    return torch.einsum("...nc->...c", x) / n


def inputs(case: Case) -> list[Tensor]:
    """What `whole` takes."""
    return [case.streams(), case.branch(), *case.parameters()]


def whole(case: Case) -> Function:
    """One site by the ops: what the branch reads, the new streams, their readout."""
    maps, (read, write, readout) = coefficients(case), (by_op(op, case.n) for op in ("read", "write", "readout"))

    def run(x: Tensor, f: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        pre, post, res = maps(x, *parameters)
        u = read(x, pre)
        new = write(x, f * u, post, res)
        return u, new, readout(new)

    return run


def whole_by_equation(case: Case) -> Function:
    """The same by the equations."""

    def run(x: Tensor, f: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        pre, post, res = case.reference(x, *parameters)
        u = read(x, pre, case.n)
        new = write(x, f * u, post, res, case.n)
        return u, new, readout(new, case.n)

    return run


def tensors(result: Tensor | Sequence[Tensor]) -> Tensors:
    """Return what a function returned as a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert the shape, and an error that is small against the largest entry."""
    assert actual.shape == expected.shape
    if expected.numel():
        error = (actual.double() - expected.double()).abs().max()
        assert error <= tolerance * expected.abs().max().clamp(min=1e-6), float(error)


def values_and_gradients(function: Function, inputs: Sequence[Tensor], wide: bool) -> tuple[Tensors, Tensors]:
    """Call a function; pull random gradients, not constant ones, back to every input."""
    leaves = [(t.double() if wide else t).detach().requires_grad_() for t in inputs]
    outputs = tensors(function(*leaves))
    upstream = [normal(*o.shape, seed=100 + i).to(inputs[0].dtype).to(o) for i, o in enumerate(outputs)]
    live = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
    found = torch.autograd.grad([o for o, _ in live], leaves, [g for _, g in live], materialize_grads=True)
    return outputs, found


def check(
    function: Function, reference: Function, inputs: Sequence[Tensor], tolerance: float | None = None
) -> tuple[Tensors, Tensors]:
    """Compare values and every gradient with an fp64 reference; return the function's own."""
    limit = TOLERANCE[inputs[0].dtype] if tolerance is None else tolerance
    outputs, found = values_and_gradients(function, inputs, wide=False)
    for pair in zip((outputs, found), values_and_gradients(reference, inputs, wide=True), strict=True):
        for actual, expected in zip(*pair, strict=True):
            near(actual, expected, limit)
    for tensor, gradient in zip(inputs, found, strict=True):
        assert gradient.dtype == tensor.dtype
    return outputs, found
