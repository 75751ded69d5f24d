"""A small Llama, and plans that lay its residual stream over processes as a DTensor."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C, HEADS, VOCABULARY = 32, 4, 40


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(C, C, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, C // HEADS)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(C, 2 * C), nn.Linear(2 * C, C), nn.Linear(C, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), FeedForward()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(C), nn.RMSNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = self.feed_forward(self.ffn_norm(x)) + x
        return out


class PostLayer(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x))
        out: Tensor = self.ffn_norm(x + self.feed_forward(x))
        return out


class Llama(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module] = Layer) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, C)
        self.layers = nn.ModuleList(layer() for _ in range(2))
        self.norm, self.output = nn.RMSNorm(C), nn.Linear(C, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.output(self.norm(x))
        return out


def lay(model: nn.Module, mesh: Any, stream: Any) -> None:
    """Parallelise a Llama such that its residual stream is a DTensor in a placement on a mesh of one dimension."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    by_token = stream in (Shard(0), Shard(1))
    normed = stream if by_token else Replicate()

    class Norm(SequenceParallel):
        def __init__(self) -> None:
            super().__init__()
            self.sequence_sharding: Any = (normed,)

    def into_stream() -> RowwiseParallel:
        return RowwiseParallel(output_layouts=stream, use_local_output=False)

    whole: dict[str, Any] = {"input_layouts": (normed,), "desired_input_layouts": (Replicate(),)}
    first = copy.copy(stream)  # or torch recompiles the second layer, whose input shares no placement with its hooks
    embed = ColwiseParallel(output_layouts=first, use_local_output=False)
    out = ColwiseParallel(input_layouts=normed, output_layouts=Replicate())
    parallelize_module(model, mesh, {"tok_embeddings": embed, "norm": Norm(), "output": out})
    for layer in model.get_submodule("layers").children():
        plan: dict[str, Any] = {"attention_norm": Norm(), "ffn_norm": Norm()}
        plan |= {"attention.wo": into_stream(), "feed_forward.w2": into_stream()}
        plan |= {name: PrepareModuleInput(**whole) for name in ("attention", "feed_forward")}
        inner = ("attention.wq", "attention.wk", "attention.wv", "feed_forward.w1", "feed_forward.w3")
        parallelize_module(layer, mesh, plan | {name: ColwiseParallel() for name in inner})


def pulled(model: nn.Module, length: int = 8, blocks: bool = False, **options: Any) -> dict[str, Tensor]:
    """The output and every gradient, whole, of a model or of its layers compiled one by one."""
    tokens = torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    for each in model.get_submodule("layers").children() if blocks else (model,):
        each.compile(backend="mhc", options={"compiler": "aot_eager", **options})
    out = model(tokens)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2)))
    found: dict[str, Any] = {"": out.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    return {name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for name, tensor in found.items()}
