"""Additive noise with heavy tails: Student's t and Laplace."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from potentia._random import standard_gamma, standard_normal
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._noise import AdditiveNoise, noise_parameter, number_text


class Laplace(AdditiveNoise):
    """Laplace noise, L(x) = sum of |A(x) - y| / scale: outliers pull no harder than small residuals.

    Of complex measurements, real and imaginary part each have such noise. The gradient of |r| at r = 0 is taken as 0,
    the subgradient of least norm. The curvature is the Fisher information, 1 / scale^2.

    The noise has std sqrt(2) scale. L is homogeneous of degree 1, so that ``inference.Homogeneous`` knows the
    normaliser of its weight 1 / scale.

    Shapes: y (*measurement) as A gives it; scale a number or broadcasting against y; x (*batch, C, H, W);
        returns (*batch,). Units: y and scale share the data's unit; L is in nats.
    Raises: TypeError without a scale; ValueError if scale <= 0, or as ``NoiseModel``.
    """

    default_name: ClassVar[str] = "laplace"
    degree: ClassVar[float | None] = 1.0

    def _value(self, r: Tensor) -> Tensor:
        return r.abs()

    def _slope(self, r: Tensor) -> Tensor:
        # torch takes the sign of NaN for zero.
        return torch.where(r.isnan(), r, r.sign())

    def curvatures(self, z: Tensor) -> Tensor:
        return self.scale.reciprocal().square()

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Differences of two exponential variables, each part for itself."""
        # A complex standard exponential in place of the normal ones, twice.
        shape = (*z.shape, 2) if z.is_complex() else tuple(z.shape)
        pair = torch.empty(2, *shape, dtype=z.dtype.to_real(), device=z.device).exponential_(generator=generator)
        n = pair[0] - pair[1]
        return z + self.scale * (torch.view_as_complex(n) if z.is_complex() else n)

    def log_normalisers(self) -> Tensor:
        return (2 * self.scale.double()).log()


class StudentT(AdditiveNoise):
    """Student's t noise, L(x) = sum of (dof + 1) / 2 log(1 + r^2 / dof), r = (A(x) - y) / scale.

    Outliers beyond some scales hardly pull at all: L is not convex in A(x). Of complex measurements, real and imaginary
    part each have such noise. The curvature is the Fisher information, (dof + 1) / ((dof + 3) scale^2).

    The noise has std scale sqrt(dof / (dof - 2)) for dof > 2, and an infinite one otherwise. A weight on L is another
    dof and not another scale: for an unknown scale use ``with_scale``.

    Shapes: y (*measurement) as A gives it; scale and dof numbers or broadcasting against y; x (*batch, C, H, W);
        returns (*batch,). Units: y and scale share the data's unit; L is in nats.
    Raises: TypeError without a scale; ValueError if scale or dof <= 0, or as ``NoiseModel``.
    Source: Lange, Little and Taylor 1989.
    """

    default_name: ClassVar[str] = "student_t"
    dof: Tensor

    def __init__(self, y: object, operator: ForwardModel | None = None, scale: Any = None, dof: Any = 4.0) -> None:
        super().__init__(y, operator, scale)
        self.register_buffer("dof", noise_parameter(self.name, "dof", dof, self.y))

    def _value(self, r: Tensor) -> Tensor:
        return 0.5 * (self.dof + 1) * torch.log1p(r.square() / self.dof)

    def _slope(self, r: Tensor) -> Tensor:
        return (self.dof + 1) * r / (self.dof + r.square())

    def curvatures(self, z: Tensor) -> Tensor:
        return (self.dof + 1) / ((self.dof + 3) * self.scale.square())

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Normal variables over the root of a chi-square one, each part for itself."""
        n = standard_normal(z.shape, generator, dtype=z.dtype, device=z.device)
        parts = torch.view_as_real(n) if z.is_complex() else n
        half = 0.5 * self.dof.expand(z.shape)
        half = half[..., None].expand(parts.shape) if z.is_complex() else half
        parts = parts / (standard_gamma(half.to(parts), generator) / half).sqrt()
        return z + self.scale * (torch.view_as_complex(parts) if z.is_complex() else parts)

    def log_normalisers(self) -> Tensor:
        dof, scale = self.dof.double(), self.scale.double()
        return torch.lgamma(dof / 2) - torch.lgamma((dof + 1) / 2) + 0.5 * (math.pi * dof).log() + scale.log()

    def parameters_text(self) -> str:
        return f"{super().parameters_text()}, dof {number_text(self.dof)}"
