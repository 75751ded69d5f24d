"""Config.kernels: what runs where, what is said where it cannot, and a model whose sites run generated kernels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import fx

import mhc_compile as mhc
from mhc_compile.backend import kernels
from mhc_compile.codegen.inspect import subprocess_call
from mhc_compile.codegen.runtime import build, dispatch
from mhc_compile.errors import CacheError, KernelError, MHCWarning, MissingDependencyError
from tests.nets import small

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
UNFUSED = {"a": "there are kernels for up to 16 streams, not for 17", "b": "..."}


def graph(*where: torch.device, shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    made = fx.Graph()
    for device in where:
        with torch._subclasses.FakeTensorMode():
            made.placeholder(f"x{device.type}").meta["example_value"] = torch.empty(shape, device=device, dtype=dtype)
    made.output(())
    return fx.GraphModule({}, made)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    kernels.warn.cache_clear()
    yield
    kernels.warn.cache_clear()


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A GPU of this compute capability; nothing is registered for it."""
    found = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA Toy")
    monkeypatch.setattr(dispatch, "register", lambda key: None)
    return found


def test_a_gpu_gets_kernels(capability: list[tuple[int, int]]) -> None:
    assert kernels.enable(mhc.Config(), graph(CUDA, CPU)) == {"cuda"}
    assert kernels.enable(mhc.Config(kernels="triton"), graph(CUDA, CPU)) == {"cuda"}
    assert kernels.enable(mhc.Config(kernels="reference"), graph(CUDA)) == frozenset()


@pytest.mark.filterwarnings("error")
def test_a_cpu_gets_kernels_in_cpp() -> None:
    """For what it computes; numbers beside what a GPU computes need none."""
    assert kernels.enable(mhc.Config(), graph(CPU)) == frozenset()
    assert kernels.enable(mhc.Config(), graph(CPU, shape=(2, 3))) == {"cpu"}
    assert kernels.enable(mhc.Config(kernels="cpp"), graph(CPU, shape=(2, 3))) == {"cpu"}
    assert kernels.enable(mhc.Config(kernels="reference"), graph(CPU, shape=(2, 3))) == frozenset()
    with pytest.raises(KernelError, match=r"run on a CPU, not on 'cuda'; kernels='auto'"):
        kernels.enable(mhc.Config(kernels="cpp"), graph(CUDA))


def test_a_cpu_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One warning with the remedy, and the reference; an error where kernels were asked for."""
    monkeypatch.setenv("CXX", str(tmp_path / "nowhere"))
    model = small.made(small.Net)
    with pytest.warns(MHCWarning, match=r"need a C\+\+ compiler .* name it in \$CXX") as said:
        mhc.upgrade(model, (small.inputs(),))
    run = torch.compile(model, backend="mhc", options={"compiler": "eager"})
    torch.testing.assert_close(run(small.inputs()), small.made(small.Net)(small.inputs()))
    assert len(said) == 1
    with pytest.raises(KernelError, match=r"kernels='cpp', but kernels for the CPU need a C\+\+ compiler"):
        kernels.enable(mhc.Config(kernels="cpp"), graph(CPU, shape=(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["fp16", "fp64"])
def test_sites_without_a_kernel_on_a_cpu_are_logged(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    model = small.made(small.Net).to(dtype)
    mhc.upgrade(model, (small.inputs().to(dtype),), verify=False)
    with caplog.at_level("INFO", logger="mhc_compile"):
        torch.compile(model, backend="mhc", options={"compiler": "eager"})(small.inputs().to(dtype))
    assert f"not for {dtype}" in caplog.text
    with pytest.raises(KernelError, match=r"kernels='cpp', but there are kernels for torch\.bfloat16"):
        torch.compile(model, backend="mhc", options={"compiler": "eager", "kernels": "cpp"})(small.inputs().to(dtype))


def test_kernels_that_were_asked_for_are_an_error_on_a_cpu() -> None:
    with pytest.raises(KernelError, match="run on GPUs, not on a CPU; kernels='auto'"):
        kernels.enable(mhc.Config(kernels="triton"), graph(torch.device("cpu")))


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (MissingDependencyError("generated kernels need Triton"), "need Triton"),
        (CacheError("/x is not writable; set MHC_CACHE_DIR"), "set MHC_CACHE_DIR"),
    ],
    ids=["no triton", "no cache"],
)
def test_what_is_missing_is_said_once(
    error: Exception, named: str, capability: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(build, "require_triton", fail)
    with pytest.warns(MHCWarning, match=named):
        assert kernels.enable(mhc.Config(), graph(CUDA)) == frozenset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.enable(mhc.Config(), graph(CUDA)) == frozenset()
    with pytest.raises(KernelError, match=named):
        kernels.enable(mhc.Config(kernels="triton"), graph(CUDA))


def test_an_old_gpu_is_named(capability: list[tuple[int, int]]) -> None:
    capability[0] = (7, 5)
    with pytest.warns(MHCWarning, match=r"NVIDIA Toy is older than compute capability 8\.0"):
        assert kernels.enable(mhc.Config(), graph(CUDA)) == frozenset()


def test_another_kind_of_device_is_named() -> None:
    with pytest.warns(MHCWarning, match="not on 'xpu'"):
        assert kernels.enable(mhc.Config(), graph(torch.device("xpu"))) == frozenset()


@pytest.mark.filterwarnings("error")
def test_meta_tensors_need_no_kernels() -> None:
    assert kernels.enable(mhc.Config(), graph(torch.device("meta"))) == frozenset()


def test_sites_without_a_kernel_are_told_once() -> None:
    with pytest.warns(MHCWarning, match=r"not for 17 \(2 sites, the first 'a'\)") as said:
        kernels.report(mhc.Config(), UNFUSED, frozenset({"cuda"}))
    kernels.report(mhc.Config(), UNFUSED, frozenset({"cuda"}))
    assert len(said) == 1
    with pytest.raises(KernelError, match="kernels='auto' runs such sites as the reference"):
        kernels.report(mhc.Config(kernels="triton"), UNFUSED, frozenset({"cuda"}))
    kernels.report(mhc.Config(kernels="triton"), {}, frozenset({"cuda"}))


def trained(compiler: str, **options: Any) -> small.Results:
    """The output and every gradient of a small model with moved parameters."""
    torch._dynamo.reset()
    model = small.upgraded(moved=True)
    return small.results(small.compiled(model, compiler=compiler, **options), model, small.inputs())


@pytest.mark.core(1)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_a_model_by_kernels_is_the_model_by_the_reference(compiler: str) -> None:
    found = subprocess_call.call(True, by_kernels, compiler)
    assert small.agree(found, trained(compiler, kernels="reference"), tolerance=3e-5)  # fp32 sums in another order


def by_kernels(compiler: str) -> small.Results:
    """The same by generated kernels, which replay."""
    launched: list[str] = []
    real = dispatch._launch

    def launch(way: str, *rest: Any) -> list[torch.Tensor]:
        launched.append(way)
        return real(way, *rest)

    with mock.patch.object(dispatch, "_launch", launch):
        found = trained(compiler, kernels="triton", recompute=3)
    files = [Path(str(module.__file__)) for module in build._LOADED.values()]
    texts = [file.read_text() for file in files if file.exists()]  # other tests' may be gone
    assert any("# Serves: blocks.1.mlp\n" in text for text in texts if text.startswith('"""seam'))
    assert launched[-10:] == ["forward"] * 5 + ["backward"] * 5  # enter, three seams, leave; before them upgrade's run
    return found[0].detach(), found[1]


def test_kernels_that_were_asked_for_are_an_error_where_a_site_has_none() -> None:
    subprocess_call.call(True, sites_of_hc)


def sites_of_hc() -> None:
    torch._dynamo.reset()
    model = small.upgraded(config=mhc.Config(connection="hc"))
    with pytest.raises(KernelError, match=r"for the connections 'mhc' and 'deepseek-v4', not for 'hc' \(4 sites"):
        small.compiled(model, kernels="triton")(small.inputs())
