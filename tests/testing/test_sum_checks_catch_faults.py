"""Whatever ``check_sum`` checks is broken on purpose once, and caught by its name; sound twins pass."""

from typing import Any

import pytest
import torch
from fault_toys import SHAPE, Bowl, Check, Formed, Make, Smooth, caught, rand

from potentia import Potential, Quadratic, Sum, energies, likelihoods, testing
from potentia._potential import Sigma
from potentia._quadratic import Diagonal, Structure
from potentia._tensor import squared_norm


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
