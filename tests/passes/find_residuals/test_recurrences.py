"""Recurrences in time, iterations and sums of parameters: no sites, whatever the length; what wraps them is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mhc_compile as mhc
from tests.nets.structures import C, Layer, names, reasons, tokens

pytestmark = pytest.mark.filterwarnings("ignore:mhc finds nothing")

Inner = Callable[[Any, Tensor], Tensor]


def explained(inner: Inner, length: int) -> mhc.Report:
    """A connection around the inner function, and two that carry it on."""

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + inner(self, self.norm(x))
        x = x + self.mlp(self.norm2(x))
        return x + self.shared(self.norm3(x))

    torch._dynamo.reset()
    return mhc.explain(Layer(step), (tokens(length=length),))


def delta_rule(self: Any, u: Tensor) -> Tensor:
    q, k, v = self.attn.q(u), self.attn.k(u), self.attn.v(u)
    state, seen = u.new_zeros(u.shape[0], C, C), []
    for t in range(u.shape[1]):
        state = state + k[:, t, :, None] @ (v[:, t, None] - k[:, t, None] @ state)
        seen.append((q[:, t, None] @ state)[:, 0])
    return torch.stack(seen, 1)


def gated_delta_rule(self: Any, u: Tensor) -> Tensor:
    q, k, v, decay = (
        each.unbind(1) for each in (self.attn.q(u), self.attn.k(u), self.attn.v(u), self.proj(u).sigmoid())
    )
    state, seen = u.new_zeros(u.shape[0], C, C), []
    for q_t, k_t, v_t, d_t in zip(q, k, v, decay, strict=True):
        state = state * d_t[:, :, None] + k_t[:, :, None] @ (v_t[:, None] - k_t[:, None] @ state)
        seen.append((q_t[:, None] @ state)[:, 0])
    return torch.stack(seen, 1)


def fast_weights(self: Any, u: Tensor) -> Tensor:
    k, v = self.attn.k(u), self.attn.v(u)
    weights, seen = self.proj.weight.expand(u.shape[0], C, C), []
    for t in range(u.shape[1]):
        weights = weights + 0.1 * k[:, t, :, None] @ torch.tanh(v[:, t, None] - torch.tanh(k[:, t, None] @ weights))
        seen.append((k[:, t, None] @ weights)[:, 0])
    return torch.stack(seen, 1)


def leaky(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for x in self.proj(u).transpose(0, 1):
        h = 0.9 * h + 0.1 * torch.tanh(self.attn.q(h) + x)
        seen.append(h)
    return torch.stack(seen, 1)


def euler(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        h = h + 0.1 * (torch.tanh(self.attn.q(h) + self.proj(u[:, t])) - h)
        seen.append(h)
    return torch.stack(seen, 1)


def interpolated(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        h = torch.lerp(h, torch.tanh(self.attn.q(h) + self.proj(u[:, t])), 0.1)
        seen.append(h)
    return torch.stack(seen, 1)


def gru(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        z = torch.sigmoid(self.attn.q(h) + self.proj(u[:, t]))
        h = (1 - z) * torch.tanh(self.attn.k(h) + self.attn.v(u[:, t])) + z * h
        seen.append(h)
    return torch.stack(seen, 1)


def normed_state(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        h = self.norm4(h + torch.tanh(self.attn.q(h) + self.proj(u[:, t])))
        seen.append(h)
    return torch.stack(seen, 1)


TIMED = [delta_rule, gated_delta_rule, fast_weights, leaky, euler, interpolated, gru, normed_state]


@pytest.mark.core(2)
@pytest.mark.parametrize("inner", TIMED, ids=lambda inner: inner.__name__)
def test_steps_in_time(inner: Inner) -> None:
    """The same sites for every length, a single step too."""
    for length in (1, 2, 4):
        report = explained(inner, length)
        assert [site.label for site in report.sites][1:] == ["mlp", "shared"]
        assert len(report.sites) == 3
        told = Counter(rejection.reason for rejection in report.rejections if rejection.reason != "no-skip")
        wanted = {"single-site-region": 1} if inner is fast_weights and length == 1 else {"recurrence": length}
        assert told == Counter(wanted)


def two_to_a_step(self: Any, u: Tensor) -> Tensor:
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(u.shape[1]):
        h = h + torch.tanh(self.attn.q(h) + self.proj(u[:, t]))
        h = h + torch.tanh(self.attn.k(h))
        seen.append(h)
    return torch.stack(seen, 1)


def test_all_of_a_step_is_a_recurrence() -> None:
    report = explained(two_to_a_step, 3)
    assert len(report.sites) == 3
    assert Counter(reasons(report)) == Counter({"recurrence": 6, "no-skip": 3})


def test_items_of_a_list_are_steps() -> None:
    def step(self: Any, xs: list[Tensor]) -> Tensor:
        h = torch.zeros_like(xs[0])
        for x in xs:
            h = h + torch.tanh(self.attn.q(h) + x)
        return h

    report = mhc.explain(Layer(step), ([tokens(seed=i) for i in range(3)],))
    assert names(report) == []
    assert Counter(reasons(report)) == Counter({"recurrence": 3, "no-skip": 3})


def newton(self: Any, u: Tensor) -> Tensor:
    gram = 0.1 * self.proj(u) @ u.mT
    x, one = gram.mT / gram.norm(), torch.eye(u.shape[1])
    for _ in range(3):
        x = x + x @ (one - gram @ x)
    return x @ u


def newton_schulz(self: Any, u: Tensor) -> Tensor:
    x = self.proj(u) / self.proj(u).norm()
    for _ in range(3):
        x = 1.5 * x + (-0.5 * x @ x.mT) @ x
    return self.proj(x)


def neumann(self: Any, u: Tensor) -> Tensor:
    power = torch.tril(self.proj(u) @ u.mT, -1)
    inverse = torch.eye(u.shape[1]).expand_as(power) + 0 * power
    for _ in range(3):
        inverse = torch.baddbmm(inverse, inverse, power)
        power = power @ power
    return inverse @ u


def substitution(self: Any, u: Tensor) -> Tensor:
    system = torch.tril(self.proj(u) @ u.mT, -1)
    rows = [system[:, 0:1]]
    for i in range(1, 4):
        row = system[:, i : i + 1]
        rows.append(row + row[..., :i] @ torch.cat(rows, 1))
    return torch.cat([*rows, system[:, 4:]], 1) @ u


@pytest.mark.parametrize("inner", [newton, newton_schulz, neumann, substitution], ids=lambda inner: inner.__name__)
def test_iterations(inner: Inner) -> None:
    report = explained(inner, 5)
    assert len(report.sites) == 3
    assert Counter(reasons(report)) - Counter({"no-skip": 1}) == Counter({"recurrence": 3})


def test_parameters_alone() -> None:
    def inner(self: Any, u: Tensor) -> Tensor:
        weight = self.proj.weight
        for layer in (self.attn.q, self.attn.k):
            weight = weight + layer(weight).tanh()
        return u @ weight

    report = explained(inner, 5)
    assert len(report.sites) == 3
    assert reasons(report) == ["parameters"] * 2


def test_queries_that_begin_as_parameters_are_data_later() -> None:
    """The first connection of a decoder's learned queries is made from parameters alone, and a site."""

    def step(self: Any, x: Tensor) -> Tensor:
        q = self.proj.weight.expand(2, C, C)
        q = q + self.attn(q)
        return q + self.cross(q, x)

    assert names(mhc.explain(Layer(step), (tokens(),))) == ["attn", "cross"]


def test_one_layer_again_is_no_recurrence() -> None:
    """Weights that come again without another slice are a network's, and so are slices under other weights."""

    def again(self: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            a, b = self.norm(x).chunk(2, -1)
            x = x + self.mlp(torch.cat([b, a], -1))
        return x

    def sliced(self: Any, x: Tensor, more: Tensor) -> Tensor:
        for i, layer in enumerate((self.mlp, self.shared, self.proj)):
            x = x + layer(self.norm(x) + more[:, :, i])
        return x

    def without_weights(self: Any, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        x = x + (x @ x.mT).softmax(-1) @ x
        x = x + torch.fft.fft(x).real
        return self.norm(x)

    assert names(mhc.explain(Layer(again), (tokens(),))) == ["mlp", "mlp_1", "mlp_2"]
    torch._dynamo.reset()
    assert names(mhc.explain(Layer(sliced), (tokens(), torch.randn(2, 5, 3, C)))) == ["mlp", "shared", "proj"]
    torch._dynamo.reset()
    assert len(mhc.explain(Layer(without_weights), (tokens(),)).sites) == 3
