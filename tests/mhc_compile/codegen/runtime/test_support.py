"""Whether kernels can run: asking changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mhc_compile as mhc
from mhc_compile.codegen.runtime import build, cache, cpu, dispatch, interpreter
from mhc_compile.codegen.runtime.support import Support, support, why_not
from mhc_compile.errors import CacheError, MissingDependencyError
from tests.nets import small

CPU, CUDA, XPU, META = (torch.device(name) for name in ("cpu", "cuda:0", "xpu", "meta"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is new enough."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


@pytest.mark.usefixtures("gpu")
def test_which_devices_get_kernels() -> None:
    assert support("auto", [CUDA, CPU]) == Support(frozenset({"cuda", "cpu"}), None)
    assert support("triton", [CUDA, CPU]) == Support(frozenset({"cuda"}), None)
    assert support("cpp", [CPU]) == Support(frozenset({"cpu"}), None)
    assert support("reference", [CUDA, CPU]) == Support(frozenset(), None)


def test_why_others_do_not() -> None:
    assert support("auto", [CPU, XPU, META]) == Support(
        frozenset({"cpu"}), "kernels in Triton run on CUDA devices, not on 'xpu'"
    )
    assert support("triton", [CPU]) == Support(frozenset(), "kernels in Triton run on GPUs, not on a CPU")
    assert support("cpp", [CUDA, CPU]) == Support(frozenset({"cpu"}), "kernels in C++ run on a CPU, not on 'cuda'")


def test_nothing_is_lacking_where_nothing_runs() -> None:
    assert support("auto", [META]) == Support(frozenset(), None)


@pytest.mark.usefixtures("gpu")
def test_one_language_runs_the_ops_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch._REGISTERED, "CPU", None)
    assert support("cpp", [CPU]).lacking == "in this process Triton's interpreter runs the ops on the CPU"
    monkeypatch.setenv(interpreter.VARIABLE, "1")
    monkeypatch.setattr(interpreter, "is_on", lambda: True)
    assert support("auto", [CPU, CUDA]).types == frozenset({"cuda"})
    monkeypatch.setattr(cpu, "is_registered", lambda: True)
    assert support("triton", [CPU]).lacking == "in this process kernels in C++ run the ops on the CPU"


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    found = support("auto", [CPU])
    assert found.types == frozenset()
    assert "need a C++ compiler" in str(found.lacking)


@pytest.mark.usefixtures("gpu")
def test_asking_makes_no_directory_and_registers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "deep" / "cache"))
    before = dict(dispatch._REGISTERED)
    assert why_not(CUDA) is None
    assert list(tmp_path.iterdir()) == []
    assert before == dispatch._REGISTERED


def test_explain_registers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def register(key: str = "CUDA") -> None:
        raise AssertionError(f"explain registered kernels for {key}")

    monkeypatch.setattr(dispatch, "register", register)
    assert len(mhc.explain(small.Net(), (small.inputs(),)).sites) > 0


def _missing() -> None:
    raise MissingDependencyError("generated kernels need Triton")


def _unfit() -> None:
    raise CacheError("/x is not writable; set MHC_CACHE_DIR")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("module", "name", "fail", "said"),
    [
        pytest.param(build, "require_triton", _missing, "generated kernels need Triton", id="no-triton"),
        pytest.param(cache, "check", _unfit, "/x is not writable; set MHC_CACHE_DIR", id="no-directory"),
    ],
)
def test_what_is_missing_is_said(
    module: object, name: str, fail: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, fail)
    assert why_not(CUDA) == said


def test_the_check_of_the_directory_is_that_of_its_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for ask in (cache.check, cache.directory):
        with pytest.raises(CacheError, match="may be written by other users"):
            ask()
    (tmp_path / "file").write_text("")
    for place in ("file", "file/inside"):
        monkeypatch.setenv(cache.VARIABLE, str(tmp_path / place))
        for ask in (cache.check, cache.directory):
            with pytest.raises(CacheError):
                ask()
