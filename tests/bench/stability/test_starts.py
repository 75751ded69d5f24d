"""bench/stability/starts: what each sets, and that frozen parts do not learn."""

from __future__ import annotations

import pytest
import torch

from bench.stability import starts
from mhc_compile.model.sites import SiteModule, sites_in
from tests.nets import small

N = 4
COLUMNS = {"pre": slice(0, N), "post": slice(N, 2 * N), "res": slice(2 * N, None)}


def begun(start: str) -> list[SiteModule]:
    model = small.upgraded(small.Net)
    starts.begin(model, start)
    return [site for _, site in sites_in(model)]


def test_home_is_what_upgrade_sets() -> None:
    assert not any(site.has_moved() for site in begun("home"))


def test_others() -> None:
    for site in begun("normal"):
        assert 0.01 < site.phi.std() < 0.03
        assert not site.bias.any()
    for site in begun("deepseek"):
        assert not site.base.any()
        assert (site.alpha == 1).all()
    for site in begun("symmetric"):
        torch.testing.assert_close(site.base[:N].sigmoid(), torch.full((N,), 1 / N))
        assert not site.phi.any()


@pytest.mark.slow
@pytest.mark.parametrize("part", list(COLUMNS))
def test_frozen_parts_have_no_gradient_and_the_others_have(part: str) -> None:
    model = small.upgraded(small.Net, moved=True)
    starts.freeze(model, (part,))
    out = torch.compile(model, backend="mhc", options={"compiler": "eager"})(small.inputs())
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    for _, site in sites_in(model):
        for index, (name, columns) in enumerate(COLUMNS.items()):
            for grad in (site.phi.grad, site.bias.grad):
                assert grad is not None
                assert bool(grad[..., columns].any()) is (name != part)
            assert site.alpha.grad is not None
            assert bool(site.alpha.grad[index]) is (name != part)
