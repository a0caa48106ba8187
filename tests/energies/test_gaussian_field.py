"""The stationary field, against the dense Gaussian that it is."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from potentia import energies as en
from potentia._quadratic import Fourier

SIZES = [(1, 6, 5), (2, 5, 5), (2, 4, 6), (1, 1, 7)]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


def mirror(s: Tensor) -> Tensor:
    return s.flip((-2, -1)).roll((1, 1), (-2, -1))


def even_spectrum(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    s = 0.05 + randn(*shape, seed=seed).square()
    return 0.5 * (s + mirror(s))


def dense_covariance(spectrum: Tensor) -> Tensor:
    """E[z z^H] / 2 of the complex field, E[x x^T] of the real one, built without an FFT."""
    c, h, w = spectrum.shape
    blocks = []
    for channel in spectrum:
        dft = [
            torch.exp(-2j * math.pi * torch.outer(k, k) / n) / n**0.5
            for n in (h, w)
            for k in [torch.arange(n).double()]
        ]
        f = torch.kron(dft[0], dft[1])
        blocks.append(f.conj().T @ torch.diag(channel.flatten().to(f.dtype)) @ f)
    assert len(blocks) == c
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_real_field_is_its_dense_gaussian(shape: tuple[int, ...], sigma: float) -> None:
    s, mean, x = even_spectrum(shape), randn(*shape, seed=1), randn(4, *shape, seed=2)
    covariance = dense_covariance(s)
    assert float(covariance.imag.abs().max()) < 1e-12
    d = math.prod(shape)
    dense = MultivariateNormal(mean.flatten(), covariance.real + sigma**2 * torch.eye(d, dtype=torch.float64))
    u = en.GaussianField(s, mean)
    torch.testing.assert_close(u(x, sigma), -dense.log_prob(x.flatten(1)), rtol=1e-10, atol=1e-10)
    gain = covariance.real @ torch.linalg.inv(covariance.real + sigma**2 * torch.eye(d, dtype=torch.float64))
    want = mean.flatten() + (x - mean).flatten(1) @ gain.T
    torch.testing.assert_close(u.denoise(x, sigma).flatten(1), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("sigma", [0.0, 0.6])
def test_complex_field_is_its_dense_gaussian(shape: tuple[int, ...], sigma: float) -> None:
    """An uneven spectrum: real and imaginary parts as one real vector of twice the length."""
    s, mean = 0.05 + randn(*shape).square(), randn(*shape, seed=1, dtype=torch.complex128)
    x = randn(4, *shape, seed=2, dtype=torch.complex128)
    g = dense_covariance(s) + sigma**2 * torch.eye(math.prod(shape), dtype=torch.float64)
    # Circular z with E[z z^H] = 2 g: cov(Re, Re) = cov(Im, Im) = Re g, cov(Re, Im) = -Im g.
    joint = torch.cat([torch.cat([g.real, -g.imag], 1), torch.cat([g.imag, g.real], 1)], 0)
    off = (x - mean).flatten(1)
    dense = MultivariateNormal(torch.zeros(len(joint)).double(), 0.5 * (joint + joint.T))
    want = -dense.log_prob(torch.cat([off.real, off.imag], 1))
    torch.testing.assert_close(en.GaussianField(s, mean)(x, sigma), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_samples_have_the_spectrum(is_complex: bool, sigma: float) -> None:
    shape, n = (2, 5, 6), 4000
    s = 0.05 + randn(*shape).square() if is_complex else even_spectrum(shape)
    u = en.GaussianField(s, 0.4 + 0.2j if is_complex else 0.4)
    x = u.sample(gen(5), n, sigma)
    assert x.shape == (n, *shape)
    assert x.is_complex() == is_complex
    power = torch.fft.fft2(x - u.mean, norm="ortho").abs().square() / (2 if is_complex else 1)
    ratio = power.mean(0) / (s + sigma**2)
    # |z_k|^2 has relative variance 1 (complex coefficients) to 2 (real ones): five standard deviations of the greater.
    assert float((ratio - 1).abs().max()) < 5 * (2 / n) ** 0.5
    z = (x.mean(0) - u.mean).abs() / ((s + sigma**2).mean((-2, -1), keepdim=True) * (2 if is_complex else 1) / n).sqrt()
    assert float(z.max()) < 5


def test_quadratic_keeps_its_structure() -> None:
    s = even_spectrum((1, 6, 5))
    form = en.GaussianField(s, 0.3).quadratic(0.5)
    assert form is not None
    assert isinstance(form.structure, Fourier)
    torch.testing.assert_close(form.structure.spectrum, 1 / (s + 0.25))


def test_an_uneven_spectrum_is_refused_for_real_images() -> None:
    s = 0.05 + randn(1, 6, 5).square()
    with pytest.raises(ValueError, match="must be even"):
        en.GaussianField(s, 0.0)
    en.GaussianField(s, 0j)


def test_zeros_in_the_spectrum_need_noise() -> None:
    s = even_spectrum((1, 6, 5))
    s[:, 0, 0] = 0
    u, x = en.GaussianField(s, 0.0), randn(3, 1, 6, 5)
    for call in (u.forward, u.grad, u.value_and_grad):
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            call(x)
        with pytest.raises(ValueError, match="no density at sigma = 0"):
            call(x, torch.tensor([0.1, 0.0, 0.2]))
        call(x, 0.1)
    assert torch.isfinite(u.denoise(x, 0.0)).all()
    assert float(u.sample(gen(), 10).mean((-2, -1)).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("spectrum", "mean", "message"),
    [
        (torch.full((1, 4, 4), math.nan), 0.0, "spectrum has 16 NaN"),
        (-torch.ones(1, 4, 4), 0.0, r"spectrum must be zero or more, got -1"),
        (torch.ones(4, 4), 0.0, r"spectrum has shape \(4, 4\), expected \(C, H, W\)"),
        (torch.ones(1, 4, 4), torch.ones(2, 1, 1), r"mean has shape \(2, 1, 1\), expected to broadcast"),
        (torch.ones(1, 4, 4), math.nan, "mean has 1 NaN"),
        (torch.ones(1, 4, 4) + 0j, 0.0, "spectrum has dtype torch.complex64"),
    ],
)
def test_bad_parameters_are_refused(spectrum: Tensor, mean: float | Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        en.GaussianField(spectrum, mean)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("size", [(8, 7), (6, 6)])
def test_fit_recovers_the_spectrum(is_complex: bool, size: tuple[int, int]) -> None:
    n, shape = 500, (2, *size)
    s = 0.1 + randn(*shape).square()
    s = s if is_complex else 0.5 * (s + mirror(s))
    truth = en.GaussianField(s, torch.tensor([0.3, -2.0]).reshape(2, 1, 1) * (1 + 0.5j if is_complex else 1))
    got = en.GaussianField.fit(truth.sample(gen(6), n), smooth=0.0)
    assert got.is_complex == is_complex
    z = got.spectrum / s - 1
    # Relative variance of an average over n images: 1/n; 2/n for the real coefficients of real images.
    own = torch.tensor([[k == (-k % size[0]) and j == (-j % size[1]) for j in range(size[1])] for k in range(size[0])])
    variance = torch.where(own & torch.tensor(not is_complex), 2 / n, 1 / n)
    assert float((z / variance.sqrt()).abs().max()) < 5
    # Independent entries: half of them for real images. The mean of their squares is chi-squared over its number.
    independent = z.numel() / (1 if is_complex else 2)
    assert abs(float((z.square() / variance).mean()) - 1) < 5 * (2 / independent) ** 0.5
    error = (got.mean - truth.mean).abs().squeeze() / (
        s[:, 0, 0] * (2 if is_complex else 1) / (n * math.prod(size))
    ).sqrt()
    assert float(error.max()) < 5


def test_smoothing_brings_few_images_nearer_to_a_steep_spectrum() -> None:
    truth = en.GaussianField.power_law((1, 32, 32), exponent=3.0, dtype=torch.float64)
    x = truth.sample(gen(7), 4)
    errors = {}
    for smooth in (0.0, 1.0):
        got = en.GaussianField.fit(x, smooth=smooth)
        errors[smooth] = float((got.spectrum / truth.spectrum).log().square().mean().sqrt())
        # 4 images at 1024 frequencies, dominated by a few: the total power is only known to some 25 %.
        assert abs(float(got.spectrum.sum() / truth.spectrum.sum()) - 1) < 1
    # A Gaussian of std one bin averages 4 pi = 12.6 bins; radial averages add to that.
    assert errors[1.0] < 0.5 * errors[0.0]


def test_fit_of_one_image_does_not_pin_its_mean() -> None:
    truth = en.GaussianField.power_law((1, 16, 16), dtype=torch.float64)
    got = en.GaussianField.fit(truth.sample(gen(8), 1), smooth=0.0)
    neighbours = torch.stack([got.spectrum[0, 1, 0], got.spectrum[0, 0, 1]])
    torch.testing.assert_close(got.spectrum[0, 0, 0], neighbours.mean())


def test_fit_of_constant_images_keeps_a_floor() -> None:
    got = en.GaussianField.fit(torch.ones(3, 1, 8, 8))
    assert float(got.spectrum.min()) > 0
    assert torch.isfinite(got(torch.ones(1, 8, 8)))


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("size", [(5, 4), (9, 8), (13, 14), (7, 20)])
def test_resizing_keeps_the_variance_of_a_pixel(is_complex: bool, size: tuple[int, int]) -> None:
    s = 0.05 + randn(2, 9, 8).square()
    u = en.GaussianField(s if is_complex else 0.5 * (s + mirror(s)), 0.2j if is_complex else 0.2)
    v = u.resized(*size)
    assert v.event_shape == (2, *size)
    torch.testing.assert_close(v.spectrum.mean((-2, -1)), u.spectrum.mean((-2, -1)), rtol=1e-12, atol=0)
    if size == (9, 8):
        torch.testing.assert_close(v.spectrum, u.spectrum, rtol=1e-10, atol=1e-12)


def test_a_smaller_size_is_what_crops_converge_to() -> None:
    """The expected periodogram of a crop, from its dense covariance."""
    s = even_spectrum((1, 8, 6))
    u = en.GaussianField(s, 0.0)
    covariance = dense_covariance(s).real.reshape(8, 6, 8, 6)[:5, :4, :5, :4].reshape(20, 20)
    dft = [
        torch.exp(-2j * math.pi * torch.outer(k, k) / n) / n**0.5 for n in (5, 4) for k in [torch.arange(n).double()]
    ]
    f = torch.kron(dft[0], dft[1])
    want = torch.diagonal(f @ covariance.to(f.dtype) @ f.conj().T).real.reshape(1, 5, 4)
    torch.testing.assert_close(u.resized(5, 4).spectrum, want, rtol=1e-10, atol=1e-12)


def test_a_larger_size_samples_the_same_density() -> None:
    """A smooth spectral density, on finer frequencies: doubling and quadrupling the size leaves it as it is."""
    small, large = (en.GaussianField.power_law((1, n, n), 2.0, corner=0.2, dtype=torch.float64) for n in (16, 64))
    got = small.resized(64, 64).spectrum
    # Interpolation errs by second differences of the log spectrum over a bin of 1/16: (1/8) (1/16)^2 2/corner^2.
    torch.testing.assert_close(got.log(), large.spectrum.log(), rtol=0, atol=2 * (1 / 8) * (1 / 16) ** 2 * 2 / 0.2**2)


def test_fit_to_another_size() -> None:
    x = en.GaussianField.power_law((1, 16, 16)).sample(gen(9), 20)
    assert en.GaussianField.fit(x, size=(24, 12)).event_shape == (1, 24, 12)
    varying = en.GaussianField(torch.ones(1, 4, 4), randn(1, 4, 4))
    with pytest.raises(ValueError, match=r"a mean of shape \(1, 4, 4\) cannot be resized"):
        varying.resized(8, 8)


def test_power_law_has_its_std_and_slope() -> None:
    u = en.GaussianField.power_law((1, 64, 64), exponent=2.0, std=0.4, corner=1e-3, mean=0.1, dtype=torch.float64)
    assert math.isclose(float(u.spectrum.mean()), 0.16, rel_tol=1e-12)
    slope = float((u.spectrum[0, 0, 16] / u.spectrum[0, 0, 8]).log2())
    assert math.isclose(slope, -2.0, rel_tol=1e-3)
    assert en.GaussianField.power_law((1, 8, 8), mean=0j).is_complex
    for arguments, message in [({"corner": 0.0}, "corner must be positive"), ({"std": math.nan}, "std must be finite")]:
        with pytest.raises(ValueError, match=message):
            en.GaussianField.power_law((1, 8, 8), **arguments)


def test_bad_fits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images have shape \(4, 4\), expected \(N, C, H, W\)"):
        en.GaussianField.fit(torch.ones(4, 4))
    with pytest.raises(ValueError, match="images has 1 NaN"):
        en.GaussianField.fit(torch.tensor([[[[0.0, math.nan]]]]))
    with pytest.raises(ValueError, match="smooth must be zero or more"):
        en.GaussianField.fit(torch.ones(2, 1, 4, 4), smooth=-1.0)
