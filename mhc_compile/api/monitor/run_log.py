"""The log of a run: a file of JSON objects, one a line, that a crash leaves readable."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from mhc_compile.errors import RunLogError

FILE, VERSION = "mhc.jsonl", 1
_DIGITS = 6  # of a number, which is enough for a plot and half of the file


class RunLog:
    """Appends records to the log of a run.

    Attributes:
        steps: how many steps the log has seen, where it goes on.
    """

    def __init__(self, folder: Path) -> None:
        """Open the log in a folder, which is made.

        Raises:
            RunLogError: the folder's log is of another version.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE
        before, _ = read(path) if path.exists() and path.stat().st_size else ([], 0)
        self.steps = 1 + max((int(r["step"]) for r in before if r["kind"] == "step"), default=-1)
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):  # a crash cut the last line off
            self._file.write("\n")
        self.write({"kind": "start", "version": VERSION, "step": self.steps})

    def write(self, record: dict[str, Any]) -> dict[str, Any]:
        """Append a record with the time, and hand it to the system; return it."""
        record = {**record, "time": time.time()}
        self._file.write(json.dumps(_plain(record), allow_nan=False, separators=(",", ":")) + "\n")
        self._file.flush()
        return record

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a log, and how many lines of it cannot be read.

    Raises:
        RunLogError: there is none, nothing of it can be read, or it is of another version.
    """
    if not path.is_file():
        raise RunLogError(f"{path.parent} holds no log of a run ({path.name}); mhc_compile.Monitor(to=...) writes one")
    records, broken = [], 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line, parse_constant=float)
        except ValueError:
            record = None
        if isinstance(record, dict) and isinstance(record.get("kind"), str):
            records.append(_numbers(record))
        else:
            broken += bool(line.strip())
    if not records:
        raise RunLogError(f"{path} holds no record of a run: it is empty, or no log of mhc_compile.Monitor")
    version = next((record["version"] for record in records if record["kind"] == "start"), None)
    if version != VERSION:
        raise RunLogError(
            f"{path} has format {version}, this mhc_compile knows {VERSION}; use the release that wrote it, or a new"
            " folder"
        )
    return records, broken


def _plain(value: Any) -> Any:
    """Return the value as strict JSON holds it: numbers are rounded, and those that are none become text."""
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(held) for held in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return value if abs(value) > 1e8 else float(f"{value:.{_DIGITS}g}")
    return value


def _numbers(value: Any) -> Any:
    """Return the value with the texts "nan", "inf" and "-inf" as the numbers that they stand for."""
    if isinstance(value, dict):
        return {key: _numbers(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_numbers(held) for held in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
