"""Shared libraries: built once per machine, never run if altered, and a clear error where there is no compiler."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from mhc_compile.codegen.runtime import cache, compiler
from mhc_compile.errors import CacheError, MissingDependencyError

TEXT = '#include "number.h"\nextern "C" int number() { return NUMBER; }\n'


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "number.h").write_text("#define NUMBER 7\n")
    return folder


def number(path: Path) -> int:
    found: int = ctypes.CDLL(str(path)).number()
    return found


def test_built_once(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = compiler.build("seven", TEXT, beside)
    assert number(path) == 7
    assert path.parent == cache.directory()
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("built again"))
    assert compiler.build("seven", TEXT, beside) == path


@pytest.mark.parametrize("what", ["text", "beside", "flags"])
def test_another_text_is_another_library(what: str, beside: Path) -> None:
    first = compiler.build("seven", TEXT, beside)
    if what == "beside":
        (beside / "number.h").write_text("#define NUMBER 8\n")
    text, flags = TEXT + "\n" * (what == "text"), ["-DNOTHING"] * (what == "flags")
    second = compiler.build("seven", text, beside, flags)
    assert first != second
    assert number(second) == (8 if what == "beside" else 7)


@pytest.mark.parametrize("what", ["library", "note", "no note"])
def test_what_was_altered_is_built_again(what: str, beside: Path) -> None:
    path = compiler.build("seven", TEXT, beside)
    note, good = path.with_suffix(".sha256"), path.read_bytes()
    if what == "library":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif what == "note":
        note.write_text("0" * 64)
    else:
        note.unlink()
    compiler.build("seven", TEXT, beside)
    assert path.read_bytes() == good
    assert compiler._is_intact(path)
    assert sorted(each.suffix for each in path.parent.iterdir()) == [".sha256", ".so"]


def test_no_compiler(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(beside))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MissingDependencyError, match=r"need a C\+\+ compiler \(g\+\+, clang\+\+, c\+\+\): install one"):
        compiler.build("seven", TEXT, beside)
    monkeypatch.setenv("CXX", "nowhere++ -m32")
    with pytest.raises(MissingDependencyError, match=r"need a C\+\+ compiler \(nowhere\+\+\)"):
        compiler.command()


def test_a_compiler_that_fails(beside: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"cannot compile .*undeclared.* Config\(kernels='reference'\)"):
        compiler.build("broken", "int number() { return undeclared; }", beside)
    assert not list(cache.directory().iterdir())


def test_a_directory_that_others_may_write(beside: Path) -> None:
    folder = cache.directory()
    folder.chmod(0o777)
    with pytest.raises(CacheError, match="may be written by other users"):
        compiler.build("seven", TEXT, beside)
