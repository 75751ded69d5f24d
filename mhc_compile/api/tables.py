"""Tables between lines of text: for terminals and logs, and for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A head and rows of cells, all text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> Iterator[str]:
        """Iterate over its lines, columns padded with spaces."""
        widths = [max(len(row[i]) for row in (self.head, *self.rows)) for i in range(len(self.head))]
        for row in (self.head, ["-" * width for width in widths], *self.rows):
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def html(self) -> str:
        """Return it as an HTML table, everything escaped."""
        body = "".join(_row("td", cells) for cells in self.rows)
        return f"<table><thead>{_row('th', self.head)}</thead><tbody>{body}</tbody></table>"


Part = str | Table


def as_text(parts: Iterable[Part]) -> str:
    """Return lines and tables as text."""
    lines = ([part] if isinstance(part, str) else part.lines() for part in parts)
    return "\n".join(line for some in lines for line in some)


def as_html(parts: Iterable[Part]) -> str:
    """Return lines and tables for a notebook."""
    return "".join(f"<p>{html.escape(part)}</p>" if isinstance(part, str) else part.html() for part in parts)


def _row(kind: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
