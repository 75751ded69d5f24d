"""Runs rewritten graphs op by op, notes the maps of every site, and follows streams from site to site."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from mhc_compile.api.gains import tokens
from mhc_compile.backend import carry
from mhc_compile.backend.planned import Planned
from mhc_compile.backend.rewriting import check_without_markers, config_of_markers, rewrite_graph
from mhc_compile.capture.frames import clean_errors, frame_root
from mhc_compile.capture.graphs import without_markers
from mhc_compile.config import Config
from mhc_compile.errors import PassError
from mhc_compile.model.sites import SiteModule, holder
from mhc_compile.ops.signatures import Coefficients, CoefficientsResult, Write, named, position
from mhc_compile.passes import inline
from mhc_compile.passes.graph import optable
from mhc_compile.passes.widen import processes

_OPS = torch.ops.mhc
_ENDS = frozenset((_OPS.coefficients.default, _OPS.read.default, _OPS.readout.default))  # what they make is no stream
_OURS = frozenset((*_ENDS, _OPS.expand.default, _OPS.write.default))


@dataclasses.dataclass(eq=False, kw_only=True)
class Passage:
    """Streams on their way through one site, in one call.

    Attributes:
        site: name of the site.
        region: index of its region.
        k: its position there.
        h_pre: `[T, n]`.
        h_post: `[T, n]`.
        h_res: `[T, n, n]`.
        before: where its streams came from; None where they start here.
        moved: for each of its T tokens, which token of `before` it is; None where they are the same.
        streams: what is known of the streams behind it (`tokens.Streams`).
    """

    site: str
    region: int
    k: int
    h_pre: Tensor
    h_post: Tensor
    h_res: Tensor
    before: Passage | None
    moved: Tensor | None
    streams: tokens.Streams


@dataclasses.dataclass(frozen=True)
class _Track:
    """Where streams come from: the last passage, and how tokens were moved since."""

    passage: Passage | None = None
    moved: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class _Made:
    """A site's maps, before its write.

    Attributes:
        maps: what the op `coefficients` returned.
        track: where the site's streams come from.
        site: the site itself, where it is known.
        lying: how `processes.added` sums over those that have other features; None where each has all.
    """

    maps: Any
    track: _Track
    site: SiteModule | None
    lying: tuple[Any, ...] | None


class Watch:
    """A backend that runs the rewritten graphs op by op and looks at the ops of the IR."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.passages: list[Passage] = []
        self._carried: Any = WeakIdKeyDictionary()  # streams that left a graph, and their track

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[Passage]]:
        """Collect the passages of one run in a list, and forget them."""
        found = self.passages = list[Passage]()
        try:
            yield found
        finally:
            self.passages, self._carried = [], WeakIdKeyDictionary()

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Rewrite a graph of Dynamo's as the backend does, and return what runs it."""
        with clean_errors():
            made_with = config_of_markers(gm, None)
            planned = Planned.of(gm, frame_root())
            if made_with is None:
                if planned.any:
                    check_without_markers(gm, Config(), planned)
                plain: Callable[..., Any] = without_markers(gm).forward
                return plain
            config = dataclasses.replace(made_with, kernels="reference", recompute="off", compiler="eager")
            made = rewrite_graph(gm, config, planned, watched=True)

        def run(*inputs: Any) -> Any:
            return _Run(made.gm, self).run(*inputs)

        return carry.connect_graphs(run, made.takes, made.gives, made.starts, config.streams)

    def track_of(self, streams: Any) -> _Track:
        """Return where streams come from that another graph has made."""
        return self._carried.get(streams, _Track()) if isinstance(streams, Tensor) else _Track()

    def carry(self, streams: Any, track: _Track) -> None:
        """Remember streams that leave a graph."""
        self._carried[streams] = track


class _Run(fx.Interpreter):
    """One run of a rewritten graph."""

    def __init__(self, gm: fx.GraphModule, watch: Watch) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.watch = watch
        self.tracks: dict[fx.Node, _Track] = {}
        self.sites: dict[fx.Node, SiteModule] = {}  # by the input that is its phi
        self.made: dict[fx.Node, _Made] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and look at what it does to streams."""
        ours = n.target in _OURS if n.op == "call_function" else False
        result = self._ours(n) if ours else super().run_node(n)
        if n.op == "placeholder":
            self._enter(n, result)
        elif n.op == "output":
            self._leave(n, result)
        elif n.target is _OPS.expand.default:
            self.tracks[n] = _Track()
        elif n.target in (_OPS.coefficients.default, processes.coefficients_of_parts):
            self._come(n, result)
        elif n.target is _OPS.write.default:
            self._write(n, result)
        elif n.target not in _ENDS:
            self._lift(n, result)
        return result

    def _ours(self, n: fx.Node) -> Any:
        """Run an op of the IR; under a transform of torch.func as plain torch, which alone knows of these."""
        if torch._C._functorch.maybe_current_level() is None:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        return inline.meaning(n, args)

    def _enter(self, n: fx.Node, result: Any) -> None:
        track, site = self.watch.track_of(result), holder(result)
        if track.passage is not None:
            self.tracks[n] = track
        if site is not None:
            self.sites[n] = site

    def _come(self, n: fx.Node, result: Any) -> None:
        given: Any = n.args
        lying = None
        if n.target is processes.coefficients_of_parts:
            given, lying = given[0], self.fetch_args_kwargs_from_env(n)[0][1:]
        at: Any = named(Coefficients, given)
        phi = at.parameters.phi
        if phi.target is processes.of_all_tokens:
            phi = phi.args[0]
        self.made[n] = _Made(result, self.tracks.get(at.x, _Track()), self.sites.get(phi), lying)

    def _write(self, n: fx.Node, result: Tensor) -> None:
        at: Any = named(Write, n.args)
        made = self.made[at.h_res.args[0]]  # of getitem
        pre, post, res = (made.maps[position(CoefficientsResult, name)] for name in ("h_pre", "h_post", "h_res"))
        site, lying, streams = made.site, made.lying, tokens.Streams.of(result)
        passage = Passage(
            site=site.path if site is not None else n.meta["mhc_site"],
            region=site.region if site is not None else 0,
            k=site.place.k if site is not None else 0,
            h_pre=tokens.flat(pre, 1),
            h_post=tokens.flat(post, 1),
            h_res=tokens.flat(res, 2),
            before=made.track.passage,
            moved=made.track.moved,
            streams=streams if lying is None else streams.added(lambda part: processes.added(part, *lying)),
        )
        self.watch.passages.append(passage)
        self.tracks[n] = _Track(passage)

    def _lift(self, n: fx.Node, result: Any) -> None:
        """Follow streams through an op that is applied to each: it moves their tokens, or leaves them in place."""
        source = next((arg for arg in n.all_input_nodes if arg in self.tracks), None)
        if source is None or not isinstance(result, Tensor):
            return
        track, shape = self.tracks[source], self.env[source].shape
        if optable.name(n).strip("_") in optable.VIEW:  # `__getitem__` among them
            moved = tokens.moved(self.env[source], lambda streams: self._again(n, source, streams))
            track = dataclasses.replace(track, moved=tokens.composed(track.moved, moved))
        elif result.shape[:-1] != shape[:-1]:
            raise PassError(f"streams of shape {(*shape,)} go through {n.target}, which moves tokens unseen")
        self.tracks[n] = track

    def _again(self, n: fx.Node, source: fx.Node, instead: Tensor) -> Any:
        """Do to another tensor what a node does to streams."""
        args, kwargs = fx.map_arg((n.args, n.kwargs), lambda arg: instead if arg is source else self.env[arg])
        run: Callable[..., Any] = getattr(self, n.op)
        return run(n.target, args, kwargs)

    def _leave(self, n: fx.Node, result: Any) -> None:
        returned = n.args[0]
        for node, value in zip(returned, result, strict=True) if isinstance(returned, (tuple, list)) else ():
            if isinstance(node, fx.Node) and node in self.tracks:
                self.watch.carry(value, self.tracks[node])
