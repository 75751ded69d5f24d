from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhc_compile.config import Config
from mhc_compile.errors import NameTakenError, NotCompiledError
from mhc_compile.model.owners import adopt, check, is_owner, release
from mhc_compile.model.sites import OwnerSites, SiteModule
from mhc_compile.model.start_values import Place
from mhc_compile.model.subclasses import subclass


class Block(nn.Module):
    """A block."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.mlp = nn.Linear(width, width)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Add the branch."""
        branch: Tensor = self.mlp(x)
        return x + scale * branch


class Child(Block):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x, 2 * scale)


class Stateful(Block):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"note": "kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.seen = state["note"]


def owner(kind: type[nn.Module] = Block, disabled: bool = True) -> Any:
    module = kind()
    check(module, "layers.3")
    adopt(module)
    sites = OwnerSites()
    sites.add(SiteModule("layers.3.mlp", "mlp", Place(0, 2), 5, Config(streams=2), entry=True))
    sites.disabled = disabled
    module.add_module("mhc", sites)
    return module


def test_one_subclass_per_base() -> None:
    assert subclass(Block) is subclass(Block)
    assert subclass(Block) is not subclass(Child)
    assert type(owner()) is type(owner())


def test_the_subclass_looks_like_its_base() -> None:
    made, base = subclass(Block), Block
    assert issubclass(made, base)
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(made, name) == getattr(base, name)
    assert made.forward.__doc__ == base.forward.__doc__
    assert repr(owner()).startswith("Block(")
    assert isinstance(owner(), Block)


def test_code_objects_are_not_shared() -> None:
    """Dynamo keeps its cache in them."""
    assert subclass(Block).forward.__code__ is not subclass(Child).forward.__code__


def test_forward_marks_first() -> None:
    with pytest.raises(NotCompiledError, match=r"layers\.3\.mlp"):
        torch.jit.trace(owner(disabled=False), torch.randn(2, 5))


@pytest.mark.parametrize("kind", [Block, Child])
def test_forward_is_that_of_the_base(kind: type[nn.Module]) -> None:
    module, x = owner(kind), torch.randn(2, 5)
    expected = x + (2 if kind is Child else 1) * 3 * module.mlp(x)
    torch.testing.assert_close(module(x, scale=3.0), expected)
    torch.testing.assert_close(module(x, 3.0), expected)


def test_adopting_twice_is_adopting_once() -> None:
    module = owner()
    kind = type(module)
    adopt(module)
    assert type(module) is kind
    assert is_owner(module)
    assert not is_owner(Block())


def saved(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def pickled(protocol: int, module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module, protocol))


COPIES: list[Callable[[Any], Any]] = [
    copy.deepcopy,
    saved,
    *(functools.partial(pickled, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)),
]
NAMED = ["deepcopy", "saved", *(f"pickle {protocol}" for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1))]


@pytest.mark.parametrize("again", COPIES, ids=NAMED)
@pytest.mark.parametrize("kind", [Block, Child, Stateful])
def test_copies_are_owners_too(again: Callable[[Any], Any], kind: type[nn.Module]) -> None:
    module = owner(kind, disabled=False)
    with torch.no_grad():
        module.mhc.mlp.phi.normal_()
    made = again(module)
    assert type(made) is type(module)
    assert made is not module
    assert list(made.state_dict()) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(made.state_dict()[name], tensor)
        assert made.state_dict()[name].data_ptr() != tensor.data_ptr()
    assert kind is not Stateful or made.seen == "kept"
    with pytest.raises(NotCompiledError):
        torch.jit.trace(made, torch.randn(2, 5))


def test_shallow_copy_is_an_owner_of_the_same_parameters() -> None:
    module = owner()
    made = copy.copy(module)
    assert type(made) is type(module)
    assert made.mhc.mlp.phi is module.mhc.mlp.phi


def test_a_model_that_holds_owners_copies() -> None:
    model = nn.Sequential(owner(), nn.ReLU(), owner())
    for made in (copy.deepcopy(model), saved(model)):
        assert [is_owner(child) for child in made] == [True, False, True]
        x = torch.randn(2, 5)
        assert torch.equal(made(x), model(x))


def test_release_gives_the_class_back() -> None:
    module, x = owner(), torch.randn(2, 5)
    expected = module(x)
    release(module)
    assert type(module) is Block
    assert not hasattr(module, "mhc")
    assert sorted(module.state_dict()) == ["mlp.bias", "mlp.weight"]
    assert torch.equal(module(x), expected)


def test_release_leaves_others_alone() -> None:
    module = Block()
    module.mhc = nn.Linear(2, 2)
    release(module)
    assert type(module) is Block
    assert isinstance(module.mhc, nn.Linear)


class Method(Block):
    def mhc(self) -> None: ...


def taken(value: Any) -> Block:
    module = Block()
    module.mhc = value
    return module


TAKEN = {"number": taken(3), "None": taken(None), "module": taken(nn.Linear(2, 2)), "method": Method()}


@pytest.mark.parametrize("module", TAKEN.values(), ids=TAKEN)
def test_a_taken_name_is_refused(module: nn.Module) -> None:
    with pytest.raises(NameTakenError, match=r"layers\.3 \(\w+\) has an .* `mhc` already.*'layers\.3\.\*'"):
        check(module, "layers.3")
    with pytest.raises(NameTakenError, match=r"the model \(\w+\) .*Config\(exclude=\('\*',\)\)"):
        check(module, "")


def test_sites_of_ours_are_no_taken_name() -> None:
    check(owner(), "layers.3")


def test_a_forward_that_is_put_on_the_instance_comes_back() -> None:
    module: Any = Block()
    given = module.forward = lambda x, scale=1.0: x
    adopt(module)
    assert "forward" not in vars(module)
    release(module)
    assert vars(module)["forward"] is given
    assert type(module) is Block
