"""From a generated text to a module: a file to read, and the code of that very text."""

from __future__ import annotations

import hashlib
import importlib.util
import linecache
import logging
import os
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from mhc_compile.codegen.runtime import cache
from mhc_compile.errors import MissingDependencyError

OLDEST_TRITON = (3, 6)
SHOW = "MHC_SHOW_KERNELS"

_LOG = logging.getLogger("mhc_compile.codegen")
_LOADED: dict[str, ModuleType] = {}
_LOCK = threading.RLock()  # backward runs on threads of its own


def load(text: str, name: str) -> ModuleType:
    """Return the module of a generated text, once per process and text.

    The file `<name>_<hash>.py` in the cache directory holds the text, for people, profilers and tracebacks. What is
    executed is the text in hand, not the file.

    Raises:
        CacheError: there is no directory to keep it in.
        MissingDependencyError: Triton is missing or too old.
    """
    with _LOCK:
        if text not in _LOADED:
            require_triton()
            path = keep_file(text, name)
            _LOG.info("%s", path)
            if os.environ.get(SHOW, "0") not in ("", "0"):
                print(f"mhc_compile: {path}", file=sys.stderr)
            _LOADED[text] = _executed(text, f"mhc_kernels.{path.stem}", path)
        return _LOADED[text]


def keep_file(text: str, name: str, sites: Iterable[str] = ()) -> Path:
    """Keep a generated text in its file, and name sites that it serves at the end of it; return the file.

    Raises:
        CacheError: there is no directory to keep it in.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return cache.keep(f"{name}_{digest}.py", text, sites)


def require_triton() -> None:
    """Check that Triton is there and new enough.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import triton
    except ImportError as error:
        raise MissingDependencyError(_remedy("is not installed")) from error
    found = re.findall(r"\d+", triton.__version__)
    if tuple(map(int, found[:2])) < OLDEST_TRITON:
        raise MissingDependencyError(_remedy(f"is {triton.__version__}"))


def _remedy(what: str) -> str:
    oldest = ".".join(map(str, OLDEST_TRITON))
    return (
        f"generated kernels need Triton {oldest} or newer, which {what}: pip install 'mhc_compile[triton]', or run"
        " without them: Config(kernels='reference')"
    )


def _executed(text: str, name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Triton reads its kernels' source by way of linecache. No time stamp: the entry outlives the file.
    linecache.cache[str(path)] = len(text), None, text.splitlines(keepends=True), str(path)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module
