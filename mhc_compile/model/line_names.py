"""Names of older releases: a site whose branch is the owner's own work was called after its line, such as `line12`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mhc_compile.passes.base import is_by_line


def renamed(theirs: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """Return what sites of an owner are called now, by their labels in a checkpoint, in program order.

    Empty where labels do not tell which is which.
    """
    theirs, ours = list(dict.fromkeys(theirs)), list(ours)
    old, new = [label for label in theirs if label not in ours], [label for label in ours if label not in theirs]
    fits = len(old) == len(new) and all(map(is_by_line, old))
    return dict(zip(old, new, strict=True)) if fits else {}


def same_sites(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether two plans have the same sites, apart from names by line."""
    if len(theirs) != len(ours):
        return False
    names: dict[Any, Any] = {None: None}
    for old, new in zip(theirs, ours, strict=True):
        (owner, label), (place, _) = _parts(old["name"]), _parts(new["name"])
        names[old["name"]] = new["name"] if is_by_line(label) and owner == place else old["name"]
    told = [{**old, "name": names[old["name"]], "predecessor": names.get(old["predecessor"])} for old in theirs]
    return told == [dict(new) for new in ours]


def _parts(name: str) -> tuple[str, str]:
    owner, _, label = str(name).rpartition(".")
    return owner, label
