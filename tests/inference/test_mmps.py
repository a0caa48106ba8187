"""Moment matching: the guided mean against dense matrices, the sampler against the recursion that it is."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import potentia as pt
from potentia import annealers, energies, likelihoods
from potentia._potential import Pullback
from potentia._quadratic import Quadratic
from potentia._random import chain_generators
from potentia.inference import MMPS, Info, Langevin, _mmps
from potentia.inference._mmps import matched_mean

DOUBLE = torch.float64
SHAPE = (1, 3, 4)
PIXELS = math.prod(SHAPE)
EYE = torch.eye(PIXELS, dtype=DOUBLE)
ANNEAL = annealers.Geometric(6.0, 0.1, 6)


def operator_of(kind: str) -> likelihoods.Operator:
    g = torch.Generator().manual_seed(3)
    if kind == "mask":
        return likelihoods.Mask((torch.rand(SHAPE[1:], generator=g) < 0.6).double())
    if kind == "blur":
        return likelihoods.GaussianBlur(0.8, SHAPE[1:]).double()
    return likelihoods.Matrix(torch.randn(5, PIXELS, generator=g, dtype=DOUBLE), SHAPE)


def likelihood_of(kind: str, eta: float = 0.3) -> likelihoods.Gaussian:
    g = torch.Generator().manual_seed(4)
    operator = operator_of(kind)
    return likelihoods.Gaussian(operator.measure(torch.randn(SHAPE, generator=g, dtype=DOUBLE), eta, g), operator, eta)


def form_of(kind: str, eta: float = 0.3) -> Quadratic:
    form = likelihood_of(kind, eta).quadratic()
    assert form is not None
    return form


def dense(form: Quadratic) -> tuple[Tensor, Tensor]:
    """Λ as a matrix and b as a vector."""
    precision = form.structure.apply(EYE.reshape(PIXELS, *SHAPE)).reshape(PIXELS, PIXELS)
    return precision, form.linear.expand(SHAPE).flatten()


def by_matrix(a: Tensor) -> Pullback:
    """v -> A^T v, one matrix for every image or one each."""
    return lambda v: torch.einsum("nd,nde->ne", v.flatten(1), a.expand(len(v), -1, -1)).reshape(v.shape)


def some_jacobian(values: Tensor, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))[0]
    return (q * values) @ q.T


@pytest.mark.parametrize("kind", ["mask", "blur", "matrix"])
@pytest.mark.parametrize("singular", [False, True])
def test_the_guided_mean_is_that_of_dense_matrices(kind: str, singular: bool) -> None:
    """D + (C^-1 + Λ)^-1 (b - Λ D), for a C without inverse too: D + C (I + Λ C)^-1 (b - Λ D)."""
    values = torch.linspace(0.0 if singular else 0.05, 0.9, PIXELS, dtype=DOUBLE)
    values[:3] = values[0]
    jacobian, sigma, form = some_jacobian(values), 0.7, form_of(kind)
    precision, b = dense(form)
    clean = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    covariance = sigma**2 * jacobian
    slope = b - clean.flatten(1) @ precision
    expected = clean.flatten(1) + slope @ torch.linalg.inv(EYE + covariance @ precision) @ covariance
    got, products = matched_mean(form, clean, by_matrix(jacobian), sigma, 200, tolerance=1e-13)
    assert float((got.flatten(1) - expected).abs().max()) < 1e-7 * float(expected.abs().max())
    assert products < 60
    # Images are apart, however many iterations there are.
    few, products = matched_mean(form, clean, by_matrix(jacobian), sigma, 3)
    assert products <= 4
    one, _ = matched_mean(form, clean[1:2], by_matrix(jacobian), sigma, 3)
    torch.testing.assert_close(few[1:2], one)
    # Planted: s in place of s^2.
    wrong, _ = matched_mean(form, clean, by_matrix(jacobian / sigma), sigma, 200, tolerance=1e-13)
    assert float((wrong.flatten(1) - expected).abs().max()) > 1e-3


def test_the_misfit_falls_at_every_iteration() -> None:
    """Conjugate gradients minimise the error in the norm of Λ + Λ C Λ."""
    jacobian, form = some_jacobian(torch.linspace(0.01, 0.95, PIXELS, dtype=DOUBLE)), form_of("blur")
    precision, _ = dense(form)
    clean = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    exact, _ = matched_mean(form, clean, by_matrix(jacobian), 1.0, 300, tolerance=1e-14)
    norm = precision + precision @ jacobian @ precision
    errors = []
    for k in range(1, 8):
        off = (matched_mean(form, clean, by_matrix(jacobian), 1.0, k, tolerance=0.0)[0] - exact).flatten(1)
        errors.append(torch.einsum("nd,de,ne->n", off, norm, off))
    falls = torch.stack(errors)
    assert bool((falls[1:] <= falls[:-1] * (1 + 1e-9)).all())


def test_negative_curvature_ends_an_image_and_leaves_the_others() -> None:
    form = form_of("mask", 0.05)
    good = some_jacobian(torch.linspace(0.05, 0.9, PIXELS, dtype=DOUBLE))
    g = torch.Generator().manual_seed(1)
    skew = torch.randn(PIXELS, PIXELS, generator=g, dtype=DOUBLE)
    clean = torch.randn(4, *SHAPE, generator=g, dtype=DOUBLE)
    each = torch.stack([good, some_jacobian(torch.linspace(-2, 0.9, PIXELS).double(), 1), -good, good + skew - skew.T])
    mean, products = matched_mean(form, clean, by_matrix(each), 1.0, 50)
    assert products <= 51
    assert bool(torch.isfinite(mean).all())
    alone, _ = matched_mean(form, clean[:1], by_matrix(good), 1.0, 50)
    torch.testing.assert_close(mean[:1], alone)
    assert torch.equal(mean[2], clean[2])  # the first direction is one already


@pytest.mark.parametrize("iterations", [1, 2, 5, 50])
def test_an_indefinite_covariance_never_makes_steps_long(iterations: int) -> None:
    """Where I + C Λ is all but singular a step would be without bound: the residual in Λ bounds it instead."""
    form = form_of("mask", 0.05)
    clean = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for seed in range(20):
        jacobian = some_jacobian(torch.linspace(-2.0, 0.9, PIXELS, dtype=DOUBLE), seed)
        mean, _ = matched_mean(form, clean, by_matrix(jacobian), 1.0, iterations)
        assert float((mean - clean).abs().max()) < 30


def test_an_indefinite_denoiser_stays_finite_through_the_sampler() -> None:
    matrix = some_jacobian(torch.linspace(-0.5, 0.9, PIXELS, dtype=DOUBLE))
    prior = energies.ScoreModel(
        lambda x, s: (x.flatten(1) @ matrix.to(x)).reshape(x.shape), scales=(0.05, 10.0), shape=SHAPE
    )
    ensemble = pt.sample(prior + likelihood_of("mask"), MMPS(ANNEAL), num_chains=4, progress=False)
    assert bool(torch.isfinite(ensemble.samples()).all())


# The sampler on a Gaussian prior


class Recursion:
    """Mean and covariance of x from step to step, by dense matrices, of a Gaussian prior N(m, Σ)."""

    def __init__(self, mean: Tensor, covariance: Tensor, form: Quadratic, sampler: MMPS) -> None:
        precision, b = dense(form)
        levels = list(sampler.annealer)
        at, spread = torch.zeros_like(mean), levels[0].sigma ** 2 * EYE
        for k, level in enumerate(levels):
            s = level.sigma
            gain = covariance @ torch.linalg.inv(covariance + s**2 * EYE)
            joint = torch.linalg.inv(torch.linalg.inv(s**2 * gain) + precision)
            keep = EYE - joint @ precision
            linear, offset = keep @ gain, keep @ (mean - gain @ mean) + joint @ b  # D_y = linear x + offset
            for _ in range(sampler.steps_per_level - 1):
                c = sampler.correction
                move = (1 - c) * EYE + c * linear
                at = move @ at + c * offset
                spread = move @ spread @ move.T + 2 * c * s**2 * EYE
            if k + 1 < len(levels):
                r = levels[k + 1].sigma
                share = (r / s) ** 2
                move = share * EYE + (1 - share) * linear
                at = move @ at + (1 - share) * offset
                spread = move @ spread @ move.T + r**2 * (1 - share) * EYE
        self.mean, self.covariance = at, spread

    def off(self, x: Tensor) -> float:
        """Largest deviation of the mean or covariance, in units of their Monte-Carlo errors."""
        root = torch.linalg.cholesky(self.covariance)
        z = torch.linalg.solve_triangular(root, (x.flatten(1) - self.mean).T, upper=False).T
        second = (z.T @ z / len(z) - EYE) / (1 + EYE).sqrt()
        return max(float(z.mean(0).abs().max()), float(second.abs().max())) * math.sqrt(len(z))


def a_gaussian(kind: str) -> tuple[Any, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    factors = 0.6 * torch.randn(1, PIXELS, 3, generator=g, dtype=DOUBLE)
    mean = torch.randn(1, *SHAPE, generator=g, dtype=DOUBLE)
    variances = torch.full((1,), 0.04, dtype=DOUBLE)
    prior = energies.GaussianMixture(torch.ones(1), mean, factors=factors, variances=variances)
    return prior + likelihood_of(kind), mean.flatten(), factors[0] @ factors[0].T + 0.04 * EYE


def drawn(sampler: MMPS, posterior: Any, num: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    state = sampler.init(posterior, sampler.start(posterior, (num, *SHAPE), DOUBLE, g), g)
    for _ in range(sampler.steps_per_draw):
        state, _ = sampler.step(posterior, state)
    return state.x


@pytest.mark.parametrize("kind", ["mask", "blur"])
@pytest.mark.parametrize("steps", [1, 3])
def test_mean_and_covariance_are_those_of_the_recursion(kind: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, mean, covariance = a_gaussian(kind)
    solve = _mmps.matched_mean
    monkeypatch.setattr(_mmps, "matched_mean", lambda *a: solve(*a, tolerance=1e-12))
    sampler, other = (MMPS(ANNEAL, steps, max_iterations=60, correction=c) for c in (0.4, 0.6))
    form = posterior.likelihood.quadratic()
    x = drawn(sampler, posterior, 6000)
    # The largest of 90 normal deviates is beyond 4.5 once in 1,600.
    assert Recursion(mean, covariance, form, sampler).off(x) < 4.5
    if steps > 1:  # another step of the corrections is seen, and so is one scale less
        assert Recursion(mean, covariance, form, other).off(x) > 7
    fewer = MMPS(annealers.Geometric(6.0, 0.1, 5), steps, max_iterations=60, correction=0.4)
    assert Recursion(mean, covariance, form, fewer).off(x) > 7


def test_many_scales_lead_to_the_posterior() -> None:
    posterior, mean, covariance = a_gaussian("blur")
    form = posterior.likelihood.quadratic()
    precision, b = dense(form)
    joint = torch.linalg.inv(torch.linalg.inv(covariance) + precision)
    truth = joint @ (torch.linalg.inv(covariance) @ mean + b)
    std = (joint.diagonal() + 1e-4).sqrt()
    errors = []
    for num in (5, 20, 80):
        found = Recursion(mean, covariance, form, MMPS(annealers.Geometric(30.0, 0.01, num)))
        shift = ((found.mean - truth) / std).abs().max()
        errors.append(max(float(shift), float((found.covariance.diagonal().sqrt() / std - 1).abs().max())))
    assert errors[0] > 0.15
    assert errors[2] < 0.06
    # Of first order in the spacing: a quarter of it has a quarter of the error.
    assert errors[2] < 0.4 * errors[1] < 0.4 * errors[0]


def test_handed_on_to_langevin_the_spread_is_the_posteriors() -> None:
    posterior, mean, covariance = a_gaussian("mask")
    precision, b = dense(posterior.likelihood.quadratic())
    smoothed = torch.linalg.inv(covariance + 0.03**2 * EYE)
    joint = torch.linalg.inv(smoothed + precision)
    truth = joint @ (smoothed @ mean + b)
    n = 500
    guided = MMPS(ANNEAL)
    sampler = guided >> Langevin(sigma=0.03, curvature=1 / 0.04, steps_per_draw=50)
    x = pt.sample(posterior, sampler, num_chains=n, progress=False).samples()[:, 0].flatten(1)
    assert float(((x.mean(0) - truth) / joint.diagonal().sqrt()).abs().max()) < 4 / math.sqrt(n)
    # Along the factors' directions 50 steps leave a little of what the guided steps miss.
    assert float((x.var(0) / joint.diagonal() - 1).abs().max()) < 4 * math.sqrt(2 / n) + 0.05
    alone = drawn(guided, posterior, n).flatten(1)
    assert float((alone.var(0) / joint.diagonal() - 1).abs().max()) > 0.35


# Bookkeeping


def test_steps_and_costs() -> None:
    posterior, _, _ = a_gaussian("mask")
    sampler = MMPS(ANNEAL, steps_per_level=3, max_iterations=2)
    assert sampler.steps_per_draw == 6 * 2 + 5
    assert sampler.independent_draws
    g = chain_generators(0, range(2))
    state = sampler.init(posterior, sampler.start(posterior, (2, *SHAPE), DOUBLE, g), g)
    scales = []
    for _ in range(2 * sampler.steps_per_draw):
        state, info = sampler.step(posterior, state)
        assert isinstance(info, Info)
        assert info.n_grad == 1
        assert info.n_vjp <= 3
        scales.append(info.sigma)
    assert scales[:17] == scales[17:]
    assert scales[0] == 6.0
    assert scales[16] == pytest.approx(0.1)
    # Levels that state their own steps have them.
    assert MMPS(annealers.Ladder.of([2.0, 1.0], steps=4)).steps_per_draw == 4 + 3
    assert MMPS(annealers.Constant(1.0, 1)).steps_per_draw == 1


def test_draws_start_afresh_and_belong_to_their_chain() -> None:
    posterior, _, _ = a_gaussian("mask")
    options: dict[str, Any] = {"sampler": MMPS(ANNEAL), "seed": 3, "progress": False}
    four = pt.sample(posterior, num_chains=4, num_draws=2, **options).samples()
    two = pt.sample(posterior, num_chains=2, num_draws=1, **options).samples()
    torch.testing.assert_close(four[:2, :1], two, rtol=1e-9, atol=1e-9)
    assert not torch.equal(four[:, 0], four[:, 1])
    single = pt.sample(posterior, num_chains=2, dtype="float32", **options).samples()
    assert single.dtype == torch.float32
    assert bool(torch.isfinite(single).all())


def test_what_does_not_fit_is_refused() -> None:
    posterior, _, _ = a_gaussian("mask")
    prior, data = posterior.prior, posterior.likelihood
    for wrong, message in [
        (prior, "the posterior has no likelihood"),
        (posterior + energies.TotalVariation(), "has no quadratic form"),
        (prior + prior + data, "exactly one multi-scale prior"),
        (2.0 * prior + data, "exactly one multi-scale prior, of weight one"),
    ]:
        with pytest.raises(TypeError, match=f"MMPS: .*{message}"):
            pt.sample(wrong, MMPS(ANNEAL), num_chains=2, progress=False)
    with pytest.raises(TypeError, match="MMPS: annealer is a float"):
        MMPS(1.0)  # type: ignore[arg-type]
    for name in ("steps_per_level", "max_iterations"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            MMPS(ANNEAL, **{name: 0})
    with pytest.raises(ValueError, match="correction must be"):
        MMPS(ANNEAL, correction=0.0)
