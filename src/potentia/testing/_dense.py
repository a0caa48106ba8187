"""Images as real vectors and operators on them as real symmetric matrices, complex or not."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from potentia._tensor import EVENT_DIMS
from potentia._validate import Shape
from potentia.testing._report import require

Map = Callable[[Tensor], Tensor]


def to_vectors(x: Tensor) -> Tensor:
    """Images as real vectors, double, on the CPU: (*batch, C, H, W) -> (*batch, D), D twice as many if complex."""
    parts = torch.view_as_real(x.resolve_conj()).flatten(-2) if x.is_complex() else x
    return parts.detach().cpu().double().flatten(-EVENT_DIMS)


def to_images(vectors: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """The images that real vectors stand for: (*batch, D) -> (*batch, C, H, W)."""
    batch = vectors.shape[:-1]
    if dtype.is_complex:
        return torch.view_as_complex(vectors.reshape(*batch, *shape, 2).contiguous()).to(dtype)
    return vectors.reshape(*batch, *shape).to(dtype)


def dimension(shape: Shape, dtype: torch.dtype) -> int:
    """D: how many real numbers an image has."""
    return math.prod(shape) * (2 if dtype.is_complex else 1)


def dense(apply: Map, shape: Shape, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The real matrix (D, D) of a real-linear map of images on a device, in double precision, on the CPU."""
    basis = torch.eye(dimension(shape, dtype), dtype=torch.float64)
    return to_vectors(apply(to_images(basis, shape, dtype).to(device))).mT


def as_covariance(covariance: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Read a covariance as the real matrix (D, D).

    Shapes: covariance (C, H, W), variances of independent pixels; or (d, d) with d = C H W, of each part of complex
        images; a Hermitian one correlates the parts.
    Raises: ValueError for another shape.
    """
    d, covariance = math.prod(shape), covariance.cpu()
    if tuple(covariance.shape) == tuple(shape):
        return dense(lambda x: covariance.to(x.real.dtype) * x, shape, dtype)
    if tuple(covariance.shape) != (d, d):
        raise ValueError(f"covariance has shape {tuple(covariance.shape)}, expected {tuple(shape)} or {(d, d)}")

    def apply(x: Tensor) -> Tensor:
        m = covariance.to(torch.promote_types(x.dtype, covariance.dtype))
        return (x.flatten(-EVENT_DIMS).to(m.dtype) @ m.mT).reshape(x.shape)

    return dense(apply, shape, dtype)


def check_covariance(where: str, identity: str, draws: Tensor, covariance: Tensor, *, z: float, floor: float) -> None:
    """Check that draws have mean zero and this covariance, in the basis that makes them independent and of variance 1.

    With n draws of D numbers, the mean square is 1 +- z sqrt(2 / (D n)); that of one number 1 +- z sqrt(2 / n); the
    mean of a number, and of the product of two, 0 +- z / sqrt(n). Along eigenvectors with eigenvalues below ``floor``
    times the largest, draws must vanish.

    Shapes: draws (n, D), covariance (D, D), both real.
    Raises: AssertionError.
    """
    values, vectors = torch.linalg.eigh(covariance)
    n, top = draws.shape[0], float(values.max().clamp_min(0))
    along = draws.double() @ vectors
    null = values <= floor * top
    spill = float(along[:, null].abs().amax()) if bool(null.any()) else 0.0
    limit = 10 * math.sqrt(floor * top)
    require(spill <= limit, where, f"{identity}: nothing in the null space", f"{spill:.3g}", f"at most {limit:.3g}")
    white = along[:, ~null] / values[~null].sqrt()
    d = white.shape[1]
    if d == 0:
        return
    mean, room = float(white.square().mean()), z * math.sqrt(2 / (d * n))
    require(
        abs(mean - 1) <= room,
        where,
        f"{identity}: mean square of the whitened draws",
        f"{mean:.4g}",
        f"1 +- {room:.2g}",
    )
    off = float(white.mean(0).abs().max())
    room = z / math.sqrt(n)
    require(off <= room, where, f"{identity}: mean of the whitened draws", f"{off:.4g}", f"0 +- {room:.2g}")
    products = white.mT @ white / n
    worst, room = float((products.diagonal() - 1).abs().max()), z * math.sqrt(2 / n)
    require(
        worst <= room, where, f"{identity}: variance along every eigenvector", f"off by {worst:.3g}", f"1 +- {room:.2g}"
    )
    products.fill_diagonal_(0)
    worst, room = float(products.abs().max()), z / math.sqrt(n)
    require(worst <= room, where, f"{identity}: eigenvectors uncorrelated", f"{worst:.3g}", f"0 +- {room:.2g}")
