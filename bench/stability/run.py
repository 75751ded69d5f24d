"""The command line of `python -m bench.stability [QUESTION ...]`: train what no result is there of, and print tables.

Hours on two cores; what is there already is kept, so the command may be stopped and given again. `--quick` takes two
minutes, and leaves the results alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as any_of
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.common import show
from bench.stability import plot, questions, verdicts
from bench.stability.store import PATH, Store
from bench.stability.trial import Trial
from mhc_compile.cli import bench, measure

ALONE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # as many processes as cores run already
CAPTION = "*: best learning rate; norm and rise: the worst of gradient and loss; forward, backward: largest gains"


def main(argv: Sequence[str] | None = None) -> int:
    """Train and tell; return 1 where a trial failed."""
    args = arguments(argv)
    measure.require("transformers", "rich", "matplotlib")
    trials = questions.quick() if args.quick else questions.answering(args.questions)
    store = Store(args.out)
    failed = train(store, trials, args.jobs, args.compiler)
    there = {trial: store.records[trial] for trial in trials if trial in store.records}
    show(CAPTION, verdicts.HEADS, verdicts.rows(verdicts.summaries(there)), width=150)
    drawn = plot.plot(store.records, store.path.with_suffix(".png"))
    print(f"results: {store.path}" + (f" and {drawn}" if drawn else ""))
    return 1 if failed else 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.stability", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(questions.QUESTIONS)} (all)")
    parser.add_argument("--quick", action="store_true", help="small, short and one seed, into a temporary file")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, each on one thread")
    parser.add_argument("--compiler", choices=("inductor", "aot_eager", "eager"), default="inductor")
    parser.add_argument("--out", type=Path, help="the file of results")
    args = parser.parse_args(argv)
    if unknown := set(args.questions) - set(questions.QUESTIONS):
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(questions.QUESTIONS)}")
    args.questions = args.questions or list(questions.QUESTIONS)
    quick = Path(tempfile.gettempdir()) / "mhc-stability.json"
    args.out = args.out or (quick if args.quick else PATH)
    return args


def train(store: Store, trials: Sequence[Trial], jobs: int, compiler: str = "inductor") -> int:
    """Train what is missing, some trials at a time, each in a process of its own; return how many failed."""
    os.environ |= ALONE
    multiprocessing.set_forkserver_preload(["bench.stability.training", "transformers.models.llama.modeling_llama"])
    waiting, failed = store.missing(trials), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=bench.console()) as bar:
        whole = bar.add_task("trials", total=len(waiting))
        running: dict[Connection, tuple[Trial, Any]] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                begin(waiting.pop(0), compiler, running, bar)
            for answer in any_of(list(running)):
                assert isinstance(answer, Connection)
                trial, task = running[answer]
                kind, *said = heard(answer)
                if kind == "step":
                    bar.update(task, completed=said[0], description=f"{trial.key}: {said[1]:.3f}")
                    continue
                del running[answer]
                bar.remove_task(task)
                bar.advance(whole)
                if kind == "record":
                    store.add(trial, said[0])
                else:
                    failed += 1
                    bar.console.print(f"{trial.key}: {said[0]}")
    return failed


def begin(trial: Trial, compiler: str, running: dict[Connection, tuple[Trial, Any]], bar: Progress) -> None:
    """Start a trial."""
    server = multiprocessing.get_context("forkserver")  # which has torch already
    ours, theirs = server.Pipe(duplex=False)
    server.Process(target=work, args=(trial, compiler, theirs), daemon=True).start()
    theirs.close()
    running[ours] = (trial, bar.add_task(trial.key, total=trial.before + trial.steps))


def heard(answer: Connection) -> tuple[Any, ...]:
    """Return what a process says, or that it died."""
    try:
        said: tuple[Any, ...] = answer.recv()
    except EOFError:
        return ("error", "its process died")
    return said


def work(trial: Trial, compiler: str, answer: Connection) -> None:
    """Train in this process, and say how it goes."""
    from bench.stability.training import train as run

    torch.set_num_threads(1)
    try:
        answer.send(("record", run(trial, lambda step, loss: answer.send(("step", step, loss)), compiler)))
    except Exception:  # one trial that fails must not end the others
        answer.send(("error", traceback.format_exc()))
