"""Hooks between blocks that are compiled one by one see the gradients that they would see in the plain model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nets.small import Net, compile_blocks, gradient_error, inputs, made, own_parameters, upgraded

Seen = list[Tensor]


def on_tensor(blocks: list[nn.Module], seen: Seen, scale: float) -> None:
    def change(grad: Tensor) -> Tensor:
        seen.append(grad)
        return grad * scale

    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        out.register_hook(change)

    blocks[0].register_forward_hook(torch.compiler.disable(hook))


def retained(blocks: list[nn.Module], seen: Seen, scale: float) -> None:
    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        out.retain_grad()
        out.register_hook(lambda grad: grad * scale)
        seen.append(out)

    blocks[0].register_forward_hook(torch.compiler.disable(hook))


def on_output(blocks: list[nn.Module], seen: Seen, scale: float) -> None:
    def change(module: nn.Module, outs: Any) -> Any:
        seen.append(outs[0])
        return (outs[0] * scale,)

    blocks[0].register_full_backward_pre_hook(change)


def on_input(blocks: list[nn.Module], seen: Seen, scale: float) -> None:
    def change(module: nn.Module, ins: Any, outs: Any) -> Any:
        seen.append(ins[0])
        return (ins[0] * scale,)

    blocks[1].register_full_backward_hook(change)


def trained_with(hook: Any, blocks: list[nn.Module], scale: float, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the hook saw, if any, and the gradients of the input and of every parameter."""
    seen: Seen = []
    if hook is not None:
        hook(blocks, seen, scale)
    x = x.detach().requires_grad_()
    out = blocks[1](blocks[0](x))
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(upstream)
    last = [each.grad if each.requires_grad and each.grad is not None else each for each in seen]
    return (last[-1] if last else x), [x.grad, *(p.grad for block in blocks for p in block.parameters())]  # type: ignore[list-item]  # all are there


@pytest.mark.core(2)
@pytest.mark.parametrize("hook", [on_tensor, retained, on_output, on_input])
def test_hooks_between_blocks_see_and_change_gradients(hook: Any, moved: bool) -> None:
    """At the start those of the plain model; moved, what a hook leaves alone is what it is without the hook."""
    model, scale = upgraded(Net, 2, moved=moved), 1.0 if moved else 3.0
    x = model.get_submodule("stem")(inputs())
    compile_blocks(model)
    blocks = list(model.get_submodule("blocks").children())
    theirs = copy.deepcopy(blocks) if moved else list(made(Net, 2).get_submodule("blocks").children())
    for block in theirs if moved else ():
        block.compile(backend="mhc", options={"compiler": "eager"})
    wanted_seen, expected = trained_with(None if moved else hook, theirs, scale, x)
    seen, found = trained_with(hook, blocks, scale, x)
    if not moved:
        torch.testing.assert_close(seen, wanted_seen, rtol=1e-4, atol=1e-5)
        own = own_parameters(model.get_submodule("blocks")).values()
        found = [found[0], *(p.grad for p in own if p.grad is not None)]
    assert gradient_error(found, expected) < 1e-4
