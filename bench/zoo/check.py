"""Run one family through capture, find, rewrite, compile and backward, and judge it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import mhc_compile as mhc
from bench.zoo import modes
from bench.zoo.family import Call, Family
from bench.zoo.runs import Run, make, output_error, perturb, silent
from mhc_compile.api.report import short
from mhc_compile.backend import mhc as backend  # not its name: without an install none is registered

OUTPUT_TOLERANCE = 1e-5  # relative to the largest entry, fp32
GRADIENT_TOLERANCE = 1e-4


@dataclasses.dataclass
class Row:
    """What became of a family; numbers are None where it did not get so far.

    Attributes:
        library: the package.
        name: the family.
        expected: residual connections, by hand.
        parts: the same by what the branch is.
        sites: connections that were rewritten.
        kept: connections that were found and left alone (rejections with residual=True).
        regions: chains through which streams flow.
        lifts: names of the ops between sites that run on every stream.
        rejections: other adds, by reason.
        sources: source lines of the sites, with the number of sites.
        compiler: what ran the rewritten graph: "eager" where AOTAutograd cannot compile the plain model.
        graphs: graphs of the captured run.
        recompilations: graphs that a second call of the same shapes compiled.
        output_error: largest difference to the plain model, over the largest entry.
        gradient_error: the same of the gradients of the model's own parameters.
        torch_errors: both errors of torch.compile without mHC, where one of ours is large.
        rounding: both errors of float32 against float64 in the plain model, where one of ours is large.
        dead: parameters of mHC without a gradient once moved.
        moved: how much outputs changed when the parameters of mHC were moved.
        compile_seconds: first call with backward, by aot_eager.
        seconds: all of it.
        verdict: "pass"; "count", "value" or "error", which are ours; "timeout" or "crash"; "torch" where torch.compile
            fails without mHC too; "library" where the plain model does not run; "absent" where its library is missing;
            "none" where it has no switch for the mode.
        why: what is wrong.
        note: what the family says about itself.
        mode: how it ran (see `modes`).
    """

    library: str
    name: str
    expected: int
    parts: dict[str, int]
    note: str = ""
    mode: str = "eval"
    sites: int | None = None
    kept: int | None = None
    regions: int | None = None
    lifts: list[str] = dataclasses.field(default_factory=list)
    rejections: dict[str, int] = dataclasses.field(default_factory=dict)
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    cuts: list[str] = dataclasses.field(default_factory=list)
    compiler: str = "aot_eager"
    graphs: int | None = None
    recompilations: int | None = None
    output_error: float | None = None
    gradient_error: float | None = None
    torch_errors: list[float] = dataclasses.field(default_factory=list)
    rounding: list[float] = dataclasses.field(default_factory=list)
    dead: int | None = None
    moved: float | None = None
    compile_seconds: float | None = None
    seconds: float | None = None
    verdict: str = "error"
    why: str = ""

    @property
    def key(self) -> str:
        """Return "library/name"."""
        return f"{self.library}/{self.name}"

    @property
    def room(self) -> tuple[str, str]:
        """Return what a row is known by: the family and the mode."""
        return self.key, self.mode


def empty(family: Family) -> Row:
    """Return the row of a family of which nothing is known yet."""
    return Row(family.library, family.name, family.expected, dict(family.parts), family.note, family.mode)


def check(family: Family) -> Row:
    """Run the family; whatever goes wrong becomes the row's verdict."""
    row = empty(family)
    start = time.perf_counter()
    stage = "build"
    try:
        model, call = make(family)
        stage = "plain run"
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        before = Run.of(model, call, own.values())
        stage = "upgrade"
        with modes.planning(model, family.mode):
            report = mhc.upgrade(model, *call, verify=False)
        describe(row, report)
        stage = "compile"
        compiled(row, family, model, call, own, before)
        judge(row, family)
    except modes.UnknownSwitchError as error:
        row.verdict, row.why = "none", str(error)
    except ModuleNotFoundError as error:
        row.verdict, row.why = "absent", f"no module {error.name}"
    except Exception as error:  # a row says why; the zoo goes on
        row.verdict, row.why = blame(family, stage), f"{stage}: {type(error).__name__}: {_line(error)}"
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def blame(family: Family, stage: str) -> str:
    """Return the verdict of a family that stopped with an exception: whose it is."""
    if stage in ("build", "plain run"):
        return "library"
    return "torch" if plain_error(family, "eager")[0] == math.inf else "error"


def rounding(family: Family) -> tuple[float, float]:
    """Return how far float32 is from float64 in the plain model; 0 where it cannot run in float64."""
    model, call = make(family)
    own = [p for p in model.parameters() if p.requires_grad]
    before = Run.of(model, call, own)
    try:
        return before.errors(Run.of(model.double(), tree_map(doubled, call), own))
    except Exception:  # a dtype written into the model
        return 0.0, 0.0


def doubled(leaf: Any) -> Any:
    """Return a float tensor in float64."""
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def describe(row: Row, report: mhc.Report) -> None:
    """Write down what was found."""
    row.sites, row.regions, row.graphs = len(report.sites), len(report.regions), report.graphs
    row.kept = sum(rejection.residual for rejection in report.rejections)
    row.lifts = sorted({op for region in report.regions for op in region.lifts})
    row.rejections = dict(Counter(r.reason + "*" * r.residual for r in report.rejections).most_common())
    row.cuts = list(dict.fromkeys(f"{cut.reason} at {short(cut.source)}" for cut in report.cuts if cut.source))[:1]
    row.sources = dict(Counter(short(site.source) for site in report.sites))


def compiled(row: Row, family: Family, model: nn.Module, call: Call, own: Mapping[str, Tensor], before: Run) -> None:
    """Compile, compare with the plain run, then move the parameters of mHC and see that they matter."""
    start = time.perf_counter()
    try:
        step, after = first_call(model, call, own.values(), row.compiler)
    except Exception:
        if plain_error(family)[0] < math.inf:
            raise
        row.compiler = "eager"  # torch cannot compile the plain model by AOTAutograd either
        torch._dynamo.reset()
        start = time.perf_counter()
        step, after = first_call(model, call, own.values(), row.compiler)
    row.compile_seconds = round(time.perf_counter() - start, 2)
    row.output_error, row.gradient_error = after.errors(before)

    ours = dict(mhc.named_parameters(model))
    perturb(ours.values())
    known = graphs_compiled()
    moved = Run.of(step, call, (ours or own).values())
    row.recompilations = graphs_compiled() - known
    row.moved = output_error(moved.outputs, after.outputs)
    deaf = {name for name, gradient in zip(own, before.gradients, strict=True) if silent(gradient)}
    dead = [name for name, gradient in zip(ours, moved.gradients, strict=False) if silent(gradient)]
    row.dead = sum(not behind_a_wall(name.partition(".mhc.")[0], own, deaf) for name in dead)


def behind_a_wall(owner: str, own: Iterable[str], deaf: set[str]) -> bool:
    """Tell whether no parameter of the module has a gradient in the plain model: behind an argmax, say."""
    inside = [name for name in own if name.startswith(f"{owner}.")]
    return bool(inside) and deaf.issuperset(inside)


def first_call(model: nn.Module, call: Call, own: Iterable[Tensor], compiler: str) -> tuple[Any, Run]:
    """Return the compiled model and what its first call gave."""
    step = torch.compile(model, backend=backend, options={"compiler": compiler})
    return step, Run.of(step, call, own)


def plain_error(family: Family, compiler: str = "aot_eager") -> tuple[float, float]:
    """Return what torch.compile without mHC changes in outputs and gradients; infinite where it fails."""
    torch._dynamo.reset()
    model, call = make(family)
    own = [p for p in model.parameters() if p.requires_grad]
    before = Run.of(model, call, own)
    try:
        return Run.of(torch.compile(model, backend=compiler), call, own).errors(before)
    except Exception:  # whatever it is, it is not ours
        return math.inf, math.inf


def graphs_compiled() -> int:
    """Return how many graphs Dynamo has handed to a backend in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def judge(row: Row, family: Family) -> None:
    """Decide the verdict, the gravest first."""
    found = (row.sites or 0) + (row.kept or 0)
    wrong = differences(row, family)
    dropped = family.mode == "layerdrop"  # other layers run in another call
    if row.recompilations and not dropped:
        wrong.append(f"{row.recompilations} recompilations")
    if (row.dead or 0) > family.still and not dropped:
        wrong.append(f"{row.dead} parameters of mHC without a gradient")
    if row.sites and not (row.moved or 0.0) > 1e-5:
        wrong.append("parameters of mHC do not matter")
    if wrong:
        row.verdict = "value"
    elif family.streams and row.sites:
        row.verdict, wrong = "count", [f"{row.sites} rewritten"]
    elif not family.streams and abs(found - family.expected) > family.slack:
        row.verdict, wrong = ("cut" if row.cuts and found < family.expected else "count"), [f"{found} found", *row.cuts]
    else:
        row.verdict = "pass"
    row.why = "; ".join(wrong)


def differences(row: Row, family: Family) -> list[str]:
    """Return which errors are too large: above the tolerance, above torch.compile's own, and above rounding."""
    values = {"outputs": (row.output_error, OUTPUT_TOLERANCE), "gradients": (row.gradient_error, GRADIENT_TOLERANCE)}
    if all(error is not None and error <= most for error, most in values.values()):
        return []
    row.torch_errors, row.rounding = list(plain_error(family)), list(rounding(family))
    excuses = [max(3 * torchs, 10 * round_) for torchs, round_ in zip(row.torch_errors, row.rounding, strict=True)]
    return [
        f"{name} differ by {error:.1e}"
        for (name, (error, most)), excuse in zip(values.items(), excuses, strict=True)
        if error is None or not error <= max(most, excuse)
    ]


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200]
