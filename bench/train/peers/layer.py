"""What peers share: a Llama layer whose residual adds are a library's sites, and what is known of a library."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class UnavailableError(Exception):
    """A library is not installed, or is not the one that the adapter was written for; says which and what to do."""


@dataclass(frozen=True)
class Peer:
    """A library's way to widen a model.

    Attributes:
        distribution: name on PyPI.
        what: the class that is measured.
        widen: gives the layers of a Llama their sites, in place; imports the library.
        streams: what one layer hands to the next, as `[B, T, n, C]`; None where the library keeps no streams there.
    """

    distribution: str
    what: str
    widen: Callable[[Any, int], None]
    streams: Callable[[Tensor, int], Tensor] | None = None

    @property
    def version(self) -> str | None:
        """Return the version that is installed, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


def library(distribution: str, module: str, name: str, remedy: str = "") -> Any:
    """Return something of a library.

    Raises:
        UnavailableError: the library is not installed, does not import, or has nothing of that name.
    """
    remedy = remedy or f"pip install {distribution}"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError(f"not installed: {remedy}") from error
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UnavailableError(f"{distribution} {version} does not import ({error}): {remedy}") from error
    except AttributeError as error:
        raise UnavailableError(f"{distribution} {version} has no {module}.{name}: {remedy}") from error


class Layer(nn.Module):
    """A Llama layer with two sites; a site gives what its branch reads, and a function that takes what the branch made.

    Names are those of the plain layer, so that the parameters are found under the same ones.
    """

    def __init__(self, plain: Any, sites: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.self_attn, self.mlp = plain.self_attn, plain.mlp
        self.input_layernorm, self.post_attention_layernorm = plain.input_layernorm, plain.post_attention_layernorm
        self.attention_site, self.mlp_site = sites
        self.enter: nn.Module = nn.Identity()  # of the first layer: from the embedding to streams
        self.leave: nn.Module = nn.Identity()  # of the last

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
        """Take and return what layers hand on."""
        u, write = self.attention_site(self.enter(hidden_states))
        u, write = self.mlp_site(write(self.self_attn(self.input_layernorm(u), **keywords)[0]))
        result: Tensor = self.leave(write(self.mlp(self.post_attention_layernorm(u))))
        return result
