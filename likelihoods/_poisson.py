"""The Poisson likelihood: counts of photons or of decays."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from potentia.likelihoods._counts import FLOOR, CountNoise, deviance
from potentia.likelihoods._forward_model import ForwardModel


class Poisson(CountNoise):
    """Counts y ~ Poisson(gain * A(x) + background), each independent of the others.

    L(x) = sum of rate - y + y log(y / rate), zero where the rates are the counts: half the deviance. ``gain`` is the
    expected counts for a unit of A(x) (exposure time, photon level), ``background`` the counts expected without the
    object (dark current, scatter, randoms). Below a rate of 1e-3 counts L goes on as a parabola, see ``CountNoise``: a
    background of 1e-3 or more keeps images with A(x) >= 0 out of it.

    Its curvature is the Fisher information gain^2 / rate.

    Shapes: y (*measurement) as A gives it; gain and background numbers or broadcasting against y;
        x (*batch, C, H, W); returns (*batch,). Units: y and background in counts; L in nats.
    Raises: ValueError for y that is negative, not whole or complex, gain <= 0, background < 0, or as ``NoiseModel``.
    Source: Shepp and Vardi 1982; the background as in Qi and Leahy 2006, eq. 1; the parabola is ours.
    """

    default_name: ClassVar[str] = "poisson"

    def __init__(self, y: object, operator: ForwardModel | None = None, gain: Any = 1.0, background: Any = 0.0) -> None:
        super().__init__(y, operator, gain, background)
        if bool((self.y < 0).any()) or bool((self.y != self.y.round()).any()):
            bad = self.y[(self.y < 0) | (self.y != self.y.round())]
            raise ValueError(
                f"{self.name}: y has {bad.numel()} entries that are no counts, such as {float(bad[0]):g}; expected "
                "whole numbers of 0 or more, with the scale of a camera in gain"
            )

    def _value(self, rate: Tensor, y: Tensor) -> Tensor:
        return deviance(y, rate)

    def _slope(self, rate: Tensor, y: Tensor) -> Tensor:
        return (rate - y) / rate

    def curvatures(self, z: Tensor) -> Tensor:
        return self.gain.square() / self.rate(z).clamp_min(FLOOR)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Counts; a rate below zero counts as zero."""
        return torch.poisson(self.rate(z).clamp_min(0.0), generator=generator)

    def log_normalisers(self) -> Tensor:
        y = self.y.double()
        return torch.lgamma(y + 1) + y - torch.xlogy(y, y)
