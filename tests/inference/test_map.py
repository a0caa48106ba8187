"""The MAP estimate against modes in closed form, and against convex problems' optimality."""

import math

import pytest
import torch

import potentia as pt
from potentia import annealers, energies, likelihoods

ANNEAL = annealers.Geometric(3.0, 0.05, 6)


def test_the_mode_of_a_gaussian_posterior() -> None:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.GaussianBlur(1.0, (12, 10)).double()
    prior = energies.GaussianField.power_law((1, 12, 10), std=0.7, dtype=torch.float64)
    y = operator.measure(prior.sample(g, 1)[0], 0.1, g)
    post = prior + likelihoods.Gaussian(y, operator, 0.1)
    estimate = pt.map_estimate(post, ANNEAL, dtype="float64", tolerance=1e-7, max_iterations=2000)
    found = estimate.image
    form = post.quadratic(0.05)
    assert form is not None
    mode = form.mode()
    assert (found - mode).abs().max() < 1e-6
    assert float(post(found, 0.05)) <= float(post(mode, 0.05)) + 1e-10
    assert estimate.converged
    assert estimate.grad_norm <= 1e-7
    assert float(post.grad(found, 0.05).abs().max()) == pytest.approx(estimate.grad_norm, rel=1e-4)
    assert estimate.value == float(post(found, 0.05))
    assert 0 < estimate.iterations < 2000


def test_a_complex_mode() -> None:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.Sense(likelihoods.birdcage_maps(3, (8, 8)), likelihoods.cartesian_mask((8, 8), 2.0)).double()
    prior = energies.Gaussian(torch.zeros(1, 8, 8, dtype=torch.complex128), 1.0)
    y = operator.measure(prior.sample(g, 1)[0], 0.1, g)
    post = prior + likelihoods.Gaussian(y, operator, 0.1)
    form = post.quadratic(0.05)
    assert form is not None
    found, _, norm, converged, _ = pt.map_estimate(post, ANNEAL, tolerance=1e-7, max_iterations=2000, cg_tolerance=1e-6)
    assert converged
    parts = torch.view_as_real(post.grad(found, 0.05))
    assert norm == pytest.approx(float(parts.abs().max()), rel=1e-4)
    assert (found - form.mode()).abs().max() < 1e-6


def test_total_variation_is_minimised_and_descent_goes_down() -> None:
    g = torch.Generator().manual_seed(0)
    truth = torch.zeros(1, 16, 16, dtype=torch.float64)
    truth[:, 4:12, 4:12] = 1
    y = truth + 0.1 * torch.randn(truth.shape, generator=g, dtype=torch.float64)
    post = 10.0 * energies.TotalVariation(epsilon=0.05) + likelihoods.Gaussian(y, None, 0.1)
    rough = pt.map_estimate(post, ANNEAL, max_iterations=0)
    assert rough.iterations == 0
    assert not rough.converged
    with pytest.warns(pt.ConvergenceWarning, match=r"greatest entry is .* after 3 iterations, expected 1e-06"):
        little = pt.map_estimate(post, ANNEAL, max_iterations=3, tolerance=1e-6)
    assert not little.converged
    fine, value, norm, converged, _ = pt.map_estimate(post, ANNEAL, max_iterations=1000, tolerance=1e-6)
    assert value < little.value < rough.value
    # The problem is convex: a gradient that vanishes is the proof.
    assert converged
    assert norm == pytest.approx(float(post.grad(fine).abs().max()), rel=1e-4)
    assert norm <= 1e-6
    assert float((fine - truth).square().mean()) < float((y - truth).square().mean())


def test_score_only_priors_are_annealed_without_descent() -> None:
    prior = energies.ScoreModel(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), scales=(0.01, 10.0))
    y = torch.full((1, 4, 4), 2.0)
    found, value, norm, _, iterations = pt.map_estimate(prior + likelihoods.Gaussian(y, None, 0.5), ANNEAL)
    assert math.isnan(value)
    assert norm < 1.0
    assert iterations == 0
    assert (found - 2.0 / (1 + 0.25)).abs().max() < 0.05


def test_a_search_from_anywhere_does_not_end_above_where_it_began() -> None:
    double_well = energies.Function(lambda x: ((x.square() - 1).square() + 0.3 * x).sum((-3, -2, -1)))
    for seed in range(5):
        start = 2 * torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rough, fine = (
            pt.map_estimate(double_well, ANNEAL.with_step_size(1e-3), init=start, max_iterations=n, tolerance=1e-9)
            for n in (0, 500)
        )
        assert fine.value <= rough.value
        assert fine.converged


def test_the_floor_of_single_precision_is_reported_as_such() -> None:
    y = 100 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    post = energies.Gaussian(torch.zeros(1, 8, 8), 1.0) + likelihoods.Gaussian(
        y, likelihoods.GaussianBlur(0.5, (8, 8)), 0.1
    )
    with pytest.warns(pt.ConvergenceWarning, match="beyond which U does not fall in float32"):
        pt.map_estimate(post, ANNEAL, tolerance=1e-9)


def test_energies_that_are_not_finite_are_named() -> None:
    nan = energies.Function(lambda x: x.square().sum((-3, -2, -1)) * torch.nan)
    with pytest.raises(FloatingPointError):
        pt.map_estimate(nan, ANNEAL, init=torch.zeros(1, 2, 2))


def test_bad_arguments_are_refused() -> None:
    post = energies.Gaussian(torch.zeros(1, 4, 4), 1.0) + likelihoods.Gaussian(torch.zeros(1, 4, 4), None, 0.5)
    with pytest.raises(TypeError, match="annealer is a list"):
        pt.map_estimate(post, [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must be positive"):
        pt.map_estimate(post, ANNEAL, tolerance=0.0)
