"""Hermitian positive semi-definite operators on images, with their structure kept.

A precision matrix that is diagonal in space or in Fourier space is inverted and sampled in closed form; everything
else is matrix-free: conjugate gradients for the inverse, perturb and solve for the draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from potentia._cg import conjugate_gradients
from potentia._random import Generators, standard_normal
from potentia._tensor import filter_plane

Shift = float | Tensor
Noise = Callable[[Generators, Sequence[int], torch.dtype], Tensor]


class NearInverse(Protocol):
    """What is known of the inverse of an operator Λ: a map close to (Λ + shift I + F^H diag(spectrum) F)^-1.

    It is Hermitian positive definite, or None where nothing is known for these. ``spectrum``, as of ``Fourier``, is
    that of a prior, say; None for none.
    """

    def __call__(self, shift: Shift, spectrum: Tensor | None = None, /) -> Callable[[Tensor], Tensor] | None: ...


class Structure(ABC):
    """A Hermitian positive semi-definite operator Λ on images.

    Shapes: images (*batch, C, H, W), real or complex; ``shift`` is a number or broadcasts against images.
    """

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Λ x."""

    @abstractmethod
    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        """Solve ``(Λ + shift I) z = rhs``.

        Raises: ValueError if Λ + shift I is singular.
        """

    @abstractmethod
    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The random numbers behind one draw, before any scale enters: what ``perturb`` is linear in."""

    @abstractmethod
    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        """Make of random numbers a right-hand side with covariance ``Λ + shift I``; solved for, it is a draw."""

    def draw(self, generator: Generators, shape: Sequence[int], shift: Shift = 0.0, *, dtype: torch.dtype) -> Tensor:
        """Draw from ``N(0, (Λ + shift I)^-1)``; of a complex image, each of the two parts has that covariance.

        Raises: ValueError if Λ + shift I is singular.
        """
        return self.solve(self.perturb(self.white(generator, shape, dtype=dtype), shift), shift)

    @abstractmethod
    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """Draw from ``N(0, Λ)``, the right-hand side that perturb-and-solve needs."""

    @abstractmethod
    def circulant(self) -> "Fourier | None":
        """Give the best known approximation that Fourier transforms diagonalise, to precondition CG with."""

    @abstractmethod
    def __mul__(self, weight: float) -> "Structure":
        """Scale by a weight of zero or more."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> Self:
        """Convert the tensors held to the precision of ``dtype``."""

    def with_tolerance(self, tolerance: float | None) -> "Structure":
        """Give the same operator with this relative residual for its solver, where it needs one."""
        return self

    def __add__(self, other: "Structure") -> "Structure":
        """Add two operators; diagonal and Fourier structure survive where both have it."""
        return _add(self, other)


def _check_weight(weight: float) -> float:
    if not weight >= 0:
        raise ValueError(f"a positive semi-definite operator cannot be scaled by {weight}, expected 0 or more")
    return float(weight)


def _check_regular(kind: str, least: Tensor, shift: Shift) -> None:
    """Refuse to invert a singular operator; skipped for a positive shift, which costs no look at the entries."""
    if isinstance(shift, Tensor) or shift > 0:
        return
    if not bool(least.min() > 0):
        raise ValueError(
            f"{kind} precision is singular (least eigenvalue {float(least.min()):.3g}), expected a positive shift"
        )


@dataclass(frozen=True, eq=False)
class Diagonal(Structure):
    """Λ = diag(precision).

    Shapes: precision real, broadcasts against (C, H, W).
    """

    precision: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return self.precision * x

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        _check_regular("diagonal", self.precision, shift)
        return rhs / (self.precision + shift)

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (standard_normal(shape, generator, dtype=dtype, device=self.precision.device),)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        return white[0] * (self.precision + shift).sqrt().to(white[0].real.dtype)

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        z = standard_normal(shape, generator, dtype=dtype, device=self.precision.device)
        return z * self.precision.sqrt().to(dtype.to_real())

    def circulant(self) -> "Fourier":
        return Fourier(self.precision.mean(dim=(-2, -1), keepdim=True))

    def __mul__(self, weight: float) -> "Diagonal":
        return Diagonal(self.precision * _check_weight(weight))

    def to(self, dtype: torch.dtype) -> "Diagonal":
        return Diagonal(self.precision.to(dtype.to_real()))

    @property
    def is_constant(self) -> bool:
        """Whether the entries do not vary over space, in which case Λ is diagonal in Fourier space as well."""
        return all(n == 1 for n in self.precision.shape[-2:])


@dataclass(frozen=True, eq=False)
class Fourier(Structure):
    """Λ = F^H diag(spectrum) F over the last two dimensions, F the unitary, uncentred Fourier transform.

    Real images need a spectrum that is even, ``spectrum(k) = spectrum(-k)``: only half of it is read for them.

    Shapes: spectrum real, broadcasts against (C, H, W), zero frequency first.
    """

    spectrum: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return filter_plane(x, self.spectrum)

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        _check_regular("Fourier", self.spectrum, shift)
        return filter_plane(rhs, 1.0 / (self.spectrum + shift))

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (standard_normal(shape, generator, dtype=dtype, device=self.spectrum.device),)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        return filter_plane(white[0], (self.spectrum + shift).sqrt().to(white[0].real.dtype))

    def draw(self, generator: Generators, shape: Sequence[int], shift: Shift = 0.0, *, dtype: torch.dtype) -> Tensor:
        """Draw with one transform there and back, where solving a perturbed system would take two."""
        _check_regular("Fourier", self.spectrum, shift)
        white = self.white(generator, shape, dtype=dtype)
        return filter_plane(white[0], (self.spectrum + shift).rsqrt().to(dtype.to_real()))

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        z = standard_normal(shape, generator, dtype=dtype, device=self.spectrum.device)
        return filter_plane(z, self.spectrum.sqrt().to(dtype.to_real()))

    def circulant(self) -> "Fourier":
        return self

    def __mul__(self, weight: float) -> "Fourier":
        return Fourier(self.spectrum * _check_weight(weight))

    def to(self, dtype: torch.dtype) -> "Fourier":
        return Fourier(self.spectrum.to(dtype.to_real()))


@dataclass(frozen=True, eq=False)
class MatrixFree(Structure):
    """Λ known by its action; solved by preconditioned conjugate gradients, sampled by perturb and solve.

    ``sample_noise(generator, shape, dtype)`` draws from N(0, Λ): for Λ = A^H A / eta^2 it is ``A^H n / eta`` with
    standard normal n. Then ``(Λ + shift I)^-1 (A^H n1 / eta + sqrt(shift) n2)`` has covariance (Λ + shift I)^-1,
    exactly but for the tolerance of the solver (Papandreou and Yuille 2010).

    ``tolerance`` is CG's relative residual (None: 1e-5 in single, 1e-10 in double precision). CG is preconditioned by
    ``near_inverse(shift)``, or, where there is none or it knows none for that shift, by the inverse of
    ``approximation``.
    """

    action: Callable[[Tensor], Tensor]
    sample_noise: Noise
    approximation: Fourier | None = None
    tolerance: float | None = field(default=None, kw_only=True)
    max_iterations: int = field(default=1000, kw_only=True)
    near_inverse: NearInverse | None = field(default=None, kw_only=True)

    def apply(self, x: Tensor) -> Tensor:
        return self.action(x)

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        return conjugate_gradients(
            lambda v: self.action(v) + shift * v,
            rhs,
            precondition=self._precondition(shift),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            where=f"matrix-free solve, shift {shift:.3g}" if isinstance(shift, float) else "matrix-free solve",
        ).solution

    def _precondition(self, shift: Shift) -> Callable[[Tensor], Tensor] | None:
        near = None if self.near_inverse is None else self.near_inverse(shift)
        approximation = self.approximation
        if near is not None or approximation is None:
            return near
        return lambda v: approximation.solve(v, shift)

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        u = self.noise(generator, shape, dtype=dtype)
        return u, standard_normal(shape, generator, dtype=dtype, device=u.device)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        return white[0] + shift**0.5 * white[1]

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        return self.sample_noise(generator, shape, dtype)

    def circulant(self) -> Fourier | None:
        return self.approximation

    def with_tolerance(self, tolerance: float | None) -> "MatrixFree":
        return replace(self, tolerance=tolerance)

    def __mul__(self, weight: float) -> "MatrixFree":
        w = _check_weight(weight)
        return replace(
            self,
            action=lambda v: w * self.action(v),
            sample_noise=lambda g, s, d: w**0.5 * self.sample_noise(g, s, d),
            approximation=None if self.approximation is None else self.approximation * w,
            near_inverse=_scaled_inverse(self.near_inverse, w),
        )

    def to(self, dtype: torch.dtype) -> "MatrixFree":
        approximation = self.approximation
        return replace(self, approximation=None if approximation is None else approximation.to(dtype))


def _scaled_inverse(near_inverse: NearInverse | None, w: float) -> NearInverse | None:
    """(w Λ + B)^-1 = (Λ + B / w)^-1 / w."""
    if near_inverse is None or w == 0:
        return None

    def inverse(shift: Shift, spectrum: Tensor | None = None) -> Callable[[Tensor], Tensor] | None:
        near = near_inverse(shift / w, None if spectrum is None else spectrum / w)
        return None if near is None else lambda v: near(v) / w

    return inverse


def _inverse_of_sum(a: Structure, b: Structure) -> NearInverse | None:
    """What is known of (a + b)^-1 where one is a multiple of the identity, or diagonal in Fourier space."""
    one, other = (b, a) if isinstance(a, Diagonal | Fourier) else (a, b)
    if not isinstance(one, MatrixFree) or one.near_inverse is None:
        return None
    near_inverse = one.near_inverse
    if isinstance(other, Diagonal) and other.precision.numel() == 1:
        more = float(other.precision)
        return lambda shift, spectrum=None: near_inverse(shift + more, spectrum)
    if isinstance(other, Diagonal) and other.is_constant:
        other = other.circulant()
    if not isinstance(other, Fourier):
        return None
    own = other.spectrum
    return lambda shift, spectrum=None: near_inverse(shift, own if spectrum is None else own + spectrum)


def _add(a: Structure, b: Structure) -> Structure:
    if isinstance(a, Diagonal) and isinstance(b, Diagonal):
        return Diagonal(a.precision + b.precision)
    first, second = (s.circulant() if isinstance(s, Diagonal) and s.is_constant else s for s in (a, b))
    if isinstance(first, Fourier) and isinstance(second, Fourier):
        return Fourier(first.spectrum + second.spectrum)
    near = a.circulant(), b.circulant()
    limits = [s for s in (a, b) if isinstance(s, MatrixFree)]
    tolerances = [s.tolerance for s in limits if s.tolerance is not None]
    return MatrixFree(
        action=lambda v: a.apply(v) + b.apply(v),
        sample_noise=lambda g, s, d: a.noise(g, s, dtype=d) + b.noise(g, s, dtype=d),
        approximation=None if near[0] is None or near[1] is None else Fourier(near[0].spectrum + near[1].spectrum),
        tolerance=min(tolerances, default=None),
        max_iterations=max((s.max_iterations for s in limits), default=1000),
        near_inverse=_inverse_of_sum(a, b),
    )
