"""Precisions inverted in closed form, where the operator's A A^H is diagonal in space or in Fourier space."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potentia._quadratic import Fourier, MatrixFree, Structure
from potentia._random import Generators
from potentia._tensor import EVENT_DIMS, filter_plane

Shift = float | Tensor


@dataclass(frozen=True, eq=False)
class Woodbury(Structure):
    """Λ = A^H W A for an A whose A A^H = G commutes with W and is known: diagonal, or so in Fourier space.

    Then (Λ + shift I)^-1 = (I - A^H (W / (shift I + W G)) A) / shift. Shifts of zero, and those that vary over the
    image, take conjugate gradients; so do draws only for the latter: they are perturb and solve.

    Shapes: weight broadcasts against measurements, constant over the plane if ``in_fourier``; outer is the diagonal of
        G, broadcasting against measurements, or its spectrum, zero frequency first; ``dims`` those of a measurement.
    Source: Woodbury 1950; for super-resolution Zhao et al. 2016, Fast single image super-resolution.
    """

    free: MatrixFree
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    weight: Tensor
    outer: Tensor
    in_fourier: bool
    dims: int = EVENT_DIMS

    def apply(self, x: Tensor) -> Tensor:
        return self.free.apply(x)

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        at_images, at_measurements = shift, shift
        if isinstance(shift, Tensor) and shift.dim() > 0:
            if any(n != 1 for n in shift.shape[-EVENT_DIMS:]):
                return self.free.solve(rhs, shift)
            at_measurements = shift.reshape(*shift.shape[:-EVENT_DIMS], *(1,) * self.dims)
        elif not shift > 0:
            return self.free.solve(rhs, shift)
        middle = self.weight / (at_measurements + self.weight * self.outer)
        y = self.forward(rhs)
        inner = filter_plane(y, middle) if self.in_fourier else middle * y
        return (rhs - self.adjoint(inner)) / at_images

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return self.free.white(generator, shape, dtype=dtype)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        return self.free.perturb(white, shift)

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        return self.free.noise(generator, shape, dtype=dtype)

    def circulant(self) -> Fourier | None:
        return self.free.circulant()

    def with_tolerance(self, tolerance: float | None) -> "Woodbury":
        return replace(self, free=self.free.with_tolerance(tolerance))

    def __mul__(self, weight: float) -> "Woodbury":
        return replace(self, free=self.free * weight, weight=self.weight * weight)

    def to(self, dtype: torch.dtype) -> "Woodbury":
        real = dtype.to_real()
        return replace(self, free=self.free.to(dtype), weight=self.weight.to(real), outer=self.outer.to(real))
