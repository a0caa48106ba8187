"""Power spectra of stationary images: estimated, smoothed, resampled to other sizes.

A spectrum holds the variance of each coefficient of the unitary FFT. It samples the process's spectral density, so that
its entries do not grow with the size of the image, and its average over frequencies is the variance of a pixel.
"""

import torch
from torch import Tensor

from potentia._tensor import squared_magnitude

TINY = 1e-300


def radius(height: int, width: int) -> Tensor:
    """Frequency of each FFT coefficient in cycles per pixel, shape (H, W), float64."""
    fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return torch.hypot(fy[:, None], fx[None, :])


def periodogram(images: Tensor, mean: Tensor) -> Tensor:
    """Average squared magnitude of the unitary FFT of ``images - mean``, half of it for complex images.

    Taking the mean from the same images costs the zero frequency the share 1/N, which is given back; from a single
    image nothing is left there, and the average of its four neighbours stands in.

    Shapes: images (N, C, H, W), mean (C, 1, 1) -> (C, H, W).
    """
    coefficients = torch.fft.fft2(images - mean, norm="ortho")
    power = squared_magnitude(coefficients).mean(0)
    n = images.shape[0]
    if n > 1:
        power[:, 0, 0] *= n / (n - 1)
    else:
        near = [power[:, 1 % power.shape[1], 0], power[:, -1, 0], power[:, 0, 1 % power.shape[2]], power[:, 0, -1]]
        power[:, 0, 0] = torch.stack(near).mean(0)
    return power / 2 if images.is_complex() else power


def smoothed(spectrum: Tensor, width: float) -> Tensor:
    """Smooth what a spectrum has beside its radial average by a periodic Gaussian of std ``width``, in bins.

    Dividing by the radial average first keeps the steep rise towards zero frequency from leaking outwards; averages of
    powers, not of their logarithms, keep the estimate unbiased where the spectrum is its radial average.

    Shapes: (C, H, W) -> (C, H, W).
    """
    if width == 0:
        return spectrum
    profile = _radial_average(spectrum).clamp(min=TINY)
    height, breadth = spectrum.shape[-2:]
    ky, kx = (_wrapped_gaussian(n, width) for n in (height, breadth))
    kernel = torch.fft.fft2(ky[:, None] * kx[None, :])
    ratio: Tensor = torch.fft.ifft2(torch.fft.fft2(spectrum / profile) * kernel).real
    return profile * ratio.clamp(min=0)


def _wrapped_gaussian(n: int, width: float) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)
    weights = torch.exp(-0.5 * (torch.minimum(k, n - k) / width) ** 2)
    return weights / weights.sum()


def _radial_average(spectrum: Tensor) -> Tensor:
    """Averages over rings one bin of the shorter side wide, shape (C, H, W)."""
    height, width = spectrum.shape[-2:]
    ring = (radius(height, width) * min(height, width)).round().long().flatten()
    counts = torch.bincount(ring)
    sums = torch.zeros(spectrum.shape[0], len(counts), dtype=torch.float64).index_add_(1, ring, spectrum.flatten(1))
    return (sums / counts.clamp(min=1))[:, ring].reshape(spectrum.shape)


def resized(spectrum: Tensor, height: int, width: int) -> Tensor:
    """Resample a spectrum to the frequencies of another image size; the variance of a pixel stays as it is.

    Smaller: the expected periodogram of a crop, which is what a crop's own estimate converges to. Larger: log-linear
    interpolation between the frequencies at hand.

    Shapes: (C, h, w) -> (C, height, width).
    """
    out = spectrum
    for dim, n in ((-2, height), (-1, width)):
        out = _cropped(out, n, dim) if n <= out.shape[dim] else _interpolated(out, n, dim)
    return out


def _cropped(spectrum: Tensor, n: int, dim: int) -> Tensor:
    full = spectrum.shape[dim]
    covariance: Tensor = torch.fft.ifft(spectrum.movedim(dim, -1))
    lag = torch.arange(n)
    share = lag.to(torch.float64) / n
    folded = (1 - share) * covariance[..., lag] + share * covariance[..., (lag - n) % full]
    cropped: Tensor = torch.fft.fft(folded).real.clamp(min=0)
    return cropped.movedim(-1, dim)


def _interpolated(spectrum: Tensor, n: int, dim: int) -> Tensor:
    logs = spectrum.clamp(min=TINY).log().movedim(dim, -1)
    full = logs.shape[-1]
    position: Tensor = torch.fft.fftfreq(n, dtype=torch.float64) * full
    below = position.floor()
    share = position - below
    index = below.long() % full
    finer = ((1 - share) * logs[..., index] + share * logs[..., (index + 1) % full]).exp().movedim(-1, dim)
    keep = spectrum.mean((-2, -1), keepdim=True) / finer.mean((-2, -1), keepdim=True).clamp(min=TINY)
    return finer * keep
