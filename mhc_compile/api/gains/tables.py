"""Gains as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mhc_compile.api.gains.site import SiteGains
from mhc_compile.api.tables import Part, Table

HEAD = (
    "site", "region", "forward", "backward", "to the end: forward", "backward", "column error", "from I", "from 1/n",
    "spread", "dominance",
)  # fmt: skip
WHAT = (
    "gains: largest |row sum| (forward) and |column sum| (backward) of H_res, mean over tokens (largest);"
    " to the end: of the product from the site to the end of its region"
)


def parts(summary: str, sites: Sequence[SiteGains]) -> tuple[Part, ...]:
    """Return the gains as lines and a table."""
    return summary, Table(HEAD, _rows(sites)), WHAT


def _rows(sites: Sequence[SiteGains]) -> list[tuple[str, ...]]:
    called_again = {site.name for site in sites if site.call}
    return [tuple(_cells(site, site.name in called_again)) for site in sites]


def _cells(site: SiteGains, several: bool) -> Iterable[str]:
    yield f"{site.name} (call {site.call})" if several else site.name
    yield str(site.region)
    for mixing in (site.h_res, site.composite):
        for gain in (mixing.forward, mixing.backward):
            yield f"{number(gain.mean)} ({number(gain.max)})"
    yield "-" if site.column_error is None else f"{site.column_error:.1e}"
    yield f"{site.from_identity:.3f}"
    yield f"{site.from_uniform:.3f}"
    yield f"{site.spread:.1e}"
    yield f"{site.dominance:.3f}"


def number(value: float) -> str:
    """Return a gain, which is 1 or nearly, or may be thousands."""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"
