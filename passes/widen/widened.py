"""What widen leaves: facts of sites, and where streams cross the border of a graph. No node is held."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from mhc_compile.passes.base import SiteFacts


class Crossing(NamedTuple):
    """A tensor with which streams enter or leave a graph.

    Attributes:
        tensor: index of the graph's input or output that the streams belong to.
        site: name of the site that they come to, or from.
        phi: index of the input that holds the site's phi; None where it is made of one, by a transform of torch.func.
        axis: the feature axis of the tensor, negative.
        lifted: True where an op that is not linear stands between the site and the tensor.
        shared: True where the streams may also start here: at each run, the site whose phi is given tells.
    """

    tensor: int
    site: str
    phi: int | None
    axis: int
    lifted: bool = False
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Widened:
    """The sites of a rewritten graph, and where streams cross its border.

    Attributes:
        sites: what is known of each site, in program order.
        takes: inputs whose streams became new inputs, behind all others and in this order.
        gives: outputs whose streams became new outputs, behind all others and in this order.
        starts: inputs with which regions start, so that they must bring no streams of the same model.
    """

    sites: tuple[SiteFacts, ...] = ()
    takes: tuple[Crossing, ...] = ()
    gives: tuple[Crossing, ...] = ()
    starts: tuple[Crossing, ...] = ()
