"""Forward models of deepinv as forward models and operators of ours."""

from typing import Any, Literal

import torch
from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape, same_shape, shape_text
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._operator import Operator
from potentia.likelihoods._outside import check_adjoint, image_shape, is_additive, normal

_NAME = "from_deepinv"


def from_deepinv(
    physics: Any,
    shape: Shape,
    *,
    complex_images: bool | None = None,
    adjoint: Literal["given", "autograd"] = "given",
) -> ForwardModel:
    """A forward model made of a physics of deepinv: an ``Operator`` if it is linear, else a ``ForwardModel``.

    What is used is ``physics.A`` and, of linear ones, ``physics.A_adjoint``; its noise model is not: noise is the
    likelihood's. Whether A is linear, and ``A_adjoint`` its adjoint in the real inner product, is tried out on random
    images, and so is whether A takes batches; if not, it gets one image at a time. Where ``A_adjoint`` is something
    else, such as an approximation, "autograd" has the exact adjoint of any linear A that is differentiated as it is.
    Derivatives of models that are not linear come from autograd.

    Physics that keep complex numbers as two real channels, as those of MRI do, meet complex images and give complex
    measurements: (N, 2, ...) there is (N, ...) here. Measurements that are lists of tensors become one vector.

    Shapes: ``shape`` (C, H, W) of images; x (*batch, C, H, W) -> (*batch, *measurement), as the physics gives it. For
        two real channels, one image (1, H, W) is (2, H, W) there, and C frames or slices (2, C, H, W).
    Raises: TypeError if it has no method A; ValueError for images that it does not take, and if its adjoint is none.
    Source: the protocol of deepinv.physics.Physics; deepinv is not imported.
    """
    if not callable(getattr(physics, "A", None)):
        raise TypeError(f"{_NAME}: expected a physics with a method A, got {type(physics).__name__}")
    if adjoint not in ("given", "autograd"):
        raise ValueError(f"{_NAME}: adjoint is {adjoint!r}, expected 'given' or 'autograd'")
    shape = image_shape(_NAME, shape)
    paired = callable(getattr(physics, "to_torch_complex", None))
    if paired and complex_images is False:
        raise ValueError(f"{_NAME}: {type(physics).__name__} takes complex images, got complex_images=False")
    layout = _Layout(physics, shape, paired, paired or bool(complex_images))
    x = layout.draw(shape, layout.complex_images, seed=0)
    if not (callable(getattr(physics, "A_adjoint", None)) and is_additive(layout.forward, x)):
        return DeepinvModel(layout)
    operator = DeepinvOperator(layout, adjoint)
    y = layout.draw(layout.measurement, layout.complex_measurements, seed=1)
    remedy = ", or adjoint='autograd'" if adjoint == "given" else ""
    where = f"{_NAME}: {type(physics).__name__}"
    check_adjoint(where, layout.forward, operator.adjoint, x, y, remedy)
    return operator


class _Layout(torch.nn.Module):
    """A physics with images and measurements the way we have them.

    Shapes: images (*batch, C, H, W); measurements (*batch, *measurement).
    """

    def __init__(self, physics: Any, shape: Shape, paired: bool, complex_images: bool) -> None:
        super().__init__()
        self.physics = physics
        self.shape, self.paired, self.complex_images = shape, paired, complex_images
        x = self.draw(shape, complex_images, seed=0)
        try:
            y = physics.A(self.to_theirs(x[:1]))
        except (RuntimeError, ValueError, IndexError, AssertionError) as err:
            got = shape_text(tuple(self.to_theirs(x[:1]).shape))
            raise ValueError(f"{_NAME}: {type(physics).__name__} does not take images of shape {got}: {err}") from err
        # The shapes of what is listed; the type of the list, to make one again.
        self.parts = None if isinstance(y, Tensor) else [tuple(part.shape[1:]) for part in y]
        self.kind = None if isinstance(y, Tensor) else type(y)
        joined = self._join(y)
        self.measurement = tuple(joined.shape[1:])
        self.complex_measurements = joined.is_complex()
        self.batched = self._takes_batches(x)

    def _takes_batches(self, x: Tensor) -> bool:
        """Whether two images are measured as each alone: some physics take one at a time."""
        try:
            together = self._measure(x)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            return False
        alone = torch.cat([self._measure(one) for one in x.split(1)])
        return together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-3, atol=1e-4)

    def draw(self, shape: Shape, is_complex: bool, seed: int) -> Tensor:
        """Two of random numbers, where the physics is and in its precision."""
        held = [*self.physics.parameters(), *self.physics.buffers()] if hasattr(self.physics, "buffers") else []
        held = [t for t in held if t.is_floating_point() or t.is_complex()]
        precision = torch.float64 if any(t.dtype.to_real() == torch.float64 for t in held) else torch.float32
        device = next((t.device for t in held), torch.device("cpu"))
        return normal((2, *shape), precision.to_complex() if is_complex else precision, device, seed)

    def to_theirs(self, x: Tensor) -> Tensor:
        """Images for the physics: (N, C, H, W), or (N, 2, H, W) or (N, 2, C, H, W) for two real channels."""
        if not self.paired:
            return x
        pair = torch.view_as_real(x.resolve_conj()).movedim(-1, 1)
        return (pair.squeeze(2) if self.shape[0] == 1 else pair).contiguous()

    def to_ours(self, x: Tensor) -> Tensor:
        """Images of the physics as ours: (N, ...) -> (N, C, H, W)."""
        x = self._paired(x) if self.paired else x
        return (x if self.complex_images or not x.is_complex() else x.real).reshape(-1, *self.shape)

    @staticmethod
    def _paired(t: Tensor) -> Tensor:
        return torch.view_as_complex(t.movedim(1, -1).contiguous())

    def _join(self, y: Any) -> Tensor:
        """Measurements as one tensor of ours."""
        if isinstance(y, Tensor):
            return self._paired(y) if self.paired else y
        return torch.cat([part.flatten(1) for part in y], 1)

    def split(self, y: Tensor) -> Any:
        """Measurements as the physics has them."""
        if self.parts is None or self.kind is None:
            return torch.view_as_real(y.resolve_conj()).movedim(-1, 1).contiguous() if self.paired else y
        sizes = [torch.Size(part).numel() for part in self.parts]
        pieces = zip(y.split(sizes, 1), self.parts, strict=True)
        return self.kind([piece.reshape(-1, *part) for piece, part in pieces])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, *self.shape)
        y = self._measure(flat) if self.batched else torch.cat([self._measure(one) for one in flat.split(1)])
        return y.reshape(*x.shape[:-EVENT_DIMS], *self.measurement)

    def _measure(self, x: Tensor) -> Tensor:
        return self._join(self.physics.A(self.to_theirs(x)))

    def adjoint(self, y: Tensor) -> Tensor:
        """The adjoint that the physics gives."""
        batch = y.shape[: y.dim() - len(self.measurement)]
        flat = y.reshape(-1, *self.measurement)
        parts = [flat] if self.batched else flat.split(1)
        x = torch.cat([self.to_ours(self.physics.A_adjoint(self.split(part))) for part in parts])
        return x.reshape(*batch, *self.shape)


class DeepinvModel(ForwardModel):
    """A(x), not linear, of a physics of deepinv; see ``from_deepinv``."""

    def __init__(self, layout: _Layout) -> None:
        super().__init__()
        self.layout = layout
        self.output_dims = len(layout.measurement)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layout(x)
        return y

    def output_shape(self, input_shape: Shape) -> Shape:
        same_shape(self.describe(), "the image", tuple(input_shape), self.layout.shape)
        return self.layout.measurement

    def input_shape(self, output_shape: Shape) -> Shape:
        same_shape(self.describe(), "the measurement", tuple(output_shape), self.layout.measurement)
        return self.layout.shape

    def complex_output(self, complex_input: bool) -> bool:
        return self.layout.complex_measurements

    def complex_input(self, complex_output: bool) -> bool:
        if complex_output != self.layout.complex_measurements:
            fields = ("real", "complex")
            raise ValueError(f"{self.describe()}: measurements are {fields[not complex_output]}, got the other field")
        return self.layout.complex_images

    def describe(self) -> str:
        return f"deepinv {type(self.layout.physics).__name__}"


class DeepinvOperator(DeepinvModel, Operator):
    """A x of a linear physics of deepinv; see ``from_deepinv``."""

    def __init__(self, layout: _Layout, adjoint: Literal["given", "autograd"]) -> None:
        super().__init__(layout)
        self.given = adjoint == "given"

    def adjoint(self, y: Tensor) -> Tensor:
        if self.given:
            return self.layout.adjoint(y)
        # Of a linear map, the gradient of <A z, y> is the same at every z.
        batch = y.shape[: y.dim() - self.output_dims]
        dtype = y.dtype.to_complex() if self.layout.complex_images else y.dtype.to_real()
        z = torch.zeros(*batch, *self.layout.shape, dtype=dtype, device=y.device, requires_grad=True)
        with torch.enable_grad():
            (x,) = torch.autograd.grad(self.layout(z), z, y, create_graph=torch.is_grad_enabled() and y.requires_grad)
        return x
