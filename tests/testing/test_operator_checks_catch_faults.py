"""Whatever ``check_operator`` checks is broken on purpose once, and caught by its name; the sound twin passes."""

from typing import ClassVar

import pytest
import torch
from fault_toys import SHAPE, Check, Make, caught, rand
from torch import Tensor

from potentia import testing
from potentia._quadratic import Structure
from potentia.likelihoods import Operator


class Weights(Operator):
    """Complex weights times the image moved by a pixel."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", rand(*SHAPE, seed=3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * x.roll(1, -1)

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.weights.conj() * y).roll(-1, -1)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(input_shape)

    def input_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return True


class NoConjugate(Weights):
    def adjoint(self, y: Tensor) -> Tensor:
        return (self.weights * y).roll(-1, -1)


class WrongWay(Weights):
    def adjoint(self, y: Tensor) -> Tensor:
        return (self.weights.conj() * y).roll(1, -1)


class NormalFactor(Weights):
    def normal(self, x: Tensor) -> Tensor:
        return 1.001 * super().normal(x)


class GramFactor(Weights):
    def gram(self, weight: float | Tensor, input_shape: tuple[int, ...]) -> Structure:
        return super().gram(weight, input_shape) * (1.001 if isinstance(weight, float) else 1.0)


class GramOfMean(Weights):
    """Takes weights that vary for their mean."""

    def gram(self, weight: float | Tensor, input_shape: tuple[int, ...]) -> Structure:
        return super().gram(weight.mean() if isinstance(weight, Tensor) else weight, input_shape)


class Affine(Weights):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3


class RealLinear(Weights):
    """Linear over the real numbers, not over the complex ones."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.conj())

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y).conj()


class OperatorLeak(Weights):
    """Linear and its own adjoint's adjoint, but across the batch."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *SHAPE)
        return super().forward((flat + flat.mean(0)).reshape(x.shape))


class OperatorMutates(Weights):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.mul_(0.5)
        return y


class OperatorRandom(Weights):
    def adjoint(self, y: Tensor) -> Tensor:
        torch.rand(())
        return super().adjoint(y)


class OperatorShape(Weights):
    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*input_shape[:-1], input_shape[-1] + 1)


class OperatorInputShape(Weights):
    def input_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*output_shape[:-1], output_shape[-1] + 1)


class OperatorField(Weights):
    """Claims real measurements of real images and gives complex ones."""

    def complex_output(self, complex_input: bool) -> bool:
        return complex_input


class OperatorDims(Weights):
    output_dims: ClassVar[int] = 2


def operator(thing: Operator) -> None:
    testing.check_operator(thing, SHAPE)


FAULTS = [
    ("adjoint without conjugate", operator, NoConjugate, Weights, r"<A x, y> = "),
    ("adjoint the wrong way", operator, WrongWay, Weights, r"<A x, y> = "),
    ("normal off by a factor", operator, NormalFactor, Weights, "normal"),
    ("gram off by a factor", operator, GramFactor, Weights, "gram"),
    ("gram of varying weights", operator, GramOfMean, Weights, "gram"),
    ("affine", operator, Affine, Weights, "linear"),
    ("linear over real numbers only", operator, RealLinear, Weights, "linear"),
    ("operator couples the batch", operator, OperatorLeak, Weights, "batch"),
    ("operator mutates x", operator, OperatorMutates, Weights, "input"),
    ("operator draws globally", operator, OperatorRandom, Weights, "global generator"),
    ("output_shape", operator, OperatorShape, Weights, "output_shape|shape"),
    ("input_shape", operator, OperatorInputShape, Weights, "input_shape"),
    ("complex_output", operator, OperatorField, Weights, "complex_output"),
    ("output_dims", operator, OperatorDims, Weights, "output_dims"),
]


@pytest.mark.parametrize(("check", "faulty", "says"), [f[1:3] + f[4:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_operators_is_caught_by_its_name(check: Check, faulty: Make, says: str) -> None:
    caught(check, faulty(), says)


@pytest.mark.parametrize(("check", "sound"), list(dict.fromkeys((f[1], f[3]) for f in FAULTS)))
def test_sound_operators_pass(check: Check, sound: Make) -> None:
    check(sound())
