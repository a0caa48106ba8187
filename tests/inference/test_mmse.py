"""The posterior mean and its Monte-Carlo error against Gaussians, where both are known."""

import math

import pytest
import torch

from potentia import Sum, annealers, energies, likelihoods
from potentia.inference import ALPS, Langevin, Sampler
from potentia.inference._mmse import mmse
from potentia.inference._summary import without_diagnostics

SHAPE = (1, 6, 6)


def posterior(dtype: torch.dtype = torch.float64) -> Sum:
    g = torch.Generator().manual_seed(0)
    prior = energies.Gaussian(torch.zeros(SHAPE, dtype=dtype), 1.0)
    return prior + likelihoods.Gaussian(prior.sample(g, 1)[0], noise_std=0.5)


# The posterior's std is sqrt(0.2) in each pixel, its mean 0.8 y; noise scales of 0.01 leave both as they are.
@pytest.mark.parametrize(
    ("sampler", "chains", "draws"),
    [
        (ALPS(annealers.Geometric(3.0, 0.01, 12), 3), 64, 2),
        (Langevin(0.5, sigma=0.01, steps_per_draw=1), 16, 60),
        (Langevin(0.5, sigma=0.01, steps_per_draw=1), 64, 2),
    ],
    ids=["independent", "autocorrelated", "few draws"],
)
def test_errors_are_of_the_size_that_they_say(sampler: Sampler, chains: int, draws: int) -> None:
    post = posterior()
    image, error = mmse(post, sampler, num_chains=chains, num_draws=draws, progress=False)
    off = (image - 0.8 * post.terms["gaussian_2"].y) / error
    # Mean square of 36 independent pixels, each of t or normal: 1 with a standard deviation of 0.25.
    assert 0.3 < float(off.square().mean()) < 2.2
    if sampler.independent_draws:
        expected = math.sqrt(0.2 / (chains * draws))
        assert float(error.mean()) == pytest.approx(expected, rel=0.1)


def test_autocorrelation_counts() -> None:
    with without_diagnostics():
        quick, slow = (
            mmse(posterior(), Langevin(e, sigma=0.01, steps_per_draw=1), num_chains=8, num_draws=100, progress=False)
            for e in (1.0, 0.05)
        )
    assert float(slow.std_error.mean()) > 2.5 * float(quick.std_error.mean())


def test_complex_images_and_the_default_sampler() -> None:
    found = mmse(posterior(torch.complex128), num_chains=24, progress=False, seed=1)
    assert found.image.dtype == torch.complex128
    assert found.std_error.dtype == torch.float64
    # Two parts of variance 0.2 each.
    assert float(found.std_error.square().mean()) == pytest.approx(0.4 / 24, rel=0.35)


def test_a_single_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        mmse(posterior(), num_chains=1)
