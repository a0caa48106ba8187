"""What ``check_multiscale`` and ``check_gaussian_oracle`` check is broken on purpose, and caught by its name."""

import pytest
import torch
from fault_toys import SHAPE, Check, Make, Score, Smooth, caught, rand
from torch import Tensor

from potentia import Energy, testing
from potentia._potential import Sigma

SIZE = 12


class DenoiserFactor(Smooth):
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return x.detach() - self.sigma_of(x, sigma) * self.grad(x, sigma)


class Rotating(Smooth):
    """A field that is nobody's gradient."""

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().grad(x, sigma) + 0.01 * (x.detach().roll(1, -1) - x.detach().roll(-1, -1))


class RotatingScore(Score):
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().denoise(x, sigma) + 0.01 * (x.detach().roll(1, -1) - x.detach().roll(-1, -1))


class JumpsAtFinest(Smooth):
    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        s = self.sigma_of(x, sigma)
        return 0.5 + s**2 + 0.1 * (s == self.scales[0])


class JumpsInside(Smooth):
    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        s = self.sigma_of(x, sigma)
        return 0.5 + s**2 + 0.1 * (s > 0.4)


class DenoisesAllAtOnce(Smooth):
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return super().denoise(x, float(sigma.max()) if isinstance(sigma, Tensor) else sigma)


class AddsStds(Smooth):
    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        return (self.variance**0.5 + self.sigma_of(x, sigma)) ** 2


class OtherMean(Smooth):
    def __init__(self) -> None:
        super().__init__()
        self.mean += 0.001


class OracleDenoiser(Smooth):
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 1.001 * super().denoise(x, sigma)


class OracleValue(Smooth):
    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 1.001 * super().forward(x, sigma)


def multiscale(thing: Energy) -> None:
    testing.check_multiscale(thing, rand(2, *SHAPE, seed=5), 0.4)


def conservative(thing: Energy) -> None:
    testing.check_multiscale(thing, rand(2, *SHAPE, seed=5), 0.4, conservative=True)


def oracle(thing: Energy) -> None:
    covariance = 0.5 * torch.eye(SIZE, dtype=torch.float64)
    testing.check_gaussian_oracle(thing, rand(*SHAPE, seed=2), covariance, rand(3, *SHAPE, seed=5), 0.4)


FAULTS = [
    ("denoiser with sigma for sigma^2", multiscale, DenoiserFactor, Smooth, "denoise"),
    ("denoiser with one sigma for all", multiscale, DenoisesAllAtOnce, Smooth, "one scale per image"),
    ("jump between scales", multiscale, JumpsInside, Smooth, "continuous in sigma"),
    ("not conservative", multiscale, Rotating, Smooth, "symmetric"),
    ("score not conservative", conservative, RotatingScore, Score, "symmetric"),
    ("jump at the finest scale", multiscale, JumpsAtFinest, Smooth, "finest"),
    ("stds add up", oracle, AddsStds, Smooth, "gradient"),
    ("oracle, mean", oracle, OtherMean, Smooth, "gradient"),
    ("oracle, denoiser", oracle, OracleDenoiser, Smooth, "denoiser"),
    ("oracle, value", oracle, OracleValue, Smooth, "value"),
]


@pytest.mark.parametrize(("check", "faulty", "says"), [f[1:3] + f[4:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_scales_is_caught_by_its_name(check: Check, faulty: Make, says: str) -> None:
    caught(check, faulty(), says)


@pytest.mark.parametrize(("check", "sound"), list(dict.fromkeys((f[1], f[3]) for f in FAULTS)))
def test_sound_scales_pass(check: Check, sound: Make) -> None:
    check(sound())
