"""The log survives a crash, and what is no log is refused with one clear error."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mhc_compile.api.monitor.run_log import FILE, VERSION, RunLog, read
from mhc_compile.errors import RunLogError


def test_numbers_come_back_and_what_is_none_too(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(
        {"kind": "step", "step": 3, "loss": math.nan, "gains": [(1.0, -math.inf), (0.123456789, 2)], "none": None}
    )
    log.close()
    record = read(tmp_path / FILE)[0][-1]
    assert math.isnan(record["loss"])
    assert record["gains"] == [[1.0, -math.inf], [0.123457, 2]]
    assert record["none"] is None


def test_every_record_is_on_disk_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write({"kind": "step", "step": 0})
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 2
    log.close()


BAD = {
    "empty": (b"", "holds no record of a run: it is empty"),
    "other": (b"hello\nworld\n", "no log of mhc_compile.Monitor"),
    "version": (json.dumps({"kind": "start", "version": 99, "step": 0}).encode() + b"\n", f"format 99.*{VERSION}"),
    "headless": (b'{"kind":"step","step":1}\n', "format None"),
    "binary": (b"\xff\xfe\x00", "holds no record"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_log_is_refused(kind: str, tmp_path: Path) -> None:
    text, message = BAD[kind]
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(RunLogError, match=message):
        read(tmp_path / FILE)
    if text:
        with pytest.raises(RunLogError, match=message):
            RunLog(tmp_path)


def test_a_folder_without_a_log_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunLogError, match=r"holds no log of a run.*Monitor\(to=\.\.\.\) writes one"):
        read(tmp_path / FILE)
