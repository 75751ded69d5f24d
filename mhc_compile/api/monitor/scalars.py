"""A run's numbers for TensorBoard and for Weights & Biases, through their own writers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mhc_compile.errors import ConfigError, MissingDependencyError


class Writer(Protocol):
    """Takes records of a run."""

    def write(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record."""

    def close(self) -> None:
        """Let go of what is open."""


class TensorBoard:
    """Writes event files into the run's folder."""

    def __init__(self, folder: Path) -> None:
        """Open them."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def write(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record."""
        for name, value in numbers(record):
            self._writer.add_scalar(f"mhc/{name}", value, record["step"])

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class WeightsAndBiases:
    """Writes into the run that is active, or into one of its own."""

    def __init__(self, folder: Path) -> None:
        """Start a run, where none is active."""
        import wandb

        self._own = wandb.run is None
        self._run: Any = wandb.run or wandb.init(name=folder.name, dir=str(folder))
        self._run.define_metric("mhc/step")
        self._run.define_metric("mhc/*", step_metric="mhc/step")

    def write(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record, against a step of their own: the user's run counts as it likes."""
        found = {f"mhc/{name}": value for name, value in numbers(record)}
        if found:
            self._run.log({**found, "mhc/step": record["step"]})

    def close(self) -> None:
        """Finish the run, where it is ours."""
        if self._own:
            self._run.finish()


_WRITERS: dict[str, tuple[str, type[TensorBoard] | type[WeightsAndBiases]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}


def writers(names: Sequence[str], folder: Path) -> tuple[Writer, ...]:
    """Return the writers of these names.

    Raises:
        ConfigError: there is none of a name.
        MissingDependencyError: its package is not installed.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in _WRITERS:
            raise ConfigError(f"also must name some of {', '.join(map(repr, _WRITERS))}, not {name!r}")
        package, _ = _WRITERS[name]
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(f"also={name!r} needs {package}; install with: pip install {package}")
    return tuple(_WRITERS[name][1](folder) for name in names)


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Iterate over the numbers of a record of a step, by name."""
    if record["kind"] != "step":
        return
    for name in ("loss", "loss_mean", "loss_max", "seconds"):
        if name in record:
            yield name, record[name]
    for name, value in record.get("grad_norm", {}).items():
        yield f"grad_norm/{name}", value
    sites = record.get("sites")
    if sites:
        for way in ("forward", "backward"):
            yield f"gain/{way}", max(sites[way])
            yield f"gain/composite_{way}", max(sites[f"composite_{way}"])
        for region in dict.fromkeys(sites["region"]):
            spreads = [value for value, at in zip(sites["spread"], sites["region"], strict=True) if at == region]
            yield f"spread/region_{region}", max(spreads)
