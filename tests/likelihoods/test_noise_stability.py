"""Noise models in single precision: finite for signals up to a million, and as near as the format allows."""

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods import NoiseModel
from potentia.likelihoods._counts import FLOOR, deviance
from potentia.likelihoods._poisson_gaussian import saddle_point
from potentia.likelihoods._quantised import _log_mass, _pull
from potentia.likelihoods._rician import _one_less_ratio

EPS = torch.finfo(torch.float32).eps
counts = st.one_of(st.sampled_from([0, 1, 2, 10**6]), st.integers(0, 10**6)).map(float)
signals = st.one_of(
    st.sampled_from([0.0, 1e-30, -1e-3, 1e-3, 1.0, 1e6, -1e6]),
    st.floats(-1e6, 1e6, width=32),
    st.floats(-2, 2, width=32),
)
levels = st.sampled_from([1e-2, 0.3, 1.0, 17.0, 1e3])

MODELS: dict[str, Callable[[Tensor, float], NoiseModel]] = {
    "gaussian": lambda y, s: likelihoods.Gaussian(y, None, s),
    "laplace": lambda y, s: likelihoods.Laplace(y, None, s),
    "student t": lambda y, s: likelihoods.StudentT(y, None, s, 1.5),
    "poisson": lambda y, s: likelihoods.Poisson(y, None, s),
    "poisson, background": lambda y, s: likelihoods.Poisson(y, None, 1.0, s),
    "poisson-gaussian": lambda y, s: likelihoods.PoissonGaussian(y, None, s, 2.0, 0.1),
    "gamma": lambda y, s: likelihoods.Gamma(y + 1e-3, None, s),
    "rician": lambda y, s: likelihoods.Rician(y, None, s),
    "quantised": lambda y, s: likelihoods.Quantised(y, None, s, 1.0),
    "quantised, clipped": lambda y, s: likelihoods.Quantised(y.clamp(0, 255), None, s, 1.0, low=0.0, high=255.0),
}


def one(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=dtype)


@pytest.mark.parametrize("name", MODELS)
@given(y=counts, z=signals, level=levels)
def test_values_and_gradients_are_finite_in_single_precision(name: str, y: float, z: float, level: float) -> None:
    likelihood = MODELS[name](one(y), level)
    value, grad = likelihood.value_and_grad(one(z))
    assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(grad).all())
    curvature = likelihood.curvatures(one(z))
    assert bool((torch.isfinite(curvature) & (curvature >= 0)).all())
    at = one(z).requires_grad_(True)
    (through,) = torch.autograd.grad(likelihood(at), at)
    assert torch.equal(through, grad) or torch.allclose(through, grad, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@given(y=counts, z=signals, level=levels)
def test_single_precision_is_as_near_as_the_signal_is_known(name: str, y: float, z: float, level: float) -> None:
    """Against double precision at the same numbers: rounding z or y once is worth this much."""
    single = MODELS[name](one(y), level)
    double = MODELS[name](one(y), level).double()
    double.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    at = one(z).double()
    value, grad = double.value_and_grad(at)
    room = torch.maximum(at.abs(), one(y).double().abs()) + double_offset(double)
    near = [double.value_and_grad(at + s * EPS * room) for s in (-1, 1)]
    moved = max(float((v - value).abs()) for v, _ in near)
    turned = max(float((g - grad).abs()) for _, g in near)
    got, slope = single.value_and_grad(one(z))
    assert abs(float(got - value)) <= 8 * moved + 20 * EPS * (float(value.abs()) + 1)
    assert abs(float(slope.double() - grad)) <= 8 * turned + 60 * EPS * float(grad.abs()) + 4 * EPS / level


def double_offset(likelihood: NoiseModel) -> float:
    background = getattr(likelihood, "background", None)
    gain = getattr(likelihood, "gain", None)
    return 0.0 if background is None or gain is None else float(background / gain)


@given(a=st.floats(0, 1e6), ratio=st.floats(-0.2, 0.2), far=st.floats(1e-3, 1e6))
def test_the_deviance_is_exact_near_and_far(a: float, ratio: float, far: float) -> None:
    for b in (max(a * (1 + ratio), 1e-3), far):
        with mpmath.workdps(60):
            x, y = mpmath.mpf(a), mpmath.mpf(b)
            want = (x * mpmath.log(x / y) if a > 0 else mpmath.mpf(0)) - x + y
        got = deviance(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
        assert float(got) == pytest.approx(float(want), rel=1e-13, abs=1e-300)


def naive(a: Tensor, b: Tensor) -> Tensor:
    return torch.xlogy(a, a / b) - a + b


def test_the_plain_formula_would_not_do() -> None:
    a, b = torch.tensor(1e6), torch.tensor(1e6 + 100.0)
    want = float(deviance(a.double(), b.double()))
    assert abs(float(deviance(a, b)) / want - 1) < 1e-6
    assert abs(float(naive(a, b)) / want - 1) > 1e-2


def tail(t: Any) -> Any:
    return mpmath.erfc(t / mpmath.sqrt(2)) / 2


WIDTHS = [1e-6, 1e-3, 0.3, 0.99, 1.0, 1.01, 2.0, 6.0, 30.0, 1e3]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 5e-14), (torch.float32, 5e-6)])
@pytest.mark.parametrize("width", WIDTHS)
def test_interval_probabilities_in_the_tails(width: float, dtype: torch.dtype, most: float) -> None:
    for centre in (0.0, 1e-6, 1e-3, 0.4, 0.5, 0.51, 1.0, 2.0, 5.0, 12.0, 50.0, 200.0):
        c, h = torch.tensor(centre, dtype=dtype), torch.tensor(width, dtype=dtype)
        with mpmath.workdps(150):
            x, w = mpmath.mpf(float(c)), mpmath.mpf(float(h))
            mass = tail(x - w / 2) - tail(x + w / 2)
            log_mass = mpmath.log(mass)
            slope = (mpmath.npdf(x - w / 2) - mpmath.npdf(x + w / 2)) / mass
            got, pull = float(_log_mass(c, h)), float(_pull(c, h))
            smallest = torch.finfo(dtype).tiny
            assert abs(got - log_mass) <= most * abs(log_mass) + smallest
            assert abs(pull - slope) <= most * abs(slope) + smallest


@given(st.floats(1e-3, 1e6), st.floats(-1e3, 1e6), st.floats(1e-2, 1e3))
def test_the_saddle_point_solves_its_equation(rate: float, y: float, std: float) -> None:
    for dtype in (torch.float64, torch.float32):
        r, d, v = (torch.tensor(n, dtype=dtype) for n in (rate, y, std**2))
        t = saddle_point(r, d, v)
        # How far off the right-hand side is, in terms of t.
        with mpmath.workdps(40):
            r64, d64, v64, t64 = (mpmath.mpf(float(n)) for n in (r, d, v, t))
            tilted = r64 * mpmath.exp(t64)
            off = (tilted + v64 * t64 - d64) / (tilted + v64)
        eps = torch.finfo(dtype).eps
        # The rounding of y - rate, which is inherent, and of t itself.
        slack = 4 * eps * (abs(y - rate) / (float(tilted) + std**2) + abs(float(t)))
        assert abs(float(off)) <= slack + 2 * eps


@given(st.floats(0, 1e8))
def test_the_ratio_of_bessel_functions(u: float) -> None:
    with mpmath.workdps(40):
        want = 1 - mpmath.besseli(1, u) / mpmath.besseli(0, u) if u < 1e5 else _asymptotic(u)
    got = float(_one_less_ratio(torch.tensor(u, dtype=torch.float64)))
    assert got == pytest.approx(float(want), rel=1e-12)


def _asymptotic(u: float) -> Any:
    w = 1 / mpmath.mpf(u)
    return w / 2 + w**2 / 8 + w**3 / 8


def test_rates_below_the_floor_go_on_as_a_parabola() -> None:
    likelihood = likelihoods.Poisson(torch.tensor([[[0.0, 5.0]]], dtype=torch.float64))
    for k in (0, 1):
        y = likelihood.y[0, 0, k]
        at = torch.tensor([FLOOR * (1 - 1e-9), FLOOR * (1 + 1e-9)], dtype=torch.float64)
        value = likelihood.entries(at, y.expand(2))
        slope = likelihood.slopes(at, y.expand(2))
        assert float((value[1] - value[0]).abs()) < 1e-7
        assert float((slope[1] - slope[0]).abs()) < 1e-4 * (1 + float(slope.abs().max()))
    below = torch.linspace(-3, FLOOR, 100, dtype=torch.float64)
    slopes = likelihood.slopes(below, torch.zeros_like(below))
    assert bool((slopes.diff() > 0).all())
    assert float(slopes[0]) < -1e5


def test_little_probability_lies_below_the_floor() -> None:
    x = torch.linspace(-0.1, 60, 600_001, dtype=torch.float64)
    for y in (0.0, 1.0, 3.0):
        density = (-likelihoods.Poisson(one(y, torch.float64)).entries(x, torch.full_like(x, y))).exp()
        outside = float(density[x < FLOOR].sum() / density.sum())
        assert outside < (3 * FLOOR if y == 0 else 2 * FLOOR**2)


@pytest.mark.parametrize("y", [1e-3, 1.0, 1e6])
def test_gamma_goes_on_where_its_density_is_gone(y: float) -> None:
    likelihood = likelihoods.Gamma(one(y, torch.float64), None, 1.0)
    x = torch.tensor([0.01 * y * (1 - 1e-7), 0.01 * y * (1 + 1e-7)], dtype=torch.float64)
    value, slope = (f(x, torch.full_like(x, y)) for f in (likelihood.entries, likelihood.slopes))
    assert float(value.min()) > 94
    assert torch.allclose(value[0], value[1], rtol=1e-4)
    assert torch.allclose(slope[0], slope[1], rtol=1e-4)
    assert math.isclose(float(likelihood(one(y, torch.float64))), 0.0, abs_tol=1e-15)
