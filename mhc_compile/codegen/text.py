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


def each(count: int, line: str) -> str:
    """Repeat a line for i in range(count), `{i}` standing for the index."""
    return "\n".join(line.format(i=i) for i in range(count))


def lines(parts: Iterable[str]) -> str:
    """Join what is there by line ends."""
    return "\n".join(part for part in parts if part)


def wrap(text: str, width: int = 120) -> str:
    """Break long lines that end with a call or a parameter list at the spaces in its parentheses."""
    return "\n".join(line if len(line) <= width else _wrapped(line, width) for line in text.split("\n"))


def _wrapped(line: str, width: int) -> str:
    tail = next((end for end in ("):", ")") if line.endswith(end)), "")
    at, depth = len(line) - len(tail), 1
    while depth and at:
        at -= 1
        depth += {")": 1, "(": -1}.get(line[at], 0)
    if not tail or depth or "#" in line:
        return line
    margin = " " * (len(line) - len(line.lstrip()))
    inside = line[at + 1 : -len(tail)]
    parts = textwrap.wrap(inside, width - len(margin) - 4, break_long_words=False, break_on_hyphens=False)
    return "\n".join([line[: at + 1], *(f"{margin}    {part}" for part in parts), margin + tail])
