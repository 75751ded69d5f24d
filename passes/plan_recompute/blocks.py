"""How many sites a block has: the paper's optimum, a number, or what fits a budget of memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch

from mhc_compile.config import Config
from mhc_compile.errors import MHCWarning
from mhc_compile.ops import connections, limits
from mhc_compile.ops.connections import Maps
from mhc_compile.passes.base import Plan, PlannedSite
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value
from mhc_compile.passes.plan_recompute.site_run import Run


def plan_blocks(plan: Plan, config: Config, devices: frozenset[str]) -> tuple[Run, ...]:
    """Cut a graph's sites into runs and decide the size of their blocks.

    Args:
        plan: the sites, in program order.
        config: its `recompute` decides.
        devices: the types of device whose sites run generated kernels.
    """
    if config.connection not in connections.CONNECTIONS:
        return ()
    runs = tuple(_runs(plan, config, devices))
    if config.recompute == "off":
        return runs
    ours = [run for run in runs if not run.aside]
    size = _sizes(config, ours)
    return tuple(run if run.aside else run.of(size(run)) for run in runs)


def _sizes(config: Config, runs: Sequence[Run]) -> Callable[[Run], int]:
    """Return how many sites a block of a run has."""
    budget = config.budget()
    if budget is not None:
        fits = _cheapest(runs, budget)
        return lambda run: fits
    if config.recompute == "auto":
        return best
    return lambda run: int(config.recompute)


def best(run: Run) -> int:
    """Return the size at which least is kept.

    Recomputed as a whole, that is the paper's argmin of n C ceil(L / L_r) + (n + 2) C L_r (Eq. 20), about
    sqrt(n L / (n + 2)). With replay no streams are made again; then bytes kept plus bytes moved are least, for blocks
    that a kernel replays from their head.
    """
    length, n = len(run.sites), run.streams
    if run.replays:
        return min(range(1, min(length, run.replays + 1) + 1), key=lambda size: run.of(size).kept + run.of(size).moved)
    return min(range(1, length + 1), key=lambda size: n * -(-length // size) + (n + 2) * size)


def peak(runs: Iterable[Run]) -> int:
    """Return the most bytes, of all tokens, that the streams of some runs need at once."""
    runs = tuple(runs)
    kept = sum(run.tokens * run.kept for run in runs)
    return kept + max((run.tokens * run.transient for run in runs), default=0)


def _cheapest(runs: Sequence[Run], budget: float) -> int:
    """Return the least size whose peak is within a budget, in bytes or as a share of the peak without recompute.

    Where none is, the one with the least peak, and a warning.
    """
    longest = max((len(run.sites) for run in runs), default=1)
    peaks = {size: peak(run.of(size) for run in runs) for size in range(1, longest + 1)}
    allowed = budget * peaks[1] if budget <= 1 else budget
    least = min(peaks, key=peaks.__getitem__)
    if peaks[least] > allowed:
        warnings.warn(
            f"the streams of this graph do not fit in the {allowed:,.0f} bytes that recompute allows: they are planned"
            f" for {peaks[least]:,}, the least there is; fewer tokens or fewer streams need less",
            MHCWarning,
            stacklevel=2,
        )
    return next((size for size, needed in peaks.items() if needed <= allowed), least)


def _runs(plan: Plan, config: Config, devices: frozenset[str]) -> Iterable[Run]:
    regions: dict[int, list[int]] = {}
    for index, site in enumerate(plan.sites):
        regions.setdefault(site.region, []).append(index)
    for indices in regions.values():
        group: list[int] = []
        for index in indices:
            if group and not _goes_on(plan.sites, group[-1], index):
                yield _run([plan.sites[i] for i in group], config, devices)
                group = []
            group.append(index)
        yield _run([plan.sites[i] for i in group], config, devices)


def _goes_on(sites: Sequence[PlannedSite], before: int, index: int) -> bool:
    """Tell whether a site continues the run of the one before it in its region."""
    totals = sites[before].residual.total, sites[index].residual.total
    dtypes = [tensor.dtype if (tensor := value(total)) is not None else None for total in totals]
    return (
        sites[index].predecessor == before
        and checkpoints.tags(totals[0]) == checkpoints.tags(totals[1])
        and dtypes[0] == dtypes[1]
    )


def _run(sites: Sequence[PlannedSite], config: Config, devices: frozenset[str]) -> Run:
    first, n = sites[0], config.streams
    tensor = value(first.residual.total)
    assert tensor is not None  # a residual has a value
    channels, itemsize = int(tensor.shape[first.residual.axis]), tensor.dtype.itemsize
    kernels = tensor.device.type in devices
    kernels = kernels and limits.why_not(n, config.connection, config.projection, tensor.dtype) is None
    kind, maps = connections.get(config.connection), Maps(n, config.projection, config.sinkhorn_iters)
    width, logits = kind.phi_shape(maps, channels)
    rows = n * channels // width
    return Run(
        tuple(site.residual.name for site in sites),
        first.region,
        n,
        channels,
        itemsize,
        _elements(tensor) // max(channels, 1),
        2 * n + n**2 + rows * (logits + 1),
        first.predecessor is None and not first.carried,
        bool(checkpoints.tags(first.residual.total)),
        limits.replay_limit(n, itemsize) if kernels else 0,
    )


def _elements(tensor: torch.Tensor) -> int:
    """Return the number of elements; of symbolic sizes those that were traced with."""
    number = tensor.numel()
    return int(number.node.hint) if isinstance(number, torch.SymInt) else int(number)
