"""The tree of the code, with the first line of every file's docstring."""

from __future__ import annotations

from tests.project.rules import Source, sources

FACE = ("mhc_compile", "passes")
WIDEST = 150


def every_file() -> list[str]:
    """Return the tree down to the files."""
    return _lines(deepest=9)


def folders() -> list[str]:
    """Return what stands directly in the two packages."""
    return _lines(deepest=1)


def _lines(deepest: int) -> list[str]:
    told = {source.path: _first_line(source) for source in sources() if source.path.split("/")[0] in FACE}
    rows: list[tuple[str, str]] = []
    for path in sorted(told, key=_order):
        *above, name = path.split("/")
        if name == "__init__.py" and len(above) - 1 <= deepest:
            rows.append((f"{'    ' * (len(above) - 1)}{above[-1]}/", told[path]))
        elif name != "__init__.py" and len(above) <= deepest:
            rows.append((f"{'    ' * len(above)}{name}", told[path]))
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name.ljust(width)}{text}"[:WIDEST].rstrip() for name, text in rows]


def _order(path: str) -> list[tuple[int, str]]:
    """Sort a folder's own docstring first, then its files, then its folders."""
    *above, name = path.split("/")
    return [*((2, step) for step in above), (0 if name == "__init__.py" else 1, name)]


def _first_line(source: Source) -> str:
    """Return the first line of a docstring, without its full stop."""
    body = source.tree.body
    text = getattr(getattr(body[0], "value", None), "value", "") if body else ""
    return str(text).strip().split("\n")[0].rstrip(".")
