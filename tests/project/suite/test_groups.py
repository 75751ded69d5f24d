"""What is dear to make is made once: tests that share a fixture are a group, which pytest-xdist keeps on one worker."""

from __future__ import annotations

import pytest

from tests.project.rules import ROOT

pytestmark = pytest.mark.xdist_group("groups")


def test_a_group_reaches_xdist(request: pytest.FixtureRequest) -> None:
    """It travels in the node's id, which a release of pytest may hold elsewhere than one of xdist looks."""
    grouped = hasattr(request.config, "workerinput") and request.config.getoption("loadgroup")
    assert request.node.nodeid.endswith("@groups") is bool(grouped)


def test_who_shares_is_a_group() -> None:
    sharing = [path for path in (ROOT / "tests").rglob("*.py") if 'fixture(scope="' in path.read_text("utf-8")]
    assert len(sharing) > 5
    assert [path.name for path in sharing if "xdist_group(" not in path.read_text("utf-8")] == []
