"""Other libraries' mHC, one small adapter each; `peers.txt` pins what was read and adapted to.

An adapter is a function from a shape and a device to a contender. It imports its library inside, and says with an
UnavailableError why it cannot run: not installed, no such kernels in that version, a shape or dtype it does not take.
"""

from __future__ import annotations

from bench.kernels.peers import hyperconnections, liger, megatron, tilekernels
from bench.kernels.timing.sites import OURS, Maker, one_launch

PEERS: dict[str, Maker] = {
    "liger-kernel": liger.contender,
    "tile-kernels": tilekernels.contender,
    "megatron-core": megatron.contender,
    "hyper-connections": hyperconnections.contender,
}
TRIED: dict[str, Maker] = {"one launch": one_launch, **PEERS}  # in a process of their own before they race
CONTENDERS: dict[str, Maker] = {**OURS, **TRIED}
