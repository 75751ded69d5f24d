"""Results lie as in the plain model where somebody can tell, and nothing is copied elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.small import compiled, perturb, relative
from tests.nets.structures import graph, ops, rewritten

Step = Callable[[Any, Tensor], Tensor]
SHAPE = (2, 4, 3, 5)


@torch.library.custom_op("mhc_tests::in_order", mutates_args=())
def in_order(x: Tensor) -> Tensor:
    """What a kernel does that takes it for granted how its input lies."""
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride()).clone()


@in_order.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


in_order.register_autograd(lambda ctx, grad: grad)


class Image(nn.Module):
    """Connections of a step between a first op and a last."""

    def __init__(self, step: Step, end: Step, channels_last: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.mixes = nn.ModuleList(nn.Linear(15, 15) for _ in range(2))
        self.step, self.end, self.channels_last = step, end, channels_last

    def forward(self, x: Tensor) -> Any:
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for i in range(2):
            self.conv, self.mix = self.convs[i], self.mixes[i]
            x = x + self.step(self, x)
        return self.end(self, x)


def conv(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.conv(x.relu())
    return out


def view_first(self: Any, x: Tensor) -> Tensor:
    return conv(self, x.view(*x.shape[:2], -1).view(x.shape))


def view_behind(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.mix(self.conv(x).view(*x.shape[:2], -1)).view(x.shape)
    return out


def strided(self: Any, x: Tensor) -> Tensor:
    return conv(self, torch.as_strided(x, x.shape, x.stride()))


def kernel(self: Any, x: Tensor) -> Tensor:
    out: Tensor = torch.ops.mhc_tests.in_order(self.conv(torch.ops.mhc_tests.in_order(x)))
    return out


def overwritten_through_a_view(self: Any, x: Tensor) -> Tensor:
    f = self.conv(x).relu()
    f.reshape(f.shape[0], -1).mul_(2.0)
    return f


def dropped(self: Any, x: Tensor) -> Tensor:
    return F.dropout(self.conv(x) * torch.rand_like(x), 0.5)


def noisy(self: Any, x: Tensor) -> Tensor:
    return conv(self, x + torch.empty_like(x).normal_())


def drop_nothing(self: Any, x: Tensor) -> Tensor:
    return F.dropout(F.dropout2d(self.conv(x), 0.5), 0.5, False)


ENDS: dict[str, Step] = {
    "itself": lambda _, x: x,
    "view": lambda _, x: x.view(x.shape[0], -1),
    "relu": lambda _, x: x.relu(),
    "permute": lambda _, x: x.permute(0, 2, 3, 1),
    "pool": lambda _, x: F.avg_pool2d(x, 2),
    "parts": lambda _, x: (x, x[:, 1:], x.flatten(1)),  # type: ignore[dict-item,return-value]  # several
}


@pytest.mark.core(1)
@pytest.mark.parametrize(
    ("step", "end", "channels_last", "dynamic"),
    [
        (conv, "itself", False, False),
        (conv, "itself", True, False),
        (conv, "permute", False, True),
        (view_first, "parts", False, False),
        (view_behind, "view", False, True),
        (strided, "relu", False, False),
        (strided, "pool", True, False),
        (kernel, "pool", False, False),
        (overwritten_through_a_view, "relu", False, False),
        (dropped, "itself", False, False),
        (dropped, "relu", True, True),
        (noisy, "itself", False, True),
    ],
)
def test_plain_strides(step: Step, end: str, channels_last: bool, dynamic: bool) -> None:
    """At the start, where values are the plain ones as well; outputs that share memory go on sharing it.

    What is drawn for each element is drawn in the order in which these lie.
    """
    model = Image(step, ENDS[end], channels_last)
    x = torch.randn(SHAPE)
    torch.manual_seed(0)
    plain = model(x)
    assert len(mhc.upgrade(model, (x,)).sites) == 2
    torch.manual_seed(0)
    made = torch.compile(model, backend="mhc", dynamic=dynamic, options={"compiler": "eager"})(x)
    pairs = list(zip(*(t if isinstance(t, tuple) else (t,) for t in (made, plain)), strict=True))
    assert [a.stride() for a, _ in pairs] == [b.stride() for _, b in pairs]
    assert all(relative(a, b) < 1e-5 for a, b in pairs)
    assert len({a.untyped_storage().data_ptr() for a, _ in pairs}) == 1


def test_moved_streams_reach_a_view_as_they_reach_a_reshape() -> None:
    def plainly(self: Any, x: Tensor) -> Tensor:
        out: Tensor = self.mix(self.conv(x).reshape(*x.shape[:2], -1)).reshape(x.shape)
        return out

    torch.manual_seed(0)
    viewed = Image(view_behind, ENDS["view"])
    x, found = torch.randn(SHAPE), []
    for step, end in ((view_behind, ENDS["view"]), (plainly, lambda _, x: x.reshape(x.shape[0], -1))):
        model = copy.deepcopy(viewed)
        model.step, model.end = step, end
        mhc.upgrade(model, (x,))
        perturb(model)
        found.append(compiled(model)(x))
    assert torch.equal(*found)


def copies(model: nn.Module, x: Tensor) -> int:
    return ops(rewritten(graph(model, x), streams=2)[0]).count("contiguous")


def test_nothing_is_copied_that_nobody_sees() -> None:
    class Tokens(nn.Module):
        def __init__(self, turned: bool) -> None:
            super().__init__()
            self.layers, self.turned = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), turned

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(0, 1) if self.turned else x
            for layer in self.layers:
                x = x + layer(x.view(x.shape)).view(x.shape)
            x = x.transpose(0, 1) if self.turned else x
            return x.view(x.shape[0], -1)

    x = torch.randn(2, 3, 8)
    assert copies(Tokens(turned=False), x) == 0
    assert copies(Tokens(turned=True), x) == 3  # for each view
    assert copies(Image(conv, lambda _, x: x.mean((2, 3))), torch.randn(SHAPE)) == 1  # the output's strides
    assert copies(Image(conv, lambda self, x: self.mix(x.flatten(2))), torch.randn(SHAPE)) == 0
    assert copies(Image(conv, ENDS["parts"]), torch.randn(SHAPE)) == 1
    assert copies(Image(view_behind, ENDS["parts"]), torch.randn(SHAPE)) == 3


class Flat(nn.Module):
    """As OPT's layers: tokens in one row for the MLP, and as they were behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for one, two in zip(self.one, self.two, strict=True):
            x = x + one(torch.tanh(x))
            shape = x.shape
            x = x.reshape(-1, x.size(-1))
            x = (x + two(torch.sin(x))).view(shape)
        return x


def test_views_with_sizes_that_vary() -> None:
    """One node holds all of them."""
    model, x = Flat(), torch.randn(3, 5, 8)
    assert [region.sites for region in mhc.upgrade(model, (x,), config=mhc.Config(streams=2)).regions] == [4]
    perturb(model)
    run = torch.compile(model, backend="mhc", dynamic=True, options={"compiler": "eager"})
    for given in (x, torch.randn(4, 7, 8)):
        assert relative(run(given), compiled(copy.deepcopy(model))(given)) < 1e-6
