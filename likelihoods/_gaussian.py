"""The Gaussian likelihood: white noise around a linear operator."""

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potentia._potential import Likelihood, Sigma
from potentia._quadratic import Quadratic, Structure
from potentia._tensor import squared_norm
from potentia._validate import shape_text, tensor
from potentia.likelihoods._basic import Identity
from potentia.likelihoods._operator import Operator


class Gaussian(Likelihood):
    """Gaussian misfit L(x) = ||(A x - y) / noise_std||^2 / 2, up to a constant.

    Of complex measurements, real and imaginary part each have noise of std ``noise_std``. Where the operator measures
    nothing (masked entries), y is taken as zero.

    Shapes: y (*measurement) as the operator gives it; noise_std a number or broadcasting against y;
        x (*batch, C, H, W); returns (*batch,).
    Units: y and noise_std share the data's unit; L is in nats.
    Raises: ValueError if noise_std <= 0, if y is NaN or infinite, or if A and y disagree about shape or field.
    Source: the quadratic form has precision A^H A / noise_std^2 and linear term A^H y / noise_std^2.
    """

    default_name: ClassVar[str] = "gaussian"
    noise_std: Tensor
    linear: Tensor

    def __init__(self, y: object, operator: Operator | None = None, noise_std: Any = None) -> None:
        super().__init__()
        self.operator = Identity() if operator is None else operator
        data = tensor(self.name, "y", y)
        self._event_shape, self._is_complex = self._domain(data)
        std = self._check_std(noise_std, data)
        sampled = self.operator.sampled
        self.register_buffer("y", data if sampled is None else data * sampled)
        self.register_buffer("noise_std", std)
        # A^H W y, wanted at every gradient: computed once.
        self.register_buffer("linear", self._at_images(self.operator.adjoint(self.y * self.weight)))
        self._structure: Structure | None = None

    def _domain(self, data: Tensor) -> tuple[tuple[int, ...], bool]:
        try:
            shape = self.operator.input_shape(tuple(data.shape))
            field = self.operator.complex_input(data.is_complex())
        except ValueError as err:
            raise ValueError(f"{self.name}: y of shape {shape_text(tuple(data.shape))} does not fit: {err}") from err
        if self.operator.complex_output(field) != data.is_complex():
            raise ValueError(
                f"{self.name}: y has dtype {data.dtype}, but {self.operator.describe()} gives another field"
            )
        return shape, field

    def _check_std(self, noise_std: Any, data: Tensor) -> Tensor:
        if noise_std is None:
            raise TypeError(f"{self.name}: noise_std is missing, expected a positive number or one per measurement")
        # A Python number is exact to double precision, which float64 data are to keep.
        number = isinstance(noise_std, int | float)
        given = torch.tensor(noise_std, dtype=torch.float64) if number else noise_std
        std = tensor(self.name, "noise_std", given).to(dtype=data.real.dtype, device=data.device)
        if std.is_complex() or not bool((std > 0).all()):
            raise ValueError(f"{self.name}: noise_std must be positive, got a least value of {float(std.real.min()):g}")
        try:
            fits = torch.broadcast_tensors(std, data)[0].shape == data.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{self.name}: noise_std has shape {shape_text(tuple(std.shape))}, expected a number or "
                f"{shape_text(tuple(data.shape))}"
            )
        return std

    def _at_images(self, x: Tensor) -> Tensor:
        return x if self._is_complex or not x.is_complex() else x.real

    @property
    def weight(self) -> Tensor:
        """1 / noise_std^2, a number or one per measurement."""
        return self.noise_std.reciprocal().square()

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """L(x) in nats; sigma is ignored. (*batch, C, H, W) -> (*batch,)."""
        return 0.5 * squared_norm(self.residual(x) / self.noise_std, self.operator.output_dims)

    def residual(self, x: Tensor) -> Tensor:
        """A x - y: (*batch, C, H, W) -> (*batch, *measurement)."""
        self.check(x)
        r: Tensor = self.operator(x) - self.y
        return r

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """A^H W (A x - y), in the shape of x."""
        self.check(x)
        return (self.structure.apply(x.detach()) - self.linear).to(x.dtype)

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """L and its gradient from one application of A and one of its adjoint."""
        with torch.no_grad():
            r = self.residual(x.detach())
            value = 0.5 * squared_norm(r / self.noise_std, self.operator.output_dims)
            return value, self.operator.adjoint(self.weight * r).to(x.dtype)

    @property
    def structure(self) -> Structure:
        """The precision A^H W A with its structure kept."""
        if self._structure is None:
            weight = self.weight
            # A 0-d tensor would take on the precision of whatever it meets.
            weight = weight.reshape((1,) * self.operator.output_dims) if weight.dim() == 0 else weight
            self._structure = self.operator.gram(weight, self._event_shape)
        return self._structure

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The structure holds tensors of the old device and dtype.
        self._structure = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The structure may hold functions, which do not travel between processes; it is made again.
        return {**self.__dict__, "_structure": None}

    def quadratic(self, sigma: Sigma = None) -> Quadratic:
        """The exact form: precision A^H W A, linear term A^H W y, constant ||y / noise_std||^2 / 2."""
        constant = 0.5 * squared_norm(self.y / self.noise_std, self.y.dim())
        return Quadratic(self.structure, self.linear, constant)

    def log_normaliser(self) -> Tensor:
        """Sum of log(noise_std sqrt(2 pi)) over what is measured, twice for complex data; masked entries do not count.

        Shapes: returns a number, float64.
        """
        std = self.noise_std.double()
        logs = (std * math.sqrt(2 * math.pi)).log().expand(self.y.shape)
        sampled = self.operator.sampled
        total = logs.sum() if sampled is None else torch.where(sampled.expand(self.y.shape), logs, 0.0).sum()
        return total * (2 if self.y.is_complex() else 1)

    def simulate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Draw measurements of x, with this likelihood's noise: (*batch, C, H, W) -> (*batch, *measurement)."""
        self.check(x)
        return self.operator.measure(x, self.noise_std, generator)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self._event_shape

    @property
    def is_complex(self) -> bool:
        return self._is_complex

    def extra_repr(self) -> str:
        std = (
            f"{float(self.noise_std):g}"
            if self.noise_std.numel() == 1
            else f"{shape_text(tuple(self.noise_std.shape))}"
        )
        dtype = str(self.y.dtype).removeprefix("torch.")
        return f"y {shape_text(tuple(self.y.shape))} {dtype}, noise_std {std}, images"

    def parts(self) -> list[tuple[str, Any]]:
        return [("", self.operator)]
