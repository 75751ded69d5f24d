"""The class of an owner: forward marks, walks meet no sites, and the base hears nothing of it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mhc_compile as mhc
from mhc_compile.model.sites import SiteModule
from mhc_compile.model.subclasses import base_of, is_owner, subclass
from tests.nets.small import agree, compiled, perturb, relative, results

C = 8


def x() -> Tensor:
    return torch.randn(2, 5, C, generator=torch.Generator().manual_seed(1))


class Stack(nn.Sequential):
    """Walks over itself."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(C, C) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = x + layer(x).tanh()
        return x + self[-1](x) * len(self)


class Split(nn.Module):
    """Walks over its children, in a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 3)

    def parts(self) -> list[nn.Module]:
        return list(self.children())

    def forward(self, x: Tensor) -> Tensor:
        *layers, head = self.parts()
        for layer in layers:
            x = x + layer(x).tanh()
        out: Tensor = head(x)
        return out


class Named(nn.ModuleDict):
    """Walks over its items."""

    def __init__(self) -> None:
        super().__init__({"a": nn.Linear(C, C), "b": nn.Linear(C, C)})

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.items():
            x = x + layer(x).tanh() * len(name)
        return x * len(list(self.keys())) * len(list(self.values())) * len(self)


class Outer(nn.Module):
    """Owns no site, but walks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Stack(), Stack()

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


@pytest.mark.core(2)
@pytest.mark.parametrize("kind", [Stack, Split, Named, Outer])
def test_a_forward_that_walks_does_not_meet_the_sites(kind: Callable[[], Any]) -> None:
    model = kind()
    before, twin = model(x()), copy.deepcopy(model)
    mhc.upgrade(model, (x(),))
    assert relative(compiled(model)(x()), before) < 1e-6
    with mhc.plain(model):
        assert torch.equal(model(x()), before)
    if isinstance(model, (nn.Sequential, nn.ModuleDict)):
        assert len(model) == len(twin)
        assert len(list(model)) == len(list(twin))
    else:
        assert list(dict(model.named_children())) == list(dict(twin.named_children()))
        assert len(list(model.children())) == len(list(twin.children()))


def test_what_torch_does_to_all_modules_reaches_the_sites() -> None:
    model = Stack()
    mhc.upgrade(model, (x(),))
    sites = [module for module in model.modules() if isinstance(module, SiteModule)]
    model.double().eval()
    assert sites
    assert all(site.phi.dtype == torch.float64 and not site.training for site in sites)
    seen: list[nn.Module] = []
    model.train().apply(seen.append)
    assert set(sites) < set(seen)
    assert all(site.training for site in sites)
    assert "mhc.0.phi" in model.state_dict()


def test_a_container_changes_its_items_beside_the_sites() -> None:
    model, plain = Stack(), Stack()
    mhc.upgrade(model, (x(),))
    for each in (model, plain):
        each.append(nn.ReLU())
        each.insert(1, nn.Tanh())
        del each[0]
        each[0] = nn.Identity()
    assert [type(layer) for layer in model] == [type(layer) for layer in plain]
    assert list(model._modules) == [*plain._modules, "mhc"]


@torch.compiler.allow_in_graph
class Kept(nn.Module):
    """A class that Dynamo is told to keep whole, as diffusers tells it of its blocks; its layers are looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x).tanh()
        return x + self.g(x).tanh()


def test_a_class_that_is_allowed_in_graphs_has_its_sites() -> None:
    model = nn.Sequential(Kept(), Kept())
    before = model(x())
    assert len(mhc.upgrade(model, (x(),)).sites) == 4
    assert relative(compiled(model)(x()), before) < 1e-6
    perturb(model)
    assert relative(compiled(model)(x()), before) > 1e-3


class Registered(nn.Module):
    """Registers its subclasses, each once."""

    known: ClassVar[set[str]] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__name__ in Registered.known:
            raise TypeError(f"{cls.__name__} is registered twice")
        Registered.known.add(cls.__name__)


class Meta(type(nn.Module)):  # type: ignore[misc]
    """Counts the classes that it makes."""

    made = 0

    def __init__(cls, *args: Any) -> None:
        super().__init__(*args)
        Meta.made += 1


class Counted(nn.Module, metaclass=Meta):
    pass


class RegisteredChild(Registered):
    pass


def test_a_base_that_refuses_a_subclass_is_not_told() -> None:
    known, made = set(Registered.known), Meta.made
    for base in (RegisteredChild, Counted):
        cls = subclass(base)
        assert issubclass(cls, base)
        assert type(cls) is type(base)
        assert cls.__name__ == base.__name__
    assert (Registered.known, Meta.made) == (known, made)


class CalledOnly(nn.Module):
    """Its `__call__` never reaches forward."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(C, C)

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.f(x).tanh()


class Wrapping(CalledOnly):
    """Its `__call__` reaches forward, which it must not mark twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x).tanh()

    def __call__(self, *args: Any) -> Any:
        return nn.Module.__call__(self, *args)


@pytest.mark.parametrize("kind", [CalledOnly, Wrapping])
def test_a_class_with_a_call_of_its_own_has_its_sites(kind: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(kind(), kind())
    before = model(x())
    mhc.upgrade(model, (x(),))
    perturb(model)
    out, grads = results(compiled(model), model, x())
    assert relative(out, before) > 1e-2
    assert all(grad is not None for grad in grads)


def test_a_class_that_is_patched_later_runs_its_new_forward() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.f(x)

    first = nn.Sequential(Block(), Block())
    mhc.upgrade(first, (x(),))

    def faster(self: Any, x: Tensor) -> Tensor:
        return 3 * self.f(x).tanh() + x

    Block.forward = faster  # type: ignore[method-assign]
    torch._dynamo.reset()
    second = nn.Sequential(Block(), Block())
    want = second(x())
    mhc.upgrade(second, (x(),))
    assert relative(compiled(second)(x()), want) < 1e-6
    first.load_state_dict(second.state_dict())
    perturb(first)
    perturb(second)
    assert agree(results(compiled(first), first, x()), results(compiled(second), second, x()))


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_a_parametrization_outlives_remove() -> None:
    model = Split()
    mhc.upgrade(model, (x(),))
    parametrize.register_parametrization(model.a, "weight", Twice())
    model.register_parameter("own", nn.Parameter(torch.ones(C)))
    parametrize.register_parametrization(model, "own", Twice())
    mhc.remove(model)
    assert not is_owner(model)
    assert torch.equal(model.get_parameter("parametrizations.own.original") * 2, torch.as_tensor(model.own))
    assert parametrize.is_parametrized(model)
    assert isinstance(model, Split)


def test_copies_and_pickles_walk_alike() -> None:
    model = Stack()
    mhc.upgrade(model, (x(),))
    perturb(model)
    want = compiled(model)(x())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert is_owner(twin)
        assert list(twin) == list(twin.children())[:-1]
        assert torch.equal(compiled(twin)(x()), want)


def test_the_base_of_a_class_that_is_none_of_ours() -> None:
    assert base_of(Stack) is Stack
    assert base_of(subclass(Stack)) is Stack


def test_slices_are_of_the_base() -> None:
    model = nn.Sequential(Wrapping(), Wrapping())
    mhc.upgrade(model, (x(),))
    assert is_owner(model)
    part = model[1:]
    assert type(part) is nn.Sequential
    assert list(part) == [model[1]]
    assert len(model) == 2
