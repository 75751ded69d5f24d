"""The command `demo`: one deep and narrow Llama trained three ways, residual, hc and mhc, side by side on real text.

All three start from the same weights and see the same batches; each step goes round the three in turn, so their times
can be compared although the machine's speed drifts. Layers are compiled one by one, so that equal layers share code and
depth costs little compile time.

`summary`: one run's numbers, and the table, the plot and the JSON of all three.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import mhc_compile as mhc
from mhc_compile.api.gains import Observer
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.cli import bench, language, measure
from mhc_compile.cli.demo import summary
from mhc_compile.cli.demo.summary import Runner
from mhc_compile.cli.training import BETAS, rate

if TYPE_CHECKING:
    from mhc_compile.api.report import Report

VARIANTS = ("residual", "hc", "mhc")
NEEDS = ("transformers", "rich", "matplotlib")
VALIDATIONS = 5  # in the course of the run
FIT_EVERY = 10  # so often the number of steps is fitted to the time left


@dataclass
class Length:
    """How many steps the run has; the learning rate's schedule looks here, so it can be fitted."""

    steps: int

    def rate(self, step: int) -> float:
        """Factor on the learning rate: linear warm-up, then a cosine down to a tenth."""
        return rate(step, self.steps, warmup=max(1, min(20, self.steps // 5)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; the defaults fit two cores."""
    parser.add_argument("--steps", type=_steps, default=200, help="training steps (at most)")
    parser.add_argument("--seconds", type=float, default=180.0, help="time for the whole run; fewer steps if short")
    parser.add_argument("--out", type=Path, default=Path("mhc_demo"), help="folder for the results")
    parser.add_argument("--streams", type=int, default=4, help="number of residual streams")
    parser.add_argument("--hidden", type=int, default=64, help="width of the model")
    parser.add_argument("--layers", type=int, default=12, help="layers of the model")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--length", type=int, default=64, help="bytes per sequence")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--phi-lr-scale", type=float, default=100.0, help="factor on the learning rate of phi")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")


def _steps(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError("at least 2: the first step compiles, the others are timed")
    return int(text)


def main(args: argparse.Namespace) -> None:
    """Run the demo."""
    measure.require(*NEEDS)
    started = time.perf_counter()
    console = bench.console()
    training, validation = language.batches(args.steps, args.batch, args.length, args.seed)
    length = Length(args.steps)
    console.print(what_to_look_for(args))
    runners = prepare(args, length, training[0], console)
    train(runners, args, length, training, validation, started + args.seconds)
    for runner in runners:
        held = [*runner.model.parameters(), *runner.model.buffers(), training[0]]
        runner.saved = measure.saved_bytes(partial(runner.loss, training[0]), exclude=held)
    summary.tell(runners, args, time.perf_counter() - started, console)


def what_to_look_for(args: argparse.Namespace) -> str:
    """Say in a sentence what the demo shows."""
    return (
        f"Look at the gain: by how much the residual path alone amplifies through {2 * args.layers} sites. Nothing"
        " holds hc's back, mhc keeps it near 1; the losses tell what that is worth in a run as short as this.\n"
    )


def prepare(args: argparse.Namespace, length: Length, batch: torch.Tensor, console: Any) -> list[Runner]:
    """Build the three from the same weights: upgrade two of them, verified."""
    original = language.llama(args.hidden, args.layers, args.length, seed=args.seed)
    size = sum(p.numel() for p in original.parameters())
    inputs: dict[str, Any] = {"input_ids": batch, "labels": batch}
    console.print(f"LlamaForCausalLM, {args.layers} layers of width {args.hidden}, {size / 1e6:.2f} M parameters")
    runners = []
    for name in VARIANTS:
        model = copy.deepcopy(original)
        config = mhc.Config(streams=args.streams, connection=name)
        observer = None
        if name == "residual":
            groups: Any = [{"params": list(model.parameters()), "weight_decay": 0.1}]
        else:
            announce(name, mhc.upgrade(model, (), inputs, config=config, verify=True), console)
            groups = mhc.param_groups(model, args.lr, 0.1, phi_lr_scale=args.phi_lr_scale)
            observer = Observer(model)
        for layer in model.get_submodule("model.layers").children():
            layer.compile() if name == "residual" else layer.compile(backend=mhc_backend)
        optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, length.rate)
        extra = sum(p.numel() for p in model.parameters()) - size
        runners.append(Runner(name, model, optimizer, schedule, extra, observer))
    return runners


def announce(name: str, checked: Report, console: Any) -> None:
    """Say how exactly the upgraded model is the original one."""
    console.print(
        f"{name}: {len(checked.sites)} residual connections found and rewritten, verified against the original: max"
        f" error {checked.max_error:.1e}"
    )


def train(
    runners: list[Runner],
    args: argparse.Namespace,
    length: Length,
    training: list[torch.Tensor],
    validation: list[torch.Tensor],
    deadline: float,
) -> None:
    """Train all three, one step each in turn, until the steps or the time are used up."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shape = "[progress.description]{task.description}"
    with Progress(TextColumn(shape), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        task = bar.add_task("compiling three models", total=length.steps)
        step = 0
        while step < length.steps and (step < 2 or time.perf_counter() < deadline):
            turn = step % len(runners)
            for runner in runners[turn:] + runners[:turn]:
                runner.step(training[step])
            step += 1
            if step % FIT_EVERY == 0:
                length.steps = fit(runners, step, args.steps, deadline - time.perf_counter())
            if step % max(1, length.steps // VALIDATIONS) == 0 or step == length.steps:
                validate(runners, step, validation)
            losses = "  ".join(f"{r.name} {statistics.fmean(r.losses[-10:]):.3f}" for r in runners)
            bar.update(task, completed=step, total=length.steps, description=f"loss: {losses}")
    if all(at != step for at, _ in runners[0].validation):  # the time ran out
        validate(runners, step, validation)


def fit(runners: list[Runner], step: int, most: int, left: float) -> int:
    """Steps to run in all: `most`, or what fits into the seconds `left` at the last rounds' pace."""
    one_round = sum(statistics.fmean(runner.seconds[1:][-FIT_EVERY:]) for runner in runners)
    # A validation batch is a forward, about a third of a step; some validations are still to come.
    left -= language.VALIDATION_BATCHES * one_round
    return min(most, step + max(0, int(left / one_round)))


def validate(runners: list[Runner], step: int, batches: list[torch.Tensor]) -> None:
    """Note the mean loss on the validation batches, and the gains on the first of them.

    In training mode with grad: this model has no dropout, and so the compiled graph is reused
    instead of compiling a second one for each of the three.
    """
    for runner in runners:
        losses = [runner.loss(batch).item() for batch in batches]
        runner.validation.append((step, statistics.fmean(losses)))
        if runner.observer is not None:
            runner.gains.append((step, runner.observer((), {"input_ids": batches[0]})))
