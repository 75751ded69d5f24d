"""What training keeps of the streams, as users are told."""

from __future__ import annotations

import pytest

import mhc_compile as mhc
from mhc_compile.plan.memory import Memory, readable
from tests.nets import small
from tests.nets.checkpointed import Checkpointed
from tests.nets.small import Net, inputs, made, upgraded

TOKENS, CHANNELS, SITES = 15, 16, 8
PLAIN = 4 * CHANNELS  # bytes of one stream of a token
EACH = PLAIN + 4 * 49  # a branch's output and coefficients


def memory(how: str | float, **options: object) -> Memory:
    config = mhc.Config.from_options({"recompute": how, "kernels": "reference", **options})
    return mhc.explain(made(Net, 4), (inputs(),), config=config, training=True).memory


def test_of_all_tokens() -> None:
    found = memory(4)
    kept = PLAIN + 4 * PLAIN + SITES * EACH
    assert found.kept == TOKENS * kept
    assert found.peak == TOKENS * (kept + 3 * 4 * PLAIN)
    assert found.without == TOKENS * (PLAIN + 7 * 4 * PLAIN + SITES * EACH)
    assert found.before_rewrite == TOKENS * SITES * PLAIN
    assert found.moved == TOKENS * 6 * (9 * PLAIN + 4 * 20)


def test_table() -> None:
    report = mhc.explain(made(Net, 4), (inputs(),), config=mhc.Config(recompute=4, kernels="reference"), training=True)
    head, _, row, line = str(report).splitlines()[-4:]
    assert head.split("  ")[0] == "region"
    assert row.split()[:3] == ["0", "8", "4"]
    found = report.memory
    wanted = (found.kept, report.memory.peak - found.kept, found.without, found.before_rewrite, found.moved)
    assert " ".join(row.split()[3:]) == " ".join(readable(size / TOKENS) for size in wanted)
    assert line.startswith(f"streams in a training step of 15 tokens with recompute=4: {readable(found.kept)} kept, ")


def test_only_where_it_is_asked_for() -> None:
    assert "training step" not in str(mhc.explain(made(), (inputs(),)))
    assert "training step of 15 tokens with recompute='auto'" in str(mhc.upgrade(made(), (inputs(),)))
    assert mhc.upgrade(upgraded(), (inputs(),)).memory.runs == ()  # nothing was run


def test_off() -> None:
    found = memory("off")
    assert (found.kept, found.peak, found.moved) == (found.without, found.without, 0)


def test_inside_of_checkpoints_nothing_is_counted() -> None:
    report = mhc.explain(made(Checkpointed, 3), (inputs(),), training=True)
    assert report.memory.kept == report.memory.before_rewrite == 0
    assert str(report).count("as the model's own checkpoint decides") == 3
    assert "training step" not in str(report)


def test_sites_that_are_left_alone_are_not_counted() -> None:
    report = mhc.explain(made(small.Net, 3), (inputs(),), config=mhc.Config(exclude=("blocks.1.*",)))
    assert {name for run in report.memory.runs for name in run.sites} == {site.name for site in report.sites}


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 * 2**30, "5 GiB"), (2**45, "3.277e+04 GiB")],
)
def test_readable(size: int, text: str) -> None:
    assert readable(size) == text
