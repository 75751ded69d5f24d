"""Rewritten networks with perturbed parameters against the same networks with streams written by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from tests.nets import networks as nets
from tests.nets import spellings
from tests.nets.networks import KINDS, NETS, TOKENS, Make
from tests.nets.streams import Hand, apart, by_hand, load, near, perturbed, run


def check(
    make: Make, shapes: Sequence[tuple[int, ...]], sites: int, config: mhc.Config, compiler: str = "eager"
) -> None:
    """Compare outputs and every gradient for random upstream gradients."""
    torch.manual_seed(0)
    plain = make().double()
    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    model = copy.deepcopy(plain)
    report = mhc.upgrade(model, args, config=config, verify=False)
    assert len(report.sites) == sites
    compiled = torch.compile(model, backend=backend, options={"compiler": compiler})
    parameters = perturbed(report, config)
    load(model, parameters)
    hand = by_hand(plain, Hand(config.connection, config.projection, config.streams, parameters))
    expected = run(hand, dict(hand.named_parameters()) | parameters, args)
    near(run(compiled, dict(model.named_parameters()), args), expected, 1e-9)
    assert apart(run(plain, {}, args), expected) > 1e-2


@pytest.mark.core(2)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_connection(n: int, kind: tuple[str, str]) -> None:
    check(*NETS["pre-norm"], mhc.Config(streams=n, connection=kind[0], projection=kind[1]), "aot_eager")


@pytest.mark.core(5)
@pytest.mark.parametrize("connection", ["mhc", "hc"])
@pytest.mark.parametrize("net", [*list(NETS)[1:], *spellings.NETS])
def test_every_structure(net: str, connection: str) -> None:
    check(*(NETS | spellings.NETS)[net], mhc.Config(streams=3 if connection == "mhc" else 2, connection=connection))


@pytest.mark.core(2)
@pytest.mark.parametrize("net", [*NETS, *spellings.NETS])
def test_a_learned_readout(net: str) -> None:
    check(*(NETS | spellings.NETS)[net], mhc.Config(streams=3, readout="learned"))


@pytest.mark.core(1)
@pytest.mark.parametrize(
    "options", [{"exclude": "*.attn"}, {"every": 2}, {"include": ("blocks.0.*", "blocks.2.mlp")}], ids=str
)
def test_what_is_left_out_is_lifted(options: dict[str, Any]) -> None:
    make, shapes, sites = lambda: nets.Trunk(depth=3), [TOKENS], 3
    check(make, shapes, sites, mhc.Config(streams=2, **options))
