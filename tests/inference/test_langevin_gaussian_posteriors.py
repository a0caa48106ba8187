"""Langevin dynamics on 64 x 64 Gaussian posteriors whose mean and covariance are known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from potentia import energies, inference, likelihoods, sample
from potentia._potential import Potential

SIDE = 64
CHAINS = 320
# A standard deviation beyond which one of 4,096 Gaussian variables lies in one of 2,000 cases.
EXTREME = 5.4


def posterior(problem: str) -> Potential:
    g = torch.Generator().manual_seed(1)
    is_complex = problem == "sense"
    mean = torch.zeros(1, 1, 1, dtype=torch.complex64 if is_complex else torch.float32)
    prior = energies.GaussianField.power_law((1, SIDE, SIDE), exponent=2.0, std=0.5, corner=0.1, mean=mean)
    truth = prior.sample(g, 1)[0]
    plane = (SIDE, SIDE)
    operators = {
        "mask": likelihoods.Mask((torch.rand(SIDE, SIDE, generator=g) < 0.4).float()),
        "blur": likelihoods.GaussianBlur(1.5, plane),
        "sense": likelihoods.Sense(likelihoods.birdcage_maps(2, plane), likelihoods.cartesian_mask(plane, 2.0)),
    }
    operator = operators[problem]
    return prior + likelihoods.Gaussian(operator.measure(truth, 0.2, g), operator, 0.2)


def closed_form(post: Potential) -> tuple[Tensor, Tensor]:
    """Posterior mean and pixelwise std, of one part of complex images, by a dense inverse in float64."""
    form = post.quadratic()
    assert form is not None
    d = SIDE * SIDE
    precision = torch.empty(d, d, dtype=form.linear.dtype.to_complex() if form.linear.is_complex() else torch.float32)
    for block in torch.arange(d).split(512):
        basis = torch.zeros(len(block), d, dtype=form.linear.dtype)
        basis[torch.arange(len(block)), block] = 1
        precision[:, block] = form.structure.apply(basis.reshape(-1, 1, SIDE, SIDE)).reshape(-1, d).mT
    covariance = torch.linalg.inv(precision)
    mean = covariance @ form.linear.expand(1, SIDE, SIDE).reshape(d)
    return mean.reshape(1, SIDE, SIDE), covariance.diagonal().real.sqrt().reshape(1, SIDE, SIDE)


def parts(x: Tensor) -> Tensor:
    """Real and imaginary part as two draws: (n, C, H, W) complex -> (2, n, C, H, W)."""
    return torch.stack([x.real, x.imag]) if x.is_complex() else x[None]


def statistics(problem: str, rule: str, draws: int) -> tuple[Tensor, Tensor, int]:
    """Errors of the mean, in posterior stds, and of the std, relative, a pixel; and the draws behind each."""
    post = posterior(problem)
    mean, std = closed_form(post)
    # A step of 0.9 leaves a tenth of what the chain was: two steps apart, draws correlate by about 0.01.
    sampler = inference.Langevin(0.9, rule=rule, steps_per_draw=2)
    ensemble = sample(post, sampler, num_chains=CHAINS, num_draws=draws, num_warmup=2, seed=3, progress=False)
    x = ensemble.samples().flatten(0, 1)
    off = parts(x - mean)
    n = off.shape[1]
    spread = off.std(dim=1).square().mean(dim=0).sqrt()
    return off.mean(dim=1) / std, spread / std - 1, n * off.shape[0]


@pytest.mark.parametrize("problem", ["mask", "blur", "sense"])
def test_leimkuhler_matthews_has_the_posterior_mean_and_std_in_every_pixel(problem: str) -> None:
    draws = 2 if problem == "sense" else 4
    mean_error, std_error, n = statistics(problem, "leimkuhler-matthews", draws)
    per_part = n / len(mean_error)
    assert n >= 1280
    # The error of a mean of n draws is std / sqrt(n), that of a sample std is std / sqrt(2 n). One in a hundred is left
    # for the draws' correlation.
    slack = 1.01
    assert float(mean_error.abs().max()) < EXTREME * slack / math.sqrt(per_part)
    assert float(std_error.abs().max()) < EXTREME * slack / math.sqrt(2 * n)
    # Over the image: within 5 %, and no wider than the Monte-Carlo error (4,096 pixels, correlated, settle it to 10 %).
    for error, expected in ((mean_error, 1 / math.sqrt(per_part)), (std_error, 1 / math.sqrt(2 * n))):
        rms = float(error.square().mean().sqrt())
        assert rms < 0.05
        assert rms < 1.1 * expected
    # Averaged over pixels the std is known far better than in any one.
    assert abs(float(std_error.mean())) < 0.005


def test_the_textbook_rule_is_too_wide_by_what_theory_says() -> None:
    """The same statistics see Euler's bias: variance 2 / (2 - eps) of the truth."""
    _, std_error, n = statistics("blur", "euler", 3)
    expected = math.sqrt(2 / (2 - 0.9)) - 1
    assert abs(float(std_error.mean()) - expected) < 0.01
    assert float(std_error.mean()) > EXTREME / math.sqrt(2 * n)
