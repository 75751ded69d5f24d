"""Which connection of a graph is which site of the plan: a call of an owner realises the sites that it has marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import fx

from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.passes.base import Binding, Findings, Request, Residual, first_step, is_by_line
from mhc_compile.passes.bind_sites import Bindings
from mhc_compile.passes.graph.walk import calls

T = TypeVar("T")
_AGAIN = "remove(model) and upgrade it with arguments for this"


def bind(gm: fx.GraphModule, findings: Findings, bindings: Bindings, request: Request) -> dict[fx.Node, Binding]:
    """Return the bindings of the sums that become sites.

    A site is known by its place. Where the code has changed since upgrade, or the call takes another of several
    spellings, it is known by its child, if the call has as many connections of this child as sites.

    Raises:
        SiteNotFoundError: a site's add is not in this graph, although its branch is or may be behind a break.
        PlanMismatchError: a connection of the model has no site, and the plan has not left it out.
    """
    found_in: dict[tuple[Any, ...], list[Residual]] = {}
    for residual in findings.residuals:
        found_in.setdefault(residual.call.key, []).append(residual)
    bound: dict[fx.Node, Binding] = {}
    for key in dict.fromkeys([*found_in, *bindings.by_call]):
        found, sites = found_in.get(key, []), bindings.by_call.get(key, ())
        pairs = dict(_pairs(found, _of_this_call(found, sites, request)))
        bound |= pairs
        for residual in found:
            if residual.total not in pairs and not request.stays_plain(residual):
                raise PlanMismatchError(_unplanned(residual, sites))
        met = {binding.label for binding in pairs.values()}
        ran = Counter(residual.spot.child for residual in found if residual.total in pairs)
        for site in sites:
            if site.label in met:
                continue
            if request.parted and not key:
                raise SiteNotFoundError(_cut_off(site))
            if _takes_part(gm, site, found, ran, request):
                raise SiteNotFoundError(_missing(site, findings))
    return bound


def _of_this_call(found: Sequence[Residual], sites: Sequence[Binding], request: Request) -> list[Binding]:
    """Return the sites of this call of their owner; those that an older release has planned are of any."""
    numbers = {residual.spot.call for residual in found}
    later = [site for site in sites if site.spot is not None and site.spot.call > 0]
    if later and not request.whole and numbers == {0}:
        raise SiteNotFoundError(
            f"site {later[0].title!r} is of call {1 + max(s.spot.call for s in later if s.spot)} of its module within"
            " the model, and which call this is, cannot be seen here: the module was compiled apart from the model, or"
            " a graph break stands between its calls. Compile the whole model"
        )
    return [site for site in sites if site.spot is None or site.spot.call in numbers]


def _pairs(found: Sequence[Residual], sites: Sequence[Binding]) -> Iterator[tuple[fx.Node, Binding]]:
    """Pair connections with sites: by place, else by child, else, in plans of older releases, by name."""
    left, open_sites = list(found), list(sites)
    ways: list[tuple[Callable[[Residual], Hashable], Callable[[Binding], Hashable]]] = [
        (lambda r: r.spot, lambda s: s.spot),
        (lambda r: (r.spot.call, r.spot.child), lambda s: s.spot and (s.spot.call, s.spot.child)),
        (lambda r: r.label, lambda s: s.label if s.spot is None else None),
        (lambda r: not r.spot.child, lambda s: (s.spot is None and is_by_line(s.label)) or None),
    ]
    for of_residual, of_site in ways:
        fitting, paired = _grouped(open_sites, of_site), set[int]()
        for key, some in _grouped(left, of_residual).items():
            sites_of_key = fitting.get(key, [])
            if len(sites_of_key) == len(some):
                yield from zip((residual.total for residual in some), sites_of_key, strict=True)
                paired.update(map(id, (*some, *sites_of_key)))
        left = [residual for residual in left if id(residual) not in paired]
        open_sites = [site for site in open_sites if id(site) not in paired]


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> dict[Hashable, list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _takes_part(
    gm: fx.GraphModule, site: Binding, found: Sequence[Residual], ran: Mapping[str, int], request: Request
) -> bool:
    """Tell whether a site's branch runs in this call of its owner: else the call has skipped it, as LayerDrop does.

    It does if its child is called more often than connections of this child were found, or if somebody else reads the
    child's parameters, as a fused call does.
    """
    if site.spot is None:
        return True
    if site.spot.call not in {residual.spot.call for residual in found} and found:
        return False  # of a call that the graph does not make, as an early exit from a loop
    namer, child, inside = request.namer, site.spot.child, set[tuple[str, str]]()
    if not child:
        return True
    for node in gm.graph.nodes:
        below = None if node.op == "placeholder" else _below(node, site)
        if below is None:
            continue
        if namer.child(node, site.owner) == child:
            inside.update(below[:1])
        elif any(first_step(namer.parameter(arg, site.owner) or "") == child for arg in node.all_input_nodes):
            return True
    return len(inside) > ran[child]


def _below(node: fx.Node, site: Binding) -> tuple[tuple[str, str], ...] | None:
    """Return the calls inside of that of the owner which has marked the site; None for nodes of other calls."""
    stack = calls(node)
    if not site.call.key:
        return stack
    return stack[stack.index(site.call.key) + 1 :] if site.call.key in stack else None


def _unplanned(residual: Residual, sites: Sequence[Binding]) -> str:
    again = residual.spot.call and all(site.spot is None or site.spot.call < residual.spot.call for site in sites)
    how = f", which runs here {residual.spot.call + 1} times" if again else ""
    return (
        f"the connection at {residual.source} (of {residual.owner or 'the model'!r}{how}) has no site: upgrade did not"
        " see it, so it would run plain among hyper-connections. If layers were added, or chance left some out then"
        f" (LayerDrop: upgrade in eval()), or a loop is longer: {_AGAIN}."
        f" To leave it plain, say so to torch.compile: options={{'exclude': ({residual.name!r},)}}"
    )


def _cut_off(site: Binding) -> str:
    return (
        f"site {site.title!r} is cut off from its connection: a graph break cuts the forward that both are of"
        " (TORCH_LOGS=graph_breaks shows breaks). Take the break away, or remove(model) and upgrade it as it runs now."
    )


def _missing(site: Binding, findings: Findings) -> str:
    near = [f"{r.source} ({r.reason})" for r in findings.rejections if r.owner == site.owner and r.residual]
    cause = f"what stands there now: {', '.join(near)}" if near else "its add is not in this graph"
    return (
        f"site {site.title!r} is in the plan, but its residual add was not found in this graph: {cause}. Either"
        " a graph break or a fused call cuts the branch from its add (TORCH_LOGS=graph_breaks shows breaks), or this"
        " call takes another path through the model than the one that upgrade saw: remove(model) and upgrade with"
        " these arguments."
    )
