"""Memory and time of a training step against L_r, the sites per block of selective recompute.

Measured, with what the planner predicts beside it: bytes saved for backward, and the peak of a whole step (forward,
backward, AdamW), each contender in a process of its own. Step times are compared within one process.

Contenders: plain (torch.compile without mhc), off (mhc, the compiler decides what is kept), numbers (L_r), auto, and
libraries by the names of `bench.train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import mhc_compile as mhc
from bench.common import RESULTS, images, place, save, tokens, vit
from bench.memory import report, resident
from bench.train.contenders import other, training_step
from bench.train.peers import PEERS
from mhc_compile.cli import bench, measure
from mhc_compile.cli.language import llama
from mhc_compile.plan.memory import Memory

MODELS = {"llama": (llama, tokens), "vit": (vit, images)}
SITES = 2  # of a layer
OFF = "off"
SIZES = ("1", "2", "4", "6", "8", "12", "24")
WARMUP = 3  # steps: the first compiles, the second finds the optimizer's state
_PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"))


@dataclass(frozen=True)
class Setup:
    """What is trained, and how often it is measured."""

    model: str = "llama"
    hidden: int = 512
    layers: int = 24
    length: int = 2048
    batch: int = 1
    streams: int = 4
    dtype: str = "float32"
    kernels: str = "auto"
    device: str = "cpu"
    threads: int = dataclasses.field(default_factory=torch.get_num_threads)
    peaks: int = 5
    rounds: int = 10

    def build(self) -> torch.nn.Module:
        """Return the model."""
        model = MODELS[self.model][0](self.hidden, self.layers, self.length)
        return model.to(self.device, getattr(torch, self.dtype))

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return the keyword arguments of a step."""
        made = MODELS[self.model][1](self.batch, self.length, self.device)
        dtype: torch.dtype = getattr(torch, self.dtype)
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}

    def options(self, name: str) -> dict[str, Any]:
        """Return the backend's options for a contender."""
        if not is_ours(name):
            return {}
        return {"streams": self.streams, "recompute": recompute(name), "kernels": self.kernels}

    def contender(self, name: str) -> bench.Contender:
        """Return a contender, not yet compiled."""
        if is_ours(name):
            return bench.contender("mhc", self.build(), (), self.inputs(), self.options(name))
        return other(name, self.build(), self.inputs(), self.streams)


def is_ours(name: str) -> bool:
    """Tell whether a contender is neither plain nor a library's."""
    return name != bench.PLAIN and name not in PEERS


def recompute(name: str) -> str | int | float:
    """Return the option that a contender's name spells."""
    for number in (int, float):
        try:
            return number(name)
        except ValueError:
            continue
    return name


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every contender, print the table, write the JSON and the plot."""
    args = arguments(argv)
    if args.worker:
        given = json.loads(args.worker)
        print(json.dumps(WORK[given["work"]](Setup(**given["setup"]), given["names"])))
        return

    setup = Setup(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Setup)})
    rows = [apart("memory", setup, [name], resident.ENVIRONMENT) for name in contenders(args.recompute, setup)]
    if setup.rounds:
        names = list(dict.fromkeys((OFF, bench.PLAIN, *args.time)))
        timed = apart("time", setup, names)
        for row in rows:
            row["time"] = timed.get(row["name"])
    rows = report.compared(rows)
    report.show(title(setup), rows)
    named = f"memory-{setup.model}"
    save(named, setup.device, asdict(setup), rows, args.out)
    if not args.no_plot:
        path = place(named, setup.device, args.out).with_suffix(".png")
        print(f"wrote {report.plot(title(setup), rows, path)}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = {"model": tuple(MODELS), "dtype": ("float32", "bfloat16")}
    texts = {"length": "tokens; of vit about so many patches", "peaks": "steps of which the peak is read"}
    texts["rounds"] = "timed steps of each; 0: none"
    for name, default in asdict(Setup()).items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, choices=choices.get(name), help=texts.get(name)
        )
    parser.add_argument("--recompute", nargs="*", default=[OFF, *SIZES, "auto"], help="off, auto, numbers, budgets")
    parser.add_argument("--time", nargs="*", default=["auto"], help="timed beside plain and off")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--no-plot", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def contenders(asked: Iterable[str], setup: Setup) -> list[str]:
    """Return plain and those that are asked for, without blocks that are longer than the model."""
    names = dict.fromkeys((bench.PLAIN, *asked))
    return [name for name in names if not name.isdigit() or int(name) <= SITES * setup.layers]


def title(setup: Setup) -> str:
    """Say what was measured."""
    shape = f"{setup.hidden} x {setup.layers}, {setup.batch} x {setup.length} tokens"
    return f"{setup.model} {shape}, n={setup.streams}, {setup.dtype}, {setup.device}"


def apart(work: str, setup: Setup, names: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Do some work in a process of its own: allocators and what compilers leave differ otherwise."""
    print(f"{work}: {', '.join(names)}", flush=True)
    given = json.dumps({"work": work, "setup": asdict(setup), "names": names})
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--worker", given],
        cwd=Path(__file__).parents[2],
        # Level 6: kineto has nothing to say on stderr.
        env={**os.environ, "KINETO_LOG_LEVEL": "6", **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def memory_of(setup: Setup, names: Sequence[str]) -> dict[str, Any]:
    """Measure the memory of one contender, here."""
    (name,) = names
    torch.set_num_threads(setup.threads)
    gauge = resident.gauge(setup.device)
    # What libraries and compilers take at their first use is no part of any contender.
    dataclasses.replace(setup, hidden=64, layers=1).build()
    measure.start_compiler(setup.device)
    gauge.settle()
    baseline = gauge.now()

    one = setup.contender(name)
    step = training_step(one)
    for _ in range(WARMUP):
        step()
    # A step begins as loops do: parameters and optimizer state are there, gradients of the step before dropped.
    measured = resident.peaks(gauge, step, one.model.zero_grad, setup.peaks)
    return {
        "name": name,
        "baseline": baseline,
        "before": [before for before, _ in measured],
        "peaks": [peak for _, peak in measured],
        "saved": one.saved(),
        "parameters": sum(p.numel() * p.element_size() for p in one.model.parameters()),
        "products": products(one),
        "plan": planned(setup, name, one) if is_ours(name) else None,
    }


def planned(setup: Setup, name: str, one: bench.Contender) -> dict[str, Any]:
    """Return what the planner predicts."""
    config = mhc.Config.from_options(setup.options(name))
    memory = mhc.explain(one.model, (), one.keywords, config=config, training=True).memory
    return plan_of(memory)


def plan_of(memory: Memory) -> dict[str, Any]:
    """Return the prediction as JSON has it; `token_sites` is tokens times sites."""
    runs = memory.counted
    named = {name: getattr(memory, name) for name in ("kept", "peak", "without", "before_rewrite", "moved")}
    return {
        **named,
        "sites": sum(len(run.sites) for run in runs),
        "token_sites": sum(len(run.sites) * run.tokens for run in runs),
        "sizes": sorted({run.size for run in runs}),
    }


def products(one: bench.Contender) -> dict[str, dict[str, int]]:
    """Count the matrix products that a step runs in either direction; recomputed branches would add to backward's."""
    one.model.zero_grad()
    with torch.profiler.profile() as forward:
        loss = one.forward()
    with torch.profiler.profile() as backward:
        torch.autograd.backward(loss)
    events = {"forward": forward.events(), "backward": backward.events()}
    return {direction: dict(Counter(filter(None, map(product, found or ())))) for direction, found in events.items()}


def product(event: Any) -> str:
    """Return which product a profiler's event is; "" where it is none, or part of another."""
    parent = event.cpu_parent
    while parent is not None:
        if _product(parent.name):
            return ""
        parent = parent.cpu_parent
    return _product(event.name)


def _product(name: str) -> str:
    kind = name.removeprefix("aten::").rstrip("_")
    return kind if name != kind and (kind in _PRODUCTS or kind.startswith("_scaled_dot_product")) else ""


def times_of(setup: Setup, names: Sequence[str]) -> dict[str, Any]:
    """Time whole steps of several contenders in turn; ratios are to off and to plain."""
    torch.set_num_threads(setup.threads)
    steps: dict[str, Callable[[], None]] = {}
    for name in names:
        torch._dynamo.reset()
        steps[name] = training_step(setup.contender(name))
        steps[name]()  # compiles
    to_off = measure.interleave(steps, rounds=setup.rounds, baseline=OFF)
    samples = {name: timing.samples for name, timing in to_off.items()}
    to_plain = measure.summarize(samples, bench.PLAIN)
    return {name: {"off": asdict(to_off[name]), "plain": asdict(to_plain[name])} for name in names}


WORK: dict[str, Callable[[Setup, Sequence[str]], dict[str, Any]]] = {"memory": memory_of, "time": times_of}
