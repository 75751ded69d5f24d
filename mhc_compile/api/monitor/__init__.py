"""Monitor: looks at an upgraded model while it trains, every so many steps, and writes down what it sees.

`run_log`: the file, one JSON object a line; `scalars`: the same for TensorBoard and Weights & Biases; `run_header`:
what is written once; `gradients`: norms; `alarms`: dead and runaway streams; `hugging_face`, `lightning`: their
callbacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mhc_compile.api.gains import Observer, whole
from mhc_compile.api.gains.result import Gains
from mhc_compile.api.monitor import gradients, run_header
from mhc_compile.api.monitor.alarms import Alarms
from mhc_compile.api.monitor.run_log import RunLog
from mhc_compile.api.monitor.scalars import writers
from mhc_compile.errors import ConfigError, MHCError, warn


class Monitor:
    """Looks at a model every `every` steps: loss, gradient norms, gains and spread of its streams.

    Between these steps it keeps the losses, and does nothing else. A look costs one forward without gradients; the
    first one traces the model once more. The training graph is not compiled again, and random state, buffers and
    gradients stay as they are. Two warnings come once each, with what to do: streams that do not part, and composite
    gains over a bound.

        with mhc.Monitor(model, every=100, to="runs/a") as monitor:
            for batch in batches:
                loss = model(**batch).loss
                loss.backward()
                monitor.step(loss, optimizer, batch)
                optimizer.step()
                optimizer.zero_grad()

    `python -m mhc_compile report runs/a` makes a page of what it wrote. In a group of processes the first one writes;
    under FSDP all must call `step`, since they run the model together.
    """

    def __init__(
        self,
        model: nn.Module,
        every: int = 100,
        to: str | Path = "runs/mhc",
        *,
        inputs: Callable[[Any], Any] | None = None,
        probe: Any = None,
        bound: float = 10.0,
        also: Sequence[str] = (),
    ) -> None:
        """Open the log; one that is there goes on.

        Args:
            model: a model that was upgraded, compiled or not.
            every: how many steps lie between two looks.
            to: folder of the run.
            inputs: makes of a batch what the model is called with: a mapping of keywords, a tuple of arguments or one
                argument. By default the batch is that itself.
            probe: a batch to look at every time in place of that of the step, so that looks compare.
            bound: of composite gains, by their mean over tokens; beyond it comes the runaway warning.
            also: "tensorboard" and "wandb", to write the numbers there, too.

        Raises:
            NotUpgradedError: the model holds no mHC parameters.
            ConfigError: `every` or `bound` is out of range, or `also` names something else.
            MissingDependencyError: what `also` names is not installed.
            RunLogError: the folder holds the log of another version.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(f"every must be an integer >= 1, not {every!r}; for example every=100")
        if not bound > 1:
            raise ConfigError(f"bound must be a number > 1, not {bound!r}: doubly stochastic maps have gains of 1")
        self._observer = Observer(model, dynamic=True)
        self.model, self.every, self.to = whole(model), every, Path(to)
        self._inputs, self.probe = inputs, probe
        self._leads = not _in_group() or torch.distributed.get_rank() == 0
        self._runs = self._leads or any(hasattr(p, "placements") for p in model.parameters())
        self._log = RunLog(self.to) if self._leads else None
        self._also = writers(also, self.to) if self._leads else ()
        self._alarms = Alarms(self.model, bound)
        self._losses: list[Tensor | float] = []
        self.steps = self._log.steps if self._log is not None else 0
        self.gains: Gains | None = None  # the latest
        self._told = False

    def step(self, loss: Tensor | float | None = None, optimizer: Optimizer | None = None, batch: Any = None) -> None:
        """Count a training step, and look where its turn has come. Call it between backward and zero_grad.

        Args:
            loss: the step's loss.
            optimizer: tells learning rates.
            batch: what the model was called with (see `inputs`); without it, and without a probe, no gains are
                measured.

        Raises:
            MHCError: at the first look: the model does not run with this batch. Later looks only warn.
        """
        step, self.steps = self.steps, self.steps + 1
        if not self._runs:
            return
        if loss is not None:
            self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        if step % self.every == 0:
            self._look(step, optimizer, self.probe if self.probe is not None else batch)

    def note(self, step: int, **values: float) -> None:
        """Write numbers of a step that something else has measured, such as `loss`."""
        self._write({"kind": "step", "step": step, **values})

    def close(self) -> None:
        """Close the log, and let go of what was traced."""
        self._observer.close()
        for each in (self._log, *self._also):
            if each is not None:
                each.close()

    def __enter__(self) -> Monitor:
        """Return the monitor, which is closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def hugging_face(self) -> Any:
        """Return a `transformers.TrainerCallback`: `Trainer(..., callbacks=[monitor.hugging_face()])`.

        Raises:
            MissingDependencyError: transformers is not installed.
        """
        from mhc_compile.api.monitor.hugging_face import callback

        return callback(self)

    def lightning(self) -> Any:
        """Return a Lightning callback: `Trainer(callbacks=[monitor.lightning()])`.

        Raises:
            MissingDependencyError: lightning is not installed.
        """
        from mhc_compile.api.monitor.lightning import callback

        return callback(self)

    # -- a look -------------------------------------------------------------------------------------------------------

    def _look(self, step: int, optimizer: Optimizer | None, batch: Any) -> None:
        started = time.perf_counter()
        record: dict[str, Any] = {"kind": "step", "step": step, **self._taken_losses()}
        record["grad_norm"] = gradients.norms(self.model)
        if optimizer is not None:
            record["lr"] = [float(group["lr"]) for group in optimizer.param_groups]
        if batch is not None:
            args, kwargs = arguments(self._inputs(batch) if self._inputs is not None else batch)
            if not self._told:
                self._write(run_header.of(self.model, args, kwargs, self.every))
                self._told = True
            record |= self._seen(step, args, kwargs)
        record["seconds"] = time.perf_counter() - started
        self._write(record)
        if self.gains is not None and "sites" in record:
            for kind, text in self._alarms.heard(step, self.gains, optimizer):
                self._write({"kind": "warning", "step": step, "about": kind, "text": text})
                warn(text)

    def _seen(self, step: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the streams do, or why that is not known."""
        first = self.gains is None
        try:
            self.gains = self._observer(args, kwargs)
        except MHCError as error:
            if first:
                raise
            warn(f"the monitor could not look at step {step}, and training goes on: {error}")
            return {"error": str(error)}
        return {"sites": run_header.columns(self.gains)}

    def _taken_losses(self) -> dict[str, float]:
        """Return the step's loss, and mean and maximum of those since the last look."""
        losses = [float(loss) for loss in self._losses]
        self._losses.clear()
        if not losses:
            return {}
        largest = math.nan if any(map(math.isnan, losses)) else max(losses)
        return {"loss": losses[-1], "loss_mean": sum(losses) / len(losses), "loss_max": largest}

    def _write(self, record: dict[str, Any]) -> None:
        if self._log is not None:
            record = self._log.write(record)
        for each in self._also:
            each.write(record)


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that a batch stands for."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, (tuple, list)) else ((batch,), {})


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
