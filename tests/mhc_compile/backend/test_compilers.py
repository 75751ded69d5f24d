"""The hash that keys compiled code: every file that decides what code comes out is in it, however deep it lies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mhc_compile

ROOT = Path(mhc_compile.__file__).resolve().parents[1]
ASK = "from mhc_compile.backend.compilers import source_hash; print(source_hash())"


@pytest.fixture(params=["link", "folder"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the package: passes/ beside it with a link, as in a checkout, or inside of it, as in a wheel."""
    ignored = shutil.ignore_patterns("__pycache__", "passes")
    shutil.copytree(ROOT / "mhc_compile", tmp_path / "mhc_compile", ignore=ignored)
    passes = (Path(mhc_compile.__file__).parent / "passes").resolve()
    inside = tmp_path / "mhc_compile" / "passes"
    if request.param == "folder":
        shutil.copytree(passes, inside)
    else:
        shutil.copytree(passes, tmp_path / "passes")
        inside.symlink_to("../passes", target_is_directory=True)
    return tmp_path


def hashed(tree: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_edit_of_any_nested_file_is_seen(tree: Path) -> None:
    found = [hashed(tree)]
    for nested in ("passes/graph/walk.py", "passes/fuse_seams/fuser.py", "codegen/runtime/build.py", "config.py"):
        file = tree / "mhc_compile" / nested
        file.write_text(file.read_text("utf-8") + "\n# edited\n", "utf-8")
        found.append(hashed(tree))
    assert len(set(found)) == len(found)
    assert hashed(tree) == found[-1]
