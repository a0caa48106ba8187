"""The quantised likelihood: Gaussian noise, then rounding and clipping."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from potentia._random import standard_normal
from potentia._validate import positive, real_number
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._noise import NoiseModel, noise_parameter, number_text

# Nodes and weights of Gauss and Legendre's rule of 8 points on (-1/2, 1/2): the positive half, its weights doubled.
_NODES = (0.0917173212478249, 0.2627662049581645, 0.3983332387068134, 0.4801449282487681)
_WEIGHTS = (0.3626837833783620, 0.3137066458778873, 0.2223810344533745, 0.1012285362903763)


class Quantised(NoiseModel):
    """Numbers on a lattice, y = clip(round(A(x) + N(0, noise_std^2))): a Gaussian censored to an interval.

    L(x) = - sum of log(Phi(b) - Phi(a)), Phi the standard normal distribution function, a and b the ends
    (y -+ step / 2 - A(x)) / noise_std of what is rounded to y; of the lowest value ``low`` also all below, of the
    highest ``high`` all above. L is -log of a probability, convex in A(x), with the normaliser 1.

    Its curvature is 1 / (noise_std^2 + step^2 / 12), the inverse variance of the measurement; where y is clipped, that
    of L itself.

    Shapes: y (*measurement) as A gives it; noise_std a number or broadcasting against y; x (*batch, C, H, W); returns
        (*batch,). Units: y, noise_std, step, low and high share the data's unit; L is in nats.
    Raises: TypeError without noise_std or step; ValueError for y that is complex, not on the lattice of the step
        through ``low`` (else ``high``, else 0) or beyond its ends, for noise_std or step <= 0, low >= high, or as
        ``NoiseModel``.
    Source: Sheppard 1898 (the variance of rounding).
    """

    default_name: ClassVar[str] = "quantised"
    noise_std: Tensor

    def __init__(
        self,
        y: object,
        operator: ForwardModel | None = None,
        noise_std: Any = None,
        step: Any = None,
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        super().__init__(y, operator)
        if step is None:
            raise TypeError(f"{self.name}: step is missing, expected a positive number")
        self.step = positive(self.name, "step", step)
        self.low = -math.inf if low is None else real_number(self.name, "low", low)
        self.high = math.inf if high is None else real_number(self.name, "high", high)
        if not self.low + self.step / 2 < self.high:
            raise ValueError(f"{self.name}: low is {self.low:g} and high {self.high:g}, expected a step between them")
        self._check_lattice(self._taken(self.y).double())
        self.register_buffer("noise_std", noise_parameter(self.name, "noise_std", noise_std, self.y))

    @property
    def _origin(self) -> float:
        return next((end for end in (self.low, self.high) if math.isfinite(end)), 0.0)

    def _check_lattice(self, y: Tensor) -> None:
        slack = 1e-3 + 4 * torch.finfo(self.y.dtype).eps * (y.abs() / self.step)
        place = (y - self._origin) / self.step
        off = (place - place.round()).abs() > slack
        off = off | ((y - self.high) / self.step > slack) | ((self.low - y) / self.step > slack)
        if bool(off.any()):
            raise ValueError(
                f"{self.name}: y has {int(off.sum())} entries such as {float(y[off][0]):g} that are not on the lattice "
                f"{self._origin:g} + k * {self.step:g} from {self.low:g} to {self.high:g}"
            )

    def _clipped(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Where y is the lowest value, and where the highest."""
        return y < self.low + self.step / 4, y > self.high - self.step / 4

    def _beyond(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where y is clipped, the sign of the side, and the end of the half line in units of the noise."""
        low, high = self._clipped(y)
        sign = torch.where(low, 1.0, -1.0).to(z.dtype)
        return low | high, sign, (sign * (y - z) + self.step / 2) / self.noise_std

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        clipped, _, end = self._beyond(z, y)
        inside = _log_mass((y - z).abs() / self.noise_std, self.step / self.noise_std)
        return -torch.where(clipped, torch.special.log_ndtr(end), inside)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        clipped, sign, end = self._beyond(z, y)
        r = (z - y) / self.noise_std
        inside = r.sign() * _pull(r.abs(), self.step / self.noise_std)
        return torch.where(clipped, sign * _hazard(-end), inside) / self.noise_std

    def curvatures(self, z: Tensor) -> Tensor:
        v = self.noise_std.square()
        clipped, _, end = self._beyond(z, self.y)
        hazard = _hazard(-end)
        own = (hazard * (hazard + end)).nan_to_num(0.0).clamp(0.0, 1.0)
        return torch.where(clipped, own / v, 1 / (v + self.step**2 / 12))

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        noisy = z + self.noise_std * standard_normal(z.shape, generator, dtype=z.dtype, device=z.device)
        rounded = self._origin + self.step * ((noisy - self._origin) / self.step).round()
        return rounded.clamp(self.low, self.high)

    def log_normalisers(self) -> Tensor:
        return torch.zeros_like(self.noise_std, dtype=torch.float64)

    def parameters_text(self) -> str:
        ends = "" if math.isinf(self.low) and math.isinf(self.high) else f", {self.low:g} to {self.high:g}"
        return f"noise_std {number_text(self.noise_std)}, step {self.step:g}{ends}"


def _hazard(t: Tensor) -> Tensor:
    """phi(t) / Phi(-t), the slope of -log Phi(-t)."""
    ratio: Tensor = math.sqrt(2 / math.pi) / torch.special.erfcx(t / math.sqrt(2))
    return ratio


def _near(c: Tensor, h: Tensor) -> Tensor:
    """Where the quadrature serves: the integrand over the interval is smooth."""
    return (c * h <= 2) & (h <= 1)


def _quadrature(c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of exp(-c s - s^2 / 2) over |s| < h / 2, and of -s times that, where it is smooth (elsewhere, at c = 0)."""
    c, h = torch.where(_near(c, h), c, 0.0), h.clamp_max(1.0)
    mass = moment = torch.zeros_like(c * h)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        s = h * node
        bell = weight * torch.exp(-0.5 * s.square())
        mass, moment = mass + bell * torch.cosh(c * s), moment + bell * s * torch.sinh(c * s)
    return mass, moment


def _tail(c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Both log Q(lo) + lo^2 / 2, Q = 1 - Phi, and log(Q(hi) / Q(lo)) for lo = c - h / 2 > 0 and hi = c + h / 2."""
    low = torch.special.erfcx((c - h / 2).clamp_min(0.0) / math.sqrt(2))
    high = torch.special.erfcx((c + h / 2) / math.sqrt(2))
    return (0.5 * low).log(), (high / low).log() - h * c


def _centre(c: Tensor, h: Tensor) -> Tensor:
    """1 - Phi(c + h / 2) + 1 - Phi(h / 2 - c): the mass outside."""
    root = math.sqrt(2)
    outside: Tensor = torch.special.erfc((h / 2 + c) / root) + torch.special.erfc((h / 2 - c) / root)
    return 0.5 * outside


def _log_mass(c: Tensor, h: Tensor) -> Tensor:
    """The log of Phi(c + h / 2) - Phi(c - h / 2), c >= 0 and h > 0, without differences of what is nearly alike."""
    c, h = torch.broadcast_tensors(c, h)
    near = h.log() - 0.5 * c.square() - 0.5 * math.log(2 * math.pi) + _quadrature(c, h)[0].log()
    first, ratio = _tail(c, h)
    far = first - 0.5 * (c - h / 2).square() + (-torch.expm1(ratio)).log()
    return torch.where(_near(c, h), near, torch.where(c > h / 2, far, torch.log1p(-_centre(c, h))))


def _pull(c: Tensor, h: Tensor) -> Tensor:
    """Minus d/dc of ``_log_mass``, zero or more."""
    c, h = torch.broadcast_tensors(c, h)
    mass, moment = _quadrature(c, h)
    low = c - h / 2
    share = -torch.expm1(-h * c)
    far = _hazard(low.clamp_min(0.0)) * share / -torch.expm1(_tail(c, h)[1])
    middle = torch.exp(-0.5 * low.square()) / math.sqrt(2 * math.pi) * share / (1 - _centre(c, h))
    return torch.where(_near(c, h), c - moment / mass, torch.where(low > 0, far, middle))
