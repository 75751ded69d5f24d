"""Names by line, of older releases: read where they tell which site is which."""

from __future__ import annotations

import pytest

from mhc_compile.model.line_names import renamed, same_sites


def test_labels_are_renamed_in_program_order() -> None:
    assert renamed(["line6", "f", "line6_1"], ["w_0", "f", "w_1"]) == {"line6": "w_0", "line6_1": "w_1"}
    assert renamed(["f"], ["f"]) == {}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(["line6", "line7"], ["w_0"]), (["g"], ["f"]), (["line6", "g"], ["w", "f"])],
    ids=["other number", "other name", "one of them by line"],
)
def test_other_sites_are_not_renamed(theirs: list[str], ours: list[str]) -> None:
    assert renamed(theirs, ours) == {}


def site(name: str, predecessor: str | None = None, **more: int) -> dict[str, object]:
    return {"name": name, "predecessor": predecessor, **more}


def test_plans_are_the_same_apart_from_names_by_line() -> None:
    theirs = [site("b.line6"), site("b.f", "b.line6"), site("line9_1", "b.f")]
    ours = [site("b.w_0"), site("b.f", "b.w_0"), site("w", "b.f")]
    assert same_sites(theirs, ours)
    assert not same_sites(theirs, ours[:2])
    assert not same_sites([site("b.g"), *theirs[1:]], ours)
    assert not same_sites([site("c.line6"), *theirs[1:]], ours)  # another owner
    assert not same_sites([site("b.line6", k=1), *theirs[1:]], ours)
