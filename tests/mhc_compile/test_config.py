from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mhc_compile.config import RETIRED, Config, current_function
from mhc_compile.errors import ConfigError, PlanMismatchError

WRONG: list[tuple[str, Any, str]] = [
    ("streams", 0, r"streams must be an integer >= 1, not 0; for example streams=4"),
    ("streams", -1, r"not -1"),
    ("streams", 2.5, r"not 2\.5"),
    ("streams", 4.0, r"not 4\.0"),
    ("streams", "4", r"not '4'"),
    ("streams", True, r"not True"),
    ("streams", None, r"not None"),
    ("sinkhorn_iters", 0, r"sinkhorn_iters must be an integer >= 1, not 0; for example sinkhorn_iters=20"),
    ("sinkhorn_iters", 1.5, r"not 1\.5"),
    ("every", 0, r"every must be an integer >= 1, not 0; for example every=1"),
    ("every", True, r"not True"),
    ("connection", "mch", r"connection must be one of 'mhc', 'deepseek-v4', 'hc', 'residual', not 'mch'"),
    ("connection", None, r"not None"),
    ("readout", "sum", r"readout must be one of 'mean', 'learned', not 'sum'"),
    ("recompute", "on", r"recompute must be 'auto', 'off', a number of sites .*'memory:2GiB', not 'on'"),
    ("recompute", 0, r"not 0"),
    ("recompute", -2, r"not -2"),
    ("recompute", True, r"not True"),
    ("recompute", None, r"not None"),
    ("recompute", 0.0, r"not 0\.0"),
    ("recompute", 1.5, r"not 1\.5"),
    ("recompute", float("nan"), r"not nan"),
    ("recompute", "memory:", r"not 'memory:'"),
    ("recompute", "memory:0.5", r"not 'memory:0\.5'"),
    ("recompute", "memory:2TB", r"not 'memory:2TB'"),
    ("recompute", "memory:-2GB", r"not 'memory:-2GB'"),
    ("kernels", "cuda", r"one of 'auto', 'triton', 'cpp', 'reference', not 'cuda'"),
    ("compiler", "tvm", r"one of 'inductor', 'aot_eager', 'eager', not 'tvm'"),
    ("projection", 3, r"projection must be .*, not 3"),
    ("eps", 0, r"eps must be a number between 0 and 1, not 0; for example 1e-6"),
    ("eps", 1.0, r"not 1\.0"),
    ("eps", -1e-6, r"not -1e-06"),
    ("eps", float("nan"), r"not nan"),
    ("eps", "1e-6", r"not '1e-6'"),
    ("eps", True, r"not True"),
    ("alpha", 0, r"alpha must be 'auto' or a number in \(0, 1\], not 0"),
    ("alpha", 1.5, r"not 1\.5"),
    ("alpha", "automatic", r"not 'automatic'"),
    ("alpha", float("nan"), r"not nan"),
    ("alpha", True, r"not True"),
    ("alpha", None, r"not None"),
    ("include", (1,), r"include must be glob patterns of site names, not \(1,\)"),
    ("include", 3, r"include must be glob patterns of site names, not 3"),
    ("exclude", None, r"exclude must be glob patterns of site names, not None"),
    ("split", 3, r"split must be glob patterns of site names, not 3"),
    ("inductor", [("a", 1)], r"inductor must be a mapping of Inductor options, not \[\('a', 1\)\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[f"{name}={value!r}" for name, value, _ in WRONG])
def test_wrong_values_are_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_options({name: value})
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(Config(), **{name: value})


def test_a_learned_readout_is_not_for_hc() -> None:
    for base in (Config(connection="hc"), Config()):
        with pytest.raises(ConfigError, match=r"which connection='hc' knows nothing of; use connection='mhc', or"):
            Config.from_options({"readout": "learned", "connection": "hc"}, base)


@pytest.mark.parametrize("name", ["connection", "readout", "kernels", "compiler"])
def test_an_unhashable_choice_is_an_error_too(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} must be one of"):
        Config.from_options({name: ["mhc"]})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("stream", r"unknown option 'stream'; did you mean 'streams'\?"),
        ("sinkhorn_iter", r"did you mean 'sinkhorn_iters'\?"),
        ("kernel", r"did you mean 'kernels'\?"),
        ("max_autotune", r"unknown option 'max_autotune'; the options are alpha, compiler, connection, .*streams"),
    ],
    ids=["stream", "sinkhorn_iter", "kernel", "max_autotune"],
)
def test_misspelt_options_get_a_suggestion(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_options({option: 4})


RIGHT: list[tuple[str, Any]] = [
    *(("streams", n) for n in (1, 2, 3, 4, 8, 17)),
    *(("connection", name) for name in ("mhc", "hc", "residual")),
    *(("kernels", name) for name in ("auto", "triton", "reference")),
    *(("compiler", name) for name in ("inductor", "aot_eager", "eager")),
    *(("projection", name) for name in ("sinkhorn", "identity")),
    *(("readout", name) for name in ("mean", "learned")),
    *(("alpha", value) for value in ("auto", 1, 0.5, 1e-9)),
    ("eps", 1e-20),
    ("inductor", {"max_autotune": True}),
]


@pytest.mark.parametrize(("name", "value"), RIGHT, ids=str)
def test_right_values(name: str, value: Any) -> None:
    assert getattr(Config.from_options({name: value}), name) == value


def test_options_go_on_top_of_a_base() -> None:
    base = Config(streams=2, alpha="auto")
    assert Config.from_options({"alpha": 0.5}, base) == Config(streams=2, alpha=0.5)
    assert Config.from_options(None, base) == base
    assert Config.from_options({}) == Config.from_options(None) == Config()


def test_globs_become_tuples() -> None:
    config = Config.from_options({"include": "layers.*", "exclude": ["*.mlp", "head"]})
    assert (config.include, config.exclude) == (("layers.*",), ("*.mlp", "head"))


def test_config_is_frozen_and_hashable() -> None:
    config = Config(inductor={"max_autotune": True})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.streams = 2  # type: ignore[misc]
    assert hash(config) == hash(Config(inductor={"max_autotune": True}))
    assert {config: 1}[Config(inductor={"max_autotune": True})] == 1


def test_function_survives_json_and_holds_nothing_else() -> None:
    config = Config(streams=3, connection="hc", alpha="auto", eps=1e-5, include=("a",), compiler="eager")
    again = Config.from_options(json.loads(json.dumps(config.function())))
    assert again.function() == config.function()
    assert again == dataclasses.replace(config, include=("*",), compiler="inductor")


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        ("auto", None), ("off", None), (1, None), (7, None), (0.25, 0.25), (1.0, 1.0), ("memory:1000", 1000),
        ("memory:2e9", 2e9), ("memory:1.5GiB", 1.5 * 2**30), ("memory: 3 MB", 3e6), ("memory:20kib", 20 * 1024),
    ],
    ids=str,
)  # fmt: skip
def test_budgets(given: str | float, budget: float | None) -> None:
    assert Config(recompute=given).budget() == budget


@pytest.mark.parametrize(
    ("options", "rewrites"),
    [
        ({}, True),
        ({"connection": "hc", "streams": 2}, True),
        ({"connection": "residual"}, False),
        ({"streams": 1}, False),
    ],
    ids=["default", "hc", "residual", "one stream"],
)
def test_rewrites(options: dict[str, Any], rewrites: bool) -> None:
    assert Config(**options).rewrites is rewrites


# -- fields that are gone, or came since ------------------------------------------------------------------------------

GONE = [("convention", "paper"), ("init", "home")]


@pytest.mark.parametrize(("name", "value"), GONE, ids=[name for name, _ in GONE])
def test_an_option_that_is_gone_says_so(name: str, value: str) -> None:
    for given in (value, "other"):
        with pytest.raises(ConfigError, match=rf"option '{name}' is gone, since '{value}' was its one value; leave it"):
            Config.from_options({name: given})
    assert name not in Config().function()


def test_a_function_of_an_earlier_version_is_the_same_function() -> None:
    config = Config(streams=3, alpha="auto")
    earlier = json.loads(json.dumps(config.function() | dict(GONE)))
    assert set(RETIRED) == {name for name, _ in GONE}
    assert current_function(earlier) == config.function()
    assert Config.from_function(earlier) == Config.from_function(config.function()) == config
    assert earlier.pop("readout") == "mean"
    assert current_function(earlier) == config.function()
    assert Config.from_function(earlier) == config


def test_a_function_that_nobody_builds_is_refused() -> None:
    with pytest.raises(PlanMismatchError, match=r"cannot build \(unknown option 'colour'.*install the release"):
        Config.from_function(Config().function() | {"colour": "red"})


@pytest.mark.parametrize(("name", "value"), GONE, ids=[name for name, _ in GONE])
def test_a_function_that_is_not_built_any_more_is_refused(name: str, value: str) -> None:
    with pytest.raises(PlanMismatchError, match=rf"made with {name}='other', .* knows '{value}' only; install the rel"):
        Config.from_function(Config().function() | dict(GONE) | {name: "other"})
