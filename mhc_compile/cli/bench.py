"""The command `bench`: a user's model under torch.compile alone, mhc and hc: compile time, step time, memory, size."""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

import mhc_compile as mhc
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.cli import factory, measure
from mhc_compile.errors import FactoryError

PLAIN = "plain"


@dataclass(frozen=True)
class Row:
    """What one way of compiling cost; seconds and bytes."""

    name: str
    upgrade_seconds: float
    compile_seconds: float  # the first step above a usual one
    step_seconds: float  # median of forward and backward
    step_ratio: float
    step_ratio_quartiles: tuple[float, float]
    step_ratio_best: float  # of the fastest steps
    saved_bytes: int
    parameters: int


@dataclass
class Contender:
    """A model of its own, ready to step."""

    name: str
    model: torch.nn.Module
    compiled: Any
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    upgrade_seconds: float = 0.0
    first_seconds: float = 0.0

    def forward(self) -> torch.Tensor:
        """The scalar that the step descends."""
        return scalar(self.compiled(*self.inputs, **self.keywords))

    def step(self) -> None:
        """Forward and backward."""
        self.model.zero_grad()
        torch.autograd.backward(self.forward())

    def saved(self) -> int:
        """Bytes that a forward saves for its backward."""
        inputs = pytree.tree_leaves((self.inputs, self.keywords))
        held = [*self.model.parameters(), *self.model.buffers(), *filter(torch.is_tensor, inputs)]
        return measure.saved_bytes(self.forward, exclude=held)


def scalar(output: Any) -> torch.Tensor:
    """A scalar that depends on everything in the output: its `loss`, or the sum of the mean squares.

    Raises:
        FactoryError: no tensor of the output needs a gradient.
    """
    loss = getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss
    leaves = [leaf for leaf in pytree.tree_leaves(output) if torch.is_tensor(leaf)]
    terms = [leaf.float().square().mean() for leaf in leaves if leaf.requires_grad]
    if not terms:
        raise FactoryError("the model's output has no tensor to differentiate; nothing to measure")
    return torch.stack(terms).sum()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    factory.add_model_arguments(parser)
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each")
    parser.add_argument("--no-hc", action="store_true", help="leave hc out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def contender(
    name: str,
    model: torch.nn.Module,
    inputs: tuple[Any, ...],
    keywords: dict[str, Any],
    options: dict[str, Any],
) -> Contender:
    """Copy the model, upgrade it unless it is to be plain, and prepare its compilation."""
    model = copy.deepcopy(model)
    if name == PLAIN:
        return Contender(name, model, torch.compile(model), inputs, keywords)
    options = {**options, "connection": name}
    start = time.perf_counter()
    mhc.upgrade(model, inputs, keywords, config=mhc.Config.from_options(options), verify=False)
    spent = time.perf_counter() - start
    compiled = torch.compile(model, backend=mhc_backend, options=options)
    return Contender(name, model, compiled, inputs, keywords, spent)


def measured(contenders: list[Contender], rounds: int) -> list[Row]:
    """Compile each from nothing, then step them in turn."""
    for one in contenders:
        with measure.cold_caches(reset=False):
            measure.start_compiler()
            one.first_seconds = measure.seconds_of(one.step)
    timings = measure.interleave({one.name: one.step for one in contenders}, rounds=rounds)
    return [
        Row(
            name=one.name,
            upgrade_seconds=one.upgrade_seconds,
            compile_seconds=one.first_seconds - timing.median,
            step_seconds=timing.median,
            step_ratio=timing.ratio,
            step_ratio_quartiles=(timing.ratio_low, timing.ratio_high),
            step_ratio_best=timing.ratio_best,
            saved_bytes=one.saved(),
            parameters=sum(p.numel() for p in one.model.parameters()),
        )
        for one, timing in zip(contenders, timings.values(), strict=True)
    ]


def main(args: argparse.Namespace) -> None:
    """Measure the user's model, and print the table or the JSON."""
    measure.require("rich")
    options = factory.parse_options(args.options)
    mhc.Config.from_options(options)  # a wrong option is told before minutes of compiling
    model, inputs, keywords = factory.load(args.factory)
    names = [PLAIN, "mhc"] if args.no_hc else [PLAIN, "mhc", "hc"]
    torch._dynamo.reset()
    contenders = [contender(name, model, inputs, keywords, options) for name in names]
    rows = measured(contenders, args.rounds)
    if args.json:
        payload = {"environment": measure.environment(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(payload, indent=2))
    else:
        console().print(table(rows, args.rounds))


def console() -> Any:
    """A rich console that is wide enough for a table also where its output is piped."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = 120
    return made


def table(rows: list[Row], rounds: int) -> Any:
    """The rows as a rich table, against the first of them."""
    from rich.table import Table

    shown = Table(
        title="a step forward and backward, without the optimizer",
        caption=f"median of {rounds} interleaved steps; caches cold; memory: saved for backward",
    )
    shown.add_column("")
    for head in ("upgrade", "compile", "step", "ratio", "quartiles", "best", "memory", "parameters"):
        shown.add_column(head, justify="right")
    base = rows[0]
    for row in rows:
        low, high = row.step_ratio_quartiles
        shown.add_row(
            row.name,
            f"{row.upgrade_seconds:.1f} s",
            f"{row.compile_seconds:.1f} s  {row.compile_seconds / base.compile_seconds:.2f}x",
            f"{row.step_seconds * 1e3:.1f} ms",
            f"{row.step_ratio:.3f}x",
            f"{low:.3f}-{high:.3f}",
            f"{row.step_ratio_best:.3f}x",
            f"{row.saved_bytes / 1e6:.1f} MB  {row.saved_bytes / max(1, base.saved_bytes):.2f}x",
            f"{row.parameters:,}  {row.parameters - base.parameters:+,}",
        )
    return shown
