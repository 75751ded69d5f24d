"""mhc-pytorch and mhc, two libraries of PyPI that both import as `mhc`: only one can be installed at a time.

mhc-pytorch makes streams inside a block and averages them at its end. mhc adds a weighted sum of earlier outputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bench.train.peers.layer import Peer, library

NOTE = "(it and {} both import as `mhc`, so one at a time)"


class Branch(nn.Module):
    """A norm and what follows it; what attention takes besides is set before the call."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner
        self.keywords: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return what the branch adds."""
        made = self.inner(self.norm(x), **self.keywords)
        result: Tensor = made[0] if isinstance(made, tuple) else made
        return result


class Blocks(nn.Module):
    """A Llama layer as two blocks of mhc-pytorch."""

    def __init__(self, plain: Any, site: Any, width: int, n: int) -> None:
        super().__init__()
        self.attention = site(width, n, Branch(plain.input_layernorm, plain.self_attn))
        self.mlp = site(width, n, Branch(plain.post_attention_layernorm, plain.mlp))

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        self.attention.block.keywords = keywords
        made: Tensor = self.mlp(self.attention(hidden_states))
        return made


class Skips(nn.Module):
    """A Llama layer whose skips are those of mhc, on a history that all layers share."""

    def __init__(self, plain: Any, skips: tuple[nn.Module, nn.Module], history: Any, first: bool) -> None:
        super().__init__()
        self.attention, self.mlp = (
            Branch(plain.input_layernorm, plain.self_attn),
            Branch(plain.post_attention_layernorm, plain.mlp),
        )
        self.skips = nn.ModuleList(skips)
        self.history, self.first = history, first

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
        """[B, T, C] to [B, T, C]."""
        if self.first:
            self.history.clear()
            self.history.append(hidden_states)
        self.attention.keywords = keywords
        for branch, skip in zip((self.attention, self.mlp), self.skips, strict=True):
            hidden_states = skip(branch(hidden_states), self.history.get())
            self.history.append(hidden_states)
        return hidden_states


def widen_mhc_pytorch(model: Any, n: int) -> None:
    """Make a Llama's branches blocks of mhc-pytorch."""
    remedy = f"pip install mhc-pytorch, with Python 3.12 or newer {NOTE.format('mhc')}"
    site = library("mhc-pytorch", "mhc", "ManifoldHyperConnections", remedy)
    layers = model.model.layers
    for index, plain in enumerate(layers):
        layers[index] = Blocks(plain, site, model.config.hidden_size, n).to(model.device)


def widen_mhc(model: Any, n: int) -> None:
    """Give a Llama the skips of mhc."""
    remedy = f"pip install mhc {NOTE.format('mhc-pytorch')}"
    skip, history = (library("mhc", "mhc.layers", name, remedy) for name in ("MHCSkip", "HistoryBuffer"))
    shared = history(max_history=n, detach_history=False)
    layers = model.model.layers
    for index, plain in enumerate(layers):
        skips = tuple(skip(mode="mhc", max_history=n, init="uniform") for _ in range(2))
        layers[index] = Skips(plain, skips, shared, index == 0).to(model.device)


MHC_PYTORCH = Peer("mhc-pytorch", "ManifoldHyperConnections", widen_mhc_pytorch)
MHC = Peer("mhc", "MHCSkip", widen_mhc)
