"""How many sites a block has: the paper's optimum, a number, or what fits a budget of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mhc_compile.config import Config
from mhc_compile.errors import warn
from mhc_compile.ops import connections, limits
from mhc_compile.ops.connections import Maps
from mhc_compile.passes.base import SiteFacts
from mhc_compile.passes.plan_recompute.site_run import SiteRun


def plan_blocks(sites: Sequence[SiteFacts], config: Config) -> tuple[SiteRun, ...]:
    """Cut a graph's sites, in program order, into runs, and decide the size of their blocks by `config.recompute`."""
    if config.connection not in connections.CONNECTIONS:
        return ()
    runs = tuple(_runs(sites, config))
    if config.recompute == "off":
        return runs
    ours = [run for run in runs if not run.under_checkpoint]
    size = _sizes(config, ours)
    return tuple(run if run.under_checkpoint else run.in_blocks_of(size(run)) for run in runs)


def _sizes(config: Config, runs: Sequence[SiteRun]) -> Callable[[SiteRun], int]:
    """Return how many sites a block of a run has."""
    budget = config.budget()
    if budget is not None:
        fits = _cheapest(runs, budget)
        return lambda run: fits
    if config.recompute == "auto":
        return best
    return lambda run: int(config.recompute)


def best(run: SiteRun) -> int:
    """Return the size at which least is kept.

    Recomputed as a whole, that is the paper's argmin of n C ceil(L / L_r) + (n + 2) C L_r (Eq. 20), about
    sqrt(n L / (n + 2)). With replay no streams are made again; then bytes kept plus bytes moved are least, for blocks
    that a kernel replays from their head.
    """
    length, n = len(run.sites), run.streams
    if run.replays:
        return min(
            range(1, min(length, run.replays + 1) + 1),
            key=lambda size: run.in_blocks_of(size).kept + run.in_blocks_of(size).moved,
        )
    return min(range(1, length + 1), key=lambda size: n * -(-length // size) + (n + 2) * size)


def peak(runs: Iterable[SiteRun]) -> int:
    """Return the most bytes, of all tokens, that the streams of some runs need at once."""
    runs = tuple(runs)
    kept = sum(run.tokens * run.kept for run in runs)
    return kept + max((run.tokens * run.transient for run in runs), default=0)


def _cheapest(runs: Sequence[SiteRun], budget: float) -> int:
    """Return the least size whose peak is within a budget, in bytes or as a share of the peak without recompute.

    Where none is, the one with the least peak, and a warning.
    """
    longest = max((len(run.sites) for run in runs), default=1)
    peaks = {size: peak(run.in_blocks_of(size) for run in runs) for size in range(1, longest + 1)}
    allowed = budget * peaks[1] if budget <= 1 else budget
    least = min(peaks, key=peaks.__getitem__)
    if peaks[least] > allowed:
        warn(
            f"the streams of this graph do not fit in the {allowed:,.0f} bytes that recompute allows: they are planned"
            f" for {peaks[least]:,}, the least there is; fewer tokens or fewer streams need less"
        )
    return next((size for size, needed in peaks.items() if needed <= allowed), least)


def _runs(sites: Sequence[SiteFacts], config: Config) -> Iterable[SiteRun]:
    """Cut each region where a site does not continue the run of the site before it."""
    regions: dict[int, list[int]] = {}
    for index, site in enumerate(sites):
        regions.setdefault(site.region, []).append(index)
    for indices in regions.values():
        group: list[int] = []
        for index in indices:
            if group and not _goes_on(sites, group[-1], index):
                yield _run([sites[i] for i in group], config)
                group = []
            group.append(index)
        yield _run([sites[i] for i in group], config)


def _goes_on(sites: Sequence[SiteFacts], before: int, index: int) -> bool:
    """Tell whether a site continues the run of the one before it in its region."""
    a, b = sites[before], sites[index]
    return b.predecessor == before and a.checkpoint == b.checkpoint and a.dtype == b.dtype


def _run(sites: Sequence[SiteFacts], config: Config) -> SiteRun:
    first, n = sites[0], config.streams
    kind, maps = connections.get(config.connection), Maps.of(config)
    width, logits = kind.phi_shape(maps, first.channels)
    rows = n * first.channels // width
    return SiteRun(
        sites=tuple(site.name for site in sites),
        region=first.region,
        streams=n,
        channels=first.channels,
        itemsize=first.dtype.itemsize,
        tokens=first.tokens,
        coefficients=2 * n + n**2 + rows * (logits + 1),
        starts=first.starts,
        under_checkpoint=bool(first.checkpoint),
        replays=limits.replay_limit(n, first.dtype.itemsize) if first.generated else 0,
    )
