from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch

import mhc_compile
from mhc_compile import errors
from mhc_compile.errors import (
    ConfigError,
    MHCError,
    MHCWarning,
    MissingDependencyError,
    NotCompiledError,
    ShardedParametersError,
    warn,
)

ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind != MHCWarning
]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_one_base_catches_every_error(kind: type[Exception]) -> None:
    assert issubclass(kind, MHCError)
    assert kind is MHCError or kind.__name__.endswith("Error")
    meaning, remedy = (inspect.getdoc(kind) or "").split("\n\n")  # docs/listings/errors.md is made of these
    assert meaning
    assert remedy


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(MissingDependencyError, ImportError)
    assert not issubclass(MHCError, (ValueError, RuntimeError, ImportError))


def test_the_public_face_has_the_base_and_the_warning() -> None:
    assert mhc_compile.MHCError is MHCError
    assert mhc_compile.MHCWarning is MHCWarning


def test_warning_can_be_turned_into_an_error_alone() -> None:
    assert issubclass(MHCWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MHCWarning)
        warnings.simplefilter("ignore", UserWarning, append=True)
        warnings.warn("another", UserWarning, stacklevel=1)
        with pytest.raises(MHCWarning):
            warnings.warn("ours", MHCWarning, stacklevel=1)


@pytest.mark.parametrize(
    "remedy",
    [
        "model.compile(backend='mhc')",
        "set_stance('force_eager')",
        "mhc_compile.export(model, args)",
        "mhc_compile.plain(model)",
    ],
)
def test_not_compiled_names_the_site_and_every_remedy(remedy: str) -> None:
    message = str(NotCompiledError("layers.3.mlp"))
    assert "'layers.3.mlp'" in message
    assert remedy in message


@pytest.mark.parametrize("kind", [NotCompiledError, ShardedParametersError])
def test_errors_with_texts_of_their_own_survive_pickling(kind: Callable[[str], MHCError]) -> None:
    """As errors must that come out of worker processes."""
    error = kind("layers.3.mlp")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_warning_points_at_the_users_line() -> None:
    with pytest.warns(MHCWarning, match="mine") as caught:
        warn("mine")
    assert caught[0].filename == __file__
    with pytest.warns(MHCWarning, match="nothing to rewrite") as caught:
        torch.compile(torch.nn.ReLU(), backend="mhc", options={"compiler": "eager"})(torch.randn(2, 3))
    assert caught[0].filename == __file__
