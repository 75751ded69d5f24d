"""What AOTAutograd's partitioner makes of a model: forward, backward, and what goes from one to the other."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from mhc_compile import backend
from tests.nets.small import Results, compiled, gradients

WORK = frozenset(f"aten.{op}.default" for op in ("mm", "addmm", "bmm", "baddbmm", "convolution", "tanh", "_softmax"))


@dataclasses.dataclass(frozen=True)
class Parts:
    """The graphs, what one step computed, and the inputs of the forward (they live anyway)."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    results: Results
    plain_outputs: int

    def saved(self) -> list[Tensor]:
        """Example values of what the forward keeps for the backward, inputs left out."""
        outputs = self.forward.graph.find_nodes(op="output")[0].args[0][self.plain_outputs :]
        kept = dict.fromkeys(node for node in outputs if isinstance(node, fx.Node) and node.op != "placeholder")
        return [node.meta["val"] for node in kept if isinstance(node.meta["val"], Tensor)]

    def saved_bytes(self) -> int:
        return sum(value.nbytes for value in self.saved())

    def streams(self, n: int) -> int:
        """How many kept tensors are streams."""
        return sum(value.dim() > 2 and value.shape[-2] == n and value.shape[-1] != n for value in self.saved())

    def ops(self) -> tuple[Counter[str], Counter[str]]:
        """How often each op stands in the forward, and in the backward."""
        counts = (Counter(str(n.target) for n in gm.graph.nodes) for gm in (self.forward, self.backward))
        return next(counts), next(counts)


def parts(model: nn.Module, *args: Any, run: Any = None, decompose: bool = True, **options: Any) -> Parts:
    """Run one step of a model through the backend, partitioned as under Inductor but run op by op.

    `run` calls the compiled model; by default with the arguments. Its outputs' number is that of the first graph.
    """
    graphs: dict[str, fx.GraphModule] = {}

    def keep(name: str) -> Any:
        def compile_(gm: fx.GraphModule, _: Any) -> Any:
            graphs.setdefault(name, gm)
            return make_boxed_func(gm.forward)

        return compile_

    compiler = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table() if decompose else None,
    )
    torch._dynamo.reset()
    with mock.patch.object(backend, "lookup_backend", return_value=compiler):
        step = compiled(model, compiler="aot_eager", **options)
        out = step(*args) if run is None else run(step)
        grads = gradients(out, model.parameters())
    outputs = len(graphs["forward"].graph.find_nodes(op="output")[0].args[0]) - _kept(graphs)
    return Parts(graphs["forward"], graphs["backward"], (out, grads), outputs)


def _kept(graphs: dict[str, fx.GraphModule]) -> int:
    """Return how many inputs of the backward come from the forward."""
    inputs = graphs["backward"].graph.find_nodes(op="placeholder")
    return sum("tangents" not in node.name for node in inputs)
