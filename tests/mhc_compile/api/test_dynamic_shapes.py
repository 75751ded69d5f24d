"""dynamic_shapes: an exported graph serves other sizes; what does not fit its arguments is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import mhc_compile as mhc
from mhc_compile.errors import CaptureError, ConfigError
from tests.nets.small import Block, compiled, gradient_error, inputs, perturb, relative, upgraded


def pulled(run: Any, x: Tensor, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    out = run(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return [out, *torch.autograd.grad(out, list(parameters.values()), upstream)]


@pytest.mark.core(1)
@pytest.mark.parametrize(
    "shapes",
    [
        {"x": {0: Dim("batch"), 1: Dim("length", max=64)}},
        ({0: Dim.DYNAMIC, -2: Dim.AUTO},),
        {"x": (Dim("batch", min=2), Dim.DYNAMIC, None)},
    ],
    ids=["named", "hints", "by position"],
)
def test_other_sizes(shapes: Any) -> None:
    """Values and gradients, with parameters that mix; the graph goes through torch.export with the same words."""
    model, x = upgraded(moved=True), inputs(4, 5)
    graph = mhc.export(model, (x,), dynamic_shapes=shapes)
    assert not hasattr(x, "_dynamo_dynamic_indices")
    theirs = dict(model.named_parameters())
    ours = {name: graph.get_parameter(name) for name in theirs}
    for size in ((7, 3), (2, 9)):
        found, expected = pulled(graph, inputs(*size), ours), pulled(compiled(model), inputs(*size), theirs)
        assert relative(found[0], expected[0]) < 1e-5
        assert gradient_error(found[1:], expected[1:]) < 1e-5
    if -2 not in (shapes[0] if isinstance(shapes, tuple) else ()):
        program = torch.export.export(graph, (x,), dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(inputs(7, 3)), graph(inputs(7, 3)))


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Nested(nn.Module):
    """Tensors inside of structures."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8))

    def forward(self, pair: Pair, *rest: Tensor, named: dict[str, list[Tensor]]) -> Tensor:
        out: Tensor = self.blocks(pair.left + named["a"][0]) + pair.right + sum(rest)
        return out


def call(size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(size)
    left, right, rest, named = (torch.randn(size, 8, generator=generator) for _ in range(4))
    return (Pair(left, right), rest), {"named": {"a": [named], "b": []}}


def test_structures() -> None:
    model = Nested()
    mhc.upgrade(model, *call(4))
    perturb(model)
    size = {0: Dim.DYNAMIC}
    args, kwargs = call(4)
    graph = mhc.export(
        model, args, kwargs, dynamic_shapes={"pair": (size, size), "arg_1": size, "named": {"a": [size]}}
    )
    args, kwargs = call(6)
    assert relative(graph(*args, **kwargs), compiled(model)(*args, **kwargs)) < 1e-5


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"y": {}}, "names 'y', which is no argument of this call; there are x"),
        (({}, {}), "has 2 entries for 1 arguments"),
        ({"x": {5: Dim("b")}}, r"for a tensor with 3 dimensions give a dict such as \{0: torch.export.Dim"),
        ({"x": [Dim("b")] * 4}, "for a tensor with 3 dimensions"),
        ({"x": {0: "batch"}}, "of x, dimension 0 is 'batch', not a torch.export.Dim"),
        (7, "must be a dict from names of arguments, or a tuple, not 7"),
    ],
    ids=["name", "too many", "dimension", "dimensions", "size", "nothing of the kind"],
)
def test_what_does_not_fit(shapes: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mhc.export(upgraded(), (inputs(),), dynamic_shapes=shapes)


def test_a_structure_that_does_not_fit() -> None:
    model = Nested()
    args, kwargs = call(4)
    mhc.upgrade(model, args, kwargs)
    with pytest.raises(
        ConfigError, match=r"of named\['a'\] is \{0: .*, which fits no list; nest it as the argument is"
    ):
        mhc.export(model, args, kwargs, dynamic_shapes={"named": {"a": {0: Dim.DYNAMIC}}})


class Fixed(nn.Module):
    """Its batch is of three."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x).reshape(3, 8)
        return out


def test_a_size_that_the_model_fixes() -> None:
    model, x = Fixed(), torch.randn(3, 8)
    mhc.upgrade(model, (x,))
    with pytest.raises(CaptureError, match="the model fixes a size that dynamic_shapes frees; leave it out, or give"):
        mhc.export(model, (x,), dynamic_shapes={"x": {0: Dim("batch")}})
    assert mhc.export(model, (x,), dynamic_shapes={"x": {0: Dim.AUTO}})(x).shape == (3, 8)


LOADS = """
import sys

sys.modules["mhc_compile"] = None  # cannot be imported
import torch
import transformers.modeling_outputs  # what is returned is an output of its

package = torch._inductor.aoti_load_package(sys.argv[1])
torch.save([package(ids) for ids in torch.load(sys.argv[2])], sys.argv[3])
"""


@pytest.mark.slow
def test_a_language_model_is_packaged_and_runs_without_this_package(tmp_path: Path) -> None:
    """Prompts of any number and length, in AOTInductor's code, in a process that has no mhc_compile."""
    hf = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=64, use_cache=False, **shape)).eval()
    ids = torch.randint(64, (2, 7))
    mhc.upgrade(model, (ids,))
    perturb(model)
    shapes = {"input_ids": {0: Dim("batch"), 1: Dim("length")}}
    with torch.no_grad():
        graph = mhc.export(model, (ids,), dynamic_shapes=shapes)
        program = torch.export.export(graph, (ids,), dynamic_shapes=shapes)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        prompts = [torch.randint(64, size) for size in ((2, 7), (5, 3), (2, 20))]
        torch.save(prompts, tmp_path / "prompts.pt")
        command = [sys.executable, "-c", LOADS, package, str(tmp_path / "prompts.pt"), str(tmp_path / "found.pt")]
        subprocess.run(command, check=True, cwd=tmp_path)
        for prompt, found in zip(prompts, torch.load(tmp_path / "found.pt", weights_only=False), strict=True):
            logits = found if isinstance(found, Tensor) else found["logits"]
            assert relative(logits, compiled(model)(prompt).logits) < 1e-5
