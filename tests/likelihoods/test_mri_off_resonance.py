"""Time segments against the sum over pixels with each its own phase."""

import math

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia._random import standard_normal

DOUBLE = torch.complex128
H, W = 6, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=DOUBLE)


def field_map(hertz: float) -> Tensor:
    y, x = torch.linspace(-1, 1, H, dtype=torch.float64)[:, None], torch.linspace(-1, 1, W, dtype=torch.float64)
    return hertz * (torch.exp(-2 * (y - 0.3).square() - x.square()) - 0.4 * x)


def exact(operator: likelihoods.Operator, field: Tensor, times: Tensor, x: Tensor) -> Tensor:
    """Pixel by pixel: what the operator makes of it alone, times its phase at every sample's time."""
    total = torch.zeros(operator.output_shape((1, H, W)), dtype=DOUBLE)
    for i in range(H):
        for j in range(W):
            one = torch.zeros(1, H, W, dtype=DOUBLE)
            one[0, i, j] = x[0, i, j]
            total += torch.exp(-2j * math.pi * field[i, j] * times) * operator(one)
    return total


def operators() -> list[tuple[likelihoods.Operator, Tensor]]:
    columns = 5e-3 * torch.linspace(0, 1, H, dtype=torch.float64)[:, None]
    echo = 5e-3 * torch.linspace(-0.5, 0.5, W, dtype=torch.float64)
    return [(likelihoods.Sense(normal(2, H, W)), columns), (likelihoods.Fourier(torch.eye(H, W)), echo)]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(("hertz", "segments", "most"), [(50.0, 4, 1e-3), (50.0, 8, 1e-7), (300.0, 8, 2e-3)])
def test_the_error_is_what_is_stated(which: int, hertz: float, segments: int, most: float) -> None:
    operator, times = operators()[which]
    field, x = field_map(hertz), normal(1, H, W, seed=1)
    approximate = likelihoods.OffResonance(operator, field, times, segments)
    difference = (approximate(x) - exact(operator, field, times, x)).abs()
    # Each pixel's share is off by the stated error at the most.
    scale = float(operator(torch.eye(H * W, dtype=DOUBLE).reshape(-1, 1, H, W)).abs().max() * x.abs().sum())
    assert approximate.error < most
    assert float(difference.max()) <= approximate.error * scale + 1e-12


def test_the_stated_error_is_not_beside_the_point() -> None:
    """One pixel alone attains it: the planted fault would be a bound that is never met."""
    operator, times = operators()[1]
    field = field_map(300.0)
    approximate = likelihoods.OffResonance(operator, field, times, 3)
    worst = 0.0
    for index in range(H * W):
        one = torch.zeros(1, H, W, dtype=DOUBLE)
        one.view(-1)[index] = 1
        ratio = (approximate(one) - exact(operator, field, times, one)).abs() * math.sqrt(H * W)
        worst = max(worst, float(ratio.max()))
    taken = (torch.eye(H, W) > 0).any(0)  # every column is sampled once
    assert bool(taken.all())
    assert 0.99 * approximate.error < worst <= 1.01 * approximate.error


def test_on_resonance_nothing_changes() -> None:
    operator, times = operators()[0]
    x = normal(1, H, W)
    approximate = likelihoods.OffResonance(operator, torch.zeros(H, W), times, 3)
    assert torch.allclose(approximate(x), operator(x), atol=1e-6)
    constant = likelihoods.OffResonance(operator, torch.full((H, W), 40.0, dtype=torch.float64), times, 1)
    assert torch.allclose(constant(x), torch.exp(-2j * math.pi * 40.0 * times) * operator(x), atol=1e-12)


def test_more_segments_are_better() -> None:
    operator, times = operators()[0]
    errors = [likelihoods.OffResonance(operator, field_map(200.0), times, n).error for n in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < errors[0]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(real=True), f, t), "takes real images"),
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(), f[0], t), r"expected real \(H, W\)"),
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(), f, t[None, None, None]), "3 dimensions"),
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(), f, t, 0), "segments must be at least 1"),
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(), f, t[:3]).output_shape((1, H, W)), "broadcast"),
        (lambda f, t: likelihoods.OffResonance(likelihoods.Fourier(), f, t).output_shape((1, W, H)), "the image"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(field_map(50.0), torch.linspace(0, 1e-3, W, dtype=torch.float64))  # type: ignore[operator]
