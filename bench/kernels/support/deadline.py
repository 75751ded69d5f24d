"""A step's share of the time there is."""

from __future__ import annotations

import time


class Deadline:
    """Seconds from now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Return whether nothing more is to be started."""
        return self.left <= 0

    def share(self, parts: int) -> Deadline:
        """Return the deadline of the first of so many equal parts of what is left."""
        return Deadline(self.left / max(1, parts))
