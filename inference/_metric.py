"""What a Metropolis step needs of a preconditioner, made ready once: P g, draws from N(0, P), and P^-1 v."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potentia._potential import Potential
from potentia._quadratic import Diagonal, Fourier
from potentia._random import Generators
from potentia._tensor import filter_plane
from potentia.inference._covariance import Dense, LowRank
from potentia.inference._precondition import Preconditioner

White = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Metric:
    """The actions of P, with whatever does not change from step to step computed beforehand.

    ``solve`` is P g, ``colour`` makes a draw from N(0, P) of random numbers, ``apply`` is P^-1 v. ``white`` draws those
    numbers, or is None where they are standard normal images. ``iterative`` says that ``solve`` must not be given NaN.
    """

    solve: Callable[[Tensor], Tensor]
    colour: Callable[[White], Tensor]
    apply: Callable[[Tensor], Tensor]
    white: Callable[[Generators, tuple[int, ...], torch.dtype], White] | None = None
    iterative: bool = False


def metric_of(p: Preconditioner) -> Metric:
    """Prepare a preconditioner that already is in the precision of the images.

    Raises: ValueError if structure + shift I is singular.
    """
    structure, shift = p.structure, p.shift
    if isinstance(structure, Diagonal | Fourier):
        values = structure.precision if isinstance(structure, Diagonal) else structure.spectrum
        least = float(values.min()) + shift
        if not least > 0:
            raise ValueError(f"the preconditioner is singular (least precision {least:.3g}), expected a positive one")
        values = values + shift
        variance, std = 1.0 / values, values.rsqrt()
        if isinstance(structure, Fourier):
            return Metric(
                lambda g: filter_plane(g, variance),
                lambda w: filter_plane(w[0], std),
                lambda v: filter_plane(v, values),
            )
        if bool((values == 1).all()):
            return Metric(lambda g: g, lambda w: w[0], lambda v: v)
        return Metric(lambda g: variance * g, lambda w: std * w[0], lambda v: values * v)
    if isinstance(structure, Dense | LowRank) and shift == 0:
        return Metric(structure.solve, lambda w: structure.colour(w[0]), structure.apply)
    return Metric(
        p.solve, lambda w: p.solve(p.perturb(w)), lambda v: structure.apply(v) + shift * v, p.white, iterative=True
    )


class MetricCache:
    """The metric of the last posterior a sampler met; forgotten when the sampler is copied or pickled."""

    def __init__(self) -> None:
        self._posterior: Callable[[], Potential | None] = lambda: None
        self._key: tuple[Any, ...] = ()
        self._metric: Metric | None = None

    def get(self, posterior: Potential, like: Tensor, make: Callable[[], Preconditioner]) -> Metric:
        """The metric for images like these, made anew for another posterior, precision or device."""
        key = (like.dtype, like.device, tuple(like.shape[1:]))
        if self._metric is None or self._posterior() is not posterior or self._key != key:
            self._metric = metric_of(make())
            self._posterior, self._key = weakref.ref(posterior), key
        return self._metric

    def __reduce__(self) -> tuple[type["MetricCache"], tuple[()]]:
        return MetricCache, ()
