"""Whatever ``check_quadratic`` checks is broken on purpose once, and caught by its name; sound twins pass."""

from typing import Any

import pytest
import torch
from fault_toys import SHAPE, WEIGHT, Check, Formed, Make, caught, rand
from torch import Tensor

from potentia import Potential, Quadratic, testing
from potentia._potential import Sigma
from potentia._quadratic import Diagonal, MatrixFree, Structure


class TorchNormal(Diagonal):
    """Half the variance, as torch's complex normal has it a part."""

    def white(self, generator: Any, shape: Any, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (z,) = super().white(generator, shape, dtype=dtype)
        return (z / 2**0.5,)


class NoShiftInDraws(Diagonal):
    def perturb(self, white: tuple[Tensor, ...], shift: Any = 0.0) -> Tensor:
        return super().perturb(white, 0.0)


class CorrelatedParts(Diagonal):
    """The imaginary part repeats the real one: each has the right variance, together they do not."""

    def white(self, generator: Any, shape: Any, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (z,) = super().white(generator, shape, dtype=dtype)
        return (torch.complex(z.real, z.real),)


class OtherNoise(Diagonal):
    def noise(self, generator: Any, shape: Any, *, dtype: torch.dtype) -> Tensor:
        return super().noise(generator, shape, dtype=dtype) * self.precision.sqrt()


class GlobalDraws(Diagonal):
    def white(self, generator: Any, shape: Any, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        torch.rand(())
        return super().white(generator, shape, dtype=dtype)


class OneGenerator(Diagonal):
    """All chains drawn from the first chain's generator."""

    def white(self, generator: Any, shape: Any, *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        first = generator if isinstance(generator, torch.Generator) else generator[0]
        return super().white(first, shape, dtype=dtype)


class ShiftIgnored(Diagonal):
    def solve(self, rhs: Tensor, shift: Any = 0.0) -> Tensor:
        return rhs / self.precision


class OneShift(Diagonal):
    def solve(self, rhs: Tensor, shift: Any = 0.0) -> Tensor:
        return super().solve(rhs, float(shift.max()) if isinstance(shift, Tensor) else shift)


class Skew(Diagonal):
    def apply(self, x: Tensor) -> Tensor:
        return super().apply(x) + 0.01 * (x.roll(1, -1) - x.roll(-1, -1))


class Bent(Diagonal):
    def apply(self, x: Tensor) -> Tensor:
        return super().apply(x) * (1 + 1e-3 * x.abs())


class NoHalf(Quadratic):
    def value(self, x: Tensor) -> Tensor:
        return 2 * super().value(x)


class NoLinear(Quadratic):
    def grad(self, x: Tensor) -> Tensor:
        return self.structure.apply(x)


class OtherMode(Quadratic):
    def mode(self, shift: Any = 0.0) -> Tensor:
        return -super().mode(shift)


class OtherMultiple(Quadratic):
    def __mul__(self, weight: float) -> Quadratic:
        return Quadratic(self.structure * weight, self.linear, self.constant * weight)


def indefinite() -> Structure:
    """Negative along one direction in twelve."""
    values = WEIGHT.clone()
    values[0, 0, 0] = -0.5
    return Diagonal(values)


def half_noise() -> Structure:
    """Matrix-free, of a known diagonal, with noise of half the variance."""
    sound = Diagonal(WEIGHT)
    return MatrixFree(sound.apply, lambda g, s, d: sound.noise(g, s, dtype=d) / 2**0.5)


def form(structure: Structure, kind: type[Quadratic] = Quadratic, *, is_complex: bool = False) -> Quadratic:
    return kind(structure, rand(*SHAPE, seed=4, dtype=torch.complex128 if is_complex else torch.float64), 0.7)


class OtherLinear(Formed):
    linear = 1.001


class OtherConstant(Formed):
    constant = 1.001


class NoForm(Formed):
    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:  # type: ignore[override]
        return None


def quadratic(thing: Quadratic | Potential) -> None:
    testing.check_quadratic(thing, SHAPE)


def varied(kind: type[Structure]) -> Make:
    return lambda: form(kind(WEIGHT))  # type: ignore[call-arg]


def complex_varied(kind: type[Structure]) -> Make:
    return lambda: form(kind(WEIGHT), is_complex=True)  # type: ignore[call-arg]


def sound_form() -> Quadratic:
    return form(Diagonal(WEIGHT))


SOUND, SOUND_COMPLEX = varied(Diagonal), complex_varied(Diagonal)

FAULTS = [
    ("draws of half the variance", quadratic, varied(TorchNormal), SOUND, "covariance"),
    ("torch's complex normal", quadratic, complex_varied(TorchNormal), SOUND_COMPLEX, "covariance"),
    ("parts correlated", quadratic, complex_varied(CorrelatedParts), SOUND_COMPLEX, "covariance"),
    ("draws without the shift", quadratic, varied(NoShiftInDraws), SOUND, "covariance"),
    ("noise of another covariance", quadratic, varied(OtherNoise), SOUND, "noise"),
    ("noise of half the variance", quadratic, lambda: form(half_noise()), SOUND, "covariance"),
    ("draws from the global generator", quadratic, varied(GlobalDraws), SOUND, "generator"),
    ("all chains from one generator", quadratic, varied(OneGenerator), SOUND, "chain"),
    ("solve ignores the shift", quadratic, varied(ShiftIgnored), SOUND, "solve"),
    ("solve takes one shift for all", quadratic, varied(OneShift), SOUND, "shift per image"),
    ("not self-adjoint", quadratic, varied(Skew), SOUND, "self-adjoint"),
    ("not linear", quadratic, varied(Bent), SOUND, "linear"),
    ("not positive", quadratic, lambda: form(indefinite()), SOUND, "semi-definite"),
    ("value without the half", quadratic, lambda: form(Diagonal(WEIGHT), NoHalf), sound_form, "value"),
    ("gradient without b", quadratic, lambda: form(Diagonal(WEIGHT), NoLinear), sound_form, "grad"),
    ("mode", quadratic, lambda: form(Diagonal(WEIGHT), OtherMode), sound_form, "mode"),
    ("form of another value", quadratic, OtherConstant, Formed, "value"),
    ("form of another gradient", quadratic, OtherLinear, Formed, "value|gradient"),
    ("multiple of a form", quadratic, lambda: form(Diagonal(WEIGHT), OtherMultiple), sound_form, "3/2"),
    ("no form", quadratic, NoForm, Formed, "quadratic form"),
]


@pytest.mark.parametrize(("check", "faulty", "says"), [f[1:3] + f[4:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_forms_is_caught_by_its_name(check: Check, faulty: Make, says: str) -> None:
    caught(check, faulty(), says)


@pytest.mark.parametrize(("check", "sound"), list(dict.fromkeys((f[1], f[3]) for f in FAULTS)))
def test_sound_forms_pass(check: Check, sound: Make) -> None:
    check(sound())
