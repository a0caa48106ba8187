"""Counts of particles: rates, what happens where they are not positive, and the deviance of a Poisson variable."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._noise import NoiseModel, noise_parameter, number_text

FLOOR = 1e-3
_SERIES = 9  # terms of the series of log((1 + v) / (1 - v)), to double precision for |v| < 0.1


class CountNoise(NoiseModel):
    """Noise of counts with expectation ``rate = gain * A(x) + background``.

    Subclasses give l and its derivative as functions of a positive rate. Below ``FLOOR`` = 1e-3 counts l goes on as a
    parabola with its value and slope there and curvature max(y, 1) / FLOOR^2: that of l where y > 0. The exact l, which
    is infinite for rates below zero, would refuse every proposal of an image that has one such pixel and has no
    gradient to lead back; the parabola is convex, is finite in single precision, and leaves a share of about FLOOR of
    an unmeasured pixel's (y = 0) probability outside, less than FLOOR^2 of one with counts.
    """

    gain: Tensor
    background: Tensor

    def __init__(self, y: object, operator: ForwardModel | None = None, gain: Any = 1.0, background: Any = 0.0) -> None:
        super().__init__(y, operator)
        self.register_buffer("gain", noise_parameter(self.name, "gain", gain, self.y))
        self.register_buffer("background", noise_parameter(self.name, "background", background, self.y, zero=True))

    @abstractmethod
    def _value(self, rate: Tensor, y: Tensor) -> Tensor:
        """The entry at rates of ``FLOOR`` or more."""

    @abstractmethod
    def _slope(self, rate: Tensor, y: Tensor) -> Tensor:
        """Its derivative at rates of ``FLOOR`` or more."""

    def rate(self, z: Tensor) -> Tensor:
        """Expected counts."""
        return self.gain * z + self.background

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        rate = self.rate(z)
        above = rate.clamp_min(FLOOR)
        below = rate - above
        return self._value(above, y) + below * (self._slope(above, y) + 0.5 * _stiffness(y) * below)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        rate = self.rate(z)
        above = rate.clamp_min(FLOOR)
        return self.gain * (self._slope(above, y) + _stiffness(y) * (rate - above))

    def parameters_text(self) -> str:
        return f"gain {number_text(self.gain)}, background {number_text(self.background)}"


def _stiffness(y: Tensor) -> Tensor:
    return y.clamp_min(1.0) / FLOOR**2


def deviance(a: Tensor, b: Tensor) -> Tensor:
    """Zero or more: a log(a / b) - a + b for a >= 0 and b > 0, without cancellation where the two are close.

    Source: Loader 2000, Fast and accurate computation of binomial probabilities.
    """
    v = (a - b) / (a + b)
    square = v.square()
    series = torch.zeros_like(v)
    for j in range(_SERIES, 0, -1):
        series = square * (series + 1 / (2 * j + 1))
    near = v * ((a - b) + 2 * a * series)
    return torch.where(v.abs() < 0.1, near, torch.xlogy(a, a / b) + (b - a))
