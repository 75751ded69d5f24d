from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhc_compile.errors import ConfigError
from mhc_compile.ops import connections, reference
from mhc_compile.ops.connections import HC, MHC, Maps, Start
from tests.equations import helpers
from tests.equations.helpers import KINDS, TOKENS, Case, check, near, normal, spread_out

STREAMS = [1, 2, 3, 4, 8]
kinds = pytest.mark.parametrize(("connection", "projection"), KINDS, ids=str)
streams = pytest.mark.parametrize("n", STREAMS)


def by_parts(case: Case) -> helpers.Function:
    """The coefficients from the connection's parts, as the op puts them together."""
    kind = connections.get(case.connection)

    def run(x: Tensor, phi: Tensor, alpha: Tensor, delta: Tensor, base: Tensor) -> tuple[Tensor, ...]:
        y, _ = reference.logits(kind.rows(x), phi, helpers.EPS)
        return kind.activate(y, alpha, base.detach() + delta, case.maps)

    return run


@kinds
@streams
def test_maps_follow_the_equations(connection: str, projection: str, n: int) -> None:
    for tokens in TOKENS:
        case = Case(n, 5, tokens, connection, projection)
        outputs, _ = check(by_parts(case), case.reference, [case.streams(), *case.parameters()])
        assert [o.shape for o in outputs] == [(*tokens, n), (*tokens, n), (*tokens, n, n)]


@kinds
@streams
def test_vjp(connection: str, projection: str, n: int) -> None:
    for tokens in TOKENS:
        for contiguous in (True, False):
            check_vjp(Case(n, 5, tokens, connection, projection), contiguous)


def check_vjp(case: Case, contiguous: bool) -> None:
    kind, n, tokens = connections.get(case.connection), case.n, case.tokens
    _, alpha, bias, _ = case.parameters()
    y = normal(*kind.rows(case.streams()).shape[:-1], kind.phi_shape(case.maps, 5)[1], seed=11)
    grads = normal(*tokens, n, seed=12), normal(*tokens, n, seed=13), normal(*tokens, n, n, seed=14)
    if not contiguous:
        y, grads = spread_out(y), (spread_out(grads[0]), spread_out(grads[1]), spread_out(grads[2]))
    leaves = [t.detach().requires_grad_() for t in (y, alpha, bias)]
    outputs = kind.activate(leaves[0], leaves[1], leaves[2], case.maps)
    live = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    expected = torch.autograd.grad([o for o, _ in live], leaves, [g for _, g in live], materialize_grads=True)
    for actual, wanted in zip(kind.vjp(y, alpha, bias, case.maps, grads), expected, strict=True):
        near(actual, wanted, 1e-12)


@streams
def test_constraints_of_mhc_hold_for_any_parameters(n: int) -> None:
    case = Case(n, 7, (40,), dtype=torch.float32, scale=3.0)
    pre, post, res = helpers.tensors(by_parts(case)(case.streams(), *case.parameters()))
    assert ((pre > 0) & (pre < 1)).all()
    assert ((post > 0) & (post < 2)).all()
    assert (res >= 0).all()
    near(res.sum(-1), torch.ones(40, n), 1e-6)


@streams
def test_shapes(n: int) -> None:
    assert MHC().phi_shape(Maps(n), 5) == (5 * n, n * n + 2 * n)
    assert MHC().phi_shape(Maps(n, "identity"), 5) == (5 * n, 2 * n)
    assert HC().phi_shape(Maps(n), 5) == (5, n + 2)
    assert MHC().gates() == HC().gates() == 3


@kinds
@streams
def test_start_bias_gives_the_starting_values(connection: str, projection: str, n: int) -> None:
    maps, q = Maps(n, projection), 2.0**-6
    start = Start(torch.linspace(0.1, 0.7, n).double(), torch.linspace(0.5, 1.5, n).double(), q, home=n - 1)
    kind = connections.get(connection)
    bias = kind.start_bias(start, maps)
    assert bias.dtype == torch.float64
    y = torch.zeros(*kind.rows(torch.zeros(2, n, 5)).shape[:-1], kind.phi_shape(maps, 5)[1], dtype=torch.float64)
    pre, post, res = kind.activate(y, torch.ones(3).double(), bias, maps)
    eye = torch.eye(n).double()
    mixed = eye if connection == "hc" or projection == "identity" else (1 - n * q) * eye + q
    near(pre, (eye[n - 1] if connection == "hc" else start.pre).expand(2, n), 1e-12)
    near(post, start.post.expand(2, n), 1e-12)
    near(res, mixed.expand(2, n, n), 1e-5 if connection == "deepseek-v4" else 1e-12)  # 1e-6 is added n times


def test_hc_mixes_stream_i_into_all_by_its_own_weights() -> None:
    """Changing stream i changes column i of H_res and entry i of the others, nothing else."""
    case = Case(4, 5, (1,), "hc")
    x, parameters = case.streams(), case.parameters()
    other = x.clone()
    other[:, 2] = normal(5, seed=20)
    for axis, before, after in zip(
        (-1, -1, -1),
        helpers.tensors(by_parts(case)(x, *parameters)),
        helpers.tensors(by_parts(case)(other, *parameters)),
        strict=True,
    ):
        changed = (before != after).flatten(1, -2).any(1) if before.dim() > 2 else before != after
        assert changed.squeeze(0).nonzero().squeeze(axis).tolist() == [2]


def test_get_names_what_exists() -> None:
    assert isinstance(connections.get("mhc"), MHC)
    with pytest.raises(ConfigError, match=r"one of 'mhc', 'deepseek-v4', 'hc', not 'mch'"):
        connections.get("mch")
