"""Sparse coefficients in an orthonormal basis."""

from typing import ClassVar

import torch
from torch import Tensor

from potentia._potential import Energy, Sigma
from potentia._tensor import squared_magnitude, sum_event
from potentia._validate import positive
from potentia.energies._transforms import Transform, Wavelet


class Sparsity(Energy):
    """Smoothed l1 norm of an orthonormal transform's coefficients; it has no scales.

    U(x) = sum over coefficients c = W x of sqrt(|c|^2 + epsilon^2) - epsilon. The coarsest approximation (the
    zero frequency of a cosine transform) goes free unless ``penalise_coarse``, since nothing is sparse about it.

    Shapes: x (*batch, C, H, W), real or complex, of a size that the transform takes; returns (*batch,).
    Units: epsilon in the image's unit. U is in nats per that unit: weight it by 1 / (typical coefficient).
    Raises: ValueError if epsilon is not positive; ImportError without PyWavelets (wavelets) or SciPy (cosines).
    Source: Chen, Donoho and Saunders 1998; the smoothing is ours.
    """

    default_name: ClassVar[str] = "sparsity"

    def __init__(
        self, transform: Transform | None = None, epsilon: float = 0.01, *, penalise_coarse: bool = False
    ) -> None:
        super().__init__()
        self.transform: Transform = Wavelet() if transform is None else transform
        self.epsilon = positive(self.name, "epsilon", epsilon)
        self.penalise_coarse = bool(penalise_coarse)

    def extra_repr(self) -> str:
        return f"{self.transform!r}, epsilon={self.epsilon:g}"

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        squared = squared_magnitude(self._coefficients(x))
        return self._value(squared, (squared + self.epsilon**2).sqrt())

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """W^T of the coefficients over their smoothed magnitude."""
        return self.value_and_grad(x, sigma)[1]

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        c = self._coefficients(x)
        squared = squared_magnitude(c)
        magnitude = (squared + self.epsilon**2).sqrt()
        return self._value(squared, magnitude), self.transform.synthesise(c / magnitude)

    def _coefficients(self, x: Tensor) -> Tensor:
        """W x, with zeros for what goes free."""
        self.check(x)
        c = self.transform.analyse(x)
        if self.penalise_coarse:
            return c
        h, w = self.transform.coarse(*x.shape[-2:])
        counts = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
        counts[:h, :w] = False
        return torch.where(counts, c, 0.0)

    def _value(self, squared: Tensor, magnitude: Tensor) -> Tensor:
        # magnitude - epsilon, without its cancellation for small coefficients.
        return sum_event(squared / (magnitude + self.epsilon))
