"""Noise models at the ends of single precision, their samplers' moments, parameters that vary, and what is missing."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods import (
    Gamma,
    Gaussian,
    Laplace,
    NoiseModel,
    Poisson,
    PoissonGaussian,
    Quantised,
    Rician,
    StudentT,
)
from potentia.likelihoods._noise import broadcasts

Make = Callable[[Tensor, Any], NoiseModel]
LEVELS = (1e-6, 1e-3, 0.5, 1e3, 1e6)
DATA = (0.0, 1.0, 255.0, 1e4, 1e6)
SIGNALS = (-1e6, -1.0, 0.0, 1e-30, 1e-3, 1.0, 255.0, 1e6)
MODELS: dict[str, Make] = {
    "gaussian": lambda y, s: Gaussian(y, None, s),
    "laplace": lambda y, s: Laplace(y, None, s),
    "student t": lambda y, s: StudentT(y, None, s, 1.5),
    "student t, dof": lambda y, s: StudentT(y, None, 1.0, s),
    "poisson, gain": lambda y, s: Poisson(y, None, s),
    "poisson, background": lambda y, s: Poisson(y, None, 1.0, s),
    "poisson-gaussian": lambda y, s: PoissonGaussian(y, None, s, 2.0, 0.1),
    "poisson-gaussian, gain": lambda y, s: PoissonGaussian(y, None, 1.0, s),
    "poisson-gaussian, negative": lambda y, s: PoissonGaussian(-y, None, s, 2.0, 0.1),
    "gamma": lambda y, s: Gamma(y + 1e-3, None, s),
    "rician": lambda y, s: Rician(y, None, s),
    "quantised": lambda y, s: Quantised(y, None, s, 1.0),
    "quantised, clipped": lambda y, s: Quantised(y.clamp(0, 255), None, s, 1.0, low=0.0, high=255.0),
}


CONVEX = {"gaussian", "laplace", "poisson, gain", "poisson, background", "quantised", "quantised, clipped"}


@pytest.mark.parametrize("name", MODELS)
def test_tiny_and_huge_levels_are_finite_in_single_precision(name: str) -> None:
    y, z = (torch.tensor(v).reshape(1, 1, -1) for v in zip(*itertools.product(DATA, SIGNALS), strict=True))
    for level in LEVELS:
        likelihood = MODELS[name](y, level)
        value, grad = likelihood.value_and_grad(z)
        curvature = likelihood.curvatures(z)
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(grad).all())
        assert bool((torch.isfinite(curvature) & (curvature >= 0)).all())
        if name != "rician":  # whose density is zero at y = 0
            assert bool(torch.isfinite(likelihood.log_normaliser()))
        if name in CONVEX:
            slopes = likelihood.slopes(z, y).reshape(len(DATA), len(SIGNALS))
            assert bool((slopes.diff(dim=1) >= -1e-4 * slopes[:, 1:].abs()).all())


@pytest.mark.parametrize("name", MODELS)
def test_nan_is_not_swallowed(name: str) -> None:
    """An image that is not a number has no finite misfit, so that whoever samples it is told."""
    y = torch.full((1, 1, 2), 5.0)
    value, grad = MODELS[name](y, 0.5).value_and_grad(torch.tensor([[[1.0, math.nan]]]))
    assert bool(value.isnan())
    assert bool(grad[0, 0, 1].isnan())
    assert bool(torch.isfinite(grad[0, 0, 0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"quantised, clipped"}))
def test_measurements_that_are_no_numbers_are_refused(name: str, bad: float) -> None:
    y = torch.tensor([[[1.0, bad]]])
    with pytest.raises(ValueError, match=r": y has 1 NaN or infinite|: y has 1 NaN"):
        MODELS[name](y, 0.5)


# Moments of what is simulated: mean and variance at a signal.

Moments = tuple[Callable[[Tensor], NoiseModel], float, float, float]


def rounded_moments(signal: float, std: float, step: float, low: float, high: float) -> tuple[float, float]:
    values = np.arange(low, high + step / 2, step)
    ends = np.concatenate([[-np.inf], values[1:] - step / 2, [np.inf]])
    mass = np.diff(scipy.stats.norm.cdf(ends, signal, std))
    mean = float(mass @ values)
    return mean, float(mass @ (values - mean) ** 2)


RICE = scipy.stats.rice(0.9 / 0.7, scale=0.7)
MOMENTS: dict[str, Moments] = {
    "gaussian": (lambda y: Gaussian(y, None, 0.5), 1.0, 1.0, 0.25),
    "laplace": (lambda y: Laplace(y, None, 0.5), 1.0, 1.0, 2 * 0.25),
    "student t": (lambda y: StudentT(y, None, 0.5, 9.0), 1.0, 1.0, 0.25 * 9 / 7),
    "poisson": (lambda y: Poisson(y, None, 3.0, 0.5), 2.0, 6.5, 6.5),
    "poisson, faint": (lambda y: Poisson(y, None, 0.02), 1.0, 0.02, 0.02),
    "poisson, bright": (lambda y: Poisson(y, None, 10.0), 1e4, 1e5, 1e5),
    "poisson-gaussian": (lambda y: PoissonGaussian(y, None, 2.0, 3.0, 0.5), 2.0, 6.5, 6.5 + 4),
    "gamma": (lambda y: Gamma(y, None, 2.5), 3.0, 3.0, 9 / 2.5),
    "gamma, few looks": (lambda y: Gamma(y, None, 0.3), 3.0, 3.0, 9 / 0.3),
    "rician": (lambda y: Rician(y, None, 0.7), 0.9, float(RICE.mean()), float(RICE.var())),
    "quantised": (
        lambda y: Quantised(y, None, 0.6, 0.5, low=0.0, high=2.0), 1.1, *rounded_moments(1.1, 0.6, 0.5, 0.0, 2.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MOMENTS)
def test_simulated_measurements_have_the_moments_of_the_model(name: str, dtype: torch.dtype) -> None:
    make, signal, mean, variance = MOMENTS[name]
    n = 100_000
    x = torch.full((1, 100, n // 100), signal, dtype=dtype)
    y = make(torch.ones_like(x)).simulate(x, torch.Generator().manual_seed(5))
    assert y.dtype == dtype
    off = y.double() - mean
    assert abs(float(off.mean())) < 5 * math.sqrt(variance / n)
    square = off.square()
    assert abs(float(square.mean()) - variance) < 5 * float(square.std()) / math.sqrt(n)


def test_moments_see_a_fault_of_a_percent_or_two() -> None:
    """The planted faults: a scale two percent off, and a mean one percent."""
    n = 100_000
    x = torch.ones(1, 100, n // 100, dtype=torch.float64)
    y = Gaussian(x, None, 0.51).simulate(x, torch.Generator().manual_seed(5)) - 1
    assert abs(float(y.square().mean()) - 0.25) > 5 * float(y.square().std()) / math.sqrt(n)
    counts = Poisson(x, None, 3.03, 0.5).simulate(2 * x, torch.Generator().manual_seed(5)) - 6.5
    assert abs(float(counts.mean())) > 5 * math.sqrt(6.5 / n)


# Parameters that vary.

VARYING: dict[str, Callable[[Tensor, Tensor], NoiseModel]] = {
    "gaussian": lambda y, p: Gaussian(y, None, p),
    "laplace": lambda y, p: Laplace(y, None, p),
    "student t, scale": lambda y, p: StudentT(y, None, p),
    "student t, dof": lambda y, p: StudentT(y, None, 0.7, p),
    "poisson, gain": lambda y, p: Poisson(y, None, p),
    "poisson, background": lambda y, p: Poisson(y, None, 1.0, p),
    "poisson-gaussian, noise": lambda y, p: PoissonGaussian(y, None, p),
    "poisson-gaussian, gain": lambda y, p: PoissonGaussian(y, None, 1.0, p),
    "poisson-gaussian, background": lambda y, p: PoissonGaussian(y, None, 1.0, 1.0, p),
    "gamma": lambda y, p: Gamma(y, None, p),
    "rician": lambda y, p: Rician(y, None, p),
    "quantised": lambda y, p: Quantised(y, None, p, 1.0),
}


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 1), (3, 4), (4,), (1,)])
@pytest.mark.parametrize("name", VARYING)
def test_parameters_may_vary_from_pixel_to_pixel(name: str, shape: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(1, 6, (2, 3, 4), generator=g).double()
    p = 0.5 + torch.rand(shape, generator=g, dtype=torch.float64)
    x = 0.5 + torch.rand(3, 2, 3, 4, generator=g, dtype=torch.float64)
    whole = VARYING[name](y, p)
    every = p.expand(2, 3, 4)
    total, normaliser = torch.zeros(3, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    grad = torch.empty_like(x)
    for c, i, j in itertools.product(range(2), range(3), range(4)):
        at = (slice(c, c + 1), slice(i, i + 1), slice(j, j + 1))
        one = VARYING[name](y[at], float(every[c, i, j]))
        total = total + one(x[:, *at])
        normaliser = normaliser + one.log_normaliser()
        grad[:, *at] = one.grad(x[:, *at])
    assert torch.allclose(whole(x), total, rtol=1e-12)
    assert torch.allclose(whole.grad(x), grad, rtol=1e-12)
    assert torch.allclose(whole.log_normaliser(), normaliser, rtol=1e-12)
    assert whole.simulate(x, g).shape == x.shape


@pytest.mark.parametrize(
    ("shape", "fits"), [((), True), ((1,), True), ((4,), True), ((3, 1), True), ((2, 3, 4), True), ((3,), False),
                        ((1, 2, 3, 4), False), ((3, 4, 1), False)],
)  # fmt: skip
def test_what_broadcasts(shape: tuple[int, ...], fits: bool) -> None:
    assert broadcasts(torch.ones(shape), torch.zeros(2, 3, 4)) == fits
    if not fits:
        with pytest.raises(ValueError, match=r"gaussian: noise_std has shape .*, expected a number or \(2, 3, 4\)"):
            likelihoods.Gaussian(torch.zeros(2, 3, 4), None, torch.ones(shape))
