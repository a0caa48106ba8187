"""How noise scales are drawn in training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from potentia._validate import positive


class NoiseScales(Protocol):
    """A distribution of noise scales, by its quantile function."""

    def quantile(self, u: Tensor) -> Tensor:
        """The scale below which a share u in (0, 1) of the distribution lies, entry by entry."""
        ...


@dataclass(frozen=True)
class LogUniform:
    """The logarithm of sigma is uniform between those of ``low`` and ``high``.

    Raises: ValueError unless 0 < low < high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        positive("LogUniform", "low", self.low)
        if not self.high > self.low:
            raise ValueError(f"LogUniform: high is {self.high:g}, expected above low, {self.low:g}")

    def quantile(self, u: Tensor) -> Tensor:
        return torch.exp(math.log(self.low) + u * math.log(self.high / self.low))


@dataclass(frozen=True)
class LogNormal:
    """The logarithm of sigma is normal with ``mean`` and ``std``, cut to [low, high] (Karras et al. 2022: -1.2, 1.2).

    Raises: ValueError if std is not positive or unless 0 < low < high.
    """

    mean: float = -1.2
    std: float = 1.2
    low: float = 0.002
    high: float = 80.0

    def __post_init__(self) -> None:
        positive("LogNormal", "std", self.std)
        positive("LogNormal", "low", self.low)
        if not self.high > self.low:
            raise ValueError(f"LogNormal: high is {self.high:g}, expected above low, {self.low:g}")

    def quantile(self, u: Tensor) -> Tensor:
        low, high = (torch.special.ndtr((torch.tensor(s).log() - self.mean) / self.std) for s in (self.low, self.high))
        return torch.exp(self.mean + self.std * torch.special.ndtri(low + u * (high - low))).clamp(self.low, self.high)


def draw_scales(scales: NoiseScales, images: int, generator: torch.Generator) -> Tensor:
    """One scale an image, stratified: each of as many equal shares of the distribution gives one, in random order.

    Shapes: returns (images,), float32.
    """
    order = torch.randperm(images, generator=generator)
    within = torch.rand(images, generator=generator, dtype=torch.float64)
    return scales.quantile(((order + within) / images).clamp(1e-9, 1 - 1e-9)).to(torch.float32)


def noise_from_spec(where: str, spec: Mapping[str, Any]) -> NoiseScales:
    """Read ``{ distribution = "log-uniform" | "log-normal", ... }``.

    Raises: ValueError for another distribution or another key.
    """
    kinds = {"log-uniform": LogUniform, "log-normal": LogNormal}
    given = dict(spec)
    kind = given.pop("distribution", None)
    if kind not in kinds:
        raise ValueError(f"{where}: noise distribution is {kind!r}, expected one of {', '.join(kinds)}")
    try:
        made: NoiseScales = kinds[kind](**given)
    except TypeError as err:
        raise ValueError(f"{where}: noise is {dict(spec)}, which does not fit {kind}: {err}") from err
    return made
