"""Sources: how Dynamo says where a frame finds a module or tensor, such as `L['self']._modules['layers'].weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_ROOT = re.compile(r"(?P<scope>[LG])\['(?P<name>[^']*)'\](?P<rest>.*)")
_STEP = re.compile(r"\.(?P<name>\w+)|\['(?P<key>[^']*)'\]|\[(?P<index>\d+)\]")
_HELD = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]")
_GETATTR = re.compile(r"getattr\(([^()]*), '([^']*)'\)")  # of a part under torch.func.functional_call


def plainly(source: str) -> str:
    """Write a source by attributes: `L['self'].layers.weight`."""
    source = _HELD.sub(r".\1", source)
    while (spelt := _GETATTR.sub(r"\1.\2", source)) != source:
        source = spelt
    return source


def below_root(source: str) -> str:
    """Return the path of what a source names from the frame's variable on: `layers.weight`."""
    told = _ROOT.match(plainly(source))
    return told["rest"].removeprefix(".") if told is not None else plainly(source)


def look_up(source: str, local: Mapping[str, Any], global_: Mapping[str, Any]) -> Any:
    """Return what a source names in a frame, None where that cannot be told."""
    told = _ROOT.match(plainly(source))
    if told is None:
        return None
    found: Any = (local if told["scope"] == "L" else global_).get(told["name"])
    for step in _STEP.finditer(told["rest"]):
        name, index = step["name"] or step["key"], step["index"]
        try:
            found = getattr(found, name) if step["name"] else found[int(index) if index else name]
        except (AttributeError, KeyError, IndexError, TypeError):
            return None
    return found
