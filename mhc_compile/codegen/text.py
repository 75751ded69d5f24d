"""Templates of Python source: `$name` in a line is a word, `$name` alone on a line a block at that indentation."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable

_ALONE = re.compile(r"^( *)\$(\w+)\n", re.MULTILINE)
_WORD = re.compile(r"\$(\w+)")


def fill(template: str, **parts: object) -> str:
    """Fill a template; an empty block takes its line away.

    Raises:
        KeyError: the template names a part that is not given.
    """

    def block(match: re.Match[str]) -> str:
        text = str(parts[match[2]])
        return textwrap.indent(text.strip("\n") + "\n", match[1]) if text.strip() else ""

    return _WORD.sub(lambda match: str(parts[match[1]]), _ALONE.sub(block, template))


def each(count: int, line: str, by: str = "\n") -> str:
    """Repeat a line for i in range(count), `{i}` standing for the index."""
    return by.join(line.format(i=i) for i in range(count))


def pairs(count: int, line: str) -> str:
    """Repeat a line for all i and j in range(count)."""
    return "\n".join(line.format(i=i, j=j) for i in range(count) for j in range(count))


def lines(parts: Iterable[str]) -> str:
    """Join what is there by line ends."""
    return "\n".join(part for part in parts if part)
