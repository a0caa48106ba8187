"""Slices that are excited together and told apart by coils and phases: simultaneous multi-slice MRI."""

import math

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import MatrixFree, Structure
from potentia._validate import Shape, count, real_number, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_mask
from potentia.likelihoods._mri import PLANE, KSpace, centred_fft, centred_ifft, sampling_text
from potentia.likelihoods._near_inverse import ORIGIN, LocalInverse, kspace_entries, where_hard
from potentia.likelihoods._operator import Weight
from potentia.likelihoods._sense_normal import even


def caipi_phases(slices: int, shape: Shape, *, shift: float | None = None, axis: int = -1) -> Tensor:
    """Phases in k-space that move slice z by ``z * shift`` of the field of view, so that slices overlap less.

    Shapes: shape (H, W) -> (slices, 1, W), or (slices, H, 1) for ``axis=-2``, complex64, k-space centred.
    Units: shift in fields of view, by default 1 / slices.
    Raises: ValueError for an axis other than -1 and -2.
    Source: Breuer et al. 2005, CAIPIRINHA; Setsompop et al. 2012 for blips.
    """
    n = count("caipi_phases", "slices", slices)
    step = 1 / n if shift is None else real_number("caipi_phases", "shift", shift)
    if axis not in PLANE:
        raise ValueError(f"caipi_phases: axis is {axis!r}, expected -1 or -2")
    k = torch.arange(shape[axis], dtype=torch.float64) - shape[axis] // 2
    angle = -2 * math.pi * step * torch.arange(n, dtype=torch.float64)[:, None] * k
    phases = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
    return phases[:, None, :] if axis == -1 else phases[:, :, None]


class SimultaneousSlices(KSpace):
    """A x = mask * sum over slices z of phases_z * F (coil_maps_z * x_z): simultaneous multi-slice MRI.

    Shapes: coil_maps (coils, Z, H, W), complex; phases (Z, H, W), (Z, 1, W) or (Z, H, 1) of modulus one, as
        ``caipi_phases`` gives them, or None; mask (H, W) or (coils, H, W), or None; x (*batch, Z, H, W), complex (real
        if ``real``) -> complex k-space (*batch, coils, H, W).
    Raises: ValueError for maps that are zero, phases of another modulus, or shapes that do not fit.
    """

    coil_maps: Tensor
    phases: Tensor

    def __init__(self, coil_maps: object, phases: object = None, mask: object = None, *, real: bool = False) -> None:
        super().__init__()
        maps = tensor("SimultaneousSlices", "coil_maps", coil_maps)
        if maps.dim() != 4 or not bool((maps != 0).any()):
            got = "zeros" if maps.dim() == 4 else shape_text(tuple(maps.shape))
            raise ValueError(f"SimultaneousSlices: coil_maps are {got}, expected sensitivities (coils, Z, H, W)")
        maps = maps.to(maps.dtype.to_complex())
        self.register_buffer("coil_maps", maps)
        self.register_buffer("phases", self._checked_phases(phases))
        m = None if mask is None else as_mask("SimultaneousSlices", mask)
        if m is not None:
            same_shape("SimultaneousSlices", "mask's plane", tuple(m.shape[-2:]), tuple(maps.shape[-2:]))
            if m.dim() == 3:
                same_shape("SimultaneousSlices", "mask", tuple(m.shape), (maps.shape[0], *maps.shape[-2:]))
            elif m.dim() != 2:
                got = shape_text(tuple(m.shape))
                raise ValueError(f"SimultaneousSlices: mask has shape {got}, expected (H, W) or (coils, H, W)")
        self.register_buffer("mask", m)
        self.real = real

    def _checked_phases(self, phases: object) -> Tensor:
        maps = self.coil_maps
        if phases is None:
            return torch.ones(maps.shape[1], 1, 1, dtype=maps.dtype, device=maps.device)
        p = tensor("SimultaneousSlices", "phases", phases)
        want = tuple(maps.shape[1:])
        if p.dim() != 3 or p.shape[0] != want[0] or any(p.shape[i] not in (1, want[i]) for i in (1, 2)):
            got, slices = shape_text(tuple(p.shape)), shape_text(want)
            raise ValueError(f"SimultaneousSlices: phases have shape {got}, expected to broadcast to {slices}")
        if bool(((p.abs() - 1).abs() > 1e-4).any()):
            raise ValueError(f"SimultaneousSlices: phases must have modulus 1, got up to {float(p.abs().max()):.3g}")
        return p.to(maps.dtype)

    def forward(self, x: Tensor) -> Tensor:
        k = (self.phases * centred_fft(self.coil_maps * x.unsqueeze(-4))).sum(dim=-3)
        return k if self.mask is None else self.mask * k

    def adjoint(self, y: Tensor) -> Tensor:
        k = (y if self.mask is None else self.mask * y).unsqueeze(-3) * self.phases.conj()
        x = (self.coil_maps.conj() * centred_ifft(k)).sum(dim=-4)
        return x.real if self.real else x

    def output_shape(self, input_shape: Shape) -> Shape:
        coils, *image = self.coil_maps.shape
        same_shape("SimultaneousSlices", "the image", tuple(input_shape), tuple(image))
        return (coils, *image[1:])

    def input_shape(self, output_shape: Shape) -> Shape:
        coils, *image = self.coil_maps.shape
        same_shape("SimultaneousSlices", "the k-space", tuple(output_shape), (coils, *image[1:]))
        return tuple(image)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with the nearest circulant matrix of each slice, taken alone, to precondition it."""
        maps = self.coil_maps
        free = self._matrix_free(weight, input_shape)
        w = torch.ones(1, 1, 1, dtype=maps.real.dtype, device=maps.device) * weight
        spectrum = w if self.mask is None else self.mask.square() * w
        spectrum = torch.fft.ifftshift(spectrum.expand(*spectrum.shape[:-2], *maps.shape[-2:]), dim=PLANE)
        near = kspace_entries(maps, spectrum.unsqueeze(1), PLANE, [ORIGIN])[ORIGIN].real.clamp_min(0.0)
        support = (maps != 0).any(0)
        inverse = where_hard(
            lambda: LocalInverse([ORIGIN], {ORIGIN: near}, support, PLANE, real=self.real), float(near.max())
        )
        approximation = FourierStructure(even(near) if self.real else near)
        return MatrixFree(free.action, free.sample_noise, approximation, near_inverse=inverse)

    def extra_repr(self) -> str:
        coils, slices = self.coil_maps.shape[:2]
        real = ", real images" if self.real else ""
        return f"{slices} slices at once, {coils} coils, {sampling_text(self.mask)}{real}"
