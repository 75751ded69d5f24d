"""The documents say what is: links resolve, listings are what the code prints, tables name what there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import mhc_compile as mhc
from mhc_compile import errors
from mhc_compile.passes import reasons
from tests.project.documents import MAKERS, REMEDY, arguments, documents, made, ops, parts
from tests.project.rules import ROOT

LONGEST = 320
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def column(text: str, heading: str) -> list[str]:
    """The names in the first column of the tables under a heading, until the next heading of its level."""
    level = heading.split(" ")[0]
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"there is no {heading!r}"
    section = re.split(rf"\n{level} ", rest)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    for link in _LINK.findall(text):
        file, _, anchor = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        target = path.parent / file if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{path.name} links to {link}"


def anchors(path: Path) -> set[str]:
    """What GitHub calls a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    folder = ROOT / "docs"
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")} - {"README.md"}
    assert pages == {link for link in _LINK.findall(text_of("docs/README.md")) if not link.startswith("..")}


def test_no_page_is_longer_than_one_reads() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "docs").glob("*.md")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert len(text_of("README.md").splitlines()) <= 150


WRITTEN = {name: path for path in documents() for name, _ in parts(path.read_text("utf-8"))}


def test_every_maker_has_its_place() -> None:
    assert WRITTEN.keys() == MAKERS.keys()
    assert all(
        path.read_text("utf-8").count("<!-- made: ") == len(list(parts(path.read_text("utf-8"))))
        for path in documents()
    )


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_from_code_is_what_the_code_makes(name: str) -> None:
    old = dict(parts(WRITTEN[name].read_text("utf-8")))[name]
    assert made(old) == old, f"{name} in {WRITTEN[name].name} is out of date: {REMEDY}"


def test_listings_are_short() -> None:
    text = text_of("docs/architecture.md")
    listings = [part for name, part in parts(text) if name not in ("folders", "pipeline")]
    for listing in listings:
        code = [line for line in listing.splitlines() if not line.startswith(("<!--", "```", "return", "    "))]
        assert 2 <= len(code) <= 12


def test_the_rewrite_of_the_page_computes_what_the_model_computes() -> None:
    from tests.project.listings import Pair

    model, x = Pair(), torch.randn(2, 3, 16)
    before = model(x)
    mhc.upgrade(model, (x,))
    assert torch.allclose(torch.compile(model, backend="mhc", options={"compiler": "eager"})(x), before, atol=1e-5)


def test_every_op_has_a_row() -> None:
    text = text_of("docs/ir.md")
    rows = [name for heading in ("## Ops of a site", "## Fused ops", "## Blocks") for name in column(text, heading)]
    mentioned = [name for name in rows if name in ops()]
    assert sorted(mentioned) == ops()


def test_every_argument_of_an_op_has_a_row() -> None:
    rows = column(text_of("docs/ir.md"), "## Arguments")
    used = {name for op in ops() for name in arguments(op)}
    assert len(rows) == len(set(rows))
    assert set(rows) == used


def test_every_option_has_a_row() -> None:
    rows = column(text_of("docs/use.md"), "## Config")
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(mhc.Config))


def test_every_reason_has_a_row() -> None:
    words = dict.fromkeys(("other", "site", "function", "why"), "")
    shown = {reasons.reject(key, owner="", source="", spot=None, **words).reason for key in reasons.ADDS}
    assert set(column(text_of("docs/finding.md"), "## Reasons")) == shown
    assert set(column(text_of("docs/finding.md"), "## What a kernel leaves out")) == reasons.LEFT_OUT.keys()


def test_reasons_are_told_of_as_they_are() -> None:
    """Whether an add is a residual connection stands in the second column."""
    _, _, section = text_of("docs/finding.md").partition("\n## Reasons\n")
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    told = {name: answer.strip() == "yes" for names, answer in rows for name in re.findall(r"`([^`]+)`", names)}
    assert {key: residual for key, (residual, _) in reasons.ADDS.items() if told.get(key, residual) != residual} == {}


def test_the_zoo_is_quoted_right() -> None:
    found = re.search(r"\*\*(\d+) of (\d+) families pass", text_of("bench/results/ZOO.md"))
    assert found is not None
    for page in ("README.md", "docs/limits.md"):
        assert re.findall(r"(\d+) architectures.{1,120}? (\d+) pass in", text_of(page).replace("\n", " ")) == [
            found.groups()[::-1]
        ]


def test_errors_that_are_named_exist() -> None:
    for path in documents():
        named = set(re.findall(r"`(\w+(?:Error|Warning))`", path.read_text("utf-8")))
        assert [name for name in named if not hasattr(errors, name)] == [], path.name


def test_every_public_name_is_told_of() -> None:
    text = "".join(path.read_text("utf-8") for path in documents() if path.name != "CHANGELOG.md")
    calls = [name for name in mhc.__all__ if name[0].islower() and name[0] != "_"]
    assert [name for name in calls if f"{name}(" not in text] == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/use.md", "docs/finding.md"])
def test_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)\s*make ([a-z][a-z-]*)", text_of(name), re.MULTILINE))
    assert named - targets == set()
    assert named


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(path: Path) -> None:
    """Paths in backticks that start in a folder of the project's."""
    named = re.findall(r"`((?:mhc_compile|passes|tests|bench|docs)/[\w/.-]+)`", path.read_text("utf-8"))
    assert [file for file in named if not (ROOT / file).exists()] == []
