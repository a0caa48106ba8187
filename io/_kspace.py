"""Arrays of k-space: Fourier transform, crops, sampling masks and scale."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PLANE = (-2, -1)


def centred_fft(array: NDArray[Any], axes: Sequence[int] = PLANE) -> NDArray[Any]:
    """Unitary Fourier transform with the origin at index n // 2 of both domains, as of ``likelihoods.Sense``."""
    moved = np.fft.fftn(np.fft.ifftshift(array, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(moved, axes).astype(np.result_type(array.dtype, np.complex64), copy=False)


def centred_ifft(array: NDArray[Any], axes: Sequence[int] = PLANE) -> NDArray[Any]:
    """Inverse and adjoint of ``centred_fft``."""
    moved = np.fft.ifftn(np.fft.ifftshift(array, axes), axes=axes, norm="ortho")
    return np.fft.fftshift(moved, axes).astype(np.result_type(array.dtype, np.complex64), copy=False)


def coil_axis(where: str, kspace: NDArray[Any]) -> NDArray[Any]:
    """Return k-space whose axes are known to be (..., coils, ky, kx).

    Raises: ValueError for fewer axes, no entries, or entries that are no numbers or not finite.
    """
    array = np.asarray(kspace)
    if array.ndim < 3 or array.size == 0:
        raise ValueError(f"{where}: kspace has shape {array.shape}, expected (..., coils, ky, kx)")
    if array.dtype.kind not in "fc":
        raise ValueError(f"{where}: kspace has dtype {array.dtype}, expected complex numbers")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(f"{where}: kspace has {bad} NaN or infinite of {array.size} entries, expected finite data")
    return array


def centre_crop(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Cut the middle out of the last axes, so that the origin, index n // 2, stays the origin.

    In the image domain this takes a smaller field of view. In k-space it takes a coarser resolution, and under the
    unitary transform multiplies the image by sqrt(pixels before / pixels after), while the noise per sample stays.

    Shapes: array (..., *before), shape of one length a trailing axis; returns a view (..., *shape).
    Raises: ValueError for a shape that is empty, below one or larger than the array.
    """
    before = array.shape[array.ndim - len(shape) :] if len(shape) <= array.ndim else ()
    if not before or any(not 1 <= n <= old for n, old in zip(shape, before, strict=True)):
        raise ValueError(f"centre_crop: shape is {tuple(shape)}, expected lengths of 1 to those of {array.shape}")
    starts = [old // 2 - n // 2 for n, old in zip(shape, before, strict=True)]
    cuts: tuple[Any, ...] = tuple(slice(start, start + n) for start, n in zip(starts, shape, strict=True))
    return array[(Ellipsis, *cuts)]


def remove_oversampling(kspace: NDArray[Any], size: int, axis: int = -1) -> NDArray[Any]:
    """Reduce the field of view along the readout to ``size`` pixels: to the image, crop, and back.

    Exact where the readout is sampled in full; both transforms are unitary, so that white noise stays white and keeps
    its standard deviation.

    Shapes: kspace (..., coils, ky, kx); returns the same with size in place of the length along axis, -1 or -2.
    Raises: ValueError for another shape or axis, a size below one or above that length, and for lines that are sampled
        in part: the samples that are missing would spread along the whole line.
    """
    if axis not in PLANE:
        raise ValueError(f"remove_oversampling: axis is {axis}, expected -1 or -2")
    mask = sampling_mask(kspace)
    if not 1 <= size <= mask.shape[axis]:
        raise ValueError(f"remove_oversampling: size is {size}, expected 1 to {mask.shape[axis]}")
    lines = np.asarray(mask.any(axis=axis))
    partial = int((lines & ~mask.all(axis=axis)).sum())
    if partial:
        raise ValueError(
            f"remove_oversampling: {partial} of {int(lines.sum())} lines are sampled in part, expected whole lines (an "
            f"asymmetric echo is to keep its oversampling)"
        )
    image = centre_crop(centred_ifft(np.moveaxis(kspace, axis, -1), axes=(-1,)), (size,))
    return np.ascontiguousarray(np.moveaxis(centred_fft(image, axes=(-1,)), -1, axis))


def sampling_mask(kspace: NDArray[Any], readout_axis: int | None = None) -> NDArray[np.bool_]:
    """Say where k-space was sampled: wherever any coil is not zero.

    Shapes: kspace (..., coils, ky, kx); returns (..., ky, kx), or with ``readout_axis`` -1 or -2 the one-dimensional
        mask (..., ky) or (..., kx) of the lines along that axis.
    Raises: ValueError for another shape or axis, and for lines of which a part is sampled.
    """
    mask: NDArray[np.bool_] = (coil_axis("sampling_mask", kspace) != 0).any(axis=-3)
    if readout_axis is None:
        return mask
    if readout_axis not in PLANE:
        raise ValueError(f"sampling_mask: readout_axis is {readout_axis}, expected -1, -2 or None")
    lines = np.asarray(mask.any(axis=readout_axis))
    partial = int((lines & ~mask.all(axis=readout_axis)).sum())
    if partial:
        raise ValueError(
            f"sampling_mask: {partial} of {int(lines.sum())} lines along axis {readout_axis} are sampled in part, "
            f"expected whole lines"
        )
    return lines


def scale_kspace(kspace: NDArray[Any], percentile: float = 99.0) -> tuple[NDArray[Any], float]:
    """Divide k-space by a percentile of its root-sum-of-squares image: the k-space, and the factor divided by.

    The image is that of the unitary inverse transform with zeros where nothing was sampled, so that the factor is
    somewhat low for undersampled scans. Noise and its standard deviation are to be divided by the same factor.

    Shapes: kspace (..., coils, ky, kx); returns the same.
    Raises: ValueError for another shape, a percentile outside (0, 100], or one at which the image is zero.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"scale_kspace: percentile is {percentile}, expected a number in (0, 100]")
    image = np.sqrt((np.abs(centred_ifft(coil_axis("scale_kspace", kspace))) ** 2).sum(axis=-3))
    factor = float(np.percentile(image, percentile))
    if not 0 < factor < math.inf:
        raise ValueError(f"scale_kspace: the {percentile:g}th percentile of the image is {factor:g}, expected above 0")
    return kspace / np.asarray(factor, dtype=np.real(kspace).dtype), factor
