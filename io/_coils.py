"""Receive coils: mixing and compressing them, and their sensitivities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._kspace import centre_crop, coil_axis, sampling_mask


def mix_coils(matrix: NDArray[Any], array: NDArray[Any], axis: int = -3) -> NDArray[Any]:
    """Take linear combinations of coils: of k-space, coil maps (axis -3) or noise samples (axis 0).

    Shapes: matrix (new, coils); array (..., coils, ...) with the coils along axis; returns (..., new, ...).
    Raises: ValueError if the matrix has another number of coils.
    """
    moved = np.moveaxis(array, axis, 0)
    if matrix.ndim != 2 or matrix.shape[1] != moved.shape[0]:
        raise ValueError(f"mix_coils: matrix has shape {matrix.shape}, expected (new, {moved.shape[0]})")
    mixed = np.tensordot(matrix, moved, axes=1).astype(np.result_type(array.dtype, np.complex64), copy=False)
    return np.ascontiguousarray(np.moveaxis(mixed, 0, axis))


def compress_coils(
    kspace: NDArray[Any], *, num_coils: int | None = None, energy: float | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Replace the coils by fewer virtual ones: the first left singular vectors of the coils' samples.

    Give either the number of virtual coils, or the share of the energy to keep, in (0, 1]. The rows of the matrix are
    orthonormal: white noise stays white (pre-whiten first). Each row's phase is such that its largest entry is
    positive. Take noise and coil maps along with ``mix_coils(matrix, ...)``.

    Shapes: kspace (..., coils, ky, kx); returns (..., virtual, ky, kx) and the matrix (virtual, coils).
    Raises: ValueError for another shape, k-space that is zero, none or both of the options, or one out of range.
    Source: Buehrer et al. 2007, Array compression for MRI with large coil arrays.
    """
    array = coil_axis("compress_coils", kspace)
    coils = array.shape[-3]
    samples = np.moveaxis(array, -3, 0).reshape(coils, -1).astype(np.complex128)
    powers, vectors = np.linalg.eigh(samples @ samples.conj().T)  # the squared singular values, in rising order
    powers, vectors = np.maximum(powers[::-1], 0), vectors[:, ::-1]
    if powers[0] == 0:
        raise ValueError(f"compress_coils: kspace of shape {array.shape} is zero everywhere")
    if (num_coils is None) == (energy is None):
        raise ValueError(f"compress_coils: got num_coils {num_coils} and energy {energy}, expected one of them")
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"compress_coils: energy is {energy}, expected a share in (0, 1]")
        share = np.cumsum(powers) / powers.sum()
        num_coils = min(int((share < energy - 1e-12).sum()) + 1, coils)
    if num_coils is None or not 1 <= num_coils <= coils:
        raise ValueError(f"compress_coils: num_coils is {num_coils}, expected 1 to {coils}")
    rows = vectors[:, :num_coils].conj().T
    largest = rows[np.arange(num_coils), np.abs(rows).argmax(axis=1)]
    matrix = (rows * (np.abs(largest) / largest)[:, None]).astype(np.complex64)
    return mix_coils(matrix, array), matrix


def espirit_maps(
    kspace: NDArray[Any],
    *,
    calib_width: int | None = None,
    kernel_width: int = 6,
    threshold: float = 0.005,
    crop: float = 0.8,
    num_iter: int = 100,
) -> NDArray[np.complex64]:
    """Estimate the coils' sensitivities from the fully sampled middle of k-space.

    At each pixel the maps are the leading eigenvector of ESPIRiT's operator: their root sum of squares is 1, their
    phase relative to the first virtual coil of ``compress_coils`` (a coil of its own may vanish within the object).
    Where the eigenvalue, 1 in the object and less outside, is not above ``crop`` they are zero; ``crop`` 0 keeps all.
    ``calib_width`` is the side of the calibration square, by default the largest up to 24 that is sampled; singular
    values below ``threshold`` times the largest are noise. The computation is sigpy's, on the CPU, without randomness;
    with its own threshold, 0.02, maps missed the middle of a measured brain's k-space by twice the noise.

    Shapes: kspace (coils, ky, kx), with zeros where nothing was sampled; returns (coils, y, x).
    Raises: ValueError for another shape, a coil without signal, a calibration region that is not sampled or too small
        for the kernel, or an option out of range. ImportError without sigpy.
    Source: Uecker et al. 2014, ESPIRiT; the virtual coil as reference of the phase: its section on implementation.
    """
    array = coil_axis("espirit_maps", kspace)
    if array.ndim != 3:
        raise ValueError(f"espirit_maps: kspace has shape {array.shape}, expected (coils, ky, kx) of one slice")
    silent = [str(coil) for coil in range(len(array)) if not array[coil].any()]
    if silent:
        raise ValueError(f"espirit_maps: coil {', '.join(silent)} has no signal, expected every coil to have some")
    if not 0 <= crop < 1 or not 0 < threshold < 1 or num_iter < 1 or kernel_width < 1:
        raise ValueError(
            f"espirit_maps: got crop {crop}, threshold {threshold}, num_iter {num_iter}, kernel_width {kernel_width}, "
            f"expected a crop in [0, 1), a threshold in (0, 1), and counts of one or more"
        )
    width = _calibration_width(array, calib_width, kernel_width)
    virtual, matrix = compress_coils(array, num_coils=len(array))
    maps = _espirit(virtual.astype(np.complex64), width, kernel_width, threshold, crop, num_iter)
    return mix_coils(matrix.conj().T, maps).astype(np.complex64)


def _calibration_width(kspace: NDArray[Any], width: int | None, kernel: int) -> int:
    mask = sampling_mask(kspace)
    largest = min(mask.shape)
    while largest and not centre_crop(mask, (largest, largest)).all():
        largest -= 1
    if largest <= kernel:
        raise ValueError(
            f"espirit_maps: the largest square in the middle of k-space that is sampled in full has side {largest}, "
            f"expected above the kernel's width, {kernel}: give calibration lines, or coil maps found elsewhere"
        )
    chosen = min(largest, 24) if width is None else width
    if not kernel < chosen <= largest:
        raise ValueError(
            f"espirit_maps: calib_width is {chosen}, expected above the kernel's width, {kernel}, and at most "
            f"{largest}, the side of the largest square in the middle of k-space that is sampled in full"
        )
    return chosen


def _espirit(
    kspace: NDArray[Any], width: int, kernel: int, threshold: float, crop: float, num_iter: int
) -> NDArray[Any]:
    try:
        from sigpy.mri.app import EspiritCalib
    except ImportError as err:
        raise ImportError(
            f"espirit_maps: sigpy cannot be imported ({err}), expected it for calibration: pip install 'potentia[mri]'"
        ) from err
    app = EspiritCalib(
        kspace, calib_width=width, thresh=threshold, kernel_width=kernel, crop=crop, max_iter=num_iter, show_pbar=False
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a phase relative to an exact zero, which is cut out below
        maps = np.asarray(app.run())
    if not np.isfinite(maps).all(axis=0).any():
        raise ValueError(f"espirit_maps: no pixel has finite maps, calibrated on {width} x {width} samples")
    return np.where(np.isfinite(maps).all(axis=0), maps, 0)
