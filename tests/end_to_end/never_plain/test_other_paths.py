"""Calls that take another way through an upgraded model than the one upgrade saw: right, or an error that says so.

The models have perturbed parameters, so a site that runs plain, or with another's parameters, shows.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from tests.end_to_end.never_plain.paths import C, Deep, Tied, moved, x
from tests.nets.small import agree, compiled, relative, results


def pruned(model: Deep, keep: list[int]) -> Deep:
    """A model of fewer layers, with the sites of those that are left: it was never asked to skip."""
    state = {
        k: v for k, v in model.state_dict().items() if not k.startswith("layers") and not k.startswith("mhc.layers")
    }
    for new, old in enumerate(keep):
        for name, value in model.state_dict().items():
            if name.startswith(f"layers.{old}."):
                state[name.replace(f"layers.{old}.", f"layers.{new}.", 1)] = value
    small = Deep(len(keep), stem=isinstance(model.stem, nn.Linear))
    mhc.restore(small, state)
    return small


@pytest.mark.core(2)
@pytest.mark.parametrize("stem", [True, False])
@pytest.mark.parametrize("skip", [{0}, {3}, {0, 1}, {1, 2}], ids=["first", "last", "first two", "middle"])
def test_streams_pass_skipped_layers_by(skip: set[int], stem: bool) -> None:
    model = moved(Deep(stem=stem))
    kept = [i for i in range(4) if i not in skip]
    model.skip = frozenset(skip)
    small = pruned(model, kept)
    (out, grads), (want, wanted) = results(compiled(model), model, x()), results(compiled(small), small, x())
    assert relative(out, want) < 1e-5
    named = dict(zip(["x", *(n for n, _ in model.named_parameters())], grads, strict=True))
    for name, gradient in zip(["x", *(n for n, _ in small.named_parameters())], wanted, strict=True):
        layer = name.split(".")[1] if name.startswith("layers") else ""
        mine = named[name.replace(f"layers.{layer}.", f"layers.{kept[int(layer)]}.", 1) if layer else name]
        assert mine is not None
        assert gradient is not None
        assert float((mine - gradient).abs().max()) < 1e-5 * max(1.0, float(gradient.abs().max()))
    assert all(named[name] is None for name in named if name.split(".")[1:2] and name.split(".")[1] in map(str, skip))


@pytest.mark.parametrize("exit_at", [1, 3])
def test_an_early_exit(exit_at: int) -> None:
    model = moved(Deep())
    model.exit = exit_at
    small = pruned(model, list(range(exit_at)))
    assert relative(compiled(model)(x()), compiled(small)(x())) < 1e-5


def test_layers_of_the_models_own_forward_may_be_skipped() -> None:
    model = moved(Deep(loose=True))
    whole = compiled(model)(x())
    model.skip = frozenset({1})
    out = compiled(model)(x())
    assert relative(out, whole) > 1e-2
    out.mul(x()).sum().backward()
    trained = {n.split(".")[1] for n, p in mhc.named_parameters(model) if p.grad is not None}
    assert trained == {"layers_0", "layers_2", "layers_3"}


def test_a_branch_without_its_add_is_no_skipped_layer() -> None:
    class Fused(Deep):
        """Adds nothing, yet runs the branch."""

        def forward(self, x: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = layer(x).tanh() if i in self.skip else x + layer(x).tanh()
            return x

    model = moved(Fused(loose=True))
    model.skip = frozenset({1})
    with pytest.raises(SiteNotFoundError, match="'layers_1' is in the plan"):
        compiled(model)(x())


def test_two_calls_in_one_function_are_two_calls() -> None:
    model = moved(Deep())
    run = compiled(model)
    one, two = results(run, model, x()), results(run, model, x(3, 7))

    def both(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return model(a), model(b)

    step = compiled(both)
    assert agree(results(lambda a: step(a, x(3, 7))[0], model, x()), one)
    assert agree(results(lambda b: step(x(), b)[1], model, x(3, 7)), two)


@pytest.mark.slow
def test_a_tied_block_has_parameters_for_every_call() -> None:
    model = moved(Tied(), x(), 3)
    run = compiled(model)
    outs = [run(x(), times) for times in (1, 2, 3)]
    assert all(relative(a, b) > 1e-2 for a, b in itertools.pairwise(outs))
    outs[1].mul(x()).sum().backward()
    trained = [name for name, p in mhc.named_parameters(model) if p.grad is not None and name.endswith("phi")]
    assert trained == [f"block.mhc.{label}.phi" for label in ("a", "f", "a_1", "f_1")]
    with pytest.raises(PlanMismatchError, match=r"'block', which runs here 4 times.*loop is longer"):
        run(x(), 4)


class Loop(nn.Module):
    """One layer, several times in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(C, C)

    def forward(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            x = x + self.f(x).tanh()
        return x


def test_fewer_rounds_of_a_loop_in_one_forward() -> None:
    model = moved(Loop(), x(), 3)
    compiled(model)(x(), 2).mul(x()).sum().backward()
    trained = [name for name, p in mhc.named_parameters(model) if p.grad is not None and name.endswith("phi")]
    assert trained == ["mhc.f.phi", "mhc.f_1.phi"]
    with pytest.raises(PlanMismatchError, match="has no site"):
        compiled(model)(x(), 4)


def test_a_tied_block_that_is_compiled_apart_does_not_know_its_call() -> None:
    model = moved(Tied(), x(), 2)
    model.get_submodule("block").compile(backend="mhc", options={"compiler": "eager"})
    with pytest.raises(SiteNotFoundError, match="which call this is, cannot be seen here"):
        model(x(), 2)


class Pooled(nn.Module):
    """Its first add is a connection of single tokens only."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x.mean(1, keepdim=True)).tanh()
        x = x + self.f(x).tanh()
        return x + self.g(x).tanh()


def test_one_token_is_as_two_equal_ones() -> None:
    model = moved(Pooled())
    run, one = compiled(model), x(3, 1)
    assert relative(run(one), run(one.expand(3, 2, C).contiguous())[:, :1]) < 1e-5


class Recurrent(nn.Module):
    """A state, to which every token adds what a layer makes of both, and two connections."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.cell = (nn.Linear(C, C) for _ in range(3))
        self.state = nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor, made: Tensor | None = None) -> Tensor:
        last = self.steps(x) if made is None else made
        x = x + self.f(x).tanh()
        return x + self.g(x + last).tanh()

    def steps(self, x: Tensor) -> Tensor:
        h = self.state.expand(x.shape[0], -1)
        for t in range(x.shape[1]):
            h = h + self.cell(h + x[:, t]).tanh()
        return h[:, None]


def test_one_step_of_a_recurrence_is_as_plain_as_several() -> None:
    """It looks like a connection, but the plan knows its place."""
    model = moved(Recurrent())
    for length in (1, 2):
        made, tokens = compiled(model), x(3, length)
        torch.testing.assert_close(made(tokens), made(tokens, model.steps(tokens).detach()))


class Training(nn.Module):
    """Training has one connection more, and spells another one otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(C, C), nn.Linear(C, C)
        self.more = False

    def forward(self, x: Tensor) -> Tensor:
        if self.more:
            x = x + self.f(x * 0.5).tanh()
        x = x + self.f(x).tanh()
        if self.training:
            return x + nn.functional.dropout(self.g(x).tanh(), 0.0)
        return x + self.g(x).tanh()


def test_another_spelling_of_the_same_connection() -> None:
    model = moved(Training().eval())
    run = compiled(model)
    evaluated = results(run, model, x())
    assert agree(results(run, model.train(), x()), evaluated)


class Scaled(nn.Module):
    """Its branches are scaled by an argument, which Dynamo takes for a variable once it has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(C, C) for _ in range(2))

    def forward(self, x: Tensor, scale: float) -> Tensor:
        for f in self.f:
            x = x + f(x).tanh() * scale
        return x


def test_a_number_that_becomes_a_variable() -> None:
    model = moved(Scaled(), x(), 2.0)
    run = compiled(model)
    outs = [results(lambda a, scale=scale: run(a, scale), model, x()) for scale in (2.0, 3.0, 2.0)]
    assert agree(outs[2], outs[0])
    assert relative(outs[1][0], outs[0][0]) > 1e-2


def test_a_connection_that_only_training_makes() -> None:
    model = Training()
    model.more = True
    moved(model)
    model.more = False
    compiled(model)(x()).mul(x()).sum().backward()
    trained = [name for name, p in mhc.named_parameters(model) if p.grad is not None and name.endswith("phi")]
    assert trained == ["mhc.f_1.phi", "mhc.g.phi"]


def test_a_connection_that_upgrade_did_not_see() -> None:
    model = moved(Training())
    expected = compiled(model)(x())
    model.more = True
    run = compiled(model)
    with pytest.raises(PlanMismatchError, match=r"test_other_paths\.py:\d+ \(of 'the model'\) has no site"):
        run(x())
    left_plain = torch.compile(model, backend="mhc", options={"compiler": "eager", "exclude": "f"})
    left_plain(x()).mul(x()).sum().backward()
    assert all(parameter.grad is not None for _, parameter in mhc.named_parameters(model))
    model.more = False
    assert torch.equal(run(x()), expected)
