"""Where streams pass from graph to graph: what stops them is told, and they hold no memory for longer than needed."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mhc_compile as mhc
from mhc_compile.errors import CarryError
from tests.nets.small import (
    Net,
    compile_blocks,
    compiled,
    gradients,
    inputs,
    made,
    perturb,
    upgraded,
)


def parts(layers: int = 3, **kwargs: Any) -> tuple[nn.Module, list[nn.Module], Tensor]:
    """A model with moved parameters that is compiled by blocks, these blocks, and what the first one is given."""
    model = upgraded(Net, layers, moved=True, **kwargs)
    compile_blocks(model, compiler="aot_eager")
    return model, list(model.get_submodule("blocks").children()), model.get_submodule("stem")(inputs())


# -- another order ----------------------------------------------------------------------------------------------------


@pytest.mark.core(1)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_the_start_of_a_region_refuses_streams(mode: Callable[[], Any]) -> None:
    _, blocks, x = parts()
    with mode():
        for repeated in (blocks[:1], blocks[:2]):
            y = x
            for block in repeated:
                y = block(y)
            with pytest.raises(
                CarryError,
                match=rf"'blocks\.0\.attn' starts streams, but its input carries those of site"
                rf" 'blocks\.{len(repeated) - 1}\.mlp', .* another order than upgrade saw.*x\.clone\(\)",
            ):
                blocks[0](y)
            blocks[0](y.clone())


def test_what_the_whole_model_returns_may_be_its_input_again() -> None:
    """The last block hands nothing on, so a model of blocks alone can be called on its own output."""
    _, blocks, x = parts()
    for _ in range(2):
        for block in blocks:
            x = block(x)
    assert not [name for name in vars(x) if "mhc" in name]


@pytest.mark.slow
def test_streams_of_another_model_are_none_of_its_own() -> None:
    """A model may read what another one has inside, and a copy is another one."""
    (_, teacher, x), (_, student, _) = parts(), parts()
    y = teacher[0](x)
    expected = student[0](y.clone())
    assert torch.equal(student[0](y), expected)
    torch._dynamo.reset()
    model, blocks, _ = parts()
    twin = list(copy.deepcopy(model).get_submodule("blocks").children())
    for block in twin:
        block.compile(backend="mhc", options={"compiler": "aot_eager"})
    twin[0](blocks[0](x))
    with pytest.raises(CarryError, match="starts streams"):
        twin[0](twin[0](x))


@pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")
def test_regions_that_were_planned_apart_start_anew() -> None:
    """Without upgrade each block is a region: it reads the sum of the one before, and starts streams with it."""
    model = made(Net, 3)
    expected = model(inputs())
    compile_blocks(model)
    for _ in range(3):
        torch.testing.assert_close(model(inputs()), expected)


# -- what a tensor may not meet on its way ----------------------------------------------------------------------------


CHANGES: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "requires_grad": (lambda x: x.detach().requires_grad_(), "its input has none"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()), "its input has none"),
    "dtype": (lambda x: x.double(), "its input has none"),
    "detach_": (lambda x: x.detach_(), "."),
}


@pytest.mark.core(1)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_between_blocks(change: tuple[Callable[[Tensor], Any], str]) -> None:
    _, blocks, x = parts()
    alter, text = change
    with pytest.raises(CarryError, match=rf"'blocks\.1\.attn' .*{text}.*Compile the whole model instead"):
        blocks[1](alter(blocks[0](x)))


@pytest.mark.slow
def test_hooks_without_gradients_are_nobody_s_business() -> None:
    """Such a hook aliases the tensor that carries streams only where there are gradients (see the next test)."""
    _, blocks, x = parts()
    expected = blocks[1](blocks[0](x))
    blocks[0].register_full_backward_hook(lambda *args: None)
    with torch.no_grad():
        assert torch.equal(blocks[1](blocks[0](x)), expected)


def test_reentrant_checkpoints() -> None:
    _, blocks, x = parts()
    with pytest.raises(CarryError, match=r"'blocks\.1\.attn' .* \(use_reentrant=False works\)"):
        checkpoint(blocks[1], checkpoint(blocks[0], x, use_reentrant=True), use_reentrant=True)


def test_saved_tensors_elsewhere() -> None:
    """Offloading around a checkpoint hands its second run a tensor that is made anew."""
    _, blocks, x = parts()
    with torch.autograd.graph.save_on_cpu():
        out = checkpoint(blocks[1], blocks[0](x), use_reentrant=False)
    with pytest.raises(CarryError, match=r"'blocks\.1\.attn' continues"):
        out.backward(torch.randn_like(out))


# -- memory -----------------------------------------------------------------------------------------------------------


def streams_of(x: Tensor) -> weakref.ref[Tensor]:
    (carried,) = [value for name, value in vars(x).items() if "mhc" in name]
    found: weakref.ref[Tensor] = carried.weak
    return found


def test_kept_hidden_states_without_gradients() -> None:
    """Whoever keeps the output of every block keeps that and nothing else."""
    _, blocks, x = parts()
    with torch.no_grad():
        hidden = [x, blocks[0](x)]
        first = streams_of(hidden[-1])
        assert first() is not None
        hidden.append(blocks[1](hidden[-1]))
        second = streams_of(hidden[-1])
        assert (first(), second() is not None) == (None, True)
        hidden.append(blocks[2](hidden[-1]))
    assert second() is None
    assert not [name for name in vars(hidden[-1]) if "mhc" in name]  # no site continues those of the last


def test_kept_hidden_states_with_gradients() -> None:
    """Autograd holds the streams until backward is through."""
    _, blocks, x = parts()
    hidden, streams = [x], []
    for block in blocks:
        hidden.append(block(hidden[-1]))
        streams += [streams_of(hidden[-1])] if block is not blocks[-1] else []
    assert all(each() is not None for each in streams)
    gradients(hidden[-1], blocks[0].parameters())
    gc.collect()
    assert [each() for each in streams] == [None, None]


def test_a_second_taker() -> None:
    """While autograd holds the streams, a block can run again on its input; afterwards this is an error."""
    _, blocks, x = parts()
    y = blocks[0](x)
    out = blocks[1](y)
    assert torch.equal(blocks[1](y), out)
    out.backward(torch.randn_like(out))
    del out
    with pytest.raises(CarryError, match=r"'blocks\.1\.attn' .* let go when 'blocks\.1\.attn' took them"):
        blocks[1](y)
    with torch.no_grad():
        y = blocks[0](x)
        blocks[1](y)
        with pytest.raises(CarryError, match=r"can take a tensor once\. Run the blocks before it again"):
            blocks[1](y)


class Fork(Net):
    """Two blocks continue the streams of the first one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        out: Tensor = self.head(self.blocks[1](x) + self.blocks[2](x))
        return out


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_two_takers_in_the_plan(mode: Callable[[], Any]) -> None:
    model = made(Fork, 3)
    for block in model.get_submodule("blocks").children():
        block.compile(backend="eager")  # so that upgrade sees the cuts
    report = mhc.upgrade(model, (inputs(),))
    perturb(model)
    whole = compiled(copy.deepcopy(model))
    compile_blocks(model)
    with mode():
        assert torch.equal(model(inputs()), model(inputs()))
        torch._dynamo.reset()
        torch.testing.assert_close(model(inputs()), whole(inputs()))
    assert report.sites


# -- connections that fall apart --------------------------------------------------------------------------------------


def test_what_stands_in_one_graph_is_not_cut() -> None:
    """The input of a graph is no tensor of another one, whatever the adds in between are."""

    class Midpoint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                k = self.f(x).tanh()
                x = x + 0.5 * (k + self.f(x + k).tanh())
            return x

    report = mhc.explain(Midpoint(), (torch.randn(2, 5, 8),))
    assert report.graphs == 1
    assert len(report.sites) == 3
    assert report.cuts == ()
