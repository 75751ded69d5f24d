"""A text in C++ becomes a shared library in the directory of generated files, built once per machine."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mhc_compile.codegen.runtime import cache
from mhc_compile.errors import CacheError, MissingDependencyError

_KNOWN = ("g++", "clang++", "c++")
_FLAGS = ("-O3", "-shared", "-fPIC", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_NATIVE = "-mcpu=native" if platform.machine().lower() in ("aarch64", "arm64") else "-march=native"
_LINES = 6  # of what a compiler complains


def command() -> list[str]:
    """Return how the compiler is called: $CXX, else the first of g++, clang++ and c++ that is there.

    Raises:
        MissingDependencyError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    found = [path for name in (named[:1] or _KNOWN) if (path := shutil.which(name))]
    if sys.platform == "win32" or not found:
        compilers = named[0] if named else ", ".join(_KNOWN)
        what = "do not run on Windows" if sys.platform == "win32" else f"need a C++ compiler ({compilers})"
        raise MissingDependencyError(
            f"kernels for the CPU {what}: install one, or name it in $CXX; Config(kernels='reference') goes without"
        )
    return [found[0], *named[1:]]


def build(name: str, text: str, beside: Path, flags: Sequence[str] = ()) -> Path:
    """Return the shared library of a text, compiled if need be.

    Its name holds a hash of all that it is made from: the text, the files beside it, the flags, the compiler, and what
    the machine can do. Another file beside it holds a hash of the library itself: one that was altered is built again.

    Args:
        name: of the library.
        text: in C++.
        beside: a directory with what the text includes.
        flags: for the compiler, besides the usual ones.

    Raises:
        MissingDependencyError: there is no compiler, or it fails.
        CacheError: there is no directory to keep the library in.
    """
    native = (*command(), _NATIVE)
    parts = [text, *native, *_FLAGS, *flags, _machine(native)]
    parts += [path.read_text("utf-8") for path in sorted(beside.iterdir()) if path.suffix in (".h", ".cpp")]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = cache.directory() / f"{name}_{digest}.so"
    if not _is_intact(path):
        _compile([*native, *_FLAGS, f"-I{beside}"], text, path, flags)
    return path


@functools.cache
def _machine(call: tuple[str, ...]) -> str:
    """Return what a compiler defines: its version, and the instructions of this machine."""
    done = _run([*call, "-E", "-dM", "-x", "c++", os.devnull])
    return "\n".join(sorted(done.stdout.splitlines()))


def _is_intact(path: Path) -> bool:
    noted = cache.read(_note(path))
    try:
        return noted is not None and hashlib.sha256(path.read_bytes()).hexdigest() == noted.strip()
    except OSError:
        return False


def _note(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _compile(call: Sequence[str], text: str, path: Path, flags: Sequence[str]) -> None:
    """Compile into a directory beside the file and move the result there, so that no process sees half of one."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
            source, made = Path(folder, f"{path.stem}.cpp"), Path(folder, path.name)
            source.write_text(text, "utf-8")
            _run([*call, str(source), "-o", str(made), *flags])  # libraries stand behind the text that asks for them
            digest = hashlib.sha256(made.read_bytes()).hexdigest()
            os.replace(made, path)
        cache.keep(_note(path).name, digest + "\n")
    except OSError as error:
        raise CacheError(f"{path.parent}, where kernels are kept, cannot be written ({error.strerror})") from error


def _run(call: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingDependencyError(
            f"{call[0]} does not run ({error.strerror}); name a C++ compiler in $CXX"
        ) from error
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if "error" in line.lower())
        lines = (said or done.stderr).splitlines()[:_LINES]
        raise MissingDependencyError(
            f"{call[0]} cannot compile the kernels for the CPU: {' '.join(lines)[:600]}; name another compiler in $CXX,"
            " or run without kernels: Config(kernels='reference')"
        )
    return done
