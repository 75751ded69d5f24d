"""Parts that small networks are made from, and how a structure states what must be found in it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile.api.report import Report
from mhc_compile.capture.model_run import run_captured
from mhc_compile.capture.owners import Stack
from mhc_compile.ops import connections
from mhc_compile.ops.connections import Maps, Start
from mhc_compile.passes import ANALYSIS, PIPELINE, Plan, Request, Results
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.runner import run

C = 8
Step = Callable[..., Tensor]


class Attention(nn.Module):
    """One head; the memory's keys and values where there is one, and a bias that is added to the scores."""

    def __init__(self, c: int = C) -> None:
        super().__init__()
        self.q, self.k, self.v = (
            nn.Linear(c, c),
            nn.Linear(c, c, bias=False),
            nn.Linear(c, c),
        )  # no softmax sees k's bias

    def forward(self, x: Tensor, memory: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        scores = self.q(x) @ self.k(memory).transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        return scores.softmax(-1) @ self.v(memory)


def mlp(c: int = C) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c))


class Layer(nn.Module):
    """What a structure's function is called with as `self`."""

    def __init__(self, step: Step, c: int = C) -> None:
        super().__init__()
        self.step = step
        self.norm, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(c) for _ in range(4))
        self.attn, self.cross, self.mlp, self.shared = Attention(c), Attention(c), mlp(c), mlp(c)
        self.proj, self.down, self.up = nn.Linear(c, c), nn.Linear(c, 2), nn.Linear(2, c)
        self.gamma = nn.Parameter(torch.full((c,), 0.5))
        self.drop = nn.Dropout(0.1)

    def forward(self, *args: Any) -> Any:
        return self.step(self, *args)


class Net(nn.Module):
    """A structure's layers, one after the other, and a head."""

    def __init__(self, step: Step, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(step) for _ in range(depth))
        self.head = nn.Linear(C, 3)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *more)
        return self.head(x)


def tokens(batch: int = 2, length: int = 5, c: int = C, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, length, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def explain(model: nn.Module, *args: Any, **options: Any) -> Report:
    return mhc.explain(model, args, config=mhc.Config(**options))


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a comment says of an add in its line: `# site <label> <adds> <kind>` or `# no <reason>`."""

    line: int
    words: tuple[str, ...]

    @property
    def site(self) -> tuple[str, int, str, int]:
        return self.words[1], int(self.words[2]), " ".join(self.words[3:]), self.line

    @property
    def times(self) -> int:
        """How many adds a rejected line holds, or runs: `# no <reason> <times>`."""
        return int(self.words[2]) if len(self.words) > 2 else 1


def marks(step: Step, word: str) -> list[Mark]:
    """The marks in the source of a function, in its order."""
    lines, first = inspect.getsourcelines(step)
    found = []
    for number, text in enumerate(lines, first):
        comment = text.partition("# ")[2]
        for part in comment.split(";"):
            words = tuple(part.split())
            if words[:1] == (word,):
                found.append(Mark(number, words))
    return found


# Upgrades and their check take three times as long, and find the same.
each_way = pytest.mark.parametrize(
    "ask", [pytest.param(mhc.explain, id="explain"), pytest.param(mhc.upgrade, id="upgrade", marks=pytest.mark.slow)]
)


def structures(names: dict[str, Any]) -> list[Step]:
    """The functions of a test module that are structures: those with marks."""
    here = [f for f in names.values() if inspect.isfunction(f) and f.__module__ == names["__name__"]]
    return [f for f in here if marks(f, "site") or marks(f, "no")]


def check_marks(step: Step, ask: Callable[..., Report], depth: int = 2) -> Report:
    """Explain or upgrade layers of a structure: exactly what its marks say is found; upgraded, they are the same."""
    torch.manual_seed(0)
    report = ask(Net(step, depth), (tokens(),))
    file, layers = inspect.getsourcefile(step), [f"layers.{i}" for i in range(depth)]
    found = [(s.name, s.adds, s.kind, s.axis, s.source) for s in report.sites]
    assert found == [
        (f"{layer}.{label}", adds, kind, -1, f"{file}:{line}")
        for layer in layers
        for label, adds, kind, line in (mark.site for mark in marks(step, "site"))
    ]
    rejected = Counter((r.owner, r.reason, r.source) for r in report.rejections)
    wanted = [mark for mark in marks(step, "no") for _ in range(mark.times)]
    assert rejected == Counter((layer, mark.words[1], f"{file}:{mark.line}") for layer in layers for mark in wanted)
    assert (report.max_error is not None) == (ask is mhc.upgrade and bool(found))
    assert report.max_error is None or report.max_error < 1e-5
    return report


def graph(model: nn.Module, *args: Any) -> fx.GraphModule:
    """Dynamo's graph of the model."""
    (captured,) = run_captured(model, args, {}).graphs
    return captured.gm


def request(
    *, devices: frozenset[str] = frozenset(), carries: bool = False, inline: bool = False, **options: Any
) -> Request:
    """What the backend asks of the passes for a graph of a model without a plan, with these options."""
    config = mhc.Config(**options)
    return Request(config=config, namer=Stack(), devices=devices, carries=carries, inline=inline)


def planned(**options: Any) -> Request:
    """What the backend asks for a graph of an upgraded model."""
    return dataclasses.replace(request(**options), planned=True)


def ops(gm: fx.GraphModule) -> list[str]:
    """The bare names of the ops of a graph, inputs and output left out."""
    return [optable.name(node) for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]


def reasons(report: Report) -> list[str]:
    return [rejection.reason for rejection in report.rejections]


def names(report: Report) -> list[str]:
    return [site.name for site in report.sites]


def marked(gm: fx.GraphModule, *, entry: bool | None = None, **options: Any) -> fx.GraphModule:
    """A copy of a plain graph with a marker for every site; its parameters are further inputs with random values.

    `entry` says of every site whether its region starts there; by default it does where the plan says so.
    """
    made, config = copy.deepcopy(gm), mhc.Config(**options)
    sites = run(ANALYSIS, made, request(**options))[Plan].sites
    maps = Maps(config.streams, config.projection, config.sinkhorn_iters)
    kind = connections.get(config.connection)
    width = kind.start_bias(Start(torch.ones(config.streams), torch.ones(config.streams), 0.1, 0), maps).numel()
    inputs: list[list[fx.Node]] = []
    continued = {site.predecessor for site in sites}
    for number, site in enumerate(sites):
        tensor = value(site.residual.total)
        assert tensor is not None
        c, n = tensor.shape[site.residual.axis], config.streams
        shapes = [kind.phi_shape(maps, c), (kind.gates(),), (width,), (width,)]
        if config.readout == "learned" and number not in continued:
            shapes += [(n * c, n), (1,), (n,), (n,)]
        inputs.append([_parameter(made.graph, f"site_{number}_{i}", shape) for i, shape in enumerate(shapes)])
    for site, parameters in zip(reversed(sites), reversed(inputs), strict=True):  # each goes in front of the others
        starts = entry if entry is not None else site.facts.starts
        mark(made, site.residual.label, parameters, site.residual.total, starts, str(site.residual.spot))
    return made


def mark(gm: fx.GraphModule, label: str, parameters: list[fx.Node], like: fx.Node, entry: bool, spot: str = "") -> None:
    """Put a marker behind the inputs, owned by the module that made a node."""
    with gm.graph.inserting_after(gm.graph.find_nodes(op="placeholder")[-1]):
        marker = gm.graph.call_function(torch.ops.mhc.site.default, (parameters, label, "{}", entry, spot))
    marker.meta = {"nn_module_stack": like.meta["nn_module_stack"]} if "nn_module_stack" in like.meta else {}


def rewritten(gm: fx.GraphModule, *, entry: bool | None = None, **asked: Any) -> tuple[fx.GraphModule, Results]:
    """A copy of a plain graph with every site rewritten by the pipeline, and what the passes returned."""
    options = {key: value for key, value in asked.items() if key not in ("devices", "carries", "inline")}
    made = marked(gm, entry=entry, **options)
    results = run(PIPELINE, made, planned(**asked))
    made.recompile()
    return made, results


def _parameter(graph: fx.Graph, name: str, shape: tuple[int, ...]) -> fx.Node:
    inputs = graph.find_nodes(op="placeholder")
    with graph.inserting_after(inputs[-1]):
        node = graph.placeholder(name)
    fake = next(v for v in map(value, inputs) if v is not None)  # of the mode that all of Dynamo's values are of
    node.meta["example_value"] = fake.detach().new_empty(shape, dtype=torch.float32)
    return node


def example_inputs(gm: fx.GraphModule) -> list[Tensor]:
    """Values for every input of a graph."""
    values = [node.meta["example_value"] for node in gm.graph.find_nodes(op="placeholder")]
    return [torch.randn(v.shape, generator=torch.Generator().manual_seed(i)) for i, v in enumerate(values)]


def found(model: nn.Module, *args: Any) -> Results:
    """What the analyses find in the graph of a model, its own modules named."""
    (captured,) = run_captured(model, args, {}).graphs
    asked = dataclasses.replace(request(), namer=Stack.of(model, captured.root))
    return run(ANALYSIS, captured.gm, asked)
