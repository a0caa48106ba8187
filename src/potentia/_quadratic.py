"""The exact quadratic form of a potential."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._random import Generators
from potentia._structure import Diagonal, Fourier, MatrixFree, Shift, Structure
from potentia._tensor import inner

__all__ = ["Diagonal", "Fourier", "MatrixFree", "Quadratic", "Structure"]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """U(x) = 1/2 <x, Λ x> - Re <b, x> + c: a Gaussian with precision Λ, in nats.

    ``structure`` is Λ as a Diagonal, Fourier or MatrixFree operator; ``linear`` is b, whose dtype says whether images
    are real or complex; ``constant`` is c.

    Shapes: images (*batch, C, H, W); linear broadcasts against them.
    """

    structure: Structure
    linear: Tensor
    constant: Tensor | float = 0.0

    def value(self, x: Tensor) -> Tensor:
        """U(x), shape (*batch,)."""
        return 0.5 * inner(x, self.structure.apply(x)) - inner(self.linear, x) + self.constant

    def grad(self, x: Tensor) -> Tensor:
        """Λ x - b, shape of x."""
        return self.structure.apply(x) - self.linear

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        """Solve ``(Λ + shift I) z = rhs``.

        Shapes: rhs (*batch, C, H, W); shift a number, or broadcasting against rhs.
        Raises: ValueError if Λ + shift I is singular. Warns: ConvergenceWarning where CG does not meet its tolerance.
        """
        return self.structure.solve(rhs, shift)

    def draw(self, generator: Generators, shape: Sequence[int], shift: Shift = 0.0) -> Tensor:
        """Draw from N(0, (Λ + shift I)^-1), each part of complex images with that covariance.

        Shapes: ``shape`` (*batch, C, H, W).
        """
        return self.structure.draw(generator, shape, shift, dtype=self.linear.dtype)

    def mode(self, shift: Shift = 0.0) -> Tensor:
        """(Λ + shift I)^-1 b, the minimiser of U + shift/2 ||x||^2.

        Shapes: returns the shape of ``linear``.
        """
        return self.structure.solve(self.linear, shift)

    def to(self, dtype: torch.dtype) -> "Quadratic":
        """Convert to the precision of ``dtype``."""
        linear = self.linear.to(dtype.to_complex() if self.linear.is_complex() else dtype.to_real())
        return Quadratic(self.structure.to(dtype), linear, self.constant)

    def __add__(self, other: "Quadratic") -> "Quadratic":
        """Add two forms: precisions, linear terms and constants add up.

        Raises: ValueError if one form is of real and the other of complex images.
        """
        if not isinstance(other, Quadratic):
            return NotImplemented
        if self.linear.is_complex() != other.linear.is_complex():
            raise ValueError("a quadratic form of real images and one of complex images cannot be added")
        return Quadratic(self.structure + other.structure, self.linear + other.linear, self.constant + other.constant)

    def __mul__(self, weight: float) -> "Quadratic":
        """Scale by a weight of zero or more."""
        return Quadratic(self.structure * weight, self.linear * weight, self.constant * weight)

    __rmul__ = __mul__
