"""What adds to a state and is no residual connection: recurrences in time, iterations, sums of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.nets.generator.structure import Block, Structure


class Leaky(Block):
    """A leaky integrator over the tokens, from nothing."""

    def forward(self, x: Tensor) -> Tensor:
        h, seen = torch.zeros_like(x[:, 0]), []
        for token in self.f(x).unbind(1):
            h = 0.9 * h + 0.1 * self.g(token)
            seen.append(h)
        return torch.stack(seen, 1)


class FirstToken(Block):
    """A state that starts as the first token, and that every other token is added to."""

    def forward(self, x: Tensor) -> Tensor:
        h = x[:, 0]
        seen = [h]
        for t in range(1, x.shape[1]):
            h = self.gamma.sigmoid() * h + self.f(x[:, t]).tanh()
            seen.append(h)
        return torch.stack(seen, 1)


class LinearAttention(Block):
    """The state sums keys times values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.q(x), self.attn.k(x), self.attn.v(x)
        state, seen = x.new_zeros(x.shape[0], x.shape[-1], x.shape[-1]), []
        for t in range(x.shape[1]):
            state = state + k[:, t, :, None] * v[:, t, None, :]
            seen.append(torch.einsum("bc,bcd->bd", q[:, t], state))
        return torch.stack(seen, 1)


class DeltaRule(Block):
    """The state forgets what it holds for a key before it learns another value."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.q(x), self.attn.k(x).softmax(-1), self.attn.v(x)
        state, seen = x.new_zeros(x.shape[0], x.shape[-1], x.shape[-1]), []
        for t in range(x.shape[1]):
            known = torch.einsum("bc,bcd->bd", k[:, t], state)
            state = state + k[:, t, :, None] * (v[:, t] - known)[:, None, :]
            seen.append(torch.einsum("bc,bcd->bd", q[:, t], state))
        return torch.stack(seen, 1)


class Continuous(Block):
    """A leaky integrator whose step reads its state and a token: an RNN in continuous time."""

    def forward(self, x: Tensor) -> Tensor:
        h, seen = x.new_zeros(x.shape[0], x.shape[-1]), []
        for token in self.f(x).unbind(1):
            h = h + 0.1 * (torch.tanh(self.g(h) + token) - h)
            seen.append(h)
        return torch.stack(seen, 1)


class Cell(Block):
    """A state to which every token adds what a layer makes of both."""

    def forward(self, x: Tensor) -> Tensor:
        h, seen = self.gamma.expand(x.shape[0], -1), []
        for t in range(x.shape[1]):
            h = h + self.mlp(self.norm(h) + x[:, t])
            seen.append(h)
        return torch.stack(seen, 1)


class GatedLinearAttention(Block):
    """The state decays by what each token says, and sums keys times values."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, decay = self.attn.q(x), self.attn.k(x), self.attn.v(x), self.g(x).sigmoid()
        state, seen = x.new_zeros(x.shape[0], x.shape[-1], x.shape[-1]), []
        for t in range(x.shape[1]):
            state = decay[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None, :]
            seen.append((q[:, t, None] @ state)[:, 0])
        return torch.stack(seen, 1)


class Inverse(Block):
    """Newton's iteration for an inverse of what the tokens make."""

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        a = eye + 0.1 * torch.einsum("btc,btd->bcd", x, x).tanh() / x.shape[-1]
        z = eye.expand_as(a)
        for _ in range(3):
            z = z + z @ (eye - a @ z)
        return self.f(x) @ z


class Merged(Block):
    """Parameters alone are summed: a low-rank delta and a drift of a weight."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.f.weight + self.g.weight @ self.attn.q.weight
        w = w + torch.tanh(w @ self.attn.v.weight)
        return torch.nn.functional.linear(x, w, self.f.bias)


class Smoothed(Block):
    """An exponential mean over the tokens, with a learned rate."""

    def forward(self, x: Any) -> Any:
        rate = self.gamma.sigmoid()
        u, h, seen = self.f(x), None, []
        for t in range(x.shape[1]):
            h = u[:, t] if h is None else torch.lerp(h, u[:, t], rate)
            seen.append(h)
        return torch.stack(seen, 1)


STRUCTURES = {
    "leaky integrator": Structure(Leaky, (0,)),
    "state that starts as a token": Structure(FirstToken, (0,)),
    "linear attention": Structure(LinearAttention, (0,)),
    "gated linear attention": Structure(GatedLinearAttention, (0,)),
    "continuous time": Structure(Continuous, (0,)),
    "cell of state and token": Structure(Cell, (0,)),
    "delta rule": Structure(DeltaRule, (0,)),
    "inverse by iteration": Structure(Inverse, (0,)),
    "sums of parameters": Structure(Merged, (0,)),
    "exponential mean": Structure(Smoothed, (0,)),
}
