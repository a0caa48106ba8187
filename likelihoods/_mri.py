"""Cartesian magnetic resonance imaging: single coil and SENSE, of planes, slices, frames and volumes."""

from typing import Any, Self, cast

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._quadratic import MatrixFree, Structure
from potentia._validate import Shape, same_shape, shape_text, tensor
from potentia.likelihoods._basic import as_mask
from potentia.likelihoods._near_inverse import ORIGIN, LocalInverse
from potentia.likelihoods._operator import Operator, Weight
from potentia.likelihoods._sense_normal import SenseNormal, even

PLANE = (-2, -1)
VOLUME = (-3, -2, -1)


def centred_fft(x: Tensor, axes: tuple[int, ...] = PLANE) -> Tensor:
    """Unitary Fourier transform with the origin in the middle of image and k-space, over the plane or other axes."""
    k: Tensor = torch.fft.fftn(torch.fft.ifftshift(x, dim=axes), dim=axes, norm="ortho")
    return cast(Tensor, torch.fft.fftshift(k, dim=axes))


def centred_ifft(k: Tensor, axes: tuple[int, ...] = PLANE) -> Tensor:
    """Inverse and adjoint of ``centred_fft``."""
    x: Tensor = torch.fft.ifftn(torch.fft.ifftshift(k, dim=axes), dim=axes, norm="ortho")
    return cast(Tensor, torch.fft.fftshift(x, dim=axes))


def sampling_text(mask: Tensor | None) -> str:
    """How much of k-space a mask takes, for the printed tree."""
    if mask is None:
        return "fully sampled"
    return f"{float((mask > 0).float().mean()):.1%} of {shape_text(tuple(mask.shape))} sampled"


def transformed(where: str, axes: int) -> tuple[int, ...]:
    """The axes of an image that are Fourier transformed, given their number.

    Raises: ValueError for a number other than 2 and 3.
    """
    if axes not in (2, 3):
        raise ValueError(f"{where}: axes is {axes!r}, expected 2 (planes) or 3 (a volume)")
    return PLANE if axes == 2 else VOLUME


class KSpace(Operator):
    """What operators with measurements in k-space share."""

    real: bool
    mask: Tensor | None

    def complex_output(self, complex_input: bool) -> bool:
        return True

    def complex_input(self, complex_output: bool) -> bool:
        if not complex_output:
            raise ValueError(f"{type(self).__name__}: measurements are k-space, complex, got real ones")
        return not self.real

    @property
    def sampled(self) -> Tensor | None:
        return None if self.mask is None else self.mask > 0


class Fourier(KSpace):
    """A x = mask * F x, F the centred, unitary Fourier transform: single-coil Cartesian MRI.

    Channels are slices or frames, each transformed on its own, or, with ``axes=3``, one volume transformed as a whole.
    A mask (C, H, W) gives every slice or frame its own sampling.

    Partial Fourier is a mask with one side left out (``partial_fourier_mask``). Complex images then lack that side.
    Where the phase is known, and smooth, it replaces what is missing: as the coil map of ``Sense`` with ``real=True``.

    Shapes: mask (H, W) or (C, H, W), broadcasting against k-space, or None for full sampling;
        x (*batch, C, H, W), complex (real if ``real``) -> complex k-space of the same shape.
    Raises: ValueError for a negative, NaN or all-zero mask, or for ``axes`` other than 2 and 3.
    """

    def __init__(self, mask: object = None, *, real: bool = False, axes: int = 2) -> None:
        super().__init__()
        m = None if mask is None else as_mask("Fourier", mask)
        if m is not None and m.dim() not in (2, 3):
            raise ValueError(f"Fourier: mask has shape {shape_text(tuple(m.shape))}, expected (H, W) or (C, H, W)")
        self.register_buffer("mask", m)
        self.real = real
        self.axes = transformed("Fourier", axes)

    def forward(self, x: Tensor) -> Tensor:
        k = centred_fft(x, self.axes)
        return k if self.mask is None else self.mask * k

    def adjoint(self, y: Tensor) -> Tensor:
        x = centred_ifft(y if self.mask is None else self.mask * y, self.axes)
        return x.real if self.real else x

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        if len(shape) != 3:
            raise ValueError(f"Fourier: got an image of shape {shape_text(shape)}, expected (C, H, W)")
        if self.mask is not None:
            plane = tuple(self.mask.shape[-2:])
            same_shape("Fourier", "the image's plane", shape[-2:], plane)
            if self.mask.dim() == 3 and self.mask.shape[0] > 1:
                same_shape("Fourier", "the image", shape, tuple(self.mask.shape))
        return shape

    def input_shape(self, output_shape: Shape) -> Shape:
        return self.output_shape(output_shape)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Fourier structure: shifts of the image commute with a diagonal in k-space, so that the centring drops out.

        A volume's is matrix-free, with its exact inverse as the preconditioner.
        """
        w = torch.ones(1, 1, 1, device=None if self.mask is None else self.mask.device) * weight
        spectrum = w if self.mask is None else self.mask.square() * w
        full = spectrum.expand(*spectrum.shape[:-2], *input_shape[-2:])
        if len(self.axes) == 2:
            full = torch.fft.ifftshift(full, dim=PLANE)
            return FourierStructure(even(full) if self.real else full)
        full = torch.fft.ifftshift(full.expand(*input_shape), dim=VOLUME)
        full = even(full, VOLUME) if self.real else full
        everywhere = torch.ones(tuple(input_shape), dtype=torch.bool, device=full.device)
        inverse = LocalInverse([ORIGIN], {ORIGIN: full}, everywhere, VOLUME, real=self.real)
        noise = self._matrix_free(weight, input_shape).sample_noise
        one = torch.ones(1, *(1,) * 3, dtype=full.dtype.to_complex(), device=full.device)
        normal = SenseNormal(one, full[None], VOLUME, real=self.real)
        return MatrixFree(normal.apply, noise, near_inverse=inverse)

    def extra_repr(self) -> str:
        whole = ", whole volume" if len(self.axes) == 3 else ""
        return sampling_text(self.mask) + whole + (", real images" if self.real else "")


class Sense(KSpace):
    """A x = mask * F (coil_maps * x), F the centred, unitary Fourier transform: multi-coil Cartesian MRI.

    Maps (coils, H, W) are for one plane. Maps (coils, D, H, W) are for D slices, each transformed on its own, or with
    ``axes=3`` for a volume transformed as a whole; maps (coils, 1, H, W) hold for every slice or frame alike, so that a
    mask (T, H, W) makes dynamic imaging of it. Lines of k-space sampled from end to end cost no transform in the
    normal operator; where what is left runs along one axis, its equations are solved directly, line by line.

    With ``real=True`` images are real, their phase being known: multiply the maps by exp(i phase), phase (H, W) of low
    resolution, for phase-constrained partial Fourier.

    Shapes: coil_maps (coils, H, W) or (coils, D or 1, H, W), complex; mask broadcasting against the k-space of a
        coil, (H, W) or (D, H, W), or against that of all, or None for full sampling;
        x (*batch, 1, H, W) or (*batch, D, H, W), complex (real if ``real``) -> complex k-space
        (*batch, coils, H, W) or (*batch, coils, D, H, W).
    Raises: ValueError for maps that are zero, not finite, or of another plane than the mask.
    Source: Pruessmann et al. 1999, SENSE.
    """

    coil_maps: Tensor

    def __init__(self, coil_maps: object, mask: object = None, *, real: bool = False, axes: int = 2) -> None:
        super().__init__()
        maps = tensor("Sense", "coil_maps", coil_maps)
        self.axes = transformed("Sense", axes)
        if maps.dim() not in (3, 4):
            raise ValueError(
                f"Sense: coil_maps has shape {shape_text(tuple(maps.shape))}, expected (coils, H, W) or "
                "(coils, D, H, W)"
            )
        if maps.dim() == 3 and axes == 3:
            raise ValueError(f"Sense: a volume needs coil_maps (coils, D, H, W), got {shape_text(tuple(maps.shape))}")
        if not bool((maps != 0).any()):
            raise ValueError("Sense: coil_maps are zero everywhere: nothing is measured")
        m = None if mask is None else as_mask("Sense", mask)
        self.output_dims = maps.dim()  # type: ignore[misc]
        self.register_buffer("coil_maps", maps.to(maps.dtype.to_complex()))
        # A mask of numpy's doubles would make doubles of everything.
        self.register_buffer("mask", None if m is None else m.to(self.coil_maps.real.dtype))
        self._check_mask()
        self.real = real
        self._normal_operator: SenseNormal | None = None

    def _check_mask(self) -> None:
        m, maps = self.mask, self.coil_maps
        if m is None:
            return
        if not 2 <= m.dim() <= maps.dim():
            want = "(H, W) or (coils, H, W)" if maps.dim() == 3 else "(H, W), (D, H, W) or (coils, D, H, W)"
            raise ValueError(f"Sense: mask has shape {shape_text(tuple(m.shape))}, expected {want}")
        same_shape("Sense", "mask's plane", tuple(m.shape[-2:]), tuple(maps.shape[-2:]))
        frames = -3 if maps.dim() == 4 and maps.shape[1] == 1 else 0  # an axis along which the mask may be longer
        for axis in range(-m.dim(), -2):
            if m.shape[axis] not in (1, maps.shape[axis]) and axis != frames:
                got, want = shape_text(tuple(m.shape)), shape_text(tuple(maps.shape))
                raise ValueError(f"Sense: mask has shape {got}, which does not broadcast against coil_maps {want}")

    @property
    def _is_plane(self) -> bool:
        return self.coil_maps.dim() == 3

    def forward(self, x: Tensor) -> Tensor:
        k = centred_fft(self.coil_maps * (x if self._is_plane else x.unsqueeze(-4)), self.axes)
        return k if self.mask is None else self.mask * k

    def adjoint(self, y: Tensor) -> Tensor:
        coils = self.coil_maps.conj() * centred_ifft(y if self.mask is None else self.mask * y, self.axes)
        x = coils.sum(dim=-3, keepdim=True) if self._is_plane else coils.sum(dim=-4)
        return x.real if self.real else x

    def _normal(self, weight: Weight) -> SenseNormal:
        """The normal operator with maps and weights as (coils, C, H, W), zero frequency first."""
        maps = self.coil_maps
        w = torch.ones((1,) * maps.dim(), device=maps.device, dtype=maps.real.dtype) * weight
        spectrum = w if self.mask is None else self.mask.square() * w
        shifted = torch.fft.ifftshift(spectrum.expand(*spectrum.shape[:-2], *maps.shape[-2:]), dim=PLANE)
        if self._is_plane:
            maps, shifted = maps.unsqueeze(1), shifted.unsqueeze(1)
        elif len(self.axes) == 3:
            shifted = torch.fft.ifftshift(shifted, dim=-3)
        return SenseNormal(maps, shifted, self.axes, real=self.real)

    def normal(self, x: Tensor) -> Tensor:
        if self._normal_operator is None:
            self._normal_operator = self._normal(1.0)
        return self._normal_operator.apply(x)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The normal operator holds tensors of the old device and dtype.
        self._normal_operator = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _frames(self) -> int | None:
        """C of the images, or None where neither maps nor mask say."""
        known = [self.coil_maps.shape[1]] if not self._is_plane else [1]
        if not self._is_plane and self.mask is not None and self.mask.dim() >= 3:
            known.append(self.mask.shape[-3])
        most = max(known)
        return None if most == 1 and not self._is_plane and len(self.axes) == 2 else most

    def output_shape(self, input_shape: Shape) -> Shape:
        shape = tuple(input_shape)
        coils, plane = self.coil_maps.shape[0], tuple(self.coil_maps.shape[-2:])
        frames = self._frames() or (shape[0] if len(shape) == 3 else 1)
        same_shape("Sense", "the image", shape, (frames, *plane))
        return (coils, *plane) if self._is_plane else (coils, frames, *plane)

    def input_shape(self, output_shape: Shape) -> Shape:
        shape = tuple(output_shape)
        coils, plane = self.coil_maps.shape[0], tuple(self.coil_maps.shape[-2:])
        frames = self._frames() or (shape[1] if len(shape) == 4 else 1)
        same_shape("Sense", "the k-space", shape, (coils, *plane) if self._is_plane else (coils, frames, *plane))
        return (frames, *plane)

    def gram(self, weight: Weight, input_shape: Shape) -> Structure:
        """Diagonal if fully sampled, else matrix-free with an approximate inverse that knows the coils.

        ``circulant`` is the nearest circulant matrix (T. Chan 1988): its spectrum is that of the weights convolved with
        |F S|^2 / (H W).
        """
        noise = self._matrix_free(weight, input_shape).sample_noise
        return self._normal(weight).structure(noise, input_shape[0])

    def extra_repr(self) -> str:
        maps = self.coil_maps
        size = "" if self._is_plane else f" {shape_text(tuple(maps.shape[1:]))}"
        whole = ", whole volume" if len(self.axes) == 3 else ""
        real = ", real images" if self.real else ""
        return f"{maps.shape[0]} coils{size}, {sampling_text(self.mask)}{whole}{real}"
