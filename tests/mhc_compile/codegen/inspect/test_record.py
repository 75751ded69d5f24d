from __future__ import annotations

import pytest
import torch

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect.record import arguments, layouts, record, recording
from mhc_compile.codegen.runtime import build

SEAM = Spec("seam", 4, 96, "bf16", "fp32", norm="layer", weight=True, shift=True, scale=True)


def test_launches_are_noted_in_order_with_their_arguments() -> None:
    module = build.load(generate(SEAM), SEAM.name)
    project, read = record(module, SEAM, "forward", tokens=100)
    assert (project.name, read.name) == ("project", "read")
    tiles = module.TILES["project"]
    assert project.grid == (-(-100 // tiles["BT"]), tiles["SPLITS"])
    assert project.arguments["T"] == 100
    assert project.arguments["BC"] == tiles["BC"]
    assert project.options == {name: tiles[name] for name in ("num_warps", "num_stages") if name in tiles}
    assert project.tensors["x"].shape == (100, 4, 96)
    assert project.tensors["f"].dtype == torch.float32
    assert project.tensors["new"] is read.tensors["new"]  # what one writes, the other reads
    assert project.tensors["x"].device.type == "meta"
    assert "T" not in project.tensors


def test_the_backward_has_three_launches() -> None:
    module = build.load(generate(SEAM), SEAM.name)
    assert [launch.name for launch in record(module, SEAM, "backward", 5)] == ["coefs", "streams", "reduce"]


def test_no_tokens_launch_nothing() -> None:
    assert record(build.load(generate(SEAM), SEAM.name), SEAM, "forward", 0) == []


def test_kernels_are_themselves_afterwards() -> None:
    module = build.load(generate(SEAM), SEAM.name)
    with recording(module):
        assert "run" in vars(module.project)
    assert "run" not in vars(module.project)


def test_a_grid_may_be_a_function_of_the_arguments() -> None:
    text = """
import triton
import triton.language as tl


@triton.jit
def fill(out, T, BT: tl.constexpr = 8):
    tl.store(out + tl.arange(0, BT), 1.0)


def forward(x):
    fill[lambda given: (given["T"] // given["BT"], 2)](x, T=64, num_warps=1)
"""
    (launch,) = record(build.load(text, "toy"), SEAM, "forward", 3)
    assert launch.grid == (8, 2)
    assert launch.arguments["BT"] == 8
    assert launch.options == {"num_warps": 1}


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "streams"])
@pytest.mark.parametrize("op", ["enter", "seam", "leave", "coefficients"])
def test_arguments_fit_every_generated_function(op: str, equal: bool) -> None:
    """A name or shape that a generated function does not take would fail, or launch on another number of tokens."""
    spec = Spec(op, 3, 40, "fp16", "fp16", equal_streams=equal, projection="identity" if equal else "sinkhorn")
    module = build.load(generate(spec), spec.name)
    for direction in ("forward", "backward"):
        launches = record(module, spec, direction, 7)
        assert launches
        assert all(launch.arguments["T"] == 7 for launch in launches)


def test_made_up_numbers_are_the_same_each_time_and_tame() -> None:
    def forward(x: object, phi: object, rstd: object, tiles: object = None) -> None: ...

    one, two = (arguments(forward, SEAM, 16) for _ in range(2))
    assert list(one) == ["x", "phi", "rstd"]
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(one[name].shape == layouts(SEAM, 16)[name][0] for name in one)
    assert (one["x"].float().flatten(1) @ one["phi"]).std() < 2
    assert (one["rstd"] > 0).all()


def test_a_parameter_that_nobody_knows_is_an_error() -> None:
    def forward(y_hat: object) -> None: ...

    with pytest.raises(KeyError, match="y_hat"):
        arguments(forward, SEAM, 16)
