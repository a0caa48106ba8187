"""Families of annealers: noise scales by formula."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from potentia.annealers import _checks
from potentia.annealers._annealer import Annealer
from potentia.annealers._level import Level


@dataclass(frozen=True, eq=False, repr=False)
class _Family(Annealer):
    """Levels that differ in sigma alone: a subclass gives the scales."""

    temperature: float = field(default=1.0, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    step_size: float = field(default=1.0, kw_only=True)

    @abstractmethod
    def _scales(self) -> Sequence[float]:
        """Check the fields, and return the noise scales."""

    def _build(self) -> Sequence[Level]:
        rest: dict[str, Any] = {
            "temperature": self._checked("temperature", _checks.not_negative),
            "steps": None if self.steps is None else self._checked("steps", _checks.count),
            "step_size": self._checked("step_size", _checks.positive),
        }
        return [Level(sigma, **rest) for sigma in self._scales()]

    def _with_all(self, name: str, value: Any) -> Annealer:
        changes: dict[str, Any] = {name: value}
        return replace(self, **changes)

    def _checked(self, name: str, check: Callable[[str, object], Any]) -> Any:
        """Put the checked value in place of what was given, and return it."""
        value = check(f"{type(self).__name__}: {name}", getattr(self, name))
        object.__setattr__(self, name, value)
        return value


@dataclass(frozen=True, eq=False, repr=False)
class _Descent(_Family):
    """Scales from sigma_max down to sigma_min, both met exactly: a subclass gives what lies between."""

    # field() takes the place of the inherited property, which would pass for a default; the instance's value hides it.
    sigma_max: float = field()  # pyright: ignore[reportIncompatibleVariableOverride]
    sigma_min: float = field()  # pyright: ignore[reportIncompatibleVariableOverride]
    num_levels: int

    @abstractmethod
    def _sigma(self, u: float) -> float:
        """Return the scale at the fraction u of the way down, 0 < u < 1."""

    def _scales(self) -> Sequence[float]:
        where = type(self).__name__
        top, bottom = self._checked("sigma_max", _checks.positive), self._checked("sigma_min", _checks.positive)
        n = self._checked("num_levels", _checks.count)
        if bottom > top:
            raise ValueError(f"{where}: sigma_min must be at most sigma_max, got {bottom:g} above {top:g}")
        if n == 1 and bottom != top:
            raise ValueError(f"{where}: num_levels must be two or more to go from {top:g} down to {bottom:g}, got 1")
        if n > 1 and bottom == top:
            raise ValueError(
                f"{where}: sigma_min must be below sigma_max for {n} levels, got {top:g} for both; "
                "Constant stays at one sigma"
            )
        scales = [top]
        for i in range(1, n - 1):  # rounding must neither leave the interval nor turn back
            scales.append(min(scales[-1], max(bottom, self._sigma(i / (n - 1)))))
        return scales if n == 1 else [*scales, bottom]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Karras(_Descent):
    """Scales evenly spaced in sigma^(1/rho): the larger rho, the more of them are small.

    sigma_i = (sigma_max^(1/rho) + i / (n - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, i = 0 ... n - 1.

    Units:  sigma_max and sigma_min are in the image's unit.
    Raises: ValueError unless sigma_max > sigma_min > 0 (both alike for one level), num_levels >= 1 and rho > 0.
    Source: Karras et al. 2022, Elucidating the Design Space of Diffusion-Based Generative Models, eq. 5, without the
        zero appended there.
    """

    rho: float = 7.0

    def _scales(self) -> Sequence[float]:
        self._checked("rho", _checks.positive)
        return super()._scales()

    def _sigma(self, u: float) -> float:
        # In units of sigma_max no power overflows, whatever rho; expm1 and log1p keep the digits of a large rho.
        end = math.expm1((math.log(self.sigma_min) - math.log(self.sigma_max)) / self.rho)
        return self.sigma_max * math.exp(self.rho * math.log1p(u * end))


@final
@dataclass(frozen=True, eq=False, repr=False)
class Geometric(_Descent):
    """Scales of which each is the same fraction of the one before it.

    sigma_i = sigma_max (sigma_min / sigma_max)^(i / (n - 1)), i = 0 ... n - 1.

    Units:  sigma_max and sigma_min are in the image's unit.
    Raises: ValueError unless sigma_max > sigma_min > 0 (both alike for one level) and num_levels >= 1.
    Source: Song and Ermon 2019, Generative Modeling by Estimating Gradients of the Data Distribution, section 4.
    """

    def _sigma(self, u: float) -> float:
        return math.pow(self.sigma_max, 1.0 - u) * math.pow(self.sigma_min, u)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Linear(_Descent):
    """Evenly spaced scales.

    sigma_i = sigma_max + i / (n - 1) (sigma_min - sigma_max), i = 0 ... n - 1.

    Units:  sigma_max and sigma_min are in the image's unit.
    Raises: ValueError unless sigma_max > sigma_min > 0 (both alike for one level) and num_levels >= 1.
    """

    def _sigma(self, u: float) -> float:
        return (1.0 - u) * self.sigma_max + u * self.sigma_min


@final
@dataclass(frozen=True, eq=False, repr=False)
class Cosine(_Descent):
    """Scales along half a wave of the cosine: dense at both ends, sparse between them.

    sigma_i = sigma_min + (sigma_max - sigma_min) (1 + cos(pi i / (n - 1))) / 2, i = 0 ... n - 1.

    Units:  sigma_max and sigma_min are in the image's unit.
    Raises: ValueError unless sigma_max > sigma_min > 0 (both alike for one level) and num_levels >= 1.
    Source: Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, eq. 5, their learning rate
        read as sigma.
    """

    def _sigma(self, u: float) -> float:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * 0.5 * (1.0 + math.cos(math.pi * u))


@final
@dataclass(frozen=True, eq=False, repr=False)
class Constant(_Family):
    """One scale, num_levels times.

    Units:  sigma is in the image's unit.
    Raises: ValueError if sigma is not finite and above zero, or num_levels is below one.
    """

    sigma: float
    num_levels: int = 1

    def _scales(self) -> Sequence[float]:
        sigma = self._checked("sigma", _checks.positive)
        return [sigma] * self._checked("num_levels", _checks.count)
