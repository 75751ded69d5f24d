"""The table of reasons: nothing in it is dead, and nothing is said that is not in it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from mhc_compile.passes import reasons
from mhc_compile.passes.reasons import ADDS, CUTS, LEFT_OUT, reject


def texts() -> str:
    """All code beside the table itself."""
    root = Path(reasons.__file__).resolve().parents[1]
    files = {*root.glob("passes/**/*.py"), *root.glob("mhc_compile/**/*.py")}
    return "\n".join(path.read_text("utf-8") for path in sorted(files) if path.name != "reasons.py")


def test_every_reason_is_given_somewhere() -> None:
    code = texts()
    assert len(code) > 100_000  # the glob found the sources
    assert [reason for table in (ADDS, CUTS, LEFT_OUT) for reason in table if f'"{reason}"' not in code] == []


def test_texts_name_what_is_known() -> None:
    fields = {field for _, text in ADDS.values() for _, field, _, _ in string.Formatter().parse(text) if field}
    assert fields == {"other", "site", "function", "why"}
    assert not any(
        text.endswith(".") for text in [*CUTS.values(), *LEFT_OUT.values(), *(r.text for r in ADDS.values())]
    )


def test_a_rejection_has_the_text_and_the_kind_of_its_reason() -> None:
    made = reject("nested", owner="layers.0", source="a.py:3", node="add_1", other="a.py:1")
    assert (made.reason, made.residual, made.owner, made.source, made.node) == (
        "nested", True, "layers.0", "a.py:3", "add_1"
    )  # fmt: skip
    assert "such as a.py:1;" in made.message


def test_one_word_may_be_said_of_two_cases() -> None:
    inside, alone = (reject(reason, owner="", source="") for reason in ("skip-scaled", "skip-scaled-alone"))
    assert inside.reason == alone.reason == "skip-scaled"
    assert inside.message != alone.message


def test_what_is_not_in_the_table_cannot_be_said() -> None:
    with pytest.raises(KeyError):
        reject("because", owner="", source="")
