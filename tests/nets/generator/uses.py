"""What people do with an upgraded network: the same is done with the one that is written by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mhc_compile as mhc
from tests.nets.generator.families.calls import Tied
from tests.nets.generator.network import Net
from tests.nets.streams import Part

Step = Callable[..., tuple[Tensor, ...]]


def _nothing(net: Net) -> None:
    pass


def _itself(net: Net) -> Step:
    return net


@dataclasses.dataclass(frozen=True)
class Use:
    """A change to the network, a function to compile, and how it is called.

    Attributes:
        change: made to either network after the first call.
        step: what is compiled.
        mode: the mode in which it is called; without gradients unless it is `enable_grad`.
        longer: how many tokens more than planned, or None for one token.
        refuses: whether an error of ours is right too.
        calls: how often it is called; the last call counts.
        fresh: whether Dynamo has forgotten the first call: it takes no notice of some changes.
        compiled: whether it is compiled by the user, with sizes that vary if `dynamic`; or compiles itself.
    """

    change: Callable[[Net], None] = _nothing
    step: Callable[[Net], Step] = _itself
    mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.enable_grad
    longer: int | None = 0
    refuses: bool = False
    calls: int = 1
    fresh: bool = False
    compiled: bool = True
    dynamic: bool | None = None


def _twice(net: Net) -> Step:
    def step(x: Tensor) -> tuple[Tensor, ...]:
        return (*net(x), *net(2 * x))

    return step


def _inside(net: Net) -> Step:
    def step(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            target = net(x)[0]
        made, note = net(x)
        return (made - target) ** 2, note

    return step


def _frozen(net: Net) -> None:
    net.requires_grad_(False)


def _other_mode(net: Net) -> None:
    net.train(not net.training)


def _leave_out(*numbers: int) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.left_out = frozenset(n % len(net.pieces) for n in numbers)

    return change


def _exit(net: Net) -> None:
    net.depth = len(net.pieces) - 1


def _iterate(more: int) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        for module in net.modules():
            if isinstance(module, Tied):
                module.times += more

    return change


def _patch(*numbers: int) -> Callable[[Net], None]:
    """Put the forward of a piece's own class on the instance, as kernel libraries do."""

    def change(net: Net) -> None:
        if net.hand is not None:
            return
        for n in numbers:
            piece = net.pieces[n % len(net.pieces)]
            cls = next(c for c in type(piece).__mro__ if c.__module__.startswith("tests."))
            piece.forward = types.MethodType(cls.forward, piece)  # type: ignore[attr-defined]  # every Part has one

    return change


def _hooked(pieces_only: bool) -> Callable[[Net], None]:
    """Have a hook, where Dynamo breaks, at each module that is called."""

    def change(net: Net) -> None:
        for module in [*net.pieces] if pieces_only else [*net.modules()][1:]:
            module.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))

    return change


def _remove(net: Net) -> None:
    if any(".mhc." in name for name in net.state_dict()):
        mhc.remove(net, force=True)
    for module in net.modules():
        if isinstance(module, Part):
            module.hand = None


USES: dict[str, Use] = {
    "again": Use(),
    "twice in one function": Use(step=_twice, refuses=True),
    "target without gradients": Use(step=_inside, refuses=True),
    "no_grad": Use(mode=torch.no_grad),
    "inference mode": Use(mode=torch.inference_mode),
    "frozen": Use(change=_frozen),
    "frozen, no_grad": Use(change=_frozen, mode=torch.no_grad),
    "other mode": Use(change=_other_mode),
    "other mode, no_grad": Use(change=_other_mode, mode=torch.no_grad),
    "longer": Use(longer=3),
    "one token": Use(longer=None),
    "sizes vary": Use(longer=3, dynamic=True, fresh=True),
    "not compiled": Use(longer=3, calls=2, compiled=False, mode=torch.no_grad),
    "first piece left out": Use(change=_leave_out(0)),
    "middle pieces left out": Use(change=_leave_out(1)),
    "last piece left out": Use(change=_leave_out(-1)),
    "early exit": Use(change=_exit),
    "more iterations": Use(change=_iterate(1)),
    "fewer iterations": Use(change=_iterate(-1)),
    "a forward patched": Use(change=_patch(0), refuses=True, fresh=True),
    "the last forward patched": Use(change=_patch(-1), refuses=True, fresh=True),
    "all forwards patched": Use(change=_patch(0, 1, 2, 3, 4), refuses=True, fresh=True),
    "hooks that break at pieces": Use(change=_hooked(True), refuses=True, fresh=True),
    "hooks that break everywhere": Use(change=_hooked(False), refuses=True, fresh=True),
    "removed": Use(change=_remove, calls=2),
}
