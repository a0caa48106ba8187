"""Gauss-Newton preconditioners: what they are made of, and MALA on Poisson posteriors with and without."""

import pytest
import torch
from torch import Tensor

from potentia import energies, inference, likelihoods
from potentia._potential import Potential
from potentia._random import chain_generators, standard_normal
from potentia._structure import MatrixFree
from potentia.inference import MALA, Langevin, Preconditioner
from potentia.testing._dense import dense

MOST_SE = 4.5
SHAPE = (1, 6, 6)


def poisson_posterior(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> tuple[Potential, Tensor]:
    """Counts of 10 to 10,000 a pixel, under a prior of white noise, in units of 100 counts."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.logspace(-1, 2, shape[1] * shape[2], dtype=torch.float64).reshape(shape)
    y = torch.poisson(100 * truth, generator=g)
    prior = energies.Gaussian(truth, 20.0)
    return prior + likelihoods.Poisson(y, None, 100.0, 1.0), truth


def chains(
    posterior: Potential, at: Tensor, sampler: MALA, num: int, draws: int, seed: int = 0
) -> tuple[Tensor, float]:
    """Draws (chains, draws, C, H, W) after the warm-up, and gradients spent on each."""
    generators = chain_generators(seed, range(num))
    state = sampler.init(posterior, at.expand(num, *at.shape).clone(), generators)
    kept, spent = [], 0
    for k in range(sampler.default_warmup + draws):
        if k == sampler.default_warmup:
            state = state._replace(memory=sampler.freeze(state.memory))
        for _ in range(sampler.steps_per_draw):
            state, info = sampler.step(posterior, state)
            spent += info.n_grad if k >= sampler.default_warmup else 0
        if k >= sampler.default_warmup:
            kept.append(state.x)
    return torch.stack(kept, dim=1), spent / draws


def test_it_is_the_sum_of_exact_and_local_forms() -> None:
    posterior, truth = poisson_posterior()
    p = Preconditioner.gauss_newton(posterior, truth)
    curvature = 1 / 400 + 100**2 / (100 * truth + 1)
    assert torch.allclose(dense(p.structure.apply, SHAPE, torch.float64, "cpu"), torch.diag(curvature.flatten()))
    assert p.shift == 0.0
    weighted = Preconditioner.gauss_newton(0.25 * posterior, truth)
    assert torch.allclose(4 * weighted.structure.apply(truth), p.structure.apply(truth))


def test_without_local_forms_it_is_that_of_the_quadratic_ones() -> None:
    y = standard_normal(SHAPE, torch.Generator().manual_seed(0), dtype=torch.float64)
    posterior = energies.Gaussian(0.0, 1.0) + likelihoods.Gaussian(y, None, 0.3) + energies.TotalVariation(0.5)
    one, two = Preconditioner.of(posterior), Preconditioner.gauss_newton(posterior, y)
    assert torch.allclose(one.solve(y), two.solve(y))
    assert Preconditioner.gauss_newton(posterior, y, curvature=2.0).shift == 2.0
    # A term of negative weight has no form, but is not in the way.
    assert Preconditioner.gauss_newton(posterior - likelihoods.Poisson(y.abs().round()), y).shift == 0.0


def test_multi_scale_terms_count_at_their_scale() -> None:
    posterior, truth = poisson_posterior()
    psi = energies.Denoiser(lambda x, s: x / (1 + s.reshape(-1, 1, 1, 1) ** 2), (0.01, 5.0))
    assert Preconditioner.gauss_newton(posterior + psi, truth, sigma=0.5).shift == pytest.approx(4.0)


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, *SHAPE, dtype=torch.float64), torch.zeros(1, 3, 3), torch.zeros(*SHAPE) * 1j]
)
def test_other_images_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"has shape|has dtype"):
        Preconditioner.gauss_newton(poisson_posterior()[0], bad)


def test_operators_that_no_transform_diagonalises_go_matrix_free() -> None:
    blur = likelihoods.GaussianBlur(1.0, SHAPE[1:]).double()
    y = torch.full(SHAPE, 40.0, dtype=torch.float64)
    posterior = energies.Gaussian(torch.zeros(SHAPE, dtype=torch.float64), 1.0) + likelihoods.Poisson(
        y, blur, 10.0, 30.0
    )
    x = standard_normal((2, *SHAPE), torch.Generator().manual_seed(1), dtype=torch.float64)
    p = Preconditioner.gauss_newton(posterior, torch.ones(SHAPE, dtype=torch.float64))
    assert isinstance(p.structure, MatrixFree)
    assert torch.allclose(p.structure.apply(p.solve(x)), x, atol=1e-8)
    draws, _ = chains(posterior, torch.ones(SHAPE, dtype=torch.float64), MALA(preconditioner=p, default_warmup=5), 2, 5)
    assert bool(torch.isfinite(draws).all())


def test_it_makes_more_of_every_gradient() -> None:
    """The least effective sample size over the pixels, whose widths differ by a factor of thirty."""
    posterior, truth = poisson_posterior()
    p = Preconditioner.gauss_newton(posterior, truth)
    each = {}
    for name, sampler in {
        "plain": MALA(default_warmup=100, steps_per_draw=1, curvature=1.0, preconditioner=Preconditioner.identity()),
        "gauss-newton": MALA(default_warmup=100, steps_per_draw=1, preconditioner=p),
    }.items():
        draws, spent = chains(posterior, truth, sampler, 8, 250)
        each[name] = float(inference.ess(draws).min()) / (spent * 250 * 8)
    # Measured: 0.061 against 0.0046.
    assert each["gauss-newton"] > 6 * each["plain"]


def test_mala_with_it_is_exact() -> None:
    """Posterior means and standard deviations of single pixels against a sum over a fine grid."""
    truth = torch.tensor([[[0.02, 0.5, 4.0]]], dtype=torch.float64)
    y = torch.tensor([[[0.0, 7.0, 33.0]]], dtype=torch.float64)
    posterior = energies.Gaussian(truth, 1.0) + likelihoods.Poisson(y, None, 10.0, 1.0)
    p = Preconditioner.gauss_newton(posterior, truth)
    sampler = MALA(preconditioner=p, default_warmup=40, steps_per_draw=5)
    draws, _ = chains(posterior, truth, sampler, 64, 250)
    grid = torch.linspace(-0.2, 8.0, 200_001, dtype=torch.float64)
    for k in range(3):
        one = energies.Gaussian(float(truth[0, 0, k]), 1.0) + likelihoods.Poisson(y[..., k : k + 1], None, 10.0, 1.0)
        log_density = -one(grid.reshape(-1, 1, 1, 1))
        weight = (log_density - log_density.max()).exp()
        mean = float((weight * grid).sum() / weight.sum())
        std = float((weight * (grid - mean).square()).sum() / weight.sum()) ** 0.5
        pixel = draws[..., 0, 0, k]
        assert abs(float(pixel.mean()) - mean) < MOST_SE * float(inference.mcse(pixel))
        assert abs(float(pixel.std()) - std) < MOST_SE * float(inference.mcse(pixel, "std"))


def test_langevin_and_hmc_take_it() -> None:
    posterior, truth = poisson_posterior((1, 2, 2))
    p = Preconditioner.gauss_newton(posterior, truth)
    for sampler in (Langevin(preconditioner=p, step_size=0.5), inference.HMC(preconditioner=p, num_leapfrog=3)):
        generators = chain_generators(0, range(2))
        state = sampler.init(posterior, truth.expand(2, *truth.shape).clone(), generators)
        for _ in range(20):
            state, _ = sampler.step(posterior, state)
        assert bool(torch.isfinite(state.x).all())
