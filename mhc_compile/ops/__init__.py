"""Mathematics: the reference functions (the specification) and the ops of the mhc IR, `torch.ops.mhc`."""

from __future__ import annotations

from mhc_compile.ops import library, replay, seams

__all__ = ["library", "replay", "seams"]
