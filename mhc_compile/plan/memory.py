"""What training keeps of the streams and what its backward makes again: the plan of plan_recompute, for users."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from mhc_compile.config import Config
from mhc_compile.passes.base import Plan
from mhc_compile.passes.plan_recompute import blocks
from mhc_compile.passes.plan_recompute.site_run import SiteRun


@dataclasses.dataclass(frozen=True)
class Memory:
    """How the sites of a model share blocks, and the bytes of all tokens of the run that was captured.

    They are those that the streams need: heads of blocks, outputs of branches and coefficients, nothing that branches
    keep themselves. Sites inside the model's own activation checkpoints are not counted.

    Attributes:
        runs: sites in a row; each run has blocks of its own, and its bytes are per token.
        recompute: the option.
    """

    runs: tuple[SiteRun, ...] = ()
    recompute: str | int | float = "auto"

    @property
    def counted(self) -> tuple[SiteRun, ...]:
        """The runs outside of the model's own checkpoints."""
        return tuple(run for run in self.runs if not run.under_checkpoint)

    @property
    def kept(self) -> int:
        """Bytes that live from forward to backward."""
        return sum(run.tokens * run.kept for run in self.counted)

    @property
    def peak(self) -> int:
        """Most bytes at once: what is kept, and the streams that one block makes again."""
        return blocks.peak(self.counted)

    @property
    def without(self) -> int:
        """Bytes that would be kept if every site kept its streams."""
        return sum(run.tokens * run.in_blocks_of(1).kept for run in self.counted)

    @property
    def before_rewrite(self) -> int:
        """Bytes that the model keeps of its residual stream before the rewrite."""
        return sum(run.tokens * run.before_rewrite for run in self.counted)

    @property
    def moved(self) -> int:
        """Bytes that recomputing reads and writes in a step."""
        return sum(run.tokens * run.moved for run in self.counted)

    def table(self, regions: Mapping[str, int]) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Return head and rows of a table in bytes per token; `regions` has the region of every site."""
        head = ("region", "sites", "block", "kept", "transient", "no recompute", "before rewrite", "moved again")
        rows: list[Sequence[str]] = []
        for run in self.runs:
            place = str(regions[run.sites[0]]), str(len(run.sites))
            if run.under_checkpoint:
                rows.append((*place, "as the model's own checkpoint decides", "", "", "", "", ""))
                continue
            block = (str(run.size) if run.size else "-") + (" in kernels" if run.replays and run.size else "")
            sizes = (run.kept, run.transient, run.in_blocks_of(1).kept, run.before_rewrite, run.moved)
            rows.append((*place, block, *map(readable, sizes)))
        return head, rows

    def lines(self) -> Iterable[str]:
        """Say what all tokens take."""
        tokens = max((run.tokens for run in self.counted), default=0)
        if not tokens:
            return
        yield (
            f"streams in a training step of {tokens:,} tokens with recompute={self.recompute!r}:"
            f" {readable(self.kept)} kept, {readable(self.peak)} at the peak; {readable(self.without)} if every site"
            f" kept its streams, {readable(self.before_rewrite)} before the rewrite; {readable(self.moved)} moved again"
        )


def readable(size: float) -> str:
    """Return bytes as "1.5 MiB"."""
    power = min(max(int(size).bit_length() - 1, 0) // 10, 3)
    return f"{size / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def planned(plans: Iterable[Plan], config: Config, sites: Iterable[str]) -> Memory:
    """Return the memory of graphs that are planned.

    Args:
        plans: of every graph.
        config: what would be built.
        sites: the names of those that the model's plan has.
    """
    named = set(sites)
    facts = ([site.facts for site in plan.sites] for plan in plans)
    runs = (run for each in facts for run in blocks.plan_blocks(each, config))
    return Memory(tuple(run for run in runs if named.issuperset(run.sites)), config.recompute)
