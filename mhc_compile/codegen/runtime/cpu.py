"""Which kernels for the CPU there are, and how torch gets to know them. Importing this module changes nothing."""

from __future__ import annotations

import concurrent.futures
import ctypes
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils import cpp_extension

from mhc_compile.codegen.cpp import SOURCE, generate, generate_ops
from mhc_compile.codegen.runtime import cache, compiler
from mhc_compile.codegen.runtime.dtypes import TORCH
from mhc_compile.errors import CacheError, MissingDependencyError

_LOCK = threading.Lock()
_OPS: list[ctypes.CDLL] = []  # what torch calls; one, once it is loaded
_KERNELS: dict[tuple[int, torch.dtype], ctypes.CDLL] = {}


def why_not() -> str | None:
    """Return why kernels cannot run on a CPU, in a few words; None where they can, as far as asking tells."""
    try:
        compiler.command()
        cache.check()
    except (MissingDependencyError, CacheError) as error:
        return str(error)
    return None


def is_registered() -> bool:
    """Tell whether torch calls kernels in C++ for the ops of the mhc IR."""
    return bool(_OPS)


def register(n: int, dtypes: Iterable[torch.dtype]) -> None:
    """Let kernels run the ops on a CPU for n streams of some dtypes, once per process and kind.

    What there are no kernels for still runs as the reference. The first time on a machine takes seconds.

    Raises:
        MissingDependencyError: there is no compiler, it fails, or what it makes cannot be loaded.
        CacheError: there is no directory to keep libraries in.
    """
    with _LOCK:
        missing = [dtype for dtype in sorted(dtypes, key=str) if (n, dtype) not in _KERNELS]
        if not missing:
            return
        with concurrent.futures.ThreadPoolExecutor() as pool:  # each is a process of the compiler's
            ops = pool.submit(_build_ops) if not _OPS else None
            paths = dict(zip(missing, pool.map(lambda dtype: _build_kernels(n, dtype), missing), strict=True))
        if ops is not None:
            _OPS.append(_loaded(ops.result()))
        for dtype, path in paths.items():
            library = _loaded(path)
            library.mhc_kernels.restype = ctypes.c_void_p
            _OPS[0].mhc_add(ctypes.c_void_p(library.mhc_kernels()))
            _KERNELS[n, dtype] = library


def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # of a newer compiler than the libraries here, or from a disk that nothing may run from
        raise MissingDependencyError(
            f"kernels for the CPU do not load ({error}): name another compiler in $CXX, or another folder in"
            f" ${cache.VARIABLE}; Config(kernels='reference') goes without"
        ) from error


def _build_kernels(n: int, dtype: torch.dtype) -> Path:
    (name,) = (name for name, each in TORCH.items() if each == dtype)
    return compiler.build(f"cpu-{n}-{name}", generate(n, name), SOURCE, ["-std=c++17"])


def _build_ops() -> Path:
    folders = [f"-I{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    threads = [] if sys.platform == "darwin" else ["-fopenmp"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ["-std=c++20", "-O1", abi, *threads, *folders, *libraries, "-lc10", "-ltorch_cpu"]
    return compiler.build("cpu-ops", generate_ops(torch.__version__), SOURCE, flags)
