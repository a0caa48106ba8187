"""The Gaussian with independent pixels, against torch's distributions."""

import math

import pytest
import torch
from torch.distributions import Normal

from potentia import energies as en

SHAPE = (2, 4, 3)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_value_is_minus_the_log_density(sigma: float) -> None:
    mean, std, x = randn(*SHAPE), 0.2 + randn(*SHAPE, seed=1).abs(), randn(5, *SHAPE, seed=2)
    want = -Normal(mean, (std**2 + sigma**2).sqrt()).log_prob(x).sum((-3, -2, -1))
    torch.testing.assert_close(en.Gaussian(mean, std)(x, sigma), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_parts_of_complex_images_each_have_the_std(sigma: float) -> None:
    mean, std = randn(*SHAPE, dtype=torch.complex128), 0.2 + randn(1, 4, 1, seed=1).abs()
    x = randn(5, *SHAPE, seed=2, dtype=torch.complex128)
    s = (std**2 + sigma**2).sqrt()
    want = -sum(Normal(m, s).log_prob(p).sum((-3, -2, -1)) for m, p in ((mean.real, x.real), (mean.imag, x.imag)))
    torch.testing.assert_close(en.Gaussian(mean, std)(x, sigma), want, rtol=1e-12, atol=1e-12)


def test_a_number_takes_any_image_and_tells_real_from_complex() -> None:
    u = en.Gaussian(0.5, 2.0)
    assert u.event_shape is None
    for shape in ((1, 1, 1), (3, 4, 5), (2, 3, 7, 2)):
        x = randn(*shape)
        want = -Normal(torch.tensor(0.5, dtype=torch.float64), 2.0).log_prob(x).sum((-3, -2, -1))
        torch.testing.assert_close(u(x), want, rtol=1e-12, atol=1e-12)
    assert en.Gaussian(0j, 1.0).is_complex
    assert not en.Gaussian(0, 1.0).is_complex
    assert u(torch.zeros(1, 2, 2)).dtype == torch.float64
    assert u.grad(torch.zeros(1, 2, 2)).dtype == torch.float32
    assert en.Gaussian(0.0, 1.0, shape=SHAPE).event_shape == SHAPE


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("sigma", [0.0, 0.8])
def test_samples_have_mean_and_variance(dtype: torch.dtype, sigma: float) -> None:
    n = 4000
    mean, std = randn(*SHAPE, dtype=dtype), 0.3 + randn(*SHAPE, seed=1).abs()
    x = en.Gaussian(mean, std).sample(gen(3), n, sigma)
    assert x.shape == (n, *SHAPE)
    assert x.dtype == dtype
    v = std**2 + sigma**2
    for part in (torch.real, torch.imag) if dtype.is_complex else (lambda t: t,):
        z = (part(x) - part(mean)) / v.sqrt()
        # 24 means of std 1/sqrt(n) and 24 variances of std sqrt(2/n): five standard deviations.
        assert float(z.mean(0).abs().max()) < 5 / n**0.5
        assert float((z.square().mean(0) - 1).abs().max()) < 5 * (2 / n) ** 0.5


def test_samples_of_a_chain_do_not_depend_on_the_others() -> None:
    u = en.Gaussian(torch.zeros(SHAPE), 1.0)
    both = u.sample([gen(1), gen(2)], 2)
    assert torch.equal(both[1:], u.sample([gen(2)], 1))


def test_denoising_survives_huge_scales_in_single_precision() -> None:
    mean, std, sigma = 0.5, 1.0, 1e4
    x = sigma * randn(1000, 1, 1, 1, dtype=torch.float32)
    want = (x.double() * std**2 + mean * sigma**2) / (std**2 + sigma**2)
    torch.testing.assert_close(en.Gaussian(mean, std).denoise(x, sigma).double(), want, rtol=0, atol=1e-6)


def test_parameters_move_together() -> None:
    u = en.Gaussian(torch.zeros(SHAPE, dtype=torch.complex64), torch.ones(SHAPE))
    assert set(dict(u.named_buffers())) == {"mean", "std"}
    v = u.to(torch.float64)
    assert (v.mean.dtype, v.std.dtype) == (torch.complex128, torch.float64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.full(SHAPE, math.nan), 1.0), ValueError, r"^gaussian: mean has 24 NaN or infinite of 24 entries"),
        ((0.0, math.inf), ValueError, r"^gaussian: std has 1 NaN or infinite"),
        ((0.0, 0.0), ValueError, r"^gaussian: std must be positive, got 0$"),
        ((0.0, -1.0), ValueError, r"^gaussian: std must be positive, got -1$"),
        ((0.0, 1j), ValueError, r"^gaussian: std has dtype torch.complex128"),
        ((torch.zeros(4, 3), 1.0), ValueError, r"^gaussian: mean has shape \(4, 3\), expected \(C, H, W\) or a number"),
        (
            (torch.zeros(SHAPE), torch.ones(4, 2)),
            ValueError,
            r"std has shape \(4, 2\), expected to broadcast to \(2, 4, 3\)",
        ),
        ((0.0, torch.ones(4, 3)), ValueError, r"shape=\(C, H, W\) is needed"),
        (("zero", 1.0), TypeError, "mean must be a tensor or an array, got str"),
    ],
)
def test_bad_parameters_are_refused(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        en.Gaussian(*arguments)


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean has shape \(2, 4, 3\), expected \(1, 4, 3\)"):
        en.Gaussian(torch.zeros(SHAPE), 1.0, shape=(1, 4, 3))
    with pytest.raises(ValueError, match=r"shape is \(4, 3\), expected \(C, H, W\)"):
        en.Gaussian(0.0, 1.0, shape=(4, 3))
    with pytest.raises(ValueError, match="takes images of any shape"):
        en.Gaussian(0.0, 1.0).sample(gen(), 1)
    with pytest.raises(ValueError, match="sigma must be positive"):
        en.Gaussian(0.0, 1.0, shape=SHAPE).sample(gen(), 1, sigma=-1.0)
