"""Rewritten networks with perturbed parameters against the same networks with streams written by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.passes import networks as nets
from tests.passes.streams import Hand, Part, by_hand

KINDS = [("mhc", "sinkhorn"), ("mhc", "identity"), ("hc", "sinkhorn")]
TOKENS = (2, 3, nets.C)
IMAGE = (2, 4, 3, 5)

Make = Callable[[], Part]
NETS: dict[str, tuple[Make, Sequence[tuple[int, ...]], int]] = {
    "pre-norm": (lambda: nets.Trunk(), [TOKENS], 4),
    "post-norm": (lambda: nets.Trunk(nets.PostNorm), [TOKENS], 4),
    "sandwich": (lambda: nets.Trunk(nets.Sandwich), [TOKENS], 2),
    "parallel": (lambda: nets.Trunk(nets.Parallel), [TOKENS], 2),
    "layer-scale": (lambda: nets.Trunk(nets.LayerScale, 3), [TOKENS], 3),
    "scaled-carrier": (lambda: nets.Trunk(nets.ScaledCarrier), [TOKENS], 2),
    "gated": (lambda: nets.Trunk(nets.Gated), [TOKENS], 4),
    "shared": (nets.Shared, [TOKENS], 6),
    "encoder-decoder": (nets.EncoderDecoder, [TOKENS, (2, 4, nets.C)], 5),
    "fork": (nets.Fork, [TOKENS], 6),
    "channels-first": (lambda: nets.Trunk(nets.ConvBlock, 3, axis=-3, c=4), [IMAGE], 3),
}


def perturbed(report: mhc.Report, config: mhc.Config) -> dict[str, Tensor]:
    """Random parameters for every site, by the shapes in the papers; logits move by about 1."""
    n, parameters = config.streams, {}
    for site in report.sites:
        c = site.channels
        mixing = 0 if config.projection == "identity" else n * n
        shapes = {"phi": (n * c, 2 * n + mixing), "alpha": (3,), "bias": (2 * n + mixing,)}
        if config.connection == "hc":
            shapes |= {"phi": (c, n + 2), "bias": (2 * n + n * n,)}
        owner = f"{site.owner}.mhc.{site.label}".removeprefix(".")
        for name, shape in shapes.items():
            scale = shape[0] ** -0.5 if name == "phi" else 1.0
            parameters[f"{owner}.{name}"] = (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    return parameters


def check(make: Make, shapes: Sequence[tuple[int, ...]], sites: int, config: mhc.Config, compiler: str) -> None:
    """Compare outputs and every gradient for random upstream gradients."""
    torch.manual_seed(0)
    plain = make().double()
    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    model = copy.deepcopy(plain)
    report = mhc.upgrade(model, args, config=config)
    assert len(report.sites) == sites
    parameters = perturbed(report, config)
    load(model, parameters)
    hand = by_hand(plain, Hand(config.connection, config.projection, config.streams, parameters))
    compiled = torch.compile(model, backend=backend, options={"compiler": compiler})
    ours = run(compiled, dict(model.named_parameters()), args)
    theirs = run(hand, dict(hand.named_parameters()) | parameters, args)
    before = run(plain, {}, args)
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max() / expected.abs().max()
        assert expected.abs().max() > 0, name
        assert error < 1e-9, (name, float(error))
    assert any((before[name] - theirs[name]).abs().max() > 1e-2 for name in before if name.startswith("output"))


@torch.no_grad()
def load(model: torch.nn.Module, parameters: dict[str, Tensor]) -> None:
    """Give the model the same parameters; it holds each bias as a fixed start and what is added."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name for name in tensors if name.endswith(".phi")} == {name for name in parameters if name.endswith(".phi")}
    for name, parameter in parameters.items():
        start = tensors[f"{name.removesuffix('bias')}base"] if name.endswith(".bias") else 0.0
        tensors[name].copy_(parameter - start)


def run(model: Callable[..., Tensor | tuple[Tensor, ...]], parameters: dict[str, Tensor], args: Sequence[Tensor]) -> dict[str, Tensor]:
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


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_connection(n: int, kind: tuple[str, str]) -> None:
    check(*NETS["pre-norm"], mhc.Config(streams=n, connection=kind[0], projection=kind[1]), "aot_eager")


@pytest.mark.parametrize("connection", ["mhc", "hc"])
@pytest.mark.parametrize("net", list(NETS)[1:])
def test_every_structure(net: str, connection: str) -> None:
    check(*NETS[net], mhc.Config(streams=3 if connection == "mhc" else 2, connection=connection), "aot_eager")
