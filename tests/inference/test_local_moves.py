"""Langevin moves of fitting length: detailed balance by numbers, and invariance that planted faults break."""

import math

import pytest
import torch

from potentia import energies, likelihoods
from potentia._quadratic import Diagonal
from potentia.inference import _local_moves as local
from potentia.inference._local_moves import Place, adapted, move, uniform

D = (1, 2, 3)


def place_of(potential, x):  # type: ignore[no-untyped-def]
    value, grad = potential.value_and_grad(x)
    return Place(x, value.double(), grad)


def step(potential, place, structure, shift, angle, g):  # type: ignore[no-untyped-def]
    noise = structure.draw(g, place.x.shape, shift, dtype=place.x.dtype)
    u = uniform(tuple(place.value.shape), g, place.x.device)
    return move(lambda z, _: potential.value_and_grad(z), place, structure, shift, angle, noise, u)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("angle", [0.2, 0.9, math.pi / 2])
def test_the_log_ratio_is_that_of_the_proposals_densities(
    angle: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "WIDEST", math.inf)
    g = torch.Generator().manual_seed(0)
    precision = torch.rand(D, generator=g, dtype=torch.float64) + 0.2
    x = torch.randn(64, *D, generator=g, dtype=torch.float64) * (1 + 0j if dtype.is_complex else 1)
    x = x.to(dtype)
    potential = energies.Gaussian(torch.full(D, 0.3, dtype=dtype), 0.7) + 0.2 * energies.TotalVariation(epsilon=0.1)
    start = place_of(potential, x)
    noise = Diagonal(precision).draw(g, x.shape, 0.5, dtype=dtype)
    end, moved = move(
        lambda z, _: potential.value_and_grad(z), start, Diagonal(precision), 0.5, angle, noise, torch.zeros(64)
    )
    assert bool(moved.accepted.all())  # u = 0 accepts whatever can be
    eps = 1 - math.cos(angle)

    def log_q(a: Place, b: torch.Tensor) -> torch.Tensor:
        off = b - a.x + eps * a.grad / (precision + 0.5)
        return -((off.abs().square() * (precision + 0.5)).flatten(1).sum(1)) / (2 * eps * (2 - eps))

    expected = start.value - end.value + log_q(end, start.x) - log_q(start, end.x)
    torch.testing.assert_close(moved.acceptance, expected.clamp(max=0).exp(), rtol=1e-11, atol=1e-13)
    assert moved.evaluations == 64
    assert float(expected.abs().max()) > 1e-3


def test_a_gaussian_whose_precision_is_the_metric_accepts_everything() -> None:
    g = torch.Generator().manual_seed(0)
    potential = energies.Gaussian(torch.zeros(D, dtype=torch.float64), 0.5)
    x = 5 * torch.randn(32, *D, generator=g, dtype=torch.float64)
    _, moved = step(potential, place_of(potential, x), Diagonal(torch.full((1, 1, 1), 3.0)), 1.0, 1.2, g)
    torch.testing.assert_close(moved.acceptance, torch.ones(32, dtype=torch.float64))


def unlike_modes() -> energies.GaussianMixture:
    means = torch.zeros(2, 1, 1, 2, dtype=torch.float64)
    means[1] = 0.7
    return energies.GaussianMixture(torch.tensor([0.6, 0.4]), means, variances=torch.tensor([1.0, 0.1**2]))


def drift_from_exactness(n: int = 30_000, moves: int = 25) -> float:
    """Start from exact draws of modes of unlike width, move: how many standard errors the mean energy is off."""
    g = torch.Generator().manual_seed(1)
    potential = unlike_modes()
    place = place_of(potential, potential.sample(g, n))
    before = place.value
    for _ in range(moves):
        place, _ = step(potential, place, Diagonal(torch.ones(1, 1, 1)), 0.0, 1.3, g)
    other = potential(potential.sample(g, n))
    spread = before.std() / math.sqrt(n)
    return float((place.value.mean() - other.mean()).abs() / (math.sqrt(2) * spread))


def test_exact_draws_stay_exact() -> None:
    assert drift_from_exactness() < 3.5


def test_skipping_the_way_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_reversible", lambda attempt, found, back, halvings, finite: finite)
    assert drift_from_exactness() > 6


def test_a_way_back_with_the_old_velocity_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    check = local._reversible
    monkeypatch.setattr(
        local, "_reversible", lambda attempt, found, back, halvings, finite: check(
            attempt, found, -back, halvings, finite
        )
    )  # fmt: skip
    assert drift_from_exactness() > 6


def test_steps_are_halved_where_the_target_is_narrow() -> None:
    g = torch.Generator().manual_seed(2)
    potential = unlike_modes()
    wide, narrow = (potential.sample(g, 4000), potential.means[1] + 0.1 * torch.randn(500, 1, 1, 2, generator=g))
    one = Diagonal(torch.ones(1, 1, 1))
    start = place_of(potential, narrow.double())
    _, moved = step(potential, start, one, 0.0, 1.3, g)
    assert moved.evaluations > 3 * 500
    assert 0.3 < float(moved.acceptance.mean()) < 1
    left = potential.responsibilities(wide)[:, 0] > 0.99
    _, moved = step(potential, place_of(potential, wide[left]), one, 0.0, 1.3, g)
    assert float(moved.acceptance.mean()) > 0.85


def test_members_have_shifts_angles_and_generators_of_their_own() -> None:
    prior = energies.GaussianMixture(
        torch.tensor([0.5, 0.5]), torch.randn(2, 1, 4, 4, dtype=torch.float64), variances=torch.tensor([0.3, 1.0])
    )
    y = torch.zeros(1, 4, 4, dtype=torch.float64)
    potential = prior + likelihoods.Gaussian(y, likelihoods.GaussianBlur(0.7, (4, 4)).double(), 0.3)
    form = potential.terms["gaussian"].quadratic()
    assert form is not None
    shift, angle = torch.tensor([0.5, 2.0, 7.0]).double(), torch.tensor([0.3, 0.6, 1.2]).double()
    g = torch.Generator().manual_seed(3)
    x, u = torch.randn(3, 1, 4, 4, generator=g, dtype=torch.float64), torch.rand(3, generator=g).double()
    noise = form.structure.draw(g, x.shape, shift.reshape(-1, 1, 1, 1), dtype=x.dtype)
    evaluate = lambda z, _: potential.value_and_grad(z)  # noqa: E731
    together, moved = move(evaluate, place_of(potential, x), form.structure, shift, angle, noise, u)
    for i in range(3):
        one = slice(i, i + 1)
        alone, mine = move(
            evaluate, place_of(potential, x[one]), form.structure, float(shift[i]), float(angle[i]), noise[one], u[one]
        )
        torch.testing.assert_close(together.x[one], alone.x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moved.acceptance[one], mine.acceptance, rtol=1e-10, atol=1e-12)


def test_the_curvature_seen_is_that_of_what_the_form_leaves_out() -> None:
    g = torch.Generator().manual_seed(4)
    form = Diagonal(torch.rand(D, generator=g, dtype=torch.float64) * 4)
    x = torch.randn(16, *D, generator=g, dtype=torch.float64)

    def evaluate(z, _):  # type: ignore[no-untyped-def]
        grad = form.apply(z) + 2.5 * z
        return 0.5 * (z * grad).flatten(1).sum(1), grad

    value, grad = evaluate(x, None)
    noise, u = form.draw(g, x.shape, 2.5, dtype=x.dtype), torch.zeros(16)
    _, moved = move(evaluate, Place(x, value, grad), form, 2.5, 0.8, noise, u)
    along, length = moved.curvature
    torch.testing.assert_close(along / length, torch.full((16,), 2.5, dtype=torch.float64))


def test_proposals_that_are_not_finite_are_rejected_and_marked() -> None:
    potential = energies.Function(
        lambda x: torch.where(x.sum((-3, -2, -1)) > 0, torch.nan, x.square().sum((-3, -2, -1)))
    )
    g = torch.Generator().manual_seed(5)
    x = torch.full((200, *D), -0.1, dtype=torch.float64)
    place = place_of(potential, x)
    for _ in range(5):
        place, moved = step(potential, place, Diagonal(torch.ones(1, 1, 1)), 0.0, 1.3, g)
        assert bool(torch.isfinite(place.x).all() & torch.isfinite(place.grad).all())
        assert bool((place.x.sum((-3, -2, -1)) <= 0).all())
        assert bool((moved.acceptance[moved.diverging] == 0).all())


def test_angles_follow_the_acceptance_and_stay_in_range() -> None:
    assert adapted(0.5, 0.95) > 0.5 > adapted(0.5, 0.5)
    assert adapted(0.5, local.TARGET_ACCEPTANCE) == pytest.approx(0.5)
    assert adapted(local.LONGEST, 1.0) == local.LONGEST


def test_each_generator_draws_its_own_row() -> None:
    both = uniform((2, 3), [torch.Generator().manual_seed(s) for s in (1, 2)], torch.device("cpu"))
    alone = uniform((1, 3), [torch.Generator().manual_seed(2)], torch.device("cpu"))
    assert bool((both[1] == alone[0]).all())
