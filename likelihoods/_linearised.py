"""The Jacobian of a forward model at an image, as an operator."""

from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape, same_shape, tensor
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._operator import Operator


class Jacobian(Operator):
    """J = dA/dx at ``at``, of a forward model A; made by ``A.linearise(at)``.

    Shapes: at (C, H, W), one for all, or (*batch, C, H, W), one a batch entry; t (*batch, C, H, W) ->
        (*batch, *measurement).
    """

    at: Tensor

    def __init__(self, model: ForwardModel, at: Tensor) -> None:
        super().__init__()
        point = tensor("Jacobian", "at", at)
        self._shape = tuple(point.shape[-EVENT_DIMS:])
        self._measured = model.output_shape(self._shape)
        self.model = model
        self.output_dims = model.output_dims  # type: ignore[misc]
        self.register_buffer("at", point)

    def _point(self, batch: Shape) -> Tensor:
        return self.at.expand(*batch, *self._shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.jvp(self._point(tuple(x.shape[:-EVENT_DIMS])), x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.model.vjp(self._point(tuple(y.shape[: y.dim() - self.output_dims])), y)

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape("Jacobian", "the image", tuple(input_shape), self._shape)
        return self._measured

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape("Jacobian", "the measurement", tuple(output_shape), self._measured)
        return self._shape

    def complex_output(self, complex_input: bool) -> bool:
        return self.model.complex_output(complex_input)

    def complex_input(self, complex_output: bool) -> bool:
        return self.model.complex_input(complex_output)

    @property
    def sampled(self) -> Tensor | None:
        return self.model.sampled

    def describe(self) -> str:
        return f"Jacobian of {self.model.describe()}"
