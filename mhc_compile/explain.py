"""explain: what the backend would do with a model, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mhc_compile.capture import Captured, original, run_captured
from mhc_compile.config import Config
from mhc_compile.errors import MHCWarning
from mhc_compile.plan import draw
from mhc_compile.report import Report, report_of


def explain(
    model: nn.Module, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *, config: Config | None = None
) -> Report:
    """Run the model once under capture and report its sites, the other adds with reasons, and the cost; change nothing.

    Args:
        model: any module, upgraded or not.
        args: positional arguments of a typical call.
        kwargs: keyword arguments of that call.
        config: what would be built; by default `Config()`.

    Raises:
        CaptureError: the model does not run with these arguments.
    """
    return survey(original(model), tuple(args), dict(kwargs or {}), config or Config())[0]


def survey(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], config: Config) -> tuple[Report, Captured]:
    """Run the model once under capture, plan its sites, and warn where there are none; return report and run."""
    captured = run_captured(model, args, kwargs)
    report = report_of(draw(captured, model, config), captured, model)
    if not report.sites:
        warnings.warn(f"mhc finds nothing to rewrite in {type(model).__name__}", MHCWarning, stacklevel=3)
    return report, captured
