"""Random networks: their sites are found, their streams flow as written by hand, cut, rewritten twice or recomputed."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from hypothesis import given
from torch import Tensor

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.nets.random_networks import Drawing, Net, drawings, networks
from tests.nets.streams import Hand, apart, by_hand, load, near, perturbed, run


@networks(3)
@given(drawings)
def test_random_network(drawing: Drawing) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = Net(drawing).double()
    args = [torch.randn(drawing.batch, drawing.length, drawing.width, dtype=torch.float64)]
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    model = copy.deepcopy(plain)

    report = mhc.upgrade(model, args, config=config)
    assert [site.name for site in report.sites] == drawing.sites()
    assert Counter(rejection.reason for rejection in report.rejections) == drawing.rejections()

    compiled = torch.compile(model, backend=backend, options={"compiler": "eager"})
    own = {name: p for name, p in model.named_parameters() if ".mhc." not in name}
    before = run(plain, dict(plain.named_parameters()), args)
    near(run(compiled, own, args), before, 1e-5)

    parameters = perturbed(report, config)
    load(model, parameters)
    hand = by_hand(plain, Hand(config.connection, config.projection, config.streams, parameters))
    expected = run(hand, dict(hand.named_parameters()) | parameters, args)
    near(run(compiled, dict(model.named_parameters()), args), expected, 1e-8)  # chains of norms amplify rounding
    assert apart(before, expected) > 1e-4


@networks(1)
@given(drawings.filter(lambda drawing: not drawing.shared))  # one block's code cannot tell which call it serves
def test_whole_is_cut(drawing: Drawing) -> None:
    """Blocks that are compiled one by one are the whole model, bit for bit; removed, they are the plain model again."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(drawing).double()
    args = [torch.randn(drawing.batch, drawing.length, drawing.width, dtype=torch.float64)]
    own, before = dict(model.named_parameters()), {name: t.clone() for name, t in model.state_dict().items()}
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    report = mhc.upgrade(model, args, config=config, verify=False)
    load(model, perturbed(report, config))
    whole = run(torch.compile(model, backend=backend, options={"compiler": "eager"}), own, args)
    for region in model.regions:
        for block in region:  # type: ignore[attr-defined]
            block.compile(backend=backend, options={"compiler": "eager"})
    cut = run(model, own, args)
    if drawing.readers:  # gradients meet at what is read; in which order they are summed, cuts decide
        near(cut, whole, 1e-12)
    else:
        assert all(torch.equal(cut[name], tensor) for name, tensor in whole.items())

    mhc.remove(model, force=True)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@networks(1)
@given(drawings)
def test_rewriting_what_was_rewritten_changes_nothing(drawing: Drawing) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Net(drawing)
    args = [torch.randn(drawing.batch, drawing.length, drawing.width)]
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    mhc.upgrade(model, args, config=config, verify=False)
    assert mhc.upgrade(model, args, config=config).rejections == ()
    assert mhc.explain(mhc.export(model, args), args, config=config).sites == ()


@networks(1)
@given(drawings)
def test_recomputed_is_kept(drawing: Drawing) -> None:
    """Whatever the partitioner makes again, gradients are those of the graph that keeps all."""
    torch.manual_seed(0)
    model = Net(drawing).double()
    args = [torch.randn(drawing.batch, drawing.length, drawing.width, dtype=torch.float64)]
    config = mhc.Config(streams=drawing.streams, connection=drawing.kind[0], projection=drawing.kind[1])
    load(model, perturbed(mhc.upgrade(model, args, config=config, verify=False), config))

    def results(**options: Any) -> dict[str, Tensor]:
        torch._dynamo.reset()
        return run(torch.compile(model, backend=backend, options=options), dict(model.named_parameters()), args)

    near(results(compiler="aot_eager", recompute=3), results(compiler="eager"), 1e-9)
