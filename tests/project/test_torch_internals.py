"""Private names of torch: only those on the list, each with a test, and facts about Dynamo that no other test needs."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from mhc_compile.capture.frames import traced_with
from mhc_compile.passes.graph import optable
from tests.project.torch_internals import USES, Use, files_with_test, found, parsed, private


def test_the_code_uses_what_is_listed_and_nothing_else() -> None:
    used = found(parsed())
    unlisted = {name: files for name, files in used.items() if name not in USES}
    assert not unlisted, f"give these an entry in USES (tests/project/torch_internals.py): {unlisted}"
    stale = USES.keys() - used.keys()
    assert not stale, f"nobody uses these any more, take them out of USES: {sorted(stale)}"


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_test_notices_a_change(use: Use) -> None:
    assert use.why
    assert files_with_test(use.test), f"there is no test function {use.test}"


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("from torch._dynamo import config", ["torch._dynamo.config"]),
        ("from torch._dynamo import config\nconfig.patch(x=1)", ["torch._dynamo.config"]),
        ("import torch\ntorch._C._autograd.f()", ["torch._C._autograd.f"]),
        ("import torch._inductor as i\ni.config", ["torch._inductor"]),
        ("import torch\nx = torch.ones(1)\nx._version", ["._version"]),
        ("class A(B):\n    def f(self):\n        self._own = 1\n        return self._own + self._theirs", ["._theirs"]),
        ("class A(B):\n    def _apply(self):\n        return super()._apply()", ["._apply"]),
        ("hasattr(x, '_dynamo_source') and x._dynamo_source", ["._dynamo_source", "._dynamo_source"]),
        ("OPS = 'relu _to_copy'.split()", ['"_to_copy"']),
        ("import torch\ntorch.nn.Module.__init__\nx._asdict()\nx._mhc_streams\n'a _text with a dot.'", []),
    ],
    ids=lambda value: value.splitlines()[-1] if isinstance(value, str) else "",
)
def test_private_names_are_seen(code: str, names: list[str]) -> None:
    assert list(private(ast.parse(code))) == names


class Small(nn.Module):
    """A parameter and a buffer; `reads` is what is done with them."""

    def __init__(self, reads: Callable[[Small, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.ones(3))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        return self.reads(self, x)


def graph_of(
    reads: Callable[[Any, Tensor], Tensor], look: Callable[[fx.GraphModule], None] = lambda gm: None
) -> fx.GraphModule:
    """The graph that Dynamo hands to a backend; `look` sees it while the backend runs."""
    seen: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        look(gm)
        seen.append(gm)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Small(reads), backend=backend)(torch.ones(2, 3))
    return seen[0]


def test_what_dynamo_says_of_inputs() -> None:
    examples: list[Any] = []

    def look(gm: fx.GraphModule) -> None:
        examples.extend(traced_with(node) for node in gm.graph.find_nodes(op="placeholder"))

    gm = graph_of(lambda self, x: x * self.weight * self.scale, look)
    inputs = gm.graph.find_nodes(op="placeholder")
    sources = [node._dynamo_source.name for node in inputs]
    assert len(sources) == 3
    assert [("'weight'" in name, "'scale'" in name) for name in sources].count((False, False)) == 1
    assert ["_buffers_" in node.name for node in inputs] == ["'scale'" in name for name in sources]
    assert len(examples) == 3
    assert all(isinstance(example, Tensor) for example in examples)


def test_what_dynamo_hangs_on_a_graph() -> None:
    gm: Any = graph_of(lambda self, x: x * self.weight)
    assert hasattr(gm, "_param_name_to_source")
    assert hasattr(gm, "_source_to_user_stacks")
    assert gm.compile_subgraph_reason.graph_break is False


def test_inference_mode_in_a_graph() -> None:
    def reads(self: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = x * self.weight
        return y + 1

    names = [optable.name(node) for node in graph_of(reads).graph.nodes if node.op == "call_function"]
    assert names == ["_enter_inference_mode", "mul", "_exit_inference_mode", "add"]


def test_what_dynamo_says_of_ops() -> None:
    (node,) = graph_of(lambda self, x: x.sin()).graph.find_nodes(op="call_method")
    assert {"example_value", "stack_trace"} <= node.meta.keys()
    assert 'File "' in node.meta["stack_trace"]
    assert ", line " in node.meta["stack_trace"]
