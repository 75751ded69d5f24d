"""Which versions of torch the project runs on: the tests under each, into bench/results/versions.json.

    python -m tests.versions                  under the torch that is there
    python -m tests.versions 2.11.0 2.14.1    under these, each in a virtual environment of its own

All but torch, triton and setuptools is as in constraints.txt. Builds of other versions may be gigabytes. What was
recorded of another version stays.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.common import RESULTS
from mhc_compile.cli import measure

ROOT = Path(__file__).parents[1]
PATH = RESULTS / "versions.json"
MARKS = "not slow"
_PINNED = re.compile(r"^(torch|triton|setuptools)==.*\n", re.MULTILINE)  # each torch has its own triton and setuptools


def main(argv: Sequence[str] | None = None) -> int:
    """Run and record; return 1 where a test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.splitlines()[0])
    parser.add_argument("torch", nargs="*", help="versions to install, one after the other")
    parser.add_argument("-m", dest="marks", default=MARKS, help=f"which tests, as pytest has it ({MARKS})")
    args = parser.parse_args(argv)
    if not args.torch:
        row = tried(args.marks)
        record(row)
        print(f"torch {row['torch']}: {row['passed']} passed, {len(row['failed'])} failed")
        return 1 if row["failed"] else 0
    return max(under(version, args.marks) for version in args.torch)


def under(version: str, marks: str) -> int:
    """Run this program under another torch, in an environment that goes again."""
    with tempfile.TemporaryDirectory(prefix=f"torch-{version}-") as folder:
        python = installed(version, Path(folder))
        return subprocess.call([python, "-m", "tests.versions", "-m", marks], cwd=ROOT)


def installed(version: str, folder: Path) -> str:
    """Return the Python of a new environment with this torch."""
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    pins = folder / "constraints.txt"
    pins.write_text(_PINNED.sub("", (ROOT / "constraints.txt").read_text("utf-8")) + f"torch=={version}\n", "utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "-c", str(pins)]
    subprocess.check_call([*pip, "--upgrade", "torch", "setuptools"])
    subprocess.check_call([*pip, "--no-build-isolation", "-e", f"{ROOT}[dev]"])
    return python


def tried(marks: str) -> dict[str, Any]:
    """Run the tests, and return how many passed and which failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-m", marks]
        subprocess.call([*command, f"--junitxml={report}"], cwd=ROOT)
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = sorted(
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    )
    skipped = sum(case.find("skipped") is not None for case in cases)
    made = measure.environment()
    versions: Any = made["versions"]
    return {
        **{name: versions[name] for name in ("torch", "triton", "transformers")},
        "python": platform.python_version(),
        "tests": marks,
        "passed": len(cases) - len(failed) - skipped,
        "failed": failed,
        "seconds": round(time.monotonic() - began),
        **{name: made[name] for name in ("date", "git", "cpu")},
    }


def record(row: dict[str, Any], path: Path = PATH) -> None:
    """Keep a row in place of the one of the same torch, Python and choice of tests."""
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []

    def key(one: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(one[name] for name in ("torch", "python", "tests"))

    rows = sorted([*(one for one in rows if key(one) != key(row)), row], key=key)
    measure.write_json(path, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
