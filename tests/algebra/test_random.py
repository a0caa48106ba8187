"""Standard normal numbers: their variance, their generators, their chains."""

import math

import pytest
import torch

from potentia._random import chain_generators, standard_normal

N = 200_000
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_part_has_mean_zero_and_variance_one(dtype: torch.dtype) -> None:
    z = standard_normal((N,), torch.Generator().manual_seed(0), dtype=dtype)
    assert z.dtype == dtype
    parts = [z.real, z.imag] if dtype.is_complex else [z]
    for part in parts:
        # Mean 0 +- 1 / sqrt(N), mean square 1 +- sqrt(2 / N), each within five standard errors.
        assert abs(float(part.double().mean())) < 5 / math.sqrt(N)
        assert abs(float(part.double().square().mean()) - 1) < 5 * math.sqrt(2 / N)


def test_the_parts_of_complex_numbers_are_uncorrelated() -> None:
    z = standard_normal((N,), torch.Generator().manual_seed(0), dtype=torch.complex128)
    assert abs(float((z.real * z.imag).mean())) < 5 / math.sqrt(N)


def test_torchs_own_complex_normal_would_fail_that() -> None:
    z = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    assert abs(float(z.real.square().mean()) - 1) > 50 * math.sqrt(2 / N)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chain_draws_the_same_however_many_run_beside_it(dtype: torch.dtype) -> None:
    many = standard_normal((5, 2, 3), chain_generators(7, range(5)), dtype=dtype)
    for chain in range(5):
        alone = standard_normal((1, 2, 3), chain_generators(7, [chain]), dtype=dtype)
        assert torch.equal(many[chain], alone[0])
    some = standard_normal((2, 2, 3), chain_generators(7, [4, 1]), dtype=dtype)
    assert torch.equal(some, many[[4, 1]])


def test_chains_and_seeds_differ() -> None:
    draws = [
        standard_normal((1, 8), chain_generators(seed, [chain]), dtype=torch.float64)
        for seed in range(4)
        for chain in range(4)
    ]
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 16


def test_chains_are_uncorrelated() -> None:
    n = 10_000
    z = standard_normal((6, n), chain_generators(0, range(6)), dtype=torch.float64)
    products = z @ z.mT / n
    off = products - torch.diag(products.diagonal())
    assert float(off.abs().max()) < 5 / math.sqrt(n)


def test_a_second_draw_continues_the_stream() -> None:
    generators = chain_generators(0, range(2))
    first, second = (standard_normal((2, 4), generators, dtype=torch.float64) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    standard_normal((3, 4), chain_generators(0, range(3)), dtype=torch.complex64)
    standard_normal((3, 4), torch.Generator().manual_seed(0), dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_generators_is_the_number_of_chains() -> None:
    with pytest.raises(ValueError, match=r"2 generators for shape \(3, 4\), expected one a chain"):
        standard_normal((3, 4), chain_generators(0, range(2)), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"1 generators for shape \(\)"):
        standard_normal((), chain_generators(0, range(1)), dtype=torch.float32)


@pytest.mark.parametrize(("seed", "chains"), [(-1, [0]), (0, [-1])])
def test_seeds_and_chains_are_not_negative(seed: int, chains: list[int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        chain_generators(seed, chains)
