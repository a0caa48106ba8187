"""The stationary Gaussian field."""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from potentia._potential import Energy, Scales, Sigma
from potentia._quadratic import Fourier, Quadratic
from potentia._random import Generators
from potentia._tensor import inner, mirrored, sum_event
from potentia._validate import count, positive, real_number, shape_text, tensor
from potentia.energies import _spectrum as spectra
from potentia.energies._shared import (
    Event,
    broadcasts,
    event_or_none,
    number_or_tensor,
    positive_entries,
    refuse_singular,
    single_sigma,
    wide,
)


class GaussianField(Energy):
    """Stationary Gaussian images on a torus, exact and normalised at every scale.

    The covariance is F^H diag(spectrum) F, F the unitary FFT over the last two dimensions; at scale s its eigenvalues
    are spectrum + s^2. The real and imaginary parts of complex images each have that covariance, independently: their
    Fourier coefficients have E|z_k|^2 = 2 spectrum_k.

    Shapes: spectrum (C, H, W), zero frequency first, even (spectrum(k) = spectrum(-k)) for real images; mean a number,
        (C, 1, 1) or (C, H, W). A complex mean, ``0j`` included, makes a prior of complex images.
    Units: spectrum in the image's unit squared; U is in nats.
    Raises: ValueError if the spectrum is negative, not finite or, for real images, not even. Zeros are taken, but then
        scale zero, where there is no density, is refused whenever it is asked for.
    """

    default_name: ClassVar[str] = "field"
    spectrum: Tensor
    mean: Tensor

    def __init__(self, spectrum: Tensor, mean: Tensor | complex = 0.0) -> None:
        super().__init__()
        s, m = tensor(self.name, "spectrum", spectrum), number_or_tensor(self.name, "mean", mean)
        if s.dim() != 3:
            raise ValueError(f"{self.name}: spectrum has shape {shape_text(tuple(s.shape))}, expected (C, H, W)")
        positive_entries(self.name, "spectrum", s, zero=True)
        broadcasts(self.name, "mean", m, tuple(s.shape))
        if not m.is_complex():
            s = _even(self.name, s)
        self._singular = bool((s == 0).any())
        self.register_buffer("spectrum", s)
        self.register_buffer("mean", m)

    @property
    def event_shape(self) -> Event:
        return tuple(self.spectrum.shape)

    @property
    def is_complex(self) -> bool:
        return self.mean.is_complex()

    @property
    def scales(self) -> Scales:
        """All of them: from 0 to infinity."""
        return 0.0, math.inf

    def extra_repr(self) -> str:
        return f"std={float(self.spectrum.mean().sqrt()):.3g}"

    def forward(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        self.check(x)
        v = self._eigenvalues(x, sigma)
        r = x - self.mean
        return 0.5 * inner(r, Fourier(1.0 / v).apply(r)) + self._log_normaliser(v)

    @torch.no_grad()
    def grad(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """F^H (spectrum + s^2)^-1 F (x - mean)."""
        self.check(x)
        return Fourier(1.0 / self._eigenvalues(x, sigma)).apply(x - self.mean).to(x.dtype)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor, sigma: Sigma = None) -> tuple[Tensor, Tensor]:
        self.check(x)
        v = self._eigenvalues(x, sigma)
        r = x - self.mean
        grad = Fourier(1.0 / v).apply(r)
        return 0.5 * inner(r, grad) + self._log_normaliser(v), grad.to(x.dtype)

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Sigma = None) -> Tensor:
        """Posterior mean, the Wiener filter: mean + F^H spectrum / (spectrum + s^2) F (x - mean)."""
        self.check(x)
        s = self.sigma_of(x, sigma)
        # Unlike the gradient, this needs no density: without noise the image is known.
        v = self.spectrum + s**2
        gain = torch.where(v > 0, self.spectrum / v, 1.0)
        return (self.mean + Fourier(gain).apply(x - self.mean)).to(x.dtype)

    def quadratic(self, sigma: Sigma = None) -> Quadratic | None:
        """Fourier precision 1 / (spectrum + s^2); None for one scale per batch entry."""
        s = single_sigma(self, sigma)
        if s is None:
            return None
        mean = self.mean.expand(self.event_shape)
        v = self._eigenvalues(mean, s)
        structure = Fourier(1.0 / v)
        linear = structure.apply(mean)
        return Quadratic(structure, linear, 0.5 * inner(mean, linear) + self._log_normaliser(v))

    def sample(self, generator: Generators, num: int, sigma: float = 0.0) -> Tensor:
        """Draw ``num`` images, smoothed by N(0, sigma^2 I).

        Shapes: returns (num, C, H, W).
        """
        s = 0.0 if sigma == 0 else positive(self.name, "sigma", sigma)
        real = self.spectrum.dtype
        dtype = real.to_complex() if self.mean.is_complex() else real
        return self.mean.to(dtype) + Fourier(self.spectrum + s**2).noise(
            generator, (num, *self.event_shape), dtype=dtype
        )

    def resized(self, height: int, width: int) -> Self:
        """Give the field for images of another size with the same pixel variance and, near enough, correlations.

        To fewer pixels the spectrum becomes the expected periodogram of a crop; to more it is interpolated.

        Raises: ValueError for a mean that varies over space, which has no other size.
        """
        count(self.name, "height", height)
        count(self.name, "width", width)
        if any(n != 1 for n in self.mean.shape[-2:]):
            raise ValueError(f"{self.name}: a mean of shape {shape_text(tuple(self.mean.shape))} cannot be resized")
        spectrum = spectra.resized(wide(self.spectrum).cpu(), height, width)
        return type(self)(spectrum.to(self.spectrum), self.mean)

    @classmethod
    def fit(
        cls, images: Tensor, *, size: Sequence[int] | None = None, smooth: float = 1.0, floor: float = 1e-6
    ) -> Self:
        """Estimate mean and spectrum from images: the average periodogram, smoothed.

        ``smooth`` is the std, in frequency bins, of the Gaussian that smooths the ratio of the periodogram to its
        radial average (0: none). ``size`` (H, W) asks for a field of another size than the images'. Spectra are kept
        above ``floor`` times their average. Real images give a real field with an even spectrum, complex ones a
        complex field.

        Shapes: images (N, C, H, W).
        Raises: ValueError if images have another shape or are not finite.
        Source: Bartlett 1950 (averaged periodograms); the smoothing of ratios is ours.
        """
        where = f"{cls.default_name}: fit"
        data = tensor(where, "images", images)
        if data.dim() != 4:
            raise ValueError(f"{where}: images have shape {shape_text(tuple(data.shape))}, expected (N, C, H, W)")
        width, least = real_number(where, "smooth", smooth), positive(where, "floor", floor)
        if width < 0:
            raise ValueError(f"{where}: smooth must be zero or more, got {width:g}")
        doubles = wide(data).cpu()
        mean = doubles.mean((0, 2, 3)).reshape(-1, 1, 1)
        spectrum = spectra.smoothed(spectra.periodogram(doubles, mean), width)
        if not data.is_complex():
            spectrum = 0.5 * (spectrum + mirrored(spectrum))
        if size is not None:
            spectrum = spectra.resized(spectrum, *size)
        lowest = (least * spectrum.mean((-2, -1), keepdim=True)).clamp(min=torch.finfo(torch.float32).tiny)
        return cls(torch.maximum(spectrum, lowest).to(data.device, data.real.dtype), mean.to(data))

    @classmethod
    def power_law(
        cls,
        shape: Sequence[int],
        exponent: float = 2.0,
        *,
        std: float = 1.0,
        corner: float | None = None,
        mean: complex | Tensor = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Natural-image statistics: spectrum proportional to (f^2 + corner^2)^(-exponent / 2), f in cycles per pixel.

        ``std`` is that of a pixel; ``corner``, below which the spectrum is flat, is 1 / max(H, W) by default.

        Shapes: shape (C, H, W).
        Source: Field 1987.
        """
        where = f"{cls.default_name}: power_law"
        event = event_or_none(where, shape)
        if event is None:
            raise ValueError(f"{where}: shape is None, expected (C, H, W)")
        bend = positive(where, "corner", 1 / max(event[1:]) if corner is None else corner)
        f = spectra.radius(*event[1:])
        density = (f.square() + bend**2) ** (-0.5 * real_number(where, "exponent", exponent))
        spectrum = positive(where, "std", std) ** 2 * density / density.mean()
        return cls(spectrum.expand(event).to(dtype).contiguous(), mean)

    def _eigenvalues(self, x: Tensor, sigma: Sigma) -> Tensor:
        s = self.sigma_of(x, sigma)
        if self._singular:
            refuse_singular(self.name, "the spectrum", s)
        return self.spectrum + s**2

    def _log_normaliser(self, eigenvalues: Tensor) -> Tensor:
        """Half the log determinant of 2 pi times the covariance; all of it for complex images, which have it twice."""
        return (1.0 if self.is_complex else 0.5) * sum_event((2 * math.pi * wide(eigenvalues)).log())


def _even(where: str, spectrum: Tensor) -> Tensor:
    """Make a spectrum even to the last bit.

    Raises: ValueError if it is not even up to rounding.
    """
    mirror = mirrored(spectrum)
    off = float(((spectrum - mirror).abs() / (spectrum + mirror).clamp(min=torch.finfo(spectrum.dtype).tiny)).max())
    if off > 1e-3:
        raise ValueError(
            f"{where}: the spectrum of real images must be even, spectrum(k) = spectrum(-k), got {200 * off:.3g} % "
            "between the two; for complex images pass a complex mean, such as 0j"
        )
    return 0.5 * (spectrum + mirror)
