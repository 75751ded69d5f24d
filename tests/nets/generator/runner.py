"""Networks by number, in processes of their own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import fnmatch
import multiprocessing
import os
import traceback
import warnings
from collections.abc import Iterator

from mhc_compile.codegen.runtime import interpreter
from tests.nets.generator.families import STRUCTURES
from tests.nets.generator.judge import FaultError, judge
from tests.nets.generator.network import Drawing, draw
from tests.nets.generator.uses import USES

SHARE = 25  # networks that a process takes at a time
Verdict = tuple[str, str]  # how a network went, and what is wrong with it


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which networks are drawn.

    Attributes:
        only: pattern of the structures that lead.
        use: pattern of what is done with them.
        kernels: "cpp" or "triton" (in its interpreter), where they run by kernels, those that are not exact aside.
    """

    only: str = "*"
    use: str = "*"
    kernels: str = ""

    def draw(self, number: int) -> Drawing:
        """Return the network of a number."""
        names = [name for name, structure in STRUCTURES.items() if structure.exact or not self.kernels]
        drawing = draw(number, names, fnmatch.filter(USES, self.use), fnmatch.filter(names, self.only))
        if not self.kernels:
            return drawing
        kind = drawing.kind if drawing.kind[0] == "mhc" else ("mhc", "sinkhorn")  # there are kernels for mhc only
        return dataclasses.replace(drawing, kernels=self.kernels, kind=kind)


def verdicts(choice: Choice, numbers: range, jobs: int) -> Iterator[list[Verdict]]:
    """Judge networks, `jobs` processes at a time; yield what became of each share of them, in order."""
    shares = [numbers[i : i + SHARE] for i in range(0, len(numbers), SHARE)]
    if choice.kernels == "triton":
        os.environ[interpreter.VARIABLE] = "1"  # Triton decides at its import, which is in the processes
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(judged, [choice] * len(shares), shares)


def judged(choice: Choice, numbers: range) -> list[Verdict]:
    """Judge networks here."""
    warnings.simplefilter("ignore")
    if choice.kernels == "triton":
        interpreter.mend()
    return [_judged(choice.draw(number)) for number in numbers]


def _judged(drawing: Drawing) -> Verdict:
    name = f"{drawing.number} {drawing.structures}"
    try:
        return judge(drawing), ""
    except FaultError as fault:
        return "wrong", f"{name} {fault}\n"
    except Exception:  # the others are judged all the same
        return "broken", f"{name} the judge fails\n{traceback.format_exc()}"
