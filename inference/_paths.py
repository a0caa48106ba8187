"""Paths of posteriors: from a Gaussian, whose normaliser is known, to where one wants to be.

A path is a sequence of legs; on each, t runs from 0 to 1. At every t there is a potential, and a scale to take it at.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from potentia._algebra import Sum
from potentia._potential import Potential, Sigma
from potentia._quadratic import Diagonal, Quadratic
from potentia._random import Generators, standard_normal
from potentia._tensor import squared_norm
from potentia.inference._logdet import LogDet
from potentia.inference._precondition import Preconditioner, linear_term, terms

Increment = Callable[[float], Tensor]


class Isotropic(Potential):
    """-log N(x; mean, I / precision), normalised; of complex images, each part has that variance.

    Shapes: mean (C, H, W).
    """

    default_name = "start"
    mean: Tensor

    def __init__(self, mean: Tensor, precision: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.precision = precision
        parts = mean.numel() * (2 if mean.is_complex() else 1)
        self.log_normaliser = 0.5 * parts * math.log(2 * math.pi / precision)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        return 0.5 * self.precision * squared_norm(x - self.mean) + self.log_normaliser

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        off = x.detach() - self.mean
        return 0.5 * self.precision * squared_norm(off) + self.log_normaliser, self.precision * off

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        h = self.precision
        precision = torch.full((1, 1, 1), h, dtype=self.mean.real.dtype, device=self.mean.device)
        constant = 0.5 * h * squared_norm(self.mean) + self.log_normaliser
        return Quadratic(Diagonal(precision), h * self.mean, constant)

    def simulate(self, num: int, generator: Generators) -> Tensor:
        """Independent draws, (num, C, H, W)."""
        z = standard_normal((num, *self.mean.shape), generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + z / math.sqrt(self.precision)


class Leg(ABC):
    """One part of a path, t from 0 to 1."""

    @abstractmethod
    def target(self, t: float) -> tuple[Potential, float]:
        """The potential at t, and the scale to take it at."""

    @abstractmethod
    def increment(self, x: Tensor, t: float) -> Increment:
        """Log of the factor by which weights change on the way from t to a later place: U_t(x) - U_later(x).

        Shapes: x (n, C, H, W); the function gives (n,), float64.
        """

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Evaluations of the prior that each call of an increment costs."""

    @property
    def stops(self) -> tuple[float, ...] | None:
        """Places to visit, if they are fixed; the last one is 1."""
        return None


class Tempered(Leg):
    """U_t = base + t * added + (1 - t) * removed, at one scale."""

    def __init__(
        self, sigma: float, base: Potential | None, added: Potential | None, removed: Potential | None = None
    ) -> None:
        self.sigma, self.base, self.added, self.removed = sigma, base, added, removed

    def target(self, t: float) -> tuple[Potential, float]:
        parts: list[Potential] = [] if self.base is None else terms(self.base)
        # A term of weight zero is not evaluated: it may be infinite there.
        if self.added is not None and t > 0:
            parts = [*parts, *terms(self.added if t == 1 else t * self.added)]
        if self.removed is not None and t < 1:
            parts = [*parts, *terms(self.removed if t == 0 else (1 - t) * self.removed)]
        return Sum(*parts), self.sigma

    def increment(self, x: Tensor, t: float) -> Increment:
        with torch.no_grad():
            slope = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            if self.added is not None:
                slope = slope - self.added(x, self.sigma).double()
            if self.removed is not None:
                slope = slope + self.removed(x, self.sigma).double()
        return lambda later: (later - t) * slope

    @property
    def evaluations(self) -> int:
        return 0


class Scales(Leg):
    """The static posteriors exp(-U_s(x) - L(x)) from one scale down to another, s falling geometrically in t."""

    def __init__(self, posterior: Potential, high: float, low: float, sigmas: tuple[float, ...] | None = None) -> None:
        self.posterior, self.high, self.low, self.sigmas = posterior, high, low, sigmas
        moving = [t for t in terms(posterior) if t.scales is not None]
        self.moving = Sum(*moving) if moving else None

    def sigma(self, t: float) -> float:
        """The scale at t; the ends are met exactly."""
        if t in (0.0, 1.0):
            return self.low if t else self.high
        between = self.high * math.pow(self.low / self.high, t)
        return min(self.high, max(self.low, between))

    def target(self, t: float) -> tuple[Potential, float]:
        return self.posterior, self.sigma(t)

    def increment(self, x: Tensor, t: float) -> Increment:
        moving = self.moving
        if moving is None:
            return lambda later: torch.zeros(len(x), dtype=torch.float64, device=x.device)
        with torch.no_grad():
            now = moving(x, self.sigma(t)).double()

        def later(t: float) -> Tensor:
            with torch.no_grad():
                change: Tensor = now - moving(x, self.sigma(t)).double()
                return change

        return later

    @property
    def evaluations(self) -> int:
        return 0 if self.moving is None else 1

    @property
    def stops(self) -> tuple[float, ...] | None:
        if self.sigmas is None or self.high == self.low:
            return None
        span = math.log(self.low / self.high)
        inner = [math.log(s / self.high) / span for s in self.sigmas if self.low < s < self.high]
        return (*sorted(set(inner)), 1.0)


@dataclass(frozen=True, eq=False)
class Start:
    """A Gaussian to start from, and the leg from it to the posterior at the same scale.

    Its potential is that of all single-scale terms with a quadratic form, plus that of an isotropic Gaussian in place
    of everything else; ``least`` is its minimum, in the middle.
    """

    least: float
    mean: Tensor
    precision: Preconditioner
    leg: Tempered

    def draw(self, num: int, generator: Generators) -> Tensor:
        """Independent draws, (num, C, H, W)."""
        return self.mean + self.precision.draw(generator, (num, *self.mean.shape), self.mean.dtype)

    @cached_property
    def logdet(self) -> LogDet:
        """That of the precision, as a function of the shift."""
        like = self.mean
        return LogDet.of(self.precision.structure, like.shape, like.dtype, device=like.device)

    @property
    def log_integral(self) -> float:
        """Log of the integral of exp(-potential)."""
        return float(self.logdet.log_integral(self.precision.shift)) - self.least

    @property
    def std_error(self) -> float:
        """Standard error of ``log_integral``: zero where it is exact."""
        return float(self.logdet.std_error(self.precision.shift)) * (1.0 if self.mean.is_complex() else 0.5)


def gaussian_start(posterior: Potential, sigma: float, like: Tensor, tolerance: float | None) -> Start:
    """The Gaussian that stands for a posterior at a large scale.

    The smoothed prior is taken as N(m, sigma^2 / w), w the weight of the multi-scale terms and m the mean that their
    denoiser finds at zero; what it really is comes in by weights on the leg.

    Shapes: like (C, H, W), for its shape, dtype and device.
    """
    every = terms(posterior)
    quads = [t for t in every if t.multiscale_weight == 0 and t.quadratic(sigma) is not None]
    rest = [t for t in every if not any(t is q for q in quads)]
    weight = posterior.multiscale_weight
    h = (weight if weight > 0 else 1.0) / sigma**2
    mean = torch.zeros_like(like)
    for term in rest:
        if term.multiscale_weight > 0:
            mean = mean - term.grad(mean[None] * 0, sigma)[0] / h
    isotropic = Isotropic(mean, h)
    p = Preconditioner.annealed(posterior, sigma).adapted(like, tolerance)
    p = Preconditioner(p.structure, h)
    centre = p.solve(linear_term(posterior, sigma, like, multiscale=False) + h * mean)
    whole = Sum(*quads, isotropic)
    with torch.no_grad():
        least = float(whole(centre[None], sigma)[0])
    leg = Tempered(sigma, Sum(*quads) if quads else None, Sum(*rest) if rest else None, isotropic)
    return Start(least, centre, p, leg)
