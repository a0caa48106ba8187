"""Whatever ``check_sum`` checks is broken on purpose once, and caught by its name; sound twins pass."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from potentia import Energy, Potential, Quadratic, Sum, energies, likelihoods, testing
from potentia._potential import Sigma
from potentia._quadratic import Diagonal, Structure
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


class RenamesOther(Bowl):
    """Names that depend on the bracketing."""

    def __add__(self, other: object) -> Sum:
        return Sum(self, other.named(f"{other.name}_right")) if isinstance(other, Potential) else super().__add__(other)


class Doubles(Bowl):
    def __add__(self, other: object) -> Sum:
        return Sum(self, 2.0 * other) if isinstance(other, Potential) else super().__add__(other)


class AddsToSubtract(Bowl):
    def __sub__(self, other: object) -> Sum:
        return Sum(self, other) if isinstance(other, Potential) else NotImplemented


class SquaresWeight(Bowl):
    def __mul__(self, weight: Any) -> Any:
        return super().__mul__(weight * weight)

    __rmul__ = __mul__


class NoRightAdd(Bowl):
    def __radd__(self, other: object) -> Any:
        return NotImplemented


class AllIsPrior(Sum):
    @property
    def prior(self) -> Potential:
        return self

    @property
    def likelihood(self) -> Potential | None:
        return None

    def __add__(self, other: object) -> Sum:
        return AllIsPrior(self, other) if isinstance(other, Potential) else super().__add__(other)


class MakesAllPrior(Smooth):
    def __add__(self, other: object) -> Sum:
        return AllIsPrior(self, other) if isinstance(other, Potential) else super().__add__(other)


class ForgetfulDiagonal(Diagonal):
    def __add__(self, other: Structure) -> Structure:
        return self


class ForgetfulForm(Smooth):
    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        v = 1 / torch.as_tensor(self.spread(self.mean, sigma), dtype=self.mean.dtype).reshape(1, 1, 1)
        return Quadratic(ForgetfulDiagonal(v), v * self.mean, 0.5 * squared_norm(self.mean) * float(v))


class Formed(Smooth):
    """Smooth, with its quadratic form, whose parts the faults change."""

    linear: ClassVar[float] = 1.0
    constant: ClassVar[float] = 1.0

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        v = 1 / torch.as_tensor(self.spread(self.mean, sigma), dtype=self.mean.dtype).reshape(1, 1, 1)
        constant = 0.5 * squared_norm(self.mean) * float(v)
        return Quadratic(Diagonal(v), self.linear * v * self.mean, self.constant * constant)


def added(thing: Potential) -> None:
    data = likelihoods.Gaussian(rand(*SHAPE, seed=6), noise_std=0.5)
    testing.check_sum(thing, energies.Gaussian(rand(*SHAPE, seed=7), 0.8), data, rand(2, *SHAPE, seed=5), 0.4)


FAULTS = [
    ("names depend on brackets", added, RenamesOther, Bowl, "names"),
    ("sum off by a factor", added, Doubles, Bowl, "adds up|associative"),
    ("difference is a sum", added, AddsToSubtract, Bowl, "a - a|subtracts"),
    ("weight squared", added, SquaresWeight, Bowl, "weight|distributive"),
    ("no right addition", added, NoRightAdd, Bowl, r"sum\(\)"),
    ("prior takes all", added, MakesAllPrior, Smooth, "prior"),
    ("quadratic of a sum", added, ForgetfulForm, Formed, "quadratic form"),
]


@pytest.mark.parametrize(("check", "faulty", "says"), [f[1:3] + f[4:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_sums_is_caught_by_its_name(check: Check, faulty: Make, says: str) -> None:
    caught(check, faulty(), says)


@pytest.mark.parametrize(("check", "sound"), list(dict.fromkeys((f[1], f[3]) for f in FAULTS)))
def test_sound_sums_pass(check: Check, sound: Make) -> None:
    check(sound())
