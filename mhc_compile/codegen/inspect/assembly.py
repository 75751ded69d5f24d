"""What PTX, SASS and AMD's assembly say of a kernel: its resources, instructions and accesses of global memory."""

from __future__ import annotations

import collections
import dataclasses
import linecache
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Access:
    """Instructions of one line of the source that load from or store to global memory.

    Attributes:
        kind: "load" or "store".
        width: bytes per thread and instruction.
        text: the line.
        count: how many instructions there are.
    """

    kind: str
    width: int
    text: str
    count: int


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """What a binary is made of.

    Attributes:
        registers: per thread.
        stack: bytes per thread of stack, spilled registers among them.
        accesses: of global memory.
        instructions: how often each mnemonic stands in the machine code.
    """

    registers: int
    stack: int
    accesses: tuple[Access, ...]
    instructions: Mapping[str, int]


_PTX_MOVE = re.compile(r"\b(ld|st)\.global\.(?:[\w:]+\.)*?(?:v([248])\.)?[bfsu](8|16|32|64)\b")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S*\s+\[[^]]*\]\s*,\s*\[[^]]*\]\s*,\s*(\w+)")
_AMD_MOVE = re.compile(
    r"^\s+(?:global|buffer|flat)_(load|store)_(?:[su]?(byte|short)|dword(?:x([234]))?)(?:_d16\w*)?\b"
)
_AMD_BYTES = {"byte": 1, "short": 2, None: 4}

Move = tuple[str, int]


def nvidia(asm: Mapping[str, Any]) -> Anatomy:
    """Take apart what Triton compiled for an NVIDIA GPU, with the `cuobjdump` that it brings."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage, sass = (_cuobjdump(option, file.name) for option in ("--dump-resource-usage", "--dump-sass"))
    used = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass)
    moves = _accesses(asm["ptx"], ptx_move)
    return Anatomy(used["REG"], used["STACK"] + used["LOCAL"], moves, collections.Counter(names))


def amd(asm: Mapping[str, Any]) -> Anatomy:
    """Take apart what Triton compiled for an AMD GPU; registers are vector and accumulation registers together."""
    text = asm["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"^\s+(?:- )?\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    code = text[: text.find(".amdgpu_metadata")]
    names = re.findall(r"^\s+([a-z]\w+)(?:\s|$)", code, re.MULTILINE)
    # the count of vector registers covers both kinds on gfx90a and gfx94x
    return Anatomy(used["vgpr_count"], used["private_segment_fixed_size"], _accesses(text, amd_move),
                   collections.Counter(names))  # fmt: skip


def ptx_move(line: str) -> Move | None:
    """Return kind and width of the access to global memory in a line of PTX, if there is one."""
    if found := _PTX_MOVE.search(line):
        return ("load" if found[1] == "ld" else "store"), int(found[2] or 1) * int(found[3]) // 8
    if found := _PTX_COPY.search(line):
        return "load", int(found[1], 0)
    return None


def amd_move(line: str) -> Move | None:
    """Return kind and width of the access to global memory in a line of AMD's assembly, if there is one."""
    if found := _AMD_MOVE.search(line):
        return found[1], _AMD_BYTES[found[2]] * int(found[3] or 1)
    return None


def _accesses(asm: str, move: Callable[[str], Move | None]) -> tuple[Access, ...]:
    """Count accesses by the source line that the last `.loc` before them names."""
    files = {number: "/".join(parts) for number, *parts in _files(asm)}
    counts: collections.Counter[tuple[str, int, str]] = collections.Counter()
    text = ""
    for line in asm.splitlines():
        if place := re.match(r"\s+\.loc\s+(\d+)\s+(\d+)", line):
            text = linecache.getline(files.get(place[1], ""), int(place[2])).strip()
        elif moved := move(line):
            counts[(*moved, text)] += 1
    return tuple(Access(*key, number) for key, number in counts.items())


def _files(asm: str) -> list[list[str]]:
    found = re.findall(r'^\s+\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', asm, re.MULTILINE)
    return [[part for part in parts if part] for parts in found]


def _cuobjdump(option: str, path: str) -> str:
    from triton import knobs

    command = [knobs.nvidia.cuobjdump.path, option, path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
