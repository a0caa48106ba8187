"""The Gaussian likelihood: white noise, or noise that channels share, around a forward model."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from potentia._potential import Sigma
from potentia._quadratic import MatrixFree, Quadratic, Structure
from potentia._random import Generators, standard_normal
from potentia._tensor import EVENT_DIMS, inner, squared_magnitude, squared_norm
from potentia._validate import shape_text, tensor
from potentia.likelihoods._forward_model import ForwardModel
from potentia.likelihoods._noise import NoiseModel, as_weight, evaluated, noise_parameter, number_text
from potentia.likelihoods._operator import Operator


class Gaussian(NoiseModel):
    """Gaussian misfit L(x) = ||(A(x) - y) / noise_std||^2 / 2, up to a constant.

    Of complex measurements, real and imaginary part each have noise of std ``noise_std``. Where the operator measures
    nothing (masked entries), y is taken as zero.

    ``covariance`` instead of ``noise_std`` is for channels (the measurement's first dimension: coils) whose noise is
    correlated, the same in every pixel: L(x) = r^H covariance^-1 r / 2. For complex data it is that of each part,
    half of E[n n^H], so that its diagonal holds the squares of ``noise_std``.

    A linear A gives an exact quadratic form. Any other has none; ``gauss_newton`` is the local one.

    Shapes: y (*measurement) as the operator gives it; noise_std a number or broadcasting against y; covariance (K, K),
        Hermitian, for y (K, ...); x (*batch, C, H, W); returns (*batch,).
    Units: y and noise_std share the data's unit; L is in nats.
    Raises: TypeError for neither or both of noise_std and covariance; ValueError if noise_std <= 0, if the covariance
        is not positive definite or channels are sampled at different places under it, if y is NaN or infinite, or if A
        and y disagree about shape or field.
    Source: the quadratic form has precision A^H W A and linear term A^H W y, W = 1 / noise_std^2 or covariance^-1
        (Pruessmann et al. 2001, appendix).
    """

    default_name: ClassVar[str] = "gaussian"
    degree: ClassVar[float | None] = 2.0
    takes_complex: ClassVar[bool] = True
    noise_std: Tensor
    linear: Tensor
    whitener: Tensor | None

    def __init__(
        self,
        y: object,
        operator: ForwardModel | None = None,
        noise_std: Any = None,
        *,
        covariance: object = None,
    ) -> None:
        super().__init__(y, operator)
        if covariance is not None and noise_std is not None:
            raise TypeError(f"{self.name}: got noise_std and covariance, expected one of them")
        matrix = None if covariance is None else self._check_covariance(covariance)
        if matrix is not None:
            # Each channel's own std.
            noise_std = matrix.diagonal().real.sqrt().reshape(-1, *(1,) * (self.y.dim() - 1))
        correlated = matrix is not None and bool(matrix.tril(-1).any())
        whitener = _inverse(torch.linalg.cholesky(matrix)).to(self.y) if matrix is not None and correlated else None
        self.register_buffer("whitener", whitener)
        self.register_buffer("noise_std", noise_parameter(self.name, "noise_std", noise_std, self.y))
        self._structure: Structure | None = None
        if isinstance(self.operator, Operator):
            # A^H W y, wanted at every gradient: computed once.
            self.register_buffer("linear", self._at_images(self.operator.adjoint(self._weigh(self.y))))

    def _check_covariance(self, covariance: object) -> Tensor:
        channels = self.y.shape[0]
        m = tensor(self.name, "covariance", covariance)
        if tuple(m.shape) != (channels, channels):
            raise ValueError(
                f"{self.name}: covariance has shape {shape_text(tuple(m.shape))}, expected "
                f"{shape_text((channels, channels))}, one row a channel of y"
            )
        if m.is_complex() and not self.y.is_complex():
            raise ValueError(f"{self.name}: covariance has dtype {m.dtype}, expected a real one for real measurements")
        m = m.cpu().to(torch.complex128 if m.is_complex() else torch.float64)
        if float((m - m.mH).abs().max()) > 1e-5 * float(m.abs().max()):
            raise ValueError(f"{self.name}: covariance is not Hermitian")
        m = (m + m.mH) / 2
        if int(torch.linalg.cholesky_ex(m).info) != 0:
            raise ValueError(f"{self.name}: covariance is not positive definite")
        sampled = self.operator.sampled
        if sampled is not None and m.tril(-1).any():
            every = sampled.expand(self.y.shape)
            if bool((every != every[:1]).any()):
                raise ValueError(
                    f"{self.name}: channels are sampled at different places, expected the same for noise that is "
                    "correlated between them"
                )
        return m

    def _at_images(self, x: Tensor) -> Tensor:
        return x if self._is_complex or not x.is_complex() else x.real

    @property
    def weight(self) -> Tensor:
        """1 / noise_std^2, a number or one per measurement."""
        return self.noise_std.reciprocal().square()

    def _white(self, r: Tensor) -> Tensor:
        """A residual in units of the noise."""
        return r / self.noise_std if self.whitener is None else _mix(self.whitener, r, self.y.dim())

    def _weigh(self, r: Tensor) -> Tensor:
        """W r, W the precision of the noise."""
        if self.whitener is None:
            return self.weight * r
        return _mix(self.whitener.mH, _mix(self.whitener, r, self.y.dim()), self.y.dim())

    def entries(self, z: Tensor, y: Tensor) -> Tensor:
        """Half the square of each whitened residual."""
        r = self._white(z - y)
        return 0.5 * squared_magnitude(r)

    def slopes(self, z: Tensor, y: Tensor) -> Tensor:
        return self._weigh(self._measured(z - y))

    def curvatures(self, z: Tensor) -> Tensor:
        return self.weight

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        n = standard_normal(z.shape, generator, dtype=z.dtype, device=z.device)
        if self.whitener is None:
            return z + self.noise_std * n
        return z + _mix(_inverse(self.whitener), n, self.y.dim())

    def log_normalisers(self) -> Tensor:
        if self.whitener is None:
            return (self.noise_std.double() * math.sqrt(2 * math.pi)).log()
        return 0.5 * math.log(2 * math.pi) - self.whitener.diagonal().real.double().log().mean()

    def _linked(self, z: Tensor, y: Tensor) -> Tensor:
        # Differentiable as often as one likes.
        return self.entries(z, y)

    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        """L and its gradient, which share the weighted residual."""
        self.check(x)
        with torch.no_grad():
            z, pull = evaluated(self.operator, x.detach())
            r, sampled = z - self.y, self.operator.sampled
            if sampled is not None:
                r = r * sampled  # finite everywhere, and many times faster than torch.where
            slope = self._weigh(r)
            return 0.5 * inner(r, slope, self.operator.output_dims), pull(slope).to(x.dtype)

    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """A^H W (A x - y), in the shape of x."""
        if not isinstance(self.operator, Operator):
            return super().grad(x, sigma)
        self.check(x)
        return (self.structure.apply(x.detach()) - self.linear).to(x.dtype)

    @property
    def structure(self) -> Structure:
        """The precision A^H W A with its structure kept.

        Raises: TypeError for a forward model that is not linear, whose precision depends on the image.
        """
        if not isinstance(self.operator, Operator):
            raise TypeError(f"{self.name}: {self.operator.describe()} is not linear; expected gauss_newton(x)")
        if self._structure is None:
            self._structure = self._precision(self.operator, self.y)
        return self._structure

    def _precision(self, tangent: Operator, z: Tensor) -> Structure:
        if self.whitener is None:
            return super()._precision(tangent, z)
        whitener, dims, event = self.whitener, self.y.dim(), self._event_shape
        # The correlations dropped: good enough to precondition with.
        alone = whitener.abs().square().sum(0).reshape(-1, *(1,) * (dims - 1))
        near = tangent.gram(as_weight(alone, dims), event)

        def noise(generator: Generators, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            field = dtype.to_complex() if self.y.is_complex() else dtype.to_real()
            batch = tuple(shape)[:-EVENT_DIMS]
            n = standard_normal((*batch, *self.y.shape), generator, dtype=field, device=whitener.device)
            return tangent.adjoint(_mix(whitener.mH, n, dims)).to(dtype)

        return MatrixFree(lambda x: self._at_images(tangent.adjoint(self._weigh(tangent(x)))), noise, near.circulant())

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The structure holds tensors of the old device and dtype.
        self._structure = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        # The structure may hold functions, which do not travel between processes; it is made again.
        return {**self.__dict__, "_structure": None}

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """The exact form: precision A^H W A, linear term A^H W y, constant <y, W y> / 2; None unless A is linear."""
        if not isinstance(self.operator, Operator):
            return None
        return Quadratic(self.structure, self.linear, 0.5 * squared_norm(self._white(self.y), self.y.dim()))

    def parameters_text(self) -> str:
        if self.whitener is not None:
            return f"covariance {shape_text(tuple(self.whitener.shape))}"
        return f"noise_std {number_text(self.noise_std)}"


def _inverse(triangular: Tensor) -> Tensor:
    identity = torch.eye(len(triangular), dtype=triangular.dtype, device=triangular.device)
    inverse: Tensor = torch.linalg.solve_triangular(triangular, identity, upper=False)
    return inverse


def _mix(matrix: Tensor, t: Tensor, dims: int) -> Tensor:
    """A matrix times the channels: t (*batch, K, ...) with ``dims`` dimensions from K on."""
    dtype = torch.promote_types(matrix.dtype, t.dtype)
    channels = t.reshape(*t.shape[: t.dim() - dims + 1], -1).to(dtype)
    return (matrix.to(dtype) @ channels).reshape(t.shape)
