"""Forward models one after another: what all of them share, and the case that is not linear."""

from torch import Tensor

from potentia._validate import Shape
from potentia.likelihoods._forward_model import ForwardModel


class Composed(ForwardModel):
    """(B A)(x) = B(A(x)), written ``B @ A``."""

    def __init__(self, outer: ForwardModel, inner: ForwardModel) -> None:
        super().__init__()
        self.outer = outer
        self.inner = inner
        self.output_dims = outer.output_dims  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(self.inner(x))
        return y

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.outer.output_shape(self.inner.output_shape(input_shape))

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.inner.input_shape(self.outer.input_shape(output_shape))

    def complex_output(self, complex_input: bool) -> bool:
        return self.outer.complex_output(self.inner.complex_output(complex_input))

    def complex_input(self, complex_output: bool) -> bool:
        return self.inner.complex_input(self.outer.complex_input(complex_output))

    @property
    def sampled(self) -> Tensor | None:
        return self.outer.sampled

    def describe(self) -> str:
        return f"{self.outer.describe()} @ {self.inner.describe()}"


class Chain(Composed):
    """B @ A where one at least is not linear: derivatives by the chain rule, from those that the two give."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.inner.vjp(x, self.outer.vjp(self.inner(x).detach(), v))

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        return self.outer.jvp(self.inner(x).detach(), self.inner.jvp(x, t))
