from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from mhc_compile.codegen.runtime import build, cache
from mhc_compile.errors import CacheError, MissingDependencyError

TEXT = '"""A module."""\n\n\ndef twice(x):\n    return 2 * x\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "_LOADED", {})
    return tmp_path / "kernels"


def loaded_in_a_process(folder: str) -> int:
    os.environ[cache.VARIABLE] = folder
    value: int = build.load(TEXT, "toy").twice(2)
    return value


def test_text_becomes_a_module_with_a_file_to_read(folder: Path) -> None:
    module = build.load(TEXT, "toy")
    assert module.twice(3) == 6
    assert module.__file__ is not None
    path = Path(module.__file__)
    assert path.parent == folder
    assert path.name.startswith("toy_")
    assert path.read_text() == TEXT
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sys.modules[module.__name__] is module


def test_a_text_is_loaded_once_and_another_text_beside_it(folder: Path) -> None:
    module = build.load(TEXT, "toy")
    assert build.load(TEXT, "toy") is module
    other = build.load(TEXT.replace("2", "3"), "toy")
    assert other.twice(2) == 6
    assert len(list(folder.iterdir())) == 2


def test_sites_are_named_behind_the_text_each_once(folder: Path) -> None:
    path = build.keep_file(TEXT, "toy", ["layers.0.mlp", "layers.1.mlp"])
    build.load(TEXT, "toy")
    assert build.keep_file(TEXT, "toy", ["layers.1.mlp", "head"]) == path
    assert path.read_text() == TEXT + "".join(f"\n# Serves: {s}\n" for s in ("layers.0.mlp", "layers.1.mlp", "head"))
    assert build.load(TEXT, "toy").__file__ == str(path)
    path.write_text(path.read_text().replace("2 * x", "3 * x"))
    build.keep_file(TEXT, "toy", ["tail"])
    assert path.read_text() == TEXT + "\n# Serves: tail\n"


def test_threads_get_one_module() -> None:
    text = "import time\ntime.sleep(0.1)\n"
    with ThreadPoolExecutor(4) as pool:
        modules = set(pool.map(lambda _: build.load(text, "slow"), range(4)))
    assert len(modules) == 1


@pytest.mark.parametrize(
    "broken",
    [b"raise SystemExit('planted')\n", b"", b"\xff\xfe", TEXT[:-1].encode()],
    ids=["code", "empty", "no-text", "cut"],
)
def test_a_file_that_differs_is_replaced_and_never_run(folder: Path, broken: bytes) -> None:
    path = Path(str(build.load(TEXT, "toy").__file__))
    path.write_bytes(broken)
    build._LOADED.clear()
    assert build.load(TEXT, "toy").twice(1) == 2
    assert path.read_text() == TEXT
    assert list(folder.iterdir()) == [path]  # no temporary file is left


def test_a_file_that_matches_is_left_alone() -> None:
    path = Path(str(build.load(TEXT, "toy").__file__))
    os.utime(path, (1, 1))
    build._LOADED.clear()
    build.load(TEXT, "toy")
    assert path.stat().st_mtime == 1


def test_source_can_be_read_after_the_file_has_gone(folder: Path) -> None:
    module = build.load(TEXT, "toy")
    Path(str(module.__file__)).unlink()
    assert inspect.getsource(module.twice) == "def twice(x):\n    return 2 * x\n"


def test_a_text_that_fails_leaves_no_module_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        build.load("1 / 0\n", "bad")
    assert not [name for name in sys.modules if name.startswith("mhc_kernels.bad_")]


@pytest.mark.slow
def test_processes_may_write_at_once(folder: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(loaded_in_a_process, [str(folder)] * 4)) == [4] * 4
    assert [path.read_text() for path in folder.iterdir()] == [TEXT]


@pytest.mark.parametrize("mode", [0o720, 0o702], ids=oct)
def test_a_directory_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheError, match=f"written by other users.*set {cache.VARIABLE}"):
        build.load(TEXT, "toy")
    assert not list(folder.iterdir())


def test_a_directory_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(CacheError, match="another user"):
        build.load(TEXT, "toy")


def test_a_place_that_is_no_directory_is_refused(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(CacheError, match=f"cannot be made.*set {cache.VARIABLE}"):
        build.load(TEXT, "toy")


def test_a_failed_write_says_where_to_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CacheError, match=r"cannot be written \(No space left on device\)"):
        build.load(TEXT, "toy")
    assert not list(folder.iterdir())


def test_without_the_variable_the_users_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.directory() == tmp_path / ".cache" / "mhc_compile"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "xdg" / "mhc_compile"


def test_the_switch_shows_each_file_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build.load(TEXT + "#\n", "quiet")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv(build.SHOW, "1")
    path = build.load(TEXT, "toy").__file__
    build.load(TEXT, "toy")
    assert capsys.readouterr().err == f"mhc_compile: {path}\n"


def test_each_file_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mhc_compile.codegen"):
        path = build.load(TEXT, "toy").__file__
    assert caplog.messages == [path]


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"is not installed: pip install 'mhc_compile\[triton\]'"):
        build.load(TEXT, "toy")


@pytest.mark.parametrize(("version", "fine"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0", True)])
def test_an_old_triton_is_refused(version: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = ModuleType("triton")
    triton.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", triton)
    if fine:
        build.load(TEXT, "toy")
    else:
        with pytest.raises(MissingDependencyError, match=f"Triton 3.6 or newer, which is {version}"):
            build.load(TEXT, "toy")
