"""Total variation."""

from typing import ClassVar

import torch
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._tensor import squared_magnitude, sum_event
from potentia._validate import positive


class TotalVariation(Energy):
    """Isotropic total variation, smoothed at its kink; it has no scales.

    U(x) = sum over pixels of sqrt(|dx|^2 + |dy|^2 + epsilon^2) - epsilon, with forward differences dx and dy that are
    zero in the last column and row, or wrap around there if ``periodic``. Each channel counts for itself; the parts of
    complex images count together, so that the phase of the image does not matter.

    Shapes: x (*batch, C, H, W), of any size, real or complex; returns (*batch,).
    Units: epsilon in the image's unit. U is in nats per that unit: weight it by 1 / (typical gradient).
    Raises: ValueError if epsilon is not positive.
    Source: Rudin, Osher and Fatemi 1992; smoothed as in Acar and Vogel 1994.
    """

    default_name: ClassVar[str] = "tv"

    def __init__(self, epsilon: float = 0.01, *, periodic: bool = False) -> None:
        super().__init__()
        self.epsilon = positive(self.name, "epsilon", epsilon)
        self.periodic = bool(periodic)

    def extra_repr(self) -> str:
        return f"epsilon={self.epsilon:g}" + (", periodic" if self.periodic else "")

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        squared = squared_magnitude(self._difference(x, -1)) + squared_magnitude(self._difference(x, -2))
        return self._value(squared, (squared + self.epsilon**2).sqrt())

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Minus the divergence of the differences over their smoothed magnitude."""
        return self.value_and_grad(x, sigma)[1]

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self.check(x)
        dx, dy = self._difference(x, -1), self._difference(x, -2)
        squared = squared_magnitude(dx) + squared_magnitude(dy)
        magnitude = (squared + self.epsilon**2).sqrt()
        grad = _divergence(dx / magnitude, -1)
        grad += _divergence(dy / magnitude, -2)
        return self._value(squared, magnitude), grad.neg_()

    def _value(self, squared: Tensor, magnitude: Tensor) -> Tensor:
        # magnitude - epsilon, without its cancellation where the image is flat.
        return sum_event(squared / (magnitude + self.epsilon))

    def _difference(self, x: Tensor, dim: int) -> Tensor:
        end = 0 if self.periodic else -1
        return torch.diff(x, dim=dim, append=x.narrow(dim, end, 1))


def _divergence(p: Tensor, dim: int) -> Tensor:
    """Minus the transpose of the differences; without wrapping, the last entry of p is zero: one formula for both."""
    return torch.diff(p, dim=dim, prepend=p.narrow(dim, -1, 1))
