"""The gamma likelihood: speckle, which multiplies."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from potentia._random import standard_gamma
from potentia.likelihoods._counts import deviance
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._noise import NoiseModel, noise_parameter, number_text

SHARE = 0.01


class Gamma(NoiseModel):
    """Speckled intensities y = A(x) n, n of a gamma law with mean 1 and variance 1 / looks.

    L(x) = sum of looks (y / z - 1 - log(y / z)), z = A(x), zero where z is y. ``looks`` is the number of independent
    intensities that were averaged, equivalent ones need not be whole; one look is an exponential law.

    z has to be positive. Below y / 100, where the exact density is less than exp(-94 looks) of its maximum, L goes on
    as a parabola with the value, slope and curvature there, so that it is finite for every image. The curvature is the
    Fisher information, looks / z^2.

    Shapes: y (*measurement) as A gives it; looks a number or broadcasting against y; x (*batch, C, H, W);
        returns (*batch,). Units: L in nats.
    Raises: ValueError for y that is complex, or not positive where it is measured, looks <= 0, or as ``NoiseModel``.
    Source: Goodman 1976; Aubert and Aujol 2008; the parabola is ours.
    """

    default_name: ClassVar[str] = "gamma"
    blank: ClassVar[float] = 1.0
    looks: Tensor

    def __init__(self, y: object, operator: ForwardModel | None = None, looks: Any = 1.0) -> None:
        super().__init__(y, operator)
        if not bool((self.y > 0).all()):
            bad = int((self.y <= 0).sum())
            raise ValueError(
                f"{self.name}: y has {bad} entries that are not positive, least {float(self.y.min()):g}, expected "
                "intensities above zero"
            )
        self.register_buffer("looks", noise_parameter(self.name, "looks", looks, self.y))

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        ratio = z / y
        above = ratio.clamp_min(SHARE)
        below = ratio - above
        return self.looks * (
            deviance(above, torch.ones_like(above)) / above + below * (_slope(above) + 0.5 * _STIFFNESS * below)
        )

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        ratio = z / y
        above = ratio.clamp_min(SHARE)
        return self.looks * (_slope(above) + _STIFFNESS * (ratio - above)) / y

    def curvatures(self, z: Tensor) -> Tensor:
        return self.looks / torch.maximum(z, SHARE * self.y).square()

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Intensities, positive ones: what underflows is the least positive number."""
        looks = self.looks.expand(z.shape).to(z)
        n = standard_gamma(looks, generator) / looks
        return (z * n).clamp_min(torch.finfo(z.dtype).tiny)

    def log_normalisers(self) -> Tensor:
        looks = self.looks.double()
        return torch.lgamma(looks) + looks - looks * looks.log() + self.y.double().log()

    def parameters_text(self) -> str:
        return f"looks {number_text(self.looks)}"


_STIFFNESS = 2 / SHARE**3 - 1 / SHARE**2


def _slope(ratio: Tensor) -> Tensor:
    """Derivative of 1 / ratio - 1 + log(ratio)."""
    return (ratio - 1) / ratio.square()
