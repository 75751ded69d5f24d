"""Gains of models of every kind: they are those of the rewritten graph, and looking changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api.gains import Observer
from mhc_compile.errors import CaptureError, NotUpgradedError
from tests.nets import small
from tests.nets.checkpointed import Checkpointed
from tests.nets.small import Net, Separate, Shared, compile_blocks, compiled, inputs, made, perturb, upgraded

pytestmark = pytest.mark.xdist_group("gains")  # what is made once is made by one worker


class Noisy(Net):
    """Draws random numbers, counts batches and calls, and has hyper-connections that mix."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)
        self.norm, self.calls = nn.BatchNorm1d(5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(self.norm(x))


def close(found: mhc.Gains, expected: mhc.Gains) -> bool:
    pairs = list(zip(found.sites, expected.sites, strict=True))
    matrices = [(torch.tensor(a.composite.matrix), torch.tensor(b.composite.matrix)) for a, b in pairs]
    same = all(abs(a.spread - b.spread) < 1e-5 for a, b in pairs)
    return same and all(torch.allclose(a, b, atol=1e-5) for a, b in matrices)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Two blocks, with parameters that mix."""
    return upgraded(Net, 2, moved=True)


@pytest.fixture(scope="module")
def plain(model: nn.Module) -> mhc.Gains:
    return mhc.gains(model, (inputs(),))


@pytest.mark.parametrize("connection", ["mhc", pytest.param("hc", marks=pytest.mark.slow)])
def test_gains_are_one_at_the_start(connection: str) -> None:
    found = mhc.gains(upgraded(Net, 2, config=mhc.Config(connection=connection)), (inputs(),))
    assert [site.name for site in found.sites] == [f"blocks.{i}.{label}" for i in range(2) for label in small.SITES]
    for site in found.sites:
        for mixing in (site.h_res, site.composite):
            assert mixing.forward.mean == pytest.approx(1, abs=1e-6)
            assert mixing.backward.max == pytest.approx(1, abs=1e-6)
        assert sum(site.h_pre) == pytest.approx(1, abs=1e-6)
        assert site.h_post == pytest.approx((1,) * 4, abs=1e-6)
        assert site.shares == pytest.approx((0.25,) * 4, abs=1e-6)
        assert site.tokens == 15
    assert found.dead == (0,)


def test_streams_that_have_parted_are_alive(plain: mhc.Gains) -> None:
    assert plain.dead == ()
    assert plain.sites[-1].spread > 0.01
    assert plain.composite.mean > 1.001


WAYS: dict[str, Callable[[nn.Module], object]] = {
    "compiled": lambda model: model.compile(backend="mhc", options={"compiler": "eager"}),
    "blocks": compile_blocks,
}


@pytest.mark.parametrize("way", [pytest.param("compiled", marks=pytest.mark.slow), "blocks"])
def test_it_does_not_matter_how_the_model_is_compiled(way: str, plain: mhc.Gains) -> None:
    model = upgraded(Net, 2, moved=True)
    WAYS[way](model)
    model(inputs())
    assert close(mhc.gains(model, (inputs(),)), plain)


@pytest.mark.slow
def test_it_takes_what_torch_compile_returned(plain: mhc.Gains) -> None:
    assert close(mhc.gains(compiled(upgraded(Net, 2, moved=True)), (inputs(),)), plain)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", [pytest.param(Checkpointed, marks=SLOW), Separate], ids=lambda kind: kind.__name__)
def test_streams_are_followed_through(kind: type[nn.Module], plain: mhc.Gains) -> None:
    """Checkpoints and graph breaks: the same maps as of the plain net."""
    assert close(mhc.gains(upgraded(kind, 2, moved=True), (inputs(),)), plain)


@pytest.mark.slow
def test_a_block_that_is_called_twice_has_sites_of_each_call() -> None:
    shared, net = made(Shared, 2), made(Net, 2)
    for name in ("stem", "head"):
        net.get_submodule(name).load_state_dict(shared.get_submodule(name).state_dict())
    for block in net.get_submodule("blocks").children():
        block.load_state_dict(shared.get_submodule("block").state_dict())
    for model in (shared, net):
        mhc.upgrade(model, (inputs(),))
        perturb(model)
    assert close(mhc.gains(shared, (inputs(),)), mhc.gains(net, (inputs(),)))


@pytest.mark.slow
def test_a_composite_ends_with_its_region(plain: mhc.Gains) -> None:
    split = mhc.gains(upgraded(Net, 2, moved=True, config=mhc.Config(split=("blocks.1.*",))), (inputs(),)).sites
    assert [site.region for site in split] == [0, 0, 1, 1]
    assert split[1].composite == split[1].h_res
    assert plain.sites[1].composite != plain.sites[1].h_res


class Vmapped(nn.Module):
    """Runs blocks for every example by itself, under a transform of torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.vmap(lambda row: self.net(row))(x)
        return out


@pytest.mark.slow
def test_streams_are_seen_within_transforms(plain: mhc.Gains) -> None:
    model = upgraded(Vmapped, moved=True)
    found = mhc.gains(model, (inputs(),))
    assert [site.tokens for site in found.sites] == [15] * 4
    assert close(found, plain)


# -- no trace ---------------------------------------------------------------------------------------------------------


def test_looking_leaves_no_trace() -> None:
    model = made(Noisy)
    mhc.upgrade(model, (inputs(),))
    perturb(model)
    run = compiled(model)
    run(inputs()).square().mean().backward()
    model.get_submodule("blocks").eval()
    run(inputs())
    before, calls = small.snapshot(model), model.calls
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state, enabled = torch.get_rng_state(), torch.is_grad_enabled()

    mhc.gains(model, (inputs(),))

    assert small.unchanged(model, before)
    assert model.calls == calls
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() is enabled
    assert small.same([p.grad for p in model.parameters()], grads)


@pytest.mark.parametrize("way", ["compiled", pytest.param("blocks", marks=pytest.mark.slow)])
def test_the_users_code_is_not_compiled_again(way: str) -> None:
    model = upgraded(Net, 2)
    WAYS[way](model)
    model(inputs()).square().mean().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        model(inputs())
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        with torch._dynamo.config.patch(error_on_recompile=False):
            mhc.gains(model, (inputs(),))
        assert torch._dynamo.utils.counters["frames"]["ok"] > frames  # its own were compiled, in a cache of their own
        frames = torch._dynamo.utils.counters["frames"]["ok"]
        model(inputs()).square().mean().backward()
        assert torch._dynamo.utils.counters["frames"]["ok"] == frames


def test_an_observer_traces_once_and_sees_what_changes() -> None:
    model = upgraded(Net, 2)
    look = Observer(model, dynamic=True)
    first = look((inputs(),), {})
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert close(look((inputs(),), {}), first)
    perturb(model)
    assert look((inputs(),), {}).composite.mean > first.composite.mean
    assert torch._dynamo.utils.counters["frames"]["ok"] == frames
    look((inputs(2, 7),), {})
    traced = torch._dynamo.utils.counters["frames"]["ok"]
    assert look((inputs(4, 9),), {}).sites[0].tokens == 36
    assert torch._dynamo.utils.counters["frames"]["ok"] == traced  # the sizes are dynamic by now
    look.close()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_models_without_sites_are_told_what_to_do(model: nn.Module) -> None:
    with pytest.raises(NotUpgradedError, match=r"holds no mHC parameters.*mhc_compile.upgrade"):
        mhc.gains(made(), (inputs(),))
    part = model.get_submodule("blocks.0")
    with pytest.raises(NotUpgradedError, match="a part of an upgraded model"):
        mhc.gains(part, (torch.randn(2, 16),))


def test_runs_that_show_nothing_are_told_why(model: nn.Module) -> None:
    with pytest.raises(CaptureError, match="did not run with the arguments"):
        mhc.gains(model, (inputs()[..., :3],))
    with pytest.raises(CaptureError, match="no site of the model ran"), mhc.plain(model):
        mhc.gains(model, (inputs(),))
    with pytest.raises(CaptureError, match="no site of the model ran"):
        mhc.gains(model, (inputs()[:0],))
