"""A scan: k-space with what its file says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._coils import mix_coils
from potentia.io._kspace import centre_crop, remove_oversampling
from potentia.io._noise import noise_covariance, whitening_matrix

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Scan:
    """K-space as it was measured, in the axis order (slices, coils, ky, kx), and what its file says of it.

    The centred unitary inverse transform of ``kspace``, as of ``likelihoods.Sense``, gives the coils' images
    (slices, coils, y, x); the origin lies at index n // 2 of both domains.

    Shapes: kspace (slices, coils, ky, kx), complex64, zero where nothing was measured; counts (slices, ky, kx), how
        often each position was measured, the mean of which kspace holds; noise (coils, samples), of a noise scan, at
        the level of a sample measured once; coil_maps (slices, coils, y, x); calibration as kspace, of lines that are
        for coil maps only; reference (slices, *recon_shape), the image that came with the file.
    Units:  field_of_view in mm, along (slice, y, x), the first the thickness of one slice; affine (4, 4) takes
        (slice, y, x, 1) to mm, RAS+ as of NIfTI, at the centres of pixels.
    ``readout_axis`` is -1 or -2, the axis along which a line is measured at once; ``recon_shape`` (y, x) what the
    scanner would crop the image to; ``header`` holds all other facts as text.
    Raises: ValueError where shapes disagree or kspace is not finite.
    """

    kspace: NDArray[np.complex64]
    counts: NDArray[np.integer[Any]]
    source: str
    noise: NDArray[np.complex64] | None = None
    coil_maps: NDArray[np.complex64] | None = None
    calibration: NDArray[np.complex64] | None = None
    reference: NDArray[np.floating[Any]] | None = None
    field_of_view: Triple | None = None
    affine: NDArray[np.float64] | None = None
    recon_shape: tuple[int, int] | None = None
    readout_axis: int = -1
    header: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kspace.ndim != 4 or self.kspace.size == 0:
            raise ValueError(
                f"{self.source}: kspace has shape {self.kspace.shape}, expected (slices, coils, ky, kx), none empty"
            )
        slices, coils, *plane = self.kspace.shape
        every = (slices, coils, *plane)
        self._check("counts", self.counts.shape, (slices, *plane))
        for name in ("coil_maps", "calibration"):
            array = getattr(self, name)
            if array is not None:
                self._check(name, array.shape, every)
        if self.noise is not None:
            self._check("noise", self.noise.shape, (coils, *self.noise.shape[1:2]))
        for name in ("kspace", "noise", "coil_maps", "calibration"):
            array = getattr(self, name)
            bad = 0 if array is None else int((~np.isfinite(array)).sum())
            if bad:
                raise ValueError(f"{self.source}: {name} has {bad} NaN or infinite of {array.size} entries")

    def _check(self, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if got != expected:
            raise ValueError(f"{self.source}: {name} has shape {got}, expected {expected} beside kspace")

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where k-space was measured, (slices, ky, kx)."""
        return self.counts > 0

    @property
    def voxel_size(self) -> Triple | None:
        """Size in mm of a pixel of the image that k-space transforms to, along (slice, y, x)."""
        if self.field_of_view is None:
            return None
        thick, tall, wide = self.field_of_view
        return thick, tall / self.kspace.shape[-2], wide / self.kspace.shape[-1]

    def mix_coils(self, matrix: NDArray[Any]) -> "Scan":
        """Take linear combinations of coils in all that has coils: see ``compress_coils``.

        Raises: ValueError if the matrix has another number of coils.
        """
        return replace(
            self,
            kspace=mix_coils(matrix, self.kspace),
            noise=None if self.noise is None else mix_coils(matrix, self.noise, axis=0),
            coil_maps=None if self.coil_maps is None else mix_coils(matrix, self.coil_maps),
            calibration=None if self.calibration is None else mix_coils(matrix, self.calibration),
        )

    def prewhitened(self) -> "Scan":
        """Make the noise white by the noise scan: real and imaginary parts have std 1 in each coil, measured once.

        Raises: ValueError without a noise scan, or as ``noise_covariance`` and ``whitening_matrix``.
        """
        if self.noise is None:
            raise ValueError(f"{self.source}: has no noise scan, see estimate_noise_std and prewhiten")
        return self.mix_coils(whitening_matrix(noise_covariance(self.noise)))

    def without_oversampling(self) -> "Scan":
        """Reduce the field of view along the readout to that of ``recon_shape``: exact, see ``remove_oversampling``.

        Raises: ValueError where the shape is unknown, lines are measured in part, or their counts vary.
        """
        axis = self.readout_axis
        if self.recon_shape is None:
            raise ValueError(f"{self.source}: does not say the shape of its image, see remove_oversampling")
        before, size = self.kspace.shape[axis], self.recon_shape[axis]
        if size >= before:
            return self
        lines = np.moveaxis(self.counts, axis, -1)
        if (lines != lines[..., :1]).any():
            raise ValueError(f"{self.source}: lines are measured in part, expected whole ones to remove oversampling")
        cropped = tuple(size if old == axis else self.kspace.shape[old] for old in (-2, -1))
        affine, fov = self.affine, self.field_of_view
        if affine is not None:
            affine = affine.copy()
            affine[:3, 3] += affine[:3, 3 + axis] * (before // 2 - size // 2)
        if fov is not None:
            scaled = [n * size / before if old == axis else n for old, n in zip((-3, -2, -1), fov, strict=True)]
            fov = (scaled[0], scaled[1], scaled[2])
        calibration, maps = self.calibration, self.coil_maps
        return replace(
            self,
            kspace=remove_oversampling(self.kspace, size, axis),
            counts=np.ascontiguousarray(centre_crop(self.counts, cropped)),
            calibration=None if calibration is None else remove_oversampling(calibration, size, axis),
            coil_maps=None if maps is None else np.ascontiguousarray(centre_crop(maps, cropped)),
            affine=affine,
            field_of_view=fov,
        )
