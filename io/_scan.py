"""A scan: k-space with what its file says of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._coils import compress_coils, espirit_maps, mix_coils
from potentia.io._kspace import centre_crop, remove_oversampling
from potentia.io._noise import border_samples, noise_covariance, whitening_matrix

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
            if array is not None and (bad := int((~np.isfinite(array)).sum())):
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

    @property
    def noise_std(self) -> NDArray[np.float32]:
        """Std a part of a sample once noise is white: 1 / sqrt(counts), and 1 where nothing was measured."""
        std: NDArray[np.float32] = np.reciprocal(np.sqrt(np.maximum(self.counts, 1), dtype=np.float32))
        return std

    def prewhitened(self, *, border: float = 0.05) -> "Scan":
        """Make the noise white: real and imaginary parts have std 1 in each coil, measured once.

        Its covariance is that of the noise scan. Where there is none, the outermost samples of k-space stand in for it:
        the share ``border`` of the measured positions of all slices, at least ten a coil. Left out of them are
        positions at which every coil is zero, which are padding, and the middle half of k-space, which is signal.
        What signal the border holds makes the noise appear stronger: see ``estimate_noise_std`` for how much.

        Raises: ValueError where there is neither a noise scan nor a border of ten samples a coil; or as
            ``noise_covariance`` and ``whitening_matrix``.
        """
        noise = self.noise
        if noise is None:
            noise = border_samples(self.source, self.kspace, self.counts, fraction=border)
        return self.mix_coils(whitening_matrix(noise_covariance(noise)))

    def calibrated(self) -> "Scan":
        """Find coil maps where there are none: by ``espirit_maps`` slice by slice, of one coil ones.

        Lines for calibration alone are taken where the file has some, else the middle of k-space.

        Raises: ValueError and ImportError as ``espirit_maps``, with the slice.
        """
        if self.coil_maps is not None:
            return self
        if self.kspace.shape[1] == 1:
            return replace(self, coil_maps=np.ones_like(self.kspace))
        lines = self.kspace if self.calibration is None else self.calibration
        maps = []
        for at, plane in enumerate(lines):
            try:
                maps.append(espirit_maps(plane))
            except ValueError as err:
                raise ValueError(f"{self.source}, slice {at} of {len(lines)}: {err}") from err
        return replace(self, coil_maps=np.stack(maps))

    def prepared(self, *, num_coils: int | None = None, noise_std: float | None = None) -> "Scan":
        """Make ready for a likelihood: ``Gaussian(kspace[k], Sense(coil_maps[k], mask[k]), noise_std[k])``.

        In this order: oversampling is removed, where lines are measured in whole; noise is made white, by
        ``prewhitened`` or by the std given; coils are compressed to ``num_coils``, if there are more; coil maps are
        found, if there are none. Images keep their unit where there were maps; else it becomes the noise's std.

        Units: noise_std is that of a part of a sample measured once, in the unit of kspace, alike in all coils.
        Raises: ValueError for noise_std that is not above 0, num_coils below 1, or as the methods named.
        """
        scan = self.without_oversampling() if self.oversampled and self._has_whole_lines() else self
        if noise_std is None:
            scan = scan.prewhitened()
        elif 0 < noise_std < np.inf:
            scan = scan.mix_coils(np.eye(scan.kspace.shape[1]) / noise_std)
        else:
            raise ValueError(f"{self.source}: noise_std is {noise_std}, expected a number above 0")
        if num_coils is not None and num_coils < scan.kspace.shape[1]:
            scan = scan.mix_coils(compress_coils(scan.kspace, num_coils=num_coils)[1])
        return scan.calibrated()

    @property
    def oversampled(self) -> bool:
        """Whether the readout's field of view is known to be larger than that of the image."""
        shape = self.recon_shape
        return shape is not None and shape[self.readout_axis] < self.kspace.shape[self.readout_axis]

    def _has_whole_lines(self) -> bool:
        lines = np.moveaxis(self.counts, self.readout_axis, -1)
        return bool((lines == lines[..., :1]).all())

    def without_oversampling(self) -> "Scan":
        """Reduce the field of view along the readout to that of ``recon_shape``: exact, see ``remove_oversampling``.

        Raises: ValueError where the shape is unknown, lines are measured in part, or their counts vary.
        """
        axis = self.readout_axis
        if self.recon_shape is None:
            raise ValueError(f"{self.source}: does not say the shape of its image, see remove_oversampling")
        if not self.oversampled:
            return self
        before, size = self.kspace.shape[axis], self.recon_shape[axis]
        if not self._has_whole_lines():
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
