"""Why something did not work, short enough for a table."""

from __future__ import annotations

HEAD, TAIL = 120, 220  # compilers print their source first and say what is wrong with it last


def reason(error: BaseException) -> str:
    """Return an error's type and text on one line, cut in the middle."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]} ... {text[-TAIL:]}"
