"""Noise models against SciPy's densities, their own samplers, differences, and each other."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._random import standard_normal
from potentia.likelihoods import NoiseModel
from potentia.testing import check_energy, check_quadratic
from potentia.testing._dense import dense
from potentia.testing._examples_noise import GAUSSIAN, NOISE, ToneCurve
from potentia.testing.examples import Source

MOST_SE = 5.0
EXAMPLES = {
    f"{cls.__name__}, {name}": maker
    for cls, variants in {**NOISE, likelihoods.Gaussian: GAUSSIAN}.items()
    for name, maker in variants.items()
}


def example(name: str, shape: tuple[int, int, int] = (2, 4, 3), seed: int = 0) -> tuple[NoiseModel, Tensor]:
    """A noise model, and three standard normal images for it."""
    made = EXAMPLES[name](Source(torch.Generator().manual_seed(seed), shape, torch.float64))
    assert isinstance(made, NoiseModel)
    dtype = torch.complex128 if made.is_complex else torch.float64
    return made, standard_normal((3, *made.event_shape), torch.Generator().manual_seed(9), dtype=dtype)


def pixels(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=np.float64)).reshape(1, 1, -1)


# --- densities: the model of one measurement each, its log density, and a grid that holds its mass

Reference = tuple[Callable[[Any], NoiseModel], Callable[[Any, Any], Any], Any]


def rounded(y: Any, z: Any, s: float, step: float, low: float, high: float) -> Any:
    upper = np.where(y > high - step / 4, np.inf, y + step / 2)
    lower = np.where(y < low + step / 4, -np.inf, y - step / 2)
    return np.log(scipy.stats.norm.cdf(upper, z, s) - scipy.stats.norm.cdf(lower, z, s))


REFERENCES: dict[str, Reference] = {
    "gaussian": (
        lambda y: likelihoods.Gaussian(y, None, 0.7),
        lambda y, z: scipy.stats.norm.logpdf(y, z, 0.7),
        np.linspace(-6, 12, 40),
    ),
    "laplace": (
        lambda y: likelihoods.Laplace(y, None, 0.7),
        lambda y, z: scipy.stats.laplace.logpdf(y, z, 0.7),
        np.linspace(-6, 12, 40),
    ),
    "student t": (
        lambda y: likelihoods.StudentT(y, None, 0.7, 2.5),
        lambda y, z: scipy.stats.t.logpdf(y, 2.5, z, 0.7),
        np.linspace(-60, 60, 40),
    ),
    "poisson": (
        lambda y: likelihoods.Poisson(y, None, 3.0, 0.5),
        lambda y, z: scipy.stats.poisson.logpmf(y, 3 * z + 0.5),
        np.arange(60.0),
    ),
    "gamma": (
        lambda y: likelihoods.Gamma(y, None, 3.5),
        lambda y, z: scipy.stats.gamma.logpdf(y, 3.5, scale=z / 3.5),
        np.linspace(0.01, 40, 60),
    ),
    "rician": (
        lambda y: likelihoods.Rician(y, None, 0.7),
        lambda y, z: scipy.stats.rice.logpdf(y, np.abs(z) / 0.7, scale=0.7),
        np.linspace(0.01, 9, 40),
    ),
    "quantised": (
        lambda y: likelihoods.Quantised(y, None, 0.7, 0.5, low=-1.0, high=4.0),
        lambda y, z: rounded(y, z, 0.7, 0.5, -1.0, 4.0),
        np.arange(-2, 9) * 0.5,
    ),
}


@pytest.mark.parametrize("z", [0.02, 0.6, 2.5])
@pytest.mark.parametrize("name", REFERENCES)
def test_log_densities_are_those_of_scipy(name: str, z: float) -> None:
    make, reference, grid = REFERENCES[name]
    for y in grid:
        if name == "gamma" and z < y / 100:  # where it goes on as a parabola
            continue
        likelihood = make(pixels([y]))
        got = -float(likelihood(pixels([z])) + likelihood.log_normaliser())
        want = float(reference(np.float64(y), np.float64(z)))
        assert got == pytest.approx(want, rel=1e-10, abs=1e-11)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "student t", "gamma", "rician"])
def test_densities_of_the_measurement_integrate_to_one(name: str) -> None:
    make = REFERENCES[name][0]

    def density(y: float) -> float:
        likelihood = make(pixels([y]))
        return math.exp(-float(likelihood(pixels([1.3])) + likelihood.log_normaliser()))

    low = 1e-9 if name in ("gamma", "rician") else -math.inf
    parts = [(low, 1.3), (1.3, math.inf)]
    total = sum(scipy.integrate.quad(density, *part, epsabs=1e-9)[0] for part in parts)
    assert total == pytest.approx(1.0, abs=1e-6)


def series(y: Any, rate: float, std: float) -> tuple[Any, Any]:
    """Log density of the Poisson-Gaussian model and its derivative in the rate, from the series over the counts."""
    counts = np.arange(0, int(rate + 14 * math.sqrt(rate) + 60))
    logs = scipy.stats.poisson.logpmf(counts, rate) + scipy.stats.norm.logpdf(y[:, None], counts, std)
    total = scipy.special.logsumexp(logs, axis=1)
    return total, np.exp(logs - total[:, None]) @ counts / rate - 1


@pytest.mark.parametrize(("std", "most"), [(0.5, 0.077), (1.0, 0.016), (2.0, 0.0035), (5.0, 0.0006)])
def test_the_saddle_point_is_as_near_to_the_series_as_it_says(std: float, most: float) -> None:
    worst = 0.0
    for rate in np.logspace(-3, 4, 29):
        width = math.sqrt(rate + std**2)
        y = np.linspace(rate - 4 * width, rate + 4 * width, 81)
        likelihood = likelihoods.PoissonGaussian(pixels(y), None, std)
        z = torch.full((1, 1, len(y)), rate, dtype=torch.float64)
        got = -(likelihood.entries(z, likelihood.y) + likelihood.log_normalisers())
        log_density, slope = series(y, rate, std)
        worst = max(worst, float((got - pixels(log_density)).abs().max()))
        if rate > 1:  # the gradient, in units of what one measurement tells
            off = (likelihood.slopes(z, likelihood.y) + pixels(slope)).abs() * width
            assert float(off.max()) < 0.5 / std**2 * min(1.0, 4 / math.sqrt(rate))
    assert worst < most
    assert worst > 0.5 * most  # or the docstring could say less


def test_the_poisson_gaussian_model_tends_to_the_poisson_model() -> None:
    """Up to a constant in x, the error of Stirling's formula, and rates of ten and more."""
    y, z = pixels([3, 10, 40]), pixels([11.0, 12.0, 38.0])
    slopes = likelihoods.Poisson(y).slopes(z, y)
    assert torch.allclose(likelihoods.PoissonGaussian(y, None, 1e-3).slopes(z, y), slopes, rtol=1e-6)


# --- samplers


STOCHASTIC: dict[str, tuple[Callable[[Tensor], NoiseModel], float, float]] = {
    # model, signal, Fisher information where it is known exactly (else nan)
    "gaussian": (lambda y: likelihoods.Gaussian(y, None, 0.5), 1.0, 4.0),
    "laplace": (lambda y: likelihoods.Laplace(y, None, 0.5), 1.0, 4.0),
    "student t": (lambda y: likelihoods.StudentT(y, None, 0.5, 3.0), 1.0, 4 / 6 / 0.25),
    "poisson": (lambda y: likelihoods.Poisson(y, None, 3.0, 0.5), 2.0, 9 / 6.5),
    "poisson, bright": (lambda y: likelihoods.Poisson(y), 1e4, 1e-4),
    "poisson-gaussian": (lambda y: likelihoods.PoissonGaussian(y, None, 5.0, 2.0, 3.0), 20.0, math.nan),
    "gamma": (lambda y: likelihoods.Gamma(y, None, 2.5), 3.0, 2.5 / 9),
    "rician": (lambda y: likelihoods.Rician(y, None, 0.5), 0.6, math.nan),
    "rician, bright": (lambda y: likelihoods.Rician(y, None, 0.5), 100.0, 4.0),
    "quantised": (lambda y: likelihoods.Quantised(y, None, 0.5, 0.5), 1.1, math.nan),
    "quantised, clipped": (lambda y: likelihoods.Quantised(y, None, 0.5, 0.5, low=0.0, high=1.5), 1.1, math.nan),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_scores_of_simulated_measurements_have_mean_zero_and_the_fisher_information(name: str) -> None:
    make, signal, information = STOCHASTIC[name]
    n = 40_000
    x = torch.full((1, 200, 200), signal, dtype=torch.float64)
    blank = make(torch.ones_like(x) if name == "gamma" else torch.zeros_like(x))
    y = blank.simulate(x, torch.Generator().manual_seed(4))
    assert y.shape == x.shape
    likelihood = make(y)
    score = likelihood.slopes(x, y).flatten()
    assert abs(float(score.mean())) < MOST_SE * float(score.std()) / math.sqrt(n)
    if not math.isnan(information):
        square = score.square()
        error = MOST_SE * float(square.std()) / math.sqrt(n)
        assert abs(float(square.mean()) - information) < error + 1e-9 * information
        curvature = likelihood.curvatures(x).expand(x.shape)
        assert float((curvature - information).abs().max()) < 3e-5 * information
    elif "clipped" not in name:
        # What stands for the information: up to 7 % off for Rician, and little for rounding and the saddle point.
        error = MOST_SE * float(score.square().std()) / math.sqrt(n)
        mean = float(score.square().mean())
        assert abs(float(likelihood.curvatures(x).mean()) - mean) < 0.08 * mean + error


def test_the_information_of_rician_noise_is_within_seven_percent() -> None:
    for signal in np.logspace(-2, 2, 25):
        m = np.linspace(max(1e-9, signal - 12), signal + 14, 20_001)
        ratio = scipy.special.i1e(m * signal) / scipy.special.i0e(m * signal)
        density = np.exp(scipy.stats.rice.logpdf(m, signal))
        exact = scipy.integrate.trapezoid(density * (signal - m * ratio) ** 2, m)
        likelihood = likelihoods.Rician(torch.ones(1, 1, 1, dtype=torch.float64), None, 1.0)
        assert float(likelihood.curvatures(pixels([signal]))) == pytest.approx(exact, rel=0.07)


@pytest.mark.parametrize("make", [likelihoods.Laplace, likelihoods.StudentT])
def test_complex_noise_has_independent_parts(make: Any) -> None:
    n = 20_000
    x = torch.zeros(1, 1, n, dtype=torch.complex128)
    y = make(x, None, 0.5).simulate(x, torch.Generator().manual_seed(0))
    alone = make(torch.zeros(1, 1, n, dtype=torch.float64), None, 0.5)
    whole = make(y, None, 0.5)
    total = sum(make(part.contiguous(), None, 0.5)(alone.y) for part in (y.real, y.imag))
    assert torch.allclose(whole(x), torch.as_tensor(total), rtol=1e-12)
    assert torch.allclose(whole.log_normaliser(), 2 * alone.log_normaliser())
    # The medians of |noise|: scale log 2, and the quartile of Student's t with 4 degrees of freedom.
    median = 0.5 * (math.log(2) if make is likelihoods.Laplace else scipy.stats.t.ppf(0.75, 4))
    for part in (y.real, y.imag):
        share = float((part.abs() < median).double().mean())
        assert abs(share - 0.5) < MOST_SE * 0.5 / math.sqrt(n)
    agree = float((y.real.sign() * y.imag.sign()).mean())
    assert abs(agree) < MOST_SE / math.sqrt(n)


# --- the contract


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_keep_the_contract_of_potentials(name: str) -> None:
    likelihood, x = example(name)
    check_energy(likelihood, x, 0.3)


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n.startswith("Gaussian, correlated")])
def test_correlated_noise_keeps_the_exact_form(name: str) -> None:
    likelihood, _ = example(name)
    check_quadratic(likelihood, likelihood.event_shape, num_draws=1000)


class WrongSlope(likelihoods.Poisson):
    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        return 1.01 * super().slopes(z, y)


class NoDeterminant(likelihoods.PoissonGaussian):
    def _slope(self, rate: Tensor, y: Tensor) -> Tensor:
        t = torch.log(y.clamp_min(1.0) / rate)
        return -torch.expm1(t)


@pytest.mark.parametrize("kind", [WrongSlope, NoDeterminant])
def test_wrong_derivatives_are_caught(kind: Any) -> None:
    y = torch.full((1, 3, 3), 62.0, dtype=torch.float64)
    likelihood = kind(y, background=60.0, **({"noise_std": 2.0} if kind is NoDeterminant else {}))
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(AssertionError, match="grad is the derivative of forward"):
        check_energy(likelihood, x)


@pytest.mark.parametrize("name", EXAMPLES)
def test_value_and_gradient_cost_one_application_of_each(name: str) -> None:
    likelihood, x = example(name)
    calls = {"forward": 0}

    def hook(*args: object) -> None:
        calls["forward"] += 1

    handle = likelihood.operator.register_forward_hook(hook)
    likelihood.value_and_grad(x)
    handle.remove()
    assert calls["forward"] == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_copies_pickles_and_precisions(name: str) -> None:
    likelihood, x = example(name)
    value = likelihood(x)
    for other in (copy.deepcopy(likelihood), pickle.loads(pickle.dumps(likelihood)), likelihood.named("other")):
        assert torch.equal(other(x), value)
    single = copy.deepcopy(likelihood).float()
    small = x.to(torch.complex64 if x.is_complex() else torch.float32)
    assert single.grad(small).dtype == small.dtype
    assert likelihood.simulate(x, torch.Generator().manual_seed(0)).shape == (3, *likelihood.y.shape)
    assert type(likelihood).__name__ in repr(likelihood)


@pytest.mark.parametrize("name", EXAMPLES)
def test_gauss_newton_touches_the_likelihood_where_it_is_taken(name: str) -> None:
    likelihood, x = example(name)
    form = likelihood.gauss_newton(x[0])
    value, grad = likelihood.value_and_grad(x[0])
    assert torch.allclose(form.value(x[0]), value, rtol=1e-10)
    assert torch.allclose(form.grad(x[0]), grad, rtol=1e-10, atol=1e-12)
    matrix = dense(form.structure.apply, likelihood.event_shape, x.dtype, "cpu") if not _nonlinear(likelihood) else None
    if matrix is not None:
        assert float((matrix - matrix.mT).abs().max()) < 1e-10 * float(matrix.abs().max())
        assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10 * float(matrix.abs().max())


def _nonlinear(likelihood: NoiseModel) -> bool:
    return not isinstance(likelihood.operator, likelihoods.Operator)


@pytest.mark.parametrize("name", ["Gaussian, correlated coils", "Gaussian, correlated channels"])
def test_gauss_newton_of_a_linear_gaussian_is_the_exact_form(name: str) -> None:
    likelihood, x = example(name)
    exact, local = likelihood.quadratic(), likelihood.gauss_newton(x[1])
    assert exact is not None
    assert torch.allclose(local.value(x), exact.value(x), rtol=1e-9)
    assert torch.allclose(local.grad(x), exact.grad(x), rtol=1e-9, atol=1e-9)


def test_gauss_newton_is_the_jacobian_and_the_weights() -> None:
    """J^T W J by autograd, of a model that is linear in neither place."""
    curve = ToneCurve()
    x = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    likelihood = likelihoods.Poisson(torch.full_like(x, 30.0), curve, 2.0, 25.0)
    jacobian = torch.autograd.functional.jacobian(curve, x).reshape(6, 6)
    weight = 4 / (2 * curve(x) + 25).flatten()
    for k in range(6):
        unit = torch.eye(6, dtype=torch.float64)[k].reshape(x.shape)
        got = likelihood.gauss_newton(x).structure.apply(unit).flatten()
        assert torch.allclose(got, (jacobian.T @ (weight[:, None] * jacobian))[k], rtol=1e-10, atol=1e-12)


def test_rician_curvature_is_radial() -> None:
    """Magnitudes tell nothing of the phase: of complex images, half of the directions have no curvature."""
    x = standard_normal((2, 3, 4), torch.Generator().manual_seed(0), dtype=torch.complex128)
    likelihood = likelihoods.Rician(x.abs(), None, 0.7, complex_images=True)
    form = likelihood.gauss_newton(x)
    assert float(form.structure.apply(1j * x).abs().max()) < 1e-12
    assert torch.allclose(form.structure.apply(x), likelihood.curvatures(x) * x)
    draws = form.draw(torch.Generator().manual_seed(0), (4, *likelihood.event_shape), 1.0)
    assert bool(torch.isfinite(draws.abs()).all())


def test_first_derivatives_only() -> None:
    likelihood = likelihoods.Poisson(torch.ones(1, 2, 2, dtype=torch.float64), None, 1.0, 3.0)
    x = torch.ones(1, 2, 2, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(likelihood(x.square()), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(grad.sum(), x)
