"""The zoo's registry is sound, its judge can say no, and its quick families pass."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from bench.zoo import __main__ as zoo
from bench.zoo import check, table
from bench.zoo.__main__ import chosen
from bench.zoo.family import Family, each, lib
from bench.zoo.registry import DOMAINS, FAMILIES
from tests.nets.small import Net, inputs

QUICK = chosen([], quick=True)


def net(parts: dict[str, int], build: Any = Net, **about: Any) -> Family:
    return Family("tests", "net", build, lambda: ((inputs(),), {}), parts, **about)


def test_names_are_unique() -> None:
    assert [name for name, count in Counter(family.key for family in FAMILIES).items() if count > 1] == []


def test_there_are_many_families_of_many_kinds() -> None:
    assert len(FAMILIES) >= 150
    assert len({family.library for family in FAMILIES}) >= 5
    assert all(DOMAINS.values())


def test_slack_has_a_reason() -> None:
    assert [
        family.key for family in FAMILIES if (family.slack or family.still or not family.parts) and not family.note
    ] == []


@pytest.mark.parametrize(
    ("names", "found"),
    [(["llama"], ["transformers/llama"]), (["transformers/gpt2", "ber?"], ["transformers/gpt2", "transformers/bert"])],
    ids=["a name", "a path and a pattern"],
)
def test_choice(names: list[str], found: list[str]) -> None:
    assert [family.key for family in chosen(names, quick=False)] == found


@pytest.mark.slow
@pytest.mark.parametrize("family", QUICK, ids=lambda family: family.name)
def test_quick_family(family: Family) -> None:
    torch._dynamo.reset()
    row = check.check(family)
    assert (row.verdict, row.why) == ("pass", "")


def test_right_count_passes() -> None:
    row = check.check(net(each("attention", "mlp")))
    assert (row.verdict, row.sites, row.graphs, row.recompilations, row.dead) == ("pass", 4, 1, 0, 0)
    assert row.moved
    assert row.output_error is not None


def test_wrong_count_fails() -> None:
    assert check.check(net({"mlp": 3})).why == "4 found"
    assert check.check(net({"mlp": 3}, slack=1, note="on purpose")).verdict == "pass"


def test_failures_are_rows() -> None:
    def broken() -> nn.Module:
        raise ValueError("no such size")

    assert check.check(net({}, broken)).why == "build: ValueError: no such size"
    absent = check.check(lib("no_such_library:Model", "model", {}, inputs, {}))
    assert (absent.verdict, absent.why) == ("absent", "no module no_such_library")


def test_table_lists_what_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "zoo.json")
    monkeypatch.setattr(table, "TABLE", tmp_path / "ZOO.md")
    good, bad = FAMILIES[:2]
    rows = [dataclasses.replace(check.empty(good), verdict="pass"), dataclasses.replace(check.empty(bad), why="a | b")]
    trained = dataclasses.replace(rows[0], mode="train", why="a value", verdict="value")
    no_switch = dataclasses.replace(rows[1], mode="train", verdict="none")
    for row in (*rows, trained, no_switch):  # each time by what the file says
        table.Results({}).add(row)
    results = table.Results({})
    results.write_table()
    text = (tmp_path / "ZOO.md").read_text("utf-8")
    assert "**1 of 2 families pass** (" in text
    assert "**0 of 1 families pass** in mode train (" in text
    assert f"| {bad.key} | eval | error | a \\| b |" in text
    assert f"| {good.key} | train | value | a value |" in text
    assert text.count(f"| {good.key} |") == 2  # what fails, and the table of the mode
    assert f"Revision of every row: {table.revision()}" in text


@pytest.mark.parametrize(("revision", "known"), [("abc1234", True), ("abc1234+", False)])
def test_a_run_goes_on_where_it_was(
    revision: str, known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path / "zoo.json")
    monkeypatch.setattr(table, "TABLE", tmp_path / "ZOO.md")
    monkeypatch.setattr(table, "revision", lambda: revision)
    monkeypatch.setattr("bench.zoo.runner.rows", lambda families, *_: map(check.empty, families))
    assert zoo.main(["llama", "gpt2", "--mode", "eval,train"]) == 1
    rows = json.loads((tmp_path / "zoo.json").read_text("utf-8"))["rows"]
    assert [(row["name"], row["mode"], row["git"]) for row in rows] == [
        (name, mode, revision) for mode in ("eval", "train") for name in ("llama", "gpt2")
    ]
    capsys.readouterr()
    zoo.main(["llama", "--mode", "train,checkpoint", "--resume"])
    assert capsys.readouterr().out.splitlines()[-1] == f"0 of {1 if known else 2} pass"
    with pytest.raises(SystemExit):
        zoo.main(["--mode", "trian"])


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_runner_makes_rows_of_crashes_and_timeouts() -> None:
    import os
    import time

    from bench.zoo import runner

    def crash() -> nn.Module:
        os._exit(3)

    def sleep() -> nn.Module:
        time.sleep(60)
        return Net()

    families = [net({}, crash), net(each("attention", "mlp"))]
    crashed, passed = runner.rows(families, jobs=1, limit=60)
    assert (crashed.verdict, crashed.why, passed.verdict) == ("crash", "exit code 3", "pass")
    assert [row.verdict for row in runner.rows([net({}, sleep)], jobs=1, limit=1)] == ["timeout"]
