"""One small model through the pipeline, and its graph after every pass in a form that fits on a page.

`after` is the only function that knows how the pipeline is called.
"""

from __future__ import annotations

import itertools
import operator
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile.backend.rewriting import config_of_markers
from mhc_compile.capture.frames import frame_root
from mhc_compile.capture.graphs import copy_graph, without_markers
from mhc_compile.capture.owners import Stack
from mhc_compile.passes import PIPELINE, Findings, Plan, Request, Results
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.runner import run

TOKENS, WIDTH = 3, 16
COLUMN, WIDEST = 80, 104
PATH = re.compile(r"[a-z_]\w*(\.\w+)+")
SHARED = frozenset("n connection projection iters eps kernels spec".split())  # options: the same at all sites
NAMES = {  # of what ops make; where there are several results, fx calls them getitem, getitem_1, ...
    "coefficients": ("h_pre", "h_post", "h_res"),
    "enter": ("u", "h_post", "h_res"),
    "seam": ("X", "u", "h_post", "h_res"),
}
NAME = {"expand": "X", "write": "X", "read": "u", "layer_norm": "v", "linear": "f", "add": "x"}
NAME |= dict.fromkeys(("readout", "leave", "leave_in_block"), "y")


class Pair(nn.Module):
    """The model of docs/architecture.md: two residual connections, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class State(NamedTuple):
    """A graph, and what the passes that have run returned."""

    gm: fx.GraphModule
    results: Results


def after(graph: fx.GraphModule, passes: int, kernels: bool) -> State:
    """Run the first passes of the pipeline on a copy of Dynamo's graph; called while Dynamo compiles its frame."""
    config = config_of_markers(graph, {"recompute": 2})
    assert config is not None  # the model is upgraded
    made = copy_graph(graph)
    devices = frozenset(("cpu",)) if kernels else frozenset[str]()
    request = Request(config=config, namer=Stack.of(frame_root()), devices=devices)
    return State(made, run(PIPELINE[:passes], made, request))


def in_dynamo(see: Callable[[fx.GraphModule], None]) -> None:
    """Compile the upgraded model and let `see` have its graph."""
    torch._dynamo.reset()
    model = Pair()
    x = torch.randn(2, TOKENS, WIDTH)
    mhc.upgrade(model, (x,))

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        see(gm)
        return without_markers(gm).forward

    torch.compile(model, backend=backend)(x)
    torch._dynamo.reset()


def captured() -> list[str]:
    """Return the graph as the backend is given it."""
    found: list[str] = []
    in_dynamo(lambda gm: found.extend(lines(copy_graph(gm))))
    return found


def after_pass(name: str, kernels: bool = False) -> list[str]:
    """Return the listing of the graph after a pass, where generated kernels run or where none do."""
    return of_state(lambda state: lines(state.gm), name, kernels)


def found_residuals() -> list[str]:
    """Return what find-residuals found, a line for each connection."""

    def told(state: State) -> list[str]:
        names = named(state.gm)
        return [
            f"{each.name}: {each.kind}, {names[each.total]} = {names[each.carrier]}"
            f" + {' + '.join(names[branch] for branch in each.branches)}, features on axis {each.axis}"
            for each in state.results[Findings].residuals
        ]

    return of_state(told, "find-residuals")


def planned_sites() -> list[str]:
    """Return what plan-streams planned, a line for each site."""

    def told(state: State) -> list[str]:
        sites = state.results[Plan].sites
        before = [None if each.predecessor is None else sites[each.predecessor].residual.name for each in sites]
        return [
            f"{each.residual.name}: region {each.region}, continues the streams of {name}, lifts {list(each.lifts)}"
            for each, name in zip(sites, before, strict=True)
        ]

    return of_state(told, "plan-streams")


def of_state(told: Callable[[State], list[str]], name: str, kernels: bool = False) -> list[str]:
    """Return what is told of the graph and the results after a pass."""
    number = [step.name for step in PIPELINE].index(name) + 1
    found: list[str] = []
    in_dynamo(lambda gm: found.extend(told(after(gm, number, kernels))))
    return found


def lines(gm: fx.GraphModule) -> list[str]:
    """Return a graph's ops, a line each; inputs and the picking of results are no lines of their own."""
    names = named(gm)
    rows: list[tuple[str, str]] = []
    for node in gm.graph.nodes:
        if node.op == "output":
            rows.append((f"return {_text(node.args[0][0], names)}", ""))
        elif node.op != "placeholder" and node in names and node.target is not operator.getitem:
            parts = _parts(node)
            left = ", ".join(names[part] for part in parts)
            rows.append((f"{left} = {_call(node, names)}" if node.users else _call(node, names), _about(parts)))
    return _aligned(rows)


def named(gm: fx.GraphModule) -> dict[fx.Node, str]:
    """Return a name for every node: the model's for its parameters, short ones for what ops make."""
    names: dict[fx.Node, str] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            names[node] = _input(node)
        elif node.op != "output" and node not in names:
            parts = _parts(node)
            known = NAMES.get(_op(node), ())
            names[node] = ""
            for part in parts:
                wanted = known[part.args[1]] if part is not node else NAME.get(_op(node), _op(node))  # type: ignore[index]  # getitem's
                names[part] = _fresh(wanted, set(names.values()))
    return names


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Put comments in one column, and break what is too long behind a comma."""
    width = max(len(code) for code, _ in rows if len(code) <= COLUMN)
    found: list[str] = []
    for code, about in rows:
        *first, last = textwrap.wrap(code, WIDEST, subsequent_indent="    ", break_long_words=False)
        found += [*first, f"{last.ljust(width)}  # {about}" if about else last]
    return found


def _input(node: fx.Node) -> str:
    """Return the name that a parameter has in the model; the model's argument is x."""
    source = getattr(node, "_dynamo_source", None)
    steps = re.findall(r"'(\w+)'", source.name if source is not None else "")
    path = [step for step in steps if step not in ("self", "args")]
    return ".".join(path) or "x"


def _parts(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that pick an op's results, in their order; the op itself where it makes one."""
    known = NAMES.get(_op(node))
    if known is None:
        return [node]
    users: list[Any] = list(node.users)  # getitems
    return sorted(users, key=lambda user: user.args[1])


def _fresh(name: str, taken: set[str]) -> str:
    return next(each for i in itertools.count() if (each := f"{name}_{i}" if i else name) not in taken)


def _op(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).removesuffix(".default")


def _call(node: fx.Node, names: dict[fx.Node, str]) -> str:
    if node.target is operator.add:
        a, b = (_text(arg, names) for arg in node.args)
        return f"{a} + {b}"
    schema = getattr(node.target, "_schema", None)
    args = [_text(arg, names) for arg in node.args]
    if schema is not None:
        args = _by_name([argument.name for argument in schema.arguments], node.args, args)
    return f"{_op(node)}({', '.join(_merged(args))})"


def _by_name(names: Sequence[str], given: Sequence[Any], args: Sequence[str]) -> list[str]:
    """Write options of our ops with their names; leave out those that say "nothing" and those all sites share."""
    found = []
    for name, value_, text in zip(names, given, args, strict=False):
        if isinstance(value_, (fx.Node, list)):
            found.append(text if isinstance(value_, fx.Node) else f"{name}={text}")
        elif name not in SHARED and value_ not in (None, False) and (name, value_) != ("multiplier", 1.0):
            found.append(f"{name}={text}")
    return found


def _merged(args: Sequence[str]) -> Iterable[str]:
    """Write parameters of one module that stand in a row as `module.*`."""
    for path, group in itertools.groupby(args, lambda arg: arg.rpartition(".")[0] if PATH.fullmatch(arg) else ""):
        members = list(group)
        yield from [f"{path}.*"] if path and len(members) > 1 else members


def _text(arg: Any, names: dict[fx.Node, str]) -> str:
    if isinstance(arg, fx.Node):
        return names.get(arg, arg.name)
    if isinstance(arg, (list, tuple)):
        inside = ", ".join(_merged([_text(each, names) for each in arg]))
        return f"[{inside}]"
    return repr(arg)


def _about(parts: Sequence[fx.Node]) -> str:
    """Say the shape of what an op makes first, and how the partitioner is told to treat it."""
    tensor = value(parts[0]) if parts else None
    shape = "x".join(str(int(size)) for size in tensor.shape) if tensor is not None else ""
    tags = checkpoints.tags(parts[0]) if parts else {}
    return f"{shape}, {tags['recompute'].name}" if "recompute" in tags else shape
