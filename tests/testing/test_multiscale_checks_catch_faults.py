"""What ``check_multiscale`` and ``check_gaussian_oracle`` check is broken on purpose, and caught by its name."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from potentia import Energy, ScoreOnly, testing
from potentia._potential import Sigma
from potentia._random import standard_normal
from potentia._tensor import squared_norm

Make = Callable[[], Any]
Check = Callable[[Any], None]


def caught(check: Check, faulty: Any, says: str) -> None:
    """Run a check on something faulty and see that it says so: which identity, what was got and expected."""
    with pytest.raises(AssertionError, match=says) as error:
        check(faulty)
    assert type(faulty).__name__ in str(error.value) or "Sum" in str(error.value)
    assert " got " in str(error.value)
    assert ", expected " in str(error.value)


SHAPE = (1, 3, 4)


SIZE = 12


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


class Smooth(Energy):
    """A Gaussian of variance 1/2, with scales."""

    mean: Tensor
    variance: ClassVar[float] = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", rand(*SHAPE, seed=2))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 5.0

    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        return self.variance + self.sigma_of(x, sigma) ** 2

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return 0.5 * squared_norm((x - self.mean) / self.spread(x, sigma) ** 0.5)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        with torch.no_grad():
            return ((x - self.mean) / self.spread(x, sigma)).to(x.dtype)


class Score(ScoreOnly):
    """The same Gaussian, without values."""

    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 5.0

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return x.detach() / (1 + 2 * self.sigma_of(x, sigma) ** 2)


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
