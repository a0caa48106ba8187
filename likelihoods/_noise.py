"""Noise models: what all of them share that are independent from one measurement to the next."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potentia._potential import Likelihood, Sigma
from potentia._quadratic import Quadratic, Structure
from potentia._tensor import EVENT_DIMS, inner, sum_event
from potentia._validate import shape_text, tensor
from potentia.likelihoods._basic import Identity
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._operator import Operator

Pull = Callable[[Tensor], Tensor]


class NoiseModel(Likelihood):
    """L(x) = sum over the measurements of l(z, y), z = A(x): noise that is independent of one to the next given z.

    Subclasses give, for each measurement: ``entries``, l itself, up to a constant; ``slopes``, its derivative in z;
    ``curvatures``, what to take for its second derivative; ``draw``, a sample of y; ``log_normalisers``, the constant.
    A is any forward model; only what it samples counts. ``forward`` can be differentiated once: the gradient is
    the closed form.

    Shapes: y (*measurement) as A gives it; x (*batch, C, H, W); returns (*batch,), float64. Units: nats.
    Raises: ValueError if y is NaN or infinite, lies where the noise model has no density, or if A and y disagree about
        shape or field.
    """

    default_name: ClassVar[str] = "noise"
    degree: ClassVar[float | None] = None
    """Degree of l as a homogeneous function of z - y: what the normaliser of a weighted L follows from."""
    takes_complex: ClassVar[bool] = False
    blank: ClassVar[float] = 0.0
    """What stands in y where nothing is measured."""

    def __init__(self, y: object, operator: ForwardModel | None = None) -> None:
        super().__init__()
        self.operator = Identity() if operator is None else operator
        data = tensor(self.name, "y", y)
        if data.is_complex() and not self.takes_complex:
            raise ValueError(f"{self.name}: y has dtype {data.dtype}, expected real measurements")
        self._event_shape, self._is_complex = self._domain(data)
        self.register_buffer("y", self._measured(data, self.blank))

    @abstractmethod
    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        """The misfit l(z, y) of each measurement, real: the shape that z and y broadcast to."""

    @abstractmethod
    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        """Its derivative in z for each measurement; of complex z, dl/dRe + i dl/dIm."""

    @abstractmethod
    def curvatures(self, z: Tensor) -> Tensor:
        """The Fisher information of z, or what stands for it, zero or more: broadcasts against z, real."""

    @abstractmethod
    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """A measurement for each z, in its shape."""

    @abstractmethod
    def log_normalisers(self) -> Tensor:
        """Log of the integral of exp(-l) over each measurement (its real part, for complex ones), float64.

        Shapes: broadcasts against y.
        """

    @abstractmethod
    def parameters_text(self) -> str:
        """The parameters of the noise, for the printed tree."""

    def _domain(self, data: Tensor) -> tuple[tuple[int, ...], bool]:
        """Shape of the images that such measurements are of, and whether they are complex."""
        try:
            shape = self.operator.input_shape(tuple(data.shape))
            field = self._image_field(data)
        except ValueError as err:
            raise ValueError(f"{self.name}: y of shape {shape_text(tuple(data.shape))} does not fit: {err}") from err
        return tuple(shape), field

    def _image_field(self, data: Tensor) -> bool:
        field = self.operator.complex_input(data.is_complex())
        if self.operator.complex_output(field) != data.is_complex():
            raise ValueError(f"y has dtype {data.dtype}, but {self.operator.describe()} gives another field")
        return field

    def _measured(self, t: Tensor, blank: float = 0.0) -> Tensor:
        """``blank`` wherever nothing is measured."""
        sampled = self.operator.sampled
        return t if sampled is None else torch.where(sampled, t, blank)

    def _taken(self, t: Tensor) -> Tensor:
        """Those of one number a measurement that are measured, as a vector."""
        sampled = self.operator.sampled
        return t.flatten() if sampled is None else t[sampled.expand(t.shape)]

    def _linked(self, z: Tensor, y: Tensor) -> Tensor:
        """``entries`` with ``slopes`` as their derivative."""
        if not (z.requires_grad and torch.is_grad_enabled()):
            return self.entries(z, y)
        with torch.no_grad():
            value, slope = self.entries(z, y), self.slopes(z, y)
        linked: Tensor = _Linked.apply(z, value, slope)  # type: ignore[no-untyped-call]
        return linked

    def _total(self, entries: Tensor) -> Tensor:
        return sum_event(self._measured(entries), self.operator.output_dims)

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """L(x) in nats; sigma is ignored. (*batch, C, H, W) -> (*batch,)."""
        return self.misfit(x, self.y)

    def misfit(self, x: Tensor, y: Tensor) -> Tensor:
        """L(x) had y been measured: x (*batch, C, H, W) and y (*batch, *measurement) -> (*batch,)."""
        self.check(x)
        return self._total(self._linked(self.operator(x), y))

    def residual(self, x: Tensor) -> Tensor:
        """A(x) - y, zero where nothing is measured: (*batch, C, H, W) -> (*batch, *measurement)."""
        self.check(x)
        return self._measured(self.operator(x) - self.y)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """J^H dl/dz, J the Jacobian of A at x: the shape of x."""
        return self.value_and_grad(x, sigma)[1]

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """L and its gradient from one application of A and one of its adjoint."""
        self.check(x)
        with torch.no_grad():
            z, pull = evaluated(self.operator, x.detach())
            value = self._total(self.entries(z, self.y))
            return value, pull(self._measured(self.slopes(z, self.y))).to(x.dtype)

    def gauss_newton(self, x: Tensor) -> Quadratic:
        """The quadratic form about an image with L's value and gradient there and precision J^H W J.

        J is the Jacobian of A, W the ``curvatures`` of the noise. Of a Gaussian likelihood with a linear operator it is
        the exact form, wherever x lies.

        Shapes: x (C, H, W). Raises: ValueError for another shape or field.
        """
        self.check(x)
        if x.dim() != EVENT_DIMS:
            raise ValueError(f"{self.name}: x has shape {shape_text(tuple(x.shape))}, expected one image (C, H, W)")
        at = x.detach().to(device=self.y.device, dtype=self._image_dtype())
        with torch.no_grad():
            structure = self._precision(self._tangent(at), self.operator(at))
        value, grad = self.value_and_grad(at)
        applied = structure.apply(at)
        return Quadratic(structure, applied - grad, value + 0.5 * inner(at, applied) - inner(grad, at))

    def _image_dtype(self) -> torch.dtype:
        return self.y.dtype.to_complex() if self._is_complex else self.y.dtype.to_real()

    def _tangent(self, x: Tensor) -> Operator:
        """The Jacobian, at x, of what the noise depends on."""
        return self.operator.linearise(x)

    def _precision(self, tangent: Operator, z: Tensor) -> Structure:
        return tangent.gram(as_weight(self.curvatures(z), tangent.output_dims), self._event_shape)

    def log_normaliser(self) -> Tensor:
        """Log of the integral of exp(-L) over all that is measured; masked entries do not count.

        Shapes: returns a number, float64.
        """
        total = self._measured(self.log_normalisers().expand(self.y.shape)).sum()
        return total * (2 if self.y.is_complex() else 1)

    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw measurements of x, with this likelihood's noise: (*batch, C, H, W) -> (*batch, *measurement)."""
        self.check(x)
        with torch.no_grad():
            return self._measured(self.draw(self.operator(x), generator), self.blank)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._event_shape

    @property
    def is_complex(self) -> bool:
        return self._is_complex

    def extra_repr(self) -> str:
        dtype = str(self.y.dtype).removeprefix("torch.")
        return f"y {shape_text(tuple(self.y.shape))} {dtype}, {self.parameters_text()}, images"

    def parts(self) -> list[tuple[str, Any]]:
        return [("", self.operator)]


class AdditiveNoise(NoiseModel):
    """y = A(x) + noise of a ``scale``: l is a function of r = (A(x) - y) / scale.

    Real and imaginary part of complex measurements each have such noise, independent of one another.
    """

    takes_complex: ClassVar[bool] = True
    scale: Tensor

    def __init__(self, y: object, operator: ForwardModel | None = None, scale: Any = None) -> None:
        super().__init__(y, operator)
        self.register_buffer("scale", noise_parameter(self.name, "scale", scale, self.y))

    @abstractmethod
    def _value(self, r: Tensor) -> Tensor:
        """The entry of real r."""

    @abstractmethod
    def _slope(self, r: Tensor) -> Tensor:
        """Its derivative in r."""

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        r = (z - y) / self.scale
        return self._value(r.real) + self._value(r.imag) if r.is_complex() else self._value(r)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        r = (z - y) / self.scale
        slope = torch.complex(self._slope(r.real), self._slope(r.imag)) if r.is_complex() else self._slope(r)
        return slope / self.scale

    def _linked(self, z: Tensor, y: Tensor) -> Tensor:
        # Autograd's derivative, which reaches the scale too.
        return self.entries(z, y)

    def with_scale(self, scale: Tensor) -> Self:
        """A copy with another noise level, to which gradients flow: for noise levels that are unknowns.

        Its negative log density of the data, ``L(x) + log_normaliser()``, is a function of both.

        Shapes: scale (), or broadcasting against y. Raises: ValueError for another shape.
        """
        if not broadcasts(scale, self.y):
            raise ValueError(_misfit_text(self.name, "scale", scale, self.y))
        new = self._shallow_copy()
        new.scale = scale
        return new

    def parameters_text(self) -> str:
        return f"scale {number_text(self.scale)}"


class _Linked(torch.autograd.Function):
    """Values of a function of z, with its derivative in closed form."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(z, slope)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        z, slope = ctx.saved_tensors
        return _Slope.apply(outputs[0], slope, z), None, None  # type: ignore[no-untyped-call]


class _Slope(torch.autograd.Function):
    """The derivative, where autograd would go on to differentiate it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, slope: Tensor, z: Tensor) -> Tensor:
        return (output * slope).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        raise RuntimeError("the slope of a noise model is a closed form that cannot be differentiated again")


def evaluated(model: ForwardModel, x: Tensor) -> tuple[Tensor, Pull]:
    """A(x) and ``v -> J^H v``, J the Jacobian at x, for one application of A and one of its adjoint."""
    if type(model).vjp is not ForwardModel.vjp:
        return model(x), lambda v: model.vjp(x, v)
    at = x.detach().requires_grad_(True)
    with torch.enable_grad():
        z = model(at)

    def pull(v: Tensor) -> Tensor:
        (product,) = torch.autograd.grad(z, at, v.to(z.dtype))
        return product

    return z.detach(), pull


def noise_parameter(where: str, what: str, value: Any, data: Tensor, *, zero: bool = False) -> Tensor:
    """Return a parameter of the noise as a tensor that broadcasts against the data, in their precision.

    Raises: TypeError if it is missing; ValueError if it is complex, not positive (with ``zero``: negative), or of a
        shape that does not fit.
    """
    kind = "not negative" if zero else "positive"
    if value is None:
        raise TypeError(f"{where}: {what} is missing, expected a {kind} number or one per measurement")
    # A Python number is exact to double precision, which float64 data are to keep.
    number = isinstance(value, int | float)
    given = torch.tensor(value, dtype=torch.float64) if number else value
    t = tensor(where, what, given)
    if not t.is_complex():
        t = t.to(dtype=data.real.dtype, device=data.device)
    if t.is_complex() or not bool(((t >= 0) if zero else (t > 0)).all()):
        raise ValueError(f"{where}: {what} must be {kind}, got a least value of {float(t.real.min()):g}")
    if not broadcasts(t, data):
        raise ValueError(_misfit_text(where, what, t, data))
    return t


def broadcasts(t: Tensor, data: Tensor) -> bool:
    """Whether a tensor broadcasts to the shape of the data."""
    # torch.broadcast_shapes would import SymPy, and be asked at every likelihood that is built.
    sizes = zip(reversed(t.shape), reversed(data.shape), strict=False)
    return t.dim() <= data.dim() and all(n in (1, wanted) for n, wanted in sizes)


def _misfit_text(where: str, what: str, t: Tensor, data: Tensor) -> str:
    return (
        f"{where}: {what} has shape {shape_text(tuple(t.shape))}, expected a number or {shape_text(tuple(data.shape))}"
    )


def as_weight(t: Tensor, dims: int) -> Tensor:
    """A weight with dimensions of its own: a 0-d tensor would take on the precision of whatever it meets."""
    return t.reshape((1,) * dims) if t.dim() == 0 else t


def number_text(t: Tensor) -> str:
    """A parameter for the printed tree: its value, or the shape of many."""
    return f"{float(t):g}" if t.numel() == 1 else shape_text(tuple(t.shape))
