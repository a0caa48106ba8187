"""Effective sample sizes and systematic resampling, against what defines them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from potentia.inference._resampling import (
    conditional_effective_sample_size,
    effective_sample_size,
    log_mean_exp,
    systematic,
)

LOGS = st.lists(st.floats(-30, 30), min_size=1, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(LOGS, st.floats(-1e6, 1e6))
def test_the_effective_size_is_kongs_and_knows_no_units(logs: torch.Tensor, shift: float) -> None:
    w = (logs - logs.max()).exp()
    expected = float(w.sum() ** 2 / w.square().sum())
    assert float(effective_sample_size(logs)) == pytest.approx(expected, rel=1e-9)
    assert float(effective_sample_size(logs + shift)) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= expected <= len(logs) + 1e-9


def test_effective_sizes_at_the_ends() -> None:
    assert float(effective_sample_size(torch.zeros(7))) == pytest.approx(7)
    assert float(effective_sample_size(torch.tensor([0.0, -torch.inf, -torch.inf]))) == pytest.approx(1)
    assert float(effective_sample_size(torch.full((3,), -torch.inf))) == 0
    assert math.isnan(float(effective_sample_size(torch.tensor([0.0, torch.nan]))))
    rows = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
    torch.testing.assert_close(effective_sample_size(rows), torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert effective_sample_size(torch.zeros(3)).dtype == torch.float64


@given(LOGS)
def test_the_conditional_size_is_the_plain_one_of_even_particles(increment: torch.Tensor) -> None:
    even = torch.full_like(increment, 3.0)
    got = float(conditional_effective_sample_size(even, increment))
    assert got == pytest.approx(float(effective_sample_size(increment)), rel=1e-9)


@given(LOGS, st.floats(-50, 50))
def test_equal_factors_cost_nothing(logs: torch.Tensor, factor: float) -> None:
    got = float(conditional_effective_sample_size(logs, torch.full_like(logs, factor)))
    assert got == pytest.approx(len(logs), rel=1e-9)


@given(LOGS)
def test_the_mean_of_weights(logs: torch.Tensor) -> None:
    assert float(log_mean_exp(logs)) == pytest.approx(math.log(float(logs.exp().mean())), abs=1e-9)


def copies(index: torch.Tensor, n: int) -> torch.Tensor:
    return torch.bincount(index, minlength=n)


def off_by_more_than_one(index: torch.Tensor, logs: torch.Tensor) -> bool:
    """The law of systematic resampling: every particle floor or ceil of its expected number of times."""
    expected = len(index) * logs.softmax(-1)
    return bool(((copies(index, len(logs)) - expected).abs() >= 1 + 1e-9).any())


@given(LOGS, st.integers(1, 60), st.integers(0, 1000))
def test_every_particle_is_copied_floor_or_ceil_times(logs: torch.Tensor, num: int, seed: int) -> None:
    index = systematic(logs, generator(seed), num)
    assert index.shape == (num,)
    assert not off_by_more_than_one(index, logs)
    assert bool((index[1:] >= index[:-1]).all())


def test_independent_draws_would_break_that_law() -> None:
    logs = torch.zeros(200, dtype=torch.float64)
    planted = torch.multinomial(logs.exp(), 200, replacement=True, generator=generator())
    assert off_by_more_than_one(planted, logs)


def test_copies_are_right_on_average() -> None:
    logs = torch.tensor([0.3, -1.2, 0.9, -0.1, -4.0], dtype=torch.float64)
    expected = 5 * logs.softmax(-1)
    g, n = generator(), 20_000
    mean = torch.stack([copies(systematic(logs, g), 5) for _ in range(n)]).double().mean(0)
    # A number that is floor or ceil of e has variance f (1 - f), f the fractional part.
    error = (expected.frac() * (1 - expected.frac()) / n).sqrt()
    assert bool(((mean - expected).abs() < 4.5 * error).all())


def test_particles_without_weight_are_never_taken() -> None:
    logs = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    g = generator()
    for num in (1, 4, 1000):
        assert set(systematic(logs, g, num).tolist()) <= {1, 3}


def test_equal_weights_leave_particles_in_place() -> None:
    assert systematic(torch.zeros(64), generator()).tolist() == list(range(64))


def test_rows_are_resampled_on_their_own() -> None:
    logs = torch.stack([torch.zeros(4), torch.tensor([0.0, *[-torch.inf] * 3])]).double()
    index = systematic(logs, generator())
    assert index.tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]


def test_single_precision_weights_are_summed_in_double() -> None:
    # In single precision the sums of a million equal weights stop rising in steps of one.
    n = 1_000_000
    assert int(copies(systematic(torch.zeros(n), generator()), n).max()) == 1


@pytest.mark.parametrize("bad", [[0.0, torch.nan], [-torch.inf, -torch.inf], [0.0, torch.inf]])
def test_weights_that_are_none_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="1 of 1 rows of log_weights"):
        systematic(torch.tensor(bad), generator())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="log_weights has shape"):
        systematic(torch.zeros(0), generator())
    with pytest.raises(ValueError, match="num must be at least 1"):
        systematic(torch.zeros(3), generator(), 0)
