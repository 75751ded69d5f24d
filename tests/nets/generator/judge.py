"""Whether a network, upgraded and used, computes what streams by hand compute; or says that it does not."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.nets.generator.families import STRUCTURES
from tests.nets.generator.hand import Placed, UnplannedError, piece, places
from tests.nets.generator.network import Drawing, Net
from tests.nets.generator.uses import USES, Step, Use
from tests.nets.streams import by_hand, load, perturbed

TOLERANCE, NARROW_TOLERANCE = 1e-8, 5e-3
Values = dict[str, Tensor]


class FaultError(Exception):
    """A network is not what it should be; the text has all that is needed to see it again."""

    def __init__(self, drawing: Drawing, what: str) -> None:
        """Tell the fault, how to run the network again, and the code of its structures."""
        again = "from tests.nets.generator.judge import Drawing, judge"
        super().__init__(f"{what}\n\n# seed {drawing.number}, once more:\n{again}\njudge({drawing})\n\n{code(drawing)}")
        self.drawing, self.what = drawing, what


def code(drawing: Drawing) -> str:
    """The source of every class that the network's pieces are made of."""
    net = Net(drawing)
    classes = dict.fromkeys(type(module) for module in net.modules() if type(module).__module__.startswith("tests."))
    return "\n".join(inspect.getsource(cls) for cls in classes)


def judge(drawing: Drawing) -> str:
    """Run a network; return how it went.

    "right"; "refused", where an error of ours is right too; "told", where rows say that some connections are left
    alone, but not which; "torch", where its compiler cannot run the plain network either.

    Raises:
        FaultError: it is silently plain, silently wrong, or an error stops who did nothing wrong.
    """
    torch._dynamo.reset()
    torch.manual_seed(drawing.number)
    plain = Net(drawing).to(torch.float32 if drawing.kernels else torch.float64).train(drawing.training)
    config = mhc.Config(
        streams=drawing.streams,
        connection=drawing.kind[0],
        projection=drawing.kind[1],
    )
    x = tokens(plain, drawing, drawing.length)
    plain.tail = _tail_that_fits(plain, x)
    before = Run(plain, plain, x).values
    model = copy.deepcopy(plain)
    try:
        report = mhc.upgrade(model, (x,), config=config)
    except mhc.errors.MHCError as error:
        raise FaultError(drawing, f"upgrade: {_first_line(error)}") from error
    if moved := _moved(model, plain):
        raise FaultError(drawing, f"upgrade moves buffers: {moved}")
    hand = _by_hand(drawing, plain, report, config, x)
    if hand is None:
        return "told"
    load(model, {name: value.to(x.dtype) for name, value in hand.hand.parameters.items()})  # type: ignore[union-attr]
    tolerance = NARROW_TOLERANCE if drawing.kernels else TOLERANCE
    expected = Run(hand, hand, x)
    found = Run(_compiled(model, drawing), model, x)
    _compare(drawing, "first call", found, expected, Run(plain, plain, x), tolerance)
    if report.sites and apart(before, expected.values) < 1e-4:
        raise FaultError(drawing, "the parameters of mHC do not matter")
    return _use(drawing, (model, hand, plain), tolerance)


def _tail_that_fits(plain: Net, x: Tensor) -> str:
    """The network's tail, or none where its result lies otherwise in memory than the tail takes it to."""
    asked, plain.tail = plain.tail, "turned, kept" if plain.tail == "turned" else "kept"
    made = plain(x)[0]
    made = made.transpose(0, 1) if asked == "turned" else made
    return asked if made.is_contiguous() else "kept"


def _use(drawing: Drawing, nets: tuple[Net, Net, Net], tolerance: float) -> str:
    """Put the network to its use, and the other two to the same."""
    use, (model, hand, plain) = USES[drawing.use], nets
    x = tokens(plain, drawing, 1 if use.longer is None else drawing.length + use.longer)
    for net in (hand, plain):
        use.change(net)
    try:
        expected: Run | None = _run(use, use.step(hand), hand, x)
    except UnplannedError:
        expected = None
    seen = _run(use, use.step(plain), plain, x)
    if use.fresh:
        torch._dynamo.reset()
    try:
        use.change(model)
        step = use.step(model)
        found = _run(use, _compiled(step, drawing, use.dynamic) if use.compiled else step, model, x)
    except mhc.errors.MHCError as error:
        if use.refuses or expected is None or any(STRUCTURES[name].refuses for name in drawing.structures):
            return "refused"
        raise FaultError(drawing, f"{drawing.use}: {_first_line(error)}") from error
    except Exception as error:
        if _torch_fails(use, plain, drawing, x):
            return "torch"
        raise FaultError(drawing, f"{drawing.use}: {_first_line(error)}") from error
    if expected is None:
        raise FaultError(drawing, f"{drawing.use}: a connection that was not planned ran without a word")
    try:
        _compare(drawing, drawing.use, found, expected, seen, tolerance)
    except FaultError:  # torch's own compilers leave out numbers that nobody reads, and draw others in a second run
        step = torch.compile(use.step(hand), backend=drawing.compiler)
        _compare(drawing, drawing.use, found, _run(use, step, hand, x), seen, tolerance)
    return "right"


def _torch_fails(use: Use, plain: Net, drawing: Drawing, x: Tensor) -> bool:
    """Tell whether torch's own compiler cannot run the plain network either."""
    torch._dynamo.reset()
    try:
        _run(use, torch.compile(use.step(plain), backend=drawing.compiler, dynamic=use.dynamic), plain, x)
    except Exception:
        return True
    return False


def _by_hand(drawing: Drawing, plain: Net, report: mhc.Report, config: mhc.Config, x: Tensor) -> Net | None:
    """The network by hand, with its sites put in their places and parameters that mix.

    None where rows say that some connections of a structure are left alone, but not which.
    """
    names = [site.name for site in report.sites]
    if len(set(names)) != len(names):
        raise FaultError(drawing, f"sites share a name: {names}")
    found: dict[str, int] = defaultdict(int)
    for site in report.sites:
        found[piece(site.owner)] += 1
    told = {piece(rejection.owner): False for rejection in report.rejections}
    told |= {piece(rejection.owner): True for rejection in report.rejections if rejection.residual}
    loose = any(0 in STRUCTURES[name].sites for name in drawing.structures)  # a neighbour may be left alone with it
    for i, name in enumerate(drawing.structures):
        count, here, allowed = found[f"pieces.{i}"], f"pieces.{i}", STRUCTURES[name].sites
        if count in allowed and (count or STRUCTURES[name].is_none or told.get(here)):
            continue
        if count == 0 and not told.get(here) and (0 in allowed or not loose or here not in told):
            raise FaultError(drawing, f"{name} has no site and no row says so: {_rows(report, here)}")
        if not (loose and here in told and count < max(allowed)):
            raise FaultError(drawing, f"{name} has {count} sites, not {allowed}: {_rows(report, here)}")
        if count:
            return None
    planner = Placed(*drawing.kind, drawing.streams, {})
    Run(by_hand(plain, planner), plain, x)
    parameters = {name: value.to(x.dtype).detach() for name, value in perturbed(report, config).items()}
    try:
        known = places(report, list(dict.fromkeys(planner.met)))
    except AssertionError as error:
        raise FaultError(drawing, str(error)) from error
    regions = {f"{site.owner}.mhc.{site.label}": site.region for site in report.sites}
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}
    return by_hand(plain, dataclasses.replace(planner, parameters=leaves, names=known, regions=regions, met=[]))


class Run:
    """One call: outputs, gradients of every leaf, buffers, and how the outputs lie in memory."""

    def __init__(self, step: Step, net: Net, x: Tensor, backward: bool = True) -> None:
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers() if ".mhc." not in name}
        torch.manual_seed(7)
        x = x.clone().requires_grad_(backward)
        outputs = step(x)
        self.values = {f"output {i}": tensor.detach().clone() for i, tensor in enumerate(outputs)}
        self.strides = [[s for s, n in zip(o.stride(), o.shape, strict=True) if n > 1] for o in outputs]
        self.values |= {f"buffer {name}": buffer.clone() for name, buffer in net.named_buffers() if name in buffers}
        if backward:
            self.values |= _gradients(outputs, _leaves(net) | {"argument": x})
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def _run(use: Use, step: Step, net: Net, x: Tensor) -> Run:
    with use.mode():
        return [Run(step, net, x, backward=use.mode is torch.enable_grad) for _ in range(use.calls)][-1]


def _compiled(step: Step, drawing: Drawing, dynamic: bool | None = None) -> Step:
    options: dict[str, Any] = {"compiler": drawing.compiler, "kernels": drawing.kernels or "auto"}
    made: Step = torch.compile(step, backend=backend, dynamic=dynamic, options=options)
    return made


def _leaves(net: Net) -> dict[str, Tensor]:
    """The parameters of a network, those of its sites included."""
    own = {name: p for name, p in net.named_parameters() if p.requires_grad}
    sites = {} if net.hand is None else net.hand.parameters
    frozen = not own
    return {} if frozen else own | sites


def _gradients(outputs: tuple[Tensor, ...], leaves: Mapping[str, Tensor]) -> Values:
    live = [tensor for tensor in outputs if tensor.requires_grad]
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in live]
    found = torch.autograd.grad(live, list(leaves.values()), upstream, allow_unused=True)
    return {name: g for name, g in zip(leaves, found, strict=True) if g is not None}


def tokens(net: Net, drawing: Drawing, length: int) -> Tensor:
    """The input for a number of tokens."""
    generator = torch.Generator().manual_seed(drawing.number + length)
    return torch.randn(drawing.shape(length), generator=generator, dtype=next(net.parameters()).dtype)


def _compare(drawing: Drawing, when: str, found: Run, expected: Run, plain: Run, tolerance: float) -> None:
    """Complain about the first thing that is not as by hand, or does not lie as in the plain network."""
    ours, theirs = found.values, expected.values
    lone = {
        name: value for one, two in ((ours, theirs), (theirs, ours)) for name, value in one.items() if name not in two
    }
    if drawing.compiler != "eager":  # AOTAutograd says 0 where there is no gradient
        lone = {name: value for name, value in lone.items() if value.any()}
    if one_sided := sorted(name for name in lone if not name.startswith("buffer")):
        raise FaultError(drawing, f"{when}: only one side has a gradient: {one_sided}")
    grads = [t.abs().max() for name, t in theirs.items() if not name.startswith(("output", "buffer"))]
    least = 1e-4 * float(max(grads, default=torch.tensor(0.0)))
    for name in theirs.keys() & ours.keys():
        wanted = theirs[name]
        scale = max(float(wanted.abs().max()), least, 1e-9)
        if ours[name].shape != wanted.shape or not float((ours[name] - wanted).abs().max()) <= tolerance * scale:
            off = float((ours[name] - wanted).abs().max()) / scale if ours[name].shape == wanted.shape else "the shape"
            like_plain = name in plain.values and torch.allclose(ours[name], plain.values[name])
            raise FaultError(drawing, f"{when}: {name} is off by {off:.1e}{', it is plain' * like_plain}")
    if found.strides != plain.strides:
        raise FaultError(
            drawing, f"{when}: outputs lie in memory as {found.strides}, in the plain network {plain.strides}"
        )


def apart(a: Values, b: Values) -> float:
    """The largest difference of outputs."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith("output"))


def _rows(report: mhc.Report, here: str) -> list[Any]:
    return [(r.reason, r.residual) for r in report.rejections if piece(r.owner) == here]


def _moved(model: Net, plain: Net) -> list[str]:
    """Buffers that are not what they were."""
    after = dict(model.named_buffers())
    return [name for name, buffer in plain.named_buffers() if not torch.equal(after[name], buffer)]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
