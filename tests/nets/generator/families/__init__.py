"""The structures that networks are drawn from, a file for each family.

Structures are known as "family/name". To add one, write it as a `Part` and give it a line in its file's `STRUCTURES`.
"""

from __future__ import annotations

from tests.nets.generator.families import (
    aliases,
    calls,
    checkpoints,
    common,
    effects,
    gates,
    images,
    opaque,
    recurrences,
    spellings,
    sums,
)
from tests.nets.generator.structure import Structure

FAMILIES: dict[str, dict[str, Structure]] = {
    "common": common.STRUCTURES,
    "effects": effects.STRUCTURES,
    "aliases": aliases.STRUCTURES,
    "gates": gates.STRUCTURES,
    "spellings": spellings.STRUCTURES,
    "calls": calls.STRUCTURES,
    "opaque": opaque.STRUCTURES,
    "sums": sums.STRUCTURES,
    "checkpoints": checkpoints.STRUCTURES,
    "recurrences": recurrences.STRUCTURES,
    "images": images.STRUCTURES,
}
STRUCTURES: dict[str, Structure] = {
    f"{family}/{name}": structure for family, members in FAMILIES.items() for name, structure in members.items()
}
