"""Hyper-connections once more, by hand and in eager mode: what a rewritten network is compared with.

A network is written once, from `Part`. As it stands it is plain (`x + f(x)`); `by_hand` makes every part of it run the
n streams explicitly. Streams are `[n, *shape]` here, in the network's layout, so nothing is shared with the passes: not
the layout, not the equations, not the choice of what reads what.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import mhc_compile as mhc

T = TypeVar("T", bound="Part")
ITERATIONS, EPS = 20, 1e-6


@dataclasses.dataclass(frozen=True)
class Streams:
    """The streams `[n, *shape]`, where in shape the features are, and what a reader outside the region sees.

    That is the mean behind a connection, or what its head reads; ops on the trunk behind it act on that for such a
    reader.
    """

    x: Tensor
    axis: int
    seen: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Streams:
        """Apply a function to every stream."""
        return Streams(torch.stack([f(stream.clone()) for stream in self.x]), self.axis, f(self.seen.clone()))


@dataclasses.dataclass(frozen=True)
class Hand:
    """The equations of a kind of connection, and the parameters of every site by name."""

    connection: str
    projection: str
    n: int
    parameters: dict[str, Tensor]
    calls: Counter[str] = dataclasses.field(default_factory=Counter)

    def site(self, path: str, label: str) -> str:
        """The name of the site that a module's connection is, numbered when its module is called again."""
        name = f"{path}.mhc.{label}".removeprefix(".")
        count = self.calls[name]
        self.calls[name] += 1
        return f"{name}_{count}" if count else name

    def arriving(self, site: str, streams: Streams) -> Streams:
        """The streams that a site meets; another hand may have them start anew."""
        return streams

    def lying(self, read: Tensor) -> Tensor:
        """What the site that was named last reads; another hand may lay it out otherwise in memory."""
        return read

    def coefficients(self, site: str, streams: Streams) -> tuple[Tensor, Tensor, Tensor]:
        """H_pre and H_post `[..., n]`, H_res `[..., n, n]` at every token."""
        phi, alpha, bias = (self.parameters[f"{site}.{name}"] for name in ("phi", "alpha", "bias"))
        x = streams.x.movedim(streams.axis, -1)
        return (self._mhc if self.connection == "mhc" else self._hc)(x, phi, alpha, bias)

    def read_out(self, site: str, x: Tensor, axis: int) -> Tensor:
        """What is seen of streams: h_i = sigmoid(<x, phi_i> / |x| alpha + b_i) of each where there is a head."""
        if f"{site}.head_phi" not in self.parameters:
            return x.mean(0)
        phi, alpha, bias = (self.parameters[f"{site}.head_{name}"] for name in ("phi", "alpha", "bias"))
        last = x.movedim(axis, -1)
        n, c = last.shape[0], last.shape[-1]
        size = (last.square().sum((0, -1)) / (n * c) + EPS).sqrt()
        y = torch.einsum("n...c,nci->i...", last, phi.reshape(n, c, n)) / size
        h = 1 / (1 + torch.exp(-(alpha * y + bias.reshape(n, *[1] * (y.dim() - 1)))))
        return torch.einsum("i...,i...c->...c", h, last).movedim(-1, axis)

    def _mhc(self, x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, c = x.shape[0], x.shape[-1]
        size = (x.square().sum((0, -1)) / (n * c) + EPS).sqrt()
        y = torch.einsum("n...c,ncm->...m", x, phi.reshape(n, c, -1)) / size[..., None]
        pre = 1 / (1 + torch.exp(-(alpha[0] * y[..., :n] + bias[:n])))
        post = 2 / (1 + torch.exp(-(alpha[1] * y[..., n : 2 * n] + bias[n : 2 * n])))
        if self.projection == "identity":
            return pre, post, torch.eye(n, dtype=x.dtype).expand(*pre.shape, n)
        res = torch.exp((alpha[2] * y[..., 2 * n :] + bias[2 * n :]).unflatten(-1, (n, n)))
        for _ in range(ITERATIONS):
            res = res / torch.einsum("...ij->...j", res)[..., None, :]
            res = res / torch.einsum("...ij->...i", res)[..., :, None]
        return pre, post, res

    def _hc(self, x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[0]
        size = (x.square().mean(-1, keepdim=True) + EPS).sqrt()
        t = torch.tanh(torch.einsum("n...c,cm->n...m", x / size, phi))
        pre = torch.einsum("n...->...n", t[..., 0]) * alpha[0] + bias[:n]
        post = torch.einsum("n...->...n", t[..., 1]) * alpha[1] + bias[n : 2 * n]
        res = torch.einsum("j...i->...ij", t[..., 2:]) * alpha[2] + bias[2 * n :].reshape(n, n)
        return pre, post, res


class Part(nn.Module):
    """A module whose forward holds residual connections."""

    hand: Hand | None = None
    path = ""

    def enter(self, x: Any, axis: int = -1) -> Any:
        """Start a region."""
        if self.hand is None:
            return x
        return Streams(x[None].expand(self.hand.n, *x.shape), axis, x)

    def leave(self, x: Any) -> Any:
        """End a region, or look at x from outside: a reader that is no branch."""
        return x.seen if isinstance(x, Streams) else x

    def lift(self, f: Callable[[Tensor], Tensor], x: Any) -> Any:
        """An op on the trunk."""
        return x.map(f) if isinstance(x, Streams) else f(x)

    def connect(
        self,
        label: str,
        x: Any,
        *branches: Callable[[Tensor], Tensor],
        scale: float | Tensor | None = None,
        sign: int = 1,
    ) -> Any:
        """`x + f(x)`, `scale x + f(x)` or, with sign -1, `x - f(x)`, with one branch or several."""
        if not isinstance(x, Streams):
            total = x if scale is None else scale * x
            for branch in branches:
                total = total + branch(x) if sign == 1 else total - branch(x)
            return total
        u, write = self.split(label, x, scale)
        return write(sign * torch.stack([branch(u) for branch in branches]).sum(0))

    def split(
        self, label: str, x: Streams, scale: float | Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Streams]]:
        """What a branch reads from the streams, and what puts its output back."""
        assert self.hand is not None
        hand, site = self.hand, self.hand.site(self.path, label)
        x = self.hand.arriving(site, x)
        carried = x if scale is None else x.map(lambda stream: scale * stream)
        if f"{site}.phi" not in self.hand.parameters:  # left out: its add is an op on the trunk
            return self.hand.lying(x.seen), lambda made: carried.map(lambda stream: stream + made)
        pre, post, res = self.hand.coefficients(site, carried)
        last = carried.x.movedim(x.axis, -1)
        u = torch.einsum("...n,n...c->...c", pre, x.x.movedim(x.axis, -1)).movedim(-1, x.axis)

        def write(f: Tensor) -> Streams:
            new = torch.einsum("...ij,j...c->i...c", res, last)
            new = new + torch.einsum("...i,...c->i...c", post, f.movedim(x.axis, -1))
            new = new.movedim(-1, x.axis)
            return Streams(new, x.axis, hand.read_out(site, new, x.axis))

        return self.hand.lying(u), write


def by_hand(net: T, hand: Hand) -> T:
    """A copy of the network that runs the streams explicitly."""
    made = copy.deepcopy(net)
    for path, module in made.named_modules():
        if isinstance(module, Part):
            module.hand, module.path = hand, path
    return made


def perturbed(report: mhc.Report, config: mhc.Config) -> dict[str, Tensor]:
    """Random parameters for every site, by the shapes in the papers; logits move by about 1."""
    n, parameters = config.streams, {}
    for site in report.sites:
        c = site.channels
        mixing = 0 if config.projection == "identity" else n * n
        shapes = {"phi": (n * c, 2 * n + mixing), "alpha": (3,), "bias": (2 * n + mixing,)}
        if config.connection == "hc":
            shapes |= {"phi": (c, n + 2), "bias": (2 * n + n * n,)}
        if site.head:
            shapes |= {"head_phi": (n * c, n), "head_alpha": (1,), "head_bias": (n,)}
        owner = f"{site.owner}.mhc.{site.label}".removeprefix(".")
        for name, shape in shapes.items():
            scale = shape[0] ** -0.5 if name.endswith("phi") else 1.0
            parameters[f"{owner}.{name}"] = (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    return parameters


@torch.no_grad()
def load(model: torch.nn.Module, parameters: dict[str, Tensor]) -> None:
    """Give the model the same parameters; it holds each bias as a fixed start and what is added."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name for name in tensors if name.endswith(".phi")} == {name for name in parameters if name.endswith(".phi")}
    for name, parameter in parameters.items():
        start = tensors[f"{name.removesuffix('bias')}base"] if name.endswith("bias") else 0.0
        tensors[name].copy_(parameter - start)


def run(
    model: Callable[..., Tensor | tuple[Tensor, ...]], parameters: Mapping[str, Tensor], args: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Outputs and the gradients of every parameter and argument."""
    inputs = [arg.clone().requires_grad_() for arg in args]
    made = model(*inputs)
    outputs = (made,) if isinstance(made, Tensor) else made
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    leaves = {**parameters, **{f"argument {i}": t for i, t in enumerate(inputs)}}
    found = torch.autograd.grad(outputs, list(leaves.values()), upstream, allow_unused=True)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return results | {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def near(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare tensors by name, each relative to its largest entry."""
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (ours[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-9)
        assert error <= tolerance, (name, float(error))


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of outputs."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith("output"))
