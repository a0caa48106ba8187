"""Orthonormal transforms of images as products with small matrices, for any device and both precisions."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from potentia._validate import count
from potentia.energies._shared import optional


class Transform(Protocol):
    """An orthonormal transform of images, real or complex.

    Shapes: images and coefficients (*batch, C, H, W).
    """

    def analyse(self, x: Tensor) -> Tensor:
        """W x."""
        ...

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """W^T c, the inverse of ``analyse``."""
        ...

    def coarse(self, height: int, width: int) -> tuple[int, int]:
        """Size (h, w) of the top left corner of the coefficients that holds the coarsest approximation."""
        ...


@dataclass(frozen=True)
class Wavelet:
    """The separable orthonormal wavelet transform with periodic boundaries, in the usual nested layout.

    Shapes: images (*batch, C, H, W) with H and W divisible by 2^levels.
    Raises: ValueError for a wavelet that is not orthogonal, or for images of other sizes.
    Source: Mallat 1989; filters from PyWavelets.
    """

    name: str = "db4"
    levels: int = 3

    def __post_init__(self) -> None:
        count("wavelet", "levels", self.levels)

    def analyse(self, x: Tensor) -> Tensor:
        """W x: approximation in the top left corner, details around it."""
        self.coarse(*x.shape[-2:])
        return self._down(x, self.levels)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """W^T c."""
        self.coarse(*coefficients.shape[-2:])
        return self._up(coefficients, self.levels)

    def coarse(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) over 2^levels."""
        step = 2**self.levels
        if height % step or width % step:
            raise ValueError(
                f"wavelet {self.name}: {self.levels} levels need sides divisible by {step}, got {height} by {width}"
            )
        return height // step, width // step

    def _down(self, x: Tensor, levels: int) -> Tensor:
        y = _separable(x, self._matrix(x, -2), self._matrix(x, -1))
        return y if levels == 1 else _with_corner(y, self._down(_corner(y), levels - 1))

    def _up(self, c: Tensor, levels: int) -> Tensor:
        y = c if levels == 1 else _with_corner(c, self._up(_corner(c), levels - 1))
        return _separable(y, self._matrix(c, -2).T, self._matrix(c, -1).T)

    def _matrix(self, x: Tensor, dim: int) -> Tensor:
        return _on_device(_wavelet_matrix, self.name, x.shape[dim], x.real.dtype, x.device)


@dataclass(frozen=True)
class DCT:
    """The orthonormal discrete cosine transform, type II.

    Shapes: images (*batch, C, H, W) of any size.
    Source: Ahmed, Natarajan and Rao 1974; matrices from SciPy.
    """

    def analyse(self, x: Tensor) -> Tensor:
        """W x: zero frequency in the top left corner."""
        return _separable(x, self._matrix(x, -2), self._matrix(x, -1))

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """W^T c."""
        return _separable(coefficients, self._matrix(coefficients, -2).T, self._matrix(coefficients, -1).T)

    def coarse(self, height: int, width: int) -> tuple[int, int]:
        """The zero frequency: (1, 1)."""
        return 1, 1

    def _matrix(self, x: Tensor, dim: int) -> Tensor:
        return _on_device(_cosine_matrix, "dct", x.shape[dim], x.real.dtype, x.device)


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if x.is_complex():
        return torch.complex(_separable(x.real, rows, columns), _separable(x.imag, rows, columns))
    return rows @ x @ columns.T


def _corner(y: Tensor) -> Tensor:
    return y[..., : y.shape[-2] // 2, : y.shape[-1] // 2]


def _with_corner(y: Tensor, corner: Tensor) -> Tensor:
    h, w = corner.shape[-2:]
    return torch.cat([torch.cat([corner, y[..., :h, w:]], -1), y[..., h:, :]], -2)


@lru_cache(maxsize=128)
def _on_device(build: "_Builder", name: str, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return build(name, n).to(device=device, dtype=dtype)


class _Builder(Protocol):
    def __call__(self, name: str, n: int) -> Tensor: ...


def _wavelet_matrix(name: str, n: int) -> Tensor:
    """One level of the transform of n samples, approximation above details, orthonormal to rounding.

    Shapes: (n, n), float64.
    """
    pywt = optional("pywt", "sparsity", "Wavelet")
    wavelet = pywt.Wavelet(name)
    if not wavelet.orthogonal:
        raise ValueError(f"wavelet {name}: is not orthogonal, expected one such as 'haar', 'db4' or 'sym8'")
    halves = pywt.dwt(torch.eye(n, dtype=torch.float64).numpy(), wavelet, mode="periodization", axis=0)
    m = torch.cat([torch.as_tensor(h) for h in halves])
    # The tabulated filters are good to 1e-12 or so; one Newton step to the nearest orthonormal matrix makes that 1e-15.
    return 1.5 * m - 0.5 * m @ m.T @ m


def _cosine_matrix(name: str, n: int) -> Tensor:
    fft = optional("scipy.fft", "sparsity", "DCT")
    return torch.as_tensor(fft.dct(torch.eye(n, dtype=torch.float64).numpy(), norm="ortho", axis=0))
