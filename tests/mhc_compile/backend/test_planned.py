"""What a frame runs of planned models. What comes of it, end to end, is in tests/end_to_end/never_plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile.backend.planned import Planned
from mhc_compile.capture.frames import frame_root
from mhc_compile.capture.graphs import without_markers
from tests.nets.small import Net, inputs, made, upgraded


def seen(run: Callable[..., Any], *args: Any) -> list[Planned]:
    """What the frames of a run have to do with planned models."""
    found: list[Planned] = []

    def backend(gm: fx.GraphModule, _: Any) -> Any:
        found.append(Planned.of(gm, frame_root()))
        return without_markers(gm).forward

    torch._dynamo.reset()
    torch.compile(run, backend=backend)(*args)
    return found


def test_a_model_is_whole_in_its_own_frame_and_in_a_functions() -> None:
    model = upgraded()
    (own,) = seen(model, inputs())
    assert own.root is model
    assert own.whole
    assert own.any
    assert [*own.models] == [model]

    class Trainer:
        held = model

    def step(trainer: Any, x: Tensor) -> Tensor:
        return trainer.held(x) * 2

    (function,) = seen(step, Trainer(), inputs())
    assert function.root is None
    assert function.whole
    assert function.models == [model]


def test_a_part_is_not_whole() -> None:
    model = upgraded()
    (part,) = seen(model.get_submodule("blocks.0"), torch.randn(2, 16))
    assert not part.whole
    assert part.any
    assert part.models == []


def test_a_model_without_a_plan_is_none_of_ours() -> None:
    (plain,) = seen(made(), inputs())
    assert (plain.any, plain.whole, plain.models) == (False, False, [])


def test_a_disabled_model_is_left_alone() -> None:
    model = upgraded()
    with mhc.plain(model):
        (disabled,) = seen(model, inputs())
        assert not disabled.any
    assert disabled.any


def test_a_broken_forward_is_not_whole() -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            torch._dynamo.graph_break()
            out: Tensor = nn.Sequential(*self.blocks, self.head)(x)
            return out

    model = made(Broken)
    mhc.upgrade(model, (inputs(),))
    with mhc.plain(model):
        frames = seen(model, inputs())
    assert len(frames) > 1
    assert not any(frame.whole for frame in frames if frame.root is model)
