"""Covariances with closed-form inverses and roots that are neither diagonal in space nor in Fourier space."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potentia._random import Generators, standard_normal
from potentia._structure import Fourier, Shift, Structure
from potentia._tensor import EVENT_DIMS


class _Covariance(Structure):
    """Λ = C^-1 for a covariance C whose root is known: solved and sampled as it is, without a shift."""

    def colour(self, white: Tensor) -> Tensor:
        """C^(1/2) times standard normal images."""
        raise NotImplementedError

    def root_inverse(self, white: Tensor) -> Tensor:
        """C^(-1/2)^H times standard normal images: covariance Λ."""
        raise NotImplementedError

    def _device(self) -> torch.device:
        raise NotImplementedError

    def white(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (standard_normal(shape, generator, dtype=dtype, device=self._device()),)

    def perturb(self, white: tuple[Tensor, ...], shift: Shift = 0.0) -> Tensor:
        _no_shift(shift)
        return self.root_inverse(white[0])

    def draw(self, generator: Generators, shape: Sequence[int], shift: Shift = 0.0, *, dtype: torch.dtype) -> Tensor:
        _no_shift(shift)
        return self.colour(self.white(generator, shape, dtype=dtype)[0])

    def noise(self, generator: Generators, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        return self.root_inverse(self.white(generator, shape, dtype=dtype)[0])

    def circulant(self) -> Fourier | None:
        return None


def _no_shift(shift: Shift) -> None:
    if isinstance(shift, Tensor) or shift != 0:
        raise ValueError(f"a learned covariance is inverted as it is: the shift must be 0, got {shift}")


def _weight(weight: float) -> float:
    if not weight > 0:
        raise ValueError(f"a learned covariance cannot be scaled by {weight}, expected a positive number")
    return float(weight)


@dataclass(frozen=True, eq=False)
class Dense(_Covariance):
    """Λ = C^-1, C any covariance of the pixels, given with its Cholesky factor L, C = L L^H.

    Shapes: images (*batch, C, H, W) with d = C H W; covariance and factor (d, d).
    """

    covariance: Tensor
    factor: Tensor

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        _no_shift(shift)
        return _times(self.covariance, rhs)

    def apply(self, x: Tensor) -> Tensor:
        columns = x.flatten(-EVENT_DIMS).reshape(-1, self.factor.shape[0]).mT.to(self.factor.dtype)
        return torch.cholesky_solve(columns, self.factor).mT.reshape(x.shape)

    def colour(self, white: Tensor) -> Tensor:
        return _times(self.factor, white)

    def root_inverse(self, white: Tensor) -> Tensor:
        columns = white.flatten(-EVENT_DIMS).reshape(-1, self.factor.shape[0]).mT.to(self.factor.dtype)
        solved: Tensor = torch.linalg.solve_triangular(self.factor.mH, columns, upper=True)
        return solved.mT.reshape(white.shape)

    def __mul__(self, weight: float) -> "Dense":
        w = _weight(weight)
        return Dense(self.covariance / w, self.factor / w**0.5)

    def to(self, dtype: torch.dtype) -> "Dense":
        kind = dtype if self.factor.is_complex() else dtype.to_real()
        return Dense(self.covariance.to(kind), self.factor.to(kind))

    def _device(self) -> torch.device:
        return self.factor.device


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    flat = x.flatten(-EVENT_DIMS)
    return (flat.to(matrix.dtype) @ matrix.mT).reshape(x.shape)


@dataclass(frozen=True, eq=False)
class LowRank(_Covariance):
    """Λ = C^-1 with C = S (I + V (diag(values) - I) V^H) S: diagonal, but for a few directions.

    S is diag(scale) and V has orthonormal columns, so that all powers of the bracket change ``values`` alone.

    Shapes: scale (C, H, W), positive; vectors (d, r); values (r,), positive.
    """

    scale: Tensor
    vectors: Tensor
    values: Tensor

    def solve(self, rhs: Tensor, shift: Shift = 0.0) -> Tensor:
        _no_shift(shift)
        return self.scale * self._bracket(self.scale * rhs, self.values)

    def apply(self, x: Tensor) -> Tensor:
        return self._bracket(x / self.scale, 1 / self.values) / self.scale

    def colour(self, white: Tensor) -> Tensor:
        return self.scale * self._bracket(white, self.values.sqrt())

    def root_inverse(self, white: Tensor) -> Tensor:
        return self._bracket(white, self.values.rsqrt()) / self.scale

    def _bracket(self, x: Tensor, values: Tensor) -> Tensor:
        flat = x.flatten(-EVENT_DIMS)
        along = (flat @ self.vectors.conj()) * (values - 1)
        return (flat + along @ self.vectors.mT).reshape(x.shape)

    def __mul__(self, weight: float) -> "LowRank":
        return LowRank(self.scale / _weight(weight) ** 0.5, self.vectors, self.values)

    def to(self, dtype: torch.dtype) -> "LowRank":
        real = dtype.to_real()
        vectors = self.vectors.to(dtype if self.vectors.is_complex() else real)
        return LowRank(self.scale.to(real), vectors, self.values.to(real))

    def _device(self) -> torch.device:
        return self.scale.device
