"""A callback for Hugging Face's Trainer."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import torch
from torch.utils._pytree import tree_map

from mhc_compile.errors import MissingDependencyError, warn


def callback(monitor: Any) -> Any:
    """Return a `TrainerCallback`.

    The Trainer hands no batch to callbacks. So where the monitor has no probe, the first examples of the training set
    become it: taken from the data set itself, which leaves the order of the training alone. Losses are those that the
    Trainer logs, norms of gradients those that it leaves when it has clipped.

    Raises:
        MissingDependencyError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError(
            "monitor.hugging_face() needs transformers; install with: pip install transformers"
        )
    from transformers import TrainerCallback

    class MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are Any here
        """Steps the monitor."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Take the probe; a run that is resumed goes on with its step."""
            monitor.steps = state.global_step
            if monitor.probe is None:
                monitor.probe = first_batch(given.get("train_dataloader"), args.device)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Look, while the gradients are there."""
            optimizer = given.get("optimizer")
            monitor.step(None, getattr(optimizer, "optimizer", optimizer), None)

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Note the loss that the Trainer logs."""
            logs = given.get("logs") or {}
            if "loss" in logs:
                monitor.note(state.global_step, loss=float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Close the log."""
            monitor.close()

    return MonitorCallback()


def first_batch(loader: Any, device: torch.device) -> Any:
    """Return the first examples of a loader's data set as a batch on a device; None where there is no way to them."""
    dataset, collate, size = (getattr(loader, name, None) for name in ("dataset", "collate_fn", "batch_size"))
    if dataset is None or collate is None:
        warn("the monitor finds no training set, so it looks at no gains; give it a batch: Monitor(model, probe=batch)")
        return None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        count = min(size or 1, len(dataset)) if hasattr(dataset, "__len__") else size or 1
        taken = (
            [dataset[i] for i in range(count)] if hasattr(dataset, "__getitem__") else itertools.islice(dataset, count)
        )
        batch = collate(list(taken))
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, dict(batch))
