"""Names of sites, and what they are made of."""

from __future__ import annotations

import pytest

from mhc_compile.passes.base import first_step, is_by_line, site_name


@pytest.mark.parametrize(
    ("label", "by_line"), [("line12", True), ("line12_3", True), ("line", False), ("line1_x", False)]
)
def test_a_label_by_line(label: str, by_line: bool) -> None:
    assert is_by_line(label) == by_line


@pytest.mark.parametrize(
    ("path", "step"),
    [("layers.0.mlp", "layers_0"), ("mlp.up", "mlp"), ("mlp", "mlp"), ("layers.11", "layers_11"), ("", "")],
)
def test_the_first_step_of_a_path(path: str, step: str) -> None:
    assert first_step(path) == step


def test_the_models_own_sites_have_their_label_alone() -> None:
    assert (site_name("layers.0", "mlp"), site_name("", "mlp")) == ("layers.0.mlp", "mlp")
