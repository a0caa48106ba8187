"""Noise of the receive coils: its covariance, making it white, and its level where there is no noise scan."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potentia.io._coils import mix_coils
from potentia.io._kspace import centred_ifft, coil_axis, sampling_mask

SOURCES = ("border", "background")
MIDDLE = 0.5  # of the way from the middle of k-space to its edge: what lies within is signal
LEAST = 10  # samples a coil that a covariance is estimated from


def noise_covariance(noise: NDArray[Any]) -> NDArray[np.complex128]:
    """Covariance of the coils' noise, per part: sum of n n^H / (2 samples).

    Its diagonal holds each coil's variance of the real part, which is that of the imaginary part, as in
    ``likelihoods.Gaussian``; the mean of the noise is taken to be zero.

    Shapes: noise (coils, samples), complex; returns (coils, coils), Hermitian.
    Raises: ValueError for another shape, entries that are not finite, or fewer samples than coils.
    """
    samples = np.asarray(noise)
    if samples.ndim != 2 or samples.shape[1] < samples.shape[0] or samples.dtype.kind != "c":
        raise ValueError(
            f"noise_covariance: noise has shape {samples.shape} and dtype {samples.dtype}, expected complex "
            f"(coils, samples) with no fewer samples than coils"
        )
    bad = int((~np.isfinite(samples)).sum())
    if bad:
        raise ValueError(f"noise_covariance: noise has {bad} NaN or infinite of {samples.size} entries")
    exact = samples.astype(np.complex128)
    return np.asarray(exact @ exact.conj().T / (2 * samples.shape[1]))


def whitening_matrix(covariance: NDArray[Any]) -> NDArray[np.complex64]:
    """Inverse of the Cholesky factor of ``noise_covariance``: mixed by it, each coil's noise has std 1 per part.

    Shapes: covariance (coils, coils); returns the same, lower triangular.
    Raises: ValueError for a matrix that is not square, not Hermitian or not positive definite.
    Source: Pruessmann et al. 2001, Advances in sensitivity encoding with arbitrary k-space trajectories, appendix.
    """
    psi = np.asarray(covariance, dtype=np.complex128)
    if psi.ndim != 2 or psi.shape[0] != psi.shape[1] or psi.size == 0:
        raise ValueError(f"whitening_matrix: covariance has shape {psi.shape}, expected (coils, coils)")
    if not np.isfinite(psi).all() or not np.allclose(psi, psi.conj().T, rtol=0, atol=1e-5 * np.abs(psi).max()):
        raise ValueError("whitening_matrix: covariance is not Hermitian, expected that of noise_covariance")
    scale = np.sqrt(np.maximum(psi.diagonal().real, np.finfo(np.float64).tiny))
    try:
        factor = np.linalg.cholesky(psi / np.outer(scale, scale))
    except np.linalg.LinAlgError as err:
        raise ValueError(
            "whitening_matrix: covariance is not positive definite, expected noise in every coil, and none that is a "
            "combination of others"
        ) from err
    return np.tril(np.linalg.inv(factor) / scale).astype(np.complex64)


def prewhiten(kspace: NDArray[Any], covariance: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.complex64]]:
    """Make the coils' noise white: afterwards real and imaginary parts have std 1 each in every coil, uncorrelated.

    Coil maps are to be mixed by the same matrix, ``mix_coils(matrix, coil_maps)``, or estimated afterwards.

    Shapes: kspace (..., coils, ky, kx), covariance (coils, coils); returns the same and the matrix (coils, coils).
    Raises: ValueError as ``whitening_matrix`` and ``mix_coils``.
    """
    matrix = whitening_matrix(covariance)
    return mix_coils(matrix, coil_axis("prewhiten", kspace)), matrix


def noise_samples(kspace: NDArray[Any], *, source: str = "border", fraction: float = 0.1) -> NDArray[Any]:
    """Those samples of a scan that are noise for the most part, in units of k-space.

    ``"border"``: the given fraction of the sampled positions, those farthest from the middle of k-space.
    ``"background"``: the four corners of the image, which together are the given fraction of it; under the unitary
    transform its noise is that of k-space. It asks for full sampling, since else the object is aliased into them.

    Shapes: kspace (coils, ky, kx); returns (coils, samples).
    Raises: ValueError for another shape, source or fraction, or a background without full sampling.
    """
    array = coil_axis("noise_samples", kspace)
    if array.ndim != 3:
        raise ValueError(f"noise_samples: kspace has shape {array.shape}, expected (coils, ky, kx)")
    if source not in SOURCES or not 0 < fraction <= 1:
        raise ValueError(
            f"noise_samples: got source {source!r} and fraction {fraction}, expected one of {', '.join(SOURCES)} and a "
            f"number in (0, 1]"
        )
    mask = sampling_mask(array)
    if source == "background":
        if not mask.all():
            raise ValueError(f"noise_samples: {mask.mean():.1%} of k-space is sampled, the background asks for all")
        image = centred_ifft(array)
        tall, wide = (max(1, math.ceil(n * math.sqrt(fraction) / 2)) for n in mask.shape)
        image = np.concatenate([image[:, :tall], image[:, -tall:]], axis=1)
        return np.concatenate([image[..., :wide], image[..., -wide:]], axis=2).reshape(len(array), -1)
    radius = _from_middle(mask.shape)[mask]
    count = math.ceil(fraction * radius.size)
    return array[:, mask][:, np.argsort(-radius, kind="stable")[:count]]


def _from_middle(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance from the middle of k-space, 1 at the middle of an edge: (ky, kx)."""
    height, width = (np.abs(np.arange(n) - n // 2) / (n / 2) for n in shape)
    distance: NDArray[np.float64] = np.hypot(height[:, None], width)
    return distance


def border_samples(
    where: str, kspace: NDArray[Any], counts: NDArray[Any], *, fraction: float = 0.05
) -> NDArray[np.complex64]:
    """Of several slices the outermost samples, at the level of a sample measured once, to stand in for a noise scan.

    The given fraction of the measured positions, at least ten a coil, those farthest from the middle of k-space, times
    the root of how often they were measured. Positions at which every coil is zero are padding and left out, as is
    what lies less than half of the way from the middle to the edge: that is signal.

    Shapes: kspace (slices, coils, ky, kx), counts (slices, ky, kx); returns (coils, samples).
    Raises: ValueError for a fraction outside (0, 1], a coil that is zero everywhere, or where there are not ten samples
        a coil outside the middle.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"{where}: border is {fraction}, expected a share of the samples in (0, 1]")
    coils = kspace.shape[1]
    silent = [str(coil) for coil in range(coils) if not kspace[:, coil].any()]
    if silent:
        raise ValueError(f"{where}: coil {', '.join(silent)} is zero everywhere, expected every coil to have measured")
    measured = (counts > 0) & (kspace != 0).any(axis=1)
    radius = np.broadcast_to(_from_middle(measured.shape[1:]), measured.shape)[measured]
    wanted = max(math.ceil(fraction * radius.size), LEAST * coils)
    outermost = np.argsort(-radius, kind="stable")[:wanted]
    outermost = outermost[radius[outermost] >= MIDDLE]
    if len(outermost) < LEAST * coils:
        raise ValueError(
            f"{where}: has no noise scan, and {len(outermost)} samples outside the middle half of k-space that could "
            f"stand in for one, expected {LEAST} for each of {coils} coils: give the std of the noise"
        )
    often = np.sqrt(counts[measured][outermost], dtype=np.float32)
    return np.asarray(np.moveaxis(kspace, 1, 0)[:, measured][:, outermost] * often)


def estimate_noise_std(kspace: NDArray[Any], *, source: str = "border", fraction: float = 0.1) -> NDArray[np.float64]:
    """Estimate each coil's noise level where there is no noise scan: the std of the real, and of the imaginary, part.

    The median magnitude of ``noise_samples`` divided by sqrt(2 ln 2), as of Rayleigh's law, which outliers hardly
    move. Whatever signal the samples hold makes the estimate too high: the border is good where the resolution
    exceeds the object's detail, the corners of the image where the field of view exceeds the object; of several
    estimates the lowest is the best. Simulated on a brain at 1 mm in eight coils, the border gives 1.05, 1.2 and 1.7
    times the truth for noise of 2, 1 and 0.5 % of the brightest pixel, the corners 1.0 throughout. The sampling error
    is 0.7 / sqrt(samples) of the std.

    Shapes: kspace (coils, ky, kx); returns (coils,), in units of k-space.
    Raises: ValueError as ``noise_samples``.
    """
    magnitudes = np.abs(noise_samples(kspace, source=source, fraction=fraction)).astype(np.float64)
    return np.asarray(np.median(magnitudes, axis=1) / math.sqrt(2 * math.log(2)))
