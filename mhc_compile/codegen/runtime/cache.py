"""The directory of generated files: private, and never trusted: what lies there is compared before it is used."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mhc_compile.errors import CacheError

VARIABLE = "MHC_CACHE_DIR"


def directory() -> Path:
    """Return the directory of generated files, made if need be.

    It is $MHC_CACHE_DIR, else $XDG_CACHE_HOME/mhc_compile, else ~/.cache/mhc_compile.

    Raises:
        CacheError: it cannot be made or written, belongs to another user, or others may write to it.
    """
    path = _place()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(path, f"cannot be made ({error.strerror})") from error
    _check(path)
    return path


def check() -> None:
    """Check that there is such a directory, or can be; nothing is made.

    Raises:
        CacheError: as `directory`.
    """
    path = _place()
    if path.exists():
        _check(path)
        return
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise _refusal(path, f"cannot be made in {above}")


def _check(path: Path) -> None:
    try:
        about = path.stat()
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    if not path.is_dir():
        raise _refusal(path, "is not a directory")
    if hasattr(os, "geteuid") and about.st_uid != os.geteuid():
        raise _refusal(path, "belongs to another user, who could change the code that runs")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refusal(path, f"may be written by other users (mode {about.st_mode & 0o777:o})")
    if not os.access(path, os.W_OK | os.X_OK):
        raise _refusal(path, "is not writable")


NOTES = "# Serves: "


def keep(name: str, text: str, sites: Iterable[str] = ()) -> Path:
    """Make sure that the file `name` of the directory holds this text; what differs is replaced, at once.

    Args:
        name: of the file.
        text: what it holds.
        sites: named in comments behind the text, besides those that stand there.

    Raises:
        CacheError: the directory is unfit, or the file cannot be written.
    """
    path = directory() / name
    found, *notes = (read(path) or "").split(f"\n{NOTES}")
    known = [note.strip() for note in notes] if found == text else []
    more = [site for site in dict.fromkeys(sites) if site not in known]
    if found != text or more:
        text = "".join([text, *(f"\n{NOTES}{site}\n" for site in [*known, *more])])
        try:
            _replace(path, text)
        except OSError as error:
            raise _refusal(path.parent, f"cannot be written ({error.strerror})") from error
    return path


def read(path: Path) -> str | None:
    """Return a file's text; None where there is none that can be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _place() -> Path:
    if own := os.environ.get(VARIABLE):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "mhc_compile"
    try:
        return Path.home() / ".cache" / "mhc_compile"
    except RuntimeError as error:
        raise CacheError(f"there is no home directory to keep generated kernels in; set {VARIABLE}") from error


def _replace(path: Path, text: str) -> None:
    """Write a file beside it and move it there, so that no process ever sees half of one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _refusal(path: Path, why: str) -> CacheError:
    return CacheError(
        f"{path}, where generated kernels are kept, {why}; set {VARIABLE} to a directory that only you can write"
    )
