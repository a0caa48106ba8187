"""Forward operators and their algebra: ``A @ B``, ``A + B``, ``2 * A``."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from potentia._algebra import is_scalar
from potentia._quadratic import Diagonal, Fourier, MatrixFree, Structure
from potentia._random import Generators, standard_normal
from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape, real_number, shape_text
from potentia.likelihoods._chain import Composed
from potentia.likelihoods._forward_model import ForwardModel

Weight = float | Tensor


class Operator(ForwardModel):
    """A linear map A from images to measurements.

    Subclasses give ``forward``, ``adjoint`` and the shapes; ``gram`` where A^H W A has a structure to keep.
    The adjoint is that of the real inner product Re <a, b>: an operator of real images with complex measurements
    returns the real part.

    Shapes: x (*batch, C, H, W); y (*batch, *measurement), with ``output_dims`` dimensions a measurement.
    """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^H y: (*batch, *measurement) -> (*batch, C, H, W)."""

    def normal(self, x: Tensor) -> Tensor:
        """A^H A x, in the shape of x."""
        return self.adjoint(self.forward(x))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """A^H v, wherever x lies."""
        return self.adjoint(v)

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        """A t, wherever x lies."""
        return self.forward(t)

    def linearise(self, x: Tensor) -> "Operator":
        """The operator itself, which is its own Jacobian."""
        return self

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """A^H diag(weight) A with its structure kept, for weights of zero or more.

        Shapes: weight a number or broadcasting against measurements; input_shape (C, H, W).
        """
        return self._matrix_free(weight, input_shape)

    def _matrix_free(self, weight: Weight, input_shape: Shape, approximation: Fourier | None = None) -> MatrixFree:
        measurement = self.output_shape(input_shape)

        def sample_noise(generator: Generators, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            field = dtype.to_complex() if self.complex_output(dtype.is_complex) else dtype.to_real()
            batch = tuple(shape)[:-EVENT_DIMS]
            device = weight.device if isinstance(weight, Tensor) else None
            z = standard_normal((*batch, *measurement), generator, dtype=field, device=device)
            return self.adjoint(z * weight**0.5).to(dtype)

        return MatrixFree(lambda x: self.adjoint(weight * self.forward(x)), sample_noise, approximation)

    def measure(self, x: Tensor, noise_std: float | Tensor, generator: Generators) -> Tensor:
        """A x plus white Gaussian noise where measurements are taken, zero elsewhere.

        The real and the imaginary part of complex measurements each get noise of std ``noise_std``.

        Shapes: x (*batch, C, H, W) -> (*batch, *measurement); noise_std a number or broadcasting against it.
        """
        clean = self.forward(x)
        y = clean + noise_std * standard_normal(clean.shape, generator, dtype=clean.dtype, device=clean.device)
        return y if self.sampled is None else y * self.sampled

    @overload
    def __matmul__(self, other: "Operator") -> "Operator": ...
    @overload
    def __matmul__(self, other: ForwardModel) -> ForwardModel: ...
    def __matmul__(self, other: ForwardModel) -> ForwardModel:
        return Composition(self, other) if isinstance(other, Operator) else super().__matmul__(other)

    def __add__(self, other: object) -> "Operator":
        return OperatorSum(self, other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: object) -> "Operator":
        return ScaledOperator(self, factor) if is_scalar(factor) else NotImplemented

    __rmul__ = __mul__


class Composition(Composed, Operator):
    """(A B) x = A (B x), written ``A @ B``, both linear."""

    outer: Operator
    inner: Operator

    def __init__(self, outer: Operator, inner: Operator) -> None:
        super().__init__(outer, inner)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """B^H (A^H W A) B: the structure of the inner operator where A^H W A is diagonal, else matrix-free."""
        middle = self.outer.gram(weight, self.inner.output_shape(input_shape))
        if isinstance(middle, Diagonal):
            return self.inner.gram(middle.precision, input_shape)
        inner = self.inner.gram(1.0, input_shape)
        # Convolutions of images commute, so that their spectra multiply; what maps to k-space does not count.
        if isinstance(middle, Fourier) and isinstance(inner, Fourier) and not _maps_to_fourier(self.inner):
            return Fourier(middle.spectrum * inner.spectrum)
        return self._matrix_free(weight, input_shape)


def _maps_to_fourier(operator: Operator) -> bool:
    """Whether an operator's measurements live in another space than images."""
    return operator.complex_output(False) or operator.complex_input(True) != operator.complex_output(True)


class OperatorSum(Operator):
    """(A + B) x = A x + B x.

    Raises: ValueError, when used, if the two disagree about shapes.
    """

    def __init__(self, first: Operator, second: Operator) -> None:
        super().__init__()
        if first.output_dims != second.output_dims:
            raise ValueError(
                f"{first.describe()} has measurements of {first.output_dims} dimensions and {second.describe()} of "
                f"{second.output_dims}; the terms of a sum must agree"
            )
        self.first = first
        self.second = second
        self.output_dims = first.output_dims  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x) + self.second(x)
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        return self.first.adjoint(y) + self.second.adjoint(y)

    def _agree(self, got: Shape, other: Shape) -> Shape:
        if got != other:
            raise ValueError(f"{self.describe()}: the terms give shapes {shape_text(got)} and {shape_text(other)}")
        return got

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._agree(self.first.output_shape(input_shape), self.second.output_shape(input_shape))

    def input_shape(self, output_shape: Shape) -> Shape:
        return self._agree(self.first.input_shape(output_shape), self.second.input_shape(output_shape))

    def complex_output(self, complex_input: bool) -> bool:
        return self.first.complex_output(complex_input) or self.second.complex_output(complex_input)

    def complex_input(self, complex_output: bool) -> bool:
        return self.first.complex_input(complex_output)

    @property
    def sampled(self) -> Tensor | None:
        a, b = self.first.sampled, self.second.sampled
        return None if a is None or b is None else a | b

    def describe(self) -> str:
        return f"({self.first.describe()} + {self.second.describe()})"


class ScaledOperator(Operator):
    """x -> factor * A x, for a real factor.

    Raises: ValueError if the factor is zero or not finite.
    """

    def __init__(self, operator: Operator, factor: Any) -> None:
        super().__init__()
        self.factor = real_number(operator.describe(), "the factor", factor)
        if self.factor == 0:
            raise ValueError(f"{operator.describe()}: the factor must not be zero: nothing would be measured")
        self.operator = operator
        self.output_dims = operator.output_dims  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)

    def output_shape(self, input_shape: Shape) -> Shape:
        return self.operator.output_shape(input_shape)

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.operator.input_shape(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return self.operator.complex_output(complex_input)

    def complex_input(self, complex_output: bool) -> bool:
        return self.operator.complex_input(complex_output)

    @property
    def sampled(self) -> Tensor | None:
        return self.operator.sampled

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        return self.operator.gram(weight, input_shape) * self.factor**2

    def describe(self) -> str:
        return f"{self.factor:g} * {self.operator.describe()}"
