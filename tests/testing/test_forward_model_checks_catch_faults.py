"""Whatever ``check_forward_model`` checks is broken on purpose once, and caught by its name; the sound twin passes."""

from typing import ClassVar

import pytest
import torch
from fault_toys import SHAPE, Check, Make, caught, rand
from torch import Tensor

from potentia import testing
from potentia.likelihoods import ForwardModel, Operator


class Bent(ForwardModel):
    """Complex weights times x + x |x|^2 / 4, moved by a pixel."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", rand(*SHAPE, seed=3, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights * (x + 0.25 * x * x.abs().square()).roll(1, -1)

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(input_shape)

    def input_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return True


class JvpFactor(Bent):
    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return 1.0001 * super().jvp(x, t)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return 1.0001 * super().vjp(x, v)


class Frozen(Bent):
    """Derivatives at zero, wherever it is asked: right for a linear model alone."""

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return super().jvp(torch.zeros_like(x), t)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return super().vjp(torch.zeros_like(x), v)


class Holomorphic(Bent):
    """Forgets the part of the derivative in conj(x)."""

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weights * (t + 0.5 * t * x.abs().square()).roll(1, -1)


class VjpFactor(Bent):
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return 1.0001 * super().vjp(x, v)


class VjpConjugate(Bent):
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return super().vjp(x, v.conj())


class Linearised(Bent):
    """Linearises beside the image."""

    def linearise(self, x: Tensor) -> Operator:
        return super().linearise(1.001 * x)


class Leak(Bent):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *SHAPE)
        return super().forward((flat + 0.1 * flat.mean(0)).reshape(x.shape))


class Mutates(Bent):
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        out = super().vjp(x, v)
        v.mul_(0.5)
        return out


class Draws(Bent):
    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        torch.rand(())
        return super().jvp(x, t)


class Attached(Bent):
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return super().vjp(x, v) + 0 * x.sum() * torch.zeros((), dtype=x.dtype, requires_grad=True)


class OutputShape(Bent):
    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*input_shape[:-1], input_shape[-1] + 1)


class InputShape(Bent):
    def input_shape(self, output_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*output_shape[:-1], output_shape[-1] + 1)


class Field(Bent):
    """Claims real measurements of real images and gives complex ones."""

    def complex_output(self, complex_input: bool) -> bool:
        return complex_input


class VjpField(Bent):
    """Gives complex numbers for the gradient of real images."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        out = super().vjp(x, v)
        return out.to(out.dtype.to_complex())

    def complex_input(self, complex_output: bool) -> bool:
        return False


class Dims(Bent):
    output_dims: ClassVar[int] = 2


def model(thing: ForwardModel) -> None:
    testing.check_forward_model(thing, SHAPE)


FAULTS = [
    ("jvp and vjp off by a factor", JvpFactor, "jvp is the derivative"),
    ("derivatives elsewhere", Frozen, "jvp is the derivative"),
    ("holomorphic derivative", Holomorphic, "jvp is the derivative"),
    ("vjp off by a factor", VjpFactor, r"<J t, v> = "),
    ("vjp of the conjugate", VjpConjugate, r"<J t, v> = "),
    ("linearised elsewhere", Linearised, "linearised at a batch"),
    ("couples the batch", Leak, "batch"),
    ("vjp writes to v", Mutates, "input"),
    ("jvp draws globally", Draws, "global generator"),
    ("vjp with a graph", Attached, "is detached"),
    ("output_shape", OutputShape, "output_shape"),
    ("input_shape", InputShape, "input_shape"),
    ("complex_output", Field, "field of complex_output"),
    ("vjp in another field", VjpField, "vjp has the field of images"),
    ("output_dims", Dims, "output_dims"),
]


@pytest.mark.parametrize(("faulty", "says"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_in_forward_models_is_caught_by_its_name(faulty: Make, says: str) -> None:
    check: Check = model
    caught(check, faulty(), says)


def test_a_sound_model_passes() -> None:
    model(Bent())


def test_where_to_look_is_a_choice() -> None:
    class Late(Bent):
        """Wrong for large images alone."""

        def jvp(self, x: Tensor, t: Tensor) -> Tensor:
            out = super().jvp(x, t)
            return 2 * out if bool((x.abs() > 50).any()) else out

    model(Late())
    with pytest.raises(AssertionError, match="jvp"):
        testing.check_forward_model(Late(), SHAPE, at=torch.full(SHAPE, 100.0))
