"""Checkpoints as they come: with the names of wrappers, of older releases, of pruned models; or none at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api.checkpoints import EXTRA_STATE, Checkpoint
from mhc_compile.errors import NotUpgradedError, PlanMismatchError
from mhc_compile.model.plan_text import decode, encode
from tests.nets.small import Net, Wrapper, compiled, inputs, made, perturb, relative, upgraded

State = dict[str, Any]


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(name): value for name, value in state.items()}


SPELLINGS: dict[str, Callable[[State], State]] = {
    "as it is": dict,
    "compiled": lambda s: renamed(s, lambda name: f"_orig_mod.{name}"),
    "data parallel": lambda s: renamed(s, lambda name: f"module.{name}"),
    "both": lambda s: renamed(s, lambda name: f"module._orig_mod.{name}"),
    "checkpoint wrappers": lambda s: renamed(
        s, lambda n: n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module.")
    ),
    "a part of another model": lambda s: renamed(s, lambda name: f"net.{name}") | {"other": torch.zeros(1)},
}


@pytest.mark.core(1)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_of_wrappers(spelling: str) -> None:
    model = upgraded(moved=True)
    twin = made(seed=3)
    mhc.restore(twin, SPELLINGS[spelling](model.state_dict()))
    assert relative(compiled(twin)(inputs()), compiled(model)(inputs())) < 1e-6


def test_a_wrapper_around_what_was_upgraded() -> None:
    saved = Wrapper(upgraded(moved=True))
    twin = Wrapper(made(seed=3))
    mhc.restore(twin, saved.state_dict())
    assert relative(compiled(twin)(inputs()), compiled(saved)(inputs())) < 1e-6
    again = made(seed=4)
    mhc.restore(torch.compile(again), saved.net.state_dict())  # type: ignore[arg-type]
    assert relative(compiled(again)(inputs()), compiled(saved)(inputs())) < 1e-6


def test_what_is_no_checkpoint_of_an_upgraded_model(tmp_path: Path) -> None:
    state = upgraded().state_dict()
    part = {name: value for name, value in state.items() if name != EXTRA_STATE}
    cases: list[tuple[Any, str]] = [
        (made().state_dict(), "so it is not one of an upgraded model: load it by load_state_dict"),
        ({"model": state, "step": 3}, r"pass checkpoint\['model'\]"),
        (str(tmp_path / "x.pt"), "takes a state_dict, not a path"),
        (tmp_path / "x.pt", os.fspath(tmp_path)),
        (part, "of a part of the model that was upgraded"),
    ]
    for given, match in cases:
        with pytest.raises(NotUpgradedError, match=match):
            mhc.restore(made(), given)


@pytest.mark.parametrize("damage", [b"", b"\x00\x01", b"{", b"[]"])
def test_a_plan_that_is_cut_off(damage: bytes) -> None:
    state = upgraded().state_dict() | {EXTRA_STATE: torch.tensor(list(damage), dtype=torch.uint8)}
    model = made()
    with pytest.raises(PlanMismatchError):
        mhc.restore(model, state)
    assert not any("mhc" in name for name in model.state_dict())


def test_a_pruned_models_checkpoint_fits_a_smaller_model() -> None:
    model = upgraded(Net, 3, moved=True)
    blocks = model.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    del blocks[1]
    small = made(Net, 2, seed=3)
    mhc.restore(small, model.state_dict())
    saved = Checkpoint.of(small.state_dict(), small)
    assert [(site.name, site.predecessor) for site in saved.plan.sites] == [
        ("blocks.0.attn", None), ("blocks.0.mlp", "blocks.0.attn"),
        ("blocks.1.attn", "blocks.0.mlp"), ("blocks.1.mlp", "blocks.1.attn"),
    ]  # fmt: skip
    before = [p for name, p in model.named_parameters() if name.startswith("blocks.1.mhc")]
    after = [p for name, p in small.named_parameters() if name.startswith("blocks.1.mhc")]
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    compiled(small)(inputs())


class Raw(nn.Module):
    """Its branches are its own work."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList(nn.Parameter(torch.randn(8, 8) / 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for w in self.w:
            x = x + (x @ w).tanh()
        return x


def of_an_older_release(state: State) -> State:
    """The same checkpoint as releases wrote it that called sites after their lines and knew no places."""
    plan = json.loads(decode(state[EXTRA_STATE]))
    names = {"w_0": "line6", "w_1": "line6_1", "w_2": "line6_2", None: None}
    for part in ("sites", "details"):
        for site in plan[part]:
            site["name"], site["predecessor"] = names[site["name"]], names[site["predecessor"]]
            if part == "details":
                site["label"] = names[site["label"]]
                del site["spot"]
    for key in ("left_out", "choice"):
        del plan[key]
    old = {name.replace("mhc.w_0", "mhc.line6"): value for name, value in state.items()}
    for i in (1, 2):
        old = {name.replace(f"mhc.w_{i}", f"mhc.line6_{i}"): value for name, value in old.items()}
    return old | {EXTRA_STATE: encode(json.dumps(plan))}


@pytest.mark.parametrize("way", ["restore", "load"])
def test_checkpoints_of_older_releases_are_read(way: str) -> None:
    torch.manual_seed(0)
    model, x = Raw(), inputs()
    mhc.upgrade(model, (x,))
    perturb(model)
    want, old = compiled(model)(x), of_an_older_release(model.state_dict())
    assert "mhc.line6_2.phi" in old
    twin = Raw()
    if way == "restore":
        mhc.restore(twin, old)
        assert "mhc.line6.phi" in twin.state_dict()
    else:
        mhc.upgrade(twin, (x,))
        twin.load_state_dict(old)
    torch._dynamo.reset()
    assert relative(compiled(twin)(x), want) < 1e-6


def test_comments_in_the_source_change_no_checkpoint(tmp_path: Path) -> None:
    source = (
        "%simport torch\nfrom torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.w = nn.ParameterList(nn.Parameter(torch.randn(8, 8)) for _ in range(3))\n"
        "    def forward(self, x):\n%s        for w in self.w: x = x + (x @ w).tanh()\n        return x\n"
    )

    def load(name: str, *comments: str) -> nn.Module:
        path, scope = tmp_path / name, {"__name__": name}
        path.write_text(source % comments)
        exec(compile(path.read_text(), str(path), "exec"), scope)
        model: nn.Module = scope["Net"]()  # type: ignore[operator]
        return model

    model, twin, third = load("a.py", "", ""), load("b.py", "# one\n# two\n", "        # three\n"), load("c.py", "", "")
    x = inputs()
    mhc.upgrade(model, (x,))
    perturb(model)
    mhc.restore(twin, model.state_dict())
    mhc.upgrade(third, (x,))
    third.load_state_dict(twin.state_dict())
    want = compiled(model)(x)
    assert relative(compiled(twin)(x), want) < 1e-6
    assert relative(compiled(third)(x), want) < 1e-6
