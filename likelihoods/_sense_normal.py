"""The normal operator of Cartesian parallel imaging, with its structure."""

from functools import partial
from typing import cast

import torch
from torch import Tensor

from potentia._quadratic import Fourier as FourierStructure
from potentia._structure import Diagonal, MatrixFree, Noise, Structure
from potentia.likelihoods._near_inverse import (
    CUT_OFF,
    ORIGIN,
    PLANE,
    FieldInverse,
    LineInverse,
    LocalInverse,
    check_top,
    differences,
    kspace_entries,
    neighbourhood,
    reach_for,
    where_hard,
)

MOST_BYTES = 2**30  # that a preconditioner may hold


def even(spectrum: Tensor, axes: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Mean of spectrum(k) and spectrum(-k): what real images see of it, zero frequency first."""
    return (spectrum + spectrum.flip(axes).roll((1,) * len(axes), axes)) / 2


class SenseNormal:
    """S^H F^H diag(spectrum) F S, F over ``axes``; transforms run along the axes alone that the spectrum varies along.

    Along the others F^H F cancels: lines of k-space that are sampled from end to end cost no transform.

    Shapes: maps (coils, C, H, W); spectrum, real, broadcasting against them, zero frequency first;
        x (*batch, C, H, W) -> the same.
    """

    def __init__(self, maps: Tensor, spectrum: Tensor, axes: tuple[int, ...], *, real: bool) -> None:
        self.maps = maps
        self.conjugates = maps.conj().resolve_conj()
        self.real = real
        varying = []
        for axis in axes:
            first = spectrum.narrow(axis, 0, 1)
            if bool((spectrum == first).all()):
                spectrum = first
            else:
                varying.append(axis)
        self.spectrum = spectrum.contiguous()
        self.axes = tuple(varying)

    def apply(self, x: Tensor) -> Tensor:
        """Coil after coil on the CPU, whose caches hold one but not all of them."""
        coils = self.maps.shape[0]
        step = 1 if x.device.type == "cpu" else coils
        total: Tensor | None = None
        for c in range(0, coils, step):
            spectrum = self.spectrum if self.spectrum.shape[0] == 1 else self.spectrum[c : c + step]
            filtered = self._filter(self.maps[c : c + step] * x.unsqueeze(-4), spectrum)
            part = filtered.mul_(self.conjugates[c : c + step])
            part = part.squeeze(-4) if step == 1 else part.sum(dim=-4)
            total = part if total is None else total.add_(part)
        out = cast(Tensor, total)
        return out.real if self.real else out

    def _filter(self, coils: Tensor, spectrum: Tensor) -> Tensor:
        if not self.axes:
            return coils * spectrum
        k = torch.fft.fftn(coils, dim=self.axes)
        out: Tensor = torch.fft.ifftn(k.mul_(spectrum.to(k.real.dtype)), dim=self.axes)
        return out

    def structure(self, sample_noise: Noise, channels: int) -> Structure:
        """Diagonal where nothing is left to transform, else matrix-free with what is known of its inverse.

        Fully sampled, it is the sum of squares of the maps. ``channels`` is that of the images.

        Raises: ValueError where precision cannot hold squares of the maps over the noise's.
        """
        top = float(self.spectrum.max() * self.maps.abs().square().sum(0).max())
        check_top(top)
        if not self.axes:
            return Diagonal((self.maps.abs().square() * self.spectrum).sum(0))
        beside = None if -3 in self.axes else partial(self._beside_field, channels)
        inverse = where_hard(lambda: self._near_inverse(channels), top, beside)
        return MatrixFree(self.apply, sample_noise, self._circulant(), near_inverse=inverse)

    def _circulant(self) -> FourierStructure | None:
        """The optimal circulant approximation (T. Chan 1988): it has the operator's diagonal in k-space."""
        if -3 in self.axes:
            return None
        near = kspace_entries(self.maps, self.spectrum, (-2, -1), [ORIGIN])[ORIGIN].real.clamp_min(0.0)
        return FourierStructure(even(near) if self.real else near)

    def _beside_field(self, channels: int) -> FieldInverse:
        points = neighbourhood(PLANE, CUT_OFF)
        maps = self.maps.expand(-1, channels, -1, -1)
        spectrum = self.spectrum.expand(*self.spectrum.shape[:-2], *maps.shape[-2:])
        entries = kspace_entries(maps, spectrum, PLANE, differences(points))
        return FieldInverse(points, entries, (maps != 0).any(0), real=self.real)

    def _near_inverse(self, channels: int) -> LineInverse | LocalInverse:
        maps = self.maps.expand(-1, channels, -1, -1)
        size = maps.element_size()
        if len(self.axes) == 1 and self.axes[0] != -3 and LineInverse.entries(maps, self.axes[0]) * size <= MOST_BYTES:
            return LineInverse(maps, self.spectrum, self.axes[0], real=self.real)
        support = (maps != 0).any(0)
        points = neighbourhood(self.axes, reach_for(self.axes, support))
        if (len(differences(points)) + 4 * len(points)) * maps[0].numel() * size > MOST_BYTES:
            points = neighbourhood(self.axes, 0)
        entries = kspace_entries(maps, self.spectrum, self.axes, differences(points))
        return LocalInverse(points, entries, support, self.axes, real=self.real)
