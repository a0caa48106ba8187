"""Sound potentials that the tests beside this file break, and how a fault is seen to be caught."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from potentia import Energy, Quadratic, ScoreOnly
from potentia._potential import Sigma
from potentia._quadratic import Diagonal
from potentia._random import standard_normal
from potentia._tensor import squared_norm, sum_event

Make = Callable[[], Any]


Check = Callable[[Any], None]


def caught(check: Check, faulty: Any, says: str) -> None:
    """Run a check on something faulty and see that it says so: which identity, what was got and expected."""
    with pytest.raises(AssertionError, match=says) as error:
        check(faulty)
    assert type(faulty).__name__ in str(error.value) or "Sum" in str(error.value)
    assert " got " in str(error.value)
    assert ", expected " in str(error.value)


SHAPE = (1, 3, 4)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype)


WEIGHT = 0.5 + rand(*SHAPE, seed=1).square()


class Bowl(Energy):
    """U(x) = sum of weight sqrt(1 + |x|^2), without scales."""

    weight: Tensor
    field: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", WEIGHT.clone())

    @property
    def event_shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def is_complex(self) -> bool:
        return self.field

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return sum_event(self.weight * (1 + x.abs().square()).sqrt())

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        with torch.no_grad():
            return (self.weight * x / (1 + x.abs().square()).sqrt()).to(x.dtype)


class Smooth(Energy):
    """A Gaussian of variance 1/2, with scales."""

    mean: Tensor
    variance: ClassVar[float] = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", rand(*SHAPE, seed=2))

    @property
    def event_shape(self) -> tuple[int, ...]:
        return SHAPE

    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 5.0

    def spread(self, x: Tensor, sigma: Sigma) -> float | Tensor:
        return self.variance + self.sigma_of(x, sigma) ** 2

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return 0.5 * squared_norm((x - self.mean) / self.spread(x, sigma) ** 0.5)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        with torch.no_grad():
            return ((x - self.mean) / self.spread(x, sigma)).to(x.dtype)


class Score(ScoreOnly):
    """The same Gaussian, without values."""

    @property
    def scales(self) -> tuple[float, float]:
        return 0.1, 5.0

    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        return x.detach() / (1 + 2 * self.sigma_of(x, sigma) ** 2)


class Formed(Smooth):
    """Smooth, with its quadratic form, whose parts the faults change."""

    linear: ClassVar[float] = 1.0
    constant: ClassVar[float] = 1.0

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        v = 1 / torch.as_tensor(self.spread(self.mean, sigma), dtype=self.mean.dtype).reshape(1, 1, 1)
        constant = 0.5 * squared_norm(self.mean) * float(v)
        return Quadratic(Diagonal(v), self.linear * v * self.mean, self.constant * constant)
