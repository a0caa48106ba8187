"""Cartesian magnetic resonance imaging: single coil and SENSE."""

from typing import cast

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import Structure
from potentia._tensor import mirrored
from potentia._validate import Shape, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_mask
from potentia.likelihoods._operator import Operator, Weight

PLANE = (-2, -1)


def centred_fft(x: Tensor) -> Tensor:
    """Unitary 2-D Fourier transform with the origin in the middle of image and k-space, (..., H, W)."""
    k: Tensor = torch.fft.fft2(torch.fft.ifftshift(x, dim=PLANE), norm="ortho")
    return cast(Tensor, torch.fft.fftshift(k, dim=PLANE))


def centred_ifft(k: Tensor) -> Tensor:
    """Inverse and adjoint of ``centred_fft``, (..., H, W)."""
    x: Tensor = torch.fft.ifft2(torch.fft.ifftshift(k, dim=PLANE), norm="ortho")
    return cast(Tensor, torch.fft.fftshift(x, dim=PLANE))


def _even(spectrum: Tensor) -> Tensor:
    """Mean of spectrum(k) and spectrum(-k): what real images see of it, zero frequency first."""
    return (spectrum + mirrored(spectrum)) / 2


class Fourier(Operator):
    """A x = mask * F x, F the centred, unitary 2-D Fourier transform: single-coil Cartesian MRI.

    Shapes: mask (H, W) or (C, H, W), broadcasting against k-space, or None for full sampling;
        x (*batch, C, H, W), complex (real if ``real``) -> complex k-space of the same shape.
    Raises: ValueError for a negative, NaN or all-zero mask.
    """

    mask: Tensor | None

    def __init__(self, mask: object = None, *, real: bool = False) -> None:
        super().__init__()
        m = None if mask is None else as_mask("Fourier", mask)
        if m is not None and m.dim() not in (2, 3):
            raise ValueError(f"Fourier: mask has shape {shape_text(tuple(m.shape))}, expected (H, W) or (C, H, W)")
        self.register_buffer("mask", m)
        self.real = real

    def forward(self, x: Tensor) -> Tensor:
        k = centred_fft(x)
        return k if self.mask is None else self.mask * k

    def adjoint(self, y: Tensor) -> Tensor:
        x = centred_ifft(y if self.mask is None else self.mask * y)
        return x.real if self.real else x

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        if len(shape) != 3:
            raise ValueError(f"Fourier: got an image of shape {shape_text(shape)}, expected (C, H, W)")
        if self.mask is not None:
            same_shape("Fourier", "the image's plane", shape[-2:], tuple(self.mask.shape[-2:]))
        return shape

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    def complex_output(self, complex_input: bool) -> bool:
        return True

    def complex_input(self, complex_output: bool) -> bool:
        if not complex_output:
            raise ValueError("Fourier: measurements are k-space, complex, got real ones")
        return not self.real

    @property
    def sampled(self) -> Tensor | None:
        return None if self.mask is None else self.mask > 0

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Fourier structure: shifts of the image commute with a diagonal in k-space, so that the centring drops out."""
        w = torch.ones(1, 1, 1, device=None if self.mask is None else self.mask.device) * weight
        spectrum = w if self.mask is None else self.mask.square() * w
        spectrum = torch.fft.ifftshift(spectrum.expand(*spectrum.shape[:-2], *input_shape[-2:]), dim=PLANE)
        return FourierStructure(_even(spectrum) if self.real else spectrum)

    def extra_repr(self) -> str:
        return _sampling_text(self.mask) + (", real images" if self.real else "")


def _sampling_text(mask: Tensor | None) -> str:
    if mask is None:
        return "fully sampled"
    return f"{float((mask > 0).float().mean()):.1%} of {shape_text(tuple(mask.shape))} sampled"


class Sense(Operator):
    """A x = mask * F (coil_maps * x), F the centred, unitary Fourier transform: multi-coil Cartesian MRI.

    Shapes: coil_maps (coils, H, W), complex; mask (H, W) or (coils, H, W), or None for full sampling;
        x (*batch, 1, H, W), complex (real if ``real``) -> k-space (*batch, coils, H, W), complex.
    Raises: ValueError for maps that are zero, not finite, or of another plane than the mask.
    Source: Pruessmann et al. 1999, SENSE.
    """

    coil_maps: Tensor
    mask: Tensor | None

    def __init__(self, coil_maps: object, mask: object = None, *, real: bool = False) -> None:
        super().__init__()
        maps = tensor("Sense", "coil_maps", coil_maps)
        if maps.dim() != 3:
            raise ValueError(f"Sense: coil_maps has shape {shape_text(tuple(maps.shape))}, expected (coils, H, W)")
        if not bool((maps != 0).any()):
            raise ValueError("Sense: coil_maps are zero everywhere: nothing is measured")
        m = None if mask is None else as_mask("Sense", mask)
        if m is not None:
            if m.dim() not in (2, 3):
                raise ValueError(
                    f"Sense: mask has shape {shape_text(tuple(m.shape))}, expected (H, W) or (coils, H, W)"
                )
            same_shape("Sense", "mask's plane", tuple(m.shape[-2:]), tuple(maps.shape[-2:]))
        self.register_buffer("coil_maps", maps.to(maps.dtype.to_complex()))
        self.register_buffer("mask", m)
        self.real = real

    def forward(self, x: Tensor) -> Tensor:
        k = centred_fft(self.coil_maps * x)
        return k if self.mask is None else self.mask * k

    def adjoint(self, y: Tensor) -> Tensor:
        return self._combine(centred_ifft(y if self.mask is None else self.mask * y))

    def _combine(self, coils: Tensor) -> Tensor:
        x = (self.coil_maps.conj() * coils).sum(dim=-3, keepdim=True)
        return x.real if self.real else x

    def _weighted_normal(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """A^H W A x; ``spectrum`` is mask^2 W, zero frequency first. Shifts of the image commute with it."""
        coils = torch.fft.ifft2(torch.fft.fft2(self.coil_maps * x).mul_(spectrum))
        return self._combine(coils)

    def _spectrum(self, weight: Weight) -> Tensor:
        plane = tuple(self.coil_maps.shape[-2:])
        w = torch.ones(1, 1, 1, device=self.coil_maps.device, dtype=self.coil_maps.real.dtype) * weight
        full = (w if self.mask is None else self.mask.square() * w).expand(-1, *plane)
        return cast(Tensor, torch.fft.ifftshift(full, dim=PLANE)).contiguous()

    def normal(self, x: Tensor) -> Tensor:
        return self._weighted_normal(x, self._spectrum(1.0))

    def output_shape(self, input_shape: Shape) -> Shape:
        coils, *plane = self.coil_maps.shape
        same_shape("Sense", "the image", tuple(input_shape), (1, *plane))
        return (coils, *plane)

    def input_shape(self, output_shape: Shape) -> Shape:
        coils, *plane = self.coil_maps.shape
        same_shape("Sense", "the k-space", tuple(output_shape), (coils, *plane))
        return (1, *plane)

    def complex_output(self, complex_input: bool) -> bool:
        return True

    def complex_input(self, complex_output: bool) -> bool:
        if not complex_output:
            raise ValueError("Sense: measurements are k-space, complex, got real ones")
        return not self.real

    @property
    def sampled(self) -> Tensor | None:
        return None if self.mask is None else self.mask > 0

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Matrix-free, with the optimal circulant approximation (T. Chan 1988) to precondition it.

        The nearest circulant matrix to S^H F^H diag(s) F S has as spectrum s convolved with |F S|^2 / (H W).
        """
        spectrum = self._spectrum(weight)
        free = self._matrix_free(weight, input_shape)
        power = torch.fft.fft2(self.coil_maps).abs().square().to(spectrum.dtype)
        pixels = power.shape[-2] * power.shape[-1]
        smooth = torch.fft.ifft2(torch.fft.fft2(spectrum) * torch.fft.fft2(mirrored(power)))
        near = smooth.real.sum(dim=0, keepdim=True).clamp_min(0.0) / pixels**2
        approximation = FourierStructure(_even(near) if self.real else near)
        return type(free)(lambda x: self._weighted_normal(x, spectrum), free.sample_noise, approximation)

    def extra_repr(self) -> str:
        return f"{self.coil_maps.shape[0]} coils, {_sampling_text(self.mask)}" + (", real images" if self.real else "")
