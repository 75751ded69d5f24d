"""What every network has: connections as models spell them every day."""

from __future__ import annotations

from tests.nets import networks as nets
from tests.nets.generator.structure import Structure

STRUCTURES = {
    "pre-norm": Structure(nets.PreNorm, (2,)),
    "post-norm": Structure(nets.PostNorm, (2,)),
    "sandwich": Structure(nets.Sandwich),
    "parallel": Structure(nets.Parallel),
    "layer-scale": Structure(nets.LayerScale),
    "scaled-carrier": Structure(nets.ScaledCarrier),
    "subtracted": Structure(nets.Subtracted),
    "learned-carrier": Structure(nets.LearnedCarrier),
    "stacked": Structure(nets.Stacked),
    "overwritten": Structure(nets.Overwritten, (2,)),
    "gated trunk": Structure(nets.Gated, (2,)),
}
