"""Sites that share blocks, and what a block costs.

A block keeps the streams at its first site, the branches' outputs and the coefficients; the streams of its other sites
are made again in the backward, either as a whole (plain torch) or step by step in the registers of kernels (replay).
Bytes are per token, as the planner counts them: what lives for the streams only, nothing that branches keep themselves.
"""

from __future__ import annotations

import dataclasses

_FLOAT = 4  # bytes of a coefficient


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteRun:
    """Sites in a row, of one region and one graph, with nothing of the user's between that saves or recomputes.

    Attributes:
        sites: their names.
        region: index of the region within the graph.
        streams: number n of streams.
        channels: number C of features.
        itemsize: bytes of an element of the streams.
        tokens: number of tokens in the run that was traced.
        coefficients: values that a site keeps of its coefficients, per token.
        starts: True where the streams start at the first site: its head is one tensor.
        under_checkpoint: True where the user's own checkpoint decides.
        replays: most writes that a kernel replays; 0 where streams are recomputed as a whole.
        size: sites of a block (L_r); 0 where nothing is planned.
    """

    sites: tuple[str, ...]
    region: int
    streams: int
    channels: int
    itemsize: int
    tokens: int
    coefficients: int
    starts: bool
    under_checkpoint: bool
    replays: int
    size: int = 0

    @property
    def _width(self) -> int:
        """Bytes of the streams of a token."""
        return self.streams * self.channels * self.itemsize

    @property
    def _stream(self) -> int:
        """Bytes of one stream of a token."""
        return self.channels * self.itemsize

    @property
    def _maps(self) -> int:
        """Bytes of H_post and H_res of a token."""
        return _FLOAT * (self.streams + self.streams**2)

    @property
    def heads(self) -> int:
        """How many sites keep their streams."""
        return -(-len(self.sites) // max(self.size, 1))

    @property
    def kept(self) -> int:
        """Bytes that live from the forward to the backward: heads, branches' outputs and coefficients."""
        first = self._stream if self.starts else self._width
        each = self._stream + _FLOAT * self.coefficients
        return first + (self.heads - 1) * self._width + len(self.sites) * each

    @property
    def transient(self) -> int:
        """Bytes of the streams that are made again and live at the same time, while one block's backward runs."""
        longest = min(self.size, len(self.sites)) if self.size else 1
        if self.replays:
            return (-(-longest // (self.replays + 1)) - 1) * self._width
        return (longest - 1) * self._width

    @property
    def moved(self) -> int:
        """Bytes that recomputing reads and writes.

        A kernel reads the branches' outputs and maps of k writes once per pass; it has two. Plain torch reads streams,
        output and maps of a write and writes the streams.
        """
        step = self._stream + self._maps
        if not self.size:
            return 0
        if not self.replays:
            return (len(self.sites) - self.heads) * (2 * self._width + step)
        replayed = made = 0
        for k in range(len(self.sites)):
            place = k % self.size  # of the site whose streams a kernel needs
            replayed += place % (self.replays + 1)
            made += place > 0 and place % (self.replays + 1) == 0
        return 2 * replayed * step + made * (2 * self._width + (self.replays + 1) * step)

    @property
    def before_rewrite(self) -> int:
        """Bytes that the model keeps of its residual stream before the rewrite: the input of every site."""
        return len(self.sites) * self._stream

    def in_blocks_of(self, size: int) -> SiteRun:
        """Return the run in blocks of so many sites."""
        return dataclasses.replace(self, size=min(size, len(self.sites)))
