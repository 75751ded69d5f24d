"""The command line: `python -m mhc_compile explain | bench | demo`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mhc_compile as mhc
from mhc_compile.cli import bench, demo
from mhc_compile.cli.bench import FactoryError
from mhc_compile.errors import MHCError

OK, USER_ERROR = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it worked, 2 with one line on stderr if the user can mend it."""
    args = parser().parse_args(argv)
    try:
        args.command(args)
    except MHCError as error:
        print(f"mhc_compile: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return OK


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m mhc_compile", description="Look at, measure and show mHC.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    explaining = commands.add_parser("explain", help="what mhc sees in a model; changes nothing")
    explaining.set_defaults(command=run_explain)
    _model_arguments(explaining)
    explaining.add_argument("--training", action="store_true", help="tell what a training step keeps of the streams")
    explaining.add_argument("--json", action="store_true", help="print JSON instead of the table")

    benching = commands.add_parser("bench", help="a model's step plain, with mhc and with hc")
    benching.set_defaults(command=run_bench)
    _model_arguments(benching)
    bench.add_arguments(benching)

    showing = commands.add_parser("demo", help="train a small Llama as residual, hc and mhc")
    showing.set_defaults(command=demo.main)
    demo.add_arguments(showing)
    return top


def _model_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "factory",
        metavar="FILE.py:FACTORY",
        help="a function without arguments in a file: it returns model, args[, kwargs]",
    )
    command.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="fields of mhc_compile.Config, such as streams=2 exclude=layers.0.*",
    )


def run_explain(args: argparse.Namespace) -> None:
    """Print the report on the user's model."""
    config = mhc.Config.from_options(parse_options(args.options))
    report = mhc.explain(*load(args.factory), config=config, training=args.training)
    if args.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        report.print()


def as_json(report: mhc.Report) -> dict[str, Any]:
    """The report as what JSON can hold."""
    listed = {name: getattr(report, name) for name in ("sites", "rejections", "regions", "cuts")}
    payload: dict[str, Any] = {k: [dataclasses.asdict(v) for v in vs] for k, vs in listed.items()}
    memory = {name: getattr(report.memory, name) for name in ("kept", "peak", "without", "before_rewrite", "moved")}
    runs = [dataclasses.asdict(run) for run in report.memory.runs]
    plain = {name: getattr(report, name) for name in ("breaks", "graphs", "parameters")}
    return payload | plain | {"memory": memory | {"recompute": report.memory.recompute, "runs": runs}}


def run_bench(args: argparse.Namespace) -> None:
    """Measure the user's model under plain torch.compile, mhc and hc."""
    demo.require("rich")
    options = parse_options(args.options)
    mhc.Config.from_options(options)  # a wrong option is told before minutes of compiling
    bench.run(*load(args.factory), options, args)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE pairs; a VALUE that is no Python literal is a string."""
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise FactoryError(f"--options takes KEY=VALUE, such as streams=2, not {pair!r}")
        try:
            options[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            options[name] = text
    return options


def load(target: str) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Load FILE.py, call FACTORY in it, and return the model, its args and kwargs."""
    path, colon, name = target.rpartition(":")
    if not (path and colon and name):
        raise FactoryError(f"{target!r} is not FILE.py:FACTORY, such as my_model.py:make")
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
    return _checked(factory(), f"{path}:{name}")


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
