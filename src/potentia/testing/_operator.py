"""The contract of forward operators."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potentia._random import standard_normal
from potentia._tensor import EVENT_DIMS, inner
from potentia._validate import Shape, shape_text
from potentia.testing._probe import generator_of, identical, in_precision, norms, untouched
from potentia.testing._report import require, require_close, subject

if TYPE_CHECKING:
    from potentia.likelihoods import ForwardModel, Operator


def check_operator(
    operator: "Operator",
    shape: Shape,
    dtype: torch.dtype | None = None,
    *,
    seed: int | torch.Generator = 0,
    tolerance: float | None = None,
) -> None:
    """Check a linear operator: adjoint, normal operator, Gram structure, linearity, batches, purity, shapes, fields.

    The adjoint is that of the real inner product, ``Re <A x, y> = Re <x, A^H y>``; of complex images with complex
    measurements the full inner products must agree. Without ``dtype``, every field that the operator takes is checked
    in double precision; ``tolerance`` is relative to the norms involved, 1e3 roundings by default.

    Shapes: ``shape`` (C, H, W) of an image.
    Raises: AssertionError that names the class, the identity, got and expected.
    """
    generator = generator_of(seed)
    where = subject(operator)
    kinds = [dtype] if dtype is not None else [d for d in (torch.float64, torch.complex128) if takes(operator, d)]
    require(bool(kinds), where, "takes images of some field", "complex_input and complex_output that clash", "one")
    for kind in kinds:
        within = 1e3 * torch.finfo(kind).eps if tolerance is None else tolerance
        _Check(in_precision(operator, kind), tuple(shape), kind, generator, within).run()


def takes(operator: "ForwardModel", dtype: torch.dtype) -> bool:
    """Whether images of this field are what the operator is for: it says so of the measurements that they have."""
    try:
        return operator.complex_input(operator.complex_output(dtype.is_complex)) == dtype.is_complex
    except ValueError:
        return False


class _Check:
    """One field and precision of one operator."""

    def __init__(
        self, operator: "Operator", shape: Shape, dtype: torch.dtype, generator: torch.Generator, tolerance: float
    ) -> None:
        self.where = f"{subject(operator)} on {str(dtype).removeprefix('torch.')} images"
        self.op, self.shape, self.dtype, self.generator, self.tolerance = operator, shape, dtype, generator, tolerance
        self.device = next((t.device for t in operator.buffers()), torch.device("cpu"))
        self.measurement = tuple(operator.output_shape(shape))
        self.field = dtype.to_complex() if operator.complex_output(dtype.is_complex) else dtype.to_real()
        self.x, self.x2 = self._draw((3, *shape), dtype), self._draw((3, *shape), dtype)
        self.y, self.y2 = self._draw((3, *self.measurement), self.field), self._draw((3, *self.measurement), self.field)

    def _draw(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return standard_normal(shape, self.generator, dtype=dtype, device=self.generator.device).to(self.device)

    @property
    def dims(self) -> int:
        return len(self.measurement)

    def _images(self, t: Tensor) -> Tensor:
        """Real images whose adjoint comes back complex stand for their real parts: the real inner product."""
        return t if self.dtype.is_complex or not t.is_complex() else t.real

    def run(self) -> None:
        self._check_shapes()
        x, y = self.x, self.y
        for name, call, v in (("forward", self.op.forward, x), ("adjoint", self.op.adjoint, y)):
            with untouched(f"{self.where}.{name}", self.op, v):
                once, twice = call(v), call(v)
            same = identical(once, twice)
            require(same, f"{self.where}.{name}", "gives the same for the same input", "two results", "one")
        self._check_linear("forward", self.op.forward, self.x, self.x2, self.dims)
        self._check_linear("adjoint", lambda v: self._images(self.op.adjoint(v)), self.y, self.y2, EVENT_DIMS)
        self._check_batches("forward", self.op.forward, self.x, self.dims)
        self._check_batches("adjoint", self.op.adjoint, self.y, EVENT_DIMS)
        self._check_adjoint()
        self._check_normal()
        for weight in (0.75, 0.5 + self._draw(self.measurement, self.dtype.to_real()).square()):
            self._check_gram(weight)

    def _close(self, identity: str, got: Tensor, want: Tensor, dims: int, size: Tensor | None = None) -> None:
        size = norms(want, dims) if size is None else size
        bound = self.tolerance * size.reshape(*size.shape, *(1,) * dims)
        require_close(self.where, identity, got, want, bound)

    def _check_shapes(self) -> None:
        op = self.op
        y = op.forward(self.x)
        got, want = tuple(y.shape), (3, *self.measurement)
        require(got == want, self.where, "forward has the shape of output_shape", shape_text(got), shape_text(want))
        require(
            y.dtype == self.field, self.where, "measurements are in the field of complex_output", y.dtype, self.field
        )
        require(op.output_dims == self.dims, self.where, "output_dims counts output_shape", op.output_dims, self.dims)
        back = tuple(op.input_shape(self.measurement))
        require(
            back == self.shape, self.where, "input_shape undoes output_shape", shape_text(back), shape_text(self.shape)
        )
        x = op.adjoint(self.y)
        got, want = tuple(x.shape), (3, *self.shape)
        require(got == want, self.where, "adjoint gives images", shape_text(got), shape_text(want))
        if takes(op, self.dtype):
            require(
                x.dtype == self.dtype, self.where, "adjoint gives images in the operator's field", x.dtype, self.dtype
            )

    def _check_linear(self, name: str, call: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, dims: int) -> None:
        # Adjoints in the real inner product are real linear only.
        factor = complex(1.5, -0.5) if a.is_complex() and self.dtype.is_complex else 1.5
        got, want = call(factor * a - 2 * b), factor * call(a) - 2 * call(b)
        size = 2 * norms(call(a), dims) + 2 * norms(call(b), dims)
        self._close(f"{name} is linear", got, want, dims, size)

    def _check_batches(self, name: str, call: Callable[[Tensor], Tensor], v: Tensor, dims: int) -> None:
        together = call(v)
        alone = torch.stack([call(one) for one in v])
        self._close(f"{name} of a batch is that of each entry alone", together, alone, dims)
        nested = call(torch.stack([v, v], dim=1))
        identity = f"{name} takes batches of two dimensions"
        self._close(identity, nested, torch.stack([alone, alone], dim=1), dims)
        other = v.clone()
        other[0] = 10 * other[0] + 1
        self._close(f"{name}: another entry in the batch leaves the others alone", call(other)[1:], alone[1:], dims)

    def _check_adjoint(self) -> None:
        ax, ahy = self.op.forward(self.x), self.op.adjoint(self.y)
        bound = self.tolerance * (norms(ax, self.dims) * norms(self.y, self.dims) + norms(self.x) * norms(ahy))
        left, right = inner(ax, self.y, self.dims), inner(self.x, ahy)
        require_close(self.where, "Re <A x, y> = Re <x, A^H y>", left, right, bound)
        if self.dtype.is_complex and self.field.is_complex:
            # Im <a, b> = Re <i a, b> for an inner product that is conjugate in its first argument.
            left, right = inner(1j * ax, self.y, self.dims), inner(1j * self.x, ahy)
            require_close(self.where, "Im <A x, y> = Im <x, A^H y>", left, right, bound)

    def _check_normal(self) -> None:
        want = self._images(self.op.adjoint(self.op.forward(self.x)))
        got = self._images(self.op.normal(self.x))
        self._close("normal is adjoint after forward", got, want, EVENT_DIMS, self._normal_size(want))

    def _check_gram(self, weight: float | Tensor) -> None:
        kind = "a weight per measurement" if isinstance(weight, Tensor) else "one weight"
        want = self._images(self.op.adjoint(weight * self.op.forward(self.x)))
        got = self._images(self.op.gram(weight, self.shape).apply(self.x))
        self._close(f"gram is A^H diag(w) A, {kind}", got, want, EVENT_DIMS, self._normal_size(want))

    def _normal_size(self, want: Tensor) -> Tensor:
        """Rounding enters at the size of the measurements: |A^H A x| alone may be much smaller."""
        return norms(want) + norms(self.op.forward(self.x), self.dims)
