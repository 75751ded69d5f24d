from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mhc_compile.backend.carry import Port, attach_streams, connect_graphs, take_streams
from mhc_compile.config import Config
from mhc_compile.errors import CarryError
from mhc_compile.model.plan_text import PlanText
from mhc_compile.model.sites import Flow, SiteModule
from mhc_compile.model.start_values import Place


def carrier(grad: bool = True) -> tuple[Tensor, Tensor]:
    """A tensor as a compiled block returns it, and its streams."""
    leaf = torch.randn(2, 3, requires_grad=grad)
    tensor, streams = leaf * 1, torch.stack([leaf, leaf], -2)
    attach_streams(tensor, streams)
    return tensor, streams


@pytest.mark.parametrize("grad", [True, False])
def test_what_is_attached_can_be_taken_again_and_again(grad: bool) -> None:
    tensor, streams = carrier(grad)
    assert take_streams(tensor, "mlp") is streams
    assert take_streams(tensor, "mlp") is streams


def test_a_tensor_that_carries_nothing() -> None:
    with pytest.raises(CarryError, match=r"'layers\.1\.mlp' continues .* has none\. .*Compile the whole model instead"):
        take_streams(torch.randn(2), "layers.1.mlp")


CHANGES = [
    pytest.param(lambda t: t.add_(1), id="t.add_(1)"),
    pytest.param(lambda t: t[0].zero_(), id="t[0].zero_()"),
    pytest.param(lambda t: t.view(-1).mul_(2), id="t.view(-1).mul_(2)"),
    pytest.param(lambda t: t.relu_(), id="t.relu_()"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("grad", [True, False])
def test_an_in_place_change_is_noticed(change: Callable[[Tensor], Any], grad: bool) -> None:
    tensor, _ = carrier(grad)
    change(tensor)
    with pytest.raises(CarryError, match=r"'mlp' was changed in place .*Config\(split=\.\.\.\)"):
        take_streams(tensor, "mlp")


def test_a_change_without_grad_mode_is_noticed() -> None:
    tensor, _ = carrier()
    with torch.no_grad():
        tensor.mul_(2)
    with pytest.raises(CarryError, match="changed in place"):
        take_streams(tensor, "mlp")


def test_a_change_of_what_shares_the_storage_is_noticed() -> None:
    tensor, _ = carrier(grad=False)
    tensor.detach().add_(1)
    with pytest.raises(CarryError, match="changed in place"):
        take_streams(tensor, "mlp")


MADE_ANEW = [
    torch.Tensor.detach,
    torch.Tensor.clone,
    pytest.param(lambda t: t.view(3, 2), id="t.view(3, 2)"),
    pytest.param(lambda t: t.transpose(0, 1), id="t.transpose(0, 1)"),
    pytest.param(lambda t: t + 0, id="t + 0"),
    pytest.param(lambda t: t.to(torch.bfloat16), id="t.to(bfloat16)"),
]


@pytest.mark.parametrize("make", MADE_ANEW)
@pytest.mark.parametrize("grad", [True, False])
def test_a_tensor_made_of_a_carrier_carries_nothing(make: Callable[[Tensor], Tensor], grad: bool) -> None:
    tensor, streams = carrier(grad)
    with pytest.raises(CarryError, match="has none"):
        take_streams(make(tensor), "mlp")
    assert take_streams(tensor, "mlp") is streams


def test_detaching_in_place_is_noticed() -> None:
    tensor, _ = carrier()
    tensor.detach_()
    with pytest.raises(CarryError):
        take_streams(tensor, "mlp")


def test_non_reentrant_checkpointing_hands_streams_on() -> None:
    tensor, streams = carrier()
    seen: list[bool] = []

    def block(x: Tensor) -> Tensor:
        seen.append(take_streams(x, "mlp") is streams)
        return x.sin()

    checkpoint(block, tensor, use_reentrant=False).sum().backward()
    assert seen == [True, True]


def test_reentrant_checkpointing_is_refused() -> None:
    tensor, _ = carrier()

    def block(x: Tensor) -> Tensor:
        take_streams(x, "mlp")
        return x.sin()

    with pytest.raises(CarryError, match="no reentrant checkpointing"):
        checkpoint(block, tensor, use_reentrant=True).sum().backward()


def test_streams_live_as_long_as_their_tensor() -> None:
    tensor, streams = carrier()
    alive = weakref.ref(streams)
    del streams
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None


# -- compiled code ----------------------------------------------------------------------------------------------------


def test_a_hook_sees_the_sum_over_the_streams_wherever_features_are() -> None:
    leaf = torch.randn(2, 3, 5, requires_grad=True)
    own = torch.randn(2, 5, 4, 3, requires_grad=True)
    tensor, upstream = leaf * 1, torch.randn(2, 5, 4, 3)
    attach_streams(tensor, own * 1, axis=-2)
    seen: list[Tensor] = []
    tensor.register_hook(seen.append)
    take_streams(tensor, "mlp").backward(upstream)
    torch.testing.assert_close(seen, [upstream.sum(-2).movedim(-1, -2)])
    assert own.grad is not None
    torch.testing.assert_close(own.grad + upstream.mean(-2, keepdim=True), upstream)


def test_a_hook_behind_an_op_that_is_not_linear_is_refused() -> None:
    tensor = torch.randn(2, 3, requires_grad=True).tanh()
    attach_streams(tensor, torch.randn(2, 4, 3), lifted=True)
    tensor.register_hook(lambda grad: grad)
    with pytest.raises(CarryError, match=r"gradient hook or retain_grad\(\), but .* an op that is not linear"):
        take_streams(tensor, "mlp")


def test_connect_leaves_code_alone_that_hands_nothing_on() -> None:
    def compiled(x: Tensor) -> list[Tensor]:
        return [x]

    assert connect_graphs(compiled, [], []) is compiled


def first(x: Tensor) -> Sequence[Tensor]:
    """As a compiled graph: two outputs and the streams of the second."""
    return x + 1, x + 2, torch.stack([x, x + 4], -2)


def second(scale: Tensor, x: Tensor, streams: Tensor) -> Sequence[Tensor]:
    """As a compiled graph: the streams of its input at index 1 come last."""
    return (scale * streams.mean(-2) + x,)


def test_connect_carries_from_code_to_code_with_every_gradient() -> None:
    x, scale = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    outputs = connect_graphs(first, [], [Port(1, "attn", 0)])(x)
    assert len(outputs) == 2
    (found,) = connect_graphs(second, [Port(1, "mlp", 0)], [])(scale, outputs[1])
    expected = scale * (x + 2) + x + 2
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(3)
    for actual, wanted in zip(
        torch.autograd.grad(found, (x, scale), upstream),
        torch.autograd.grad(expected, (x, scale), upstream),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)


def test_connect_takes_and_gives() -> None:
    def middle(x: Tensor, streams: Tensor) -> Sequence[Tensor]:
        return x * 2, streams * 2

    x = torch.randn(3)
    outputs = connect_graphs(middle, [Port(0, "attn", 0)], [Port(0, "mlp", 0)])(
        connect_graphs(first, [], [Port(1, "attn", 0)])(x)[1]
    )
    torch.testing.assert_close(take_streams(outputs[0], "mlp"), 2 * torch.stack([x, x + 4], -2))


def test_connect_names_the_site_that_misses_its_streams() -> None:
    x, scale = torch.randn(3), torch.randn(3)
    with pytest.raises(CarryError, match=r"site 'layers\.2\.mlp' continues"):
        connect_graphs(second, [Port(1, "layers.2.mlp", 0)], [])(scale, x)


@pytest.mark.parametrize("axis", [-1, -2])
def test_connect_starts_streams_where_the_site_that_runs_does(axis: int) -> None:
    """Equal layers share code, and the phi that is given tells which of them runs."""

    def code(phi: Tensor, x: Tensor, streams: Tensor) -> Sequence[Tensor]:
        return x, streams * torch.arange(1.0, 4.0).unsqueeze(-1)

    def site(entry: bool) -> SiteModule:
        made = SiteModule("layers.0.mlp", "mlp", Place(0, 2), 5, Config(streams=3), entry=entry)
        made.flow = Flow(plan, starts=entry)
        return made

    plan, run = PlanText("{}"), connect_graphs(code, [Port(1, "mlp", 0, axis)], [Port(0, "mlp", 0, axis)], n=3)
    start, later = site(entry=True), site(entry=False)
    x = torch.randn(2, 4, 5).movedim(-1, axis).requires_grad_()
    (out,) = run(start.phi, x * 1)
    streams, last = take_streams(out, "mlp", 3), x.movedim(axis, -1)
    torch.testing.assert_close(streams, torch.stack([last, 2 * last, 3 * last], -2))
    upstream = torch.randn(2, 4, 3, 5)
    (found,) = torch.autograd.grad(streams, x, upstream)
    expected = upstream[..., 0, :] + 2 * upstream[..., 1, :] + 3 * upstream[..., 2, :]
    torch.testing.assert_close(found.movedim(axis, -1), expected)
    (further,) = run(later.phi, out)
    torch.testing.assert_close(take_streams(further, "mlp")[..., 2, :], 9 * last)
    with pytest.raises(CarryError, match=r"site 'layers\.0\.mlp' starts streams, but its input carries those"):
        run(start.phi, out)
    with torch.no_grad(), pytest.raises(CarryError, match="its input has none"):
        run(later.phi, x * 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_connect_carries_without_gradients(mode: Callable[[], Any]) -> None:
    x, scale = torch.randn(3), torch.randn(3)
    with mode():
        outputs = connect_graphs(first, [], [Port(1, "attn", 0)])(x * 1)
        (found,) = connect_graphs(second, [Port(1, "mlp", 0)], [])(scale, outputs[1])
    torch.testing.assert_close(found, scale * (x + 2) + x + 2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_connect_notices_changes_without_gradients(mode: Callable[[], Any]) -> None:
    """Tensors made in inference mode have no version counter."""
    with mode():
        output = connect_graphs(first, [], [Port(1, "attn", 0)])(torch.randn(3))[1]
        output[0] = 3
        with pytest.raises(CarryError, match="changed in place"):
            connect_graphs(second, [Port(1, "mlp", 0)], [])(torch.randn(3), output)
