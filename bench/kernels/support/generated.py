"""A generated module with named arguments and results, and made-up numbers to call it with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect import record
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.triton import host
from mhc_compile.ops import reference

Named = dict[str, Tensor]
Tiles = Mapping[str, Mapping[str, int]]
NEAR_ONE = {"r", "rstd", "scale", "weight", "alpha"}


class Generated:
    """The kernels of a spec."""

    def __init__(self, spec: Spec, text: str | None = None) -> None:
        self.spec = spec
        self.module = build.load(generate(spec) if text is None else text, spec.name)
        self.takes, self.needs = (_parameters(f) for f in (self.module.forward, self.module.backward))

    def given(self, tokens: int, device: str, seed: int = 0) -> Named:
        """Return what the forward takes."""
        return drawn(record.arguments(self.module.forward, self.spec, tokens, device="meta"), device, seed)

    def upstream(self, tokens: int, device: str, seed: int = 1) -> Named:
        """Return gradients of the forward's results."""
        every = record.arguments(self.module.backward, self.spec, tokens, device="meta")
        return drawn({name: like for name, like in every.items() if name.startswith("g_")}, device, seed)

    def forward(self, given: Named, tiles: Tiles | None = None) -> Named:
        """Run the forward; results by the names that the file gives them."""
        made = self.module.forward(*(given[name] for name in self.takes), **_tiles(tiles))
        return dict(zip(host.outputs(self.spec), made, strict=True))

    def backward(self, given: Named, made: Named, upstream: Named, tiles: Tiles | None = None) -> Named:
        """Run the backward on what the forward took and made."""
        known = {**given, **made, **upstream}
        if "bias" in self.needs:
            known["bias"] = given["delta"] + given["base"]
        found = self.module.backward(*(known[name] for name in self.needs), **_tiles(tiles))
        return dict(zip(host.backward_outputs(self.spec), found, strict=True))


def _parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "tiles"]


def _tiles(tiles: Tiles | None) -> dict[str, Tiles]:
    return {} if tiles is None else {"tiles": tiles}


def drawn(like: Mapping[str, Tensor], device: str, seed: int) -> Named:
    """Draw tensors on the device; coefficients are such as a site makes, and phi gives logits of order 1."""
    generator = torch.Generator(device).manual_seed(seed)
    return {name: _draw(name, meta, device, generator) for name, meta in like.items()}


def _draw(name: str, like: Tensor, device: str, generator: torch.Generator) -> Tensor:
    value: Tensor = torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator)
    if name in NEAR_ONE:
        return value * 0.1 + 1
    if name == "phi":
        return value.div_(like.shape[0] ** 0.5)
    if name in ("pre", "post"):
        return torch.sigmoid(value) * (2 if name == "post" else 1)
    return reference.sinkhorn(value, 20) if name == "res" else value
