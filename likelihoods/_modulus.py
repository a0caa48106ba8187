"""Magnitudes and intensities of what a forward model gives."""

from torch import Tensor

from potentia._tensor import squared_magnitude
from potentia._validate import Shape
from potentia.likelihoods._forward_model import ForwardModel


class Modulus(ForwardModel):
    """|A(x)|, or |A(x)|^2 if ``intensity``; where A(x) = 0, the derivative of the magnitude is taken as 0.

    Shapes: those of A, with real measurements; A(x) complex or real.
    """

    def __init__(self, operator: ForwardModel, *, intensity: bool = False) -> None:
        super().__init__()
        self.operator = operator
        self.intensity = intensity
        self.output_dims = operator.output_dims  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.operator(x)
        return squared_magnitude(z) if self.intensity else z.abs()

    def _direction(self, x: Tensor) -> Tensor:
        """The gradient of a measurement in z = A(x): z / |z|, or 2 z for intensities."""
        z: Tensor = self.operator(x.detach())
        return 2 * z if self.intensity else z.sgn()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.operator.vjp(x, self._direction(x) * v)

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        change: Tensor = self._direction(x).conj() * self.operator.jvp(x, t)
        return change.real

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.operator.output_shape(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.operator.input_shape(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return False

    @property
    def sampled(self) -> Tensor | None:
        return self.operator.sampled

    def describe(self) -> str:
        bars = f"|{self.operator.describe()}|"
        return f"{type(self).__name__}({bars}{'^2' if self.intensity else ''})"
