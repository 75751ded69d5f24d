"""`python -m bench.kernels.wheels FOLDER`: pack the big wheels there tighter, so that they can be carried.

A machine without a registry is sent them, and takes little. What is left out is what no import needs.
"""

from __future__ import annotations

import fnmatch
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

BIG = 4 * 2**20
LEFT_OUT = ("*.data/data/bin/z3",)  # z3's command line


def main(argv: Sequence[str]) -> None:
    """Repack and say how large all is."""
    wheels = sorted(Path(argv[0]).glob("*.whl"))
    for wheel in wheels:
        if wheel.stat().st_size > BIG:
            pack(wheel)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:6.1f} MiB  in all")


def pack(wheel: Path) -> None:
    """Compress a wheel by LZMA, which pip reads."""
    packed = wheel.with_suffix(".packed")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as new:
        for item in old.infolist():
            if not any(fnmatch.fnmatch(item.filename, pattern) for pattern in LEFT_OUT):
                new.writestr(item.filename, old.read(item))
    packed.replace(wheel)


if __name__ == "__main__":
    main(sys.argv[1:])
