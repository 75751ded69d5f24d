"""What the user names on the command line: FILE.py:FACTORY or hf:CONFIG.json, a model and its inputs, and options."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mhc_compile.cli import from_config
from mhc_compile.errors import ConfigError, FactoryError


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    """Add the model and its options to a command's arguments."""
    command.add_argument(
        "factory",
        metavar="FILE.py:FACTORY",
        help="a function without arguments in a file: it returns model, args[, kwargs]; or hf:CONFIG.json, the config"
        " of a model of transformers",
    )
    command.add_argument(
        "--options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fields of mhc_compile.Config, such as streams=2 exclude=layers.0.*",
    )


def one_by_one(words: Sequence[str]) -> list[str]:
    """Name `--options` in front of each KEY=VALUE that follows it; what is none, such as the model, ends them."""
    made: list[str] = []
    for i, word in enumerate(words):
        if i and words[i - 1] != "--options" and made[-2:-1] == ["--options"] and "=" in word and word[0] != "-":
            made.append("--options")
        made.append(word)
    return made


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a VALUE that is no Python literal is a string.

    Raises:
        ConfigError: a text is no such pair.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ConfigError(f"--options takes KEY=VALUE, such as streams=2, not {pair!r}")
        try:
            options[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            options[name] = text
    return options


def load(target: str, device: str = "cpu") -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Load FILE.py, call FACTORY in it, and return the model, its args and kwargs.

    Args:
        target: FILE.py:FACTORY, or hf:CONFIG.json.
        device: where a model by its config is built.

    Raises:
        FactoryError: there is no such file or function, or it returns something else. Its own errors pass through.
    """
    if target.startswith(from_config.PREFIX):
        return from_config.load(target, device)
    path, colon, name = target.rpartition(":")
    if not (path and colon and name):
        raise FactoryError(f"{target!r} is not FILE.py:FACTORY, such as my_model.py:make, nor hf:CONFIG.json")
    file = Path(path)
    if not file.is_file():
        raise FactoryError(f"there is no file {path!r}; give the path of the file with {name}()")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise FactoryError(f"{path!r} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    # As under `python FILE.py`: its neighbours can be imported, and its classes pickled.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise FactoryError(f"{path} has no function {name}(); define one: model, args[, kwargs]")
    if wanted := _wanted(factory):
        raise FactoryError(f"{path}:{name} wants arguments ({wanted}); give it defaults")
    return _checked(factory(), f"{path}:{name}")


def _wanted(factory: Callable[..., Any]) -> str:
    """Return the arguments that a function cannot be called without."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # of a builtin
        return ""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return ", ".join(each.name for each in parameters if each.default is each.empty and each.kind not in several)


def _checked(made: Any, target: str) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, inputs, keywords = (*made, {})[:3] if _has_parts(made) else (made, None, None)
    if not (isinstance(model, torch.nn.Module) and isinstance(inputs, (tuple, list)) and isinstance(keywords, Mapping)):
        parts = ", ".join(type(part).__name__ for part in made) if _has_parts(made) else None
        raise FactoryError(
            f"{target} must return (model, args) or (model, args, kwargs): a torch.nn.Module,"
            f" a tuple, a dict; it returned {f'({parts})' if parts else type(made).__name__}"
        )
    return model, tuple(inputs), dict(keywords)


def _has_parts(made: Any) -> bool:
    return isinstance(made, tuple) and len(made) in (2, 3)
