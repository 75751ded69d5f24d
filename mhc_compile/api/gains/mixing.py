"""What is computed of the maps that sites made: gains of each, and of the composites to the end of a region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mhc_compile.api.gains.site import Amax, Mixing, SiteGains
from mhc_compile.api.gains.tokens import composed
from mhc_compile.api.gains.watching import Passage


def measured(passages: Sequence[Passage], connection: str) -> tuple[SiteGains, ...]:
    """Return the gains of every passage, in their order."""
    whole, calls = _composites(passages), Counter[str]()
    found = []
    for passage in passages:
        found.append(_site(passage, calls[passage.site], whole[passage], connection))
        calls[passage.site] += 1
    return tuple(found)


def _composites(passages: Sequence[Passage]) -> dict[Passage, Mixing]:
    """Return the product from each passage to the end of its streams; where they go two ways, along the longer one."""
    ends = {*passages} - {passage.before for passage in passages}
    found: dict[Passage, Mixing] = {}
    for end in sorted((p for p in passages if p in ends), key=_length, reverse=True):
        for passage, product in _products(end):
            found.setdefault(passage, mixing(product))
    return found


def _length(end: Passage) -> int:
    return sum(1 for _ in _backwards(end))


def _backwards(end: Passage) -> Iterator[Passage]:
    passage: Passage | None = end
    while passage is not None:
        yield passage
        passage = passage.before


def _products(end: Passage) -> Iterator[tuple[Passage, Tensor]]:
    """Walk back from the end, and take one more H_res into the product of every token `[T, n, n]`."""
    product, moved = None, None
    for passage in _backwards(end):
        h_res = passage.h_res if moved is None else passage.h_res[moved.to(passage.h_res.device)]
        product = h_res if product is None else product @ h_res.to(product.device)
        yield passage, product
        moved = composed(passage.moved, moved)


def mixing(maps: Tensor) -> Mixing:
    """Return the gains of maps `[T, n, n]` (paper, section 5.4)."""
    rows, columns = maps.sum(-1).abs().amax(-1), maps.sum(-2).abs().amax(-1)
    return Mixing(_amax(rows), _amax(columns), tuple(map(_floats, maps.mean(0))))


def _amax(gains: Tensor) -> Amax:
    return Amax(float(gains.mean()), float(gains.amax()))


def _site(passage: Passage, call: int, composite: Mixing, connection: str) -> SiteGains:
    h_res, streams = passage.h_res, passage.streams
    n = h_res.shape[-1]
    eye = torch.eye(n, dtype=h_res.dtype, device=h_res.device)
    size, parts = streams.size.clamp_min(torch.finfo(streams.size.dtype).tiny), streams.shares
    total = float(parts.sum())
    return SiteGains(
        name=passage.site,
        call=call,
        region=passage.region,
        k=passage.k,
        tokens=h_res.shape[0],
        h_pre=_floats(passage.h_pre.mean(0)),
        h_post=_floats(passage.h_post.mean(0)),
        h_res=mixing(h_res),
        composite=composite,
        column_error=None if connection == "hc" else float((h_res.sum(-2) - 1).abs().max()),
        from_identity=_distance(h_res, eye),
        from_uniform=_distance(h_res, torch.full_like(eye, 1 / n)),
        spread=float((streams.apart.double().sum() / size.double().sum()).sqrt()),
        spread_max=float((streams.apart / size).max().sqrt()),
        shares=_floats(parts / total) if total else (1 / n,) * n,
    )


def _distance(maps: Tensor, fixed: Tensor) -> float:
    return float(torch.linalg.matrix_norm(maps - fixed).mean())


def _floats(values: Iterable[Tensor]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
