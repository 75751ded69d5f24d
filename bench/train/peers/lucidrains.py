"""hyper-connections by lucidrains: mHCv2, and the first class, mHC, which folds streams into the batch.

Coefficients come from each stream alone; streams start as copies and end as a sum.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench.train.peers.layer import Layer, Peer, library

ITERS = 20
REMEDY = "pip install hyper-connections einops torch-einops-utils"


def _widen(module: str, model: Any, n: int) -> None:
    makers = library("hyper-connections", module, "get_init_and_expand_reduce_stream_functions", REMEDY)
    width = model.config.hidden_size
    site, enter, leave = makers(n, dim=width, sinkhorn_iters=ITERS)
    layers = model.model.layers
    for index, plain in enumerate(layers):
        layers[index] = Layer(plain, (site(layer_index=2 * index), site(layer_index=2 * index + 1)))
    layers[0].enter, layers[-1].leave = enter, leave
    for layer in layers:  # sites only, which were made on the CPU: coefficients stay in float32
        layer.attention_site.to(model.device)
        layer.mlp_site.to(model.device)


def widen_v2(model: Any, n: int) -> None:
    """Give a Llama the sites of mHCv2."""
    _widen("hyper_connections.mHCv2", model, n)


def widen_v1(model: Any, n: int) -> None:
    """Give a Llama the sites of the first mHC class."""
    _widen("hyper_connections.manifold_constrained_hyper_connections", model, n)


def _unfold(state: Tensor, n: int) -> Tensor:
    streams: Tensor = state.unflatten(0, (-1, n)).movedim(1, 2)
    return streams


V2 = Peer("hyper-connections", "mHCv2", widen_v2, lambda state, n: state)
V1 = Peer("hyper-connections", "mHC", widen_v1, _unfold)
