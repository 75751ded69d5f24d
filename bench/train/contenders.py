"""Contenders by name, ready to step: "plain", a connection of ours (perhaps with `/kernels`), or a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import mhc_compile as mhc
from bench.train.peers import PEERS
from bench.train.setup import Setup
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.cli import bench

DEFAULT = (bench.PLAIN, "mhc", *PEERS)


@dataclass
class Entry(bench.Contender):
    """A contender that knows what its connections are.

    Attributes:
        connections: the parameters that the plain model does not have.
        eager: why it runs uncompiled, or "".
        served: it with a cache, once it has one (`measures.served`): another cache would be compiled for anew.
    """

    connections: list[torch.nn.Parameter] = field(default_factory=list)
    eager: str = ""
    served: Any = None


def options_of(name: str, setup: Setup) -> dict[str, Any]:
    """Return the backend's options for a name of ours, such as "mhc", "hc" or "mhc/reference"."""
    _, _, kernels = name.partition("/")
    return {"streams": setup.streams, "kernels": kernels or "auto", "compiler": setup.compiler}


def is_ours(name: str) -> bool:
    """Tell whether mhc_compile makes the contender."""
    return name != bench.PLAIN and name not in PEERS


def compile_options(name: str, setup: Setup) -> dict[str, Any]:
    """Return what torch.compile is given."""
    if not is_ours(name):
        return {"backend": setup.compiler}
    return {"backend": mhc_backend, "options": options_of(name, setup) | {"connection": name.partition("/")[0]}}


def entry(name: str, setup: Setup) -> Entry:
    """Build a contender, not yet compiled.

    Raises:
        UnavailableError: a peer's library is missing; says how to get it.
    """
    model, inputs = setup.build(), setup.inputs()
    if not is_ours(name):
        return other(name, model, inputs, setup.streams, setup.compiler)
    made = bench.contender(name.partition("/")[0], model, (), inputs, options_of(name, setup))
    connections = [parameter for _, parameter in mhc.named_parameters(made.model)]
    return Entry(**vars(made) | {"name": name, "connections": connections})


def other(name: str, model: torch.nn.Module, inputs: dict[str, Any], streams: int, compiler: str = "inductor") -> Entry:
    """Make a plain Llama, which is changed in place, a peer's; or leave it plain."""
    known = {id(parameter) for parameter in model.parameters()}
    if name in PEERS:
        torch.manual_seed(1)
        PEERS[name].widen(model, streams)
    connections = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return Entry(name, model, torch.compile(model, backend=compiler), (), inputs, connections=connections)


def training_step(one: bench.Contender, lr: float = 1e-4) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = optimizer_of(one, lr)

    def step() -> None:
        one.step()
        optimizer.step()

    return step


def optimizer_of(one: bench.Contender, lr: float = 1e-4) -> torch.optim.AdamW:
    """Return an AdamW for all parameters."""
    upgraded = any(True for _ in mhc.named_parameters(one.model))
    groups = mhc.param_groups(one.model, lr, 0.1) if upgraded else list(one.model.parameters())
    return torch.optim.AdamW(groups, lr=lr, weight_decay=0.1, fused=True)
