"""Linear operators of PyLops and SciPy as operators of ours."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape, same_shape, shape_text
from potentia.likelihoods._linear_map import linear_map
from potentia.likelihoods._operator import Operator
from potentia.likelihoods._outside import check_adjoint, image_shape, normal

_NAME = "from_pylops"


def from_pylops(op: Any, shape: Shape, *, real: bool | None = None) -> Operator:
    """An operator made of a ``pylops.LinearOperator``, or of a ``scipy.sparse.linalg.LinearOperator``.

    What is used is ``op.matmat`` and ``op.rmatmat``, on the CPU and in the operator's own precision, whatever device
    and precision tensors come in; autograd sees through it. Whether ``rmatmat`` is the adjoint in the real inner
    product is tried out on random images.

    A real operator takes real images, and complex ones part by part. A complex operator gives complex measurements, of
    real images if ``real``: by default those that PyLops marks as linear over real numbers alone, such as
    ``FFT2D(real=True)``.

    Shapes: ``shape`` (C, H, W) of images, with as many pixels as the operator has columns, in the order of ``op.dims``;
        x (*batch, C, H, W) -> (*batch, *op.dimsd), or (*batch, M) where the operator has no dimsd.
    Raises: TypeError if it is no linear operator; ValueError if it does not fit the shape or its adjoint is none.
    Source: the protocol of pylops.LinearOperator; PyLops is not imported.
    """
    if not (hasattr(op, "matmat") and hasattr(op, "rmatmat") and hasattr(op, "shape")):
        raise TypeError(f"{_NAME}: expected an operator with matmat and rmatmat, got {type(op).__name__}")
    operator = PylopsOperator(op, image_shape(_NAME, shape), real)
    complex_images = operator.is_complex and not operator.real
    device = torch.device("cpu")
    x = normal((2, *operator.shape), torch.complex128 if complex_images else torch.float64, device, 0)
    field = torch.complex128 if operator.is_complex else torch.float64
    y = normal((2, *operator.measurement), field, device, 1)
    check_adjoint(operator.describe(), operator.forward, operator.adjoint, x, y)
    return operator


class PylopsOperator(Operator):
    """A x of an operator with matmat and rmatmat; see ``from_pylops``."""

    def __init__(self, op: Any, shape: Shape, real: bool | None) -> None:
        super().__init__()
        self.op = op
        rows, columns = (int(n) for n in op.shape)
        if columns != torch.Size(shape).numel():
            raise ValueError(
                f"{_NAME}: the operator has shape ({rows}, {columns}), expected as many columns as an image of shape "
                f"{shape_text(shape)} has pixels"
            )
        self.shape = shape
        self.measurement = tuple(int(n) for n in getattr(op, "dimsd", (rows,)))
        self.dtype = np.dtype(op.dtype)
        self.is_complex = self.dtype.kind == "c"
        self.real = self.is_complex and (not getattr(op, "clinear", True) if real is None else real)
        self.output_dims = len(self.measurement)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        return linear_map(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        return linear_map(y, self._adjoint, self._forward)

    def _forward(self, x: Tensor) -> Tensor:
        if x.is_complex() and not self.is_complex:
            return torch.complex(self._forward(x.real), self._forward(x.imag))
        dtype = self._real_dtype if self.real else self.dtype
        y = self.op.matmat(_columns(x.real if self.real else x, EVENT_DIMS, dtype))
        return self._tensor(y, x, (*x.shape[:-EVENT_DIMS], *self.measurement), self.is_complex)

    def _adjoint(self, y: Tensor) -> Tensor:
        if y.is_complex() and not self.is_complex:
            return torch.complex(self._adjoint(y.real), self._adjoint(y.imag))
        x = self.op.rmatmat(_columns(y, self.output_dims, self.dtype))
        shape = (*y.shape[: y.dim() - self.output_dims], *self.shape)
        return self._tensor(x, y, shape, self.is_complex and not self.real)

    @property
    def _real_dtype(self) -> np.dtype[Any]:
        return np.finfo(self.dtype).dtype

    @staticmethod
    def _tensor(columns: NDArray[Any], like: Tensor, shape: Shape, is_complex: bool) -> Tensor:
        t = torch.from_numpy(np.ascontiguousarray(columns.T))
        if t.is_complex() and not is_complex:
            t = t.real
        dtype = like.dtype.to_complex() if is_complex else like.dtype.to_real()
        return t.to(like.device, dtype).reshape(shape)

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape(self.describe(), "the image", tuple(input_shape), self.shape)
        return self.measurement

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape(self.describe(), "the measurement", tuple(output_shape), self.measurement)
        return self.shape

    def complex_output(self, complex_input: bool) -> bool:
        return self.is_complex or complex_input

    def complex_input(self, complex_output: bool) -> bool:
        if not self.is_complex:
            return complex_output
        if not complex_output:
            raise ValueError(f"{self.describe()}: measurements are complex, got real ones")
        return not self.real

    def describe(self) -> str:
        return f"{type(self.op).__module__.split('.')[0]} {type(self.op).__name__}"


def _columns(t: Tensor, dims: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """One column a batch entry: (*batch, *event) -> (numbers, N)."""
    flat = t.detach().cpu().resolve_conj().flatten(t.dim() - dims)
    columns: NDArray[Any] = flat.reshape(-1, flat.shape[-1]).numpy().T.astype(dtype)
    return columns
