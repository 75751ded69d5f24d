"""Where mHC's parameters start, and which of them stay there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.stability.trial import PARTS
from mhc_compile.model.sites import SiteModule, sites_in

PHI_STD = 0.02


def home(site: SiteModule) -> None:
    """Leave what `mhc_compile.upgrade` sets: the exact start, phi = 0."""


def normal(site: SiteModule) -> None:
    """Start at home, but with a random phi: the dynamic part has a gradient for its gates at once."""
    site.phi.normal_(std=PHI_STD)


def deepseek(site: SiteModule) -> None:
    """Start as DeepSeek-V4 in transformers does: phi random, gates 1, no bias. The model is another one."""
    site.phi.normal_(std=PHI_STD)
    site.alpha.fill_(1.0)
    site.base.zero_()


def symmetric(site: SiteModule) -> None:
    """Start as public retrofits do: every site reads the mean of the streams, which so stay equal."""
    n = site.config.streams
    site.base[:n] = -torch.log(torch.tensor(n - 1.0))


STARTS = {"home": home, "normal": normal, "deepseek": deepseek, "symmetric": symmetric}


@torch.no_grad()
def begin(model: nn.Module, start: str) -> None:
    """Set the parameters of every site."""
    for _, site in sites_in(model):
        STARTS[start](site)


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Keep parts of the maps of mhc as they are: their gradients are 0, and a phi that starts at 0 does not decay."""
    for _, site in sites_in(model) if parts else ():
        n = site.config.streams
        columns = torch.cat([torch.full((width,), float(part not in parts))
                             for part, width in zip(PARTS, (n, n, len(site.bias) - 2 * n), strict=True)])  # fmt: skip
        gates = torch.tensor([float(part not in parts) for part in PARTS])
        for parameter, mask in ((site.phi, columns), (site.bias, columns), (site.alpha, gates)):
            parameter.register_hook(_masking(mask))


def _masking(mask: Tensor) -> Any:
    return lambda grad: grad * mask
