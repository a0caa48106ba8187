"""Forward models, linear or not: from images to noise-free measurements."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from potentia._module import Module
from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape

if TYPE_CHECKING:
    from potentia.likelihoods._operator import Operator


class ForwardModel(Module, ABC):
    """A differentiable map A from images to measurements; ``Operator`` is the linear case.

    Subclasses give ``forward`` and the shapes. ``vjp``, ``jvp`` and ``linearise`` come from autograd unless a closed
    form is given. Derivatives are those of the real inner product Re <a, b>, in which complex numbers count as pairs.

    Shapes: x (*batch, C, H, W); y (*batch, *measurement), with ``output_dims`` dimensions a measurement.
    """

    output_dims: ClassVar[int] = EVENT_DIMS

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (*batch, C, H, W) -> (*batch, *measurement)."""

    @abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Shape of the measurement of an image.

        Raises: ValueError for images that the model does not take.
        """

    @abstractmethod
    def input_shape(self, output_shape: Shape) -> Shape:
        """Shape (C, H, W) of the images that have such measurements.

        Raises: ValueError for measurements that the model cannot give.
        """

    def complex_output(self, complex_input: bool) -> bool:
        """Whether measurements of real or complex images are complex."""
        return complex_input

    def complex_input(self, complex_output: bool) -> bool:
        """Whether images that have real or complex measurements are complex.

        Raises: ValueError for measurements that the model cannot give.
        """
        return complex_output

    @property
    def sampled(self) -> Tensor | None:
        """Where measurements are taken, True or False, broadcasting against them; None for everywhere."""
        return None

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """J^H v, J the Jacobian at x: the gradient of Re <v, A(x)> in x.

        Shapes: x (*batch, C, H, W); v (*batch, *measurement) -> the shape of x.
        """
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = self(z)
        (product,) = torch.autograd.grad(y, z, v.detach().to(y.dtype))
        return product

    def jvp(self, x: Tensor, t: Tensor) -> Tensor:
        """J t, J the Jacobian at x.

        Shapes: x and t (*batch, C, H, W) -> (*batch, *measurement).
        """
        # J^H v is linear in v, and its own vjp is J t: unlike forward differentiation, that needs of the model no more
        # than ``vjp`` does, such as of autograd functions that people write themselves.
        z = x.detach().requires_grad_(True)
        with torch.enable_grad():
            y = self(z)
            v = torch.zeros_like(y).requires_grad_(True)
            (pulled,) = torch.autograd.grad(y, z, v, create_graph=True)
        (pushed,) = torch.autograd.grad(pulled, v, t.detach().to(x.dtype))
        return pushed

    def linearise(self, x: Tensor) -> "Operator":
        """The Jacobian at x as a linear operator.

        Shapes: x (C, H, W), one for all, or (*batch, C, H, W), one a batch entry.
        """
        from potentia.likelihoods._linearised import Jacobian

        return Jacobian(self, x)

    def __matmul__(self, other: "ForwardModel") -> "ForwardModel":
        """``B @ A``: first A, then B."""
        from potentia.likelihoods._chain import Chain

        return Chain(self, other) if isinstance(other, ForwardModel) else NotImplemented

    def __repr__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """One line for the printed tree."""
        return f"{type(self).__name__}({self.extra_repr()})"
