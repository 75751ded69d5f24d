"""How sites and their parts are called."""

from __future__ import annotations

import re

_BY_LINE = re.compile(r"line\d+(_\d+)?")


def site_name(owner: str, label: str) -> str:
    """Return the name of a site, `owner.label`; the root module's sites have their label alone."""
    return f"{owner}.{label}" if owner else label


def first_step(path: str) -> str:
    """Return the first step of a path below an owner, as one name: "layers_0" of "layers.0.mlp"."""
    head, _, rest = path.partition(".")
    index = rest.partition(".")[0]
    return f"{head}_{index}" if index.isdigit() else head


def is_by_line(label: str) -> bool:
    """Tell whether a label is a line's, as older releases called a site whose branch is the owner's own work."""
    return _BY_LINE.fullmatch(label) is not None
