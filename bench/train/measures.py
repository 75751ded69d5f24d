"""What is timed: steps that note their own seconds, so that one training step gives two of the measures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from bench.train.contenders import Entry, optimizer_of
from bench.train.setup import Setup
from mhc_compile.cli import measure

Laps = dict[str, list[float]]
WARMUP = 2
FORWARD_BACKWARD, TRAINING, PREFILL, DECODE = "forward + backward", "training step", "prefill", "decode"
TIMED = (FORWARD_BACKWARD, TRAINING, PREFILL, DECODE)
SPARE = 8  # places behind the prompt in the cache


class Served:
    """A contender that reads a prompt into a static cache, and writes one token behind it."""

    def __init__(self, one: Entry, setup: Setup, run: Any = None) -> None:
        self.run = run or one.compiled
        model: Any = one.model if run is None else run.model
        config, dtype = model.config, next(model.parameters()).dtype
        generator = torch.Generator().manual_seed(2)
        self.ids = torch.randint(256, (1, setup.prompt + 1), generator=generator).to(setup.device)
        self.cache = transformers.StaticCache(config=config, max_cache_len=setup.prompt + SPARE)
        heads = config.num_key_value_heads
        self.cache.early_initialization(1, heads, config.hidden_size // heads, dtype, torch.device(setup.device))
        self.length = setup.prompt

    def _from(self, place: int) -> None:
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(place)

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """Return the logits behind the prompt."""
        self._from(0)
        return self._logits(self.ids[:, : self.length])

    @torch.no_grad()
    def decode(self) -> torch.Tensor:
        """Return the logits behind one more token."""
        self._from(self.length)
        return self._logits(self.ids[:, self.length :])

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        out = self.run(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits
        return logits


def served(one: Entry, setup: Setup) -> Served:
    """Return a contender's own."""
    if one.served is None:
        one.served = Served(one, setup)
    found: Served = one.served
    return found


def _training(one: Entry) -> tuple[Callable[[], None], Laps]:
    optimizer = optimizer_of(one)
    laps: Laps = {FORWARD_BACKWARD: [], TRAINING: []}

    def step() -> None:
        first = measure.seconds_of(one.step)
        laps[FORWARD_BACKWARD].append(first)
        laps[TRAINING].append(first + measure.seconds_of(optimizer.step))

    return step, laps


def _inference(name: str, call: Callable[[], object]) -> tuple[Callable[[], None], Laps]:
    laps: Laps = {name: []}

    def step() -> None:
        call()  # torch looks at the code of the contender that ran last first; now that is this one
        laps[name].append(measure.seconds_of(call))

    return step, laps


def timed(
    made: Mapping[str, tuple[Callable[[], None], Laps]], rounds: int, baseline: str
) -> dict[str, dict[str, measure.Timing]]:
    """Run the steps in turns; return by measure and contender what was noted, the warm-up left out."""
    steps = {name: step for name, (step, _) in made.items()}
    for step in steps.values():
        for _ in range(WARMUP):
            step()
    counted = torch._dynamo.utils.counters["stats"]
    before = counted["unique_graphs"]
    measure.interleave(steps, rounds=rounds, warmup=0)
    if counted["unique_graphs"] != before:
        raise RuntimeError(f"something was compiled while {', '.join(next(iter(made.values()))[1])} was timed")
    names = next(iter(made.values()))[1]
    return {
        lap: measure.summarize({name: laps[lap][WARMUP:] for name, (_, laps) in made.items()}, baseline)
        for lap in names
    }


def times(entries: Mapping[str, Entry], setup: Setup, chosen: tuple[str, ...]) -> dict[str, dict[str, measure.Timing]]:
    """Time what is chosen, all contenders in turns; ratios are to the first."""
    baseline = next(iter(entries))
    found: dict[str, dict[str, measure.Timing]] = {}
    if {FORWARD_BACKWARD, TRAINING} & set(chosen):
        before = {name: copy.deepcopy(one.model.state_dict()) for name, one in entries.items()}
        found |= timed({name: _training(one) for name, one in entries.items()}, setup.rounds, baseline)
        for name, one in entries.items():
            one.model.zero_grad()
            one.model.load_state_dict(before[name])
    for one in entries.values():
        one.model.eval()
    ready = {name: served(one, setup) for name, one in entries.items()}
    calls: dict[str, Callable[[Served], Callable[[], object]]] = {
        PREFILL: lambda at: at.prefill,
        DECODE: lambda at: at.decode,
    }
    for measured, call in calls.items():
        if measured in chosen:
            steps = {name: _inference(measured, call(at)) for name, at in ready.items()}
            found |= timed(steps, setup.rounds * (4 if measured == DECODE else 1), baseline)
    for one in entries.values():
        one.model.train()
    return found
