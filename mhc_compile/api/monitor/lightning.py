"""A callback for Lightning."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from mhc_compile.errors import MissingDependencyError


def callback(monitor: Any) -> Any:
    """Return a callback for `lightning.pytorch.Trainer`, or `pytorch_lightning.Trainer` where that is installed.

    It steps the monitor behind every optimizer step's batch; of batches that are accumulated, the last.

    Raises:
        MissingDependencyError: neither is installed.
    """
    name = next((n for n in ("lightning", "pytorch_lightning") if importlib.util.find_spec(n) is not None), None)
    if name is None:
        raise MissingDependencyError("monitor.lightning() needs lightning: pip install lightning")
    pl: Any = importlib.import_module("lightning.pytorch" if name == "lightning" else name)

    class MonitorCallback(pl.Callback):  # type: ignore[misc]  # a class that is imported here
        """Steps the monitor."""

        def __init__(self) -> None:
            super().__init__()
            self._steps = 0

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Look at the batch, where an optimizer has stepped."""
            if trainer.global_step == self._steps:
                return
            self._steps = trainer.global_step
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            monitor.step(loss, trainer.optimizers[0], batch)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            """Close the log."""
            monitor.close()

    return MonitorCallback()
