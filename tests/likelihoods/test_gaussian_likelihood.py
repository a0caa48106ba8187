"""The Gaussian likelihood against formulas written out, for every operator that it may stand on."""

import math

import pytest
import torch
from torch import Tensor

from potentia import likelihoods
from potentia.likelihoods import Gaussian, Operator


def cases() -> dict[str, tuple[Operator, tuple[int, int, int], bool]]:
    g = torch.Generator().manual_seed(3)
    mask = (torch.rand(6, 5, generator=g) < 0.6).float()
    maps = torch.randn(3, 6, 5, dtype=torch.complex64, generator=g)
    return {
        "identity": (likelihoods.Identity(), (2, 6, 5), False),
        "mask": (likelihoods.Mask(mask), (2, 6, 5), False),
        "convolution": (likelihoods.Convolution(torch.randn(3, 2, generator=g), (6, 5)), (1, 6, 5), False),
        "masked blur": (likelihoods.Mask(mask) @ likelihoods.GaussianBlur(0.8, (6, 5)), (1, 6, 5), False),
        "downsample": (likelihoods.Downsample(2), (1, 6, 4), False),
        "matrix": (likelihoods.Matrix(torch.randn(4, 30, generator=g), (1, 6, 5)), (1, 6, 5), False),
        "fourier": (likelihoods.Fourier(mask), (1, 6, 5), True),
        "fourier of real images": (likelihoods.Fourier(mask, real=True), (1, 6, 5), False),
        "sense": (likelihoods.Sense(maps, mask), (1, 6, 5), True),
        "sense of real images": (likelihoods.Sense(maps, mask, real=True), (1, 6, 5), False),
        "complex identity": (likelihoods.Identity(), (1, 6, 5), True),
    }


CASES = cases()


def build(name: str, varying: bool) -> tuple[Gaussian, Tensor]:
    operator, shape, is_complex = CASES[name]
    operator = operator.double()
    g = torch.Generator().manual_seed(5)
    dtype = torch.complex128 if is_complex else torch.float64
    x = torch.randn(2, *shape, dtype=dtype, generator=g)
    clean = operator(x[0])
    std = 0.3 + torch.rand(clean.shape, dtype=torch.float64, generator=g) if varying else 0.3
    y = operator.measure(x[0], std, g)
    return Gaussian(y, operator, std), x


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_value_is_the_misfit_written_out(name: str, varying: bool) -> None:
    likelihood, x = build(name, varying)
    for image, value in zip(x, likelihood(x), strict=True):
        r = ((likelihood.operator(image) - likelihood.y) / likelihood.noise_std).abs().square().sum()
        assert torch.allclose(value, 0.5 * r, rtol=1e-12)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_autograd(name: str, varying: bool) -> None:
    likelihood, x = build(name, varying)
    z = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(likelihood(z).sum(), z)
    scale = expected.abs().max()
    assert (likelihood.grad(x) - expected).abs().max() < 1e-11 * scale
    value, grad = likelihood.value_and_grad(x)
    assert (grad - expected).abs().max() < 1e-11 * scale
    torch.testing.assert_close(value, likelihood(x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_quadratic_form_is_the_likelihood(name: str, varying: bool) -> None:
    likelihood, x = build(name, varying)
    form = likelihood.quadratic()
    assert torch.allclose(form.value(x), likelihood(x), rtol=1e-10)
    assert torch.allclose(form.grad(x), likelihood.grad(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mask", "sense", "fourier of real images"])
def test_moving_precision_keeps_the_likelihood(name: str) -> None:
    likelihood, x = build(name, True)
    before = likelihood(x)
    likelihood.quadratic()
    single = x.to(torch.complex64 if x.is_complex() else torch.float32)
    likelihood.float()
    assert torch.allclose(likelihood(single), before, rtol=1e-4)
    assert likelihood.grad(single).dtype == single.dtype
    assert likelihood.quadratic().solve(single, 1.0).dtype == single.dtype


def test_complex_noise_has_its_std_in_each_part() -> None:
    n = 20_000
    mask = torch.ones(1, n)
    operator = likelihoods.Fourier(mask)
    y = operator.measure(torch.zeros(1, 1, n, dtype=torch.complex64), 0.3, torch.Generator().manual_seed(0))
    for part in (y.real, y.imag):
        # std of a sample std is std / sqrt(2 n)
        assert abs(float(part.std()) - 0.3) < 5 * 0.3 / math.sqrt(2 * n)


def test_simulated_misfit_is_half_a_nat_a_measurement() -> None:
    operator = likelihoods.Mask((torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.5).float())
    x = torch.zeros(1, 64, 64)
    likelihood = Gaussian(x, operator, 0.1)
    y = likelihood.simulate(x, torch.Generator().manual_seed(1))
    assert bool((y[operator.mask == 0] == 0).all())
    measured = int(operator.mask.sum())
    # chi-square / 2 has mean n / 2 and variance n / 2
    assert abs(float(Gaussian(y, operator, 0.1)(x)) - measured / 2) < 5 * math.sqrt(measured / 2)


def test_what_was_not_measured_does_not_count() -> None:
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    y = torch.arange(4.0).reshape(1, 2, 2)
    changed = y.clone()
    changed[0, 0, 1] = 99.0
    x = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    first, second = (Gaussian(v, likelihoods.Mask(mask), 0.5) for v in (y, changed))
    assert torch.equal(first(x), second(x))
    assert torch.equal(first.quadratic().linear, second.quadratic().linear)


@pytest.mark.parametrize(
    ("build_it", "words"),
    [
        (lambda: Gaussian(torch.zeros(1, 4, 4), None, 0.0), "noise_std must be positive"),
        (lambda: Gaussian(torch.zeros(1, 4, 4), None, -1.0), "noise_std must be positive"),
        (lambda: Gaussian(torch.zeros(1, 4, 4), None, math.nan), "noise_std has 1 NaN"),
        (lambda: Gaussian(torch.zeros(1, 4, 4)), "noise_std is missing"),
        (lambda: Gaussian(torch.full((1, 4, 4), math.inf), None, 0.1), "y has 16 NaN or infinite of 16"),
        (lambda: Gaussian(torch.zeros(4, 4), None, 0.1), r"expected \(C, H, W\)"),
        (lambda: Gaussian(torch.zeros(1, 4, 4), None, torch.ones(5)), r"noise_std has shape \(5,\)"),
        (lambda: Gaussian(torch.zeros(1, 4, 4), likelihoods.Mask(torch.ones(3, 4)), 0.1), r"\(1, 4, 4\).*\(1, 3, 4\)"),
        (lambda: Gaussian(torch.zeros(1, 4, 4), likelihoods.Fourier(), 0.1), "complex"),
        (lambda: Gaussian("y", None, 0.1), "must be a tensor"),
        (lambda: likelihoods.Mask(torch.zeros(3, 3)), "zero everywhere"),
        (lambda: likelihoods.Mask(-torch.ones(3, 3)), "not negative"),
        (lambda: likelihoods.Fourier(torch.zeros(3, 3)), "zero everywhere"),
        (lambda: likelihoods.Sense(torch.zeros(2, 3, 3), torch.ones(3, 3)), "zero everywhere"),
        (lambda: likelihoods.Sense(torch.ones(2, 3, 3), torch.ones(4, 3)), r"\(4, 3\), expected \(3, 3\)"),
        (lambda: likelihoods.Sense(torch.ones(3, 3)), r"expected \(coils, H, W\)"),
        (lambda: likelihoods.GaussianBlur(0.0, (8, 8)), "std must be positive"),
        (lambda: likelihoods.GaussianBlur(1.0, (8,)), r"expected \(H, W\)"),
        (lambda: likelihoods.MotionBlur(20.0, 0.0, (8, 8)), "at most the image's"),
        (lambda: likelihoods.Convolution(torch.zeros(3, 3), (8, 8)), "zero everywhere"),
        (lambda: likelihoods.Downsample(0), "at least 1"),
        (lambda: likelihoods.Downsample(3).output_shape((1, 8, 9)), "divisible by 3"),
        (lambda: likelihoods.Matrix(torch.ones(2, 5), (1, 2, 2)), r"expected \(M, 4\)"),
        (lambda: 0.0 * likelihoods.Identity(), "must not be zero"),
        (lambda: likelihoods.Identity() + likelihoods.Matrix(torch.ones(2, 4), (1, 2, 2)), "must agree"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(build_it: object, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        build_it()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_the_tree_shows_what_is_measured() -> None:
    text = repr(Gaussian(torch.zeros(1, 4, 4), likelihoods.Mask(torch.eye(4)), 0.25))
    assert "noise_std 0.25" in text
    assert "25.0% measured" in text
