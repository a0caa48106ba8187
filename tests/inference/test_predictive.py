"""Predictive checks: p-values against closed forms, uniformity under the prior, faults that they see."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import potentia as pt
from potentia import energies, inference, likelihoods
from potentia._potential import Likelihood
from potentia.inference import posterior_predictive_check

SHAPE = (1, 2, 3)
Simulated = tuple[Likelihood, Tensor]
REPLICATIONS = 200


def gaussian(g: np.random.Generator, draws: int) -> Simulated:
    """Prior N(1, 2^2), noise of std 0.5."""
    x = g.normal(1, 2, SHAPE)
    y = x + 0.5 * g.standard_normal(SHAPE)
    precision = 1 / 4 + 4
    mean = (1 / 4 + 4 * y) / precision
    found = mean + g.standard_normal((draws, *SHAPE)) / math.sqrt(precision)
    return likelihoods.Gaussian(y, None, 0.5), torch.as_tensor(found)


def poisson(g: np.random.Generator, draws: int) -> Simulated:
    """Prior Gamma(2, rate 1/2), conjugate to counts at a gain of 3."""
    y = g.poisson(3 * g.gamma(2, 2, SHAPE)).astype(np.float64)
    return likelihoods.Poisson(y, None, 3.0), torch.as_tensor(g.gamma(2 + y, 1 / 3.5, (draws, *SHAPE)))


def gamma(g: np.random.Generator, draws: int) -> Simulated:
    """Prior InverseGamma(4, 5), conjugate to speckle of 3 looks."""
    x = 5 / g.gamma(4, 1, SHAPE)
    y = x * g.gamma(3, 1 / 3, SHAPE)
    return likelihoods.Gamma(y, None, 3.0), torch.as_tensor((5 + 3 * y) / g.gamma(7, 1, (draws, *SHAPE)))


def on_a_grid(make: Callable[[Any], Likelihood], noise: Callable[[Any], Any]) -> Callable[..., Simulated]:
    """Prior uniform on a grid, the posterior pixel by pixel summed up."""
    grid = np.linspace(-2, 2, 81)

    def simulate(g: np.random.Generator, draws: int) -> Simulated:
        y = noise(g.choice(grid, SHAPE), g)
        likelihood = make(y)
        z = torch.as_tensor(grid).reshape(-1, 1, 1, 1).expand(-1, *SHAPE)
        logs = -likelihood.entries(z, likelihood.y).flatten(1).numpy()  # type: ignore[attr-defined]
        weight = np.exp(logs - logs.max(axis=0))
        found = [g.choice(grid, draws, p=weight[:, k] / weight[:, k].sum()) for k in range(weight.shape[1])]
        return likelihood, torch.as_tensor(np.stack(found, axis=1).reshape(draws, *SHAPE))

    return simulate


BRIGHT, DARK, READ = (
    5.0,
    20.0,
    5.0,
)  # gain, background and read noise, at which the saddle point is exact to 0.0006 nats


def photons(x: Any, g: np.random.Generator, gain: float = BRIGHT) -> Any:
    return g.poisson(np.maximum(gain * x + DARK, 0)) + READ * g.standard_normal(SHAPE)


PROBLEMS: dict[str, Callable[[np.random.Generator, int], Simulated]] = {
    "gaussian": gaussian,
    "poisson": poisson,
    "gamma": gamma,
    "laplace": on_a_grid(lambda y: likelihoods.Laplace(y, None, 0.4), lambda x, g: x + g.laplace(0, 0.4, SHAPE)),
    "student t": on_a_grid(
        lambda y: likelihoods.StudentT(y, None, 0.4, 3.0), lambda x, g: x + 0.4 * g.standard_t(3, SHAPE)
    ),
    "rician": on_a_grid(
        lambda y: likelihoods.Rician(y, None, 0.4),
        lambda x, g: np.hypot(x + 0.4 * g.standard_normal(SHAPE), 0.4 * g.standard_normal(SHAPE)),
    ),
    "poisson-gaussian": on_a_grid(lambda y: likelihoods.PoissonGaussian(y, None, READ, BRIGHT, DARK), photons),
    "quantised": on_a_grid(
        lambda y: likelihoods.Quantised(y, None, 0.4, 0.5, low=-1.0, high=1.5),
        lambda x, g: np.clip(0.5 * np.round((x + 0.4 * g.standard_normal(SHAPE)) / 0.5), -1, 1.5),
    ),
}


def largest(y: Tensor, x: Tensor) -> Tensor:
    return (y - x).abs().amax(dim=(-3, -2, -1))


def p_values(problem: Callable[..., Simulated], statistic: Any = "deviance", number: int = REPLICATIONS) -> list[float]:
    g = np.random.default_rng(7)
    found = []
    for seed in range(number):
        likelihood, draws = problem(g, 3)
        check = posterior_predictive_check(
            likelihood, draws, statistic, method="sampled", num_replications=99, seed=seed
        )
        found.append(check.p_value)
    return found


@pytest.mark.parametrize("statistic", ["deviance", largest])
@pytest.mark.parametrize("name", PROBLEMS)
def test_sampled_p_values_are_uniform(name: str, statistic: Any) -> None:
    found = p_values(PROBLEMS[name], statistic)
    assert scipy.stats.kstest(found, "uniform").pvalue > 1e-3
    # Of a uniform law, mean and variance have these Monte-Carlo errors: 1 / 12, and 1 / 180 for that of the squares.
    assert abs(np.mean(found) - 1 / 2) < 4 * math.sqrt(1 / 12 / len(found))
    assert abs(np.var(found) - 1 / 12) < 4 * math.sqrt(1 / 180 / len(found))


MISFITS: dict[str, Callable[..., Simulated]] = {
    "a gain too small": on_a_grid(
        lambda y: likelihoods.PoissonGaussian(y, None, READ, BRIGHT, DARK), lambda x, g: photons(x, g, 3 * BRIGHT)
    ),
    "more read noise": on_a_grid(
        lambda y: likelihoods.PoissonGaussian(y, None, READ, BRIGHT, DARK),
        lambda x, g: photons(x, g) + 3 * READ * g.standard_normal(SHAPE),
    ),
    "a gain too small, poisson": on_a_grid(
        lambda y: likelihoods.Poisson(y, None, BRIGHT, DARK),
        lambda x, g: g.poisson(np.maximum(3 * BRIGHT * x + DARK, 0)).astype(np.float64),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_p_values_of_a_wrong_model_are_not(name: str) -> None:
    found = p_values(MISFITS[name], number=60)
    assert scipy.stats.kstest(found, "uniform").pvalue < 1e-6
    assert np.mean(found) < 0.5 - 4 * math.sqrt(1 / 12 / len(found))


def test_posterior_p_values_crowd_around_one_half() -> None:
    """Conservative: their spread is less than the uniform law's, as Gelman et al. and Robins et al. say."""
    g = np.random.default_rng(3)
    found = []
    for seed in range(100):
        likelihood, draws = gaussian(g, 200)
        found.append(posterior_predictive_check(likelihood, draws, seed=seed).p_value)
    assert np.var(found) < 0.5 / 12
    assert abs(np.mean(found) - 0.5) < 5 * np.std(found) / 10


def test_the_posterior_p_value_has_its_closed_form() -> None:
    """Of Gaussian noise 2 L is chi-square given x, so that p is the mean of the chi-square's tail over the draws."""
    likelihood, draws = gaussian(np.random.default_rng(0), 20_000)
    check = posterior_predictive_check(likelihood, draws)
    tail = scipy.stats.chi2.sf(2 * likelihood(draws).numpy(), 6)
    # Each draw's replication is a coin with that probability.
    error = math.sqrt((tail * (1 - tail)).mean() / len(tail))
    assert abs(check.p_value - tail.mean()) < 5 * error
    assert torch.allclose(check.observed, 2 * likelihood(draws))
    assert scipy.stats.kstest(check.replicated.numpy(), scipy.stats.chi2(6).cdf).pvalue > 1e-3


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_wrong_noise_level_is_seen(factor: float) -> None:
    shape = (1, 16, 16)
    g = torch.Generator().manual_seed(0)
    y = 0.3 * torch.randn(shape, generator=g)
    wrong = likelihoods.Gaussian(y, None, 0.3 * factor)
    draws = 0.01 * torch.randn(2, 50, *shape, generator=g)
    for method in ("posterior", "sampled"):
        p = posterior_predictive_check(energies.Gaussian(0.0, 1.0) + wrong, draws, method=method).p_value
        assert p < 0.01 if factor < 1 else p > 0.99


def test_outliers_are_seen_by_a_statistic_of_their_own() -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randn(1, 16, 16, generator=g)
    y[0, 3, 3] = 7.0
    draws = torch.zeros(20, 1, 16, 16)
    assert posterior_predictive_check(likelihoods.Gaussian(y, None, 1.0), draws, largest).p_value < 0.01
    robust = posterior_predictive_check(likelihoods.StudentT(y, None, 1.0, 2.0), draws, largest)
    assert robust.p_value > 0.05
    assert robust.statistic == "largest"


def test_ensembles_and_complex_images() -> None:
    g = torch.Generator().manual_seed(0)
    operator = likelihoods.Fourier((torch.rand(8, 8, generator=g) < 0.7).float())
    prior = energies.Gaussian(torch.zeros(1, 8, 8, dtype=torch.complex64), 1.0)
    x = torch.randn(1, 8, 8, generator=g, dtype=torch.complex64) * math.sqrt(2)
    posterior = prior + likelihoods.Gaussian(operator.measure(x, 0.1, g), operator, 0.1)
    ensemble = pt.sample(posterior, inference.Langevin(), num_chains=3, num_draws=40)
    check = posterior_predictive_check(posterior, ensemble)
    assert check.observed.shape == check.replicated.shape == (120,)
    assert check.observed.dtype == torch.float64
    assert 0.01 < check.p_value < 0.99
    again = posterior_predictive_check(posterior, ensemble.samples())
    assert again.p_value == check.p_value
    assert "Predictive check (posterior), deviance: observed" in repr(check)


def test_long_runs_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood, draws = gaussian(np.random.default_rng(0), 50)
    whole = posterior_predictive_check(likelihood, draws)
    monkeypatch.setattr("potentia.inference._predictive._CHUNK", 60)
    parts = posterior_predictive_check(likelihood, draws)
    assert torch.equal(parts.observed, whole.observed)
    assert parts.replicated.shape == whole.replicated.shape


Y = torch.ones(SHAPE)
LIKELIHOOD = likelihoods.Gaussian(Y, None, 1.0)
DRAWS = torch.zeros(4, *SHAPE)


class Mute(Likelihood):
    """A likelihood that knows its own data only."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("y", Y)

    def forward(self, x: Tensor, sigma: Any = None) -> Tensor:
        return x.sum((-3, -2, -1))

    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    def residual(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((energies.Gaussian(0.0, 1.0), DRAWS), {}, "gaussian holds no likelihood"),
        ((0.5 * LIKELIHOOD, DRAWS), {}, "gaussian is a likelihood with a weight"),
        ((LIKELIHOOD + LIKELIHOOD, DRAWS), {}, "got 2 likelihoods"),
        ((Mute(), DRAWS), {}, "likelihood has no method misfit"),
        ((LIKELIHOOD, [1, 2]), {}, "draws is a list, expected a tensor or an ensemble"),
        ((LIKELIHOOD, DRAWS[0]), {}, r"draws has shape \(1, 2, 3\), expected \(draws, C, H, W\)"),
        ((LIKELIHOOD, DRAWS[..., :2]), {}, r"x has shape \(4, 1, 2, 2\)"),
        ((LIKELIHOOD, DRAWS * math.nan), {}, "draws has 24 NaN"),
        ((LIKELIHOOD, DRAWS), {"method": "prior"}, "method is 'prior', expected one of 'posterior', 'sampled'"),
        ((LIKELIHOOD, DRAWS, "chi3"), {}, "statistic is 'chi3', expected 'deviance' or a function"),
        ((LIKELIHOOD, DRAWS, lambda y, x: y), {}, r"the statistic has shape \(4, 1, 2, 3\)"),
        ((LIKELIHOOD, DRAWS, lambda y, x: largest(y, x) * math.nan), {}, "the statistic is NaN for 4 images"),
        ((LIKELIHOOD, DRAWS), {"num_replications": 0}, "num_replications must be at least 1"),
        ((LIKELIHOOD, DRAWS), {"seed": -1}, "seed must be at least 0"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(arguments: Any, options: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        posterior_predictive_check(*arguments, **options)
    assert "\n" not in str(caught.value)
