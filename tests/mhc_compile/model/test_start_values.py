from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mhc_compile.config import Config
from mhc_compile.errors import ConfigError
from mhc_compile.model import start_values
from mhc_compile.model.start_values import Place, home
from mhc_compile.ops import connections
from mhc_compile.ops.connections import Maps

STREAMS = [1, 2, 3, 4, 5, 8]
LENGTHS = [1, 2, 3, 12, 100]
ALL_LENGTHS = [*LENGTHS, 48, 1000]
PLACES = [(k, length, n) for length in LENGTHS for n in STREAMS for k in {0, 1, n, length - 1} if k < length]
places = pytest.mark.parametrize(("k", "length", "n"), PLACES)
streams = pytest.mark.parametrize("n", STREAMS)
narrow = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def start(k: int, length: int, config: Config, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients that a new site computes for streams x."""
    n, c = config.streams, x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    base = start_values.bias(Place(k, length), config).to(wide)
    shape = connections.get(config.connection).phi_shape(Maps(n, config.projection), c)
    phi, alpha = torch.zeros(shape, dtype=wide), torch.full((3,), start_values.alpha(config, c), dtype=wide)
    options = n, config.connection, config.projection, config.sinkhorn_iters, config.eps, True
    pre, post, res, *_ = torch.ops.mhc.coefficients(x, phi, alpha, torch.zeros_like(base), base, *options)
    return pre, post, res


@places
def test_home_follows_the_formula(k: int, length: int, n: int) -> None:
    found = home(Place(k, length), n)
    assert found.home == k % n
    for i in range(n):
        d = (i - k) % n
        assert found.pre[i].item() == pytest.approx((n + 1) / (2 * n) if d == 0 else (n - d) / n**2, rel=1e-15)
    assert found.q == max(2**-11, 2.0 ** -math.ceil(math.log2(2 * n * length)))
    assert torch.equal(found.post, torch.ones(n, dtype=torch.float64))
    assert found.pre.sum().item() == pytest.approx(1, rel=1e-15)


@places
def test_home_is_what_the_op_computes(k: int, length: int, n: int) -> None:
    wanted = home(Place(k, length), n)
    pre, post, res = start(k, length, Config(streams=n), torch.randn(6, n, 5))
    eye = torch.eye(n, dtype=torch.float64)
    mixed = (1 - n * wanted.q) * eye + wanted.q
    torch.testing.assert_close(pre.double(), wanted.pre.expand(6, n), rtol=3e-7, atol=0)
    assert torch.equal(post, torch.ones(6, n))
    torch.testing.assert_close(res.double(), mixed.expand(6, n, n), rtol=1e-6, atol=0)
    for sums in (pre.sum(-1), res.sum(-1), res.sum(-2)):
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=3e-7)


@narrow
@pytest.mark.parametrize("n", STREAMS)
def test_a_head_weighs_all_streams_alike(n: int, dtype: torch.dtype) -> None:
    base, phi = start_values.head_bias(Config(streams=n)), torch.zeros(n * 5, 2 * n)
    x = torch.ops.mhc.expand(torch.randn(50, 5).to(dtype), n)
    nothing = torch.zeros(2 * n), torch.cat([base, torch.zeros(n)])
    pre, *_ = torch.ops.mhc.coefficients(x, phi, torch.ones(3), *nothing, n, "mhc", "identity", 20, 1e-6, True)
    torch.testing.assert_close(pre, torch.full((50, n), 1 / n), rtol=3e-7, atol=0)
    assert torch.equal(torch.ops.mhc.read(x, pre, n), x[:, 0])


@streams
def test_the_diagonal_is_exactly_dyadic(n: int) -> None:
    """At every length, number of iterations and token."""
    exact = n.bit_count() == 1  # where not only q but also the mean is a product with a power of two
    for length, iters in itertools.product(ALL_LENGTHS, (2, 5, 20, 50)):
        _, _, res = start(0, length, Config(streams=n, sinkhorn_iters=iters), torch.randn(70, n, 5))
        diagonal = res.diagonal(dim1=-2, dim2=-1).double()
        wanted = 1 - (n - 1) * home(Place(0, length), n).q
        assert ((diagonal - wanted).abs() <= (0 if exact else 1.2e-7)).all(), (length, iters)


@pytest.mark.parametrize("n", STREAMS[1:])  # one stream has nothing to mix
def test_mixing_stays_gentle(n: int) -> None:
    """A region keeps at least half of what its streams differ in, down to the least q there is."""
    lengths = range(1, 2**10 // n + 1)
    assert all((1 - n * home(Place(0, length), n).q) ** length >= 0.5 for length in lengths)
    assert home(Place(0, lengths[-1] + 1), n).q == home(Place(0, 1000), n).q == 2.0**-11


@streams
def test_logits_have_a_gradient(n: int) -> None:
    for length in ALL_LENGTHS:
        assert start_values.bias(Place(0, length), Config(streams=n))[2 * n :].abs().max() < 8, length


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("length", [2, 3, 12])
def test_streams_part_in_any_region_of_two_sites(n: int, length: int) -> None:
    """No two streams are read alike by one site, and no two sites up to n read alike."""
    reads = torch.stack([home(Place(k, length), n).pre for k in range(length)])
    for row in reads:
        assert len(set(row.tolist())) == n
    for a, b in itertools.combinations(reads[:n], 2):
        assert not torch.equal(a, b)


# from these lengths on, regions of n streams keep every bit
EXACT = [(n, length) for n, shortest in ((2, 1), (4, 2), (8, 3)) for length in {shortest, 3, 5, 12, 100}]


@pytest.mark.core(6)
@narrow
@pytest.mark.parametrize(("n", "length"), EXACT)
def test_copies_pass_a_hundred_sites_without_a_changed_bit(dtype: torch.dtype, n: int, length: int) -> None:
    config, generator = Config(streams=n), torch.Generator().manual_seed(0)
    plain = torch.randn(6, 13, generator=generator).to(dtype)
    x = torch.ops.mhc.expand(plain, n)
    for site in range(100):
        pre, post, res = start(site % length, length, config, x)
        assert torch.equal(torch.ops.mhc.read(x, pre, n), plain)
        f = (torch.randn(6, 13, generator=generator) * 10 ** torch.randn(6, 1, generator=generator)).to(dtype)
        x, plain = torch.ops.mhc.write(x, f, post, res, n), plain + f
        assert torch.equal(x, plain[:, None].expand_as(x)), site
        assert torch.equal(torch.ops.mhc.readout(x, n), plain)


@narrow
@pytest.mark.parametrize(("n", "length"), sorted({*EXACT, (4, 1), (8, 1), (8, 2), (16, 1), (16, 3)}))
def test_a_write_of_copies_is_the_add(dtype: torch.dtype, n: int, length: int) -> None:
    """Over many values: bitwise, or in the shortest regions within an ulp (of fp32 where x + f cancels), and seldom."""
    generator = torch.Generator().manual_seed(0)
    plain, f = (torch.randn(100, 200, generator=generator).to(dtype) for _ in range(2))
    _, post, res = start(0, length, Config(streams=n), torch.ops.mhc.expand(plain, n))
    new, wanted = torch.ops.mhc.write(torch.ops.mhc.expand(plain, n), f, post, res, n), (plain + f)[:, None]
    if (n, length) in EXACT:
        assert torch.equal(new, wanted.expand_as(new))
    assert (new != wanted).double().mean() < 0.01
    ulp = torch.finfo(dtype).eps * wanted.double().abs() + 2.0**-23 * plain[:, None].double().abs()
    assert ((new.double() - wanted.double()).abs() <= ulp).all()


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-6)], ids=str)
@pytest.mark.parametrize("connection", ["mhc", "hc"])
def test_copies_pass_in_wide_dtypes(n: int, dtype: torch.dtype, tolerance: float, connection: str) -> None:
    config, generator = Config(streams=n, connection=connection), torch.Generator().manual_seed(0)
    plain = torch.randn(6, 13, generator=generator, dtype=dtype)
    x = torch.ops.mhc.expand(plain, n)
    for k in range(40):
        pre, post, res = start(k, 40, config, x)
        torch.testing.assert_close(torch.ops.mhc.read(x, pre, n), plain, rtol=tolerance, atol=20 * tolerance)
        f = torch.randn(6, 13, generator=generator, dtype=dtype)
        x, plain = torch.ops.mhc.write(x, f, post, res, n), plain + f
    torch.testing.assert_close(torch.ops.mhc.readout(x, n), plain, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("n", STREAMS[1:])  # one stream is a bypass
@pytest.mark.parametrize("connection", ["mhc", "hc"])
@pytest.mark.parametrize("projection", ["sinkhorn", "identity"])
def test_bias_is_fp32_and_of_the_connections_width(n: int, connection: str, projection: str) -> None:
    bias = start_values.bias(Place(1, 3), Config(streams=n, connection=connection, projection=projection))
    assert bias.dtype == torch.float32
    assert bias.shape == (2 * n + (n * n if (connection, projection) != ("mhc", "identity") else 0),)
    assert bias.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    place, config = Place(1, 7), Config(streams=6)
    start_values._exact_logit.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = start_values.bias(place, config)
    finally:
        torch.set_default_dtype(before)
        start_values._exact_logit.cache_clear()
    assert torch.equal(found, start_values.bias(place, config))


@pytest.mark.parametrize(
    ("alpha", "streams", "channels", "expected"),
    [
        (0.01, 4, 64, 0.01),
        (0.5, 4, 64, 0.5),
        (1, 4, 64, 1.0),
        ("auto", 4, 2048, 0.01),
        ("auto", 4, 512, 0.04),
        ("auto", 8, 2048, 0.005),
        ("auto", 4, 20, 1.0),
        ("auto", 1, 1, 1.0),
    ],
)
def test_alpha(alpha: float | str, streams: int, channels: int, expected: float) -> None:
    found = start_values.alpha(Config(streams=streams, alpha=alpha), channels)
    assert isinstance(found, float)
    assert found == pytest.approx(expected)


def test_unknown_projection_is_named() -> None:
    """By its registry, since projections may be registered: Config itself cannot know them."""
    with pytest.raises(ConfigError, match=r"projection must be one of 'sinkhorn', 'identity', not 'sinkhron'"):
        start_values.bias(Place(0, 2), Config(projection="sinkhron"))


def test_default_device_changes_nothing() -> None:
    place, config = Place(1, 7), Config(streams=6)
    start_values._exact_logit.cache_clear()
    with torch.device("meta"):
        found = start_values.bias(place, config)
    assert found.device.type == "cpu"
    assert torch.equal(found, start_values.bias(place, config))
