"""The Gaussian with independent pixels."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from potentia._potential import Energy, Scales, Sigma
from potentia._quadratic import Diagonal, Quadratic
from potentia._random import Generators, standard_normal
from potentia._tensor import EVENT_DIMS, inner, squared_norm, sum_event
from potentia._validate import positive, same_shape, shape_text
from potentia.energies._shared import (
    Event,
    broadcasts,
    event_or_none,
    number_or_tensor,
    positive_entries,
    single_sigma,
    wide,
)


class Gaussian(Energy):
    """Independent Gaussian pixels, exact and normalised at every scale.

    U_s(x) = 1/2 sum |x - mean|^2 / (std^2 + s^2) + 1/2 sum log(2 pi (std^2 + s^2)), the second sum twice for complex
    images, whose real and imaginary parts each have the std.

    Shapes: mean (C, H, W), or a number, which takes images of any shape unless ``shape`` says which; std a number or
        broadcasting against (C, H, W). A complex mean, ``0j`` included, makes a prior of complex images.
    Units: mean, std and sigma share the image's unit; U is in nats.
    Raises: ValueError if std <= 0, if mean or std is not finite, or if their shapes clash.
    """

    default_name: ClassVar[str] = "gaussian"
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | complex, std: Tensor | float, *, shape: Sequence[int] | None = None) -> None:
        super().__init__()
        m, d = number_or_tensor(self.name, "mean", mean), number_or_tensor(self.name, "std", std)
        positive_entries(self.name, "std", d)
        self._event = _event_of(self.name, m, d, event_or_none(self.name, shape))
        self.register_buffer("mean", m)
        self.register_buffer("std", d)

    @property
    def event_shape(self) -> Event | None:
        return self._event

    @property
    def is_complex(self) -> bool:
        return self.mean.is_complex()

    @property
    def scales(self) -> Scales:
        """All of them: from 0 to infinity."""
        return 0.0, math.inf

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={float(t):g}" for n, t in (("std", self.std),) if t.dim() == 0)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        v = self._variance(x, sigma)
        return 0.5 * squared_norm((x - self.mean) / v.sqrt()) + _log_normaliser(x, v)

    @torch.no_grad()
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """(x - mean) / (std^2 + s^2)."""
        self.check(x)
        return ((x - self.mean) / self._variance(x, sigma)).to(x.dtype)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self.check(x)
        v = self._variance(x, sigma)
        r = x - self.mean
        grad = r / v
        return 0.5 * inner(r, grad) + _log_normaliser(x, v), grad.to(x.dtype)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Posterior mean mean + std^2 / (std^2 + s^2) (x - mean)."""
        self.check(x)
        v = self._variance(x, sigma)
        return (self.mean + (self.std.square() / v) * (x - self.mean)).to(x.dtype)

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """Diagonal precision 1 / (std^2 + s^2); None for one scale per batch entry."""
        s = single_sigma(self, sigma)
        if s is None:
            return None
        v = self.std.square() + s**2
        precision = (1.0 / v).reshape((1,) * (3 - v.dim()) + tuple(v.shape))
        linear = precision * self.mean
        if self._event is None:
            return Quadratic(Diagonal(precision), linear)
        mean = self.mean.expand(self._event)
        constant = 0.5 * inner(mean, precision * mean) + _log_normaliser(mean, v)
        return Quadratic(Diagonal(precision), linear.expand(self._event), constant)

    def sample(self, generator: Generators, num: int, sigma: float = 0.0) -> Tensor:
        """Draw ``num`` images, smoothed by N(0, sigma^2 I).

        Shapes: returns (num, C, H, W).
        Raises: ValueError if the energy takes images of any shape.
        """
        if self._event is None:
            raise ValueError(f"{self.name}: takes images of any shape, so that sample needs the constructor's shape=")
        s = 0.0 if sigma == 0 else positive(self.name, "sigma", sigma)
        z = standard_normal((num, *self._event), generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + (self.std.square() + s**2).sqrt().to(z.real.dtype) * z

    def _variance(self, x: Tensor, sigma: Sigma) -> Tensor:
        s = self.sigma_of(x, sigma)
        return self.std.square() + s**2


def _log_normaliser(x: Tensor, variance: Tensor) -> Tensor:
    """Half the sum of log(2 pi variance) over the pixels of x, counting the two parts of complex ones.

    Shapes: x (*batch, C, H, W), variance broadcasting against it -> broadcasting against (*batch,).
    """
    logs = (2 * math.pi * wide(variance)).log()
    logs = logs.reshape((1,) * (EVENT_DIMS - logs.dim()) + tuple(logs.shape))
    repeats = math.prod(x.shape[-EVENT_DIMS:]) // math.prod(logs.shape[-EVENT_DIMS:])
    return (1.0 if x.is_complex() else 0.5) * repeats * sum_event(logs)


def _event_of(where: str, mean: Tensor, std: Tensor, shape: Event | None) -> Event | None:
    """Find the image shape that mean, std and ``shape`` agree on.

    Raises: ValueError where they do not.
    """
    if mean.dim() not in (0, 3):
        raise ValueError(f"{where}: mean has shape {shape_text(tuple(mean.shape))}, expected (C, H, W) or a number")
    if mean.dim() == 3:
        if shape is not None:
            same_shape(where, "mean", tuple(mean.shape), shape)
        shape = tuple(mean.shape)
    if shape is not None:
        broadcasts(where, "std", std, shape)
    elif std.dim() > 0:
        raise ValueError(f"{where}: std is a tensor and mean a number, so that shape=(C, H, W) is needed; got none")
    return shape
