"""What the adapters of other libraries' operators share: an operator is believed to be linear when it is seen to be."""

import math

import torch
from torch import Tensor

from potentia._random import standard_normal
from potentia._tensor import inner, squared_norm
from potentia._validate import Shape, shape_text
from potentia.likelihoods._linear_map import Map

# How far random tests may be off in single precision, relative to what they would be off by if they failed.
_TOLERANCE = 1e-3


def image_shape(where: str, shape: Shape) -> Shape:
    """Return (C, H, W) as a tuple.

    Raises: ValueError for another number of dimensions.
    """
    if len(shape) != 3:
        raise ValueError(f"{where}: shape is {shape_text(tuple(shape))}, expected (C, H, W)")
    return tuple(shape)


def normal(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Standard normal numbers that are the same in every run."""
    return standard_normal(shape, torch.Generator().manual_seed(seed), dtype=dtype, device="cpu").to(device)


def is_additive(forward: Map, x: Tensor) -> bool:
    """Whether A(a - 2 b) = A(a) - 2 A(b) for two random images: x (2, C, H, W)."""
    y = forward(torch.cat([x, x[:1] - 2 * x[1:]]))
    dims = y.dim() - 1
    gap, size = squared_norm(y[2] - y[0] + 2 * y[1], dims), squared_norm(y, dims).sum()
    return bool(gap <= _TOLERANCE**2 * size)


def adjoint_error(forward: Map, adjoint: Map, x: Tensor, y: Tensor) -> float:
    """How far <A x, y> and <x, A^H y> are apart for random x and y, relative to their standard deviation.

    Shapes: x (2, C, H, W), y (2, *measurement).
    """
    dims = y.dim() - 1
    ax = forward(x)
    gap = (inner(ax, y, dims) - inner(x, adjoint(y))).abs()
    return float((gap / squared_norm(ax, dims).sqrt().clamp_min(1e-30)).max())


def check_adjoint(where: str, forward: Map, adjoint: Map, x: Tensor, y: Tensor, remedy: str = "") -> None:
    """Refuse an adjoint that is not.

    Raises: ValueError that says how far it is off.
    """
    error = adjoint_error(forward, adjoint, x, y)
    if not (error <= _TOLERANCE and math.isfinite(error)):
        raise ValueError(
            f"{where}: its adjoint is none: <A x, y> and <x, A^H y> differ by {error:.2g} of their size for random x "
            f"and y, expected at most {_TOLERANCE:g}{remedy}"
        )
