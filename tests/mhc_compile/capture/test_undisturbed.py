"""A run under capture leaves buffers, attributes and random state as they were, and tells of parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.capture.undisturbed import undisturbed
from tests.nets.small import Net, inputs

C = 8


class Busy(nn.Module):
    """Counts its calls, grows a cache, keeps an attribute, and moves a teacher."""

    cache: Tensor

    def __init__(self, teaches: bool = False) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(C, C) for _ in range(2))
        self.norm = nn.BatchNorm1d(C)
        self.teacher = nn.Linear(C, C)
        self.register_buffer("cache", torch.zeros(0, C))
        self.register_buffer("empty", None)
        self.calls, self.teaches = 0, teaches

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x
        self.cache = torch.cat([self.cache, x.detach()])
        self.empty = x.mean(0)
        if self.teaches:
            with torch.no_grad():
                self.teacher.weight.mul_(0.9)
        for f in self.f:
            x = x + self.norm(f(x)).tanh()
        return x


def test_buffers_and_attributes_are_put_back() -> None:
    model, x = Busy(), torch.randn(4, C)
    before, cache = copy.deepcopy(model.state_dict()), model.cache
    state = torch.random.get_rng_state()
    assert len(mhc.explain(model, (x,)).sites) == 2
    assert model.calls == 0
    assert not hasattr(model, "last")
    assert model.cache is cache
    assert model.empty is None
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_cannot_be_put_back_is_told() -> None:
    with pytest.warns(mhc.MHCWarning, match=r"changed its own parameters, such as 'teacher\.weight'"):
        mhc.explain(Busy(teaches=True), (torch.randn(4, C),))


def test_attributes_are_put_back_after_an_error_too() -> None:
    model = Busy()

    def change() -> None:
        model.calls, model.more = 3, 1  # type: ignore[assignment]
        model.norm(torch.randn(4, C))
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), undisturbed(model):
        change()
    assert model.calls == 0
    assert not hasattr(model, "more")
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]


class Recorded(nn.Module):
    """Registers hooks at its first call, as transformers does for `output_hidden_states`."""

    hooked: bool  # there from the first call on

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = Net(2), list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if not getattr(self, "hooked", False):
            INSTALL(self)
        self.seen = []
        x = self.net(x)
        return x * len(self.seen)


def install(model: Recorded) -> None:
    model.hooked = True
    model.net.blocks[0].register_forward_hook(lambda module, args, out: model.seen.append(out))


INSTALL = torch.compiler.disable(install)  # which breaks the graph, as transformers' does


def test_hooks_that_a_run_registers_are_not_registered_twice() -> None:
    model, x = Recorded(), inputs()
    own = model.net.blocks[1].register_forward_hook(lambda module, args, out: None)
    report = mhc.upgrade(model, (x,), config=mhc.Config(compiler="eager"))
    assert len(report.sites) == 4
    assert report.max_error is not None
    assert not hasattr(model, "hooked")
    assert not model.net.blocks[0]._forward_hooks
    assert list(model.net.blocks[1]._forward_hooks) == [own.id]


def test_lazy_modules_stay_what_they_have_become() -> None:
    model = nn.Sequential(nn.LazyLinear(C), nn.ReLU())
    with undisturbed(model):
        model(torch.randn(2, 3))
    assert type(model[0]) is nn.Linear
    assert model(torch.randn(2, 3)).shape == (2, C)


def test_scripted_modules_keep_their_buffers_in_cpp() -> None:
    model = nn.Sequential(nn.Linear(C, C), torch.jit.script(nn.BatchNorm1d(C)))
    before = copy.deepcopy(model.state_dict())
    with undisturbed(model):
        model(torch.randn(4, C))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
