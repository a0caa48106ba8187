"""Non-Cartesian magnetic resonance imaging: radial, spiral and any other trajectory."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import MatrixFree, Structure
from potentia._validate import Shape, count, same_shape, shape_text, tensor
from potentia.likelihoods._mri import PLANE, KSpace
from potentia.likelihoods._near_inverse import (
    CUT_OFF,
    ORIGIN,
    FieldInverse,
    LocalInverse,
    Offset,
    differences,
    neighbourhood,
    reach_for,
    where_hard,
)
from potentia.likelihoods._nufft import nufft, nufft_adjoint
from potentia.likelihoods._operator import Weight


class NonCartesian(KSpace):
    """A x(m) = sum over pixels r of coil_maps(r) x(r) exp(-2 pi i k_m . r) / sqrt(H W): MRI along any trajectory.

    Pixel (H // 2, W // 2) is the origin: at the points of the Cartesian grid this is ``Fourier`` or ``Sense``. The
    normal operator is a convolution with the trajectory's point spread function, on a grid of twice the size
    (Toeplitz): exact, and no dearer with more samples. Its entries between neighbours in k-space precondition the
    solver, in place of density compensation.

    Transforms are FINUFFT's. It was chosen over torchkbnufft 1.5.2, which errs by 1e-3 as it comes and by 6e-5 at
    best where FINUFFT errs by what is asked of it, down to 1e-12 in double precision, takes five times as long on
    a CPU, and is written for torch.jit, which PyTorch has given up; and over mri-nufft, which wraps FINUFFT. Forward
    and adjoint run on the CPU wherever tensors lie; the normal operator, which solvers and samplers use, does not.

    Shapes: trajectory (M, 2), (ky, kx), as ``radial_trajectory`` and others give them; shape the images' (H, W);
        coil_maps (coils, H, W), complex, or None: x (*batch, 1, H, W) -> (*batch, coils, M) with maps,
        (*batch, C, H, W) -> (*batch, C, M) without; x and k-space complex.
    Units: trajectory in cycles per pixel, from -1/2 to 1/2 (divide radians per pixel by 2 pi).
    Raises: ValueError for positions outside of that range, or maps that do not fit; ImportError without finufft.
    Source: Barnett, Magland and af Klinteberg 2019 (FINUFFT); Fessler et al. 2005 (Toeplitz).
    """

    output_dims: ClassVar[int] = 2
    trajectory: Tensor
    coil_maps: Tensor | None
    mask: Tensor | None = None
    real = False

    def __init__(self, trajectory: object, shape: Shape, coil_maps: object = None) -> None:
        super().__init__()
        k = as_trajectory("NonCartesian", trajectory)
        plane = tuple(shape)
        if len(plane) != 2 or any(not isinstance(n, int) or n < 1 for n in plane):
            raise ValueError(f"NonCartesian: shape is {shape_text(plane)}, expected (H, W)")
        maps = None if coil_maps is None else tensor("NonCartesian", "coil_maps", coil_maps)
        if maps is not None:
            if maps.dim() != 3 or not bool((maps != 0).any()):
                got = "zeros" if maps.dim() == 3 else shape_text(tuple(maps.shape))
                raise ValueError(f"NonCartesian: coil_maps are {got}, expected sensitivities (coils, H, W)")
            same_shape("NonCartesian", "coil_maps' plane", tuple(maps.shape[-2:]), plane)
            maps = maps.to(maps.dtype.to_complex())
        self.plane = (plane[0], plane[1])
        self.register_buffer("trajectory", k)
        self.register_buffer("coil_maps", maps)

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.plane[0] * self.plane[1])

    def forward(self, x: Tensor) -> Tensor:
        coils = x.to(x.dtype.to_complex()) if self.coil_maps is None else self.coil_maps * x
        return nufft(coils, self.trajectory) * self._scale

    def adjoint(self, y: Tensor) -> Tensor:
        coils = nufft_adjoint(y.to(y.dtype.to_complex()), self.trajectory, self.plane) * self._scale
        return coils if self.coil_maps is None else (self.coil_maps.conj() * coils).sum(dim=-3, keepdim=True)

    def output_shape(self, input_shape: Shape) -> Shape:
        channels = 1 if self.coil_maps is not None else (input_shape[0] if len(input_shape) == 3 else 1)
        same_shape("NonCartesian", "the image", tuple(input_shape), (channels, *self.plane))
        return (channels if self.coil_maps is None else self.coil_maps.shape[0], self.trajectory.shape[0])

    def input_shape(self, output_shape: Shape) -> Shape:
        measured = tuple(output_shape)
        coils = measured[0] if self.coil_maps is None and len(measured) == 2 else None
        want = coils if coils is not None else (1 if self.coil_maps is None else self.coil_maps.shape[0])
        same_shape("NonCartesian", "the k-space", measured, (want, self.trajectory.shape[0]))
        return (want if self.coil_maps is None else 1, *self.plane)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free by the Toeplitz kernel, with an approximate inverse that knows the coils."""
        noise = self._matrix_free(weight, input_shape).sample_noise
        maps = self.coil_maps
        kernel = self._kernel(weight)
        if maps is None:
            maps = torch.ones(1, *self.plane, dtype=kernel.dtype.to_complex(), device=kernel.device)
        separate = self.coil_maps is None
        near = toeplitz_entries(kernel, maps, [ORIGIN], separate=separate)[ORIGIN].real.clamp_min(0.0)

        support = (maps != 0).any(0, keepdim=True).expand(input_shape[0], -1, -1)

        def near_inverse() -> LocalInverse:
            points = neighbourhood(PLANE, reach_for(PLANE, support))
            entries = toeplitz_entries(kernel, maps, differences(points), separate=separate)
            return LocalInverse(points, entries, support, PLANE, real=False)

        def beside() -> FieldInverse:
            points = neighbourhood(PLANE, CUT_OFF)
            entries = toeplitz_entries(kernel, maps, differences(points), separate=separate)
            return FieldInverse(points, entries, support, real=False)

        def action(x: Tensor) -> Tensor:
            coils = _convolve(x if self.coil_maps is None else maps * x, kernel)
            return coils if self.coil_maps is None else (maps.conj() * coils).sum(dim=-3, keepdim=True)

        inverse = where_hard(near_inverse, float(near.max()), beside)
        return MatrixFree(action, noise, FourierStructure(near), near_inverse=inverse)

    def _kernel(self, weight: Weight) -> Tensor:
        """Spectrum of the point spread function on the doubled grid: (coils or 1, 2 H, 2 W), real."""
        samples = self.trajectory.shape[0]
        precision = self.trajectory.dtype if self.coil_maps is None else self.coil_maps.real.dtype
        w = torch.ones(1, samples, dtype=precision, device=self.trajectory.device) * weight
        doubled = (2 * self.plane[0], 2 * self.plane[1])
        # In double precision: errors of the kernel would make the normal operator indefinite.
        spread = nufft_adjoint(w.to(torch.complex128), self.trajectory, doubled) * self._scale**2
        # Lags of a full side do not occur within an image.
        spread[..., 0, :] = 0
        spread[..., :, 0] = 0
        kernel: Tensor = torch.fft.fft2(torch.fft.ifftshift(spread, dim=PLANE))
        return kernel.real.to(w.dtype)

    def extra_repr(self) -> str:
        coils = "" if self.coil_maps is None else f", {self.coil_maps.shape[0]} coils"
        return f"{self.trajectory.shape[0]} samples of {shape_text(self.plane)}{coils}"


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve images with a kernel on a grid of twice their size: (..., H, W) -> the same."""
    height, width = x.shape[-2:]
    k = torch.fft.fft2(x, s=(2 * height, 2 * width))
    out: Tensor = torch.fft.ifft2(k.mul_(kernel.to(k.real.dtype)))[..., :height, :width]
    return out


def toeplitz_entries(
    kernel: Tensor, maps: Tensor, offsets: Sequence[Offset], *, separate: bool
) -> dict[Offset, Tensor]:
    """K[k, k + d] of K = F (sum_c S_c^H T_c S_c) F^H for these offsets d, zero frequency first.

    That of d = 0 is the spectrum of the nearest circulant matrix (T. Chan 1988). ``kernel`` is the spectrum of T on the
    doubled grid; the modulation that leads from k to k + d is a shift by 2 d there.

    Shapes: kernel (coils or 1, 2 H, 2 W); maps (coils, H, W) -> (1, H, W), or (C or 1, H, W) for ``separate``
        channels that are not summed.
    """
    height, width = maps.shape[-2:]
    spread = torch.fft.ifft2(kernel)
    s = torch.fft.fft2(maps, s=(2 * height, 2 * width))
    together = kernel.shape[0] == 1 and not separate
    entries = {}
    for d in offsets:
        power = s.conj() * s.roll((2 * d[1], 2 * d[2]), PLANE)
        power = power.sum(0, keepdim=True) if together else power
        # Sum over pixels of conj(S(r)) S(r - n) exp(2 pi i d (r - n) / N), by lag n.
        overlap = torch.fft.fft2(power, norm="forward")
        lags = spread * overlap
        lags = lags if separate else lags.sum(0, keepdim=True)
        folded = lags.unflatten(-2, (2, height)).sum(-3).unflatten(-1, (2, width)).sum(-2)
        entries[d] = torch.fft.fft2(folded) / (height * width)
    return entries


def as_trajectory(where: str, trajectory: object) -> Tensor:
    """Return a trajectory (M, 2) in cycles per pixel.

    Raises: ValueError for another shape, complex positions, or positions outside of [-1/2, 1/2].
    """
    k = tensor(where, "trajectory", trajectory)
    if k.is_complex() or k.dim() != 2 or k.shape[1] != 2:
        raise ValueError(f"{where}: trajectory has shape {shape_text(tuple(k.shape))}, expected real (M, 2)")
    most = float(k.abs().max())
    if most > 0.5 + 1e-6:
        raise ValueError(
            f"{where}: trajectory reaches {most:.3g}, expected cycles per pixel from -0.5 to 0.5: radians over 2 pi"
        )
    return k


def density_weights(trajectory: object, shape: Shape, *, iterations: int = 20) -> Tensor:
    """Density compensation: what every sample is to count, so that A^H diag(w) A of a ``NonCartesian`` is near I.

    ``w <- w / (k * w)``, over and over, with the kernel k that the image's extent gives: the square of its Dirichlet
    kernel, which is positive. On the Cartesian grid every sample counts 1. For gridding reconstructions A^H (w y); a
    posterior needs none, since the noise decides what a sample counts.

    Shapes: trajectory (M, 2), shape (H, W) -> (M,), real. Units: trajectory in cycles per pixel.
    Raises: ValueError for a trajectory that is none; ImportError without finufft.
    Source: Pipe and Menon 1999.
    """
    k = as_trajectory("density_weights", trajectory)
    steps = count("density_weights", "iterations", iterations)
    height, width = shape[-2], shape[-1]
    doubled = (2 * height, 2 * width)
    # The transform of the squared kernel: how far two copies of the image overlap, by their lag.
    down, across = (1 - (torch.arange(2 * n, device=k.device) - n).abs().double() / n for n in (height, width))
    overlap = down[:, None] * across
    w = torch.ones(k.shape[0], dtype=torch.complex128, device=k.device)
    for _ in range(steps):
        density = nufft(overlap * nufft_adjoint(w, k, doubled), k).real / (height * width)
        w = w / density.clamp_min(1e-12)
    return w.real.to(k.dtype)
