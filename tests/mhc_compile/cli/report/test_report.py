"""The command says what it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhc_compile import cli


def test_the_package_that_is_missing_is_named_as_pip_knows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "pip install vl-convert-python" in capsys.readouterr().err
