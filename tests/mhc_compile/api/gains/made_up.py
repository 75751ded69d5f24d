"""Gains that nobody measured."""

from __future__ import annotations

from mhc_compile.api.gains.site import Amax, Mixing, SiteGains


def site(name: str = "layers.0.<attn>", spread: float = 0.1, gain: float = 1.0, **more: int) -> SiteGains:
    one = Mixing(Amax(1.0, 1.0), Amax(1.0, 1.0), ((1.0, 0.0), (0.0, 1.0)))
    composite = Mixing(Amax(gain, 2 * gain), Amax(1.0, 1.0), one.matrix)
    return SiteGains(
        name=name,
        call=more.get("call", 0),
        region=more.get("region", 0),
        k=0,
        tokens=3,
        h_pre=(0.75, 0.25),
        h_post=(1.0, 1.0),
        h_res=one,
        composite=composite,
        column_error=None,
        from_identity=0.0,
        from_uniform=1.0,
        spread=spread,
        spread_max=spread,
        shares=(0.75, 0.25),
    )
