"""A prior of images whose slope changes little."""

from typing import ClassVar

import torch
from torch import Tensor

import potentia as pt


class Curvature(pt.Energy):
    """U(x) = weight * sum of sqrt(1 + (d / scale)^2) - 1 over the second differences d along rows and columns.

    A parabola in d for curvatures below ``scale``, a straight line for larger ones: ramps cost nothing, and few sharp
    bends cost less than many soft ones. An image of fewer than three rows or columns has no curvature that way.

    Shapes: x (*batch, C, H, W), real; returns (*batch,), float64. Units: scale in the image's unit; U in nats.
    Raises: ValueError if weight or scale is not above zero.
    """

    default_name: ClassVar[str] = "curvature"

    def __init__(self, weight: float = 1.0, scale: float = 0.1) -> None:
        super().__init__()
        if not (weight > 0 and scale > 0):
            raise ValueError(f"{self.name}: weight is {weight:g} and scale is {scale:g}, expected both above 0")
        self.weight, self.scale = weight, scale

    @property
    def is_complex(self) -> bool:
        """Real images only."""
        return False

    def forward(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """U(x) in nats; sigma is ignored. (*batch, C, H, W) -> (*batch,)."""
        self.check(x)
        rows, columns = (self._cost(bends(x, dim)) for dim in (-1, -2))
        return self.weight * (rows + columns)

    def _cost(self, d: Tensor) -> Tensor:
        return ((1 + (d / self.scale) ** 2).sqrt() - 1).sum((-3, -2, -1)).double()

    def value_and_grad(self, x: Tensor, sigma: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        """U and its gradient in closed form: that of every second difference, handed to its three pixels."""
        with torch.no_grad():
            value, grad = self(x), torch.zeros_like(x)
            for dim in (-1, -2):
                d = bends(x, dim)
                slope = self.weight * d / (self.scale**2 * (1 + (d / self.scale) ** 2).sqrt())
                n = d.shape[dim]
                for start, factor in ((0, 1), (1, -2), (2, 1)):
                    grad.narrow(dim, start, n).add_(factor * slope)
        return value, grad

    def extra_repr(self) -> str:
        """The parameters, for the printed tree."""
        return f"weight {self.weight:g}, scale {self.scale:g}"


def bends(x: Tensor, dim: int) -> Tensor:
    """Second differences along a dimension, two fewer than pixels, or none."""
    if x.shape[dim] < 3:
        return x.narrow(dim, 0, 0)
    return torch.diff(x, n=2, dim=dim)
