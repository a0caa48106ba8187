"""Non-uniform Fourier transforms by FINUFFT, which is imported when the first transform is made."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from potentia._validate import Shape

# Relative error asked of a transform: near the best there is in double, well below the data's in single precision.
ACCURACY = {torch.complex64: 1e-6, torch.complex128: 1e-14}


def nufft(x: Tensor, trajectory: Tensor) -> Tensor:
    """Sum over pixels r of x(r) exp(-2 pi i k . r), pixel (H // 2, W // 2) being the origin.

    Differentiable. Transforms run on the CPU, in double precision for complex128 images.

    Shapes: x (..., H, W), complex; trajectory (M, 2) -> (..., M). Units: trajectory (ky, kx) in cycles per pixel.
    Raises: ImportError where finufft is missing.
    """
    out: Tensor = _Transform.apply(x, trajectory, None)  # type: ignore[no-untyped-call]
    return out


def nufft_adjoint(y: Tensor, trajectory: Tensor, shape: Shape) -> Tensor:
    """Sum over samples m of y(m) exp(2 pi i k_m . r): (..., M) -> (..., H, W), the adjoint of ``nufft``."""
    out: Tensor = _Transform.apply(y, trajectory, (shape[-2], shape[-1]))  # type: ignore[no-untyped-call]
    return out


class _Transform(torch.autograd.Function):
    """Either transform, each the other's derivative."""

    @staticmethod
    def forward(ctx: FunctionCtx, v: Tensor, trajectory: Tensor, shape: tuple[int, int] | None) -> Tensor:
        ctx.trajectory, ctx.shape = trajectory, shape  # type: ignore[attr-defined]
        ctx.plane = v.shape[-2:]  # type: ignore[attr-defined]
        return _execute(v, trajectory, shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        shape = None if ctx.shape is not None else tuple(ctx.plane)
        return _Transform.apply(gradients[0], ctx.trajectory, shape), None, None  # type: ignore[no-untyped-call]


def _execute(v: Tensor, trajectory: Tensor, shape: tuple[int, int] | None) -> Tensor:
    finufft = _finufft()
    dims = 2 if shape is None else 1
    batch = v.shape[:-dims]
    # FINUFFT's precision is that of its positions, which lose a digit per factor of ten in size in single precision.
    data = np.ascontiguousarray(v.detach().resolve_conj().cpu().reshape(-1, *v.shape[-dims:]).numpy())
    points = trajectory.detach().cpu().double().remainder(1.0).numpy() * (2 * math.pi)
    real = np.float64 if v.dtype == torch.complex128 else np.float32
    ky, kx = (np.ascontiguousarray(points[:, i]).astype(real) for i in (0, 1))
    settings = {"eps": ACCURACY[v.dtype], "nthreads": torch.get_num_threads()}
    if shape is None:
        out = finufft.nufft2d2(ky, kx, data, isign=-1, **settings)
        return torch.from_numpy(out).reshape(*batch, len(ky)).to(v.device)
    out = finufft.nufft2d1(ky, kx, data, n_modes=shape, isign=1, **settings)
    return torch.from_numpy(out).reshape(*batch, *shape).to(v.device)


def _finufft() -> Any:
    try:
        import finufft
    except ImportError as err:
        raise ImportError("non-Cartesian transforms need finufft: pip install 'potentia[mri]'") from err
    return finufft
